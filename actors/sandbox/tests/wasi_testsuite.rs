//! The public tests of WASI preview 1 (<https://github.com/WebAssembly/wasi-testsuite>, its branch
//! `prod/testsuite-base`), against our WASI.
//!
//! They are not part of this repository. Where `UNDERSTUDY_WASI_TESTSUITE` names a checkout of that branch
//! they are run; elsewhere the test says that it was skipped, and proves nothing.
//!
//! Those that need what a guest here never has are listed, each with its reason, and must fail: a list of
//! known failures that nobody checks becomes a lie.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use understudy_sandbox::policy::{Folder, Policy};
use understudy_sandbox::{Args, CallError, Engine, Instance, Setup};

/// What is not here, by test.
const NOT_HERE: [(&str, &str); 14] = [
    (
        "fd_fdstat_set_rights",
        "a descriptor's rights are what it was opened for, and stay so",
    ),
    ("fd_filestat_set", "files have no times"),
    ("fstflags_validate", "files have no times"),
    (
        "interesting_paths",
        "a path out of its folder is a denial, so EACCES, not ENOTCAPABLE",
    ),
    ("nofollow_errors", "there are no symbolic links"),
    ("path_exists", "there are no symbolic links"),
    ("path_filestat", "files have no times"),
    ("path_link", "there are no hard links"),
    ("path_open_preopen", "no folder has the rights to links"),
    (
        "path_symlink_trailing_slashes",
        "there are no symbolic links",
    ),
    ("readlink", "there are no symbolic links"),
    ("stdio", "standard input and output stay where they are"),
    ("symlink_create", "there are no symbolic links"),
    ("symlink_filestat", "there are no symbolic links"),
];

#[tokio::test]
async fn the_public_tests_of_preview_1_pass_but_for_those_listed() {
    let Some(suite) = std::env::var_os("UNDERSTUDY_WASI_TESTSUITE") else {
        println!(
            "SKIPPED: UNDERSTUDY_WASI_TESTSUITE names no checkout of the public tests of WASI"
        );
        return;
    };
    let engine = Engine::with_slots(8).unwrap();
    let mut tests = Vec::new();
    for language in ["assemblyscript", "c", "rust"] {
        let folder = Path::new(&suite).join("tests").join(language);
        let folder = folder.join("testsuite/wasm32-wasip1");
        let files = fs::read_dir(&folder)
            .unwrap()
            .flatten()
            .map(|file| file.path());
        tests.extend(files.filter(|file| file.extension().is_some_and(|end| end == "wasm")));
    }
    tests.sort();
    let (mut passed, mut wrong) = (0, Vec::new());
    for test in &tests {
        let name = test.file_stem().unwrap().to_string_lossy().into_owned();
        let expected = NOT_HERE.iter().find(|(listed, _)| *listed == name);
        match (run(&engine, test).await, expected) {
            (Ok(()), None) => passed += 1,
            (Err(_), Some(_)) => {}
            (Ok(()), Some((_, why))) => wrong.push(format!("{name} passes, and is listed: {why}")),
            (Err(why), None) => wrong.push(format!("{name}: {why}")),
        }
    }
    println!(
        "{passed} of {} pass; {} are listed",
        tests.len(),
        NOT_HERE.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(passed + NOT_HERE.len(), tests.len());
}

async fn run(engine: &Engine, test: &Path) -> Result<(), String> {
    let wasm = fs::read(test).unwrap();
    let about: Value = match fs::read(test.with_extension("json")) {
        Ok(text) => serde_json::from_slice(&text).unwrap(),
        Err(_) => Value::Null,
    };
    let mut policy = Policy::deterministic(1);
    policy.args = vec!["test".to_owned()];
    for arg in about["args"].as_array().into_iter().flatten() {
        policy.args.push(arg.as_str().unwrap().to_owned());
    }
    for (name, value) in about["env"].as_object().into_iter().flatten() {
        policy
            .env
            .insert(name.clone(), value.as_str().unwrap().to_owned());
    }
    if let Some(root) = about["root"].as_str() {
        let mut files = BTreeMap::new();
        read_folder(&test.with_file_name(root), "", &mut files);
        policy
            .folders
            .insert("/".to_owned(), Folder { write: true, files });
    }
    policy.check().map_err(|error| error.to_string())?;
    let setup = Setup {
        policy,
        ..Setup::of("acme", "testsuite")
    };
    let compiled = engine.compile(&wasm).map_err(|error| error.to_string())?;
    let mut guest = Instance::create(&compiled, setup)
        .await
        .map_err(|error| error.to_string())?;
    let ran = guest.call("_start", Args::Numbers(&[]), |_| ()).await;
    let log = String::from_utf8_lossy(&guest.log().bytes).into_owned();
    let code = match ran {
        Ok(()) => 0,
        Err(CallError::Exited(code)) => code.into(),
        Err(error) => return Err(format!("{error}: {log}")),
    };
    let wanted = about["exit_code"].as_i64().unwrap_or(0);
    if code != wanted {
        return Err(format!("exit code {code}, not {wanted}: {log}"));
    }
    match about["stdout"].as_str() {
        Some(wanted) if wanted != log => Err(format!("it wrote {log:?}, not {wanted:?}")),
        _ => Ok(()),
    }
}

/// The text files below a folder, by their paths from there.
fn read_folder(folder: &Path, prefix: &str, into: &mut BTreeMap<String, String>) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.map(|entry| entry.path()).collect::<Vec<PathBuf>>() {
        let name = format!("{prefix}{}", entry.file_name().unwrap().to_string_lossy());
        if entry.is_dir() {
            read_folder(&entry, &format!("{name}/"), into);
        } else {
            into.insert(name, fs::read_to_string(&entry).unwrap());
        }
    }
}
