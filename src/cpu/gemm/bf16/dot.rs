//! Products of pairs of bf16, summed into sixteen f32 lanes, on the instruction sets without matrix tiles.

use super::super::quads::{Dot, Finish, Instructions, Quad};
use crate::cpu::gemm::Path;
#[cfg(target_arch = "x86_64")]
use crate::cpu::gemm::amx::{Amx, Instruction, Tiled};
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::lanes::{Avx2, Avx512};
use crate::cpu::simd::lanes::{Isa, Kind, LANES, Portable, Simd};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::sync::LazyLock;

/// The instruction sets for products in bf16. A value exists only where the CPU has that instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bf16Isa(pub(super) Bf16Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bf16Kind {
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
    #[cfg(target_arch = "x86_64")]
    Pairs(Pairs),
    #[cfg(target_arch = "x86_64")]
    Avx512(Fused<Avx512>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Fused<Avx2>),
    Portable(Fused<Portable>),
}

impl Bf16Isa {
    /// That of the chosen path.
    pub fn best() -> Bf16Isa {
        static BEST: LazyLock<Bf16Isa> = LazyLock::new(|| Bf16Isa::of(Path::current()));
        *BEST
    }

    /// Every instruction set of this CPU, best first.
    pub fn available() -> Vec<Bf16Isa> {
        let mut found: Vec<Bf16Isa> = Path::available().map(Bf16Isa::of).collect();
        found.dedup();
        found
    }

    /// That of a path which can be used here.
    fn of(path: Path) -> Bf16Isa {
        Bf16Isa(match (path, Isa::of(path).0) {
            #[cfg(target_arch = "x86_64")]
            (Path::Amx, Kind::Avx512(lanes)) => Bf16Kind::Amx(Amx(lanes)),
            #[cfg(target_arch = "x86_64")]
            (Path::Avx512Bf16, Kind::Avx512(lanes)) => Bf16Kind::Pairs(Pairs(lanes)),
            #[cfg(target_arch = "x86_64")]
            (_, Kind::Avx512(lanes)) => Bf16Kind::Avx512(Fused(lanes)),
            #[cfg(target_arch = "x86_64")]
            (_, Kind::Avx2(lanes)) => Bf16Kind::Avx2(Fused(lanes)),
            (_, Kind::Portable(lanes)) => Bf16Kind::Portable(Fused(lanes)),
        })
    }

    /// The instruction set for what is not a product.
    pub fn lanes(self) -> Isa {
        Isa(match self.0 {
            #[cfg(target_arch = "x86_64")]
            Bf16Kind::Amx(Amx(lanes)) | Bf16Kind::Pairs(Pairs(lanes)) | Bf16Kind::Avx512(Fused(lanes)) => {
                Kind::Avx512(lanes)
            }
            #[cfg(target_arch = "x86_64")]
            Bf16Kind::Avx2(Fused(lanes)) => Kind::Avx2(lanes),
            Bf16Kind::Portable(Fused(lanes)) => Kind::Portable(lanes),
        })
    }

    /// Whether it adds in the order of matrix tiles, each product rounded once: all that do give equal bits.
    pub fn adds_as_tiles(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Bf16Kind::Pairs(_) => false,
            _ => self.lanes().fuses_multiply_add(),
        }
    }

    /// A short name for logs and benchmarks.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Bf16Kind::Amx(_) => "amx-bf16",
            #[cfg(target_arch = "x86_64")]
            Bf16Kind::Pairs(_) => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Bf16Kind::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Bf16Kind::Avx2(_) => "avx2",
            Bf16Kind::Portable(_) => "portable",
        }
    }
}

