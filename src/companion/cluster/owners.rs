//! Leaves alone the Pods of owners that fight rewrites: `domain::owners` finds them, this looks at what it asks for, keeps
//! the notes of them in a ConfigMap, which is how webhooks and the next leader know, and tells of each.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use kube::{Api, api::PostParams};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::leader::{Keeping, Leader};
use crate::{
    api::{MODE_LABEL, OWNERS_CONFIG_MAP},
    clock,
    cluster::{
        events::Message,
        objects::{self, CONTROLLERS_KEY, LOOPS_KEY, Node, Owned},
        pods::Pod,
        request::bounded,
        sources,
        watch::{Failure, get},
        writer::NotWritten,
    },
    domain::{
        mirror::Mode,
        owners::{Controller, Fate, Found, LeftAlone, Loop, Owner, Question, Resource, Suspect, Watch},
        routing::Routing,
        snapshot::Snapshot,
        time::Timestamp,
    },
    telemetry::Reminder,
};

/// The time between two looks at whatever is asked for.
const PACE: Duration = Duration::from_millis(100);

/// The pause after the API server failed.
const PAUSE: Duration = Duration::from_secs(2);

/// The time between two writes at least: what is found together is written together.
const BETWEEN: Duration = Duration::from_secs(1);

/// How often it is looked at what is forgotten, and whether people changed the ConfigMap.
const LOOK: Duration = Duration::from_mins(1);

/// How many owners wait to be told of.
const TO_TELL: usize = 1000;

/// The owners of the cluster's Pods. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    watch: Arc<Mutex<Watch>>,
    /// Something may have to be looked at, or to be noted.
    due: Arc<(Notify, Notify)>,
}

impl Owners {
    /// Takes in a Pod of a namespace of this mode.
    pub(super) fn take(&self, pod: &Pod, mode: Mode, snapshot: &Snapshot, now: Timestamp) {
        let routing = &snapshot.routing;
        if snapshot.left_alone.contains(pod.id().0) {
            return;
        }
        let Some(pod) = pod.as_owned(routing) else { return };
        // Where nothing is rewritten nobody need know whose the controllers are.
        if mode == Mode::Enforce || pod.is_rewritten {
            self.lock().take(
                &pod,
                |api_version, kind| excluded(routing, api_version, kind),
                now,
            );
            self.wake();
        }
    }

