//! Very many Pods that are stuck at once, as where a registry is away: they are objects of a real API server whose
//! statuses the bench writes in kubelets' place. A Pod is turned just after it failed alone, so they fail again and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead as _, BufReader},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use kagami::clock;
use serde_json::{Value, json};

use super::{
    bench::Bench,
    cluster::{
        objects::{Write, write_all},
        place::{Place, lasting},
    },
    e2e::{cluster::Cluster, process::cpu_time, tools::Tools},
    payload,
    registry::Registry,
    report::Bars,
    roles::{Companion, MIRROR, REGISTRY},
};

/// Namespaces that they are in. Each has owners of which nothing serves, and one of which a Pod does.
const NAMESPACES: usize = 20;

/// Owners of a namespace of which nothing serves.
const ALONE: usize = 5;

/// The companions, and how many Pods each turns in a second: the first so many that it has an end, the second, which
/// goes on after the first was killed, as many as by default.
const COMPANIONS: [(&str, u32); 2] = [("companion-a", 50), ("companion-b", 10)];

/// How many Pods are left to the second one, at most: a minute.
const REST: usize = 600;

/// How many times as many Pods fail in a second as are turned. Of so many that wait for five minutes it would be three
/// times as many as ten a second.
const FAIL: usize = 2;

/// What comes at once in the beginning, and is left out of the rate.
const BEGINNING: Duration = Duration::from_secs(2);

/// How long a companion may take to lead and to read all Pods.
const LEADS: Duration = Duration::from_mins(2);

/// A patch of a Pod that the API server accepted.
#[derive(Debug)]
struct Patch {
    user: String,
    namespace: String,
    pod: String,
    /// Seconds since some time.
    at: f64,
}

impl Bench {
    /// Memory, CPU time, rate and order of the rescue.
    pub fn rescue(&self, tools: &Tools, bars: &mut Bars) -> Result<()> {
        let count = self.plan.scale.stuck;
        let rest = REST.min(count / 5);
        let [(_, fast), (_, slow)] = COMPANIONS;
        println!(
            "\n{count} Pods in {NAMESPACES} namespaces that are stuck at once. A companion turns {fast} a second, and is \
             killed\nonce {rest} are left; another one turns these, {slow} a second. {FAIL} times as many fail in a second"
        );
        let registry = Registry::start()?;
        let cluster = Cluster::start(tools.clone());
        // From a mirror that is in use and gives the image a few Pods alone would go back at first.
        let mut settings = lasting();
        settings["mode"] = "Off".into();
        let place = Place::new(&cluster, &self.own, registry.address, &settings)?;
        let map = json!({"metadata": {"name": "kagami-mirrors"}});
        cluster.create(&place.own.path("configmaps"), &map).success();
        let _namespaces: Vec<_> = (0..NAMESPACES)
            .map(|number| cluster.namespace_named(&namespace(number), Some("enforce")))
            .collect();
        let took = create(&cluster, count)?;
        println!("  written after {:.0} s", took.as_secs_f64());

        let mut left = count;
        let mut peak = 0.0_f64;
        for ((user, rate), until) in COMPANIONS.into_iter().zip([rest, 0]) {
            let part = self.turn(&place, user, rate, left..until)?;
            peak = peak.max(part.peak);
            let patches = patches(&cluster)?;
            let times = patches.iter().filter(|patch| patch.user == user);
            let ratio = per_second(times.map(|patch| patch.at)) / f64::from(rate);
            left = count - patches.len().min(count);
            println!(
                "  at {rate}/s: {ratio:.3} of that, {:.1} % of a core; {left} are left",
                part.cpu
            );
            bars.at_least(
                format!("{count} stuck Pods: patches against {rate} a second"),
                ratio,
                0.95,
                "×",
            );
            if rate == slow {
                let name = format!("{count} stuck Pods at {rate} a second: CPU, of a core");
                bars.at_most(name, part.cpu, 10.0, "%");
            }
        }
        println!("  memory at its peak {peak:.1} MiB");
        let patches = patches(&cluster)?;
        let pods: BTreeSet<_> = patches
            .iter()
            .map(|patch| (&patch.namespace, &patch.pod))
            .collect();
        let figure = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        let name = format!("{count} stuck Pods: the companion's peak memory");
        bars.at_most(name, peak, 256.0, "MiB");
        let still = figure(stuck(&cluster)?.len());
        bars.at_most("stuck Pods: not turned", still, 0.0, "");
        let again = figure(patches.len() - pods.len());
        bars.at_most("stuck Pods: patched again", again, 0.0, "");
        let early = figure(out_of_turn(&patches));
        bars.at_most(
            "stuck Pods: turned before an owner that serves nothing",
            early,
            0.0,
            "",
        );
        Ok(())
    }

