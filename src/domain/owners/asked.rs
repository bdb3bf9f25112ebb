//! Whose the built-in controllers are that make Pods: what was asked, and what is to be asked next.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{super::time::Timestamp, Key, Question, Resource, key};

/// How many answers are kept, in each of two generations.
const GENERATION: usize = 10_000;

/// How many questions of one namespace wait, and how many of all.
const OF_ONE: usize = 1_000;
const OF_ALL: usize = 10_000;

/// After which time an answer that did not come is asked for again.
pub(super) const AGAIN: std::time::Duration = std::time::Duration::from_mins(1);

/// So many failures of its own make a question one that cannot be answered.
const FAILURES: u8 = 3;

/// The kinds of built-in controllers whose Pods a custom resource may want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ReplicaSet,
    StatefulSet,
    DaemonSet,
    Job,
}

impl Kind {
    const ALL: [Self; 4] = [Self::ReplicaSet, Self::StatefulSet, Self::DaemonSet, Self::Job];

    /// Returns its name in owner references.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReplicaSet => "ReplicaSet",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::Job => "Job",
        }
    }

    /// Returns the path of those of a namespace.
    pub fn path(self, namespace: &str) -> String {
        let (group, resource) = match self {
            Self::ReplicaSet => ("apps", "replicasets"),
            Self::StatefulSet => ("apps", "statefulsets"),
            Self::DaemonSet => ("apps", "daemonsets"),
            Self::Job => ("batch", "jobs"),
        };
        format!("/apis/{group}/v1/namespaces/{namespace}/{resource}")
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Returns the kind that an owner reference names.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let kind = Self::from_name(kind)?;
        let group = if kind == Self::Job { "batch" } else { "apps" };
        (super::group_of(api_version) == group).then_some(kind)
    }
}

/// A built-in controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    pub namespace: Box<str>,
    pub kind: Kind,
    pub name: Box<str>,
    pub uid: Box<str>,
}

impl Controller {
    pub(super) fn key(&self) -> Key {
        key(&self.namespace, &self.uid)
    }
}

/// A question, and how often it could not be answered through its own fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub question: Question,
    failures: u8,
}

impl Asked {
    pub(super) const fn new(question: Question) -> Self {
        Self {
            question,
            failures: 0,
        }
    }

    /// Returns it after it failed through its own fault; nothing once that was too often.
    pub(super) fn after_failure(mut self) -> Option<Self> {
        self.failures += 1;
        (self.failures < FAILURES).then_some(self)
    }

    fn namespace(&self) -> &str {
        match &self.question {
            Question::Owner(controller) => &controller.namespace,
            Question::Fate(suspect) => &suspect.namespace,
        }
    }
}

/// What is known of a controller.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// It was asked for at that time.
    Asked(Timestamp),
    /// The custom resource that owns it, if one does.
    Owner(Option<Resource>),
}

/// What is known of controllers: of the last ones that somebody asked about.
#[derive(Debug, Default)]
pub(super) struct Answers {
    newer: HashMap<Key, Answer>,
    older: HashMap<Key, Answer>,
}

impl Answers {
    pub(super) fn get(&mut self, controller: &str) -> Option<&Answer> {
        if !self.newer.contains_key(controller) {
            let (controller, answer) = self.older.remove_entry(controller)?;
            self.insert(controller, answer);
        }
        self.newer.get(controller)
    }

    pub(super) fn insert(&mut self, controller: Key, answer: Answer) {
        if self.newer.len() >= GENERATION && !self.newer.contains_key(&controller) {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(controller, answer);
    }
}

/// Questions that wait: namespaces take turns, and in each the newest comes first.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: BTreeMap<Box<str>, VecDeque<Asked>>,
    count: usize,
    last: Box<str>,
}

impl Turns {
    pub(super) fn push(&mut self, asked: Asked) {
        if self.count >= OF_ALL {
            let fullest = self.waiting.iter().max_by_key(|(_, waiting)| waiting.len());
            let fullest = fullest.map(|(namespace, _)| namespace.clone());
            self.drop_oldest(&fullest.unwrap_or_default());
        }
        let waiting = self.waiting.entry(asked.namespace().into()).or_default();
        if waiting.len() >= OF_ONE {
            waiting.pop_front();
            self.count -= 1;
        }
        waiting.push_back(asked);
        self.count += 1;
    }

    fn drop_oldest(&mut self, namespace: &str) {
        if let Some(waiting) = self.waiting.get_mut(namespace) {
            self.count -= usize::from(waiting.pop_front().is_some());
            if waiting.is_empty() {
                self.waiting.remove(namespace);
            }
        }
    }

    pub(super) fn next(&mut self) -> Option<Asked> {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = (Excluded(&*self.last), Unbounded);
        let next = self.waiting.range::<str, _>(after).next();
        let namespace = next.or_else(|| self.waiting.iter().next())?.0.clone();
        let waiting = self.waiting.get_mut(&namespace)?;
        let asked = waiting.pop_back();
        if waiting.is_empty() {
            self.waiting.remove(&namespace);
        }
        self.count -= usize::from(asked.is_some());
        self.last = namespace;
        asked
    }
}
