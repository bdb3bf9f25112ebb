//! Demand: the images of the cluster's Pods, handed to the mirrors that serve them, and their times of
//! use.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Mutex,
    time::Duration,
};

use tokio::{sync::mpsc, task::yield_now, time::sleep};

use super::{Readers, lock};
use crate::{
    clock,
    cluster::pods::{Pod, images},
    domain::{
        copying::queue::Wanted,
        demand::Used,
        image::{ImageKey, KeyRef},
        mirror::Mode,
        routing::{Candidate, MirrorId, Routing},
        snapshot::Snapshot,
        time::Timestamp,
    },
    state::{Demand, Store, Why},
};

/// How many new images of one mirror one round hands on; the rest comes with the next.
const ROUND: usize = 5000;

/// How many of them are handed on at once, and how long after are the next: a mirror's worker takes in
/// no more than it can look at.
const AT_ONCE: (usize, Duration) = (100, Duration::from_millis(100));

/// What decides about demand.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The mode of namespaces without the label, as the webhook configuration has it.
    pub default_mode: Mode,
    /// An image that no Pod has used for so long is forgotten.
    pub forget_after: Duration,
}

/// Learns from Pods which images are in use.
pub(super) struct DemandReader {
    pub(super) used: Used,
    settings: Settings,
    /// Since when use is noted.
    since: Timestamp,
    demand: mpsc::Sender<Demand>,
}

/// What one round found to be new, to be handed on.
#[derive(Debug)]
pub(super) struct Round {
    /// Keys by the mirror's position in the routing.
    new: Vec<HashSet<ImageKey>>,
    /// What mirrors lack that are filled, likewise.
    wanted: Vec<Vec<Wanted>>,
    /// There was more.
    is_full: bool,
}

/// The mirrors that serve a namespace.
struct Serving<'s> {
    snapshot: &'s Snapshot,
    namespace: &'s str,
    mirrors: Vec<bool>,
    /// Whether images are rewritten there, as far as the namespace is concerned.
    enforces: bool,
}

impl DemandReader {
    pub(super) fn new(settings: Settings, since: Timestamp, demand: mpsc::Sender<Demand>) -> Self {
        Self {
            used: Used::default(),
            settings,
            since,
            demand,
        }
    }

    /// Takes in a Pod, and hands on what is new of its images, where `store` is given. What finds no room
    /// comes with the next round.
    pub(super) fn take(&mut self, pod: &Pod, snapshot: &Snapshot, store: Option<&Store>) {
        let (namespace, name) = pod.id();
        let changed = self.used.set(namespace, name, &images(pod, &snapshot.routing));
        let Some(store) = store.filter(|_| !changed.is_empty()) else {
            return;
        };
        let Some(serving) = Serving::of(snapshot, namespace, self.settings.default_mode) else {
            return;
        };
        for key in changed {
            for candidate in serving.mirrors_of(key.by_ref()) {
                let mirror = &snapshot.routing.mirror(candidate.mirror).name;
                if store.index().contains(mirror, key.by_ref()) {
                    continue;
                }
                let why = if serving.fills(&candidate, key.by_ref()) {
                    Why::Wanted { by: namespace.into() }
                } else {
                    Why::New
                };
                if !hand_on(&self.demand, mirror, key, why) {
                    return;
                }
            }
        }
    }

    /// Goes through the images that are used in one namespace: notes that they are, and which of them are
    /// new.
    fn go_through(
        &self,
        after: Option<&str>,
        store: &Store,
        snapshot: &Snapshot,
        now: Timestamp,
        round: &mut Round,
    ) -> Option<Box<str>> {
        let (namespace, images) = self.used.next_namespace(after)?;
        if let Some(serving) = Serving::of(snapshot, namespace, self.settings.default_mode) {
            let index = store.index();
            for (key, uses) in images {
                for candidate in serving.mirrors_of(key.by_ref()) {
                    let id = candidate.mirror;
                    let mirror = snapshot.routing.mirror(id);
                    if !index.touch(&mirror.name, key.by_ref(), now) {
                        round.add(id, key);
                    } else if index.needs_copy(mirror, key.by_ref())
                        && serving.fills(&candidate, key.by_ref())
                    {
                        round.want(id, namespace, key, uses);
                    }
                }
            }
        }
        Some(namespace.into())
    }
}

