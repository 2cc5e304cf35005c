//! Says which paths of the CPU this machine has (cfg `cpu_path`), for the tests alone; compiles `kernels/*.cu` twice and writes `kernels.rs`, the list of what came out, for `src/cuda/`.
//!
//! * With the host's C++17 compiler against `kernels/host/`, into the emulator (cfg `emulated`). Without one: a warning.
//! * With nvcc, to one fatbin per file (cfg `device_code`). nvcc is looked for in `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH`, then
//!   in the Python packages `nvidia-cuda-nvcc` and friends. Without one, or with `NVCC=none`: a warning.
//!
//! With the feature `planted-kernels`, which tests take, the emulator is linked once more, into the fake driver that they run the
//! device layer on (cfg `fake_driver`, `kernels/host/fake/`).
//!
//! Variables: `BEAMFUSE_CUDA_ARCH` (default `80,86,89,90`) restricts the architectures; `BEAMFUSE_SANITIZE` (as in
//! `address,undefined`) builds the emulator with gcc's sanitizers.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

#[cfg(feature = "emulator")]
#[path = "kernels/host/fake/build.rs"]
mod fake_driver;

/// What stands in an image in place of device code, ahead of the op's name.
const IMAGE_PREFIX: &str = "beamfuse kernels for the host: ";

/// The CPU's paths, to tell the tests which of them this machine has.
#[path = "src/cpu/gemm/path.rs"]
#[allow(dead_code, reason = "the crate uses the rest")]
mod path;

/// Why the build cannot go on.
type Failure = Box<dyn std::error::Error + Send + Sync>;

const DEFAULT_ARCHITECTURES: &str = "80,86,89,90";

