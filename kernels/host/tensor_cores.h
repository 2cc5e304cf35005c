// kernels/tensor_cores.cuh for the emulator.
//
// A copy happens when its thread waits for it, and what it goes to is NaN until then: code that waits too little reads NaN.

struct EmulatedProduct {
    float (*to_float)(std::uint16_t);
    const unsigned *a, *b;
    float* c;
};

// As the fragments are documented; sums from the first row of b to the last.
static void emulated_product(void* const* lanes) {
    float a[16][16], b[16][8];
    for (unsigned lane = 0; lane < 32; ++lane) {
        const auto& of = *static_cast<const EmulatedProduct*>(lanes[lane]);
        const unsigned g = lane / 4, t = lane % 4;
        for (unsigned half = 0; half < 2; ++half) {
            const auto value = [&](unsigned pair) { return of.to_float(static_cast<std::uint16_t>(pair >> 16 * half)); };
            for (unsigned r = 0; r < 4; ++r) a[g + 8 * (r % 2)][2 * t + half + 8 * (r / 2)] = value(of.a[r]);
            for (unsigned r = 0; r < 2; ++r) b[2 * t + half + 8 * r][g] = value(of.b[r]);
        }
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
        const auto& of = *static_cast<const EmulatedProduct*>(lanes[lane]);
        for (unsigned r = 0; r < 4; ++r) {
            const unsigned row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
            float sum = of.c[r];
            for (unsigned k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
            of.c[r] = sum;
        }
    }
}

template <typename T>
void multiply_add(T, const unsigned (&a)[4], const unsigned (&b)[2], float (&c)[4], EMULATED_HERE) {
    EmulatedProduct mine{[](std::uint16_t bits) { return to_float(emulated::bits_as<T>(bits)); }, a, b, c};
    emulated::together(emulated_product, &mine, EMULATED_SITE);
}

struct EmulatedProductI8 {
    const unsigned *a, *b;
    int* c;
};

static void emulated_product_i8(void* const* lanes) {
    int a[16][32], b[32][8];
    for (unsigned lane = 0; lane < 32; ++lane) {
        const auto& of = *static_cast<const EmulatedProductI8*>(lanes[lane]);
        const unsigned g = lane / 4, t = lane % 4;
        for (unsigned i = 0; i < 4; ++i) {
            const auto value = [&](unsigned four) { return static_cast<int>(static_cast<std::int8_t>(four >> 8 * i)); };
            for (unsigned r = 0; r < 4; ++r) a[g + 8 * (r % 2)][4 * t + i + 16 * (r / 2)] = value(of.a[r]);
            for (unsigned r = 0; r < 2; ++r) b[4 * t + i + 16 * r][g] = value(of.b[r]);
        }
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
        const auto& of = *static_cast<const EmulatedProductI8*>(lanes[lane]);
        for (unsigned r = 0; r < 4; ++r) {
            const unsigned row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
            for (unsigned k = 0; k < 32; ++k) of.c[r] += a[row][k] * b[k][column];
        }
    }
}

inline void multiply_add(PairI8, const unsigned (&a)[4], const unsigned (&b)[2], int (&c)[4], EMULATED_HERE) {
    EmulatedProductI8 mine{a, b, c};
    emulated::together(emulated_product_i8, &mine, EMULATED_SITE);
}

struct EmulatedLoad {
    const unsigned char* row;
    unsigned* to;
};

static void emulated_load(void* const* lanes) {
    for (unsigned lane = 0; lane < 32; ++lane) {
        for (unsigned i = 0; i < 4; ++i) {
            const unsigned char* row = static_cast<const EmulatedLoad*>(lanes[8 * i + lane / 4])->row;
            std::memcpy(static_cast<EmulatedLoad*>(lanes[lane])->to + i, row + 4 * (lane % 4), 4);
        }
    }
}

inline void load_matrices(const void* row, unsigned (&to)[4], EMULATED_HERE) {
    struct alignas(16) Row { unsigned char bytes[16]; };
    EmulatedLoad mine{emulated::aligned(static_cast<const Row*>(row))->bytes, to};
    emulated::together(emulated_load, &mine, EMULATED_SITE);
}

inline void copy_async(void* to, const void* from, bool is_zero) { emulated::copy_async(to, from, is_zero); }
inline void end_copies() { emulated::end_copies(); }
template <unsigned LEFT>
void wait_for_copies() { emulated::wait_for_copies(LEFT); }