/// Goes through all images in use: notes their use, forgets what was not used for long, and returns what
/// is new. Others go on after each namespace, whose number of images is bounded.
pub(super) async fn go_through(readers: &Mutex<Readers>, store: &Store, snapshot: &Snapshot) -> Round {
    let now = clock::now();
    let mut round = Round::new(&snapshot.routing);
    let mut at: Option<Box<str>> = None;
    loop {
        at = lock(readers)
            .demand
            .go_through(at.as_deref(), store, snapshot, now, &mut round);
        if at.is_none() {
            break;
        }
        yield_now().await;
    }
    let (since, forget_after) = {
        let demand = &lock(readers).demand;
        (demand.since, demand.settings.forget_after)
    };
    // What was used before is known to the day only.
    if now.since(since) > forget_after {
        forget(store, snapshot, now, forget_after);
    }
    round
}

/// Forgets images that no Pod has used for long.
fn forget(store: &Store, snapshot: &Snapshot, now: Timestamp, forget_after: Duration) {
    for (_, mirror) in snapshot.routing.mirrors() {
        let unused: Vec<ImageKey> = {
            let index = store.index();
            let entries = index.entries(&mirror.name);
            let unused = entries.filter(|(_, entry)| now.since(entry.last_used()) > forget_after);
            unused.map(|(key, _)| ImageKey::from(key)).collect()
        };
        if unused.is_empty() {
            continue;
        }
        let mut index = store.index_mut();
        for key in unused {
            index.remove(&mirror.name, key.by_ref());
        }
    }
}

fn hand_on(demand: &mpsc::Sender<Demand>, mirror: &str, key: &ImageKey, why: Why) -> bool {
    let wanted = Demand {
        mirror: mirror.to_owned(),
        key: key.clone(),
        why,
    };
    demand.try_send(wanted).is_ok()
}

impl Round {
    fn new(routing: &Routing) -> Self {
        Self {
            new: vec![HashSet::new(); routing.len()],
            wanted: vec![Vec::new(); routing.len()],
            is_full: false,
        }
    }

    fn add(&mut self, mirror: MirrorId, key: &ImageKey) {
        let Some(new) = self.new.get_mut(mirror.index()) else {
            return;
        };
        if new.len() < ROUND {
            new.insert(key.clone());
        } else {
            self.is_full = true;
        }
    }

    /// Notes that a namespace wants an image that a mirror lacks. Namespaces come one after the other.
    fn want(&mut self, mirror: MirrorId, namespace: &str, key: &ImageKey, uses: u32) {
        let Some(wanted) = self.wanted.get_mut(mirror.index()) else {
            return;
        };
        match wanted.last_mut() {
            Some((last, images)) if **last == *namespace => images.push((key.clone(), uses)),
            _ => wanted.push((namespace.into(), vec![(key.clone(), uses)])),
        }
    }

    /// Takes out what is wanted, of each mirror that is filled.
    pub(super) fn take_wanted(&mut self, routing: &Routing) -> BTreeMap<String, Vec<Wanted>> {
        let wanted = std::mem::take(&mut self.wanted);
        let mirrors = routing.mirrors().zip(wanted);
        let filled = mirrors.filter(|((_, mirror), _)| mirror.copying.is_some());
        filled
            .map(|((_, mirror), wanted)| (mirror.name.clone(), wanted))
            .collect()
    }

