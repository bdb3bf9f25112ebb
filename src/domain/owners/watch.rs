//! Watches owners: how often their rewritten Pods are replaced, and whose the controllers are that make Pods.
//!
//! A Pod that goes and one that comes soon after for the same owner make a replacement; what was replaced again and
//! again is a line. A roll-out replaces many Pods once each, so every line of it is short. Where a built-in controller
//! made the Pods, whatever is wanted of it stands in its spec, so one whose generation is another than when the line was
//! last looked at was scaled, and its Pods were not made anew for their images. Nothing is kept of Pods that live on:
//! what counts of a Pod stands in its last version.

use std::{
    collections::{HashMap, VecDeque, btree_map::Entry},
    time::Duration,
};

use super::{
    super::time::Timestamp,
    API_VERSION, Controller, KIND, Key, Kind, LeftAlone, Loop, Resource, UID,
    asked::{AGAIN, Answer, Answers, Asked, Turns},
    is_custom, is_name,
};

/// So many replacements in a row within so long a time are a loop: of an operator that acts at once, and of one that
/// acts at each of its syncs.
const QUICK: (usize, Duration) = (3, Duration::from_mins(10));
const SLOW: (usize, Duration) = (5, Duration::from_hours(24));

/// The same of an owner that looped before.
const BEFORE: (usize, Duration) = (2, Duration::from_hours(24));

/// How long after a Pod went another one still replaces it. What comes later is made for another reason, as when
/// something is scaled down and up again.
const PROMPT: Duration = Duration::from_mins(2);

/// A Pod that was ready for so long was wanted as it is.
const SETTLED: Duration = Duration::from_hours(1);

/// The times of creation and deletion are whole seconds.
const SECOND: Duration = Duration::from_secs(1);

/// A controller of which nothing was heard for so long is asked for again, for it may be gone.
const QUIET: Duration = Duration::from_hours(24);

/// A Pod that is so young was just made, and so may its controller have been.
const FRESH: Duration = Duration::from_mins(1);

/// How many owners are watched, how many lines of each and how many controllers.
const OWNERS: usize = 10_000;
const LINES: usize = 32;
const CONTROLLERS: usize = 32;

/// The owner that an owner reference names.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
}

impl Owner<'_> {
    /// Whether there can be such an owner. Whoever may create Pods or controllers writes their owner references, and
    /// the API server only looks whether they are empty: nothing else may be kept, written or asked for.
    pub fn can_be(&self) -> bool {
        let of = |text: &str, longest: usize, other: &[u8]| {
            let may_be = |byte: u8| byte.is_ascii_alphanumeric() || other.contains(&byte);
            !text.is_empty() && text.len() <= longest && text.bytes().all(may_be)
        };
        of(self.api_version, API_VERSION, b"-./")
            && of(self.kind, KIND, b"-")
            && of(self.uid, UID, b"-")
            && is_name(self.name)
    }
}

/// The part of a Pod that counts.
#[derive(Clone, Copy, Debug)]
pub struct Pod<'a> {
    pub uid: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// A custom resource, or a built-in controller that one may own.
    pub owner: Owner<'a>,
    pub created: Option<Timestamp>,
    /// When its deletion was asked for.
    pub deleted: Option<Timestamp>,
    /// Some image of it was rewritten.
    pub is_rewritten: bool,
    /// Equal for Pods of which the same was wanted.
    pub revision: u64,
    /// The cluster took it away, not its owner.
    pub is_disrupted: bool,
    /// Whether it is ready, and since when it is or is not.
    pub ready: Option<(bool, Timestamp)>,
    /// Its node; nothing if it has none.
    pub node: &'a str,
}

/// A Pod that was replaced, if its owner took it away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    owner: Key,
    line: u64,
    pub namespace: Box<str>,
    /// Its node; nothing if it had none.
    pub node: Box<str>,
    /// The built-in controller that made the Pod which replaced it.
    pub controller: Option<Controller>,
    at: Timestamp,
}

/// What somebody must look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whose a controller is.
    Owner(Controller),
    /// What became of a Pod: whether its node is there, and the generation of its controller.
    Fate(Suspect),
}

/// Whose a controller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is none of that UID.
    Gone,
    /// The owner that its own controller reference names.
    Owner(Option<Resource>),
}

/// What became of a Pod that was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its owner deleted it, as far as anybody can tell. With the generation of its controller, where a built-in one of
    /// that name and UID is there.
    Deleted(Option<i64>),
    /// Its node is gone or cordoned.
    Excused,
}

