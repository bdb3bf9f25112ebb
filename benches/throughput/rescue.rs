//! Very many Pods that are stuck at once, as where a registry is away: they are objects of a real API server whose
//! statuses the bench writes in kubelets' place. Kubelets pull again and again what fails, ever less often.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    fs::File,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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
    e2e::{
        cluster::{Cluster, User},
        process::cpu_time,
        tools::Tools,
    },
    payload,
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

/// How long kubelet waits after the first failure, and the longest that it does.
const BACK_OFF: Duration = Duration::from_secs(10);
const LONGEST_BACK_OFF: Duration = Duration::from_mins(5);

/// How long after a failure its status tells that kubelet waits: its next round.
const ROUND: Duration = Duration::from_secs(8);

/// What comes at once in the beginning, and is left out of the rate.
const BEGINNING: Duration = Duration::from_secs(2);

/// How long a companion may take to lead and to read all Pods.
const LEADS: Duration = Duration::from_mins(2);

/// A patch of a Pod that a companion sent.
#[derive(Debug)]
struct Patch {
    /// The API server took it: else the Pod was another one by then, as kubelets write too.
    is_accepted: bool,
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
        let [(first, fast), (second, slow)] = COMPANIONS;
        println!(
            "\n{count} Pods in {NAMESPACES} namespaces that are stuck at once on a dead mirror. A companion turns {fast} a \
             second, from\nwhen the brake is taken off, and is killed once {rest} are left; another one turns these, {slow} \
             a second"
        );
        // Nobody listens there any more.
        let dead = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let cluster = Cluster::start(tools.clone());
        let place = Place::new(&cluster, &self.own, dead, &lasting())?;
        let map = json!({"metadata": {"name": "kagami-mirrors"}});
        cluster.create(&place.own.path("configmaps"), &map).success();
        let _namespaces: Vec<_> = (0..NAMESPACES)
            .map(|number| cluster.namespace_named(&namespace(number), Some("enforce")))
            .collect();
        let took = create(&cluster, count)?;
        println!("  written after {:.0} s", took.as_secs_f64());

