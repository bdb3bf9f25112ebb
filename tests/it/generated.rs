//! Files that are made from the code are current.

use std::{env, fs, path::Path};

use kagami::{
    api,
    domain::{copying, reason::Reason},
};
use serde_json::Value;

use crate::support::metrics::{all_metrics, samples};

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
    page_with("README.md", section, text)
}

/// Returns a page with the text between two comments replaced.
fn page_with(page: &str, section: &str, text: &str) -> String {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
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

#[test]
fn the_reasons_of_copying_are_current() {
    let rows = copying::Reason::ALL.iter().map(|reason| {
        format!(
            "| `{reason}` | {} | {} |\n",
            reason.explanation(),
            reason.advice()
        )
    });
    let table = format!(
        "| reason | meaning | what to change |\n| --- | --- | --- |\n{}",
        rows.collect::<String>()
    );
    let page = "docs/copying.md";
    let expected = page_with(page, "reasons", &table);
    assert!(
        is_current(page, &expected),
        "{page} was stale (rewritten unless CI=true)"
    );
}

#[test]
fn every_reason_has_its_place_in_troubleshooting() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/troubleshooting.md");
    let page = fs::read_to_string(page).unwrap();
    let told: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .collect();
    let untold: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| reason.as_str())
        .filter(|reason| !told.contains(reason))
        .collect();
    assert!(untold.is_empty(), "{untold:?}");
}

#[test]
fn the_page_of_metrics_is_current() {
    let text = all_metrics();
    let known = samples(&text);
    let mut page = "\
# Metrics

Written by tests/it/generated.rs from the metrics themselves. Both processes answer at `/metrics` of the admin port, \
and each shows what it knows: the webhook its reviews, the companion its sweeps and writes. A metric without labels \
is there from the start, the others from their first event. What to look at when something is wrong: \
[troubleshooting](troubleshooting.md#alerts).

| metric | kind | labels | meaning |
| --- | --- | --- | --- |
"
    .to_owned();
    let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
    for (name, help) in helps.filter_map(|line| line.split_once(' ')) {
        let kinds = format!("# TYPE {name} ");
        let kind = text.lines().find_map(|line| line.strip_prefix(&kinds)).unwrap();
        let names = [name.to_owned(), format!("{name}_total"), format!("{name}_count")];
        let shown = names.iter().find_map(|name| known.get_key_value(&**name));
        let Some((name, labels)) = shown else {
            panic!("{name} is nowhere shown: tests/it/support/metrics.rs");
        };
        let name = name.strip_suffix("_count").unwrap_or(name);
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        let row = format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
        // Two listeners count the same.
        if !page.contains(&row) {
            page.push_str(&row);
        }
    }
    assert!(
        is_current("docs/metrics.md", &page),
        "docs/metrics.md was stale (rewritten unless CI=true)"
    );
}

/// Writes a row for each value of the chart.
fn rows(schema: &Value, values: &Value, path: &str, page: &mut String) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        // Helm's own.
        if path.is_empty() && name == "global" {
            continue;
        }
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        let described = property["description"].as_str().unwrap_or_default();
        assert!(!described.is_empty(), "{path} has no description");
        let is_group = property["properties"].is_object();
        let default = if is_group {
            String::new()
        } else {
            format!("`{}`", values[name])
        };
        let line = format!("| `{path}` | {default} | {described} |\n");
        page.push_str(&line.replace("||", "\\|\\|"));
        rows(property, &values[name], &path, page);
    }
}

#[test]
fn the_page_of_the_charts_values_is_current() {
    let read = |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let schema: Value = serde_json::from_str(&read("chart/values.schema.json")).unwrap();
    let values = kagami::state::file::decode_documents(&read("chart/values.yaml")).unwrap();
    let mut page = "\
# Values of the chart

Written by tests/it/generated.rs from `chart/values.schema.json` and `chart/values.yaml`. `helm show values chart` has \
the same with examples; a value that is not here is refused.

| value | default | meaning |
| --- | --- | --- |
"
    .to_owned();
    rows(&schema, &values[0], "", &mut page);
    assert!(
        is_current("docs/chart-values.md", &page),
        "docs/chart-values.md was stale (rewritten unless CI=true)"
    );
}
