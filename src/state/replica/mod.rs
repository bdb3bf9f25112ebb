//! The state as the API server has it: ImageMirrors, MirroredImages, Namespaces and the heartbeat
//! Lease, followed by watches.
//!
//! This process only reads. No watch ever ends it; one that hears nothing for too long is not
//! believed any more and shows in the metrics and in `/status`. Images go straight into the presence
//! index, as compact entries; everything else goes through `belief`.

mod belief;
mod credentials;
mod images;
mod once;
mod own;
mod status;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    future::pending,
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use kube::Client;
use tokio::{
    task::JoinSet,
    time::{Instant, interval, sleep},
};

use self::belief::{Belief, Contacts};
pub use self::{
    belief::SharedMirror,
    once::{Images, Namespaces, Scope, Unreadable},
    status::Status,
};
use super::Store;
use crate::{
    api::{ORIGINALS_CONFIG_MAP, OWNERS_CONFIG_MAP},
    clock,
    cluster::{
        objects::{self, ConfigMap, Object, Outline},
        sources,
        watch::{Beat, Event, Pulse, follow},
    },
    metrics::Metrics,
    tasks::panic_text,
};

/// How often the passing of time is looked at.
const TICK: Duration = Duration::from_millis(250);

/// The pause before what panicked is begun anew.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// The watch of what is noted of owners that fight rewrites, and that of the originals which Pods record.
const OWNERS: &str = "owners";
const ORIGINALS: &str = "originals";

/// What may be withheld, as where a Role is older than this program, for everything else works without: the watch, the
/// ConfigMap, and what is told then.
const DISPENSABLE: [(&str, &str, &str); 2] = [
    (
        OWNERS,
        OWNERS_CONFIG_MAP,
        "ready without it: owners that fight rewrites are known by their kinds alone",
    ),
    (
        ORIGINALS,
        ORIGINALS_CONFIG_MAP,
        "ready without it: a copy of a Pod that has a mirror's name and lost its record keeps that name",
    ),
];

/// Returns the ConfigMap of a watch that may be withheld and is, and what is told of that.
fn withheld(name: &str, beat: &Beat) -> Option<(&'static str, &'static str)> {
    let mut dispensable = DISPENSABLE.into_iter().filter(|_| beat.withheld);
    let (_, config_map, note) = dispensable.find(|(known, ..)| *known == name)?;
    Some((config_map, note))
}

/// What to follow.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Kagami's own namespace.
    pub namespace: String,
    /// Namespaces whose Pods are never touched.
    pub left_alone: BTreeSet<String>,
    /// Folder with read credentials for live probes, a file for each mirror.
    pub probe_credentials: Option<PathBuf>,
}

/// The state of a cluster, as this process follows it. Clones share it.
#[derive(Clone, Debug)]
pub struct Replica(Shared);

#[derive(Clone, Debug)]
struct Shared(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Opaque<Client>,
    settings: Settings,
    store: Store,
    metrics: Metrics,
    belief: Mutex<Belief>,
    mirrors: Pulse,
    images: Pulse,
    namespaces: Pulse,
    lease: Pulse,
    owners: Pulse,
    originals: Pulse,
}

/// A value without a `Debug` of its own.
struct Opaque<T>(T);

impl<T> std::fmt::Debug for Opaque<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl Shared {
    fn belief(&self) -> MutexGuard<'_, Belief> {
        self.0.belief.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pulses(&self) -> [(&'static str, &Pulse); 6] {
        let Inner {
            mirrors,
            images,
            namespaces,
            lease,
            owners,
            originals,
            ..
        } = &*self.0;
        [
            ("imagemirrors", mirrors),
            ("mirroredimages", images),
            ("namespaces", namespaces),
            ("lease", lease),
            (OWNERS, owners),
            (ORIGINALS, originals),
        ]
    }
}

/// The parts that run side by side.
#[derive(Clone, Copy, Debug)]
enum Part {
    Mirrors,
    Images,
    Namespaces,
    Lease,
    Owners,
    Originals,
    Own,
    Credentials,
    Time,
}

impl Part {
    const ALL: [Self; 9] = [
        Self::Mirrors,
        Self::Images,
        Self::Namespaces,
        Self::Lease,
        Self::Owners,
        Self::Originals,
        Self::Own,
        Self::Credentials,
        Self::Time,
    ];
}

impl Replica {
    /// Returns the state of the cluster behind `client`, put into `store`. Nothing is asked before
    /// [`Replica::run`].
    pub fn new(client: Client, store: Store, settings: Settings, metrics: Metrics) -> Self {
        let belief = Belief::new(store.clone(), settings.left_alone.clone(), metrics.clone());
        Self(Shared(Arc::new(Inner {
            client: Opaque(client),
            settings,
            store,
            metrics,
            belief: Mutex::new(belief),
            mirrors: Pulse::default(),
            images: Pulse::default(),
            namespaces: Pulse::default(),
            lease: Pulse::default(),
            owners: Pulse::default(),
            originals: Pulse::default(),
        })))
    }