#[derive(Debug)]
struct Watched {
    owner: Resource,
    lines: Vec<Line>,
    /// The controllers that made its Pods, the newest last.
    controllers: VecDeque<Controller>,
    touched: Timestamp,
}

/// Pods one of which replaced the other.
#[derive(Debug)]
struct Line {
    id: u64,
    /// When Pods were replaced that their owner took away.
    replaced: Vec<Timestamp>,
    /// When its last Pod came: what became of the one before may not be known at once.
    came: Timestamp,
    revision: u64,
    /// The controller that made its last Pod, and its generation when that was looked at.
    generation: Option<(Box<str>, i64)>,
    last: Last,
}

/// The last Pod of a line.
#[derive(Debug)]
enum Last {
    There(Box<str>),
    Gone {
        uid: Box<str>,
        name: Box<str>,
        node: Box<str>,
        is_done: bool,
        since: Timestamp,
        /// When it was told of last: it may have taken long to end.
        until: Timestamp,
    },
}

/// All owners that are watched.
#[derive(Debug, Default)]
pub struct Watch {
    left: LeftAlone,
    /// Counts the changes of what is left alone.
    version: u64,
    owners: HashMap<Key, Watched>,
    answers: Answers,
    fresh: Turns,
    rest: Turns,
    suspects: Turns,
    /// Of controllers and Pods one is looked at in turn: the last one was a Pod.
    looked_at_pod: bool,
    /// When something was heard last of the controllers that are noted.
    heard: HashMap<Key, Timestamp>,
    found: Vec<Loop>,
    lines: u64,
}

impl Watch {
    /// Takes in a Pod as it is now. `is_listed` is whether a list tells it. `excluded` tells whether some mirror
    /// leaves alone the Pods of a resource of this `apiVersion` and kind.
    pub fn take(&mut self, pod: &Pod<'_>, excluded: impl Fn(&str, &str) -> bool, now: Timestamp) {
        let Some(owner) = self.owner_of(pod, now) else {
            return;
        };
        self.note(pod, &owner, excluded, now);
        if pod.deleted.is_some() {
            self.went(pod, &owner, now);
        } else {
            self.came(pod, &owner, now);
        }
    }

    /// Takes in that a Pod is gone, or done.
    pub fn remove(&mut self, pod: &Pod<'_>, now: Timestamp) {
        if let Some(owner) = self.owner_of(pod, now) {
            self.went(pod, &owner, now);
        }
    }

    /// Returns what is to be looked at next, if something is.
    pub fn next_question(&mut self) -> Option<Asked> {
        self.looked_at_pod = !self.looked_at_pod;
        if self.looked_at_pod {
            let pod = self.suspects.next();
            pod.or_else(|| self.next_controller())
        } else {
            self.next_controller().or_else(|| self.suspects.next())
        }
    }

    fn next_controller(&mut self) -> Option<Asked> {
        self.fresh.next().or_else(|| self.rest.next())
    }

    /// Takes in whose a controller is.
    pub fn answer(
        &mut self,
        controller: &Controller,
        found: Found,
        excluded: impl Fn(&str, &str) -> bool,
        now: Timestamp,
    ) {
        let key = controller.key();
        let owner = match found {
            // A Pod that gives this UID another name says nothing of what is noted.
            Found::Gone => {
                let held = self.left.controllers.get(&key);
                if let Some(other) = held.filter(|held| held.controller != *controller) {
                    Some(other.owner.clone())
                } else {
                    self.version += u64::from(self.left.controllers.remove(&key).is_some());
                    self.heard.remove(&key);
                    None
                }
            }
            Found::Owner(owner) => {
                let owner = owner.filter(|owner| is_custom(&owner.api_version));
                if let Some(owner) = &owner {
                    self.note_controller(controller, owner, excluded, now);
                }
                owner
            }
        };
        self.answers.insert(key, Answer::Owner(owner));
    }

    /// Takes in that something could not be looked at: it comes again, and where that is its own fault, a few times.
    /// A controller is asked for anew then with a later event of its Pods.
    pub fn again(&mut self, asked: Asked, is_its_fault: bool) {
        let asked = if is_its_fault {
            asked.after_failure()
        } else {
            Some(asked)
        };
        let Some(asked) = asked else { return };
        match &asked.question {
            Question::Owner(_) => self.rest.push(asked),
            Question::Fate(_) => self.suspects.push(asked),
        }
    }

