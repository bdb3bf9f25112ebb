//! One-shot commands as a person runs them, with a configuration in a file.

use std::{
    fs,
    process::{Command, Stdio},
};

use kagami::domain::answer::MediaType;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::{
    faulty::{Action, Reply, Request},
    images::single,
    kagami::{mirror, text},
};

/// What a registry answers that has every tag of every repository, but of those with `missing` in their name.
pub fn everything(request: &Request) -> Action {
    if request.target == "/v2/" {
        return Reply::json(200, &json!({})).into();
    }
    if request.target.contains("missing") {
        return Reply::error(404, "MANIFEST_UNKNOWN").into();
    }
    let image = single(MediaType::OciManifest, "any");
    Reply::new(200)
        .content_type(image.media_type.as_str())
        .header("Docker-Content-Digest", &image.digest.to_string())
        .body(image.manifest)
        .into()
}

/// What a command said.
#[derive(Debug)]
pub struct Told {
    pub code: i32,
    pub out: String,
    pub complaints: String,
}

/// Runs a command with one mirror of Docker Hub at `endpoint`, in a folder with a file `input`.
pub async fn run(endpoint: &str, arguments: &[&str], input: &[u8]) -> Told {
    let document = mirror(endpoint, &json!({"health": null}));
    run_on_machine("", &document, arguments, input).await
}

/// Runs a command with this mirror on a machine whose system trusts these authorities alone.
pub async fn run_on_machine(authorities: &str, mirror: &Value, arguments: &[&str], input: &[u8]) -> Told {
    told(authorities, std::slice::from_ref(mirror), arguments, input).await
}

/// Runs a command with these documents.
pub async fn run_with(documents: &[Value], arguments: &[&str]) -> Told {
    told("", documents, arguments, b"").await
}

async fn told(authorities: &str, documents: &[Value], arguments: &[&str], input: &[u8]) -> Told {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("mirrors.yaml"), text(documents)).unwrap();
    fs::write(home.path().join("input"), input).unwrap();
    let roots = home.path().join("roots.pem");
    fs::write(&roots, authorities).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kagami"));
    command
        .args(arguments)
        .args(["--config", "mirrors.yaml"])
        .current_dir(home.path())
        .env_clear()
        .env("HOME", home.path())
        .stdin(Stdio::null());
    if !authorities.is_empty() {
        command.env("SSL_CERT_FILE", roots);
    }
    let output = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    Told {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        complaints: String::from_utf8(output.stderr).unwrap(),
    }
}
