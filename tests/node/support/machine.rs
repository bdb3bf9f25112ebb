//! The private machine that the ring runs on: own network, mounts and processes. Nothing leaves it, and nothing
//! of it outlives the test binary, however that ends.
//!
//! The test binary starts itself once more inside. Linux ends every process of a process namespace with its
//! first one, and with the last of them go mounts, memory file systems and network. Only cgroups stay; a shell
//! that waits for the end of the outer test binary removes them.

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
};

/// Set, to the cgroup's name, for the test binary inside.
const INSIDE: &str = "KAGAMI_NODE_CGROUP";

/// Programs of the system that the ring needs, with the Debian package of each.
const PROGRAMS: [(&str, &str); 7] = [
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("runc", "runc"),
    ("busybox", "busybox-static"),
];

/// Where Debian has them; root's search path may lack some.
pub(crate) const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Waits for the end of its standard input, that is of its parent, and removes the cgroup `$1` from every
/// hierarchy. Processes may take a moment to end.
const CLEAN_UP: &str = r#"
cat >/dev/null
for attempt in $(seq 100); do
  find /sys/fs/cgroup -depth -type d -path "*/$1*" -exec rmdir {} + 2>/dev/null
  [ -n "$(find /sys/fs/cgroup -maxdepth 2 -name "$1" 2>/dev/null)" ] || exit 0
  sleep 0.1
done
exit 1
"#;

/// The name of this run's cgroup, if this process runs inside.
pub(crate) fn cgroup() -> Option<String> {
    env::var(INSIDE).ok()
}

/// Why there can be no private machine here, if so.
pub(crate) fn check() -> Result<(), String> {
    if fs::metadata("/proc/self").map_or(true, |process| process.uid() != 0) {
        return Err("it needs root, on Linux".to_owned());
    }
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(program, package)| format!("{program} (Debian: {package})"))
        .collect();
    if !missing.is_empty() {
        return Err(format!("programs are missing: {}", missing.join(", ")));
    }
    let attempt = unshare().arg("true").output();
    let attempt = attempt.map_err(|error| format!("cannot run unshare: {error}"))?;
    if !attempt.status.success() {
        let reason = String::from_utf8_lossy(&attempt.stderr).trim().to_owned();
        return Err(format!("this machine allows no namespaces of its own: {reason}"));
    }
    let cgroups = Path::new("/sys/fs/cgroup");
    // Version 2 has one hierarchy, version 1 one for each resource.
    let version_2 = cgroups.join("cgroup.controllers").exists();
    let hierarchy = if version_2 {
        cgroups.to_owned()
    } else {
        cgroups.join("memory")
    };
    let attempt = hierarchy.join(format!("kagami-node-{}", std::process::id()));
    fs::create_dir(&attempt)
        .and_then(|()| fs::remove_dir(&attempt))
        .map_err(|error| {
            format!(
                "this machine allows no cgroups of its own: {}: {error}",
                attempt.display()
            )
        })
}

/// Runs this test binary again, with the same arguments, on a machine of its own.
pub(crate) fn enter() -> ExitCode {
    let cgroup = format!("kagami-node-{}", std::process::id());
    let mut janitor = janitor(&cgroup);
    let status = unshare()
        .arg("bash")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/enter.sh"))
        .args([env!("CARGO_TARGET_TMPDIR"), &cgroup])
        .arg(env::current_exe().unwrap())
        .args(env::args_os().skip(1))
        .env(INSIDE, &cgroup)
        .status()
        .unwrap();
    drop(janitor.stdin.take());
    let clean = janitor.wait().unwrap().success();
    if !clean {
        eprintln!("cgroups called {cgroup} are left in /sys/fs/cgroup");
    }
    if status.success() && clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The path of a program of the system.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    SEARCH_PATH
        .split(':')
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file())
}

/// `unshare` for a machine that ends with this thread.
fn unshare() -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "--net",
            "--mount",
            "--pid",
        ])
        .args(["--fork", "--kill-child=KILL", "--mount-proc", "--"])
        .env("PATH", SEARCH_PATH);
    command
}

/// In a session of its own, so that an interrupt from the terminal does not reach it.
fn janitor(cgroup: &str) -> Child {
    Command::new("setsid")
        .args(["sh", "-c", CLEAN_UP, "sh", cgroup])
        .env("PATH", SEARCH_PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
