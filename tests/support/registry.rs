//! A real registry as a program: configured by its caller, it dies and comes back with its data.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::{eventually, process::Process};

/// Who may read and write a registry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Login {
    pub(crate) user: &'static str,
    pub(crate) password: &'static str,
    /// bcrypt of the password, the one form that distribution takes.
    pub(crate) hash: &'static str,
}

pub(crate) const ALICE: Login = Login {
    user: "alice",
    password: "wonderland",
    hash: "$2a$04$Iv6Kee0uXunveEKZjy1Fd.G8NY5wlkqsoWQCxt93klmz46JAof6KS",
};

pub(crate) const BOB: Login = Login {
    user: "bob",
    password: "looking-glass",
    hash: "$2a$04$4EvHpwDbAZY805dhR4MyeebMyOUqjOyG7cB6R3mxYhQpuYWPeOi5S",
};

impl Login {
    /// The value of `Authorization`.
    pub(crate) fn basic(self) -> String {
        format!(
            "Basic {}",
            BASE64.encode(format!("{}:{}", self.user, self.password))
        )
    }
}

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

    /// Returns its process, if it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Starts the registry again on the same port, with the same data.
    pub(crate) fn bring_back(&mut self) {
        let mut command = Command::new(&self.program);
        command.arg("serve").arg(self.file("json"));
        let mut process = Process::start(&self.name, &command, &self.folder);
        eventually("the registry listens", || {
            process.assert_alive();
            TcpStream::connect(self.address).ok()
        });
        self.process = Some(process);
    }

    /// Returns what its configuration is to say so that it lets in nobody else.
    pub(crate) fn htpasswd(&self, login: Login) -> Value {
        let file = self.file("htpasswd");
        fs::write(&file, format!("{}:{}\n", login.user, login.hash)).unwrap();
        json!({"htpasswd": {"realm": "tests", "path": file}})
    }

    /// What the registry said, its access log included.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// One of its files.
    pub(crate) fn file(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.name))
    }
}