    /// Lets a companion turn Pods, of which so many are stuck, until so many are left, and kills it.
    fn turn(&self, place: &Place<'_>, user: &str, rate: u32, left: std::ops::Range<usize>) -> Result<Part> {
        let (begins, until) = (left.start, left.end);
        let companion = Companion::start(
            &self.own,
            self.folder.path(),
            &place.kubeconfig(user),
            &place.own.name,
            &["--rescue-per-second", &rate.to_string()],
        );
        let process = &companion.process;
        let wait = |patience: Duration, is_it: &dyn Fn(f64) -> bool| {
            let start = Instant::now();
            loop {
                let stuck = companion.admin.metric("kagami_stuck_pods")?;
                if is_it(stuck) {
                    return anyhow::Ok(());
                }
                ensure!(start.elapsed() < patience, "{stuck} Pods wait for their turn");
                thread::sleep(Duration::from_millis(100));
            }
        };
        // Until it leads and has read them none waits.
        let most = f64::from(u32::try_from(begins)?) * 0.8;
        wait(LEADS, &|stuck| stuck > most)?;
        let (start, cpu) = (Instant::now(), cpu_time(process.id()));
        let needs = Duration::from_secs(1) * u32::try_from(begins - until)? / rate;
        let few = f64::from(u32::try_from(until)?);
        let (count, each_second) = (self.plan.scale.stuck, FAIL * usize::try_from(rate)?);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let kubelets = scope.spawn(|| fail_again(place.cluster, count, each_second, &is_over));
            let waited = wait(2 * needs + LEADS, &|stuck| stuck <= few);
            is_over.store(true, Ordering::Relaxed);
            let failed = kubelets
                .join()
                .map_err(|_| anyhow!("the kubelets' thread panicked"))?;
            waited.and(failed)
        })?;
        let (took, cpu) = (start.elapsed(), cpu_time(process.id()).saturating_sub(cpu));
        // What is under way comes to its end.
        if until == 0 {
            thread::sleep(Duration::from_secs(2));
        }
        Ok(Part {
            cpu: 100.0 * cpu.as_secs_f64() / took.as_secs_f64(),
            peak: process.memory("VmHWM"),
        })
    }
}

/// What one companion took.
#[derive(Debug)]
struct Part {
    /// Percent of a core.
    cpu: f64,
    /// MiB.
    peak: f64,
}

fn namespace(number: usize) -> String {
    format!("team-{number:02}")
}

/// Creates the Pods that are stuck, a Pod in each namespace that serves, and what kubelets say of all of them; returns
/// how long that took.
fn create(cluster: &Cluster, count: usize) -> Result<Duration> {
    let path =
        |number: usize, what: &str| format!("/api/v1/namespaces/{}/{what}", namespace(number % NAMESPACES));
    let all = 0..count + NAMESPACES;
    let mut took = write_all(cluster, all.clone(), move |number| {
        Ok(Write::create(
            path(number, "pods"),
            pod(number, count).to_string(),
        ))
    })?;
    took += write_all(cluster, all, move |number| {
        Ok(Write::merge(
            status_path(number),
            status_of(number, number >= count, WAITS).to_string(),
        ))
    })?;
    Ok(took)
}

