//! Products of four unsigned 8-bit values with four signed ones, summed into sixteen 32-bit lanes, on the instruction sets without
//! matrix tiles.

use super::super::quads::{Dot, Instructions, Quad};
use super::QUAD;
use crate::cpu::gemm::Path;
#[cfg(target_arch = "x86_64")]
use crate::cpu::gemm::amx::Amx;
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::lanes::{Avx2, Avx512};
use crate::cpu::simd::lanes::{Isa, Kind, LANES, Portable, Simd};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::sync::LazyLock;

/// Integer dot products. x comes as q + 128; a sum carries, or does not carry, 128 times the sum of the weights, and
/// [`IntegerDot::to_f32`] knows which.
pub(super) trait IntegerDot: Dot {
    fn load_offsets(self, offsets: &[i32; LANES]) -> Self::Sum;
    /// The sums, `offsets` subtracted where sums carry them.
    fn to_f32(self, sum: Self::Sum, offsets: Self::Sum) -> <Self::Lanes as Simd>::V;
}

/// The instruction sets for 8-bit products. A value other than `Portable` exists only where the CPU has that instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int8Isa(pub(super) Int8Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Int8Kind {
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
    #[cfg(target_arch = "x86_64")]
    Vnni512(Vnni512),
    #[cfg(target_arch = "x86_64")]
    Vnni256(Vnni256),
    #[cfg(target_arch = "x86_64")]
    Signed(Signed),
    Portable(Portable),
}

impl Int8Isa {
    /// That of the chosen path.
    pub fn best() -> Int8Isa {
        static BEST: LazyLock<Int8Isa> = LazyLock::new(|| Int8Isa::of(Path::current()));
        *BEST
    }

    /// Every instruction set of this CPU, best first.
    pub fn available() -> Vec<Int8Isa> {
        let mut found: Vec<Int8Isa> = Path::available().map(Int8Isa::of).collect();
        found.dedup();
        found
    }

    /// What multiplies so many rows fastest, and as exactly: most of a matrix tile of a few rows is idle, and loading it takes longer
    /// than `vpdpbusd` for its products.
    pub(super) fn for_rows(self, rows: usize) -> Int8Isa {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Int8Kind::Amx(Amx(lanes)) if rows <= 8 => Int8Isa(Int8Kind::Vnni512(Vnni512(lanes))),
            _ => self,
        }
    }

    /// That of a path which can be used here.
    fn of(path: Path) -> Int8Isa {
        let lanes = Isa::of(path);
        let kind = match (path, lanes.0) {
            #[cfg(target_arch = "x86_64")]
            (Path::Amx, Kind::Avx512(lanes)) => Int8Kind::Amx(Amx(lanes)),
            #[cfg(target_arch = "x86_64")]
            (Path::Avx512Bf16 | Path::Avx512Vnni, Kind::Avx512(lanes)) => Int8Kind::Vnni512(Vnni512(lanes)),
            #[cfg(target_arch = "x86_64")]
            (_, Kind::Avx512(lanes)) => Int8Kind::Signed(Signed(lanes.avx2())),
            #[cfg(target_arch = "x86_64")]
            (Path::AvxVnni, Kind::Avx2(lanes)) => Int8Kind::Vnni256(Vnni256(lanes)),
            #[cfg(target_arch = "x86_64")]
            (_, Kind::Avx2(lanes)) => Int8Kind::Signed(Signed(lanes)),
            (_, Kind::Portable(lanes)) => Int8Kind::Portable(lanes),
        };
        Int8Isa(kind)
    }

    /// The instruction set for what is not an integer product.
    pub fn lanes(self) -> Isa {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Int8Kind::Amx(Amx(lanes)) | Int8Kind::Vnni512(Vnni512(lanes)) => Isa(Kind::Avx512(lanes)),
            #[cfg(target_arch = "x86_64")]
            Int8Kind::Vnni256(Vnni256(lanes)) | Int8Kind::Signed(Signed(lanes)) => Isa(Kind::Avx2(lanes)),
            Int8Kind::Portable(lanes) => Isa(Kind::Portable(lanes)),
        }
    }

    /// A short name for logs and benchmarks.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Int8Kind::Amx(_) => "amx-int8",
            #[cfg(target_arch = "x86_64")]
            Int8Kind::Vnni512(_) => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Int8Kind::Vnni256(_) => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Int8Kind::Signed(_) => "avx2",
            Int8Kind::Portable(_) => "portable",
        }
    }
}

