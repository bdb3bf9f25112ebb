//! Programs started by the tests. None outlives them, not even when the test binary itself is killed.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use super::PATIENCE;

/// A running program; dropping it kills it and waits for its end.
///
/// Start it on a thread that lives as long as the program should: the kernel kills it when that *thread* ends.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program`, its output going to `<folder>/<name>.log`.
    pub(crate) fn start(name: &str, program: &Path, arguments: &[String], folder: &Path) -> Self {
        let (log, file) = open_log(name, folder);
        let child = command(program, arguments)
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    /// Starts `program` and returns with it the first `lines` lines of its standard output. Its standard error,
    /// and later lines of its output, go to `<folder>/<name>.log`.
    pub(crate) fn start_and_read(
        name: &str,
        program: &Path,
        arguments: &[String],
        folder: &Path,
        lines: usize,
    ) -> (Self, Vec<String>) {
        let (log, file) = open_log(name, folder);
        let mut rest = file.try_clone().unwrap();
        let mut child = command(program, arguments)
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let started = Self {
            name: name.to_owned(),
            child,
            log,
        };

        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in output.by_ref().lines().map_while(Result::ok).take(lines) {
                if sender.send(line).is_err() {
                    break;
                }
            }
            drop(sender);
            // The program must never meet a full or a closed pipe.
            io::copy(&mut output, &mut rest)
        });
        let first = (0..lines)
            .map(|_| {
                receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| {
                    panic!(
                        "{name} did not print {lines} lines; its log ends:\n{}",
                        started.log_tail()
                    )
                })
            })
            .collect();
        (started, first)
    }

    /// Fails if the program has ended by itself.
    #[track_caller]
    pub(crate) fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!(
                "{} ended with {status}; its log ends:\n{}",
                self.name,
                self.log_tail()
            );
        }
    }

    /// Stops the program where it is, with its connections open; it then answers nobody.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets a stopped program go on.
    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    /// Asks the program to end and waits until it has.
    pub(crate) fn terminate(mut self) {
        self.signal("TERM");
        assert!(self.child.wait().unwrap().success(), "{} failed", self.name);
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([format!("-{signal}"), self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success(), "cannot send {signal} to {}", self.name);
    }

    /// The last 30 lines of what the program said.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, self.log_tail());
        }
        // Both fail only where the program has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A port of 127.0.0.1 that nobody else is given for a minute, for programs that cannot choose one themselves.
///
/// The kernel does not hand out a port with a connection in TIME-WAIT, while a program that asks for this very
/// port (with SO_REUSEADDR, as Go's do) gets it.
pub(crate) fn reserve_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let caller = TcpStream::connect(address).unwrap();
    let (answerer, _) = listener.accept().unwrap();
    // Whoever closes first keeps the TIME-WAIT.
    drop(answerer);
    drop(caller);
    address.port()
}

/// The program with an empty environment (no proxy, no credentials of the caller), to be killed by the kernel
/// when the thread that starts it ends.
fn command(program: &Path, arguments: &[String]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .args(arguments);
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        // A registry would call a collector of traces every few seconds.
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdin(Stdio::null());
    command
}

fn open_log(name: &str, folder: &Path) -> (PathBuf, File) {
    let path = folder.join(format!("{name}.log"));
    let file = File::options().create(true).append(true).open(&path).unwrap();
    (path, file)
}
