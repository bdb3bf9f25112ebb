//! What the workers tell of their work, for whoever carries it on to others.
//!
//! Only the last of everything is kept. `kagami serve` has nobody to tell.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use crate::{
    domain::{answer::Answer, copying, image::Class, presence::Counts, time::Timestamp},
    registry::Client,
};

/// The end of a complete sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepEnd {
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub counts: Counts,
    /// The time between the starts of two sweeps that keeps proofs fresh.
    pub period: Duration,
    /// The setting that says how long they last.
    pub bound: &'static str,
    /// Whether tags of a pull-through mirror wait longer to be resolved anew than they should.
    pub tags_wait: bool,
}

/// What a mirror refuses to whoever asks with the credentials that it is asked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Everything.
    Registry,
    /// Everything, because it wants authentication that nobody can give: why, in words.
    Challenge(Box<str>),
    /// Every image, although the registry answers.
    Images,
}

impl Refusal {
    /// Returns its name in the log.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Registry => "Registry",
            Self::Challenge(_) => "Challenge",
            Self::Images => "Images",
        }
    }

    /// Returns the reason of the condition that tells of it.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Registry | Self::Images => "Unauthorized",
            Self::Challenge(_) => "ChallengeNotMet",
        }
    }

    /// Returns what to tell of it, of a client that a Secret should give credentials.
    pub fn tell_of(&self, client: &Client, secret: Option<&str>) -> String {
        match secret {
            Some(secret) if !client.has_credentials() => self.tell_without(client.host(), secret),
            _ => self.tell(client.host(), secret),
        }
    }

    /// Returns what to tell of it where the Secret that is named gives no credentials to ask with.
    fn tell_without(&self, host: &str, secret: &str) -> String {
        match self {
            Self::Challenge(_) => self.tell(host, Some(secret)),
            Self::Registry | Self::Images => format!(
                "{host} asks for credentials, and Secret {secret} gives none for it: condition CredentialsValid \
                 tells why"
            ),
        }
    }

    /// Returns what to tell of it: who refuses, and to whom.
    pub fn tell(&self, host: &str, secret: Option<&str>) -> String {
        match (self, secret) {
            (Self::Challenge(why), _) => format!("{host} answers, but no image can be asked for: {why}"),
            (Self::Registry, Some(secret)) => format!("{host} refuses the credentials of Secret {secret}"),
            (Self::Registry, None) => {
                format!("{host} asks for credentials, and spec.endpoint.credentials names no Secret")
            }
            (Self::Images, Some(secret)) => format!(
                "{host} answers, but refuses every image that it was asked for with the credentials of Secret \
                 {secret}"
            ),
            (Self::Images, None) => format!(
                "{host} answers, but refuses every image that it was asked for, and spec.endpoint.credentials \
                 names no Secret"
            ),
        }
    }
}

/// What nodes make of a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// Pods run its images.
    CanPull,
    /// They do not get what is there, in words.
    CannotPull(Box<str>),
    /// Nobody has said anything of it lately.
    Silent,
}

/// How the copies into a mirror go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copies {
    pub under_way: usize,
    /// Images that are due.
    pub waiting: usize,
    /// Whether the mirror takes copies, or why it does not, in words; none while nobody knows.
    pub writing: Option<Result<(), (copying::Reason, Box<str>)>>,
    /// Whether nothing has been wanted for a while, so that nobody knows.
    pub is_idle: bool,
}

/// What the workers of one mirror told last.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// When the prober last ended a round.
    pub probed_at: Option<Instant>,
    /// When it asked last and saw the mirror well.
    pub seen_well: Option<Timestamp>,
    /// Whether the registry takes the credentials it is asked with; none before the first answer.
    registry_opens: Option<Result<(), Refusal>>,
    /// Whether it gives them images; none before one was asked for.
    images_open: Option<bool>,
    /// Whether nodes get its images; none before there was a Pod to tell by.
    pub nodes: Option<Nodes>,
    /// A pull from it that lasts, in words.
    pub pull_lasts: Option<Box<str>>,
    /// Pods that are stuck on its names while nothing tells what their users wrote, in words.
    pub unrecorded: Option<Box<str>>,
    pub tags: Option<SweepEnd>,
    pub digests: Option<SweepEnd>,
    /// The last image for which the mirror's answer proved nothing, and that answer.
    pub unproven: Option<Box<str>>,
    /// How the copies into it go; none where it is not filled.
    pub copies: Option<Copies>,
    /// Whether there are no known images for which it is so, or what to tell of them; none before the end of a
    /// sweep.
    pub images_readable: Option<Result<(), Box<str>>>,
}

impl Report {
    /// Returns what the mirror refuses, if it refuses something; none before the first answer.
    pub fn credentials(&self) -> Option<Result<(), Refusal>> {
        match (self.registry_opens.as_ref()?, self.images_open) {
            (Err(refusal), _) => Some(Err(refusal.clone())),
            (Ok(()), Some(false)) => Some(Err(Refusal::Images)),
            (Ok(()), _) => Some(Ok(())),
        }
    }

    /// Whether the mirror gave an image lately.
    pub(super) const fn gives_images(&self) -> bool {
        matches!(self.images_open, Some(true))
    }

