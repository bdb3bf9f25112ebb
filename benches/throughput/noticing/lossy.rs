//! A mirror whose packets are lost now and then, both ways: in a network of its own, which ends with it.

use std::{
    future::pending,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    super::e2e::process::Process,
    mirrors::{host_of, runtime, shelf_of},
    peers::faulty::Faulty,
};

/// Where Debian has programs of the system; root's search path may lack some.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where packets are lost: those that come and those that go.
const CHAINS: [&str; 2] = ["INPUT", "OUTPUT"];

/// What the bench is called with to be such a mirror.
pub const ROLE: &str = "mirror";

/// A running mirror.
#[derive(Debug)]
pub struct Lossy {
    pub address: SocketAddr,
    /// This end of the pair of devices between its network and the machine's.
    device: String,
    process: Process,
}

impl Lossy {
    /// Starts one of this name that loses so many packets of a hundred.
    pub fn start(folder: &Path, name: &str, percent: u8) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "--"]).arg(std::env::current_exe()?);
        command.args([ROLE, name]);
        // What does not start ends the bench; this only says why it cannot.
        let tried = Command::new("unshare").args(["--net", "--", "true"]).output()?;
        ensure!(tried.status.success(), "no network of its own, which takes root");
        run("iptables", &["--version"])?;
        let (process, output) = Process::start_and_read(name, &command, folder);
        let port = output.line().rsplit_once(':').context("no port")?.1.parse()?;
        // From the range for measurements (RFC 2544); nothing of it leaves the machine.
        let [here, there] = [1, 2].map(|end| Ipv4Addr::new(198, 18, percent, end));
        let id = process.id().to_string();
        let lossy = Self {
            address: SocketAddr::from((there, port)),
            device: format!("kagami{id}"),
            process,
        };
        let device = lossy.device.as_str();
        run(
            "ip",
            &[
                "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", &id,
            ],
        )?;
        run("ip", &["address", "add", &format!("{here}/30"), "dev", device])?;
        run("ip", &["link", "set", device, "up"])?;
        lossy.inside(&["ip", "address", "add", &format!("{there}/30"), "dev", "eth0"])?;
        lossy.inside(&["ip", "link", "set", "eth0", "up"])?;
        let probability = (f64::from(percent) / 100.0).to_string();
        for chain in CHAINS {
            lossy.inside(&[
                "iptables",
                "--append",
                chain,
                "--match",
                "statistic",
                "--mode",
                "random",
                "--probability",
                &probability,
                "--jump",
                "DROP",
            ])?;
        }
        Ok(lossy)
    }

    /// Returns how many packets were lost so far.
    pub fn lost(&self) -> Result<u64> {
        let mut lost = 0;
        for chain in CHAINS {
            let listing = self.inside(&["iptables", "--list", chain, "--verbose", "--exact", "--numeric"])?;
            let mut rules = listing.lines().filter(|line| line.contains("DROP"));
            // The first column is the count of packets.
            let count = rules.find_map(|rule| rule.split_whitespace().next()?.parse::<u64>().ok());
            lost += count.context("no rule that loses packets")?;
        }
        Ok(lost)
    }

    /// Runs a command in its network.
    fn inside(&self, command: &[&str]) -> Result<String> {
        let id = self.process.id().to_string();
        run("nsenter", &[&["--target", &id, "--net", "--"], command].concat())
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        // It goes with the network too, only later. Where it was never there, nothing is left.
        drop(run("ip", &["link", "delete", &self.device]));
    }
}

/// Runs a program and returns what it says.
fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", SEARCH_PATH)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Is a mirror that works, until the process is killed; tells its address on standard output as Kagami does.
pub fn serve(name: &str) -> Result<()> {
    let shelf = shelf_of(&host_of(name))?;
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    runtime()?.block_on(async {
        let peer = Faulty::start_at(everywhere, shelf.behaviour()).await;
        println!("{ROLE} http://{}", peer.address());
        pending().await
    })
}
