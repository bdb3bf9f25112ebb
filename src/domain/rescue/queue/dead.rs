//! Which mirrors give nobody anything: as Kagami sees them, and as kubelets tell. Kagami's way to a mirror is not that of
//! nodes, so both have to agree before a Pod is turned in the middle of what may be an attempt.

use std::collections::BTreeMap;

use crate::domain::time::Timestamp;

/// The mirrors that give nobody anything, and since when.
pub type Dead = BTreeMap<Box<str>, Timestamp>;

/// What is told of mirrors. There are as many as mirrors that Pods wait for.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    /// As Kagami sees them.
    seen: Dead,
    by_nodes: BTreeMap<Box<str>, ByNodes>,
    /// Those of which nodes say the same.
    agreed: Dead,
}

/// What kubelets last told of pulls from a mirror.
#[derive(Debug, Default)]
struct ByNodes {
    /// After when a pull was told to have failed.
    failed_after: Option<Timestamp>,
    /// When what had waited for an image was seen to have it.
    pulled_at: Option<Timestamp>,
}

impl Mirrors {
    /// Returns the mirrors that give nobody anything.
    pub(super) const fn dead(&self) -> &Dead {
        &self.agreed
    }

    /// Takes in what Kagami sees. Returns whether that makes a difference.
    pub(super) fn set(&mut self, seen: Dead) -> bool {
        self.seen = seen;
        self.agree()
    }

    /// Takes in that a pull from a mirror was told to have failed after that time. Returns whether that makes a
    /// difference.
    pub(super) fn failed(&mut self, mirror: &str, after: Timestamp) -> bool {
        let by_nodes = self.by_nodes.entry(mirror.into()).or_default();
        by_nodes.failed_after = by_nodes.failed_after.max(Some(after));
        self.agree()
    }

    /// Takes in that a node has an image from a mirror now. Returns whether that makes a difference.
    pub(super) fn pulled(&mut self, mirror: &str, now: Timestamp) -> bool {
        self.by_nodes.entry(mirror.into()).or_default().pulled_at = Some(now);
        self.agree()
    }

    /// Forgets what nodes told, as the clock was set back. Returns whether that makes a difference.
    pub(super) fn forget_times(&mut self) -> bool {
        self.by_nodes.clear();
        self.agree()
    }

    fn agree(&mut self) -> bool {
        let agrees = |mirror: &str, since: Timestamp| {
            let Some(by_nodes) = self.by_nodes.get(mirror) else {
                return false;
            };
            by_nodes.failed_after >= Some(since) && by_nodes.pulled_at < Some(since)
        };
        let seen = self.seen.iter();
        let agreed: Dead = seen
            .filter(|(mirror, since)| agrees(mirror, **since))
            .map(|(mirror, since)| (mirror.clone(), *since))
            .collect();
        let differs = agreed != self.agreed;
        self.agreed = agreed;
        differs
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::examples::NOW;

    #[test]
    fn a_mirror_is_dead_where_kubelets_say_so_too() {
        let at = |seconds| NOW.after(Duration::from_secs(seconds));
        let since = |seconds| Dead::from([("a".into(), at(seconds))]);
        let mut mirrors = Mirrors::default();
        assert!(!mirrors.set(since(10)));
        assert!(!mirrors.failed("a", at(9)), "that may have been before");
        assert!(!mirrors.failed("b", at(11)));
        assert!(mirrors.failed("a", at(10)));
        assert_eq!(mirrors.dead(), &since(10));
        assert!(
            !mirrors.failed("a", at(9)),
            "what is told late takes nothing back"
        );
        // A node has an image from it after all.
        assert!(mirrors.pulled("a", at(20)));
        assert_eq!(mirrors.dead(), &Dead::new());
        assert!(!mirrors.failed("a", at(21)));
        // It died once more, and what failed before counts where it was later than that.
        assert!(mirrors.set(since(21)));
        assert!(mirrors.set(since(30)) && mirrors.dead().is_empty());
        assert!(mirrors.failed("a", at(31)));
        assert!(mirrors.forget_times() && mirrors.dead().is_empty());
    }
}
