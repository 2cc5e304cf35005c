//! Sixteen f32 lanes on three instruction sets.
//!
//! [`Simd`] is the vocabulary in which the CPU's inner loops are written once. Each implementation is a token whose existence
//! proves that the CPU has the instructions, so that all its methods are safe to call; [`Isa`] hands the tokens out.
//! A loop must be inlined into a function with the matching `#[target_feature]`, which is what [`dispatch!`] arranges:
//! elsewhere the intrinsics would become calls.
//!
//! Every method does the same IEEE operation on each lane on every instruction set, so the lanes' bits are equal everywhere,
//! with one exception: [`Simd::mul_add`] rounds twice on a CPU without fused multiply-add (x86-64 before 2013).

use crate::cpu::gemm::Path;
use std::sync::LazyLock;

/// How many f32 values a [`Simd::V`] holds.
pub(in crate::cpu) const LANES: usize = 16;

/// Operations on sixteen lanes. `min` and `max` return their second argument when either is NaN.
pub(in crate::cpu) trait Simd: Copy {
    /// Sixteen f32 values.
    type V: Copy;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, out: &mut [f32; LANES]);
    /// The lower halves of the words, as the upper halves of f32; then the upper halves: pairs of bf16.
    fn load_halves(self, words: &[u32; LANES]) -> [Self::V; 2];
    /// The lanes' low bytes.
    #[inline(always)]
    fn low_bytes(self, v: Self::V) -> [u8; LANES] {
        let (lanes, mut bytes) = (self.to_array(v), [0; LANES]);
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = lanes[i].to_bits() as u8;
        }
        bytes
    }

    /// The bits of the nearest bf16, ties to even; NaN stays NaN, subnormal numbers become zero.
    #[inline(always)]
    fn to_bf16(self, v: Self::V) -> [u16; LANES] {
        let (lanes, mut rounded) = (self.to_array(v), [0; LANES]);
        for (i, bits) in rounded.iter_mut().enumerate() {
            *bits = bf16_bits(lanes[i]);
        }
        rounded
    }

    /// Sixteen bf16 values.
    fn load_bf16(self, x: &[u16; LANES]) -> Self::V;
    /// Loads up to sixteen values; the lanes beyond `x` hold `fill`.
    fn load_partial(self, x: &[f32], fill: f32) -> Self::V;
    /// Stores as many lanes as `out` has room for.
    fn store_partial(self, v: Self::V, out: &mut [f32]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `then` in the lanes where `a < b`, else (also where one is NaN) `otherwise`.
    fn select_lt(self, a: Self::V, b: Self::V, then: Self::V, otherwise: Self::V) -> Self::V;
    /// `x` in the lanes where it is NaN, else `otherwise`.
    fn nan_or(self, x: Self::V, otherwise: Self::V) -> Self::V;
    /// Bit i is set when lane i of `a` is greater than lane i of `b`.
    fn mask_gt(self, a: Self::V, b: Self::V) -> u64;
    /// The lanes' bits shifted left by 23: their low bits moved to where an f32 keeps its exponent.
    fn low_bits_to_exponent(self, v: Self::V) -> Self::V;

    #[inline(always)]
    fn to_array(self, v: Self::V) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        lanes
    }

    /// The larger of two; NaN if either is NaN, that of `v` before that of `seen`.
    #[inline(always)]
    fn larger(self, seen: Self::V, v: Self::V) -> Self::V {
        // `max` returns its second argument if one is NaN.
        self.nan_or(v, self.max(v, seen))
    }

    /// The larger of a magnitude that was seen and of those of `v`; NaN if either is NaN.
    #[inline(always)]
    fn larger_magnitude(self, seen: Self::V, v: Self::V) -> Self::V {
        self.larger(seen, self.max(self.sub(self.splat(0.0), v), v))
    }

    /// The largest lane: lane i or lane i + 8, as [`Simd::larger`], of those lane i or lane i + 4, and so on.
    #[inline(always)]
    fn largest_lane(self, v: Self::V) -> f32 {
        let mut lanes = self.to_array(v);
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                let (seen, value) = (lanes[i], lanes[i + width]);
                lanes[i] = if value > seen || value.is_nan() { value } else { seen };
            }
        }
        lanes[0]
    }

    /// The sum of all lanes: lane i plus lane i + 8, of those lane i plus lane i + 4, and so on.
    #[inline(always)]
    fn sum_lanes(self, v: Self::V) -> f32 {
        let mut lanes = self.to_array(v);
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }

    /// [`Simd::sum_lanes`] of sixteen vectors, with the same bits.
    #[inline(always)]
    fn sum_lanes_of_each(self, vectors: &[Self::V; LANES]) -> Self::V {
        let mut sums = [0.0; LANES];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = self.sum_lanes(vectors[i]);
        }
        self.load(&sums)
    }

    /// [`Simd::largest_lane`] of sixteen vectors, with the same bits.
    #[inline(always)]
    fn largest_lane_of_each(self, vectors: &[Self::V; LANES]) -> Self::V {
        let mut largest = [0.0; LANES];
        for (i, largest) in largest.iter_mut().enumerate() {
            *largest = self.largest_lane(vectors[i]);
        }
        self.load(&largest)
    }
}

