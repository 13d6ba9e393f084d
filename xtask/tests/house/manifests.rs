//! What the manifests of the workspace say, as `cargo metadata` reads them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::{cargo, root};

/// A crate of the workspace.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// Below the workspace's root.
    pub(crate) folder: String,
    pub(crate) dependencies: Vec<Used>,
    pub(crate) features: BTreeMap<String, Vec<String>>,
}

/// A dependency as declared.
#[derive(Debug)]
pub(crate) struct Used {
    pub(crate) name: String,
    pub(crate) in_workspace: bool,
    /// A dev-dependency.
    pub(crate) for_tests: bool,
    pub(crate) features: Vec<String>,
}

/// Every crate of the workspace.
pub(crate) fn packages() -> Vec<Package> {
    let metadata = cargo("metadata --no-deps --format-version 1");
    packages_in(&serde_json::from_str(&metadata).unwrap(), &root())
}

fn packages_in(metadata: &Value, root: &Path) -> Vec<Package> {
    let packages: Vec<_> = array(&metadata["packages"])
        .iter()
        .map(|package| package_in(package, root))
        .collect();
    assert!(!packages.is_empty(), "cargo metadata lists no package");
    packages
}

fn package_in(package: &Value, root: &Path) -> Package {
    let manifest = Path::new(package["manifest_path"].as_str().unwrap());
    let folder = manifest.parent().unwrap().strip_prefix(root).unwrap();
    let dependencies = array(&package["dependencies"])
        .iter()
        .map(|used| Used {
            name: text(&used["name"]),
            in_workspace: used["path"].is_string(),
            for_tests: used["kind"] == "dev",
            features: array(&used["features"]).iter().map(text).collect(),
        })
        .collect();
    let features = package["features"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, turns_on)| (name.clone(), array(turns_on).iter().map(text).collect()))
        .collect();
    Package {
        name: text(&package["name"]),
        folder: folder.to_str().unwrap().to_owned(),
        dependencies,
        features,
    }
}

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

#[test]
fn metadata_is_read_as_cargo_writes_it() {
    let metadata: Value = serde_json::from_str(
        r#"{"packages": [{"name": "a", "manifest_path": "/r/x/a/Cargo.toml",
            "features": {"default": ["f"], "f": []},
            "dependencies": [
                {"name": "b", "path": "/r/b", "kind": null, "features": ["g"]},
                {"name": "c", "kind": "dev", "features": []}]}]}"#,
    )
    .unwrap();
    let packages = packages_in(&metadata, Path::new("/r"));
    assert_eq!(
        (packages[0].name.as_str(), packages[0].folder.as_str()),
        ("a", "x/a")
    );
    assert_eq!(packages[0].features["default"], ["f"]);
    let [b, c] = packages[0].dependencies.as_slice() else {
        panic!("{packages:?}")
    };
    assert!(b.in_workspace && !b.for_tests && b.features == ["g"]);
    assert!(!c.in_workspace && c.for_tests);
}
