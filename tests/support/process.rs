//! Programs started by the tests. None outlives them, not even when the test binary itself is killed.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, SendError},
    thread,
    time::Duration,
};

use super::{PATIENCE, eventually};

/// A running program; dropping it kills it and waits for its end.
///
/// Start it on a thread that lives as long as the program should: the kernel kills it when that *thread* ends.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// What a program prints before it sets to work.
#[derive(Debug)]
pub(crate) struct Output {
    lines: mpsc::Receiver<String>,
    name: String,
    log: PathBuf,
}

impl Output {
    /// Waits for the next line.
    pub(crate) fn line(&self) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        line.unwrap_or_else(|_| {
            panic!(
                "{} did not say what it was to say; its log ends:\n{}",
                self.name,
                tail(&self.log)
            )
        })
    }

    /// All that it prints from here on, until it ends.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        self.lines.iter()
    }
}

impl Process {
    /// Starts a command, its output going to `<folder>/<name>.log`. Of the caller's environment it gets nothing: no
    /// proxy, no credentials.
    pub(crate) fn start(name: &str, command: &Command, folder: &Path) -> Self {
        Self::spawn(name, command, folder, Stdio::from).0
    }

    /// The same with its standard output read here, as long as somebody does; later lines go to the log too.
    pub(crate) fn start_and_read(name: &str, command: &Command, folder: &Path) -> (Self, Output) {
        let (mut started, mut rest) = Self::spawn(name, command, folder, |_| Stdio::piped());
        let output = BufReader::new(started.child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // The program must never meet a full or a closed pipe.
            for line in output.lines().map_while(Result::ok) {
                if let Err(SendError(line)) = sender.send(line) {
                    drop(writeln!(rest, "{line}"));
                }
            }
        });
        let (name, log) = (name.to_owned(), started.log.clone());
        (started, Output { lines, name, log })
    }

    fn spawn(name: &str, command: &Command, folder: &Path, output: fn(File) -> Stdio) -> (Self, File) {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let environment = command.get_envs();
        // The kernel kills it when the thread that starts it ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            // A registry would call a collector of traces every few seconds.
            .env("OTEL_TRACES_EXPORTER", "none")
            .envs(environment.filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::null())
            .stdout(output(file.try_clone().unwrap()))
            .stderr(file.try_clone().unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let name = name.to_owned();
        (Self { name, child, log }, file)
    }

    /// Fails if the program has ended by itself.
    #[track_caller]
    pub(crate) fn assert_alive(&mut self) {
        if let Some(status) = self.ended() {
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
        // Whichever thread takes the signal stops the others, once it has its turn on a busy machine.
        let tasks = format!("/proc/{}/task", self.id());
        eventually("all threads have stopped", || {
            let all = fs::read_dir(&tasks).unwrap().all(|task| {
                let status = fs::read_to_string(task.unwrap().path().join("status"));
                // One that has ended meanwhile runs no more either.
                status.map_or(true, |status| status.contains("\nState:\tT"))
            });
            all.then_some(())
        });
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

    /// Sends the program a signal.
    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([format!("-{signal}"), self.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success(), "cannot send {signal} to {}", self.name);
    }

    /// How the program ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// What the program said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last 30 lines of that.
    pub(crate) fn log_tail(&self) -> String {
        tail(&self.log)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// A line of `/proc/PID/status` that is in kB, in MiB.
    pub(crate) fn memory(&self, field: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.strip_suffix(" kB"));
        value.unwrap().trim().parse::<f64>().unwrap() / 1024.0
    }

    /// How many descriptors the program has open.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap().count()
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

/// The time that a process has run on a CPU.
pub(crate) fn cpu_time(process: u32) -> Duration {
    // 100 on every Linux of note.
    const TICKS_PER_SECOND: u32 = 100;
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The name before may hold anything but ends in the last bracket (proc(5)).
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let times = fields.split(' ').skip(11).take(2);
    let ticks: u32 = times.map(|field| field.parse::<u32>().unwrap()).sum();
    Duration::from_secs(1) * ticks / TICKS_PER_SECOND
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