/// The bits of the nearest bf16, ties to even; NaN stays NaN, subnormal numbers become zero.
#[inline(always)]
pub(in crate::cpu) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    // Only NaN wraps around.
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let (magnitude, sign) = (bits & 0x7fff_ffff, bits >> 16 & 0x8000);
    let rounded = if magnitude < 0x0080_0000 { sign } else { nearest };
    (if magnitude > 0x7f80_0000 { bits >> 16 | 0x40 } else { rounded }) as u16
}

/// Asks for the cache line at an address, where the instruction set knows how.
#[inline(always)]
pub(in crate::cpu) fn prefetch_line(_address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that never faults, whatever the address; SSE is in the target's baseline.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(_address.cast());
    }
}

/// The instruction sets that the inner loops are compiled for. A value other than `Portable` exists only where the CPU has
/// that instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(in crate::cpu) Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    Portable(Portable),
}

impl Isa {
    /// That of the chosen path.
    #[inline]
    pub fn best() -> Isa {
        static BEST: LazyLock<Isa> = LazyLock::new(|| Isa::of(Path::current()));
        *BEST
    }

    /// Every instruction set of this CPU, best first.
    pub fn available() -> Vec<Isa> {
        let mut found: Vec<Isa> = Path::available().map(Isa::of).collect();
        found.dedup();
        found
    }

    /// That of a path which can be used here.
    pub(in crate::cpu) fn of(path: Path) -> Isa {
        debug_assert!(path.missing().is_none(), "{path:?} cannot be used here");
        Isa(match path {
            #[cfg(target_arch = "x86_64")]
            Path::Amx | Path::Avx512Bf16 | Path::Avx512Vnni | Path::Avx512 => Kind::Avx512(Avx512(())),
            #[cfg(target_arch = "x86_64")]
            Path::AvxVnni | Path::Avx2 => Kind::Avx2(Avx2(())),
            _ => Kind::Portable(Portable),
        })
    }

    /// Whether multiply-adds are rounded once; all instruction sets that do so give equal bits.
    pub fn fuses_multiply_add(self) -> bool {
        !matches!(self.0, Kind::Portable(_)) || FUSED
    }

    /// A short name for logs and benchmarks.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            Kind::Portable(_) => "portable",
        }
    }
}