    pub(super) fn remove(&self, pod: &Pod, snapshot: &Snapshot, now: Timestamp) {
        let Some(pod) = pod.as_owned(&snapshot.routing) else {
            return;
        };
        if pod.is_rewritten {
            self.lock().remove(&pod, now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.due.0.notify_one();
        self.due.1.notify_one();
    }
}

/// Whether some mirror leaves alone the Pods of resources of this `apiVersion` and kind.
fn excluded(routing: &Routing, api_version: &str, kind: &str) -> bool {
    let mut mirrors = routing.mirrors();
    mirrors.any(|(_, mirror)| mirror.excludes(api_version, kind))
}

/// Works until this process may not write any more.
pub(super) async fn run(leader: Leader, owners: Owners) {
    tokio::select! {
        () = look(&leader, &owners) => {}
        () = keep(&leader, &owners) => {}
    }
}

/// Looks at one thing after the other, for ever.
async fn look(leader: &Leader, owners: &Owners) {
    let mut failures = Reminder::default();
    // These go on whatever else is answered meanwhile.
    let mut refusals = Reminder::default();
    loop {
        let asked = owners.lock().next_question();
        let Some(asked) = asked else {
            owners.due.0.notified().await;
            continue;
        };
        let answered = match &asked.question {
            Question::Owner(controller) => {
                let found = look_at(leader, controller).await;
                found.map(|found| {
                    let routing = leader.store.snapshot().routing.clone();
                    let found = found.map_or(Found::Gone, |found| {
                        Found::Owner(found.owner().map(|owner| resource(&controller.namespace, owner)))
                    });
                    let excluded = |api_version: &str, kind: &str| excluded(&routing, api_version, kind);
                    owners.lock().answer(controller, found, excluded, clock::now());
                })
            }
            Question::Fate(suspect) => {
                let fate = fate(leader, suspect).await;
                fate.map(|fate| owners.lock().judge(suspect, fate, clock::now()))
            }
        };
        owners.due.1.notify_one();
        match answered {
            Ok(()) => {
                failures.ended();
                sleep(PACE).await;
            }
            Err(error) => {
                let is_its_fault = is_fault_of_question(&error);
                owners.lock().again(asked, is_its_fault);
                let error = error.to_string();
                let reminder = if is_its_fault {
                    &mut refusals
                } else {
                    &mut failures
                };
                if reminder.failed(&error, std::time::Instant::now()) {
                    tracing::warn!(error, "cannot look at an owner of Pods; trying again");
                }
                // What one question is refused for must not keep others waiting.
                sleep(if is_its_fault { PACE } else { PAUSE }).await;
            }
        }
    }
}

/// Whether a request failed for what it asks, so that it will again, and others will not.
const fn is_fault_of_question(failure: &Failure) -> bool {
    match failure {
        // Who asks and how often is nothing of what is asked.
        Failure::Refused { code, .. } => matches!(code, 400..500) && !matches!(code, 401 | 408 | 429),
        Failure::Gone | Failure::Unusable(_) => true,
        Failure::Silent | Failure::Broken(_) => false,
    }
}

fn resource(namespace: &str, owner: Owner<'_>) -> Resource {
    Resource {
        namespace: namespace.into(),
        api_version: owner.api_version.into(),
        kind: owner.kind.into(),
        name: owner.name.into(),
        uid: owner.uid.into(),
    }
}

/// Looks at what became of a Pod that was deleted and replaced.
async fn fate(leader: &Leader, suspect: &Suspect) -> Result<Fate, Failure> {
    if !suspect.node.is_empty() {
        let source = sources::one_of("/api/v1/nodes".to_owned(), false);
        let node = get::<Node>(&leader.client, &source, &suspect.node).await?;
        if node.is_none_or(|node| node.spec.unschedulable) {
            return Ok(Fate::Excused);
        }
    }
    let Some(controller) = &suspect.controller else {
        return Ok(Fate::Deleted(None));
    };
    let found = look_at(leader, controller).await?;
    Ok(Fate::Deleted(found.map(|found| found.metadata.generation)))
}

/// Returns a built-in controller, if it is there.
async fn look_at(leader: &Leader, controller: &Controller) -> Result<Option<Owned>, Failure> {
    let source = sources::one_of(controller.kind.path(&controller.namespace), true);
    let found = get::<Owned>(&leader.client, &source, &controller.name).await?;
    Ok(found.filter(|found| found.metadata.uid == *controller.uid))
}

/// Keeps the notes. Returns once nothing may be written any more.
async fn keep(leader: &Leader, owners: &Owners) {
    let maps = Api::<ConfigMap>::namespaced(leader.client.clone(), &leader.namespace);
    let mut keeping = Keeping::of(OWNERS_CONFIG_MAP);
    let mut notes = Notes::default();
    let mut to_tell: Vec<Loop> = Vec::new();
    loop {
        let started = Instant::now();
        owners.lock().tidy(clock::now());
        let kept = notes.keep(leader, &maps, owners).await;
        notes.has_failed = kept.is_err();
        to_tell.extend(owners.lock().found().into_iter().take(TO_TELL - to_tell.len()));
        let told = match &kept {
            Ok(()) => tell(leader, &mut to_tell).await,
            Err(NotWritten::NotLeading) => return,
            // What webhooks do not know is not so.
            Err(_) => Ok(()),
        };
        if let Err(NotWritten::NotLeading) = told {
            return;
        }
        let pause = match kept {
            Ok(()) => {
                keeping.went_well();
                LOOK
            }
            Err(error) => keeping.failed(
                &error,
                "which owners fight rewrites: webhooks do not know of them",
                LOOK,
            ),
        };
        let due = started + pause;
        sleep(BETWEEN).await;
        while !notes.is_due(owners) {
            tokio::select! {
                () = owners.due.1.notified() => {}
                () = sleep_until(due) => break,
            }
        }
    }
}

/// What is known of the ConfigMap.
#[derive(Default)]
struct Notes {
    /// The version of what was written or read last; none before it was read.
    version: Option<u64>,
    /// The owners that it had then.
    loops: BTreeSet<Box<str>>,
    /// The last try failed.
    has_failed: bool,
}

impl Notes {
    /// Whether there is something to write. After a failure it is tried again in its own time.
    fn is_due(&self, owners: &Owners) -> bool {
        let version = owners.lock().left_alone().1;
        !self.has_failed && self.version.is_some_and(|known| known != version)
    }

    /// Returns the owners that people let go by taking them out. Who puts the chart's own ConfigMap there again, which has
    /// no data at all, takes out nobody.
    fn taken_out<'n>(
        &'n self,
        noted: &LeftAlone,
        data: Option<&BTreeMap<String, String>>,
    ) -> impl Iterator<Item = &'n str> {
        let is_emptied = data.is_none_or(BTreeMap::is_empty);
        let gone: Vec<_> = self
            .loops
            .iter()
            .map(|owner| &**owner)
            .filter(|owner| !is_emptied && !noted.knows(owner))
            .collect();
        gone.into_iter()
    }

