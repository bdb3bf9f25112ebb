//! Files that are made from the code are current.

use std::{env, fs, path::Path};

use kagami::api;

/// Returns whether a file is what the code makes. A stale one is rewritten, so that only the first
/// run fails; not in CI, where nobody would see the change.
fn is_current(path: &str, expected: &str) -> bool {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let current = fs::read_to_string(&file).unwrap_or_default() == expected;
    if !current && env::var("CI").as_deref() != Ok("true") {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, expected).unwrap();
    }
    current
}

#[test]
fn resource_definitions_are_current() {
    let mut stale = Vec::new();
    for crd in api::crds() {
        let path = format!("chart/crds/{}.yaml", crd.metadata.name.as_deref().unwrap());
        if !is_current(&path, &api::crd_yaml(&crd)) {
            stale.push(path);
        }
    }
    assert!(
        stale.is_empty(),
        "not what the code makes (rewritten unless CI=true): {stale:?}"
    );
}

#[test]
fn all_definitions_are_one_stream() {
    let documents = kagami::state::file::decode_documents(&api::crds_yaml()).unwrap();
    assert!(documents.iter().all(|crd| crd["spec"]["group"] == api::GROUP));
    let names: Vec<_> = documents.iter().map(|crd| &crd["metadata"]["name"]).collect();
    assert_eq!(names, ["imagemirrors.kagami.dev", "mirroredimages.kagami.dev"]);
}
