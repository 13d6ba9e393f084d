//! Nothing outside the tests can switch a rule off.
//!
//! Three locks, each checked: no other manifest names the feature, the tree of the shipped binary
//! does not have it, and an optimised build of it does not compile.

use crate::manifests::Package;
use crate::{assert_no_faults, cargo, manifests, read};

const FEATURE: &str = "sabotage";
/// The crate that has the feature, and the one that passes it on to its tests.
const HOLDERS: [&str; 2] = ["understudy-protocol", "understudy-sim"];

#[test]
fn only_the_core_and_its_simulator_name_the_feature() {
    let packages = manifests::packages();
    let holds = |package: &Package| package.features.contains_key(FEATURE);
    assert!(
        packages.iter().any(holds),
        "no crate has the feature: this test checks nothing"
    );
    assert_no_faults(packages.iter().flat_map(manifest_faults).collect());
}

#[test]
fn the_shipped_binary_s_tree_is_without_the_feature() {
    let tree = cargo("tree -p understudy -e features,no-dev --prefix none");
    assert!(
        tree.contains("understudy-protocol"),
        "the binary does not use the core:\n{tree}"
    );
    assert_no_faults(tree_faults(&tree));
}

#[test]
fn an_optimised_build_with_the_feature_does_not_compile() {
    assert_no_faults(guard_faults(
        &read("protocol/src/lib.rs"),
        &read("Cargo.toml"),
    ));
}

/// Where a manifest names the feature that must not.
fn manifest_faults(package: &Package) -> Vec<String> {
    let name = &package.name;
    let names_it = |text: &String| {
        text.split('/')
            .any(|part| part.trim_end_matches('?') == FEATURE)
    };
    let mut faults = Vec::new();
    for used in &package.dependencies {
        if used.features.iter().any(names_it) {
            faults.push(format!("{name} asks {} for `{FEATURE}`", used.name));
        }
    }
    for (feature, turns_on) in &package.features {
        if HOLDERS.contains(&name.as_str()) && feature == FEATURE {
            continue;
        }
        if feature == FEATURE || turns_on.iter().any(names_it) {
            faults.push(format!(
                "{name} has a feature `{feature}` that leads to `{FEATURE}`"
            ));
        }
    }
    faults
}

fn tree_faults(tree: &str) -> Vec<String> {
    let enabled = format!("feature \"{FEATURE}\"");
    tree.lines()
        .filter(|line| line.contains(&enabled))
        .map(str::to_owned)
        .collect()
}

/// The guard has to stand in the core, and no profile may call an optimised build a debug one.
fn guard_faults(core: &str, manifest: &str) -> Vec<String> {
    let guard = "#[cfg(all(feature = \"sabotage\", not(debug_assertions)))]\ncompile_error!(";
    let mut faults = Vec::new();
    if !core.contains(guard) {
        faults.push("protocol/src/lib.rs is without its compile_error! guard".to_owned());
    }
    if manifest
        .lines()
        .any(|line| line.trim_start().starts_with("debug-assertions"))
    {
        faults.push("a profile of Cargo.toml sets debug-assertions".to_owned());
    }
    faults
}

mod can_fail {
    use std::collections::BTreeMap;

    use super::*;
    use crate::manifests::Used;

    fn package(name: &str, asks: &[&str], features: &[(&str, &[&str])]) -> Package {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Package {
            name: name.to_owned(),
            folder: name.to_owned(),
            dependencies: vec![Used {
                name: "understudy-protocol".to_owned(),
                in_workspace: true,
                for_tests: false,
                features: owned(asks),
            }],
            features: features
                .iter()
                .map(|(name, turns_on)| ((*name).to_owned(), owned(turns_on)))
                .collect::<BTreeMap<_, _>>(),
        }
    }

    #[track_caller]
    fn check(package: Package, faults: usize) {
        assert_eq!(manifest_faults(&package).len(), faults, "{package:?}");
    }

    #[test]
    fn the_two_holders_may_pass_it_on() {
        check(package("understudy-protocol", &[], &[("sabotage", &[])]), 0);
        check(
            package(
                "understudy-sim",
                &[],
                &[("sabotage", &["understudy-protocol/sabotage"])],
            ),
            0,
        );
    }

    #[test]
    fn every_other_way_to_it_is_a_fault() {
        check(package("understudy", &["sabotage"], &[]), 1);
        check(package("understudy-sim", &["sabotage"], &[]), 1);
        check(
            package(
                "understudy",
                &[],
                &[("chaos", &["understudy-protocol/sabotage"])],
            ),
            1,
        );
        check(
            package(
                "understudy",
                &[],
                &[("chaos", &["understudy-protocol?/sabotage"])],
            ),
            1,
        );
        check(package("understudy", &[], &[("sabotage", &[])]), 1);
        check(
            package("understudy-protocol", &[], &[("default", &["sabotage"])]),
            1,
        );
        check(
            package("understudy-sim", &[], &[("more", &["sabotage"])]),
            1,
        );
    }

    #[test]
    fn a_tree_that_has_it_is_a_fault() {
        let tree = "understudy v0.1.0\nunderstudy-protocol feature \"sabotage\"\nbytes v1.0.0\n";
        assert_eq!(tree_faults(tree).len(), 1);
    }

    #[test]
    fn a_core_without_its_guard_is_a_fault_and_so_is_an_optimised_debug_build() {
        let guarded =
            "#[cfg(all(feature = \"sabotage\", not(debug_assertions)))]\ncompile_error!(\"\");";
        assert_eq!(
            guard_faults(guarded, "[profile.release]\nlto = true\n").len(),
            0
        );
        assert_eq!(guard_faults("#![no_std]", "").len(), 1);
        assert_eq!(
            guard_faults(guarded, "[profile.release]\ndebug-assertions = true\n").len(),
            1
        );
    }
}