    /// Hands on what is new, of each mirror some at a time. Returns whether that was everything.
    pub(super) async fn hand_on(
        self,
        store: &Store,
        snapshot: &Snapshot,
        demand: &mpsc::Sender<Demand>,
    ) -> bool {
        let mirrors = snapshot.routing.mirrors().map(|(_, mirror)| mirror.name.as_str());
        let mut waiting: Vec<_> = mirrors
            .zip(self.new.into_iter().map(HashSet::into_iter))
            .collect();
        loop {
            for (mirror, keys) in &mut waiting {
                for key in keys.take(AT_ONCE.0) {
                    if !store.index().contains(mirror, key.by_ref())
                        && !hand_on(demand, mirror, &key, Why::New)
                    {
                        return false;
                    }
                }
            }
            waiting.retain(|(_, keys)| keys.len() > 0);
            if waiting.is_empty() {
                return !self.is_full;
            }
            sleep(AT_ONCE.1).await;
        }
    }
}

impl<'s> Serving<'s> {
    /// Returns the mirrors that serve a namespace; none if there are none, or Kagami is off there.
    fn of(snapshot: &'s Snapshot, namespace: &'s str, default_mode: Mode) -> Option<Self> {
        if snapshot.left_alone.contains(namespace) {
            return None;
        }
        let mode = snapshot.mode_of(namespace, default_mode);
        if mode == Mode::Off {
            return None;
        }
        let mirrors = snapshot.routing.mirrors();
        let mirrors: Vec<_> = mirrors
            .map(|(id, mirror)| mirror.mode != Mode::Off && snapshot.serves(id, namespace))
            .collect();
        let serving = Self {
            snapshot,
            namespace,
            enforces: mode == Mode::Enforce,
            mirrors,
        };
        serving.mirrors.contains(&true).then_some(serving)
    }

    /// Whether a mirror is filled with an image that the namespace uses.
    fn fills(&self, candidate: &Candidate, key: KeyRef<'_>) -> bool {
        let Self {
            snapshot, namespace, ..
        } = self;
        let settings = snapshot.routing.mirror(candidate.mirror);
        self.enforces
            && settings.copying.is_some()
            && settings.mode == Mode::Enforce
            && snapshot.may_fill(candidate, &key.reference(), namespace)
    }