    /// Takes in what became of a Pod that was replaced.
    pub fn judge(&mut self, suspect: &Suspect, fate: Fate, now: Timestamp) {
        let Fate::Deleted(generation) = fate else { return };
        if !self.was_scaled(suspect, generation) {
            self.count(&suspect.owner, suspect.line, suspect.at, now);
        }
    }

    /// Returns the owners that were found to loop since this was asked last.
    pub fn found(&mut self) -> Vec<Loop> {
        std::mem::take(&mut self.found)
    }

    /// Returns what is left alone, and a number that is another one after every change of it.
    pub fn left_alone(&self) -> (&LeftAlone, u64) {
        (&self.left, self.version)
    }

    /// Takes in what was noted before. Of an owner that both know, who left it alone more often is believed.
    pub fn inherit(&mut self, noted: LeftAlone, now: Timestamp) {
        for (key, noted) in noted.loops {
            let known = self.left.loops.get(&key);
            if known.is_none_or(|known| known.times < noted.times) {
                self.left.loops.insert(key, noted);
            }
        }
        for (key, held) in noted.controllers {
            self.answers
                .insert(key.clone(), Answer::Owner(Some(held.owner.clone())));
            self.heard.entry(key.clone()).or_insert(now);
            self.left.controllers.entry(key).or_insert(held);
        }
        self.left.is_known = true;
        self.version += 1;
        self.left.fit();
        self.tidy(now);
    }

    /// Takes in that people took an owner out of the notes, named as by [`LeftAlone::owners`]: it is as any other.
    pub fn release(&mut self, owner: &str) {
        self.version += u64::from(self.left.loops.remove(owner).is_some());
        self.owners.remove(owner);
    }

    /// Forgets what counts no more.
    pub fn tidy(&mut self, now: Timestamp) {
        self.owners.retain(|_, watched| {
            watched.lines.retain_mut(|line| {
                line.replaced.retain(|at| now.since(*at) < SLOW.1);
                match line.last {
                    Last::There(_) => !line.replaced.is_empty() || now.since(line.came) <= PROMPT,
                    Last::Gone { until, .. } => now.since(until) <= PROMPT,
                }
            });
            !watched.lines.is_empty()
        });
        let before = self.left.loops.len();
        self.left.loops.retain(|_, noted| !noted.is_forgotten(now));
        self.version += u64::from(self.left.loops.len() != before);
        self.heard
            .retain(|controller, _| self.left.controllers.contains_key(controller));
        for (key, held) in &self.left.controllers {
            let heard = self.heard.entry(key.clone()).or_insert(now);
            if now.since(*heard) >= QUIET {
                *heard = now;
                self.rest
                    .push(Asked::new(Question::Owner(held.controller.clone())));
            }
        }
    }

    /// Returns the custom resource that wants a Pod, as far as it is known; asks for it where it may be known soon.
    fn owner_of(&mut self, pod: &Pod<'_>, now: Timestamp) -> Option<Resource> {
        let Owner {
            api_version,
            kind,
            name,
            uid,
        } = pod.owner;
        if is_custom(api_version) {
            return Some(Resource {
                namespace: pod.namespace.into(),
                api_version: api_version.into(),
                kind: kind.into(),
                name: name.into(),
                uid: uid.into(),
            });
        }
        let controller = controller_of(pod)?;
        let key = controller.key();
        match self.answers.get(&key) {
            Some(Answer::Owner(owner)) => return owner.clone(),
            Some(Answer::Asked(at)) if now.since(*at) < AGAIN => return None,
            Some(Answer::Asked(_)) | None => {}
        }
        self.answers.insert(key, Answer::Asked(now));
        let asked = Asked::new(Question::Owner(controller));
        if pod.created.is_some_and(|created| now.since(created) < FRESH) {
            self.fresh.push(asked);
        } else {
            self.rest.push(asked);
        }
        None
    }

    /// Notes the controller that made a Pod, where others must know it.
    fn note(
        &mut self,
        pod: &Pod<'_>,
        owner: &Resource,
        excluded: impl Fn(&str, &str) -> bool,
        now: Timestamp,
    ) {
        let Some(controller) = controller_of(pod) else {
            return;
        };
        self.note_controller(&controller, owner, excluded, now);
    }

    fn note_controller(
        &mut self,
        controller: &Controller,
        owner: &Resource,
        excluded: impl Fn(&str, &str) -> bool,
        now: Timestamp,
    ) {
        let must_be_known =
            self.left.loops.contains_key(&owner.key()) || excluded(&owner.api_version, &owner.kind);
        if must_be_known {
            self.hold(controller.clone(), owner.clone(), now);
        }
        if let Some(watched) = self.owners.get_mut(&owner.key()) {
            let known = &mut watched.controllers;
            if !known.iter().any(|known| known.uid == controller.uid) {
                if known.len() >= CONTROLLERS {
                    known.pop_front();
                }
                known.push_back(controller.clone());
            }
        }
    }