fn status_path(number: usize) -> String {
    let namespace = namespace(number % NAMESPACES);
    format!("/api/v1/namespaces/{namespace}/pods/{}/status", name(number))
}

/// Tries again and again what cannot be pulled, in kubelets' place, so many Pods in a second, until that is over. Of each
/// namespace first one Pod of each owner that serves nothing, then one of the owner that serves, then all others.
fn fail_again(cluster: &Cluster, count: usize, each_second: usize, is_over: &AtomicBool) -> Result<()> {
    loop {
        let mut stuck = stuck(cluster)?;
        let class = |number: usize| match number / NAMESPACES {
            0 => 1,
            of_namespace if of_namespace < 2 * ALONE && !owner(number, count).1 => 0,
            _ => 2,
        };
        stuck.sort_by_key(|number| (class(*number), *number));
        for some in stuck.chunks(each_second) {
            let started = Instant::now();
            for state in [WAITS, FAILS] {
                let some = some.to_vec();
                write_all(cluster, 0..some.len(), move |index| {
                    let number = some[index];
                    Ok(Write::merge(
                        status_path(number),
                        status_of(number, false, state).to_string(),
                    ))
                })?;
            }
            thread::sleep(Duration::from_secs(1).saturating_sub(started.elapsed()));
            if is_over.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        if stuck.is_empty() {
            thread::sleep(Duration::from_secs(1));
        }
        if is_over.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}

/// What a status says between two attempts, and just after one.
const WAITS: &str = "ImagePullBackOff";
const FAILS: &str = "ErrImagePull";

fn name(number: usize) -> String {
    format!("payments-{number:06}")
}

fn original(number: usize) -> String {
    format!("docker.io/{}", payload::image(number % 500))
}

fn image(number: usize) -> String {
    format!("{REGISTRY}/{}", original(number))
}

/// Returns the owner of a Pod, and whether it is one of which a Pod serves. The last Pods are those that do.
fn owner(number: usize, count: usize) -> (String, bool) {
    let of_namespace = number / NAMESPACES;
    if number >= count || of_namespace.is_multiple_of(2) {
        ("serves".to_owned(), true)
    } else {
        (format!("alone-{}", of_namespace / 2 % ALONE), false)
    }
}

/// Returns a Pod as Kagami rewrote it.
fn pod(number: usize, count: usize) -> Value {
    let mut pod = payload::pod_with(&namespace(number % NAMESPACES), &name(number), &image(number));
    payload::as_user(&mut pod);
    let (owner, _) = owner(number, count);
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "StatefulSet", "name": owner, "controller": true,
        "uid": format!("{owner}-{}", number % NAMESPACES),
    }]);
    let decisions =
        json!({"containers.app-0": {"outcome": "Rewritten", "reason": "Mirrored", "mirror": MIRROR}});
    pod["metadata"]["annotations"] = json!({
        "original-image.kagami.dev/app-0": original(number),
        "kagami.dev/decisions": decisions.to_string(),
    });
    pod
}

/// Returns what the kubelet of a Pod says of it: that it is ready, or why it waits.
fn status_of(number: usize, is_ready: bool, waits: &str) -> Value {
    let state = if is_ready {
        json!({"running": {"startedAt": clock::now().to_string()}})
    } else {
        let message = format!("Back-off pulling image \"{}\"", image(number));
        json!({"waiting": {"reason": waits, "message": message}})
    };
    let ready = if is_ready { "True" } else { "False" };
    json!({"status": {
        "phase": if is_ready { "Running" } else { "Pending" },
        "conditions": [{"type": "Ready", "status": ready}],
        "containerStatuses": [{
            "name": "app-0", "ready": is_ready, "restartCount": 0, "image": image(number), "imageID": "",
            "state": state,
        }],
    }})
}

