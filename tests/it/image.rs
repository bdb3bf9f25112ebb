//! What `scripts/image` makes is an image as OCI's image specification 1.1 has it.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// An unpacked image layout.
struct Layout(PathBuf);

impl Layout {
    fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&fs::read(self.0.join(path)).unwrap()).unwrap()
    }

    /// The path of the blob that a descriptor names, whose digest and size are right.
    fn blob(&self, descriptor: &Value) -> String {
        let digest = descriptor["digest"].as_str().unwrap();
        let path = format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap());
        let bytes = fs::read(self.0.join(&path)).unwrap();
        assert_eq!(sha256(&bytes), digest);
        assert_eq!(descriptor["size"], bytes.len());
        path
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

fn run(folder: &Path, program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {told}");
    output.stdout
}

/// A program of another machine than this one, as far as its header goes.
fn foreign() -> (&'static str, Vec<u8>) {
    let (architecture, machine) = if cfg!(target_arch = "x86_64") {
        ("arm64", 183)
    } else {
        ("amd64", 62)
    };
    let mut header = vec![0; 64];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    // It is executable, for that machine, of version 1; sizes of its header, and of tables that it does not have.
    for (at, value) in [(16, 2), (18, machine), (20, 1), (52, 64), (54, 56), (58, 64)] {
        header[at] = value;
    }
    (architecture, header)
}

#[test]
fn programs_for_several_machines_make_one_image() {
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/image");
    let program = fs::canonicalize("/bin/true").unwrap();
    let program = program.to_str().unwrap();
    let (architecture, content) = foreign();
    fs::write(folder.path().join("foreign"), &content).unwrap();
    run(
        folder.path(),
        script,
        &["--output", "image.tar", program, "foreign"],
    );
    run(folder.path(), "tar", &["--extract", "--file=image.tar"]);
    let layout = Layout(folder.path().to_owned());
    let named = layout.json("index.json");
    let [descriptor] = named["manifests"].as_array().unwrap().as_slice() else {
        panic!("{named}");
    };
    let name = format!("kagami.dev/kagami:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        descriptor["annotations"]["io.containerd.image.name"],
        name.as_str()
    );
    let index = layout.json(&layout.blob(descriptor));
    let mut architectures = Vec::new();
    for descriptor in index["manifests"].as_array().unwrap() {
        let platform = &descriptor["platform"];
        let manifest = layout.json(&layout.blob(descriptor));
        let config = layout.json(&layout.blob(&manifest["config"]));
        assert_eq!(config["architecture"], platform["architecture"]);
        assert_eq!(platform["os"], "linux");
        architectures.push(platform["architecture"].as_str().unwrap().to_owned());
        if platform["architecture"] == architecture {
            let layer = layout.blob(&manifest["layers"][0]);
            let options = ["--extract", "--gzip", "--to-stdout", "./kagami", "--file", &layer];
            assert_eq!(run(folder.path(), "tar", &options), content);
        }
    }
    architectures.sort();
    assert_eq!(architectures, ["amd64", "arm64"]);

    // Two programs for one machine are none for two.
    let told = Command::new(script).args([program, program]).output().unwrap();
    assert!(!told.status.success());
}

#[test]
fn the_image_holds_the_program_and_what_it_is_linked_against() {
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/image");
    let program = fs::canonicalize("/bin/true").unwrap();
    let arguments = [
        "--name",
        "registry.test/kagami:1",
        "--output",
        "image.tar",
        program.to_str().unwrap(),
    ];
    run(folder.path(), script, &arguments);
    let first = fs::read(folder.path().join("image.tar")).unwrap();
    run(folder.path(), script, &arguments);
    let second = fs::read(folder.path().join("image.tar")).unwrap();
    assert_eq!(
        sha256(&first),
        sha256(&second),
        "the same program makes the same image"
    );

    run(folder.path(), "tar", &["--extract", "--file=image.tar"]);
    let layout = Layout(folder.path().to_owned());
    assert_eq!(layout.json("oci-layout")["imageLayoutVersion"], "1.0.0");
    let index = layout.json("index.json");
    let descriptor = &index["manifests"][0];
    assert_eq!(
        descriptor["annotations"]["io.containerd.image.name"],
        "registry.test/kagami:1"
    );
    let manifest = layout.json(&layout.blob(descriptor));
    let config = layout.json(&layout.blob(&manifest["config"]));
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"][0], "/kagami");

    let layer = layout.blob(&manifest["layers"][0]);
    let content = run(folder.path(), "gzip", &["--decompress", "--stdout", &layer]);
    assert_eq!(config["rootfs"]["diff_ids"][0], sha256(&content));
    fs::write(folder.path().join("layer.tar"), content).unwrap();
    let listed = run(folder.path(), "tar", &["--list", "--file=layer.tar"]);
    let files = String::from_utf8(listed).unwrap();
    assert!(files.lines().any(|file| file == "./kagami"), "{files}");
    for library in ["libc.so.6", "ld-linux"] {
        assert!(files.contains(library), "{library} is not in\n{files}");
    }
    // It may run as any user, in the group that clusters give to one of their choice, 0.
    let modes = run(
        folder.path(),
        "tar",
        &["--list", "--verbose", "--numeric-owner", "--file=layer.tar"],
    );
    for line in String::from_utf8(modes).unwrap().lines() {
        let (mode, rest) = line.split_at(10);
        assert!(rest.trim_start().starts_with("0/0 "), "{line}");
        let needs = if mode.starts_with('d') || line.ends_with("/kagami") {
            "r-x"
        } else {
            "r"
        };
        assert!(
            mode[4..].starts_with(needs) && mode[7..].starts_with(needs),
            "{line}"
        );
    }
}

#[test]
fn the_bill_of_materials_has_what_is_linked_and_no_more() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/sbom");
    let bill = run(Path::new("/"), script, &[]);
    let bill: Value = serde_json::from_slice(&bill).unwrap();
    assert_eq!(bill["specVersion"], "1.6");
    let program = &bill["metadata"]["component"];
    assert_eq!(program["version"], env!("CARGO_PKG_VERSION"));
    let components = bill["components"].as_array().unwrap();
    let refs: Vec<_> = components
        .iter()
        .chain([program])
        .map(|component| component["bom-ref"].as_str().unwrap())
        .collect();
    let has = |name: &str| {
        refs.iter()
            .any(|found| found.starts_with(&format!("pkg:cargo/{name}@")))
    };
    assert!(
        has("tokio") && has("ring") && !has("proptest") && !has("criterion"),
        "{refs:?}"
    );
    for dependency in bill["dependencies"].as_array().unwrap() {
        for used in dependency["dependsOn"].as_array().unwrap() {
            assert!(refs.contains(&used.as_str().unwrap()), "{used}");
        }
    }
    for component in components {
        let is_whole = component["licenses"].is_array() && component["hashes"].is_array();
        assert!(is_whole, "{component}");
    }
}