    fn hold(&mut self, controller: Controller, owner: Resource, now: Timestamp) {
        let key = controller.key();
        self.heard.insert(key.clone(), now);
        if let Entry::Vacant(entry) = self.left.controllers.entry(key) {
            entry.insert(super::Held { controller, owner });
            self.left.fit();
            self.version += 1;
        }
    }

    /// Takes in that a Pod goes or is gone.
    fn went(&mut self, pod: &Pod<'_>, owner: &Resource, now: Timestamp) {
        let since = pod.deleted.unwrap_or(now);
        let counts = pod.is_rewritten && !pod.is_disrupted && !is_settled(pod, since);
        // Whoever deletes a Pod that runs is seen to do so before it is gone. Without that it is done or failed: only
        // Pods that run are followed, and it may be cleaned up at once.
        let is_done = pod.deleted.is_none() && !pod.node.is_empty();
        if (!counts || is_done) && !self.owners.contains_key(&owner.key()) {
            return;
        }
        let watched = self.watched(owner, now);
        let is_it = |line: &&mut Line| match &line.last {
            Last::There(uid) | Last::Gone { uid, .. } => **uid == *pod.uid,
        };
        let known = watched.lines.iter_mut().find(is_it);
        if !counts {
            let id = known.map(|line| line.id);
            watched.lines.retain(|line| Some(line.id) != id);
            return;
        }
        let gone = Last::Gone {
            uid: pod.uid.into(),
            name: pod.name.into(),
            node: pod.node.into(),
            is_done,
            since,
            until: now,
        };
        match known {
            Some(line) => match &mut line.last {
                Last::Gone { until, .. } => *until = now,
                Last::There(_) => line.last = gone,
            },
            None => {
                // Long ago it went, and may have been replaced: it only takes long to end.
                if now.since(since) <= PROMPT && !is_done {
                    self.begin_line(owner, pod.revision, gone);
                }
            }
        }
    }

    fn begin_line(&mut self, owner: &Resource, revision: u64, last: Last) {
        self.lines += 1;
        let id = self.lines;
        let Some(watched) = self.owners.get_mut(&owner.key()) else {
            return;
        };
        if watched.lines.len() >= LINES {
            let lines = watched.lines.iter().enumerate();
            let shortest = lines.min_by_key(|(_, line)| (line.replaced.len(), line.id));
            if let Some((shortest, _)) = shortest {
                watched.lines.swap_remove(shortest);
            }
        }
        watched.lines.push(Line {
            id,
            replaced: Vec::new(),
            came: Timestamp::default(),
            revision,
            generation: None,
            last,
        });
    }

    /// Takes in a Pod that is there, and may have come for another one.
    fn came(&mut self, pod: &Pod<'_>, owner: &Resource, now: Timestamp) {
        let Some(watched) = self.owners.get_mut(&owner.key()) else {
            return;
        };
        let mut lines = watched.lines.iter();
        if lines.any(|line| matches!(&line.last, Last::There(uid) if **uid == *pod.uid)) {
            return;
        }
        let created = pod.created.unwrap_or(now);
        let replaces = |line: &Line| match &line.last {
            Last::Gone {
                uid,
                name,
                since,
                until,
                ..
            } => {
                let in_time = created.after(SECOND) > *since && created <= until.after(PROMPT);
                (in_time && **uid != *pod.uid).then(|| (**name == *pod.name, line.replaced.len()))
            }
            Last::There(_) => None,
        };
        let lines = watched.lines.iter().enumerate();
        let lines = lines.filter_map(|(place, line)| Some((replaces(line)?, std::cmp::Reverse(place))));
        let Some((_, std::cmp::Reverse(place))) = lines.max() else {
            return;
        };
        let line = &mut watched.lines[place];
        if !pod.is_rewritten || line.revision != pod.revision {
            watched.lines.swap_remove(place);
            return;
        }
        line.came = now;
        let gone = std::mem::replace(&mut line.last, Last::There(pod.uid.into()));
        let Last::Gone {
            node, is_done: false, ..
        } = gone
        else {
            return;
        };
        let suspect = Suspect {
            owner: owner.key(),
            line: line.id,
            namespace: pod.namespace.into(),
            node,
            controller: controller_of(pod),
            at: now,
        };
        if suspect.node.is_empty() && suspect.controller.is_none() {
            self.judge(&suspect, Fate::Deleted(None), now);
        } else {
            self.suspects.push(Asked::new(Question::Fate(suspect)));
        }
    }

