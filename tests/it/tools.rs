//! What `scripts/tools` says while it builds.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

/// A `go` that says what it fetches, and builds something that runs, or fails with `FAILS`.
const GO: &str = r#"#!/bin/sh
echo "go: downloading example.test/module v1.0.0" >&2
case $1 in
  version) echo "go version go1.26.0 linux/amd64" ;;
  build)
    if [ -n "$FAILS" ]; then echo "cannot build this" >&2; exit 1; fi
    while [ "$1" != -o ]; do shift; done
    echo '#!/bin/sh' >"$2"
    chmod +x "$2"
    ;;
esac
"#;

/// Builds the registry with that `go`. Returns what was said, and whether it went well.
fn build(folder: &Path, fails: &str) -> (String, bool) {
    let go = folder.join("go");
    fs::write(&go, GO).unwrap();
    fs::set_permissions(&go, fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/tools"))
        .arg("registry")
        .env("PATH", format!("{}:/usr/bin:/bin", folder.display()))
        .env("KAGAMI_TOOLS", folder.join("tools"))
        .env("FAILS", fails)
        .output()
        .unwrap();
    assert!(output.stdout.is_empty());
    (String::from_utf8(output.stderr).unwrap(), output.status.success())
}

#[test]
fn what_go_fetches_is_said_only_where_it_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (said, is_well) = build(folder.path(), "yes");
    assert!(!is_well);
    for part in ["tools: building registry", "go: downloading", "cannot build this"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (said, is_well) = build(folder.path(), "");
    assert!(is_well, "{said}");
    assert!(said.contains("tools: building registry"), "{said}");
    assert!(said.lines().all(|line| line.starts_with("tools: ")), "{said}");
    assert!(folder.path().join("tools/registry").exists());
    // What is there is not built again.
    let (said, is_well) = build(folder.path(), "yes");
    assert!(is_well && said.contains("registry is current"), "{said}");
}
