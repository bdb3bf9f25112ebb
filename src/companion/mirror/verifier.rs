//! Looking again at one known image.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    context::{Context, CurrentMirror},
    look::{Located, locate},
};
use crate::{
    clock,
    domain::{
        answer::{Answer, Limit},
        health::State,
        image::{Class, KeyRef},
        mirror::Kind,
        presence::{Entry, Presence, reason_of},
        reason::Reason,
        sweep::{Step, step},
        time::Timestamp,
    },
    registry::pace::Pace,
};

/// How often one image is asked for before its state counts as unknown.
const TRIES: u32 = 3;

/// The longest wait that a mirror may ask for.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// The longest wait for one image that is waited for: there are others.
const LONGEST_WAIT_FOR_ONE: Duration = Duration::from_secs(10);

/// Looks again at images at one pace, while the mirror is healthy and stays what it was.
pub(super) struct Verifier {
    pub(super) context: Context,
    pub(super) pace: Arc<Pace>,
    pub(super) asking: Asking,
    /// Since when the mirror's proofs count.
    pub(super) proven_since: Timestamp,
    /// The time between two looks at an image.
    pub(super) period: Duration,
}

/// How images are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asking {
    /// By tag or digest, as they are written.
    AsWritten,
    /// By the digest obtained earlier: a pull-through mirror asks upstream for a tag.
    AsKnown,
    /// A pull-through mirror's tags, which are resolved anew.
    Anew,
}

/// What came of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verified {
    /// What is known is true again.
    Known,
    /// The image is not there, or nobody can tell.
    InVain,
    /// The mirror is not healthy, or another one since: nothing was written.
    MirrorFails,
}

/// What to ask a mirror for.
enum Question {
    /// The manifest under this reference, by its headers.
    Manifest(String),
    /// The image with all that it names.
    Whole,
}

impl Verifier {
    /// Returns the mirror as it is now, if it has been healthy all the time.
    pub(super) fn present(&self) -> Option<CurrentMirror> {
        self.context.present().filter(|present| {
            let health = present.health();
            health.state == State::Healthy && health.proven_since == self.proven_since
        })
    }

    /// Looks at an image and writes what changed.
    pub(super) async fn verify(&self, key: KeyRef<'_>) -> Verified {
        let mut last = Reason::Internal;
        for _ in 0..TRIES {
            // The settings are those of now: there may be hours between two images.
            let Some(present) = self.present() else {
                return Verified::MirrorFails;
            };
            let Some(located) = locate(present.settings(), key) else {
                return self.write(key, Presence::Unknown(Some(Reason::NameTooLong)), clock::now());
            };
            // An entry that went meanwhile needs no verification.
            let Some(question) = self.question(key, &present, &located) else {
                return Verified::Known;
            };
            if self.asking != Asking::Anew {
                self.pace.set_rate(present.settings().sweep_rate);
            }
            let mut asked_at = clock::now();
            let step = match question {
                Question::Whole => Step::Inspect,
                Question::Manifest(reference) => {
                    self.pace.turn().await;
                    asked_at = clock::now();
                    let answer = self.context.head(&located.repository, &reference).await;
                    self.context.tell(key, &answer);
                    if !self.wait_as_asked(&answer).await {
                        return self.write(key, Presence::Unknown(reason_of(&answer)), asked_at);
                    }
                    let index = self.context.store.index();
                    let Some(entry) = index.get(&self.context.mirror, key) else {
                        return Verified::Known;
                    };
                    match step(entry, &answer) {
                        Step::Confirmed if upstream_is_due(entry, &present, &located) => Step::Inspect,
                        step => step,
                    }
                }
            };
            match step {
                Step::Confirmed => return self.confirmed(key, asked_at),
                Step::Write(presence) => return self.write(key, presence, asked_at),
                Step::Inspect => {
                    let pace = Some(&*self.pace);
                    match self.context.inspect(&present, &located, pace).await {
                        Ok(presence) | Err((Answer::Unauthorized | Answer::Ambiguous(_), presence)) => {
                            return self.write(key, presence, asked_at);
                        }
                        Err((answer, presence)) => {
                            if let Presence::Unknown(Some(reason)) = presence {
                                last = reason;
                            }
                            if !self.wait_as_asked(&answer).await {
                                break;
                            }
                        }
                    }
                }
                Step::Again(reason) => last = reason,
            }
        }
        // The mirror may be failing, and not the image.
        if self.present().is_none() {
            return Verified::MirrorFails;
        }
        self.write(key, Presence::Unknown(Some(last)), clock::now())
    }