    /// Takes in the generation of the controller that made the Pod which replaced another. Returns whether it is another
    /// one than when the line was looked at before.
    fn was_scaled(&mut self, suspect: &Suspect, generation: Option<i64>) -> bool {
        let (Some(controller), Some(generation)) = (&suspect.controller, generation) else {
            return false;
        };
        let Some(watched) = self.owners.get_mut(&suspect.owner) else {
            return false;
        };
        let Some(line) = watched.lines.iter_mut().find(|line| line.id == suspect.line) else {
            return false;
        };
        let before = line.generation.replace((controller.uid.clone(), generation));
        before.is_some_and(|(uid, before)| uid == controller.uid && before != generation)
    }

    /// Counts a replacement, and leaves the owner alone where that was one too many.
    fn count(&mut self, owner: &str, line: u64, at: Timestamp, now: Timestamp) {
        let Some(watched) = self.owners.get_mut(owner) else {
            return;
        };
        let Some(line) = watched.lines.iter_mut().find(|known| known.id == line) else {
            return;
        };
        line.replaced.push(at);
        line.replaced.retain(|at| now.since(*at) < SLOW.1);
        let known = self.left.loops.get(owner);
        if known.is_some_and(|known| known.is_on(now)) {
            return;
        }
        let within = |(count, length): (usize, Duration)| {
            let replaced = line.replaced.iter().filter(|at| now.since(**at) < length);
            replaced.count() >= count
        };
        let is_loop = within(QUICK) || within(SLOW) || known.is_some() && within(BEFORE);
        if is_loop && let Some(watched) = self.owners.remove(owner) {
            let found = self.left.leave_alone(watched.owner.clone(), now);
            for controller in watched.controllers {
                self.hold(controller, watched.owner.clone(), now);
            }
            self.version += 1;
            self.found.push(found);
        }
    }

    /// Returns how many owners are watched.
    #[cfg(test)]
    pub(super) fn watched_owners(&self) -> usize {
        self.owners.len()
    }

    /// Returns what is known of an owner. Where there is no room, a tenth of those goes that the fullest namespace has:
    /// nobody drives out another's.
    fn watched(&mut self, owner: &Resource, now: Timestamp) -> &mut Watched {
        if self.owners.len() >= OWNERS && !self.owners.contains_key(&owner.key()) {
            let mut namespaces: HashMap<&str, usize> = HashMap::new();
            for watched in self.owners.values() {
                *namespaces.entry(&watched.owner.namespace).or_default() += 1;
            }
            let fullest = namespaces.into_iter().max_by_key(|(name, count)| (*count, *name));
            let fullest: Box<str> = fullest.map_or_else(Box::default, |(name, _)| name.into());
            let of_it = self.owners.values();
            let of_it = of_it.filter(|watched| watched.owner.namespace == fullest);
            let mut of_it: Vec<_> = of_it
                .map(|watched| (watched.touched, watched.owner.key()))
                .collect();
            of_it.sort_unstable();
            of_it.truncate((of_it.len() / 10).max(1));
            for (_, owner) in of_it {
                self.owners.remove(&owner);
            }
        }
        let watched = self.owners.entry(owner.key()).or_insert_with(|| Watched {
            owner: owner.clone(),
            lines: Vec::new(),
            controllers: VecDeque::new(),
            touched: now,
        });
        watched.touched = now;
        watched
    }
}

/// Returns the built-in controller that made a Pod, if one did.
fn controller_of(pod: &Pod<'_>) -> Option<Controller> {
    let Owner {
        api_version,
        kind,
        name,
        uid,
    } = pod.owner;
    Some(Controller {
        namespace: pod.namespace.into(),
        kind: Kind::of(api_version, kind)?,
        name: name.into(),
        uid: uid.into(),
    })
}

/// Whether a Pod has been ready for long when it went, or may have been: nothing tells for how long one was that is
/// not any more.
fn is_settled(pod: &Pod<'_>, went: Timestamp) -> bool {
    let Some((is_ready, since)) = pod.ready else {
        return false;
    };
    let was_ready_for = if is_ready {
        went.since(since)
    } else {
        pod.created.map_or(Duration::ZERO, |created| since.since(created))
    };
    was_ready_for >= SETTLED
}