    /// Returns what is still missing of the state; nothing once all of it was loaded, and a sign of
    /// life of the companion was seen. The notes of owners and of originals may be withheld.
    pub fn missing(&self) -> Vec<&'static str> {
        let pulses = self.0.pulses().into_iter();
        let is_there = |name: &str, beat: &Beat| beat.listed || withheld(name, beat).is_some();
        let mut missing: Vec<_> = pulses
            .filter(|(name, pulse)| !is_there(name, &pulse.beat()))
            .map(|(name, _)| name)
            .collect();
        if !self.0.belief().heard() {
            missing.push("heartbeat");
        }
        missing
    }

    /// Returns what `/status` shows of the state: watches, heartbeat, and what was made of each
    /// ImageMirror.
    pub fn status(&self) -> Status {
        let now = Instant::now();
        let watch = |(name, pulse): (&'static str, &Pulse)| {
            let beat = pulse.beat();
            let silent = beat.contact.map(|contact| now.duration_since(contact));
            let watch = status::Watch {
                listed: beat.listed,
                silent_seconds: silent.map(|silent| silent.as_secs()),
                failures: beat.failures,
                failure: beat.failure.clone(),
                note: withheld(name, &beat).map(|(_, note)| note),
            };
            (name, watch)
        };
        let watches = self.0.pulses().into_iter().map(watch).collect();
        let (heartbeat, mirrors) = self.0.belief().status(now);
        Status {
            watches,
            heartbeat,
            mirrors,
        }
    }

    /// Follows the cluster for ever. A part that panics is begun anew.
    pub async fn run(self) -> Infallible {
        let mut parts = JoinSet::new();
        for part in Part::ALL {
            parts.spawn(self.0.clone().keep_running(part));
        }
        // The parts end with this future and not before.
        pending().await
    }
}

impl Shared {
    async fn keep_running(self, part: Part) -> Infallible {
        loop {
            let run = AssertUnwindSafe(self.clone().run(part)).catch_unwind().await;
            let Err(panic) = run;
            let message = panic_text(&*panic);
            tracing::error!(
                ?part,
                message,
                "a part of the cluster's state panicked; beginning it anew"
            );
            sleep(AFTER_PANIC).await;
        }
    }

    async fn run(self, part: Part) -> Infallible {
        match part {
            Part::Mirrors => self.follow_mirrors().await,
            Part::Images => self.follow_images().await,
            Part::Namespaces => self.follow_namespaces().await,
            Part::Lease => self.follow_lease().await,
            Part::Owners => self.follow_owners().await,
            Part::Originals => self.follow_originals().await,
            Part::Own => own::run(self).await,
            Part::Credentials => match self.0.settings.probe_credentials.clone() {
                Some(folder) => credentials::run(self, folder).await,
                None => pending().await,
            },
            Part::Time => self.follow_time().await,
        }
    }

    async fn follow_mirrors(self) -> Infallible {
        let relists = self.belief().relists();
        let (client, pulse) = (self.0.client.0.clone(), self.0.mirrors.clone());
        follow(client, sources::mirrors(), pulse, relists, |event| {
            self.take_mirror(event);
        })
        .await
    }

    fn take_mirror(&self, event: Event<Object>) {
        self.belief().take_mirror(event, clock::now());
    }

    async fn follow_images(self) -> Infallible {
        let (_never, relists) = tokio::sync::watch::channel(0);
        let (client, pulse) = (self.0.client.0.clone(), self.0.images.clone());
        let mut images = images::ImageWriter::new(self.0.store.clone());
        follow(client, sources::images(), pulse, relists, |event| {
            images.take(event);
        })
        .await
    }

    async fn follow_namespaces(self) -> Infallible {
        let (_never, relists) = tokio::sync::watch::channel(0);
        let (client, pulse) = (self.0.client.0.clone(), self.0.namespaces.clone());
        follow(client, sources::namespaces(), pulse, relists, |event| {
            self.take_namespace(event);
        })
        .await
    }

    fn take_namespace(&self, event: Event<Outline>) {
        self.belief().take_namespace(event);
    }

