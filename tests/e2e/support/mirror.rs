//! A real registry (CNCF distribution) as the mirror.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    eventually,
    http::Http,
    process::{Process, reserve_port},
    push::push,
    tools::Tools,
};

/// What the tests' ImageMirror writes into Pods.
pub(crate) const REGISTRY: &str = "mirror.test";

/// Images that every mirror of the tests holds, by repository and tag.
const IMAGES: [(&str, &str); 4] = [
    ("docker.io/library/nginx", "1.29"),
    ("docker.io/library/busybox", "1.37"),
    ("docker.io/library/redis", "8"),
    ("ghcr.io/acme/models/small", "v1"),
];

/// A registry that holds a few images.
#[derive(Debug)]
pub(crate) struct Mirror {
    process: Option<Process>,
    name: String,
    program: PathBuf,
    folder: PathBuf,
    pub(crate) url: String,
    /// The digest of `docker.io/library/nginx:1.29`.
    pub(crate) nginx: String,
}

impl Mirror {
    /// Starts a registry and fills it.
    pub(crate) fn start(tools: &Tools, http: &Http, folder: &Path, name: &str) -> Self {
        let port = reserve_port();
        let mut mirror = Self {
            process: None,
            name: name.to_owned(),
            program: tools.path("registry"),
            folder: folder.to_owned(),
            url: format!("http://127.0.0.1:{port}"),
            nginx: String::new(),
        };
        // JSON is YAML.
        let configuration = serde_json::json!({
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": folder.join(format!("{name}-data"))}},
            "http": {"addr": format!("127.0.0.1:{port}"), "relativeurls": false},
        });
        fs::write(mirror.configuration(), configuration.to_string()).unwrap();
        mirror.bring_back(http);
        let digests = IMAGES.map(|(repository, tag)| push(http, &mirror.url, repository, tag));
        let [nginx, ..] = digests;
        mirror.nginx = nginx;
        mirror
    }

    /// Kills the registry; its port then refuses connections, its data stays.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Starts the registry again on the same port, with the same data.
    pub(crate) fn bring_back(&mut self, http: &Http) {
        let arguments = ["serve".to_owned(), self.configuration().display().to_string()];
        let mut process = Process::start(&self.name, &self.program, &arguments, &self.folder);
        let ping = format!("{}/v2/", self.url);
        eventually("the registry answers", || {
            process.assert_alive();
            http.send(http.client.get(&ping)).ok()
        });
        self.process = Some(process);
    }

    /// How many requests with this text the access log has.
    pub(crate) fn requests(&self, text: &str) -> usize {
        let log = fs::read_to_string(self.folder.join(format!("{}.log", self.name))).unwrap_or_default();
        log.lines()
            .filter(|line| line.contains(text) && !line.contains("\"PUT "))
            .count()
    }

    fn configuration(&self) -> PathBuf {
        self.folder.join(format!("{}.json", self.name))
    }
}
