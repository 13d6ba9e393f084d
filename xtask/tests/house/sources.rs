//! What every source file keeps to, and what the core is built from.

use std::path::Path;

use crate::{assert_no_faults, cargo, manifests, read, root};

#[test]
fn each_source_file_opens_by_saying_what_it_owns() {
    let mut files = Vec::new();
    for package in manifests::packages() {
        rust_files(&root().join(package.folder).join("src"), &mut files);
    }
    assert!(files.len() > 10, "only {} files found", files.len());
    let faults = files.iter().filter(|path| {
        let text = std::fs::read_to_string(path).unwrap();
        !opens_with_its_purpose(&text)
    });
    assert_no_faults(
        faults
            .map(|path| {
                format!(
                    "{} does not open with `//!`",
                    path.strip_prefix(root()).unwrap().display()
                )
            })
            .collect(),
    );
}

#[test]
fn the_core_is_no_std() {
    assert_no_faults(no_std_faults(&read("protocol/src/lib.rs")));
}

#[test]
fn nothing_that_the_core_uses_brings_std_in() {
    // Separators that no feature name holds; the same crate may stand in the tree many times.
    let tree = cargo(
        "tree -p understudy-protocol -e normal,no-proc-macro --prefix none --no-dedupe \
         -f {p}|{f}",
    );
    assert!(
        tree.contains("minicbor v"),
        "the core's tree was not read:\n{tree}"
    );
    assert_no_faults(std_faults(&tree));
}

fn rust_files(folder: &Path, files: &mut Vec<std::path::PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// `//!` and a word after it, before anything else.
fn opens_with_its_purpose(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    first
        .strip_prefix("//!")
        .is_some_and(|words| !words.trim().is_empty())
}

fn no_std_faults(core: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !core.lines().any(|line| line.trim() == "#![no_std]") {
        faults.push("protocol/src/lib.rs is without an unconditional `#![no_std]`".to_owned());
    }
    let lines: Vec<_> = core.lines().map(str::trim).collect();
    for (at, line) in lines.iter().enumerate() {
        let only_in_tests = at > 0 && lines[at - 1] == "#[cfg(test)]";
        if line.starts_with("extern crate std") && !only_in_tests {
            faults.push(format!(
                "protocol/src/lib.rs:{} takes `std` in outside tests",
                at + 1
            ));
        }
    }
    faults
}

/// Lines `crate v1.0.0|feature,feature` in which a feature is `std`.
fn std_faults(tree: &str) -> Vec<String> {
    let mut faults: Vec<_> = tree
        .lines()
        .filter(|line| {
            let features = line.rsplit_once('|').map_or("", |(_, features)| features);
            features
                .trim_end_matches(" (*)")
                .split(',')
                .any(|feature| feature == "std")
        })
        .map(|line| format!("{line} has the feature `std`"))
        .collect();
    faults.sort();
    faults.dedup();
    faults
}

mod can_fail {
    use super::*;

    #[test]
    fn a_file_that_opens_otherwise_is_a_fault() {
        for (text, expect) in [
            ("//! Owns ids.\n", true),
            ("//!\n//! Owns ids.\n", false),
            ("// Owns ids.\n", false),
            ("use core::fmt;\n//! Owns ids.\n", false),
            ("", false),
        ] {
            assert_eq!(opens_with_its_purpose(text), expect, "{text:?}");
        }
    }

    #[test]
    fn a_core_with_std_is_a_fault() {
        for (text, faults) in [
            ("#![no_std]\n#[cfg(test)]\nextern crate std;\n", 0),
            ("#![no_std]\nextern crate std;\n", 1),
            ("#![cfg_attr(not(test), no_std)]\n", 1),
            ("//! core\n", 1),
        ] {
            assert_eq!(no_std_faults(text).len(), faults, "{text:?}");
        }
    }

    #[test]
    fn a_dependency_with_std_is_a_fault() {
        let tree = "core v0.1.0 (/a)|\nbytes v1.0.0|default,std\ncrc v3.0.0|\nbytes v1.0.0|default,std (*)\n";
        let faults = std_faults(tree);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("bytes"), "{faults:?}");
        assert!(std_faults("minicbor v2.0.0|alloc,derive\nno-std-net v1.0.0|\n").is_empty());
    }
}