    async fn follow_lease(self) -> Infallible {
        let source = sources::lease(&self.0.settings.namespace);
        let (_never, relists) = tokio::sync::watch::channel(0);
        let pulse = self.0.lease.clone();
        let handle = |event: Event<Object>| match event {
            Event::Listed(lease) => self.belief().lease_listed(&lease),
            Event::Changed(lease) => self.belief().lease_changed(&lease, Instant::now(), clock::now()),
            Event::Listing | Event::ListedAll { .. } | Event::Deleted(_) | Event::Reached(_) => {}
        };
        follow(self.0.client.0.clone(), source, pulse, relists, handle).await
    }

    async fn follow_owners(self) -> Infallible {
        let source = sources::owners(&self.0.settings.namespace);
        let (_never, relists) = tokio::sync::watch::channel(0);
        let (client, pulse) = (self.0.client.0.clone(), self.0.owners.clone());
        follow(client, source, pulse, relists, |event| self.take_owners(event)).await
    }

    fn take_owners(&self, event: Event<ConfigMap>) {
        match event {
            Event::Listed(map) | Event::Changed(map) => {
                let owners = objects::owners(map.data.as_ref());
                let is_emptied = map.data.is_none_or(|data| data.is_empty());
                if !(is_emptied && self.0.store.snapshot().owners.is_known()) {
                    self.0.store.set_owners(Arc::new(owners));
                }
            }
            // What was known stays so until it is made anew, also where it has no data any more: nobody began to like
            // rewrites by that.
            Event::Deleted(_) | Event::Listing | Event::ListedAll { .. } | Event::Reached(_) => {}
        }
    }

    async fn follow_originals(self) -> Infallible {
        let source = sources::originals(&self.0.settings.namespace);
        let (_never, relists) = tokio::sync::watch::channel(0);
        let (client, pulse) = (self.0.client.0.clone(), self.0.originals.clone());
        let mut is_listed = false;
        follow(client, source, pulse, relists, |event| {
            self.take_originals(event, &mut is_listed);
        })
        .await
    }

    /// Takes in what is lent; `is_listed` is whether the list that is under way named it.
    fn take_originals(&self, event: Event<ConfigMap>, is_listed: &mut bool) {
        match event {
            Event::Listing => *is_listed = false,
            Event::Listed(map) | Event::Changed(map) => {
                *is_listed = true;
                let lent = objects::lent(map.data.as_ref());
                self.0.store.set_lent(Arc::new(lent));
            }
            // It may have been deleted while nobody followed it.
            Event::ListedAll { .. } if !*is_listed => self.0.store.set_lent(Arc::default()),
            Event::Deleted(_) => self.0.store.set_lent(Arc::default()),
            Event::ListedAll { .. } | Event::Reached(_) => {}
        }
    }

