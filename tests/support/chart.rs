//! Kagami's chart, as helm renders it.

use std::{fs, path::PathBuf, process::Output};

use serde_json::{Value, json};

use super::cluster::Cluster;

/// The chart's folder.
pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/chart");

/// The chart of one release with certain values.
#[derive(Debug)]
pub(crate) struct Chart<'a> {
    cluster: &'a Cluster,
    release: String,
    namespace: String,
    values: PathBuf,
}

impl<'a> Chart<'a> {
    /// Prepares a release; `values` are YAML. No two of a run may have the same name.
    pub(crate) fn new(cluster: &'a Cluster, release: &str, namespace: &str, values: &str) -> Self {
        let file = cluster.folder().join(format!("values-{release}.yaml"));
        fs::write(&file, values).unwrap();
        Self {
            cluster,
            release: release.to_owned(),
            namespace: namespace.to_owned(),
            values: file,
        }
    }

    /// Runs a command of helm's that takes a release and a chart: `template`, `install`, `upgrade`.
    pub(crate) fn helm(&self, command: &str, options: &[&str]) -> Output {
        let values = self.values.to_str().unwrap();
        let common = [
            command,
            &self.release,
            CHART,
            "--namespace",
            &self.namespace,
            "--values",
            values,
        ];
        self.cluster.helm(&[&common, options].concat())
    }

    /// Runs `helm lint`; its warnings count as errors.
    pub(crate) fn lint(&self) -> Output {
        let values = self.values.to_str().unwrap();
        self.cluster
            .helm(&["lint", CHART, "--strict", "--values", values])
    }

    /// All manifests, as one text.
    pub(crate) fn manifests(&self) -> String {
        stdout(&self.helm("template", &[]))
    }

    /// The manifests of one kind.
    pub(crate) fn of_kind(&self, kind: &str) -> Vec<Value> {
        let mut documents = kagami::state::file::decode_documents(&self.manifests()).unwrap();
        documents.retain(|document| document["kind"] == kind);
        assert!(!documents.is_empty(), "no {kind} in {}", self.release);
        documents
    }

    /// Applies the manifests of these kinds only.
    pub(crate) fn apply(&self, kinds: &[&str]) {
        let items: Vec<_> = kinds.iter().flat_map(|kind| self.of_kind(kind)).collect();
        let file = self.values.with_extension("json");
        fs::write(
            &file,
            json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string(),
        )
        .unwrap();
        apply(self.cluster, &[file.to_str().unwrap()]);
    }
}

/// Applies files or folders, server-side, whoever wrote their objects before: tests share definitions.
#[track_caller]
pub(crate) fn apply(cluster: &Cluster, files: &[&str]) {
    let files = files.iter().flat_map(|file| ["--filename", *file]);
    let apply = ["apply", "--server-side", "--force-conflicts"];
    let arguments: Vec<_> = apply.into_iter().chain(files).collect();
    stdout(&cluster.kubectl(&arguments));
}

/// What a program printed, if it succeeded.
#[track_caller]
pub(crate) fn stdout(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}
