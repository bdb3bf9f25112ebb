//! Files that are made from the code are current.

use std::{env, fs, path::Path};

use kagami::{api, domain::reason::Reason};

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

/// Returns README.md with the text between two comments replaced.
fn readme_with(section: &str, text: &str) -> String {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let begin = readme.find(&format!("<!-- {section}: ")).unwrap();
    let begin = begin + readme[begin..].find("-->\n").unwrap() + "-->\n".len();
    let end = readme.find(&format!("<!-- end of {section} -->")).unwrap();
    format!("{}\n{text}\n{}", &readme[..begin], &readme[end..])
}

#[test]
fn the_readmes_settings_are_current() {
    let expected = readme_with("settings", &kagami::cli::settings_table());
    assert!(
        is_current("README.md", &expected),
        "README.md was stale (rewritten unless CI=true)"
    );
}

#[test]
fn the_readmes_reasons_are_current() {
    let rows = Reason::ALL
        .iter()
        .map(|reason| format!("| `{reason}` | {} |\n", reason.explanation()));
    let table = format!(
        "| reason | meaning |\n| --- | --- |\n{}",
        rows.collect::<String>()
    );
    let expected = readme_with("reasons", &table);
    assert!(
        is_current("README.md", &expected),
        "README.md was stale (rewritten unless CI=true)"
    );
}