        let kubelets = Kubelets::default();
        let parts = thread::scope(|scope| {
            let failing = scope.spawn(|| kubelets.run(&cluster, count));
            let parts = self.turn(&place, &kubelets, [count, rest]);
            kubelets.is_over.store(true, Ordering::Relaxed);
            let failed = failing
                .join()
                .map_err(|_| anyhow!("the kubelets' thread panicked"))?;
            failed.and(parts)
        })?;
        let sent = Log::open(&cluster)?.patches()?;
        let patches: Vec<_> = sent.iter().filter(|patch| patch.is_accepted).collect();
        let figure = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        let mut peak = 0.0_f64;
        for ((user, rate), part) in COMPANIONS.into_iter().zip(parts) {
            peak = peak.max(part.peak);
            let turned = patches.iter().filter(|patch| patch.user == user).count();
            let allowed = figure(turned) / f64::from(rate);
            println!(
                "  {turned} at {rate}/s in {:.0} s, of which the rate takes {allowed:.0}; {:.1} % of a core",
                part.took.as_secs_f64(),
                part.cpu
            );
        }
        println!("  memory at its peak {peak:.1} MiB");
        let times = patches.iter().filter(|patch| patch.user == first);
        let ratio = per_second(times.map(|patch| patch.at)) / f64::from(fast);
        let name = format!("{count} stuck Pods: patches against {fast} a second");
        bars.at_least(name, ratio, 0.95, "×");
        let [_, last] = parts;
        let turned = patches.iter().filter(|patch| patch.user == second).count();
        let over = last.took.as_secs_f64() - figure(turned) / f64::from(slow);
        // Of what it finds it knows nothing until kubelets try again.
        let name = format!("a new leader's {rest} stuck Pods: beyond what the rate takes");
        bars.at_most(name, over, (LONGEST_BACK_OFF + ROUND).as_secs_f64(), "s");
        let name = format!("{count} stuck Pods, then {slow} a second: CPU, of a core");
        bars.at_most(name, last.cpu, 10.0, "%");
        let name = format!("{count} stuck Pods: the companion's peak memory");
        bars.at_most(name, peak, 256.0, "MiB");
        let still = figure(stuck(&cluster)?);
        bars.at_most("stuck Pods: not turned", still, 0.0, "");
        let pods: BTreeSet<_> = patches
            .iter()
            .map(|patch| (&patch.namespace, &patch.pod))
            .collect();
        let again = figure(patches.len() - pods.len());
        bars.at_most("stuck Pods: patched again", again, 0.0, "");
        // Where one goes on after another, nobody knows which Pod fails next. What was refused because a kubelet wrote at
        // the same time had its turn as well.
        let mut had = BTreeSet::new();
        let of_first = sent.iter().filter(|patch| patch.user == first);
        let of_first: Vec<_> = of_first
            .filter(|patch| had.insert((&patch.namespace, &patch.pod)))
            .collect();
        let early = figure(out_of_turn(&of_first));
        bars.at_most(
            "stuck Pods: turned before an owner that serves nothing",
            early,
            0.0,
            "",
        );
        let older = figure(older_first(&of_first, &created(&cluster)?));
        bars.at_most("stuck Pods: turned before a newer one", older, 0.0, "");
        Ok(())
    }

    /// Lets one companion turn Pods until so many are left, and another one turn these.
    fn turn(&self, place: &Place<'_>, kubelets: &Kubelets, [count, rest]: [usize; 2]) -> Result<[Part; 2]> {
        let [(first, fast), (second, slow)] = COMPANIONS;
        let start = |user: &str, rate: u32| {
            Companion::start(
                &self.own,
                self.folder.path(),
                &place.kubeconfig(user),
                &place.own.name,
                &["--rescue-per-second", &rate.to_string()],
            )
        };
        let companion = start(first, fast);
        let all = f64::from(u32::try_from(count)?);
        let few = f64::from(u32::try_from(rest)?);
        eventually(LEADS, "the mirror is known to be dead", || {
            Ok(place.mirror()["status"]["health"]["state"] == "Unhealthy")
        })?;
        // All of them fail before the first is turned, so that the order is of all.
        brake(place, Some("true"));
        eventually(LEADS, "the brake is on", || {
            let conditions = &place.mirror()["status"]["conditions"];
            let mut conditions = conditions.as_array().into_iter().flatten();
            Ok(conditions.any(|condition| condition["reason"] == "Paused"))
        })?;
        kubelets.may_begin.store(true, Ordering::Relaxed);
        eventually(LEADS, "all Pods wait for their turn", || {
            Ok(companion.admin.metric("kagami_stuck_pods")? >= all)
        })?;
        brake(place, None);
        let needs = Duration::from_secs(1) * u32::try_from(count)? / fast;
        let one = measure(&companion, 2 * needs + LEADS, few)?;
        drop(companion);

        let companion = start(second, slow);
        eventually(LEADS, "the next one knows of those that are left", || {
            Ok(companion.admin.metric("kagami_stuck_pods")? > few / 2.0)
        })?;
        let needs = Duration::from_secs(1) * u32::try_from(rest)? / slow;
        let other = measure(&companion, 2 * LONGEST_BACK_OFF + needs, 0.0)?;
        // What is under way comes to its end.
        thread::sleep(Duration::from_secs(2));
        Ok([one, other])
    }
}

/// Waits until so few Pods are left to a companion, and returns what it took.
fn measure(companion: &Companion, patience: Duration, left: f64) -> Result<Part> {
    let process = &companion.process;
    let (start, cpu) = (Instant::now(), cpu_time(process.id()));
    eventually(patience, "they are turned", || {
        Ok(companion.admin.metric("kagami_stuck_pods")? <= left)
    })?;
    let (took, cpu) = (start.elapsed(), cpu_time(process.id()).saturating_sub(cpu));
    Ok(Part {
        took,
        cpu: 100.0 * cpu.as_secs_f64() / took.as_secs_f64(),
        peak: process.memory("VmHWM"),
    })
}