    /// Returns the end of the last complete sweep of a class.
    pub const fn sweep(&self, class: Class) -> Option<SweepEnd> {
        match class {
            Class::Tag => self.tags,
            Class::Digest => self.digests,
        }
    }
}

/// The reports of all mirrors. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Reports(Arc<watch::Sender<BTreeMap<String, Report>>>);

impl Reports {
    /// Returns the last report of a mirror's workers.
    pub fn of(&self, mirror: &str) -> Report {
        self.0.borrow().get(mirror).cloned().unwrap_or_default()
    }

    /// Returns what changes when there is more to tell than another round of a prober.
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<String, Report>> {
        self.0.subscribe()
    }

    /// Notes that a round of the prober ended, and when it began if it saw the mirror well.
    pub(super) fn probed(&self, mirror: &str, seen_well: Option<Timestamp>) {
        self.tell(mirror, |report| {
            report.probed_at = Some(Instant::now());
            report.seen_well = seen_well.or(report.seen_well);
            false
        });
    }

    /// Notes whether a mirror opens to the credentials that it is asked with. Returns what holds now, if that
    /// is news.
    pub(super) fn credentials(
        &self,
        mirror: &str,
        what: Refusal,
        opens: bool,
    ) -> Option<Result<(), Refusal>> {
        let mut news = None;
        self.tell(mirror, |report| {
            let before = report.credentials();
            match what {
                Refusal::Images => report.images_open = Some(opens),
                refusal => report.registry_opens = Some(if opens { Ok(()) } else { Err(refusal) }),
            }
            let now = report.credentials();
            let is_news = now != before;
            news = now.filter(|_| is_news);
            news.is_some()
        });
        news
    }

    /// Notes how copies go. Returns whether the mirror takes any, if that is news.
    pub(super) fn copies(
        &self,
        mirror: &str,
        copies: Option<Copies>,
    ) -> Option<Result<(), (copying::Reason, Box<str>)>> {
        let mut news = None;
        let writing = |copies: &Option<Copies>| copies.as_ref().and_then(|copies| copies.writing.clone());
        let told = self.of(mirror).copies;
        if told == copies {
            return None;
        }
        self.tell(mirror, |report| {
            let (before, now) = (writing(&report.copies), writing(&copies));
            report.copies = copies;
            // That it takes the first one is no news, nor is how many there are.
            let is_news = now != before;
            news = now.filter(|now| is_news && (before.is_some() || now.is_err()));
            is_news
        });
        news
    }

    pub(in crate::companion) fn nodes(&self, mirror: &str, nodes: Nodes) {
        self.tell(mirror, |report| {
            let is_news = report.nodes.as_ref() != Some(&nodes);
            report.nodes = Some(nodes);
            is_news
        });
    }

    /// Notes which pull from a mirror lasts, if one does.
    pub(in crate::companion) fn pull_lasts(&self, mirror: &str, what: Option<Box<str>>) {
        self.tell(mirror, |report| {
            let is_news = report.pull_lasts != what;
            report.pull_lasts = what;
            is_news
        });
    }

    /// Notes which Pods are stuck on a mirror's names while nothing tells what their users wrote, if some are.
    pub(in crate::companion) fn unrecorded(&self, mirror: &str, what: Option<Box<str>>) {
        self.tell(mirror, |report| {
            let is_news = report.unrecorded != what;
            report.unrecorded = what;
            is_news
        });
    }

    /// Notes that the answer for an image proved nothing.
    pub(super) fn unproven(&self, mirror: &str, image: impl fmt::Display, answer: &Answer) {
        self.tell(mirror, |report| {
            report.unproven = Some(format!("{image}: {answer}").into());
            false
        });
    }

    /// Notes the end of a sweep, and for how many of all known images the mirror's answer proves nothing.
    pub(super) fn swept(
        &self,
        mirror: &str,
        class: Class,
        end: SweepEnd,
        (unreadable, known): (usize, usize),
    ) {
        self.tell(mirror, |report| {
            if unreadable == 0 {
                report.unproven = None;
                report.images_readable = Some(Ok(()));
            } else {
                let last = report.unproven.as_deref();
                let last = last.map_or_else(String::new, |last| format!(" The last one, {last}."));
                let told = format!(
                    "What the mirror answers for {unreadable} of {known} known images proves nothing, so they \
                     stay upstream.{last}"
                );
                report.images_readable = Some(Err(told.into()));
            }
            match class {
                Class::Tag => report.tags = Some(end),
                Class::Digest => report.digests = Some(end),
            }
            true
        });
    }

    pub(super) fn forget(&self, mirror: &str) {
        self.0
            .send_if_modified(|reports| reports.remove(mirror).is_some());
    }

    /// Changes a report and wakes listeners where the change is worth it.
    fn tell(&self, mirror: &str, change: impl FnOnce(&mut Report) -> bool) {
        self.0.send_if_modified(|reports| {
            if !reports.contains_key(mirror) {
                reports.insert(mirror.to_owned(), Report::default());
            }
            reports.get_mut(mirror).is_some_and(change)
        });
    }
}
