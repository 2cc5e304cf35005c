//! Which instructions the loops run on. The build script takes this file in as well, to tell the tests what the machine has.

use std::sync::LazyLock;

/// A choice of instructions for everything that the CPU computes, best first.
///
/// In f32 and in i8 all paths with fused multiply-add give the same bits. In bf16 all of these do but [`Path::Avx512Bf16`], whose
/// instruction adds in another order; see [`crate::cpu::gemm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Matrix tiles for i8 and bf16, AVX-512 for the rest.
    Amx,
    /// AVX-512 with its dot products of bytes and of bf16.
    Avx512Bf16,
    /// AVX-512 with its dot products of bytes.
    Avx512Vnni,
    /// AVX-512 without either.
    Avx512,
    /// AVX2 with dot products of bytes.
    AvxVnni,
    /// AVX2 and fused multiply-add.
    Avx2,
    /// What the compilation target has.
    Portable,
}

/// The variable that chooses a path by name.
pub const VARIABLE: &str = "BEAMFUSE_CPU_PATH";

/// A choice that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The names that can be chosen here.
    pub expected: String,
    /// The name that was, and why it cannot be.
    pub got: String,
}

const AVX2: &[&str] = &["avx2", "fma"];
const AVX512: &[&str] = &["avx2", "fma", "avx512f", "avx512bw", "avx512vl"];

impl Path {
    /// All paths, best first.
    pub const ALL: [Path; 7] =
        [Path::Amx, Path::Avx512Bf16, Path::Avx512Vnni, Path::Avx512, Path::AvxVnni, Path::Avx2, Path::Portable];

    /// Its name, as in the variable.
    pub fn name(self) -> &'static str {
        match self {
            Path::Amx => "amx",
            Path::Avx512Bf16 => "avx512-bf16",
            Path::Avx512Vnni => "avx512-vnni",
            Path::Avx512 => "avx512",
            Path::AvxVnni => "avx-vnni",
            Path::Avx2 => "avx2",
            Path::Portable => "portable",
        }
    }

    /// The extensions that it needs: those that many need, and its own.
    fn needs(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Path::Amx => (AVX512, &["avx512vnni", "amx-tile", "amx-int8", "amx-bf16"]),
            Path::Avx512Bf16 => (AVX512, &["avx512vnni", "avx512bf16"]),
            Path::Avx512Vnni => (AVX512, &["avx512vnni"]),
            Path::Avx512 => (AVX512, &[]),
            Path::AvxVnni => (AVX2, &["avxvnni"]),
            Path::Avx2 => (AVX2, &[]),
            Path::Portable => (&[], &[]),
        }
    }

    /// Why it cannot be used here; none if it can.
    pub fn missing(self) -> Option<String> {
        let (common, own) = self.needs();
        let lacking: Vec<&str> = common.iter().chain(own).copied().filter(|name| !extension(name)).collect();
        if !lacking.is_empty() {
            return Some(format!("the processor lacks {}", lacking.join(", ")));
        }
        if self == Path::Amx { tile_permission().err() } else { None }
    }

    /// The paths that can be used here, best first.
    pub fn available() -> impl Iterator<Item = Path> {
        static AVAILABLE: LazyLock<Vec<Path>> =
            LazyLock::new(|| Path::ALL.into_iter().filter(|path| path.missing().is_none()).collect());
        AVAILABLE.iter().copied()
    }

    /// The path that [`VARIABLE`] names, read once, or else the best.
    ///
    /// # Errors
    /// It names no path that can be used here.
    pub fn chosen() -> Result<Path, Refused> {
        static CHOSEN: LazyLock<Result<Path, Refused>> =
            LazyLock::new(|| Path::by_name(std::env::var_os(VARIABLE).as_deref()));
        CHOSEN.clone()
    }

    /// The chosen path; the best where the choice cannot be followed, which [`Path::chosen`] reports.
    pub fn current() -> Path {
        Path::chosen().unwrap_or_else(|_| Path::best())
    }

    fn best() -> Path {
        Path::available().next().unwrap_or(Path::Portable)
    }

    fn by_name(name: Option<&std::ffi::OsStr>) -> Result<Path, Refused> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(Path::best()) };
        let named = Path::ALL.into_iter().find(|path| path.name() == name);
        let name = name.to_string_lossy();
        let got = match named.map(|path| (path, path.missing())) {
            Some((path, None)) => return Ok(path),
            Some((_, Some(reason))) => format!("{name} ({reason})"),
            None => name.into_owned(),
        };
        let here: Vec<&str> = Path::available().map(Path::name).collect();
        Err(Refused { expected: format!("one of {}", here.join(", ")), got })
    }
}

/// Whether the processor has an extension, and the system keeps its registers.
#[cfg(target_arch = "x86_64")]
fn extension(name: &str) -> bool {
    macro_rules! any_of {
        ($($known:tt)+) => { match name { $($known => is_x86_feature_detected!($known),)+ _ => tiles(name) } };
    }
    any_of!("avx2" "fma" "avx512f" "avx512bw" "avx512vl" "avx512vnni" "avx512bf16" "avxvnni")
}

#[cfg(not(target_arch = "x86_64"))]
fn extension(_: &str) -> bool {
    false
}

/// The extensions of matrix tiles, which the standard library does not detect yet: Intel SDM, CPUID leaf 7 and XCR0.
#[cfg(target_arch = "x86_64")]
fn tiles(name: &str) -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let (osxsave, tile_state) = (1 << 27, 0b11 << 17);
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & osxsave == 0 {
        return false;
    }
    let (low, _high): (u32, u32);
    // SAFETY: the operating system has enabled the instruction; it reads register 0, which says what states are kept.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _high, options(nomem, nostack, preserves_flags));
    }
    let has = |bit: u32| low & tile_state == tile_state && __cpuid_count(7, 0).edx & 1 << bit != 0;
    match name {
        "amx-bf16" => has(22),
        "amx-tile" => has(24),
        "amx-int8" => has(25),
        _ => false,
    }
}

/// Asks the system, once per process, for the use of the tile registers, which Linux grants on demand only.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tile_permission() -> Result<(), String> {
    static GRANTED: LazyLock<Result<(), String>> = LazyLock::new(|| {
        // linux/arch/x86/include/uapi/asm/prctl.h and unistd.h
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const XFEATURE_XTILEDATA: u64 = 18;
        let result: i64;
        // SAFETY: a system call that reads and writes no memory of ours.
        unsafe {
            std::arch::asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA, lateout("rcx") _, lateout("r11") _, options(nostack));
        }
        match result {
            0 => Ok(()),
            code => Err(format!("the system does not grant the tile registers: {}", reason(code))),
        }
    });
    fn reason(code: i64) -> std::io::Error {
        std::io::Error::from_raw_os_error(i32::try_from(-code).unwrap_or(i32::MAX))
    }
    GRANTED.clone()
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn tile_permission() -> Result<(), String> {
    Err("the use of tile registers is asked for on Linux only".to_owned())
}
