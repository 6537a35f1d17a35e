//! Compiles CUDA kernels in a build script, one fatbin a `.cu` file, to embed with `include_bytes!`.
//!
//! ```no_run
//! // build.rs
//! speedread_cuda_build::compile("kernels");
//! // in the crate
//! // static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sm90_bf16_attention.fatbin"));
//! ```
//!
//! Without `nvcc` the fatbins are empty and a warning says so: the crate then builds for the CPU alone, and loading an empty image is
//! an error that names the cause. `nvcc` is looked for in `$CUDA_HOME/bin`, in the project's own toolchain folder
//! `.cuda/nvidia/cu13/bin` (made by `scripts/cuda-toolchain`) and on the `PATH`, in this order.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Code for files named `sm90_*.cu`: they use instructions that only this target has.
const HOPPER: &[&str] = &["-gencode=arch=compute_90a,code=sm_90a"];
/// Code for all others: Ampere and what is like it, Hopper, and PTX for what is newer.
const PORTABLE: &[&str] = &["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"];
/// Headers for the kernels of all crates.
const INCLUDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include");

/// Compiles every `.cu` file in `folder` (relative to the crate) to `OUT_DIR/NAME.fatbin`.
///
/// # Panics
/// When a kernel does not compile or a file cannot be read or written: a build script has no better way to say so.
pub fn compile(folder: &str) {
    let root =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR for build scripts"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    let folder = root.join(folder);
    // The whole folder: a header may be included by any kernel.
    println!("cargo::rerun-if-changed={}", folder.display());
    println!("cargo::rerun-if-changed={INCLUDE}");
    println!("cargo::rerun-if-changed={}", root.join("build.rs").display());
    println!("cargo::rerun-if-env-changed=CUDA_HOME");

    let sources = sources(&folder);
    let Some(nvcc) = find_nvcc(&root) else {
        println!(
            "cargo::warning=nvcc was not found: building for the CPU alone. Set CUDA_HOME, or run scripts/cuda-toolchain, and build again"
        );
        for source in &sources {
            let fatbin = fatbin(&out, source);
            std::fs::write(&fatbin, []).unwrap_or_else(|e| panic!("{}: {e}", fatbin.display()));
        }
        return;
    };
    println!("cargo::rerun-if-changed={}", nvcc.display());

    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1).min(sources.len());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run(&nvcc, &folder, source, &fatbin(&out, source));
                }
            });
        }
    });
}

fn fatbin(out: &Path, source: &Path) -> PathBuf {
    out.join(source.file_name().expect("a source is a file")).with_extension("fatbin")
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut sources: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap_or_else(|e| panic!("{}: {e}", folder.display())).path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    sources
}

fn find_nvcc(root: &Path) -> Option<PathBuf> {
    let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let home = env::var_os("CUDA_HOME").filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join("bin"));
    let own = root.ancestors().map(|folder| folder.join(".cuda/nvidia/cu13/bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    home.into_iter()
        .chain(own)
        .chain(env::split_paths(&path))
        .map(|folder| folder.join(&name))
        .find(|nvcc| nvcc.is_file())
}

fn run(nvcc: &Path, folder: &Path, source: &Path, fatbin: &Path) {
    let name = source.file_name().unwrap_or_default().to_string_lossy();
    let targets = if name.starts_with("sm90_") { HOPPER } else { PORTABLE };
    let mut command = Command::new(nvcc);
    command
        .args(["-std=c++17", "-O3", "--fatbin"])
        .args(targets)
        .arg("-I")
        .arg(folder)
        .args(["-I", INCLUDE])
        .arg("-o")
        .args([fatbin, source]);
    let output = command.output().unwrap_or_else(|e| panic!("{}: {e}", nvcc.display()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed ({}):\n{said}", output.status);
    // Warnings of a kernel are not noise: wgmma serialised, or more registers asked for than there are.
    for line in said.lines().filter(|line| line.contains("warning")) {
        println!("cargo::warning={name}: {line}");
    }
}
