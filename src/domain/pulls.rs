//! What nodes make of a mirror: whether Pods that were sent there get their images.
//!
//! One failed pull says little: the mirror may just have died, or never had the image. Two in a row
//! of an image that is there, both while the mirror was healthy, say that nodes do not get what
//! Kagami sees: they lack a way, a password or trust. Where a Pod's first failure is its last, because its image goes
//! back to upstream's, the next one is another Pod's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use super::{
    image::{ImageKey, KeyRef},
    time::Timestamp,
};

/// How long after a failure another Pod's counts as another one: many begin at once.
const APART: Duration = Duration::from_secs(5);

/// How many images are kept in mind that some Pod could not be pulled with and does not want any more.
const TURNED: usize = 1000;

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
    pub key: ImageKey,
    pub pull: Pull,
}

/// The pulls of a cluster's Pods. Of Pods that run nothing is kept.
#[derive(Debug, Default)]
pub struct Pulls {
    /// By namespace and name.
    failing: HashMap<(Box<str>, Box<str>), Failing>,
    /// By mirror and key: attempts of Pods whose image is another one by now.
    turned: HashMap<(Box<str>, ImageKey), Attempts>,
    /// The mirrors from which some Pod got an image.
    done: BTreeSet<Box<str>>,
    /// The number of the last list of all Pods.
    listing: u32,
}

/// A Pod that does not get all of its images.
#[derive(Debug)]
struct Failing {
    /// By mirror and key.
    images: BTreeMap<(Box<str>, ImageKey), Attempts>,
    /// The list that last named the Pod.
    listing: u32,
}

/// The attempts to pull one image for one Pod.
#[derive(Clone, Copy, Debug)]
struct Attempts {
    before: Option<Timestamp>,
    last: Timestamp,
    /// Whether the last one is what the Pod still tells of.
    told: bool,
}

impl Pulls {
    /// Begins a list of all Pods: those not taken in before [`Pulls::end_listing`] are gone.
    pub const fn begin_listing(&mut self) {
        self.listing = self.listing.wrapping_add(1);
    }

    /// Ends it.
    pub fn end_listing(&mut self) {
        self.failing.retain(|_, pod| pod.listing == self.listing);
    }

    /// Takes in how a Pod stands now.
    pub fn set(&mut self, namespace: &str, pod: &str, seen: &[Pulled], now: Timestamp) {
        // Two containers may have one image: it is pulled once for both.
        let mut failed: BTreeMap<(&str, &ImageKey), bool> = BTreeMap::new();
        for Pulled { mirror, key, pull } in seen {
            if *pull != Pull::Done {
                *failed.entry((mirror, key)).or_default() |= *pull == Pull::Failed;
                continue;
            }
            if !self.turned.is_empty() {
                self.turned.remove(&(mirror.clone(), key.clone()));
            }
            if !self.done.contains(mirror) {
                self.done.insert(mirror.clone());
            }
        }
        let id = (Box::from(namespace), Box::from(pod));
        let before = self.failing.remove(&id);
        if let Some(before) = &before {
            for ((mirror, key), attempts) in &before.images {
                let is_wanted = |pulled: &Pulled| pulled.mirror == *mirror && pulled.key == *key;
                if !seen.iter().any(is_wanted) {
                    self.turn(mirror, key, attempts.last);
                }
            }
        }
        if failed.is_empty() {
            return;
        }
        let before = before.map(|pod| pod.images).unwrap_or_default();
        let images = failed.into_iter().map(|((mirror, key), failed)| {
            let image = (Box::from(mirror), key.clone());
            let attempts = match before.get(&image).copied() {
                Some(known) if failed && !known.told => Attempts {
                    before: Some(known.last),
                    last: now,
                    told: true,
                },
                Some(known) => Attempts {
                    told: failed,
                    ..known
                },
                None => Attempts {
                    before: None,
                    last: now,
                    told: failed,
                },
            };
            (image, attempts)
        });
        let pod = Failing {
            images: images.collect(),
            listing: self.listing,
        };
        self.failing.insert(id, pod);
    }

    /// Takes in the last attempt of a Pod whose image is another one now.
    fn turn(&mut self, mirror: &str, key: &ImageKey, at: Timestamp) {
        let image = (Box::from(mirror), key.clone());
        let full = self.turned.len() >= TURNED;
        match self.turned.get_mut(&image) {
            Some(known) if at.since(known.last) >= APART => {
                known.before = Some(known.last);
                known.last = at;
            }
            None if !full => {
                let attempt = Attempts {
                    before: None,
                    last: at,
                    told: true,
                };
                self.turned.insert(image, attempt);
            }
            _ => {}
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
        is_there: impl Fn(KeyRef<'_>) -> bool,
    ) -> Option<bool> {
        let failing = self.failing.values().flat_map(|pod| &pod.images);
        let mut images = failing.chain(&self.turned);
        let in_vain = images.any(|((of, key), attempts)| {
            &**of == mirror && attempts.before.is_some_and(|at| at >= healthy_since) && is_there(key.by_ref())
        });
        if in_vain {
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
            key: "docker.io/library/web:1".parse().unwrap(),
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

    /// Two containers with one image: the node just tried for one, and the other waits.
    #[test]
    fn one_attempt_counts_once_for_all_containers_of_a_pod() {
        let mut pulls = Pulls::default();
        let [failed] = web(Pull::Failed);
        let [waiting] = web(Pull::Waiting);
        for second in 1..5 {
            pulls.set("a", "web", &[failed.clone(), waiting.clone()], at(second));
        }
        assert_eq!(pulls.verdict("main", at(0), |_| true), None);
    }

    /// Each fails once and goes back to upstream's image.
    #[test]
    fn two_pods_that_were_turned_tell_as_much_as_one_that_fails_twice() {
        let mut pulls = Pulls::default();
        let turned = |pulls: &mut Pulls, pod: &str, second| {
            pulls.set("a", pod, &web(Pull::Failed), at(second));
            pulls.set("a", pod, &[], at(second + 1));
        };
        let verdict = |pulls: &Pulls, since| pulls.verdict("main", at(since), |_| true);
        turned(&mut pulls, "one", 10);
        turned(&mut pulls, "two", 11);
        assert_eq!(verdict(&pulls, 0), None, "they began together");
        turned(&mut pulls, "three", 20);
        assert_eq!(verdict(&pulls, 0), Some(false));
        assert_eq!(
            verdict(&pulls, 11),
            None,
            "the first was while the mirror was down"
        );
        assert_eq!(pulls.verdict("main", at(0), |_| false), None);
        pulls.set("a", "runs", &web(Pull::Done), at(30));
        assert_eq!(verdict(&pulls, 0), Some(true));
    }

    #[test]
    fn a_list_keeps_what_was_seen_of_the_pods_that_it_names() {
        let mut pulls = Pulls::default();
        for (second, pull) in [(1, Pull::Failed), (2, Pull::Waiting)] {
            pulls.set("a", "web", &web(pull), at(second));
        }
        pulls.begin_listing();
        pulls.set("a", "web", &web(Pull::Failed), at(3));
        pulls.end_listing();
        assert_eq!(pulls.verdict("main", at(0), |_| true), Some(false));
        pulls.begin_listing();
        pulls.end_listing();
        assert_eq!(pulls.verdict("main", at(0), |_| true), None);
    }
}