fn main() -> Result<(), Failure> {
    for cfg in ["emulated", "device_code", "sanitized", "fake_driver"] {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "BEAMFUSE_CUDA_ARCH", "BEAMFUSE_SANITIZE"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rustc-check-cfg=cfg(cpu_path, values(any()))");
    println!("cargo::rerun-if-changed=src/cpu/gemm/path.rs");
    for path in path::Path::available() {
        println!("cargo::rustc-cfg=cpu_path=\"{}\"", path.name());
    }
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let sources = cuda_sources(&root.join("kernels"))?;

    let device_code = match cfg!(feature = "cuda").then(find_nvcc).flatten() {
        Some(nvcc) => {
            println!("cargo::rerun-if-changed={}", nvcc.display());
            println!("cargo::rustc-cfg=device_code");
            build_device_code(&nvcc, &out, &sources)?;
            true
        }
        None => false,
    };
    let mut listing = format!("pub(super) static OPS: &[&str] = &{:?};\n", ops(&sources));
    let emulated = emulate(&root, &out, &sources, device_code, &mut listing)?;
    if cfg!(feature = "cuda") && (device_code || emulated) {
        list_device_code(&mut listing, &out, &sources, device_code)?;
    }
    fs::write(out.join("kernels.rs"), listing)?;
    Ok(())
}

/// The .cu files in a directory, sorted.
fn cuda_sources(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn op(source: &Path) -> &str {
    source.file_stem().and_then(|op| op.to_str()).unwrap_or_default()
}

fn ops(sources: &[PathBuf]) -> Vec<&str> {
    sources.iter().map(|source| op(source)).collect()
}

// ---- The emulator ----

#[cfg(not(feature = "emulator"))]
fn emulate(_: &Path, _: &Path, _: &[PathBuf], _: bool, _: &mut String) -> Result<bool, Failure> {
    Ok(false)
}

#[cfg(feature = "emulator")]
/// Builds the emulator and, for tests, the fake driver; false if there is no suitable compiler.
fn emulate(
    root: &Path,
    out: &Path,
    sources: &[PathBuf],
    device_code: bool,
    listing: &mut String,
) -> Result<bool, Failure> {
    let planted = match cfg!(feature = "planted-kernels") {
        true => cuda_sources(&root.join("kernels/host/tests"))?,
        false => Vec::new(),
    };
    let all: Vec<&PathBuf> = sources.iter().chain(&planted).collect();
    if !build_emulator(root, out, &all)? {
        return Ok(false);
    }
    println!("cargo::rustc-cfg=emulated");
    list_emulated(listing, &all)?;
    if cfg!(all(feature = "cuda", feature = "planted-kernels")) {
        fake_driver::build(root, out, sources, device_code, sanitizers().as_deref())?;
    }
    Ok(true)
}

#[cfg(feature = "emulator")]
/// Compiles every source against the emulator's headers; false, with a warning, if there is no suitable compiler.
fn build_emulator(root: &Path, out: &Path, sources: &[&PathBuf]) -> Result<bool, Failure> {
    let host = root.join("kernels/host");
    let mut build = cc::Build::new();
    // The emulator allocates and throws nothing: the C++ standard library is needed for its headers only.
    build.cpp(true).std("c++17").cpp_link_stdlib(None).include(&host).opt_level(2);
    build.flag("-fno-exceptions").flag("-fno-rtti").flag("-ffp-contract=off").flag("-fno-math-errno");
    build.flag("-ftls-model=initial-exec").flag("-Wno-unknown-pragmas");
    let usable = build.try_get_compiler().is_ok_and(|compiler| {
        (compiler.is_like_gnu() || compiler.is_like_clang())
            && compiler.to_command().arg("--version").output().is_ok_and(|output| output.status.success())
    });
    if !usable {
        println!("cargo::warning=no C++17 compiler (gcc or clang) found: built without the emulated device");
        return Ok(false);
    }
    if let Some(sanitizers) = sanitizers() {
        sanitize(&mut build, &sanitizers)?;
    }
    let common = root.join("kernels/common.cuh");
    let wrappers = out.join("emulated");
    fs::create_dir_all(&wrappers)?;
    for source in sources {
        let name = op(source);
        let wrapper = wrappers.join(format!("{name}.cpp"));
        // Device functions are a file's own: two files may each have a template of the same name.
        let text = format!(
            "#include \"emulated.h\"\n#include {common:?}\nnamespace {{\n#include {source:?}\n}}\n\
             extern \"C\" const emulated::Kernel* emulated_kernels_{name}() {{ return emulated::kernels; }}\n\
             extern \"C\" const void* emulated_layout_{name}(std::size_t* count) {{\n\
             *count = emulated::layout_entries; return emulated::layout; }}\n"
        );
        fs::write(&wrapper, text)?;
        build.file(wrapper);
    }
    ["activation.cpp", "fiber.cpp", "faults.cpp", "emulator.cpp"].iter().for_each(|name| {
        build.file(host.join(name));
    });
    build.try_compile("beamfuse_emulated")?;
    Ok(true)
}

#[cfg(feature = "emulator")]
/// Those that are asked for.
fn sanitizers() -> Option<String> {
    env::var("BEAMFUSE_SANITIZE").ok().filter(|value| !value.is_empty())
}

#[cfg(feature = "emulator")]
/// Adds gcc's sanitizers. Their run-time libraries are linked statically: rustc puts shared ones behind libc, which
/// AddressSanitizer refuses.
fn sanitize(build: &mut cc::Build, sanitizers: &str) -> Result<(), Failure> {
    build.flag(format!("-fsanitize={sanitizers}")).flag("-fno-sanitize-recover=all").flag("-fno-omit-frame-pointer");
    let compiler = build.try_get_compiler()?;
    // AddressSanitizer replaces functions that nobody asks it for, so all of its library is linked; of the other, which shares
    // code with it, only what is missing.
    let libraries =
        [("address", "libasan.a", "-Wl,--whole-archive,", ",--no-whole-archive"), ("undefined", "libubsan.a", "", "")];
    for (name, library, before, after) in libraries {
        if !sanitizers.split(',').any(|sanitizer| sanitizer == name) {
            continue;
        }
        let output = Command::new(compiler.path()).arg(format!("-print-file-name={library}")).output()?;
        let path = String::from_utf8(output.stdout)?;
        println!("cargo::rustc-link-arg={before}{}{after}", path.trim());
    }
    for library in ["-lstdc++", "-lm", "-ldl", "-lpthread", "-lc", "-lgcc_s"] {
        println!("cargo::rustc-link-arg={library}");
    }
    if sanitizers.contains("address") {
        println!("cargo::rustc-cfg=sanitized");
    }
    Ok(())
}

#[cfg(feature = "emulator")]
fn list_emulated(listing: &mut String, sources: &[&PathBuf]) -> Result<(), Failure> {
    writeln!(listing, "unsafe extern \"C\" {{")?;
    for source in sources {
        writeln!(listing, "    safe fn emulated_kernels_{}() -> *const super::emulated::Kernel;", op(source))?;
    }
    writeln!(listing, "}}\npub(super) static EMULATED: &[extern \"C\" fn() -> *const super::emulated::Kernel] = &[")?;
    for source in sources {
        writeln!(listing, "    emulated_kernels_{},", op(source))?;
    }
    writeln!(listing, "];\n#[cfg(test)]\nunsafe extern \"C\" {{")?;
    for source in sources {
        writeln!(
            listing,
            "    safe fn emulated_layout_{}(count: &mut usize) -> *const super::layout::Entry;",
            op(source)
        )?;
    }
    writeln!(
        listing,
        "}}\n#[cfg(test)]\npub(super) static EMULATED_LAYOUTS: &[extern \"C\" fn(&mut usize) -> *const super::layout::Entry] = &["
    )?;
    for source in sources {
        writeln!(listing, "    emulated_layout_{},", op(source))?;
    }
    writeln!(listing, "];")?;
    Ok(())
}

// ---- Device code ----

/// nvcc's path; none, with a warning, if it is nowhere or switched off.
fn find_nvcc() -> Option<PathBuf> {
    if let Some(named) = env::var_os("NVCC").filter(|value| !value.is_empty()) {
        if named == "none" {
            println!("cargo::warning=NVCC=none: built without CUDA device code");
            return None;
        }
        return Some(PathBuf::from(named));
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let found =
        homes.chain(env::split_paths(&path)).chain(python_packages()).map(|bin| bin.join("nvcc")).find(|p| p.is_file());
    if found.is_none() {
        println!("cargo::rerun-if-env-changed=PATH");
        println!(
            "cargo::warning=nvcc not found (NVCC, CUDA_HOME, CUDA_PATH, PATH, Python packages): built without CUDA device code"
        );
    }
    found
}

/// `nvidia/cu13/bin` in every directory that the active virtual environment or python3 imports from.
fn python_packages() -> Vec<PathBuf> {
    let mut roots = Vec::new();
    if let Some(environment) = env::var_os("VIRTUAL_ENV") {
        let versions = fs::read_dir(Path::new(&environment).join("lib")).into_iter().flatten().flatten();
        roots.extend(versions.map(|version| version.path().join("site-packages")));
    }
    let script = "import site, sys; print('\\n'.join(sys.path + [site.getusersitepackages()]))";
    if let Ok(output) = Command::new("python3").args(["-c", script]).output() {
        roots
            .extend(String::from_utf8_lossy(&output.stdout).lines().filter(|line| !line.is_empty()).map(PathBuf::from));
    }
    roots.into_iter().map(|root| root.join("nvidia/cu13/bin")).collect()
}

/// Compiles every source to OUT_DIR/<op>.fatbin, with the assembler's resource report beside it, several at a time.
fn build_device_code(nvcc: &Path, out: &Path, sources: &[PathBuf]) -> Result<(), Failure> {
    let architectures = env::var("BEAMFUSE_CUDA_ARCH").unwrap_or_else(|_| DEFAULT_ARCHITECTURES.to_owned());
    let architectures: Vec<&str> = architectures
        .split(',')
        .map(|name| name.trim().trim_start_matches("sm_"))
        .filter(|name| !name.is_empty())
        .collect();
    println!("cargo::rustc-env=BEAMFUSE_DEVICE_ARCHITECTURES={}", architectures.join(","));
    let newest = architectures.last().ok_or("BEAMFUSE_CUDA_ARCH names no architecture")?;
    let mut targets: Vec<String> =
        architectures.iter().map(|name| format!("-gencode=arch=compute_{name},code=sm_{name}")).collect();
    targets.push(format!("-gencode=arch=compute_{newest},code=compute_{newest}"));

    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1).clamp(1, sources.len().max(1));
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), Failure> {
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            compile_device_code(nvcc, out, source, &targets)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a compiling thread panicked")?)
    })
}