/// Calls `body(token, args...)` compiled for the instruction set `isa`; see `lanes::dispatch!`.
macro_rules! dispatch_bf16 {
    ($isa:expr, $body:path, ($($arg:ident: $ty:ty),*)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
        fn amx(token: $crate::cpu::gemm::amx::Amx, $($arg: $ty),*) {
            $body(token, $($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")]
        fn pairs(token: dot::Pairs, $($arg: $ty),*) {
            $body(token, $($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
        fn avx512(token: dot::Fused<Avx512>, $($arg: $ty),*) {
            $body(token, $($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2(token: dot::Fused<Avx2>, $($arg: $ty),*) {
            $body(token, $($arg),*)
        }
        match $isa.0 {
            // SAFETY: the token exists only where the CPU has these features.
            #[cfg(target_arch = "x86_64")]
            dot::Bf16Kind::Amx(token) => unsafe { amx(token, $($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            dot::Bf16Kind::Pairs(token) => unsafe { pairs(token, $($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            dot::Bf16Kind::Avx512(token) => unsafe { avx512(token, $($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            dot::Bf16Kind::Avx2(token) => unsafe { avx2(token, $($arg),*) },
            dot::Bf16Kind::Portable(token) => $body(token, $($arg),*),
        }
    }};
}
pub(super) use dispatch_bf16;

/// Sums that are the products.
pub(super) struct Plain;

/// Sums in f32.
pub(super) trait FloatDot: Dot {
    fn total(self, sum: Self::Sum) -> <Self::Lanes as Simd>::V;
}

impl<D: FloatDot> Finish<D> for Plain {
    type Column = ();

    #[inline(always)]
    fn column(&self, _: D, _: usize) {}

    #[inline(always)]
    fn product(&self, d: D, sum: D::Sum, _: usize, (): ()) -> <D::Lanes as Simd>::V {
        d.total(sum)
    }
}

#[cfg(target_arch = "x86_64")]
impl Finish<Amx> for Plain {
    type Column = ();

    #[inline(always)]
    fn column(&self, _: Amx, _: usize) {}

    #[inline(always)]
    fn product(&self, amx: Amx, sum: __m512i, _: usize, (): ()) -> __m512 {
        amx.lanes().as_floats(sum)
    }
}

#[cfg(target_arch = "x86_64")]
impl Tiled for Plain {
    const INSTRUCTION: Instruction = Instruction::Bf16;
}

/// Proof that the CPU has AVX512-BF16.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pairs(Avx512);

#[cfg(target_arch = "x86_64")]
impl Instructions for Pairs {
    type Lanes = Avx512;
    type Sum = __m512;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
impl Dot for Pairs {
    type Weights = __m512i;
    type X = __m512i;

    #[inline(always)]
    fn zero(self) -> __m512 {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn no_weights(self) -> __m512i {
        self.0.load_words(&[0; LANES])
    }

    #[inline(always)]
    fn load(self, weights: &[Quad; LANES]) -> __m512i {
        self.0.load_words(weights)
    }

    #[inline(always)]
    fn splat(self, x: Quad) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_epi32(x.cast_signed()) }
    }

    #[inline(always)]
    fn dot(self, sum: __m512, x: __m512i, w: __m512i) -> __m512 {
        // SAFETY: all of these are the bits of one register.
        let pairs = |words| unsafe { std::mem::transmute::<__m512i, __m512bh>(words) };
        // SAFETY: `self` proves AVX512-BF16.
        unsafe { _mm512_dpbf16_ps(sum, pairs(x), pairs(w)) }
    }
}

#[cfg(target_arch = "x86_64")]
impl FloatDot for Pairs {
    #[inline(always)]
    fn total(self, sum: __m512) -> __m512 {
        sum
    }
}

/// Fused multiply-add in f32, in the order of matrix tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fused<S>(S);

/// The sums of a block's even and odd inputs, and of the blocks before it.
#[derive(Clone, Copy)]
pub(super) struct FusedSum<V> {
    even: V,
    odd: V,
    total: V,
}

impl<S: Simd> Instructions for Fused<S> {
    type Lanes = S;
    type Sum = FusedSum<S::V>;

    #[inline(always)]
    fn lanes(self) -> S {
        self.0
    }
}

impl<S: Simd> Dot for Fused<S> {
    /// The even input's and the odd one's.
    type Weights = [S::V; 2];
    type X = [S::V; 2];

    const ENDS_TILES: bool = true;

    #[inline(always)]
    fn zero(self) -> Self::Sum {
        let zero = self.0.splat(0.0);
        FusedSum { even: zero, odd: zero, total: zero }
    }

    #[inline(always)]
    fn no_weights(self) -> Self::Weights {
        [self.0.splat(0.0); 2]
    }

    #[inline(always)]
    fn load(self, weights: &[Quad; LANES]) -> Self::Weights {
        self.0.load_halves(weights)
    }

    #[inline(always)]
    fn splat(self, x: Quad) -> Self::X {
        [self.0.splat(f32::from_bits(x << 16)), self.0.splat(f32::from_bits(x & 0xffff_0000))]
    }

    #[inline(always)]
    fn dot(self, sum: Self::Sum, x: Self::X, w: Self::Weights) -> Self::Sum {
        let (even, odd) = (self.0.mul_add(x[0], w[0], sum.even), self.0.mul_add(x[1], w[1], sum.odd));
        FusedSum { even, odd, ..sum }
    }

    #[inline(always)]
    fn end_tile(self, sum: Self::Sum) -> Self::Sum {
        FusedSum { total: self.0.add(sum.total, self.0.add(sum.even, sum.odd)), ..self.zero() }
    }
}

impl<S: Simd> FloatDot for Fused<S> {
    #[inline(always)]
    fn total(self, sum: Self::Sum) -> S::V {
        sum.total
    }
}
