//! The programs under test, each a process of its own, and what the kernel tells of them.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// How long a program may take to start, or Kagami to learn what it is shown.
const PATIENCE: Duration = Duration::from_secs(90);

/// The kernel's clock ticks a second, in which `/proc` tells CPU time: 100 on every Linux of note.
const TICKS: u64 = 100;

/// A running program, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts a program whose log goes to a file.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let output = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        Ok(Self { child, output })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Reads the next line of output, which tells where the program listens: `name scheme://address`.
    pub fn address(&mut self, name: &str) -> Result<SocketAddr> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let address = line
            .trim()
            .strip_prefix(name)
            .and_then(|rest| rest.split("://").nth(1));
        address
            .and_then(|address| address.parse().ok())
            .with_context(|| format!("no address of {name} in {line:?}"))
    }

    /// Returns a line of `/proc/PID/status` that is in kB, in MiB.
    pub fn memory(&self, field: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib: f64 = line
            .and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok())
            .context(field.to_owned())?;
        Ok(kib / 1024.0)
    }

    /// Returns the number of open descriptors.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.id()))?.count())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Returns the time that a process has run on a CPU.
pub fn cpu_time(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name before may hold anything but ends in the last bracket (proc(5)).
    let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map_while(|field| field.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_secs(1) * u32::try_from(ticks)? / u32::try_from(TICKS)?)
}

/// `kagami serve`.
#[derive(Debug)]
pub struct Kagami {
    pub process: Process,
    pub admission: SocketAddr,
    admin: SocketAddr,
}

impl Kagami {
    /// Starts Kagami in front of one mirror, with more settings in its spec, and waits until the
    /// mirror is healthy.
    pub fn start(folder: &Path, name: &str, mirror: SocketAddr, settings: &str) -> Result<Self> {
        let configuration = folder.join(format!("{name}.yaml"));
        let settings = settings.replace('\n', "\n  ");
        fs::write(
            &configuration,
            format!(
                "apiVersion: kagami.dev/v1alpha1\nkind: ImageMirror\nmetadata: {{name: {MIRROR}}}\nspec:\n  \
                 registry: mirror.example.com\n  kind: Hosted\n  sources: [{{prefix: docker.io}}]\n  \
                 endpoint: {{url: \"http://{mirror}\"}}\n  {settings}\n"
            ),
        )?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagami"));
        command.arg("serve").arg("--config").arg(configuration);
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        command
            .arg("--tls-cert")
            .arg(folder.join(CERTIFICATE))
            .arg("--tls-key")
            .arg(folder.join(KEY));
        let mut process = Process::start(&mut command, &folder.join(format!("{name}.log")))?;
        let admission = process.address("admission")?;
        let admin = process.address("admin")?;
        let kagami = Self {
            process,
            admission,
            admin,
        };
        kagami.wait("the mirror to be healthy", |mirror| {
            mirror["health"]["state"] == "Healthy"
        })?;
        Ok(kagami)
    }

    /// Waits until what `/status` says of the mirror is as wished.
    pub fn wait(&self, what: &str, wished: impl Fn(&Value) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let status: Value = serde_json::from_str(&self.get("/status")?)?;
            let mirror = mirror_of(&status);
            if wished(mirror) {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("waited in vain for {what}: {mirror}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns what the admin port answers.
    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no head")?;
        Ok(body.to_owned())
    }

    /// Returns the number of images that are known to be on the mirror.
    pub fn present(&self) -> Result<u64> {
        let status: Value = serde_json::from_str(&self.get("/status")?)?;
        mirror_of(&status)["images"]["present"]
            .as_u64()
            .context("no images in the status")
    }
}

const MIRROR: &str = "bench";
pub const CERTIFICATE: &str = "tls.crt";
pub const KEY: &str = "tls.key";

fn mirror_of(status: &Value) -> &Value {
    let mirrors = &status["mirrors"];
    match mirrors.as_array() {
        Some(list) => list.first().unwrap_or(&Value::Null),
        None => &mirrors[MIRROR],
    }
}
