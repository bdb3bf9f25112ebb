//! The one watch of the API server, against a peer that speaks as a test says.

use std::{convert::Infallible, time::Duration};

use kagami::cluster::{
    objects::Outline,
    sources,
    watch::{Event, Pulse, Source, follow},
};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::support::faulty::{Action, Behaviour, Faulty, Reply, Request};

/// A watch that runs, and what it told.
struct Watch {
    peer: Faulty,
    told: mpsc::UnboundedReceiver<String>,
    fell_silent: bool,
    _running: tokio::task::JoinSet<Infallible>,
    _relists: watch::Sender<u64>,
}

impl Watch {
    /// Follows Namespaces, which are taken as a stream or in pages.
    async fn start(answer: impl Fn(&Request) -> Action + Send + Sync + 'static) -> Self {
        Self::follow(sources::namespaces(), answer).await
    }

    async fn follow(source: Source, answer: impl Fn(&Request) -> Action + Send + Sync + 'static) -> Self {
        let peer = Faulty::start(Behaviour::answer(answer)).await;
        let client = Client::try_from(kube::Config::new(peer.url().parse().unwrap())).unwrap();
        let (tell, told) = mpsc::unbounded_channel();
        let (relists, wanted) = watch::channel(0);
        let mut running = tokio::task::JoinSet::new();
        let handle = move |event: Event<Outline>| {
            let event = match event {
                Event::Listing => "listing".to_owned(),
                Event::Listed(object) => format!("listed {}", object.metadata.name),
                Event::ListedAll { .. } => "listed all".to_owned(),
                Event::Changed(object) => format!("changed {}", object.metadata.name),
                Event::Deleted(object) => format!("deleted {}", object.metadata.name),
                Event::Reached(version) => format!("reached {}", version.0),
            };
            drop(tell.send(event));
        };
        running.spawn(follow(client, source, Pulse::default(), wanted, handle));
        Self {
            peer,
            told,
            fell_silent: false,
            _running: running,
            _relists: relists,
        }
    }

    async fn next(&mut self) -> String {
        let told = tokio::time::timeout(Duration::from_secs(50), self.told.recv()).await;
        told.unwrap().unwrap()
    }

    /// Checks what is told next.
    #[track_caller]
    fn check(&mut self, expected: &[&str]) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            for expected in expected {
                let mut told = self.next().await;
                while self.fell_silent && told == "listing" {
                    told = self.next().await;
                }
                self.fell_silent = false;
                assert_eq!(told, *expected, "{caller}");
            }
        }
    }

    /// Lets the clock run ahead to what waits for its time, until a list begins anew; and reads on behind that. The
    /// request after it may have no answer in time either, as nothing else takes time.
    async fn fall_silent(&mut self) {
        tokio::time::pause();
        self.check(&["listing"]).await;
        tokio::time::resume();
        self.fell_silent = true;
    }

    /// Returns how many requests had this in their query.
    fn asked(&self, what: &str) -> usize {
        let requests = self.peer.requests();
        requests
            .iter()
            .filter(|request| request.target.contains(what))
            .count()
    }
}

const STREAM: &str = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";

fn event(kind: &str, name: &str, version: &str) -> Value {
    json!({"type": kind, "object": {"metadata": {"name": name, "resourceVersion": version}}})
}

fn bookmark(version: &str, ends: bool) -> Value {
    let annotations = if ends {
        json!({"k8s.io/initial-events-end": "true"})
    } else {
        json!({})
    };
    json!({"type": "BOOKMARK", "object": {
        "kind": "Namespace",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": version, "annotations": annotations},
    }})
}

/// A watch that tells these events and goes on.
fn events(events: &[Value]) -> Action {
    let lines: Vec<_> = events.iter().map(Value::to_string).collect();
    Reply::new(200).hanging_body(lines.join("\n") + "\n").into()
}

fn page(names: &[&str], version: &str, next: &str) -> Action {
    let item = |name: &&str| json!({"metadata": {"name": name, "resourceVersion": "1"}});
    let items: Vec<_> = names.iter().map(item).collect();
    let body = json!({"metadata": {"resourceVersion": version, "continue": next}, "items": items});
    Reply::json(200, &body).into()
}

fn refusal(code: u16) -> Action {
    Reply::json(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "code": code}),
    )
    .into()
}