    /// Lets time pass for what is believed, and shows how the watches fare.
    async fn follow_time(self) -> Infallible {
        let mut ticks = interval(TICK);
        let mut told = BTreeSet::new();
        loop {
            ticks.tick().await;
            let now = Instant::now();
            let contacts = Contacts {
                mirrors: self.0.mirrors.beat().contact,
                namespaces: self.0.namespaces.beat().contact,
            };
            self.belief().tick(contacts, now, clock::now());
            for (name, pulse) in self.pulses() {
                let is_withheld = withheld(name, &pulse.beat());
                // Nobody is missed there.
                let Some((config_map, note)) = is_withheld else {
                    pulse.show(name, &self.0.metrics);
                    continue;
                };
                self.0.metrics.forget_watch(name);
                if told.insert(name) {
                    tracing::warn!(config_map, "may not be read: {note}");
                }
            }
            let counts = self.0.store.index().counts();
            for (mirror, counts) in counts {
                self.0.metrics.set_images(&mirror, counts);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::domain::lent::Lent;

    /// Answers every request with one status, once each connection.
    async fn refuse(listener: TcpListener, code: u16) {
        let body = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "No", "code": code,
        })
        .to_string();
        let answer = format!(
            "HTTP/1.1 {code} No\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _read = stream.read(&mut request).await;
            let _written = stream.write_all(answer.as_bytes()).await;
        }
    }

    fn replica(server: &str) -> Replica {
        replica_and_metrics(server).0
    }

    fn replica_and_metrics(server: &str) -> (Replica, Registry) {
        let client = Client::try_from(kube::Config::new(server.parse().unwrap())).unwrap();
        let settings = Settings {
            namespace: "kagami".to_owned(),
            left_alone: BTreeSet::new(),
            probe_credentials: None,
        };
        let (metrics, registry) = Metrics::new();
        (
            Replica::new(client, Store::default(), settings, metrics),
            registry,
        )
    }

    /// A Role of before says nothing of these notes.
    #[tokio::test]
    async fn the_notes_of_owners_and_originals_may_be_withheld_and_nothing_else() {
        for (code, expected) in [(401, false), (403, false), (404, false), (500, true)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/", listener.local_addr().unwrap());
            let (replica, registry) = replica_and_metrics(&url);
            let everything = [
                "imagemirrors",
                "mirroredimages",
                "namespaces",
                "lease",
                OWNERS,
                ORIGINALS,
                "heartbeat",
            ];
            // Nothing is known of it yet.
            assert_eq!(replica.missing(), everything);
            let asked = replica.clone();
            let failed = async {
                while asked
                    .0
                    .pulses()
                    .iter()
                    .any(|(_, pulse)| pulse.beat().failures == 0)
                {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                _ = replica.clone().run() => {}
                () = refuse(listener, code) => {}
                () = failed => {}
            }
            let missing = replica.missing();
            let dispensable = [OWNERS, ORIGINALS];
            for name in everything {
                let may_be_missing = dispensable.contains(&name) && !expected;
                assert_eq!(missing.contains(&name), !may_be_missing, "{code} {name}");
            }
            // A tick of its own clock shows it.
            tokio::select! {
                _ = replica.0.clone().follow_time() => {}
                () = sleep(2 * TICK) => {}
            }
            let mut shown = String::new();
            prometheus_client::encoding::text::encode(&mut shown, &registry).unwrap();
            for name in everything.iter().filter(|name| **name != "heartbeat") {
                let silence = format!("kagami_watch_silence_seconds{{watch=\"{name}\"}} -1");
                let is_hidden = dispensable.contains(name) && !expected;
                assert_eq!(!shown.contains(&silence), is_hidden, "{code} {name}: {shown}");
            }
            let status = serde_json::to_value(replica.status()).unwrap();
            for (name, _, note) in DISPENSABLE {
                let told = status["watches"][name]["note"].as_str();
                assert_eq!(told, (!expected).then_some(note), "{status}");
            }
            assert!(status["watches"]["lease"].get("note").is_none());
            // Once they may be read they are as any other.
            let Inner {
                owners, originals, ..
            } = &*replica.0.0;
            for pulse in [owners, originals] {
                pulse.listed();
                assert!(!pulse.beat().withheld);
            }
            assert!(dispensable.iter().all(|name| !replica.missing().contains(name)));
        }
    }

    /// What Pods recorded is not known any more where nobody notes it.
    #[tokio::test]
    async fn nothing_is_lent_once_the_notes_are_gone() {
        let map = |data: Value| -> ConfigMap {
            let map = json!({"metadata": {"name": "x", "resourceVersion": "1"}, "data": data});
            serde_json::from_value(map).unwrap()
        };
        let noted = || map(json!({"originals": r#"["team","a.example.com/nginx:1","nginx:1"]"#}));
        let replica = replica("http://127.0.0.1:1/");
        let shared = &replica.0;
        let mut is_listed = false;
        let mut take = |event| {
            shared.take_originals(event, &mut is_listed);
            *shared.0.store.snapshot().lent != Lent::default()
        };
        let all = || Event::ListedAll { round: 0 };
        assert!(!take(Event::Listing));
        assert!(take(Event::Listed(noted())) && take(all()));
        // It was deleted while the watch was away.
        assert!(take(Event::Listing), "until the list tells");
        assert!(!take(all()));
        assert!(take(Event::Changed(noted())));
        assert!(!take(Event::Deleted(noted())));
    }

    /// As where somebody puts the chart's own ConfigMap there again.
    #[tokio::test]
    async fn who_empties_the_notes_of_owners_makes_nobody_like_rewrites() {
        let map = |data: Value| -> ConfigMap {
            let map = json!({"metadata": {"name": "x", "resourceVersion": "1"}, "data": data});
            serde_json::from_value(map).unwrap()
        };
        let replica = replica("http://127.0.0.1:1/");
        let owners = || {
            let snapshot = replica.0.0.store.snapshot();
            (snapshot.owners.is_known(), snapshot.owners.owners().count())
        };
        assert_eq!(owners(), (false, 0));
        // So it is before anybody noted anything.
        replica.0.take_owners(Event::Listed(map(Value::Null)));
        assert_eq!(owners(), (true, 0));
        let noted = r#"[["u","team","example.com/v1","Web","web"],1,0,1]"#;
        replica
            .0
            .take_owners(Event::Changed(map(json!({"loops": noted}))));
        assert_eq!(owners(), (true, 1));
        for emptied in [Value::Null, json!({})] {
            replica.0.take_owners(Event::Changed(map(emptied.clone())));
            replica.0.take_owners(Event::Listed(map(emptied)));
            assert_eq!(owners(), (true, 1));
        }
        replica.0.take_owners(Event::Changed(map(json!({"loops": ""}))));
        assert_eq!(owners(), (true, 0), "people take out a line");
    }
}
