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
fn where_modules_are_listed_the_list_is_whole_and_true() {
    let mut faults = Vec::new();
    let mut checked = 0;
    for listed in listed(&read("ARCHITECTURE.md")) {
        if !listed.modules.is_empty() {
            checked += 1;
            faults.extend(module_faults(&listed, &modules_in(&listed.folder)));
        }
    }
    assert!(checked > 0, "no module is listed at all");
    assert_no_faults(faults);
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

/// The modules at the top of a crate, as its files say.
fn modules_in(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root().join(folder).join("src")).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() || path.extension().is_some_and(|rs| rs == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .filter(|name| !["lib", "main", "bin"].contains(&name.as_str()))
        .collect()
}

fn module_faults(listed: &Listed, found: &[String]) -> Vec<String> {
    let folder = &listed.folder;
    let gone = listed
        .modules
        .iter()
        .filter(|module| !found.contains(module));
    let new = found
        .iter()
        .filter(|module| !listed.modules.contains(module));
    gone.map(|module| format!("{folder}/ lists `{module}`, which does not exist"))
        .chain(new.map(|module| format!("{folder}/ has `{module}`, which is not listed")))
        .collect()
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
    fn a_module_that_is_gone_or_not_listed_is_a_fault() {
        let low = &listed(LIST)[0];
        let check = |found: &[&str], expect: &[&str]| {
            let found: Vec<_> = found.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(module_faults(low, &found), expect);
        };
        check(&["id", "time", "wire"], &[]);
        check(
            &["id", "wire"],
            &["low/ lists `time`, which does not exist"],
        );
        check(
            &["id", "time", "wire", "x"],
            &["low/ has `x`, which is not listed"],
        );
    }

    #[test]
    fn members_are_read_in_order() {
        let manifest = "[workspace]\nmembers = [\n    \"b\",\n    \"a/c\",\n]\n[x]\ny = [\"z\"]\n";
        assert_eq!(members(manifest), ["b", "a/c"]);
    }
}