/// Calls `body(token, args...)` compiled for the instruction set `isa`; see `lanes::dispatch!`.
macro_rules! dispatch_int8 {
    ($isa:expr, $body:path, ($($arg:ident: $ty:ty),*)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
        fn amx(token: $crate::cpu::gemm::amx::Amx, $($arg: $ty),*) {
            $body(token, $($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
        fn vnni512(token: dot::Vnni512, $($arg: $ty),*) {
            $body(token, $($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avxvnni,avx2,fma")]
        fn vnni256(token: dot::Vnni256, $($arg: $ty),*) {
            $body(token, $($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn signed(token: dot::Signed, $($arg: $ty),*) {
            $body(token, $($arg),*)
        }
        match $isa.0 {
            // SAFETY: the token exists only where the CPU has these features.
            #[cfg(target_arch = "x86_64")]
            dot::Int8Kind::Amx(token) => unsafe { amx(token, $($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            dot::Int8Kind::Vnni512(token) => unsafe { vnni512(token, $($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            dot::Int8Kind::Vnni256(token) => unsafe { vnni256(token, $($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            dot::Int8Kind::Signed(token) => unsafe { signed(token, $($arg),*) },
            dot::Int8Kind::Portable(token) => $body(token, $($arg),*),
        }
    }};
}
pub(super) use dispatch_int8;

/// Methods of [`Dot`] that are one expression over intrinsics.
#[cfg(target_arch = "x86_64")]
macro_rules! intrinsics {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = $e:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $ret {
            // SAFETY: `self` exists only where the CPU has the instruction set; what is loaded has the array's size.
            unsafe { $e }
        }
    )*};
}

/// Proof that the CPU has AVX512-VNNI.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vnni512(Avx512);

#[cfg(target_arch = "x86_64")]
impl Instructions for Vnni512 {
    type Lanes = Avx512;
    type Sum = __m512i;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
impl IntegerDot for Vnni512 {
    intrinsics! {
        load_offsets(offsets: &[i32; LANES]) -> __m512i = _mm512_loadu_si512(offsets.as_ptr().cast());
        to_f32(sum: __m512i, offsets: __m512i) -> __m512 = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, offsets));
    }
}

#[cfg(target_arch = "x86_64")]
impl Dot for Vnni512 {
    type Weights = __m512i;
    type X = __m512i;

    #[inline(always)]
    fn add_step<const WIDTH: usize>(self, sums: &mut [__m512i; WIDTH], x: &Quad, w: &[__m512i; WIDTH]) {
        if let ([first, second], [v, w]) = (&mut sums[..], &w[..]) {
            // SAFETY: `self` exists only where the CPU has the instruction set.
            unsafe { add_step_to_two(first, second, x, *v, *w) }
        } else {
            let x = self.splat(*x);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = self.dot(*sum, x, w[i]);
            }
        }
    }

    intrinsics! {
        zero() -> __m512i = zero_register();
        no_weights() -> __m512i = _mm512_setzero_si512();
        load(weights: &[Quad; LANES]) -> __m512i = _mm512_loadu_si512(weights.as_ptr().cast());
        splat(x: Quad) -> __m512i = _mm512_set1_epi32(x.cast_signed());
        dot(sum: __m512i, x: __m512i, w: __m512i) -> __m512i = _mm512_dpbusd_epi32(sum, x, w);
    }
}

/// Zeros of which the compiler does not know it: it would set a tile's sums by a call of `memset`, and then load them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn zero_register() -> __m512i {
    let zero: __m512i;
    // SAFETY: writes one register.
    unsafe {
        std::arch::asm!("vpxord {z}, {z}, {z}", z = out(zmm_reg) zero, options(pure, nomem, nostack, preserves_flags));
    }
    zero
}

/// [`Dot::add_step`] for the tall tiles. From intrinsics the compiler makes code that broadcasts the inputs of all rows first, and
/// finds no registers left for the sums; here each lives for two instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn add_step_to_two(first: &mut __m512i, second: &mut __m512i, x: &Quad, v: __m512i, w: __m512i) {
    // Named and typed, or the compiler takes a register of another kind.
    let _broadcast: __m512i;
    // SAFETY: reads the four bytes of `x` and nothing else.
    unsafe {
        std::arch::asm!(
            "vpbroadcastd {x}, dword ptr [{from}]",
            "vpdpbusd {first}, {x}, {v}",
            "vpdpbusd {second}, {x}, {w}",
            x = out(zmm_reg) _broadcast,
            from = in(reg) x,
            first = inout(zmm_reg) *first,
            second = inout(zmm_reg) *second,
            v = in(zmm_reg) v,
            w = in(zmm_reg) w,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
}

#[cfg(target_arch = "x86_64")]
type Pair = [__m256i; 2];

/// Eight lanes each.
#[cfg(target_arch = "x86_64")]
macro_rules! load_pair {
    ($x:expr, $half:expr) => {
        [_mm256_loadu_si256($x.as_ptr().cast()), _mm256_loadu_si256($x[$half..].as_ptr().cast())]
    };
}

/// Proof that the CPU has AVX-VNNI.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vnni256(Avx2);

#[cfg(target_arch = "x86_64")]
impl Instructions for Vnni256 {
    type Lanes = Avx2;
    type Sum = Pair;

    #[inline(always)]
    fn lanes(self) -> Avx2 {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
impl IntegerDot for Vnni256 {
    intrinsics! {
        load_offsets(offsets: &[i32; LANES]) -> Pair = load_pair!(offsets, 8);
        to_f32(sum: Pair, offsets: Pair) -> [__m256; 2] = [
            _mm256_cvtepi32_ps(_mm256_sub_epi32(sum[0], offsets[0])),
            _mm256_cvtepi32_ps(_mm256_sub_epi32(sum[1], offsets[1])),
        ];
    }
}

#[cfg(target_arch = "x86_64")]
impl Dot for Vnni256 {
    type Weights = Pair;
    type X = __m256i;

    intrinsics! {
        zero() -> Pair = [_mm256_setzero_si256(); 2];
        no_weights() -> Pair = [_mm256_setzero_si256(); 2];
        load(weights: &[Quad; LANES]) -> Pair = load_pair!(weights, 8);
        splat(x: Quad) -> __m256i = _mm256_set1_epi32(x.cast_signed());
        dot(sum: Pair, x: __m256i, w: Pair) -> Pair =
            [_mm256_dpbusd_avx_epi32(sum[0], x, w[0]), _mm256_dpbusd_avx_epi32(sum[1], x, w[1])];
    }
}

/// Proof that the CPU has AVX2, which has no exact product of unsigned with signed bytes: `vpmaddubsw` adds two of them with
/// 16-bit saturation. Moving x's sign to the weight, |x| w <= 127 * 127, makes it exact; the sums carry no offset then.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signed(Avx2);

#[cfg(target_arch = "x86_64")]
impl Instructions for Signed {
    type Lanes = Avx2;
    type Sum = Pair;

    #[inline(always)]
    fn lanes(self) -> Avx2 {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
impl IntegerDot for Signed {
    intrinsics! {
        load_offsets(offsets: &[i32; LANES]) -> Pair = load_pair!(offsets, 8);
        to_f32(sum: Pair, _offsets: Pair) -> [__m256; 2] = [_mm256_cvtepi32_ps(sum[0]), _mm256_cvtepi32_ps(sum[1])];
    }
}

#[cfg(target_arch = "x86_64")]
impl Dot for Signed {
    type Weights = Pair;
    /// The values and their magnitudes.
    type X = [__m256i; 2];

    intrinsics! {
        zero() -> Pair = [_mm256_setzero_si256(); 2];
        no_weights() -> Pair = [_mm256_setzero_si256(); 2];
        load(weights: &[Quad; LANES]) -> Pair = load_pair!(weights, 8);
        splat(x: Quad) -> [__m256i; 2] = {
            // Flipping the top bit subtracts 128.
            let signed = _mm256_set1_epi32((x ^ 0x8080_8080).cast_signed());
            [signed, _mm256_abs_epi8(signed)]
        };
        dot(sum: Pair, x: [__m256i; 2], w: Pair) -> Pair = {
            let ones = _mm256_set1_epi16(1);
            let low = _mm256_maddubs_epi16(x[1], _mm256_sign_epi8(w[0], x[0]));
            let high = _mm256_maddubs_epi16(x[1], _mm256_sign_epi8(w[1], x[0]));
            [
                _mm256_add_epi32(sum[0], _mm256_madd_epi16(low, ones)),
                _mm256_add_epi32(sum[1], _mm256_madd_epi16(high, ones)),
            ]
        };
    }
}

/// Adds a step's products where the sums are: they are too many for compilers to keep them from being copied.
#[inline(always)]
fn add_products(sums: &mut [i32; QUAD * LANES], x: &[i16; 2 * QUAD], w: &[i8; QUAD * LANES]) {
    for first in (0..QUAD * LANES).step_by(2 * QUAD) {
        for i in 0..2 * QUAD {
            sums[first + i] += i32::from(i16::from(w[first + i]) * x[i]);
        }
    }
}

/// Keeps one sum per weight of a step, so that compilers find plain vertical arithmetic; products fit 16 bits.
impl Instructions for Portable {
    type Lanes = Portable;
    type Sum = [i32; QUAD * LANES];

    #[inline(always)]
    fn lanes(self) -> Portable {
        self
    }
}

impl IntegerDot for Portable {
    #[inline(always)]
    fn load_offsets(self, _offsets: &[i32; LANES]) -> Self::Sum {
        self.zero()
    }

    #[inline(always)]
    fn to_f32(self, sum: Self::Sum, _offsets: Self::Sum) -> [f32; LANES] {
        let mut totals = [0.0; LANES];
        let quads = &sum.as_chunks::<QUAD>().0[..LANES];
        for (i, total) in totals.iter_mut().enumerate() {
            *total = quads[i].iter().sum::<i32>() as f32;
        }
        totals
    }
}

impl Dot for Portable {
    type Weights = [i8; QUAD * LANES];
    type X = [i16; 2 * QUAD];

    #[inline(always)]
    fn zero(self) -> Self::Sum {
        [0; QUAD * LANES]
    }

    #[inline(always)]
    fn no_weights(self) -> [i8; QUAD * LANES] {
        [0; QUAD * LANES]
    }

    #[inline(always)]
    fn load(self, weights: &[Quad; LANES]) -> [i8; QUAD * LANES] {
        bytemuck::cast(*weights)
    }

    #[inline(always)]
    fn splat(self, x: Quad) -> [i16; 2 * QUAD] {
        let (mut twice, x) = ([0; 2 * QUAD], x.to_ne_bytes());
        for (i, value) in twice.iter_mut().enumerate() {
            *value = i16::from(x[i % QUAD]) - 128;
        }
        twice
    }

    #[inline(always)]
    fn dot(self, mut sum: Self::Sum, x: [i16; 2 * QUAD], w: [i8; QUAD * LANES]) -> Self::Sum {
        add_products(&mut sum, &x, &w);
        sum
    }

    #[inline(always)]
    fn add_step<const WIDTH: usize>(self, sums: &mut [Self::Sum; WIDTH], x: &Quad, w: &[Self::Weights; WIDTH]) {
        let x = Dot::splat(self, *x);
        for (i, sum) in sums.iter_mut().enumerate() {
            add_products(sum, &x, &w[i]);
        }
    }
}