    /// Reads the notes, brings them up to date, and writes them where that changes them.
    async fn keep(
        &mut self,
        leader: &Leader,
        maps: &Api<ConfigMap>,
        owners: &Owners,
    ) -> Result<(), NotWritten> {
        let mut map = bounded(maps.get(OWNERS_CONFIG_MAP)).await?;
        let noted = objects::owners(map.data.as_ref());
        let (texts, left, version) = {
            let mut watch = owners.lock();
            if self.version.is_none() {
                watch.inherit(noted.clone(), clock::now());
            }
            for owner in self.taken_out(&noted, map.data.as_ref()) {
                tracing::info!(owner, "an owner was taken out of the notes");
                watch.release(owner);
            }
            let (left, version) = watch.left_alone();
            (left.write(), left.clone(), version)
        };
        let before = map.data.clone().unwrap_or_default();
        let data = map.data.get_or_insert_default();
        for (key, text) in [LOOPS_KEY, CONTROLLERS_KEY].into_iter().zip(texts) {
            data.insert(key.to_owned(), text);
        }
        if *data != before {
            let parameters = PostParams::default();
            let request = maps.replace(OWNERS_CONFIG_MAP, &parameters, &map);
            leader.writer.write("ConfigMap", request).await?;
        }
        self.version = Some(version);
        self.loops = left.owners().map(Into::into).collect();
        leader.store.set_owners(Arc::new(left));
        Ok(())
    }
}

/// Tells of the owners that were found to fight, each once.
async fn tell(leader: &Leader, found: &mut Vec<Loop>) -> Result<(), NotWritten> {
    while let Some(noted) = found.pop() {
        let Loop {
            owner, times, until, ..
        } = &noted;
        tracing::warn!(
            owner = owner.describe(),
            times,
            %until,
            "an owner kept recreating rewritten Pods, so they are left alone"
        );
        let regarding = ObjectReference {
            api_version: Some(owner.api_version.to_string()),
            kind: Some(owner.kind.to_string()),
            namespace: Some(owner.namespace.to_string()),
            name: Some(owner.name.to_string()),
            uid: Some(owner.uid.to_string()),
            ..ObjectReference::default()
        };
        let message = Message {
            action: "LeaveAlone",
            reason: "OwnerLoop",
            note: format!(
                "Pods whose images Kagami rewrote were recreated again and again, so Kagami leaves the Pods of this \
                 owner alone until {until}. The label {MODE_LABEL}: \"off\" on its Pods makes that permanent"
            ),
            is_warning: true,
        };
        if let Err(error) = leader.events.tell(regarding, message).await {
            found.push(noted);
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_told_from_who_answers() {
        let refused = |code| Failure::Refused {
            code,
            message: String::new(),
        };
        for code in [400, 403, 404, 405, 422] {
            assert!(is_fault_of_question(&refused(code)), "{code}");
        }
        for code in [401, 408, 429, 500, 503] {
            assert!(!is_fault_of_question(&refused(code)), "{code}");
        }
        assert!(is_fault_of_question(&Failure::Unusable(String::new())));
        assert!(!is_fault_of_question(&Failure::Broken(String::new())));
        assert!(!is_fault_of_question(&Failure::Silent));
    }

    #[test]
    fn who_empties_the_notes_lets_nobody_go() {
        let owners = |uids: &[&str]| {
            let lines = uids
                .iter()
                .map(|uid| format!("[[\"{uid}\",\"team\",\"example.com/v1\",\"Web\",\"web\"],1,0,1]\n"));
            LeftAlone::read(&lines.collect::<String>(), "")
        };
        let notes = Notes {
            loops: owners(&["a", "b"]).owners().map(Into::into).collect(),
            ..Notes::default()
        };
        let check = |left: &[&str], data: Option<&[&str]>, expected: &[&str]| {
            let data: Option<BTreeMap<_, _>> = data.map(|keys| {
                let keys = keys.iter();
                keys.map(|key| ((*key).to_owned(), String::new())).collect()
            });
            let gone: Vec<_> = notes.taken_out(&owners(left), data.as_ref()).collect();
            assert_eq!(gone, expected, "{data:?}");
        };
        check(&["a", "b"], Some(&[LOOPS_KEY]), &[]);
        check(&["a"], Some(&[LOOPS_KEY]), &["team/b"]);
        check(&[], Some(&[LOOPS_KEY]), &["team/a", "team/b"]);
        check(&[], Some(&[CONTROLLERS_KEY]), &["team/a", "team/b"]);
        // As the chart's own has none.
        check(&[], Some(&[]), &[]);
        check(&[], None, &[]);
    }

    #[test]
    fn a_failed_write_is_tried_again_in_its_own_time() {
        let owners = Owners::default();
        let mut notes = Notes {
            version: Some(owners.lock().left_alone().1),
            ..Notes::default()
        };
        assert!(!notes.is_due(&owners));
        owners.lock().inherit(LeftAlone::default(), Timestamp::default());
        assert!(notes.is_due(&owners));
        notes.has_failed = true;
        assert!(!notes.is_due(&owners));
    }
}
