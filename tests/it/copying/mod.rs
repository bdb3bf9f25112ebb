//! Copies: between real registries, and with registries and sources that fail in every way known.

mod real;

use std::{
    fs,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    shared::mirror::image_mirror,
    support::{commands::Told, kagami::text},
};

/// Returns where a registry is, as images name it.
fn host(url: &str) -> &str {
    url.split_once("://").unwrap().1
}

/// Runs `kagami copy` into a mirror of `from` at `to`, on a machine with this Docker configuration.
async fn copy(from: &str, to: &str, logins: &Value, arguments: &[&str]) -> Told {
    let mirror = image_mirror("main", "mirror.test", &[host(from)], to, &json!({}));
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("mirrors.yaml"), text(&[mirror])).unwrap();
    fs::create_dir(home.path().join(".docker")).unwrap();
    fs::write(home.path().join(".docker/config.json"), logins.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kagami"));
    command
        .arg("copy")
        .args(arguments)
        .args(["--to", "main", "--config", "mirrors.yaml"])
        .current_dir(home.path())
        .env_clear()
        .env("HOME", home.path())
        .stdin(Stdio::null());
    let output = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    Told {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        complaints: String::from_utf8(output.stderr).unwrap(),
    }
}
