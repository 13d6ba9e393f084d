use understudy_store::{DataDir, OnDamage};
use understudy_supervision::store::conformance;

#[test]
fn the_store_on_disk_keeps_what_a_store_promises() {
    let folder = tempfile::tempdir().unwrap();
    conformance::check(&mut || {
        let store = DataDir::open(folder.path(), OnDamage::Refuse, None).unwrap();
        assert_eq!(store.rebuilt, None);
        Box::new(store.records)
    });
}
