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
}