/// Calls `body(token, args...)` compiled for the instruction set `isa`. `body` is generic over `S: Simd` and
/// `#[inline(always)]`; the arguments' types are spelled out because nested functions cannot infer them.
macro_rules! dispatch {
    ($isa:expr, $body:path, ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?) => {
        dispatch!($isa, $body, [], ($($arg: $ty),*) $(-> $ret)?)
    };
    ($isa:expr, $body:path, [$($generics:tt)*], ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
        fn avx512 $($generics)* (token: $crate::cpu::simd::lanes::Avx512, $($arg: $ty),*) $(-> $ret)? {
            $body(token, $($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2 $($generics)* (token: $crate::cpu::simd::lanes::Avx2, $($arg: $ty),*) $(-> $ret)? {
            $body(token, $($arg),*)
        }
        match $isa.0 {
            // SAFETY: the token exists only where the CPU has these features.
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::lanes::Kind::Avx512(token) => unsafe { avx512(token, $($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::lanes::Kind::Avx2(token) => unsafe { avx2(token, $($arg),*) },
            $crate::cpu::simd::lanes::Kind::Portable(token) => $body(token, $($arg),*),
        }
    }};
}
pub(in crate::cpu) use dispatch;

#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Simd};
    use std::arch::x86_64::*;

    /// Methods of [`Simd`] that are one expression over intrinsics without memory operands.
    macro_rules! lane_ops {
        ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = $e:expr;)*) => {$(
            #[inline(always)]
            fn $name(self, $($arg: $ty),*) -> $ret {
                // SAFETY: `self` exists only where the CPU has the instruction set.
                unsafe { $e }
            }
        )*};
    }

    /// Proof that the CPU has AVX-512 F, BW and VL, and AVX2 and FMA.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::cpu) struct Avx512(pub(super) ());

    impl Avx512 {
        /// A CPU that has AVX-512 has AVX2.
        pub fn avx2(self) -> Avx2 {
            Avx2(())
        }

        #[inline(always)]
        pub fn load_words(self, x: &[u32; LANES]) -> __m512i {
            // SAFETY: `self` proves AVX-512; the array has sixteen values.
            unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
        }

        #[inline(always)]
        pub fn as_floats(self, words: __m512i) -> __m512 {
            // SAFETY: `self` proves AVX-512.
            unsafe { _mm512_castsi512_ps(words) }
        }

        /// `a - b` as f32.
        #[inline(always)]
        pub fn difference_to_f32(self, a: __m512i, b: __m512i) -> __m512 {
            // SAFETY: `self` proves AVX-512.
            unsafe { _mm512_cvtepi32_ps(_mm512_sub_epi32(a, b)) }
        }
    }

    /// Folds the lanes of each of sixteen vectors into one lane: as in [`Simd::sum_lanes`] lane i meets lane i + 8, then i + 4, i + 2,
    /// i + 1, of several vectors at a time. The last two steps leave the results transposed, which the order of the first compensates.
    macro_rules! fold_lanes_of_each {
        ($vectors:ident, |$a:ident, $b:ident| $fold:expr) => {
            // SAFETY: `self`, whose method this is, proves AVX-512.
            unsafe {
                let fold = |$a, $b| $fold;
                let mut fours = [_mm512_setzero_ps(); 4];
                for (j, four) in fours.iter_mut().enumerate() {
                    let [a, b, c, d] = [$vectors[j], $vectors[4 + j], $vectors[8 + j], $vectors[12 + j]];
                    let halves = |a, b| {
                        fold(_mm512_shuffle_f32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b))
                    };
                    let (ab, cd) = (halves(a, b), halves(c, d));
                    *four = fold(
                        _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
                        _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
                    );
                }
                let twos =
                    |a, b| fold(_mm512_shuffle_ps::<0b01_00_01_00>(a, b), _mm512_shuffle_ps::<0b11_10_11_10>(a, b));
                let (low, high) = (twos(fours[0], fours[1]), twos(fours[2], fours[3]));
                fold(_mm512_shuffle_ps::<0b10_00_10_00>(low, high), _mm512_shuffle_ps::<0b11_01_11_01>(low, high))
            }
        };
    }

    #[inline(always)]
    fn first_lanes(count: usize) -> __mmask16 {
        ((1u32 << count.min(LANES)) - 1) as __mmask16
    }

    impl Simd for Avx512 {
        type V = __m512;

        lane_ops! {
            splat(x: f32) -> __m512 = _mm512_set1_ps(x);
            add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
            sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
            mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
            div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
            mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
            min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
            max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
            select_lt(a: __m512, b: __m512, then: __m512, otherwise: __m512) -> __m512 =
                _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), otherwise, then);
            nan_or(x: __m512, otherwise: __m512) -> __m512 =
                _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x), otherwise, x);
            mask_gt(a: __m512, b: __m512) -> u64 = u64::from(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b));
            low_bits_to_exponent(v: __m512) -> __m512 =
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(v)));
        }

        #[inline(always)]
        fn load(self, x: &[f32; LANES]) -> __m512 {
            // SAFETY: `self` proves AVX-512; the array has sixteen values.
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        }

        #[inline(always)]
        fn low_bytes(self, v: __m512) -> [u8; LANES] {
            let mut bytes = [0; LANES];
            // SAFETY: `self` proves AVX-512; the array has sixteen bytes.
            unsafe {
                _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_castps_si512(v)));
            }
            bytes
        }

        #[inline(always)]
        fn to_bf16(self, v: __m512) -> [u16; LANES] {
            let mut out = [0; LANES];
            // SAFETY: `self` proves AVX-512; the array has sixteen values.
            unsafe {
                let bits = _mm512_castps_si512(v);
                let upper = _mm512_srli_epi32::<16>(bits);
                let half = _mm512_add_epi32(_mm512_and_si512(upper, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
                let nearest = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
                let magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff));
                let tiny = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x0080_0000));
                let nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f80_0000));
                let sign = _mm512_and_si512(upper, _mm512_set1_epi32(0x8000));
                let rounded = _mm512_mask_mov_epi32(nearest, tiny, sign);
                let rounded = _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40));
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(rounded));
            }
            out
        }

        #[inline(always)]
        fn load_bf16(self, x: &[u16; LANES]) -> __m512 {
            // SAFETY: `self` proves AVX-512; the array has sixteen values.
            unsafe {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
                self.as_floats(_mm512_slli_epi32::<16>(words))
            }
        }

        #[inline(always)]
        fn larger_magnitude(self, seen: __m512, v: __m512) -> __m512 {
            // SAFETY: `self` proves AVX-512.
            unsafe {
                // Magnitudes are in the order of their bits, above all of them NaN.
                let bits = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fff_ffff));
                self.as_floats(_mm512_max_epu32(bits, _mm512_castps_si512(seen)))
            }
        }

        #[inline(always)]
        fn largest_lane(self, v: __m512) -> f32 {
            // SAFETY: `self` proves AVX-512.
            unsafe {
                let v = self.larger(v, _mm512_shuffle_f32x4::<0b01_00_11_10>(v, v));
                let v = self.larger(v, _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v));
                let v = self.larger(v, _mm512_permute_ps::<0b01_00_11_10>(v));
                _mm512_cvtss_f32(self.larger(v, _mm512_permute_ps::<0b10_11_00_01>(v)))
            }
        }

        #[inline(always)]
        fn sum_lanes_of_each(self, vectors: &[__m512; LANES]) -> __m512 {
            fold_lanes_of_each!(vectors, |a, b| _mm512_add_ps(a, b))
        }

        #[inline(always)]
        fn largest_lane_of_each(self, vectors: &[__m512; LANES]) -> __m512 {
            fold_lanes_of_each!(vectors, |a, b| self.larger(a, b))
        }

        #[inline(always)]
        fn load_halves(self, words: &[u32; LANES]) -> [__m512; 2] {
            let words = self.load_words(words);
            // SAFETY: `self` proves AVX-512.
            unsafe {
                let upper = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
                [self.as_floats(_mm512_slli_epi32::<16>(words)), self.as_floats(upper)]
            }
        }

        #[inline(always)]
        fn store(self, v: __m512, out: &mut [f32; LANES]) {
            // SAFETY: `self` proves AVX-512; the array has sixteen values.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
        }

        #[inline(always)]
        fn load_partial(self, x: &[f32], fill: f32) -> __m512 {
            // SAFETY: `self` proves AVX-512; the mask keeps the load inside the slice.
            unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(x.len()), x.as_ptr()) }
        }

        #[inline(always)]
        fn sum_lanes(self, v: __m512) -> f32 {
            // SAFETY: `self` proves AVX-512.
            unsafe {
                let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
                sum_eight(_mm256_add_ps(_mm512_castps512_ps256(v), high))
            }
        }

        #[inline(always)]
        fn store_partial(self, v: __m512, out: &mut [f32]) {
            // SAFETY: `self` proves AVX-512; the mask keeps the store inside the slice.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), first_lanes(out.len()), v) }
        }
    }

    /// Proof that the CPU has AVX2 and FMA.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::cpu) struct Avx2(pub(super) ());

    /// The sum of eight lanes in the order of [`Simd::sum_lanes`].
    #[inline(always)]
    fn sum_eight(v: __m256) -> f32 {
        // SAFETY: called by the methods of `Avx2` and `Avx512` only.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    /// Two registers of eight lanes.
    type Pair = [__m256; 2];

    /// All ones in the lanes below `count`.
    #[inline(always)]
    fn first_lanes_pair(count: usize) -> [__m256i; 2] {
        static MASK: [i32; 2 * LANES] = {
            let mut mask = [0; 2 * LANES];
            let mut i = 0;
            while i < LANES {
                mask[i] = -1;
                i += 1;
            }
            mask
        };
        let window = &MASK[LANES - count.min(LANES)..][..LANES];
        // SAFETY: called by `Avx2`'s methods only; the window has sixteen values.
        unsafe { [_mm256_loadu_si256(window.as_ptr().cast()), _mm256_loadu_si256(window[8..].as_ptr().cast())] }
    }

    impl Simd for Avx2 {
        type V = Pair;

        lane_ops! {
            splat(x: f32) -> Pair = [_mm256_set1_ps(x); 2];
            add(a: Pair, b: Pair) -> Pair = [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])];
            sub(a: Pair, b: Pair) -> Pair = [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])];
            mul(a: Pair, b: Pair) -> Pair = [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])];
            div(a: Pair, b: Pair) -> Pair = [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])];
            mul_add(a: Pair, b: Pair, c: Pair) -> Pair =
                [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])];
            min(a: Pair, b: Pair) -> Pair = [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])];
            max(a: Pair, b: Pair) -> Pair = [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])];
            select_lt(a: Pair, b: Pair, then: Pair, otherwise: Pair) -> Pair = [
                _mm256_blendv_ps(otherwise[0], then[0], _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
                _mm256_blendv_ps(otherwise[1], then[1], _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])),
            ];
            nan_or(x: Pair, otherwise: Pair) -> Pair = [
                _mm256_blendv_ps(otherwise[0], x[0], _mm256_cmp_ps::<_CMP_UNORD_Q>(x[0], x[0])),
                _mm256_blendv_ps(otherwise[1], x[1], _mm256_cmp_ps::<_CMP_UNORD_Q>(x[1], x[1])),
            ];
            mask_gt(a: Pair, b: Pair) -> u64 = {
                let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0]));
                let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1]));
                low as u64 | (high as u64) << 8
            };
            low_bits_to_exponent(v: Pair) -> Pair = [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(v[0]))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(v[1]))),
            ];
        }

        #[inline(always)]
        fn load(self, x: &[f32; LANES]) -> Pair {
            // SAFETY: `self` proves AVX2; the array has sixteen values.
            unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())] }
        }

        #[inline(always)]
        fn load_bf16(self, x: &[u16; LANES]) -> Pair {
            // SAFETY: `self` proves AVX2; the array has sixteen values.
            unsafe {
                let eight = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x)));
                [eight(_mm_loadu_si128(x.as_ptr().cast())), eight(_mm_loadu_si128(x[8..].as_ptr().cast()))]
            }
        }

        #[inline(always)]
        fn load_halves(self, words: &[u32; LANES]) -> [Pair; 2] {
            // SAFETY: `self` proves AVX2; the array has sixteen values.
            unsafe {
                let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
                let (a, b) =
                    (_mm256_loadu_si256(words.as_ptr().cast()), _mm256_loadu_si256(words[8..].as_ptr().cast()));
                let low = |words| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words));
                let high = |words| _mm256_castsi256_ps(_mm256_and_si256(words, upper));
                [[low(a), low(b)], [high(a), high(b)]]
            }
        }

        #[inline(always)]
        fn store(self, v: Pair, out: &mut [f32; LANES]) {
            // SAFETY: `self` proves AVX2; the array has sixteen values.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), v[0]);
                _mm256_storeu_ps(out[8..].as_mut_ptr(), v[1]);
            }
        }

        #[inline(always)]
        fn load_partial(self, x: &[f32], fill: f32) -> Pair {
            let mask = first_lanes_pair(x.len());
            // SAFETY: `self` proves AVX2; masked-off lanes are not accessed, and the address of the second half is computed
            // without claiming that it lies inside the slice.
            unsafe {
                let fill = _mm256_set1_ps(fill);
                let low = _mm256_maskload_ps(x.as_ptr(), mask[0]);
                let high = _mm256_maskload_ps(x.as_ptr().wrapping_add(8), mask[1]);
                [
                    _mm256_blendv_ps(fill, low, _mm256_castsi256_ps(mask[0])),
                    _mm256_blendv_ps(fill, high, _mm256_castsi256_ps(mask[1])),
                ]
            }
        }

        #[inline(always)]
        fn sum_lanes(self, v: Pair) -> f32 {
            // SAFETY: `self` proves AVX2.
            sum_eight(unsafe { _mm256_add_ps(v[0], v[1]) })
        }

        #[inline(always)]
        fn store_partial(self, v: Pair, out: &mut [f32]) {
            let mask = first_lanes_pair(out.len());
            // SAFETY: as in `load_partial`.
            unsafe {
                _mm256_maskstore_ps(out.as_mut_ptr(), mask[0], v[0]);
                _mm256_maskstore_ps(out.as_mut_ptr().wrapping_add(8), mask[1], v[1]);
            }
        }
    }
}

