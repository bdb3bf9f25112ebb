//! Packets that are lost: all on the way to a place, which nobody refuses and nobody answers then, or some.

use std::{net::Ipv4Addr, process::Command};

use super::{machine, node};

const DROP: &[&str] = &["--jump", "DROP"];

/// Any address.
const ANY: &str = "0.0.0.0/0";

/// As long as this lives, packets to a port of the machine are lost; its connections stay open.
#[derive(Debug)]
pub(crate) struct BlackHole {
    /// What tells the packets that are lost.
    packets: Vec<String>,
    /// A rule in front, without a target: it counts the attempts to connect, under a name.
    count: Vec<String>,
    name: String,
}

impl BlackHole {
    /// For a port of one address of the machine, or of all.
    pub(crate) fn open(address: Option<Ipv4Addr>, port: u16) -> Self {
        let destination = address.map_or_else(|| ANY.to_owned(), |address| address.to_string());
        Self::from_to(ANY, &destination, port)
    }

    /// For packets of one caller alone.
    pub(crate) fn between(caller: Ipv4Addr, address: Ipv4Addr, port: u16) -> Self {
        Self::from_to(&caller.to_string(), &address.to_string(), port)
    }

    fn from_to(source: &str, destination: &str, port: u16) -> Self {
        let packets = format!("--source {source} --destination {destination} --protocol tcp --dport {port}");
        let name = format!("{source}>{destination}:{port}");
        let count = format!("--syn --match comment --comment {name}");
        let words = |text: String| text.split(' ').map(str::to_owned).collect();
        let hole = Self {
            packets: words(packets),
            count: words(count),
            name,
        };
        hole.change("--insert", DROP);
        hole.change("--insert", &hole.count);
        hole
    }

    /// How many attempts to connect it has swallowed. A caller repeats them, first after a second.
    pub(crate) fn attempts(&self) -> u64 {
        let output = Command::new(machine::find("iptables").unwrap())
            .args(["--wait", "--list", "INPUT", "--verbose", "--exact"])
            .arg("--numeric")
            .output()
            .unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        let comment = format!("/* {} */", self.name);
        let rule = listing.lines().find(|line| line.contains(&comment)).unwrap();
        // The first column is the count of packets.
        rule.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn change(&self, how: &str, rule: &[impl AsRef<str>]) {
        let mut arguments = vec!["--wait", how, "INPUT"];
        arguments.extend(self.packets.iter().map(String::as_str));
        arguments.extend(rule.iter().map(AsRef::as_ref));
        node::run("iptables", &arguments);
    }
}

/// As long as this lives, some packets to and from a port of the machine are lost, each way so many.
#[derive(Debug)]
pub(crate) struct Loss([String; 2]);

impl Loss {
    pub(crate) fn begin(address: Option<Ipv4Addr>, port: u16, share: f64) -> Self {
        let here = address.map_or_else(|| ANY.to_owned(), |address| address.to_string());
        let lost = format!("--match statistic --mode random --probability {share} --jump DROP");
        let rules = [
            format!("INPUT --destination {here} --protocol tcp --dport {port} {lost}"),
            format!("OUTPUT --source {here} --protocol tcp --sport {port} {lost}"),
        ];
        let loss = Self(rules);
        loss.change("--insert");
        loss
    }

    fn change(&self, how: &str) {
        for rule in &self.0 {
            let arguments: Vec<_> = ["--wait", how].into_iter().chain(rule.split(' ')).collect();
            node::run("iptables", &arguments);
        }
    }
}

impl Drop for Loss {
    fn drop(&mut self) {
        self.change("--delete");
    }
}

impl Drop for BlackHole {
    fn drop(&mut self) {
        self.change("--delete", &self.count);
        self.change("--delete", DROP);
    }
}