    /// Returns those of them that should hold an image.
    fn mirrors_of(&self, key: KeyRef<'_>) -> impl Iterator<Item = Candidate> {
        let candidates = self.snapshot.routing.candidates(key.name()).ordered;
        candidates
            .into_iter()
            .filter(|candidate| self.mirrors.get(candidate.mirror.index()) == Some(&true))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;
    use tokio::sync::watch;

    use super::{
        super::{
            super::{originals::Originals, owners::Owners},
            pulls::PullsReader,
        },
        *,
    };
    use crate::{
        api::MODE_LABEL,
        cluster::watch::Event,
        domain::{examples::key, presence::Presence},
        state::{Configured, file},
    };

    const MIRRORS: &str = "
        apiVersion: kagami.dev/v1alpha1
        kind: ImageMirror
        metadata: {name: main}
        spec:
          registry: mirror.test
          kind: Hosted
          sources: [{prefix: docker.io}]
          namespaceSelector: {matchLabels: {team: blue}}
        ";

    fn store() -> Store {
        store_with("")
    }

    /// Returns a store with the usual mirror, which has this in its spec besides.
    fn store_with(field: &str) -> Store {
        let text = MIRRORS.replace("\n        ", "\n");
        store_of(&format!("{}\n  {field}\n", text.trim_end()))
    }

    /// Returns a store with these mirrors, and the usual namespaces.
    fn store_of(text: &str) -> Store {
        let configuration = file::load(text, "test").unwrap();
        let mirrors = configuration.mirrors.into_iter().map(|(mirror, _)| mirror);
        let labels = |mode: &str, team: &str| {
            let labels = [(MODE_LABEL, mode), ("team", team)];
            labels
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into()
        };
        let store = Store::default();
        let configured = Configured {
            routing: Routing::compile(mirrors.collect()),
            namespaces: [
                ("blue".to_owned(), labels("enforce", "blue")),
                ("red".to_owned(), labels("enforce", "red")),
                ("off".to_owned(), labels("off", "blue")),
                ("own".to_owned(), labels("enforce", "blue")),
                ("audit".to_owned(), labels("audit", "blue")),
            ]
            .into(),
            left_alone: ["own".to_owned()].into(),
            ..Configured::default()
        };
        store.configure(configured, clock::now());
        store
    }

    fn pod(namespace: &str, name: &str, image: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"containers": [{"name": "app", "image": image}]},
        }))
        .unwrap()
    }

    fn readers(complete: bool) -> (Mutex<Readers>, mpsc::Receiver<Demand>) {
        readers_since(Timestamp::default(), complete)
    }

    fn readers_since(since: Timestamp, complete: bool) -> (Mutex<Readers>, mpsc::Receiver<Demand>) {
        let settings = Settings {
            default_mode: Mode::Off,
            forget_after: Duration::from_hours(1),
        };
        let (demand, wanted) = mpsc::channel(10_000);
        let readers = Readers {
            demand: DemandReader::new(settings, since, demand.clone()),
            pulls: PullsReader::new(since, demand),
            ward: None,
            owners: Owners::default(),
            originals: Originals::default(),
            default_mode: Mode::Off,
            complete: watch::Sender::new(complete),
            hands_on: complete,
        };
        (Mutex::new(readers), wanted)
    }

    fn told(wanted: &mut mpsc::Receiver<Demand>) -> Vec<String> {
        let mut told = Vec::new();
        while let Ok(demand) = wanted.try_recv() {
            assert_eq!(demand.mirror, "main");
            told.push(demand.key.to_string());
        }
        told.sort_unstable();
        told
    }

    /// Returns how long fifty Pods take that come one after the other, where so many images are in
    /// use: the shortest of several times.
    fn time_of_pods(images: usize) -> Duration {
        let store = store();
        let (readers, mut wanted) = readers(true);
        for number in 0..images {
            let namespace = format!("other-{}", number / 1000);
            let image = format!("docker.io/acme/app:{number}");
            let images = [key(&image).into()];
            lock(&readers).demand.used.set(&namespace, &image, &images);
        }
        let times = (0..10).map(|_| {
            let events: Vec<_> = (0..50)
                .map(|number| pod("blue", "web", &format!("nginx:{number}")))
                .collect();
            let started = Instant::now();
            for pod in events {
                lock(&readers).take(Event::Changed(pod), &store);
            }
            let took = started.elapsed();
            assert_eq!(told(&mut wanted).len(), 50);
            took
        });
        times.min().unwrap_or_default()
    }

    #[test]
    fn an_event_costs_the_same_whatever_the_number_of_images() {
        let (few, many) = (time_of_pods(1000), time_of_pods(100_000));
        // A hundred times as many images; the rest is for a busy machine.
        assert!(
            many < few * 20,
            "{few:?} with 1,000 images, {many:?} with 100,000"
        );
    }

    #[test]
    fn only_what_is_new_and_served_is_handed_on() {
        let store = store();
        let (readers, mut wanted) = readers(true);
        let known = key("docker.io/library/known:1");
        let now = clock::now();
        store
            .index_mut()
            .write("main", known, Presence::Missing, now, now);
        for namespace in ["blue", "red", "off", "own", "nobody-knows"] {
            for image in ["known:1", "ghcr.io/a/b:1", namespace] {
                let pod = pod(namespace, image, image);
                lock(&readers).take(Event::Changed(pod), &store);
            }
        }
        assert_eq!(told(&mut wanted), ["docker.io/library/blue:latest"]);
        // The same once more is nothing new, whatever became of it.
        let again = pod("blue", "blue", "blue");
        lock(&readers).take(Event::Changed(again), &store);
        assert!(told(&mut wanted).is_empty());
    }

    /// Only what a mirror is known to lack, and only of namespaces in which images are rewritten.
    #[tokio::test]
    async fn what_filled_mirrors_lack_is_wanted_by_those_whose_images_are_rewritten() {
        let store = store_with("copy: {policy: OnDemand}");
        let (readers, mut wanted) = readers(true);
        let now = clock::now();
        for (image, presence) in [("lacks", Presence::Missing), ("unknown", Presence::Unknown(None))] {
            let image = format!("docker.io/library/{image}:latest");
            store.index_mut().write("main", key(&image), presence, now, now);
        }
        for (namespace, pods) in [("blue", 2), ("red", 1), ("off", 1), ("own", 1), ("audit", 1)] {
            for number in 0..pods {
                let name = number.to_string();
                for image in ["lacks", "unknown", "new"] {
                    let pod = pod(namespace, &format!("{image}-{name}"), image);
                    lock(&readers).take(Event::Changed(pod), &store);
                }
            }
        }
        let mut why = Vec::new();
        while let Ok(demand) = wanted.try_recv() {
            why.push((demand.key.to_string(), demand.why));
        }
        why.sort_unstable_by(|(a, a_why), (b, b_why)| {
            a.cmp(b).then(format!("{a_why:?}").cmp(&format!("{b_why:?}")))
        });
        why.dedup();
        let new = "docker.io/library/new:latest".to_owned();
        let by_blue = Why::Wanted { by: "blue".into() };
        assert_eq!(why, [(new.clone(), Why::New), (new, by_blue)]);

        let snapshot = store.snapshot();
        let mut round = go_through(&readers, &store, &snapshot).await;
        let lacks = key("docker.io/library/lacks:latest").into();
        let of_blue: Wanted = ("blue".into(), vec![(lacks, 2)]);
        assert_eq!(
            round.take_wanted(&snapshot.routing),
            BTreeMap::from([("main".to_owned(), vec![of_blue])])
        );
        // Of a mirror that is not filled nothing is wanted.
        let store = store_with("");
        let image = key("docker.io/library/lacks:latest");
        store
            .index_mut()
            .write("main", image, Presence::Missing, now, now);
        let snapshot = store.snapshot();
        let mut round = go_through(&readers, &store, &snapshot).await;
        assert_eq!(round.take_wanted(&snapshot.routing), BTreeMap::new());
    }

    /// Returns the mirrors that are to be filled with an image for each namespace, where both use it: what their Pods tell,
    /// which is what a round finds.
    async fn fills_of(mirrors: &str, image: &str) -> BTreeMap<String, Vec<String>> {
        let store = store_of(mirrors);
        let snapshot = store.snapshot();
        let (readers, mut wanted) = readers(true);
        for namespace in ["blue", "red"] {
            lock(&readers).take(Event::Changed(pod(namespace, "web", image)), &store);
        }
        let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
        while let Ok(demand) = wanted.try_recv() {
            if let Why::Wanted { by } = demand.why {
                told.entry(by.into()).or_default().push(demand.mirror);
            }
        }
        let now = clock::now();
        for (_, mirror) in snapshot.routing.mirrors() {
            let mut index = store.index_mut();
            index.write(&mirror.name, key(image), Presence::Missing, now, now);
        }
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut round = go_through(&readers, &store, &snapshot).await;
        for (mirror, wanted) in round.take_wanted(&snapshot.routing) {
            for (namespace, _) in wanted {
                found.entry(namespace.into()).or_default().push(mirror.clone());
            }
        }
        for mirrors in told.values_mut() {
            mirrors.sort_unstable();
        }
        assert_eq!(told, found);
        found
    }

    #[tokio::test]
    async fn no_mirror_is_filled_for_a_namespace_that_may_not_have_it_there() {
        let mirror = |name: &str, source: &str, selector: &str| {
            let document = "
                apiVersion: kagami.dev/v1alpha1
                kind: ImageMirror
                metadata: {name: NAME}
                spec:
                  registry: mirror.test
                  kind: Hosted
                  sources: [SOURCE]
                  namespaceSelector: {SELECTOR}
                  copy: {policy: OnDemand}
                ";
            let document = document.replace("\n                ", "\n");
            let document = document.replace("NAME", name).replace("SOURCE", source);
            document.replace("SELECTOR", selector)
        };
        let private = |prefix| format!("{{prefix: {prefix}, access: Private}}");
        let blue = "matchLabels: {team: blue}";
        let both = "matchExpressions: [{key: team, operator: In, values: [blue, red]}]";
        let of = |told: &[(&str, &[&str])]| -> BTreeMap<String, Vec<String>> {
            let all = told.iter().map(|(namespace, mirrors)| {
                let mirrors = mirrors.iter().map(|mirror| (*mirror).to_owned());
                ((*namespace).to_owned(), mirrors.collect())
            });
            all.collect()
        };

        // Whoever may not have it gets nothing copied that would lie there for others.
        let acme = mirror("acme", &private("ghcr.io/acme"), blue);
        let main = mirror("main", "{prefix: ghcr.io}", both);
        let documents = format!("{acme}---{main}");
        assert_eq!(
            fills_of(&documents, "ghcr.io/acme/a:1").await,
            of(&[("blue", &["acme", "main"])])
        );
        assert_eq!(
            fills_of(&documents, "ghcr.io/b/a:1").await,
            of(&[("blue", &["main"]), ("red", &["main"])])
        );
        // What one login reads is for nobody whom the mirror of another one does not serve, be its source wider or not.
        let wide = mirror("wide", &private("ghcr.io"), both);
        let documents = format!("{acme}---{wide}");
        assert_eq!(
            fills_of(&documents, "ghcr.io/acme/a:1").await,
            of(&[("blue", &["acme", "wide"])])
        );
        assert_eq!(
            fills_of(&documents, "ghcr.io/b/a:1").await,
            of(&[("blue", &["wide"]), ("red", &["wide"])])
        );
        // Of two for the same images, both must serve.
        let same = mirror("same", &private("ghcr.io/acme"), both);
        assert_eq!(
            fills_of(&format!("{acme}---{same}"), "ghcr.io/acme/a:1").await,
            of(&[("blue", &["acme", "same"])])
        );
    }

    #[tokio::test]
    async fn a_new_leader_forgets_nothing_that_was_used_before_its_time() {
        let store = store();
        let now = clock::now();
        let unused = key("docker.io/library/unused:latest");
        let long_ago = now.before(Duration::from_hours(2));
        store
            .index_mut()
            .write("main", unused, Presence::Missing, long_ago, long_ago);
        for (since, expected) in [(30, true), (90, false)] {
            let since = now.before(Duration::from_mins(since));
            let (readers, _wanted) = readers_since(since, true);
            go_through(&readers, &store, &store.snapshot()).await;
            assert_eq!(store.index().contains("main", unused), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_hands_on_what_is_new_and_forgets_what_is_not_used() {
        let store = store();
        let (readers, mut wanted) = readers(false);
        let hour = Duration::from_hours(1);
        let now = clock::now();
        let long_ago = Timestamp::from_millis(now.as_millis() - 2 * 3_600_000);
        for image in ["used", "unused"] {
            let image = format!("docker.io/library/{image}:latest");
            let mut index = store.index_mut();
            index.write("main", key(&image), Presence::Missing, long_ago, long_ago);
        }
        let many = 2 * AT_ONCE.0 + 1;
        {
            let mut readers = lock(&readers);
            readers.take(Event::Listing, &store);
            readers.take(Event::Listed(pod("blue", "used", "used")), &store);
            for number in 0..many {
                let name = number.to_string();
                let pod = pod("blue", &name, &format!("nginx:{number}"));
                readers.take(Event::Listed(pod), &store);
            }
            readers.take(Event::ListedAll { round: 0 }, &store);
        }
        assert!(told(&mut wanted).is_empty(), "the first list waits for its round");
        let snapshot = store.snapshot();
        let round = go_through(&readers, &store, &snapshot).await;
        let demand = lock(&readers).demand.demand.clone();
        assert!(round.hand_on(&store, &snapshot, &demand).await);
        assert_eq!(told(&mut wanted).len(), many);
        let index = store.index();
        let used = index.get("main", key("docker.io/library/used:latest")).unwrap();
        assert!(now.since(used.last_used()) < hour);
        assert!(!index.contains("main", key("docker.io/library/unused:latest")));
    }
}
