//! `cargo xtask cuda-check`: lints the workspace with the feature `cuda` on a machine without CUDA and without a GPU.
//!
//! candle's build scripts call `nvcc` to compile their kernels. A shell script takes its place: it reports the version of a real
//! `nvcc` and writes empty outputs. So all Rust code is checked for types and lints, and no kernel is compiled.

use std::path::Path;
use std::process::Command;

/// Answers `--version` and `--list-gpu-code`, and creates the output files that the other arguments name.
const NVCC: &str = r#"#!/bin/sh
for a in "$@"; do
  case "$a" in
    --version|-V)
      printf 'nvcc: NVIDIA (R) Cuda compiler driver\nCopyright\nBuilt\nCuda compilation tools, release 13.0, V13.0.88\n'
      exit 0 ;;
    --list-gpu-code) echo sm_90; exit 0 ;;
    --output-directory=*) dir=${a#*=} ;;
    *.cu) src=$a ;;
  esac
  [ "$prev" = -o ] && out=$a
  [ "$prev" = --output-directory ] && dir=$a
  prev=$a
done
[ -n "$out" ] && : > "$out"
[ -n "$dir" ] && [ -n "$src" ] && : > "$dir/$(basename "${src%.cu}").ptx"
exit 0
"#;

const CLIPPY: [&str; 7] = ["clippy", "--workspace", "--features", "cuda", "--", "-D", "warnings"];

/// Runs the check. Its build files are in `target/cuda`.
pub fn check() -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| format!("temporary folder: {error}"))?;
    write_program(&folder.path().join("nvcc"), NVCC)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(folder.path().to_owned()).chain(std::env::split_paths(&path)))
        .map_err(|error| format!("PATH: {error}"))?;
    eprintln!("xtask: cuda-check (cargo {}), with a placeholder for nvcc", CLIPPY.join(" "));
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cuda");
    let status = Command::new(cargo)
        .args(CLIPPY)
        .env("PATH", path)
        .env("CUDA_COMPUTE_CAP", "90")
        .env("CARGO_TARGET_DIR", target)
        .env_remove("CUDA_HOME")
        .env_remove("CUDA_PATH")
        .status();
    if !status.is_ok_and(|status| status.success()) {
        return Err("cuda-check failed; see the output above".to_owned());
    }
    eprintln!("xtask: types and lints of all crates are correct with the feature cuda; no kernel was compiled or run");
    Ok(())
}

/// Writes an executable file.
#[cfg(unix)]
fn write_program(path: &Path, text: &str) -> Result<(), String> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(not(unix))]
fn write_program(_: &Path, _: &str) -> Result<(), String> {
    Err("cuda-check needs a Unix shell".to_owned())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_placeholder_reports_a_version_and_writes_the_outputs() {
        let folder = tempfile::tempdir().unwrap();
        let (nvcc, output) = (folder.path().join("nvcc"), folder.path().join("kernels.a"));
        write_program(&nvcc, NVCC).unwrap();
        let version = Command::new(&nvcc).arg("--version").output().unwrap();
        assert!(String::from_utf8_lossy(&version.stdout).contains("release 13.0"));
        let library = Command::new(&nvcc).args(["--lib", "a.cu", "-o"]).arg(&output).status().unwrap();
        let ptx =
            Command::new(&nvcc).args(["--ptx", "src/b.cu", "--output-directory"]).arg(folder.path()).status().unwrap();
        assert!(library.success() && ptx.success() && output.exists() && folder.path().join("b.ptx").exists());
    }
}