#[tokio::test]
async fn a_list_is_taken_as_a_stream_where_the_api_server_offers_it() {
    let mut watch = Watch::start(|request| {
        if request.target.contains(STREAM) {
            events(&[
                event("ADDED", "a", "3"),
                event("ADDED", "b", "4"),
                bookmark("5", false),
                event("DELETED", "a", "6"),
                bookmark("7", true),
                event("MODIFIED", "told again by the next request", "8"),
            ])
        } else if request.target.contains("resourceVersion=7") {
            events(&[event("MODIFIED", "b", "8"), bookmark("9", false)])
        } else {
            refusal(500)
        }
    })
    .await;
    watch
        .check(&["listing", "listed a", "listed b", "deleted a"])
        .await;
    watch.check(&["listed all", "reached 7"]).await;
    watch.check(&["changed b", "reached 8", "reached 9"]).await;
    assert_eq!(watch.asked("limit="), 0);
}

#[tokio::test]
async fn who_does_not_stream_lists_is_asked_for_pages_from_then_on() {
    for code in [400, 422] {
        let mut watch = Watch::start(move |request| {
            let has = |what: &str| request.target.contains(what);
            if has(STREAM) {
                refusal(code)
            } else if has("watch=true") {
                refusal(410)
            } else if has("continue=more") {
                page(&["b"], "5", "")
            } else {
                page(&["a"], "5", "more")
            }
        })
        .await;
        let list = ["listing", "listed a", "listed b", "listed all", "reached 5"];
        watch.check(&["listing"]).await;
        watch.check(&list).await;
        watch.check(&list).await;
        assert_eq!(watch.asked(STREAM), 1, "{code}");
    }
}

#[tokio::test]
async fn a_list_that_falls_silent_or_ends_early_begins_anew() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let mut watch = Watch::start(move |request| {
        if !request.target.contains(STREAM) {
            return Action::Hang;
        }
        match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => events(&[event("ADDED", "a", "3")]),
            1 => Reply::new(200)
                .body(format!("{}\n", event("ADDED", "b", "4")))
                .into(),
            _ => events(&[event("ADDED", "c", "4"), bookmark("5", true)]),
        }
    })
    .await;
    watch.check(&["listing", "listed a"]).await;
    watch.fall_silent().await;
    watch
        .check(&["listed b", "listing", "listed c", "listed all"])
        .await;
}

/// One list of all, read while it comes in: what came is known though the rest hangs, and then it is asked for in another
/// way.
#[tokio::test]
async fn many_small_objects_are_listed_at_once() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let list = |names: &[&str], version: &str| {
        let item = |name: &&str| json!({"metadata": {"name": name, "resourceVersion": "1"}});
        let items: Vec<_> = names.iter().map(item).collect();
        json!({"metadata": {"resourceVersion": version}, "items": items}).to_string()
    };
    let mut watch = Watch::follow(sources::images(), move |request| {
        let has = |what: &str| request.target.contains(what);
        let whole = list(&["a", "b"], "5");
        if has(STREAM) {
            return events(&[event("ADDED", "c", "6"), bookmark("6", true)]);
        } else if has("watch=true") {
            return refusal(410);
        }
        match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Reply::new(200).body(whole).into(),
            2 => Reply::new(200).body(&whole[..whole.len() - 2]).into(),
            3 => Reply::new(200).hanging_body(&whole[..whole.len() - 2]).into(),
            _ => refusal(500),
        }
    })
    .await;
    let items = ["listing", "listed a", "listed b"];
    watch.check(&items).await;
    watch.check(&["listed all", "reached 5", "listing"]).await;
    assert_eq!(watch.asked(STREAM) + watch.asked("limit="), 0);
    // One that is refused, one that is cut off, and one that falls silent tell of no end.
    watch.check(&items).await;
    watch.check(&items).await;
    watch.fall_silent().await;
    watch.check(&["listed c", "listed all", "reached 6"]).await;
}

/// A Role of before says nothing of what everything works without, until people change it.
#[tokio::test]
async fn who_is_refused_what_is_dispensable_asks_seldom() {
    for (code, asks_on) in [(403, false), (404, false), (500, true)] {
        let asked = |source| Watch::follow(source, move |_| refusal(code));
        let mut needed = asked(sources::namespaces()).await;
        let mut dispensable = asked(sources::originals("kagami")).await;
        dispensable.check(&["listing"]).await;
        needed.check(&["listing"; 6]).await;
        if asks_on {
            dispensable.check(&["listing"; 3]).await;
        } else {
            assert!(dispensable.told.is_empty(), "{code}");
            assert_eq!(dispensable.peer.requests().len(), 1, "{code}");
            tokio::time::pause();
            tokio::time::sleep(Duration::from_mins(1)).await;
            tokio::time::resume();
            dispensable.check(&["listing"]).await;
        }
    }
}
