//! Commands that a person runs against a cluster.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use super::reader::Reader;

/// Runs a command as a person who may do everything.
pub(crate) fn kagami(reader: &Reader<'_>, arguments: &[&str]) -> Output {
    let folder = reader.cluster().folder();
    let own = ["--kagami-namespace", &reader.namespace.name];
    run(
        &folder.join("admin.kubeconfig"),
        folder,
        &[arguments, &own].concat(),
    )
}

/// The same with any settings.
pub(crate) fn run(kubeconfig: &Path, home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kagami"))
        .args(arguments)
        .env_clear()
        .env("HOME", home)
        .env("KUBECONFIG", kubeconfig)
        // A machine that runs many tests at once is slow.
        .env("KAGAMI_ONCE_BUDGET", "20s")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// It said what is wrong in one line.
#[track_caller]
pub(crate) fn assert_fails(output: &Output, code: i32, expected: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{told}");
    assert_eq!(told.trim_end().lines().count(), 1, "{told}");
    assert!(told.contains(expected), "{told}");
}
