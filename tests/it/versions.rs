//! Which versions of Kubernetes are told to be tested is which are.

use std::{fs, path::Path};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_versions_of_kubernetes_that_are_told_are_those_that_the_tests_ran_against() {
    let script = read("scripts/kubernetes-versions");
    let list = script.lines().find_map(|line| line.strip_prefix("versions=("));
    let listed: Vec<&str> = list.unwrap().trim_end_matches(')').split(' ').collect();
    // The one of every run of the tests is among them.
    let module = read("tests/e2e/tools/kubernetes/go.mod");
    let own = module.split("k8s.io/kubernetes v").nth(1).unwrap();
    assert!(listed.contains(&own.split(' ').next().unwrap()), "{listed:?}");

    let docs = read("docs/kubernetes-versions.md");
    let rows: Vec<Vec<&str>> = docs
        .lines()
        .filter(|line| line.starts_with("| 1."))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let told: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(told, listed);
    let ran = rows.iter().filter(|row| row[1] != "not run yet");
    let ran: Vec<&str> = ran
        .map(|row| {
            assert!(row[1].parse::<u32>().is_ok() && row[2] == "0", "{row:?}");
            row[0].rsplit_once('.').unwrap().0
        })
        .collect();
    let sentence = format!("Tested with Kubernetes {} ", ran.join(", "));
    assert!(read("README.md").contains(&sentence), "README lacks: {sentence}");
}
