//! The programs under test, each a process of its own, and what the kernel tells of them.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// The kernel's clock ticks a second, in which `/proc` tells CPU time: 100 on every Linux of note.
const TICKS: u64 = 100;

/// A running program, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
    log: PathBuf,
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
        Ok(Self {
            child,
            output,
            log: log.to_owned(),
        })
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
        match address.and_then(|address| address.parse().ok()) {
            Some(address) => Ok(address),
            None => bail!(
                "no address of {name} in {line:?}: {}",
                fs::read_to_string(&self.log)?
            ),
        }
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

/// Returns the process that was started with this argument, which no other has.
pub fn with_argument(argument: &str) -> Result<u32> {
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        let process = folder.file_name().and_then(|name| name.to_str()?.parse().ok());
        let (Some(process), Ok(line)) = (process, fs::read(folder.join("cmdline"))) else {
            continue;
        };
        if line
            .split(|byte| *byte == 0)
            .any(|word| word == argument.as_bytes())
        {
            return Ok(process);
        }
    }
    bail!("no process was started with {argument}")
}

pub const CERTIFICATE: &str = "tls.crt";
pub const KEY: &str = "tls.key";
