//! Which machine a name means: the one that it means to nodes, whatever search domains a Pod has.
//!
//! On a machine of its own inside this one (namespaces of network and mounts), whose resolver asks a name server of
//! the test's. Where such a machine cannot be made the test is skipped and says so; with `CI=true` that is a failure.

use std::{
    env, fs,
    net::Ipv4Addr,
    path::Path,
    process::{Command, Output},
};

use kagami::domain::answer::{Failure, Particulars, Unreachable};

use super::client;
use crate::{
    shared::{dns::Names, runner::skipped},
    support::{
        faulty::{Behaviour, Faulty, Reply},
        soon,
    },
};

/// A folder with the files that the machine has instead of its own.
const INSIDE: &str = "KAGAMI_TEST_MACHINE";

const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);

/// Nobody listens there: whoever is sent here is refused.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);

/// As a cluster gives them to Pods, with the node's own domain.
const RESOLV_CONF: &str = "\
nameserver 127.0.0.53
search kagami-system.svc.cluster.local svc.cluster.local cluster.local lan.example
options ndots:5 timeout:1 attempts:1
";

const HOSTS: &str = "127.0.0.1 localhost\n127.0.0.1 alias.example.com\n";

/// Runs the command line that follows with these files, on a machine with a loopback device and nothing else.
const ENTER: &str = "\
set -e
ip link set lo up
for file in resolv.conf hosts; do mount --bind \"$KAGAMI_TEST_MACHINE/$file\" \"$(realpath \"/etc/$file\")\"; done
exec \"$@\"
";

fn enter(folder: &Path, program: &str, arguments: &[&str]) -> Output {
    let machine = [
        "--map-root-user",
        "--mount",
        "--net",
        "bash",
        "-c",
        ENTER,
        "bash",
        program,
    ];
    Command::new("unshare")
        .args(machine)
        .args(arguments)
        .env(INSIDE, folder)
        .output()
        .unwrap()
}

#[test]
fn a_name_means_what_it_means_to_nodes() {
    if env::var_os(INSIDE).is_some() {
        return tokio::runtime::Runtime::new().unwrap().block_on(inside());
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("resolv.conf"), RESOLV_CONF).unwrap();
    fs::write(folder.path().join("hosts"), HOSTS).unwrap();
    let tried = enter(folder.path(), "true", &[]);
    if !tried.status.success() {
        let reason = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
        assert!(!skipped("with a name server", &reason), "{reason}");
        return;
    }
    let this = env::current_exe().unwrap();
    let name = "registry::names::a_name_means_what_it_means_to_nodes";
    let output = enter(folder.path(), this.to_str().unwrap(), &["--exact", name]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn inside() {
    let names = Names::serve(NAME_SERVER);
    let registry = Faulty::start(Behaviour::always(Reply::json(200, &serde_json::json!({})))).await;
    let here = Ipv4Addr::LOCALHOST;
    names.add("*.lan.example", ELSEWHERE);
    names.add("mirror.example.com", here);
    names.add("alias.example.com", ELSEWHERE);
    names.add("mirror.kagami.svc.cluster.local", here);
    names.add("mirror.kagami-system.svc.cluster.local", here);
    names.fail("failing.example.com");
    // No name server for what is outside of the cluster.
    names.fail("*.svc");

    let refused = Err(Failure::Unreachable(Unreachable::Refused, Particulars::default()));
    let unknown = Err(Failure::Unreachable(Unreachable::Dns, Particulars::default()));
    let expected = [
        ("mirror.example.com", Ok(())),
        ("mirror.example.com.", Ok(())),
        // What the system asks before any name server goes on coming first.
        ("alias.example.com", Ok(())),
        ("localhost", Ok(())),
        // Through the search domains, since there is no such name as it stands.
        ("mirror.kagami", Ok(())),
        ("mirror.kagami.svc", Ok(())),
        ("mirror", Ok(())),
        ("gone.example.com", refused),
        // Nobody knows yet whether there is one.
        ("failing.example.com", unknown.clone()),
        ("gone.example.com.", unknown),
    ];
    let port = registry.address().port();
    let mut seen = Vec::new();
    for (name, _) in &expected {
        let client = client(&format!("http://{name}:{port}"));
        seen.push((*name, client.ping(soon()).await));
    }
    assert_eq!(seen, expected);
    // The dot that keeps search domains out is nobody else's business.
    let hosts = registry
        .requests()
        .into_iter()
        .map(|request| request.header("host").unwrap().to_owned());
    let hosts: Vec<_> = hosts.collect();
    assert_eq!(
        hosts[0],
        format!("mirror.example.com:{}", registry.address().port())
    );
}
