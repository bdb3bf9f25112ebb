//! Images that run: a shell, and the program under test.

use std::{
    collections::BTreeSet,
    env::consts,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use kagami::domain::answer::MediaType;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{machine, node};
use crate::shared::images::{Image, of_layer};

/// What a shell does that nobody needs to end.
pub(crate) const FOREVER: &str = "sleep infinity";

/// An image of busybox that runs `command` in its shell. Another text in `/etc/message` makes another digest.
pub(crate) fn shell(message: &str, command: &str) -> Image {
    large_shell(message, command, 0)
}

/// The same with so many bytes more in its only layer.
pub(crate) fn large_shell(message: &str, command: &str, ballast: usize) -> Image {
    let root = folder();
    fs::write(root.path().join("ballast"), vec![0; ballast]).unwrap();
    put_program(root.path(), &machine::find("busybox").unwrap(), "bin/busybox");
    for applet in [
        "cat", "echo", "httpd", "ls", "nc", "nslookup", "sh", "sleep", "true", "wget",
    ] {
        symlink("busybox", root.path().join("bin").join(applet)).unwrap();
    }
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/message"), message).unwrap();
    let config = json!({"Env": ["PATH=/bin"], "Cmd": ["/bin/sh", "-c", command]});
    image(root.path(), &config)
}

/// An image for machines that are not this one. Nobody runs it.
pub(crate) fn of_another_architecture() -> Image {
    of_layer(
        b"for others".to_vec(),
        &json!({"architecture": "s390x", "os": "linux"}),
    )
}

/// An image in a folder, in the layout of OCI.
#[derive(Debug)]
pub(crate) struct Layout {
    folder: TempDir,
}

/// The image of the program under test, as `scripts/image` makes it for users.
pub(crate) fn kagami() -> Layout {
    let folder = folder();
    let program = folder.path().join("kagami");
    fs::copy(env!("CARGO_BIN_EXE_kagami"), &program).unwrap();
    strip(&program);
    let archive = folder.path().join("image.tar");
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/image"))
        .arg("--output")
        .args([&archive, &program])
        .env_clear()
        .env("PATH", machine::SEARCH_PATH)
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let layout = folder.path().join("layout");
    fs::create_dir(&layout).unwrap();
    node::run(
        "tar",
        &[
            "--extract",
            "--file",
            text(&archive),
            "--directory",
            text(&layout),
        ],
    );
    Layout { folder }
}

impl Layout {
    /// Returns the image, byte for byte.
    pub(crate) fn image(&self) -> Image {
        let layout = self.folder.path().join("layout");
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let blob = |digest: &Value| {
            let digest = digest.as_str().unwrap().replace(':', "/");
            fs::read(layout.join("blobs").join(digest)).unwrap()
        };
        let described = &index["manifests"][0];
        assert_eq!(described["mediaType"], MediaType::OciManifest.as_str());
        let bytes = blob(&described["digest"]);
        let manifest: Value = serde_json::from_slice(&bytes).unwrap();
        let parts = [&manifest["config"]]
            .into_iter()
            .chain(manifest["layers"].as_array().unwrap());
        Image {
            media_type: MediaType::OciManifest,
            digest: described["digest"].as_str().unwrap().parse().unwrap(),
            blobs: parts.map(|part| blob(&part["digest"])).collect(),
            manifest: bytes,
            children: Vec::new(),
        }
    }
}

/// An image of one program, its entrypoint.
pub(crate) fn program(name: &str, file: &Path) -> Image {
    let root = folder();
    put_program(root.path(), file, name);
    strip(&root.path().join(name));
    let config = json!({"User": "65532", "Entrypoint": [format!("/{name}")], "WorkingDir": "/"});
    image(root.path(), &config)
}

/// Leaves out what a debugger needs, which is most of a file. Where `strip` is missing the image is larger.
fn strip(program: &Path) {
    drop(
        Command::new("strip")
            .arg(program)
            .env("PATH", machine::SEARCH_PATH)
            .output(),
    );
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The files that the loader would open for a program, itself included; none for a static program.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let output = Command::new(machine::find("ldd").unwrap())
        .arg(program)
        .output()
        .unwrap();
    // `name => /path (address)`, `/path (address)`, or without a path for what the kernel brings.
    String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// An empty folder, in the private machine's memory.
fn folder() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Copies a program, and the libraries that it needs to where it looks for them.
fn put_program(root: &Path, file: &Path, name: &str) {
    put(root, file, name);
    for library in libraries(file) {
        let inside = library.strip_prefix("/").unwrap();
        put(root, &library, inside.to_str().unwrap());
    }
}

/// Copies a file, following links.
fn put(root: &Path, file: &Path, name: &str) {
    let target = root.join(name);
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::copy(file, &target).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
}

/// An image of a folder; the same content gives the same digest.
fn image(root: &Path, config: &Value) -> Image {
    let archive = Command::new(machine::find("tar").unwrap())
        .args([
            "--create",
            "--format=ustar",
            "--sort=name",
            "--mtime=@0",
            "--mode=u=rwX,go=rX",
        ])
        .args(["--owner=0", "--group=0", "--numeric-owner", "--directory"])
        .arg(root)
        .arg(".")
        .output()
        .unwrap();
    assert!(archive.status.success(), "{archive:?}");
    of_layer(
        archive.stdout,
        &json!({"architecture": architecture(), "os": "linux", "config": config}),
    )
}

/// This machine's architecture, as images call it.
fn architecture() -> &'static str {
    match consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