    /// Returns what to ask for; none if there is nothing to ask.
    fn question(&self, key: KeyRef<'_>, present: &CurrentMirror, located: &Located<'_>) -> Option<Question> {
        let index = self.context.store.index();
        let entry = index.get(&self.context.mirror, key)?;
        let reference = match (&entry.presence, self.asking) {
            (Presence::Present(proof), Asking::AsKnown) => proof.digest.to_string(),
            (_, Asking::AsKnown) => return None,
            (_, Asking::AsWritten | Asking::Anew) => located.reference.manifest_reference().to_owned(),
        };
        let (tenure, rules) = (self.context.tenure(), present.rules());
        if tenure.children_are_due(key, entry, &rules, self.period, clock::now()) {
            return Some(Question::Whole);
        }
        Some(Question::Manifest(reference))
    }

    /// Notes that an image is as known. The end of a sweep does so for all that are there.
    fn confirmed(&self, key: KeyRef<'_>, asked_at: Timestamp) -> Verified {
        let known = {
            let index = self.context.store.index();
            let entry = index.get(&self.context.mirror, key);
            entry.map(|entry| entry.presence.clone())
        };
        match known {
            Some(presence) if self.asking == Asking::Anew || !matches!(presence, Presence::Present(_)) => {
                self.write(key, presence, asked_at)
            }
            _ => Verified::Known,
        }
    }

    /// Waits as long as was asked for: everybody at this pace where the whole mirror is limited, else for
    /// this image alone. Returns whether to go on, because the wait is not too long for that.
    async fn wait_as_asked(&self, answer: &Answer) -> bool {
        let Answer::RateLimited { of, retry_after } = answer else {
            return true;
        };
        let wait = retry_after.unwrap_or(Duration::from_secs(1));
        if *of == Limit::Registry {
            self.pace.pause(Instant::now() + wait.min(LONGEST_WAIT));
            return true;
        }
        if wait > LONGEST_WAIT_FOR_ONE {
            return false;
        }
        sleep(wait).await;
        true
    }

    fn write(&self, key: KeyRef<'_>, presence: Presence, verified_at: Timestamp) -> Verified {
        let verified = if matches!(presence, Presence::Present(_)) {
            Verified::Known
        } else {
            Verified::InVain
        };
        self.context
            .store
            .index_mut()
            .write(&self.context.mirror, key, presence, verified_at, clock::now());
        verified
    }
}

/// Returns how the images of a class are asked for in sweeps.
pub(super) const fn asking(kind: Kind, class: Class) -> Asking {
    match (kind, class) {
        (Kind::PullThrough, Class::Tag) => Asking::AsKnown,
        (Kind::Hosted, Class::Tag) | (_, Class::Digest) => Asking::AsWritten,
    }
}

/// Whether upstream is to be asked anew who gets an image. Its owner may have closed it, or upstream
/// could not tell the last time.
fn upstream_is_due(entry: &Entry, present: &CurrentMirror, located: &Located<'_>) -> bool {
    let Presence::Present(proof) = &entry.presence else {
        return false;
    };
    let due =
        proof.public.is_none() || clock::now().since(entry.verified_at) > present.settings().tags.refresh;
    due && present.asks_upstream(located)
}
