//! Builds the fake driver, libcuda and libcublasLt in OUT_DIR/fake, from the emulator that build.rs has compiled.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{Failure, op};

/// Builds both libraries, and tells the crate where they are.
pub fn build(
    root: &Path,
    out: &Path,
    sources: &[PathBuf],
    is_compiled: bool,
    sanitizers: Option<&str>,
) -> Result<(), Failure> {
    let here = root.join("kernels/host/fake");
    let libraries = out.join("fake");
    fs::create_dir_all(&libraries)?;
    let table = out.join("fake_images.cpp");
    fs::write(&table, images(&here, out, sources, is_compiled)?)?;

    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").include(root.join("kernels/host")).opt_level(2).pic(true).cargo_metadata(false);
    build.flag("-ffp-contract=off").flag("-ftree-vectorize").flag("-Wno-unknown-pragmas");
    if let Some(sanitizers) = sanitizers {
        // Their run-time library is the program's own: what the libraries need of it, the program has to offer.
        build.flag(format!("-fsanitize={sanitizers}")).flag("-fno-sanitize-recover=all");
        println!("cargo::rustc-link-arg=-Wl,--export-dynamic-symbol=__asan_*,--export-dynamic-symbol=__ubsan_*");
    }
    let compiler = build.get_compiler();
    for name in ["memory", "stream", "driver"] {
        build.file(here.join(format!("{name}.cpp")));
    }
    let objects = build.file(&table).try_compile_intermediates()?;
    let link = |soname: &str, link_name: &str, inputs: &[PathBuf]| -> Result<(), Failure> {
        let library = libraries.join(soname);
        let mut command = compiler.to_command();
        command.args(["-shared", "-fno-sanitize=all", "-Wl,-Bsymbolic", &format!("-Wl,-soname,{soname}"), "-o"]);
        command.arg(&library).args(inputs).arg("-lpthread");
        let output = command.output()?;
        if !output.status.success() {
            return Err(format!("link {}: {}", library.display(), String::from_utf8_lossy(&output.stderr)).into());
        }
        let short = libraries.join(link_name);
        let _ = fs::remove_file(&short);
        Ok(symlink(soname, short)?)
    };
    let emulator = out.join("libbeamfuse_emulated.a");
    link("libcuda.so.1", "libcuda.so", &[objects, vec![emulator]].concat())?;
    let products = cublaslt(&build, &here)?;
    link("libcublasLt.so.13", "libcublasLt.so", &[products, vec![libraries.join("libcuda.so.1")]].concat())?;
    println!("cargo::rustc-cfg=fake_driver");
    println!("cargo::rustc-env=BEAMFUSE_FAKE_DRIVER={}", libraries.display());
    Ok(())
}

/// The objects of the double of cuBLASLt, which converts numbers as the emulator does.
fn cublaslt(like: &cc::Build, here: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").include(here.join("..")).opt_level(2).pic(true).cargo_metadata(false);
    for flag in like.get_compiler().args() {
        if flag.to_string_lossy().starts_with("-f") {
            build.flag(flag);
        }
    }
    build.flag("-Wno-unused-variable");
    Ok(build.file(here.join("cublaslt.cpp")).try_compile_intermediates()?)
}

/// The table of images: each op's kernels, and the hash of its device code.
fn images(here: &Path, out: &Path, sources: &[PathBuf], is_compiled: bool) -> Result<String, Failure> {
    let mut text = format!("#include {:?}\nextern \"C\" {{\n", here.join("fake.h"));
    for source in sources {
        let name = op(source);
        writeln!(text, "const emulated::Kernel* emulated_kernels_{name}();")?;
        writeln!(text, "const void* emulated_layout_{name}(std::size_t* count);")?;
    }
    text.push_str("}\nnamespace fake {\nconst Image images[] = {\n");
    for source in sources {
        let name = op(source);
        let hash = if is_compiled { hash(&fs::read(out.join(format!("{name}.fatbin")))?) } else { 0 };
        writeln!(text, "    {{{name:?}, {hash}ull, emulated_kernels_{name}, emulated_layout_{name}}},")?;
    }
    text.push_str("};\nconst std::size_t num_images = sizeof images / sizeof *images;\n}\n");
    Ok(text)
}

/// FNV-1a of a fatbin, as long as its header says.
fn hash(fatbin: &[u8]) -> u64 {
    let header = u16::from_le_bytes([fatbin[6], fatbin[7]]) as usize;
    let rest = fatbin[8..16].iter().rev().fold(0, |size, byte| size << 8 | usize::from(*byte));
    let code = &fatbin[..(header + rest).min(fatbin.len())];
    code.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}