/// Plain Rust that LLVM vectorises for the target's baseline (SSE2, NEON): loops over indices, since closures of `map` and `zip` are not
/// inlined everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) struct Portable;

type Array = [f32; LANES];

/// Methods of [`Simd`] that compute lane i of the result from lane i of each argument.
macro_rules! lanewise {
    ($($name:ident($($arg:ident),*) = $e:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Array),*) -> Array {
            let mut out = [0.0; LANES];
            for i in 0..LANES {
                $(let $arg = $arg[i];)*
                out[i] = $e;
            }
            out
        }
    )*};
}

impl Simd for Portable {
    type V = Array;

    lanewise! {
        add(a, b) = a + b;
        sub(a, b) = a - b;
        mul(a, b) = a * b;
        div(a, b) = a / b;
        mul_add(a, b, c) = mul_add(a, b, c);
        min(a, b) = if a < b { a } else { b };
        max(a, b) = if a > b { a } else { b };
        select_lt(a, b, then, otherwise) = if a < b { then } else { otherwise };
        nan_or(x, otherwise) = if x.is_nan() { x } else { otherwise };
        low_bits_to_exponent(v) = f32::from_bits(v.to_bits() << 23);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Array {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Array {
        *x
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Array {
        let mut v = [0.0; LANES];
        for i in 0..LANES {
            v[i] = f32::from_bits(u32::from(x[i]) << 16);
        }
        v
    }

    #[inline(always)]
    fn load_halves(self, words: &[u32; LANES]) -> [Array; 2] {
        let mut halves = [[0.0; LANES]; 2];
        for i in 0..LANES {
            halves[0][i] = f32::from_bits(words[i] << 16);
        }
        for i in 0..LANES {
            halves[1][i] = f32::from_bits(words[i] & 0xffff_0000);
        }
        halves
    }

    #[inline(always)]
    fn store(self, v: Array, out: &mut [f32; LANES]) {
        *out = v;
    }

    #[inline(always)]
    fn load_partial(self, x: &[f32], fill: f32) -> Array {
        let mut v = [fill; LANES];
        v[..x.len()].copy_from_slice(x);
        v
    }

    #[inline(always)]
    fn store_partial(self, v: Array, out: &mut [f32]) {
        out.copy_from_slice(&v[..out.len()]);
    }

    #[inline(always)]
    fn mask_gt(self, a: Array, b: Array) -> u64 {
        let mut mask = 0;
        for i in 0..LANES {
            mask |= u64::from(a[i] > b[i]) << i;
        }
        mask
    }
}

/// Whether the compilation target itself has fused multiply-add.
const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// `a * b + c`: fused where the target has the instruction, since a library call per element would be ten times slower.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}