fn compile_device_code(nvcc: &Path, out: &Path, source: &Path, targets: &[String]) -> Result<(), Failure> {
    let name = op(source);
    let output = Command::new(nvcc)
        .args(["-fatbin", "-std=c++17", "-O3", "-lineinfo", "-Xptxas", "-v"])
        .args(targets)
        .arg("-o")
        .arg(out.join(format!("{name}.fatbin")))
        .arg(source)
        .output()
        .map_err(|error| format!("run {}: {error}", nvcc.display()))?;
    let report = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        return Err(format!(
            "{} could not compile {} (NVCC=none builds without device code):\n{said}{report}",
            nvcc.display(),
            source.display()
        )
        .into());
    }
    fs::write(out.join(format!("{name}.ptxas")), report.as_bytes())?;
    Ok(())
}

/// Lists what nvcc made, or, without it, what an image would hold, which the fake driver alone understands.
fn list_device_code(listing: &mut String, out: &Path, sources: &[PathBuf], is_compiled: bool) -> Result<(), Failure> {
    writeln!(listing, "pub(super) static DEVICE_CODE: &[super::DeviceCode] = &[")?;
    for source in sources {
        let name = op(source);
        let (fatbin, report) = match is_compiled {
            true => {
                let (fatbin, report) = (out.join(format!("{name}.fatbin")), out.join(format!("{name}.ptxas")));
                (format!("include_bytes!({fatbin:?})"), format!("include_str!({report:?})"))
            }
            false => (format!("b\"{}{name}\\0\"", IMAGE_PREFIX), "\"\"".to_owned()),
        };
        writeln!(listing, "    super::DeviceCode {{ op: {name:?}, fatbin: {fatbin}, report: {report} }},")?;
    }
    writeln!(listing, "];")?;
    Ok(())
}
