//! Identities on a real disk: what is taken, and how each fault is told.

#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn an_identity_that_was_saved_is_the_same_when_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let (ca_dir, node_dir) = (dir.path().join("ca"), dir.path().join("node"));
    let ca = Ca::create("alpha").unwrap();
    ca.save(&ca_dir).unwrap();
    // Issued by what was loaded: a CA is used years after it was made.
    let ca = Ca::load(&ca_dir).unwrap();
    assert_eq!(ca.cluster(), "alpha");
    let node = NodeId(0x00AB_CDEF_0123_4567);
    let addresses = ["10.0.0.1:7000", "::1", "node-1.example.org", "h:1"].map(str::to_owned);
    let identity = ca.issue("node-1", node, &addresses).unwrap();
    identity.save(&node_dir).unwrap();
    identity.save(&node_dir).unwrap();

    let identity = Identity::load(&node_dir).unwrap();
    assert_eq!((identity.node(), identity.cluster()), (node, "alpha"));
    assert_eq!(node_named_by(&identity.certificate_der, "alpha"), Ok(node));
    for key in [ca_dir.join("ca.key"), node_dir.join("key.pem")] {
        assert_eq!(
            fs::metadata(key).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    let shown = format!("{identity:?}");
    assert_eq!(shown, "Identity(node-abcdef01234567 of alpha)");
}

#[test]
fn files_that_do_not_fit_each_other_are_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let check = |change: &dyn Fn(&Path), expected: &str| {
        let ca = Ca::create("alpha").unwrap();
        let node = dir.path().join("node");
        ca.issue("n", NodeId(1), &[]).unwrap().save(&node).unwrap();
        change(&node);
        let error = Identity::load(&node).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} for {expected:?}");
        fs::remove_dir_all(&node).unwrap();
    };
    let other = Ca::create("alpha")
        .unwrap()
        .issue("o", NodeId(1), &[])
        .unwrap();
    let write = |path: PathBuf, text: &str| fs::write(path, text).unwrap();

    check(
        &|node| write(node.join("key.pem"), &other.key),
        "do not belong together",
    );
    check(
        &|node| write(node.join("ca.pem"), &other.ca),
        "issue the node's files again",
    );
    check(
        &|node| write(node.join("cert.pem"), "nonsense"),
        "copy the file again",
    );
    check(
        &|node| write(node.join("key.pem"), ""),
        "key.pem holds no private key",
    );
    check(
        &|node| fs::remove_file(node.join("cert.pem")).unwrap(),
        "ca issue",
    );
    let expose = |node: &Path| {
        let open = fs::Permissions::from_mode(0o644);
        fs::set_permissions(node.join("key.pem"), open).unwrap();
    };
    check(&expose, "chmod 600");
}

#[test]
fn a_certificate_without_our_name_names_no_node() {
    let ca = Ca::create("alpha").unwrap();
    let certificate = |uris: &[&str]| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["node.alpha".to_owned()]).unwrap();
        let names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names.extend(names);
        let issuer = Issuer::new(ca_params("alpha").unwrap(), &ca.key);
        params.signed_by(&key, &issuer).unwrap().der().clone()
    };
    let good = "spiffe://alpha/node/00000000000000ff";
    assert_eq!(
        node_named_by(&certificate(&[good]), "alpha"),
        Ok(NodeId(255))
    );
    let other = NameError::OtherCluster {
        seen: "alpha".to_owned(),
        expected: "beta".to_owned(),
    };
    assert_eq!(node_named_by(&certificate(&[good]), "beta"), Err(other));
    assert_eq!(
        node_named_by(&certificate(&[]), "alpha"),
        Err(NameError::Uris(0))
    );
    assert_eq!(
        node_named_by(&certificate(&[good, good]), "alpha"),
        Err(NameError::Uris(2))
    );
    for bad in [
        "spiffe://alpha/node/ff",
        "spiffe://alpha/node/00000000000000FF",
        "spiffe://alpha/node/+0000000000000ff",
        "spiffe://alpha/node/00000000000000ff/more",
        "spiffe://alpha/unit/00000000000000ff",
        "spiffe:///node/00000000000000ff",
        "https://alpha/node/00000000000000ff",
    ] {
        let named = node_named_by(&certificate(&[bad]), "alpha");
        assert_eq!(named, Err(NameError::BadUri(bad.to_owned())), "{bad}");
    }
    let nonsense = CertificateDer::from(vec![0x30, 0x82, 0xFF]);
    assert_eq!(
        node_named_by(&nonsense, "alpha"),
        Err(NameError::NotCertificate)
    );
}

#[test]
fn a_ca_is_never_overwritten_and_bad_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::create("alpha").unwrap();
    ca.save(dir.path()).unwrap();
    assert!(matches!(ca.save(dir.path()), Err(IdentityError::Exists(_))));
    fs::write(
        dir.path().join("ca.key"),
        Ca::create("alpha").unwrap().key.serialize_pem(),
    )
    .unwrap();
    assert!(matches!(
        Ca::load(dir.path()),
        Err(IdentityError::CaMismatch)
    ));

    for name in ["", "Alpha", "a.b", "-a", "a-", "a/b", "ä", &"a".repeat(64)] {
        assert!(
            matches!(Ca::create(name), Err(IssueError::BadCluster(_))),
            "{name}"
        );
    }
    for address in ["", "a b", "host:port", "host:70000", "[::1"] {
        let issued = ca.issue("n", NodeId(1), &[address.to_owned()]);
        assert!(
            matches!(issued, Err(IssueError::BadAddress(_))),
            "{address}"
        );
    }
}
