//! What makes somebody want to know now how a mirror is. Whoever pings it listens.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

use crate::domain::pinging::Wish;

const USED: u8 = 1;
const DOUBTED: u8 = 2;

/// The interest in one mirror since it was last pinged.
#[derive(Debug, Default)]
pub struct Interest {
    wishes: AtomicU8,
    risen: Notify,
}

impl Interest {
    /// Notes that a Pod was rewritten to the mirror.
    pub fn used(&self) {
        self.wish(USED);
    }

    /// Notes that a look for an image failed in a way that every image may meet.
    pub fn doubted(&self) {
        self.wish(DOUBTED);
    }

    fn wish(&self, wish: u8) {
        // Under load it is there already, and readers side by side disturb nobody.
        if self.wishes.load(Ordering::Relaxed) & wish == 0 {
            self.wishes.fetch_or(wish, Ordering::Relaxed);
            self.risen.notify_one();
        }
    }

    /// Returns what was wished since [`Self::satisfy`].
    pub(super) fn wishes(&self) -> Wish {
        let wishes = self.wishes.load(Ordering::Relaxed);
        Wish {
            used: wishes & USED != 0,
            doubted: wishes & DOUBTED != 0,
            tripped: false,
        }
    }

    /// Forgets all wishes: a ping is being sent.
    pub(super) fn satisfy(&self) {
        self.wishes.store(0, Ordering::Relaxed);
    }

    /// Waits until another wish comes up. Whoever gives up waiting misses none.
    pub(super) async fn risen(&self) {
        self.risen.notified().await;
    }
}
