//! What nodes make of a mirror: whether Pods that were sent there get their images.
//!
//! One failed pull says little: the mirror may just have died, or never had the image. Two in a row
//! of an image that is there, both while the mirror was healthy, say that nodes do not get what
//! Kagami sees: they lack a way, a password or trust.

use std::collections::{BTreeSet, HashMap};

use super::time::Timestamp;

/// How one container stands with its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// The node has it.
    Done,
    /// The node just tried in vain.
    Failed,
    /// The node waits before it tries again.
    Waiting,
}

/// An image of a Pod that comes from a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    pub mirror: Box<str>,
    /// The key of what the user wrote.
    pub key: Box<str>,
    pub pull: Pull,
}

/// The pulls of a cluster's Pods. Of Pods that run nothing is kept.
#[derive(Debug, Default)]
pub struct Pulls {
    failing: HashMap<(Box<str>, Box<str>), Vec<Failing>>,
    /// The mirrors from which some Pod got an image.
    done: BTreeSet<Box<str>>,
}

#[derive(Debug)]
struct Failing {
    mirror: Box<str>,
    key: Box<str>,
    /// The last two attempts.
    attempts: (Option<Timestamp>, Timestamp),
    /// Whether the last one is what the Pod still tells of.
    told: bool,
}

impl Pulls {
    /// Takes in how a Pod stands now.
    pub fn set(&mut self, namespace: &str, pod: &str, seen: &[Pulled], now: Timestamp) {
        let id = (Box::from(namespace), Box::from(pod));
        let mut before = self.failing.remove(&id).unwrap_or_default();
        let mut failing = Vec::new();
        for Pulled { mirror, key, pull } in seen {
            if *pull == Pull::Done {
                if !self.done.contains(mirror) {
                    self.done.insert(mirror.clone());
                }
                continue;
            }
            let same = |known: &Failing| known.mirror == *mirror && known.key == *key;
            let failed = *pull == Pull::Failed;
            let known = before.iter().position(same).map(|at| before.swap_remove(at));
            failing.push(match known {
                Some(mut known) => {
                    if failed && !known.told {
                        known.attempts = (Some(known.attempts.1), now);
                    }
                    known.told = failed;
                    known
                }
                None => Failing {
                    mirror: mirror.clone(),
                    key: key.clone(),
                    attempts: (None, now),
                    told: failed,
                },
            });
        }
        if !failing.is_empty() {
            self.failing.insert(id, failing);
        }
    }

    /// Forgets a Pod.
    pub fn remove(&mut self, namespace: &str, pod: &str) {
        self.failing.remove(&(Box::from(namespace), Box::from(pod)));
    }

    /// Returns whether nodes get the images of a mirror that is healthy since then; none if there is
    /// nothing to tell by. `is_there` is whether Kagami sees an image on the mirror.
    pub fn verdict(
        &self,
        mirror: &str,
        healthy_since: Timestamp,
        is_there: impl Fn(&str) -> bool,
    ) -> Option<bool> {
        let in_vain = |failing: &Failing| {
            &*failing.mirror == mirror
                && failing.attempts.0.is_some_and(|at| at >= healthy_since)
                && is_there(&failing.key)
        };
        if self.failing.values().flatten().any(in_vain) {
            return Some(false);
        }
        self.done.contains(mirror).then_some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn web(pull: Pull) -> [Pulled; 1] {
        [Pulled {
            mirror: "main".into(),
            key: "docker.io/library/web:1".into(),
            pull,
        }]
    }

    /// Feeds what a Pod tells, a second apart, and returns what is made of it.
    fn verdict(told: &[Pull], healthy_since: u64, is_there: bool) -> Option<bool> {
        let mut pulls = Pulls::default();
        for (second, pull) in (0..).zip(told) {
            pulls.set("a", "web", &web(*pull), at(second));
        }
        pulls.verdict("main", at(healthy_since), |_| is_there)
    }

    #[test]
    fn two_attempts_in_vain_while_the_mirror_is_healthy_tell() {
        use Pull::{Done, Failed, Waiting};
        assert_eq!(verdict(&[], 0, true), None);
        assert_eq!(verdict(&[Done], 0, true), Some(true));
        assert_eq!(verdict(&[Failed], 0, true), None);
        // The Pod told of something else; it is the same attempt.
        assert_eq!(verdict(&[Failed, Failed], 0, true), None);
        let twice = [Failed, Waiting, Failed];
        assert_eq!(verdict(&twice, 0, true), Some(false));
        assert_eq!(verdict(&twice, 0, false), None);
        // The first attempt was while the mirror was down.
        assert_eq!(verdict(&twice, 1, true), None);
        assert_eq!(
            verdict(&[Failed, Waiting, Failed, Waiting, Failed], 1, true),
            Some(false)
        );
        assert_eq!(verdict(&[Failed, Waiting, Failed, Done], 0, true), Some(true));
    }

    #[test]
    fn one_pod_in_vain_outweighs_those_that_run() {
        let mut pulls = Pulls::default();
        pulls.set("a", "runs", &web(Pull::Done), at(1));
        for (second, pull) in [(1, Pull::Failed), (2, Pull::Waiting), (3, Pull::Failed)] {
            pulls.set("a", "web", &web(pull), at(second));
        }
        let verdict = |pulls: &Pulls, mirror| pulls.verdict(mirror, at(0), |_| true);
        assert_eq!(verdict(&pulls, "main"), Some(false));
        assert_eq!(verdict(&pulls, "other"), None);
        pulls.remove("a", "web");
        assert_eq!(verdict(&pulls, "main"), Some(true));
    }
}
