//! Whether a registry may be asked by HEAD.
//!
//! Some registries redirect to storage by addresses that are signed for GET and good for nothing else; a
//! HEAD there is refused, whatever is there. Who has met that asks by GET, and tries a HEAD now and then.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long HEADs are left alone after one was refused.
const PAUSE: Duration = Duration::from_mins(10);

/// What is known of the HEADs of one registry.
#[derive(Default)]
pub(super) struct Heads {
    /// When the next one may be tried; at any time if there is none.
    next: Mutex<Option<Instant>>,
}

impl Heads {
    /// Whether to ask by HEAD. Of those who ask at the same time after a pause, one is told so.
    pub(super) fn may_ask(&self) -> bool {
        let mut next = self.next();
        let now = Instant::now();
        match *next {
            Some(at) if now < at => false,
            Some(_) => {
                *next = Some(now + PAUSE);
                true
            }
            None => true,
        }
    }

    /// Notes that a HEAD was refused for what a GET brought.
    pub(super) fn refused(&self) {
        *self.next() = Some(Instant::now() + PAUSE);
    }

    /// Notes that a HEAD told what is there.
    pub(super) fn answered(&self) {
        *self.next() = None;
    }

    fn next(&self) -> MutexGuard<'_, Option<Instant>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn refused_heads_are_tried_again_now_and_then_and_by_one_caller() {
        let heads = Heads::default();
        assert!(heads.may_ask() && heads.may_ask());
        heads.refused();
        for _ in 0..3 {
            assert!(!heads.may_ask());
            tokio::time::advance(PAUSE).await;
            assert!(heads.may_ask(), "now and then");
        }
        assert!(!heads.may_ask(), "by one");
        heads.answered();
        assert!(heads.may_ask() && heads.may_ask());
    }
}
