//! Builds the fake driver, a libcuda in OUT_DIR/fake, from the emulator that build.rs has compiled.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{Failure, op};

/// Builds the library, and tells the crate where it is.
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
        // The check of virtual tables needs a part of it that is linked into programs with C++ classes of their own alone.
        build.flag(format!("-fsanitize={sanitizers}")).flag("-fno-sanitize=vptr").flag("-fno-sanitize-recover=all");
        println!(
            "cargo::rustc-link-arg=-Wl,--export-dynamic-symbol=__asan_*,--export-dynamic-symbol=__ubsan_*,--export-dynamic-symbol=__sanitizer_*"
        );
    }
    let compiler = build.get_compiler();
    for name in ["memory", "stream", "driver"] {
        build.file(here.join(format!("{name}.cpp")));
    }
    let objects = build.file(&table).try_compile_intermediates()?;
    let library = libraries.join("libcuda.so.1");
    let mut command = compiler.to_command();
    command.args(["-shared", "-fno-sanitize=all", "-Wl,-Bsymbolic", "-Wl,-soname,libcuda.so.1", "-o"]);
    command.arg(&library).args(objects).arg(out.join("libbeamfuse_emulated.a")).arg("-lpthread");
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("link {}: {}", library.display(), String::from_utf8_lossy(&output.stderr)).into());
    }
    let short = libraries.join("libcuda.so");
    let _ = fs::remove_file(&short);
    symlink("libcuda.so.1", short)?;
    println!("cargo::rustc-cfg=fake_driver");
    println!("cargo::rustc-env=BEAMFUSE_FAKE_DRIVER={}", libraries.display());
    Ok(())
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