/// Waits until it is so.
fn eventually(patience: Duration, what: &str, is_it: impl Fn() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_it()? {
        ensure!(start.elapsed() < patience, "in vain: {what}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Puts people's brake on, or takes it off.
fn brake(place: &Place<'_>, word: Option<&str>) {
    let namespace = &place.own.name;
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/kagami-health");
    let change = json!({"metadata": {"annotations": {"kagami.dev/paused": word}}});
    let answer = place
        .cluster
        .patch(User::Admin, "application/merge-patch+json", &path, &change);
    answer.success();
}

/// What one companion took.
#[derive(Clone, Copy, Debug)]
struct Part {
    took: Duration,
    /// Percent of a core.
    cpu: f64,
    /// MiB.
    peak: f64,
}

fn namespace(number: usize) -> String {
    format!("team-{number:02}")
}

/// Creates the Pods that are to be stuck, and a Pod in each namespace that serves; returns how long that took.
fn create(cluster: &Cluster, count: usize) -> Result<Duration> {
    let path =
        |number: usize, what: &str| format!("/api/v1/namespaces/{}/{what}", namespace(number % NAMESPACES));
    let mut took = write_all(cluster, 0..count + NAMESPACES, move |number| {
        Ok(Write::create(
            path(number, "pods"),
            pod(number, count).to_string(),
        ))
    })?;
    took += write_all(cluster, count..count + NAMESPACES, |number| {
        Ok(report(number, Says::Runs))
    })?;
    Ok(took)
}

/// Returns what a kubelet writes of a Pod.
fn report(number: usize, says: Says) -> Write {
    let namespace = namespace(number % NAMESPACES);
    let path = format!("/api/v1/namespaces/{namespace}/pods/{}/status", name(number));
    Write::merge(path, status_of(number, says).to_string())
}

/// What a kubelet says of a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Says {
    /// It has just failed to pull its image.
    Fails,
    /// It waits until it tries again.
    Waits,
    Runs,
}

/// The kubelets of the Pods that are stuck.
#[derive(Debug, Default)]
struct Kubelets {
    may_begin: AtomicBool,
    is_over: AtomicBool,
}

impl Kubelets {
    /// Tries again and again what cannot be pulled, as often as kubelets do, until that is over; what was turned runs. What
    /// is late because the API server has much to do is late from there on.
    fn run(&self, cluster: &Cluster, count: usize) -> Result<()> {
        let mut log = Log::open(cluster)?;
        let mut turned = vec![false; count];
        while !self.may_begin.load(Ordering::Relaxed) {
            if self.is_over.load(Ordering::Relaxed) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(100));
        }
        let mut waits = vec![BACK_OFF; count];
        let mut next: BinaryHeap<_> = (0..count)
            .map(|number| Reverse((Instant::now(), number, Says::Fails)))
            .collect();
        while !self.is_over.load(Ordering::Relaxed) {
            let mut due = Vec::new();
            for patch in log.patches()?.into_iter().filter(|patch| patch.is_accepted) {
                let number = number_of(&patch.pod).context("no number")?;
                turned[number] = true;
                due.push((number, Says::Runs));
            }
            while let Some(Reverse((at, number, says))) = next.peek().copied()
                && at <= Instant::now()
                && due.len() < AT_ONCE
            {
                next.pop();
                if turned[number] {
                    continue;
                }
                due.push((number, says));
                next.push(Reverse(if says == Says::Fails {
                    (Instant::now() + ROUND, number, Says::Waits)
                } else {
                    let rests = waits[number].saturating_sub(ROUND);
                    waits[number] = LONGEST_BACK_OFF.min(2 * waits[number]);
                    // A round comes somewhat later, and not all kubelets' at once.
                    let late = Duration::from_millis(u64::try_from(number % 5_000)?);
                    (Instant::now() + rests + late, number, Says::Fails)
                }));
            }
            if due.is_empty() {
                thread::sleep(Duration::from_millis(100));
                continue;
            }
            let due = Arc::new(due);
            write_all(cluster, 0..due.len(), move |index| {
                let (number, says) = due[index];
                Ok(report(number, says))
            })?;
        }
        Ok(())
    }
}

/// How many statuses are written in one go.
const AT_ONCE: usize = 500;

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

/// Returns what the kubelet of a Pod says of it, as a merge patch.
fn status_of(number: usize, says: Says) -> Value {
    let is_ready = says == Says::Runs;
    let waits = |reason: &str, message: String| json!({"waiting": {"reason": reason, "message": message}});
    let image = image(number);
    let state = match says {
        Says::Runs => json!({"waiting": null, "running": {"startedAt": clock::now().to_string()}}),
        Says::Fails => waits(
            "ErrImagePull",
            format!("failed to pull and unpack image \"{image}\": connection refused"),
        ),
        Says::Waits => waits("ImagePullBackOff", format!("Back-off pulling image \"{image}\"")),
    };
    let ready = if is_ready { "True" } else { "False" };
    json!({"status": {
        "phase": if is_ready { "Running" } else { "Pending" },
        "conditions": [{"type": "Ready", "status": ready}],
        "containerStatuses": [{
            "name": "app-0", "ready": is_ready, "restartCount": 0, "image": image, "imageID": "", "state": state,
        }],
    }})
}

/// The API server's audit log, as it grows.
#[derive(Debug)]
struct Log {
    reader: BufReader<File>,
    /// A line whose end is not written yet.
    line: String,
}

impl Log {
    fn open(cluster: &Cluster) -> Result<Self> {
        Ok(Self {
            reader: BufReader::new(File::open(cluster.folder().join("audit.log"))?),
            line: String::new(),
        })
    }

    /// Returns the patches of Pods that companions sent and that were answered since it was last asked, oldest first.
    fn patches(&mut self) -> Result<Vec<Patch>> {
        let mut patches = Vec::new();
        loop {
            self.reader.read_line(&mut self.line)?;
            if !self.line.ends_with('\n') {
                break;
            }
            let line = std::mem::take(&mut self.line);
            patches.extend(Patch::of(&line)?);
        }
        patches.sort_by(|one, other| one.at.total_cmp(&other.at));
        Ok(patches)
    }
}

impl Patch {
    /// Returns it where a line of the audit log tells of one.
    fn of(line: &str) -> Result<Option<Self>> {
        // There is much of everybody else.
        let is_one = |user: &(&str, u32)| line.contains(user.0) && line.contains("\"pods\"");
        if !COMPANIONS.iter().any(is_one) {
            return Ok(None);
        }
        let event: Value = serde_json::from_str(line)?;
        let (object, user) = (&event["objectRef"], event["user"]["username"].as_str());
        let is_patch = event["verb"] == "patch" && object["resource"] == "pods";
        if !is_patch {
            return Ok(None);
        }
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        Ok(Some(Self {
            is_accepted: event["responseStatus"]["code"] == 200,
            user: user.context("no user")?.to_owned(),
            namespace: text(&object["namespace"])?,
            pod: text(&object["name"])?,
            at: seconds(&text(&event["requestReceivedTimestamp"])?)?,
        }))
    }
}

/// Returns how many Pods name the mirror still, but for those that serve. The audit log does not tell: a request whose
/// sender was killed may be carried out.
fn stuck(cluster: &Cluster) -> Result<usize> {
    let mut stuck = 0;
    for pod in pods(cluster)? {
        let image = pod["spec"]["containers"][0]["image"].as_str();
        let is_stuck =
            pod["status"]["phase"] == "Pending" && image.is_some_and(|image| image.starts_with(REGISTRY));
        stuck += usize::from(is_stuck);
    }
    Ok(stuck)
}

/// Returns when each Pod was created, by its name.
fn created(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let mut created = BTreeMap::new();
    for pod in pods(cluster)? {
        let metadata = &pod["metadata"];
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        created.insert(text(&metadata["name"])?, text(&metadata["creationTimestamp"])?);
    }
    Ok(created)
}

fn pods(cluster: &Cluster) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for number in 0..NAMESPACES {
        let path = format!("/api/v1/namespaces/{}/pods", namespace(number));
        let mut pods = cluster.get(&path).success();
        let pods = pods["items"].as_array_mut().context("no list")?;
        all.append(pods);
    }
    Ok(all)
}

fn number_of(pod: &str) -> Option<usize> {
    pod.rsplit('-').next()?.parse().ok()
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
fn out_of_turn(patches: &[&Patch]) -> usize {
    let mut turned: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut early = 0;
    for patch in patches {
        let had = turned.entry(&patch.namespace).or_default();
        if had.len() == ALONE {
            continue;
        }
        // Of the Pods that serve none is stuck.
        let (owner, serves) = owner(number_of(&patch.pod).unwrap_or_default(), usize::MAX);
        if serves || !had.insert(owner) {
            early += 1;
        }
    }
    early
}

/// Returns how many Pods were turned before a newer one of their namespace, but for the first of those owners which serve
/// nothing.
fn older_first(patches: &[&Patch], created: &BTreeMap<String, String>) -> usize {
    let mut turned: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    for patch in patches {
        let of_namespace = turned.entry(&patch.namespace).or_default();
        of_namespace.extend(created.get(&patch.pod));
    }
    let of_namespace = turned.values().map(|created| {
        let rest = created.get(ALONE..).unwrap_or_default();
        rest.windows(2).filter(|pair| pair[0] < pair[1]).count()
    });
    of_namespace.sum()
}