/// Returns the companions' patches of Pods that the API server accepted, oldest first.
fn patches(cluster: &Cluster) -> Result<Vec<Patch>> {
    let log = BufReader::new(File::open(cluster.folder().join("audit.log"))?);
    let mut patches = Vec::new();
    for line in log.lines() {
        let line = line?;
        // There is much of everybody else.
        let is_one = |user: &(&str, u32)| line.contains(user.0) && line.contains("\"pods\"");
        if !COMPANIONS.iter().any(is_one) {
            continue;
        }
        let event: Value = serde_json::from_str(&line)?;
        let (object, user) = (&event["objectRef"], event["user"]["username"].as_str());
        let is_patch = event["verb"] == "patch" && object["resource"] == "pods";
        if !is_patch || event["responseStatus"]["code"] != 200 {
            continue;
        }
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        patches.push(Patch {
            user: user.context("no user")?.to_owned(),
            namespace: text(&object["namespace"])?,
            pod: text(&object["name"])?,
            at: seconds(&text(&event["requestReceivedTimestamp"])?)?,
        });
    }
    patches.sort_by(|one, other| one.at.total_cmp(&other.at));
    Ok(patches)
}

/// Returns the numbers of the Pods that name the mirror still, but for those that serve. The audit log does not tell: a
/// request whose sender was killed may be carried out.
fn stuck(cluster: &Cluster) -> Result<Vec<usize>> {
    let mut stuck = Vec::new();
    for number in 0..NAMESPACES {
        let path = format!("/api/v1/namespaces/{}/pods", namespace(number));
        let pods = cluster.get(&path).success();
        let pods = pods["items"].as_array().context("no list")?.iter();
        let is_stuck = |pod: &&Value| {
            let image = pod["spec"]["containers"][0]["image"].as_str();
            pod["status"]["phase"] == "Pending" && image.is_some_and(|image| image.starts_with(REGISTRY))
        };
        for pod in pods.filter(is_stuck) {
            let name = pod["metadata"]["name"].as_str().context("no name")?;
            stuck.push(name.rsplit('-').next().context("no number")?.parse()?);
        }
    }
    Ok(stuck)
}

/// Returns the seconds of a time since its month began, which is enough but for a run over the end of one.
fn seconds(time: &str) -> Result<f64> {
    let (date, clock) = time.split_once('T').context("no time")?;
    let day: f64 = date.rsplit('-').next().context("no day")?.parse()?;
    let mut parts = clock.trim_end_matches('Z').split(':').map(str::parse::<f64>);
    let mut next = || parts.next().context("no time")?.context("no number");
    Ok(((day * 24.0 + next()?) * 60.0 + next()?) * 60.0 + next()?)
}

/// Returns how many came a second, without those in the beginning.
fn per_second(times: impl Iterator<Item = f64>) -> f64 {
    let times: Vec<f64> = times.collect();
    let Some(first) = times.first() else { return 0.0 };
    let steady: Vec<&f64> = times
        .iter()
        .filter(|at| **at - first >= BEGINNING.as_secs_f64())
        .collect();
    match steady.as_slice() {
        [first, .., last] => {
            f64::from(u32::try_from(steady.len() - 1).unwrap_or(u32::MAX)) / (**last - **first)
        }
        _ => 0.0,
    }
}

/// Returns how many Pods were turned, though they have an owner that serves or had a turn, before each owner of their
/// namespace which serves nothing had one.
fn out_of_turn(patches: &[Patch]) -> usize {
    let mut turned: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut early = 0;
    for patch in patches {
        let had = turned.entry(&patch.namespace).or_default();
        if had.len() == ALONE {
            continue;
        }
        let number = patch
            .pod
            .rsplit('-')
            .next()
            .and_then(|number| number.parse().ok());
        // Of the Pods that serve none is stuck.
        let (owner, serves) = owner(number.unwrap_or_default(), usize::MAX);
        if serves || !had.insert(owner) {
            early += 1;
        }
    }
    early
}
