//! A real registry as a program: configured by its caller, it dies and comes back with its data.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{eventually, process::Process};

/// A registry with a folder for its configuration and its log.
#[derive(Debug)]
pub(crate) struct Registry {
    process: Option<Process>,
    name: String,
    program: PathBuf,
    folder: PathBuf,
    /// Where it can be reached from here.
    address: SocketAddr,
}

impl Registry {
    /// Returns a registry that is going to listen at `address`, not started yet.
    pub(crate) fn new(name: &str, program: &Path, folder: &Path, address: SocketAddr) -> Self {
        Self {
            process: None,
            name: name.to_owned(),
            program: program.to_owned(),
            folder: folder.to_owned(),
            address,
        }
    }

    /// Starts it with a configuration and waits until it listens.
    pub(crate) fn start(&mut self, configuration: &Value) {
        // JSON is YAML.
        fs::write(self.file("json"), configuration.to_string()).unwrap();
        self.bring_back();
    }

    /// Kills the registry; its port then refuses connections, its data stays.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Whether it was started and not killed since.
    pub(crate) const fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// Starts the registry again on the same port, with the same data.
    pub(crate) fn bring_back(&mut self) {
        let arguments = ["serve".to_owned(), self.file("json").display().to_string()];
        let mut process = Process::start(&self.name, &self.program, &arguments, &self.folder);
        eventually("the registry listens", || {
            process.assert_alive();
            TcpStream::connect(self.address).ok()
        });
        self.process = Some(process);
    }

    /// What the registry said, its access log included.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.name))
    }
}
