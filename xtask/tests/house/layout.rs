//! ARCHITECTURE.md's list, and the crates held to it.

use std::collections::BTreeMap;

use crate::manifests::Package;
use crate::{assert_no_faults, manifests, read, root};

/// One line of the list that names a crate, with the modules named under it.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    /// Without the slash at its end.
    folder: String,
    package: String,
    modules: Vec<String>,
}

#[test]
fn each_crate_uses_only_crates_above_it_in_the_list() {
    assert_no_faults(layering_faults(
        &listed(&read("ARCHITECTURE.md")),
        &manifests::packages(),
    ));
}

#[test]
fn each_listed_crate_exists_and_each_crate_is_listed() {
    assert_no_faults(crate_faults(
        &listed(&read("ARCHITECTURE.md")),
        &manifests::packages(),
    ));
}

#[test]
fn each_listed_module_exists() {
    let missing = |listed: &Listed| {
        let source = root().join(&listed.folder).join("src");
        listed
            .modules
            .iter()
            .filter(|module| {
                !source.join(format!("{module}.rs")).is_file()
                    && !source.join(module).join("mod.rs").is_file()
            })
            .map(|module| format!("{}: no module `{module}`", listed.folder))
            .collect::<Vec<_>>()
    };
    let list = listed(&read("ARCHITECTURE.md"));
    assert!(
        list.iter().any(|listed| !listed.modules.is_empty()),
        "no module is listed at all"
    );
    assert_no_faults(list.iter().flat_map(missing).collect());
}

#[test]
fn the_workspace_lists_its_members_in_the_same_order() {
    let list: Vec<_> = listed(&read("ARCHITECTURE.md"))
        .into_iter()
        .map(|listed| listed.folder)
        .collect();
    assert_eq!(members(&read("Cargo.toml")), list);
}

/// The lines of the first `text` block that name a folder, in order.
fn listed(architecture: &str) -> Vec<Listed> {
    let block = architecture
        .split("```text\n")
        .nth(1)
        .expect("ARCHITECTURE.md has its list");
    let block = block.split("```").next().unwrap_or_default();
    let mut list: Vec<Listed> = Vec::new();
    for line in block.lines() {
        let (name, what) = line.trim_start().split_once("  ").unwrap_or((line, ""));
        let Some(last) = list.last_mut().filter(|_| line.starts_with(' ')) else {
            if let Some(folder) = name.strip_suffix('/') {
                let package = what.trim_start().split(':').next().unwrap_or_default();
                list.push(Listed {
                    folder: folder.to_owned(),
                    package: package.to_owned(),
                    modules: Vec::new(),
                });
            }
            continue;
        };
        let modules = name
            .split(", ")
            .map(|module| module.trim_end_matches('/').to_owned());
        last.modules.extend(modules);
    }
    list
}

/// Dependencies, other than a test's, that point down the list or sideways out of it.
fn layering_faults(list: &[Listed], packages: &[Package]) -> Vec<String> {
    let place: BTreeMap<&str, usize> = list
        .iter()
        .enumerate()
        .map(|(place, listed)| (listed.package.as_str(), place))
        .collect();
    let mut faults = Vec::new();
    for package in packages {
        for used in package
            .dependencies
            .iter()
            .filter(|used| used.in_workspace && !used.for_tests)
        {
            let (here, there) = (
                place.get(package.name.as_str()),
                place.get(used.name.as_str()),
            );
            if !matches!((here, there), (Some(here), Some(there)) if there < here) {
                faults.push(format!(
                    "{} uses {}, which is not above it",
                    package.name, used.name
                ));
            }
        }
    }
    faults
}

/// Crates that are not where the list says, and crates that it does not know.
fn crate_faults(list: &[Listed], packages: &[Package]) -> Vec<String> {
    let found: BTreeMap<&str, &str> = packages
        .iter()
        .map(|package| (package.folder.as_str(), package.name.as_str()))
        .collect();
    let mut faults = Vec::new();
    for listed in list {
        let name = found.get(listed.folder.as_str()).copied();
        if name != Some(listed.package.as_str()) {
            let name = name.unwrap_or("no crate");
            faults.push(format!(
                "{}/ is listed as {}, but holds {name}",
                listed.folder, listed.package
            ));
        }
    }
    let unlisted = packages
        .iter()
        .filter(|package| list.iter().all(|listed| listed.folder != package.folder))
        .map(|package| format!("{}/ ({}) is not listed", package.folder, package.name));
    faults.extend(unlisted);
    faults
}

/// The folders of `members = [ … ]` in the workspace's manifest, in order.
fn members(manifest: &str) -> Vec<String> {
    let block = manifest
        .split("members = [")
        .nth(1)
        .expect("the workspace names its members");
    let block = block.split(']').next().unwrap_or_default();
    block
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

mod can_fail {
    use super::*;
    use crate::manifests::Used;

    const LIST: &str = "# A\n```text\nCargo.toml    workspace\nlow/    low-crate: first\n  \
                        id, time    ids\n  wire/    codec\nhigh/    high-crate: second\n```\n";

    fn package(name: &str, folder: &str, uses: &[(&str, bool)]) -> Package {
        let dependencies = uses
            .iter()
            .map(|(name, for_tests)| Used {
                name: (*name).to_owned(),
                in_workspace: true,
                for_tests: *for_tests,
                features: Vec::new(),
            })
            .collect();
        Package {
            name: name.to_owned(),
            folder: folder.to_owned(),
            dependencies,
            features: BTreeMap::new(),
        }
    }

    #[test]
    fn the_list_is_read_with_its_modules() {
        let list = listed(LIST);
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].package, "low-crate");
        assert_eq!(list[0].modules, ["id", "time", "wire"]);
        assert_eq!(
            (list[1].folder.as_str(), list[1].modules.len()),
            ("high", 0)
        );
    }

    #[test]
    fn a_dependency_downwards_is_a_fault_and_a_test_s_is_none() {
        let check = |packages: &[Package], faults: usize| {
            assert_eq!(
                layering_faults(&listed(LIST), packages).len(),
                faults,
                "{packages:?}"
            );
        };
        check(&[package("high-crate", "high", &[("low-crate", false)])], 0);
        check(&[package("low-crate", "low", &[("high-crate", false)])], 1);
        check(&[package("low-crate", "low", &[("high-crate", true)])], 0);
        check(&[package("low-crate", "low", &[("low-crate", false)])], 1);
        check(&[package("new-crate", "new", &[("low-crate", false)])], 1);
    }

    #[test]
    fn a_crate_missing_from_the_list_or_from_the_disk_is_a_fault() {
        let low = package("low-crate", "low", &[]);
        let faults = crate_faults(&listed(LIST), &[low, package("new", "new", &[])]);
        assert_eq!(
            faults,
            [
                "high/ is listed as high-crate, but holds no crate",
                "new/ (new) is not listed"
            ]
        );
        let misnamed = package("other", "low", &[]);
        let high = package("high-crate", "high", &[]);
        assert_eq!(
            crate_faults(&listed(LIST), &[misnamed, high]),
            ["low/ is listed as low-crate, but holds other"]
        );
    }

    #[test]
    fn members_are_read_in_order() {
        let manifest = "[workspace]\nmembers = [\n    \"b\",\n    \"a/c\",\n]\n[x]\ny = [\"z\"]\n";
        assert_eq!(members(manifest), ["b", "a/c"]);
    }
}
