//! One sweep: looking again at every known image of one class on one mirror.
//!
//! A sweep that ends complete renews every proof it covered without a write per image: only what
//! changed is written. So it may count as complete only if each image was answered conclusively,
//! or was written `Unknown` first.
//!
//! Three things are not looked at by every sweep, because that would cost too much: the images that an
//! index names (at least every `freshness.digest`), the tags of pull-through mirrors (resolved anew one
//! by one, sweeps ask by the digest obtained), and what was looked for in vain (ever more seldom).

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use super::{
    answer::Answer,
    image::{Class, ImageKey, KeyRef},
    mirror::Kind,
    platform::Platforms,
    presence::{Entry, FUTURE, Index, Presence, Rules, Swept, Version, reason_of},
    reason::Reason,
    time::Timestamp,
};

/// The longest pause between two looks at what is not there, unless the first is longer.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// What is not there is forgotten when no Pod has named it for so long.
const UNUSED: Duration = Duration::from_hours(24);

/// Into how many parts the time is divided in which indexes are looked at.
const SHARES: u32 = 1 << 10;

/// For how long one process has kept a mirror's state.
///
/// What it took over counts as looked at when it began: the one before it wrote nothing where a look
/// changed nothing, so written times are often much too old.
#[derive(Clone, Copy, Debug)]
pub struct Tenure {
    pub since: Timestamp,
    /// By a clock that does not jump.
    pub lasted: Duration,
}

impl Tenure {
    /// Returns how long ago something was. The future is as long ago as can be: the clock was set back.
    fn age(&self, at: Timestamp, now: Timestamp) -> Duration {
        if at > now.after(FUTURE) {
            self.lasted
        } else {
            now.since(at).min(self.lasted)
        }
    }

    /// Whether a sweep must look at what an index names, and not at the index alone: else the next sweep
    /// would come too late for `freshness.digest`. Of many indexes each has its own time for it, so that
    /// no sweep has to look at all.
    ///
    /// What was seen before the last outage is no proof, so after one every index is due. The process
    /// before this one saw to that, if the outage was longer ago than proofs last.
    pub fn children_are_due(
        &self,
        key: KeyRef<'_>,
        entry: &Entry,
        rules: &Rules,
        period: Duration,
        now: Timestamp,
    ) -> bool {
        let Presence::Present(proof) = &entry.presence else {
            return false;
        };
        // A pull-through mirror fetches what it lacks; looking would be a download.
        if rules.kind == Kind::PullThrough {
            return false;
        }
        // Of a single manifest there is something to look at as long as its operating system is not known.
        if !proof.media_type.is_index() && proof.platforms != Platforms::ASSUMED {
            return false;
        }
        let bound = rules.freshness.digest;
        let taken_over = entry.verified_at < self.since;
        let seen_before = taken_over && rules.proven_since.after(bound) <= self.since;
        if entry.verified_at < rules.proven_since && !seen_before {
            return true;
        }
        let latest = bound.saturating_sub(period);
        let earliest = if taken_over { Duration::ZERO } else { latest / 2 };
        let between = latest.saturating_sub(earliest);
        self.age(entry.verified_at, now) >= earliest + between * self.share(key) / SHARES
    }

    /// Returns an image's place among all, another one in each process: if the process is replaced often,
    /// everything still has its turn.
    fn share(&self, key: KeyRef<'_>) -> u32 {
        let mut hasher = DefaultHasher::new();
        (key, self.since).hash(&mut hasher);
        u32::try_from(hasher.finish() % u64::from(SHARES)).unwrap_or_default()
    }

    /// Returns the images of a class that are not there and that no Pod has named for long.
    pub fn to_forget(&self, index: &Index, mirror: &str, class: Class, now: Timestamp) -> Vec<ImageKey> {
        let entries = index.entries(mirror).filter(|(key, entry)| {
            !matches!(entry.presence, Presence::Present(_))
                && key.class() == class
                && self.age(entry.last_used(), now) > UNUSED
        });
        entries.map(|(key, _)| key.into()).collect()
    }

    /// Whether tags of a pull-through mirror have waited longer to be resolved anew than `tags.refresh`.
    pub fn tags_wait(&self, index: &Index, mirror: &str, rules: &Rules, now: Timestamp) -> bool {
        rules.kind == Kind::PullThrough
            && index.entries(mirror).any(|(key, entry)| {
                matches!(entry.presence, Presence::Present(_))
                    && key.class() == Class::Tag
                    && self.age(entry.verified_at, now) > rules.refresh
            })
    }
}

/// When to look again at what was looked for in vain: each time twice as late as the last time.
#[derive(Debug, Default)]
pub struct Retries(HashMap<ImageKey, Retry>);

#[derive(Clone, Copy, Debug)]
struct Retry {
    looked_at: Timestamp,
    pause: Duration,
}

impl Retries {
    /// Whether an image is to be looked at: it is there, nobody has looked yet, or the pause since the last
    /// look in vain is over.
    pub fn is_due(&self, key: KeyRef<'_>, entry: &Entry, now: Timestamp) -> bool {
        let is_over = |retry: &Retry| {
            // Sweeps do not begin to the millisecond.
            retry.looked_at > now.after(FUTURE) || now.since(retry.looked_at) >= retry.pause * 3 / 4
        };
        !is_in_vain(entry) || self.0.get(key.as_str()).is_none_or(is_over)
    }

    /// Notes a look in vain; `first` is the pause after the first one.
    pub fn in_vain(&mut self, key: &ImageKey, first: Duration, now: Timestamp) {
        let longest = LONGEST_PAUSE.max(first);
        let pause = self.0.get(key).map_or(first, |retry| retry.pause * 2);
        let retry = Retry {
            looked_at: now,
            pause: pause.min(longest),
        };
        self.0.insert(key.clone(), retry);
    }

    /// Forgets what is there by now, or not known any more.
    pub fn tidy(&mut self, index: &Index, mirror: &str) {
        self.0.retain(|key, _| {
            let entry = index.get(mirror, key.by_ref());
            entry.is_some_and(|entry| !matches!(entry.presence, Presence::Present(_)))
        });
    }

    /// Forgets everything: the mirror may be another one.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Whether somebody looked for an image and did not find it.
const fn is_in_vain(entry: &Entry) -> bool {
    matches!(entry.presence, Presence::Missing | Presence::Unknown(Some(_)))
}

/// Returns the tags of a pull-through mirror that are to be asked for by tag, because they are not known
/// to be there or it is time to resolve them anew. Those that nobody can use and nobody has asked for yet
/// come first, then the one resolved longest ago.
pub fn unresolved(
    index: &Index,
    mirror: &str,
    rules: &Rules,
    retries: &Retries,
    now: Timestamp,
) -> Vec<ImageKey> {
    let is_old = |at: Timestamp| at > now.after(FUTURE) || now.since(at) >= rules.refresh / 2;
    let mut tags: Vec<_> = index
        .entries(mirror)
        .filter(|(key, entry)| match entry.presence {
            _ if key.class() != Class::Tag => false,
            Presence::Present(_) => is_old(entry.verified_at),
            Presence::Missing | Presence::Unknown(_) => retries.is_due(*key, entry, now),
        })
        .map(|(key, entry)| {
            let was_asked = match entry.presence {
                Presence::Present(_) => true,
                Presence::Missing | Presence::Unknown(_) => {
                    is_in_vain(entry) && retries.0.contains_key(key.as_str())
                }
            };
            (was_asked, entry.verified_at, ImageKey::from(key))
        })
        .collect();
    tags.sort_unstable();
    tags.into_iter().map(|(_, _, key)| key).collect()
}

/// A sweep in progress.
#[derive(Debug)]
pub struct Sweep {
    pub class: Class,
    pub started_at: Timestamp,
    through: Version,
    /// Most used first.
    queue: Vec<ImageKey>,
}

/// What a sweep does with one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// As known: nothing to write, the sweep's end renews the proof.
    Confirmed,
    /// The manifest is there with another digest, or is new: look at it whole, then write.
    Inspect,
    /// Write this.
    Write(Presence),
    /// The mirror asked to wait, or no answer came: ask again, or write `Unknown` if out of tries.
    Again(Reason),
}

impl Sweep {
    /// Plans a sweep over all entries of a class but those that need not be looked at now.
    pub fn plan(
        index: &Index,
        mirror: &str,
        class: Class,
        now: Timestamp,
        is_due: impl Fn(KeyRef<'_>, &Entry) -> bool,
    ) -> Self {
        let mut queue: Vec<_> = index
            .entries(mirror)
            .filter(|(key, entry)| key.class() == class && is_due(*key, entry))
            .map(|(key, entry)| (std::cmp::Reverse(entry.last_used()), ImageKey::from(key)))
            .collect();
        queue.sort_unstable();
        Self {
            class,
            started_at: now,
            through: index.version(),
            queue: queue.into_iter().map(|(_, key)| key).collect(),
        }
    }

    /// Returns the images to look at, most used first.
    pub fn images(&self) -> &[ImageKey] {
        &self.queue
    }

    /// Returns what the complete sweep proves.
    pub const fn complete(&self) -> Swept {
        Swept {
            started_at: self.started_at,
            through: self.through,
        }
    }
}

/// Returns what an answer to a look at a known image asks for.
pub fn step(entry: &Entry, answer: &Answer) -> Step {
    match (answer, &entry.presence) {
        (Answer::Exists(manifest), Presence::Present(proof)) if manifest.digest == proof.digest => {
            Step::Confirmed
        }
        (Answer::Exists(_), _) => Step::Inspect,
        (Answer::Missing, Presence::Missing) => Step::Confirmed,
        (Answer::Missing, _) => Step::Write(Presence::Missing),
        (Answer::Unauthorized | Answer::Ambiguous(_), _) => Step::Write(Presence::Unknown(reason_of(answer))),
        (Answer::RateLimited { .. } | Answer::ServerError(..) | Answer::Unreachable(..), _) => {
            Step::Again(reason_of(answer).unwrap_or(Reason::Internal))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::{
        answer::{Ambiguity, Limit, MediaType, Particulars, Unreachable},
        examples::{NOW, digest, key, manifest, mirror, proof},
        presence::{Judgement, Proof, Rules},
    };

    fn tagged() -> KeyRef<'static> {
        key("docker.io/library/nginx:1")
    }

    fn exists(hex: char) -> Answer {
        Answer::Exists(manifest(hex))
    }

    fn index(presence: Presence) -> Index {
        let mut index = Index::default();
        index.write("a", tagged(), presence, NOW, NOW);
        index
    }

    #[track_caller]
    fn check(known: &Presence, answer: &Answer, expected: &Step) {
        let index = index(known.clone());
        assert_eq!(
            step(index.get("a", tagged()).unwrap(), answer),
            *expected,
            "{known:?} {answer:?}"
        );
    }

    #[test]
    fn only_what_changed_is_written() {
        let present = Presence::Present(proof('a'));
        let unknown = Presence::Unknown(None);
        check(&present, &exists('a'), &Step::Confirmed);
        check(&present, &exists('b'), &Step::Inspect);
        check(&Presence::Missing, &exists('a'), &Step::Inspect);
        check(&unknown, &exists('a'), &Step::Inspect);
        check(&present, &Answer::Missing, &Step::Write(Presence::Missing));
        check(&Presence::Missing, &Answer::Missing, &Step::Confirmed);
        check(&unknown, &Answer::Missing, &Step::Write(Presence::Missing));
        let unauthorized = Presence::Unknown(Some(Reason::Unauthorized));
        check(&present, &Answer::Unauthorized, &Step::Write(unauthorized));
        let ambiguous = Presence::Unknown(Some(Reason::RegistryError));
        check(
            &present,
            &Answer::Ambiguous(Ambiguity::Html(Particulars::default())),
            &Step::Write(ambiguous),
        );
        check(
            &present,
            &Answer::RateLimited {
                of: Limit::Registry,
                retry_after: None,
            },
            &Step::Again(Reason::RateLimited),
        );
        check(
            &present,
            &Answer::ServerError(500, Particulars::default()),
            &Step::Again(Reason::RegistryError),
        );
        check(
            &present,
            &Answer::Unreachable(Unreachable::Timeout, Particulars::default()),
            &Step::Again(Reason::MirrorUnhealthy),
        );
    }

    #[test]
    fn a_sweep_walks_the_images_of_its_class_most_used_first() {
        let mut index = Index::default();
        let mut used = |mirror: &str, image: &str, ago: u64| {
            index.write(
                mirror,
                key(image),
                Presence::Missing,
                NOW,
                NOW.before(Duration::from_secs(ago)),
            );
        };
        used("a", "docker.io/library/old:1", 100);
        used("a", "docker.io/library/new:1", 1);
        used("a", "docker.io/library/between:1", 10);
        let pinned = format!("docker.io/library/pinned@{}", digest('a'));
        used("a", &pinned, 0);
        used("b", "docker.io/library/other:1", 0);
        let images = |class| Sweep::plan(&index, "a", class, NOW, all).images().to_vec();
        let tags = [
            "docker.io/library/new:1",
            "docker.io/library/between:1",
            "docker.io/library/old:1",
        ];
        assert_eq!(images(Class::Tag), tags.map(|tag| ImageKey::from(key(tag))));
        assert_eq!(images(Class::Digest), [key(&pinned).into()]);
    }

    const fn all(_: KeyRef<'_>, _: &Entry) -> bool {
        true
    }

    const MINUTE: Duration = Duration::from_mins(1);

    /// Rules with the defaults: tags last 10 minutes, digests an hour, and pull-through tags an hour.
    fn rules(kind: Kind, proven_since: Timestamp) -> Rules {
        Rules {
            kind,
            ..Rules::of(&mirror("a", &["docker.io"]), proven_since)
        }
    }

    fn an_index() -> Presence {
        Presence::Present(Proof {
            media_type: MediaType::OciIndex,
            ..proof('a')
        })
    }

    /// A process that began at `NOW`, so many minutes later.
    fn tenure(minutes: u32) -> (Tenure, Timestamp) {
        let lasted = MINUTE * minutes;
        (Tenure { since: NOW, lasted }, NOW.after(lasted))
    }

    /// Whether the children of a thing seen then are due so many minutes after `NOW`, at a sweep of tags.
    fn due(presence: Presence, seen_at: Timestamp, rules: &Rules, minutes: u32) -> bool {
        let mut index = Index::default();
        index.write("a", tagged(), presence, seen_at, seen_at);
        let (tenure, now) = tenure(minutes);
        tenure.children_are_due(
            tagged(),
            index.get("a", tagged()).unwrap(),
            rules,
            5 * MINUTE,
            now,
        )
    }

    #[test]
    fn children_are_looked_at_again_before_a_proof_by_digest_would_age_out() {
        let hosted = rules(Kind::Hosted, NOW);
        let before = NOW.before(Duration::from_hours(200));
        let was_healthy = rules(Kind::Hosted, before);
        // The next sweep would come after an hour.
        assert!(due(an_index(), NOW, &hosted, 55));
        assert!(!due(an_index(), NOW, &hosted, 27));
        // Whoever takes over does not know when its predecessor looked, and has as long.
        assert!(due(an_index(), NOW.before(100 * MINUTE), &was_healthy, 55));
        assert!(!due(an_index(), NOW.before(100 * MINUTE), &was_healthy, 0));
        // What lists nothing has no children, and a pull-through mirror fetches what it lacks.
        assert!(!due(Presence::Present(proof('a')), NOW, &hosted, 500));
        assert!(!due(an_index(), NOW, &rules(Kind::PullThrough, NOW), 500));
        // Whose operating system is only assumed is looked at until it is known.
        let assumed = Presence::Present(Proof {
            platforms: Platforms::ASSUMED,
            ..proof('a')
        });
        assert!(due(assumed.clone(), NOW, &hosted, 55));
        assert!(!due(assumed, NOW, &hosted, 27));
        // The clock was set back by a day.
        assert!(due(an_index(), NOW.after(Duration::from_hours(24)), &hosted, 55));
    }

    #[test]
    fn children_seen_before_the_last_outage_are_looked_at_at_once() {
        let outage = NOW.after(10 * MINUTE);
        assert!(due(
            an_index(),
            NOW.after(9 * MINUTE),
            &rules(Kind::Hosted, outage),
            11
        ));
        assert!(!due(an_index(), outage, &rules(Kind::Hosted, outage), 11));
        let known = NOW.before(Duration::from_hours(200));
        // It was so shortly before this process took over that its predecessor may not have got round to it.
        let outage = NOW.before(59 * MINUTE);
        assert!(due(an_index(), known, &rules(Kind::Hosted, outage), 0));
        let outage = NOW.before(60 * MINUTE);
        assert!(!due(an_index(), known, &rules(Kind::Hosted, outage), 0));
    }

    /// 2,000 indexes that were all seen at the same moment, and sweeps every five minutes.
    #[test]
    fn no_sweep_looks_at_the_children_of_all_indexes() {
        let seen_at = |taken_over: bool| if taken_over { NOW.before(100 * MINUTE) } else { NOW };
        let rules = rules(Kind::Hosted, NOW.before(Duration::from_hours(200)));
        for taken_over in [true, false] {
            let mut index = Index::default();
            for number in 0..2000 {
                let at = seen_at(taken_over);
                let image = format!("docker.io/library/i:{number}");
                index.write("a", key(&image), an_index(), at, at);
            }
            let mut looks = Vec::new();
            for minutes in (0..180).step_by(5) {
                let (tenure, now) = tenure(minutes);
                let due = Sweep::plan(&index, "a", Class::Tag, now, |key, entry| {
                    tenure.children_are_due(key, entry, &rules, 5 * MINUTE, now)
                });
                for key in due.images() {
                    index.write("a", key.by_ref(), an_index(), now, now);
                }
                looks.push(due.images().len());
            }
            // At most twice what an even spread over the time that there is would be.
            assert!(looks.iter().all(|looks| *looks < 2 * 2000 / 6), "{looks:?}");
            let first_hour: usize = looks[..12].iter().sum();
            assert!(first_hour >= 2000, "each had its turn: {looks:?}");
            assert!(looks.iter().sum::<usize>() < 5 * 2000, "{looks:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_looked_for_ever_more_seldom() {
        let (index, period) = (index(Presence::Missing), 5 * MINUTE);
        let entry = index.get("a", tagged()).unwrap();
        let mut retries = Retries::default();
        let mut looks = Vec::new();
        for minutes in (0..400).step_by(5) {
            let now = NOW.after(MINUTE * minutes);
            if retries.is_due(tagged(), entry, now) {
                looks.push(minutes);
                retries.in_vain(&tagged().into(), period, now);
            }
        }
        let pauses: Vec<_> = looks.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses[..4], [5, 10, 15, 30], "three quarters of 5, 10, 20 and 40");
        assert!(
            pauses[4..].iter().all(|pause| *pause == 45),
            "of an hour: {pauses:?}"
        );
        // Somebody wrote that nothing is known of it any more.
        let unknown = self::index(Presence::Unknown(None));
        assert!(!retries.is_due(tagged(), entry, NOW.after(400 * MINUTE)));
        assert!(retries.is_due(
            tagged(),
            unknown.get("a", tagged()).unwrap(),
            NOW.after(400 * MINUTE)
        ));
        // An outage later it may be there.
        retries.clear();
        assert!(retries.is_due(tagged(), entry, NOW));
    }

    #[test]
    fn only_what_is_still_not_there_is_kept_in_mind() {
        let mut retries = Retries::default();
        retries.in_vain(&tagged().into(), MINUTE, NOW);
        retries.in_vain(&key("x.io/gone:1").into(), MINUTE, NOW);
        retries.tidy(&index(Presence::Missing), "a");
        assert_eq!(retries.0.len(), 1);
        retries.tidy(&index(Presence::Present(proof('a'))), "a");
        assert_eq!(retries.0.len(), 0);
    }

    #[test]
    fn what_is_not_there_is_forgotten_a_day_after_its_last_pod() {
        let day = 24 * 60;
        let forgotten = |presence: Presence, used_at: u32, minutes: u32| {
            let mut index = Index::default();
            index.write("a", tagged(), presence, NOW, NOW.after(MINUTE * used_at));
            let (tenure, now) = tenure(minutes);
            assert!(tenure.to_forget(&index, "a", Class::Digest, now).is_empty());
            !tenure.to_forget(&index, "a", Class::Tag, now).is_empty()
        };
        let refused = || Presence::Unknown(Some(Reason::Unauthorized));
        for presence in [|| Presence::Missing, refused] {
            assert!(!forgotten(presence(), 0, day));
            assert!(forgotten(presence(), 0, day + 1));
            assert!(!forgotten(presence(), 1, day + 1), "a Pod names it");
        }
        assert!(!forgotten(Presence::Present(proof('a')), 0, 9 * day));
        // What was written of its use before this process began may be old.
        let mut index = Index::default();
        let old = NOW.before(Duration::from_hours(100));
        index.write("a", tagged(), Presence::Missing, old, old);
        let (tenure, now) = tenure(day);
        assert!(tenure.to_forget(&index, "a", Class::Tag, now).is_empty());
    }

    #[test]
    fn a_pull_through_mirrors_tags_are_resolved_each_at_its_own_time() {
        let rules = rules(Kind::PullThrough, NOW);
        let mut index = Index::default();
        let now = NOW.after(100 * MINUTE);
        let mut known = |image: &str, presence: Presence, ago: u32| {
            index.write("a", key(image), presence, now.before(MINUTE * ago), now);
        };
        known("x.io/younger:1", Presence::Present(proof('a')), 29);
        known("x.io/due:1", Presence::Present(proof('a')), 30);
        known("x.io/oldest:1", Presence::Present(proof('a')), 90);
        known("x.io/missing:1", Presence::Missing, 1);
        let pinned = format!("x.io/pinned@{}", digest('a'));
        known(&pinned, Presence::Present(proof('a')), 90);
        let mut retries = Retries::default();
        let tags = |retries: &Retries, now| unresolved(&index, "a", &rules, retries, now);
        let of =
            |images: &[&str]| -> Vec<ImageKey> { images.iter().map(|image| key(image).into()).collect() };
        assert_eq!(
            tags(&retries, now),
            of(&["x.io/missing:1", "x.io/oldest:1", "x.io/due:1"])
        );
        retries.in_vain(&key("x.io/missing:1").into(), 5 * MINUTE, now);
        assert_eq!(tags(&retries, now), of(&["x.io/oldest:1", "x.io/due:1"]));
        // The digest that is known of it is gone from upstream, where the tag has moved.
        let noted = {
            let mut index = Index::default();
            index.write("a", key("x.io/missing:1"), Presence::Unknown(None), now, now);
            index.write("a", key("x.io/oldest:1"), Presence::Present(proof('a')), NOW, now);
            index
        };
        let first = &unresolved(&noted, "a", &rules, &retries, now)[0];
        assert_eq!(
            first.as_str(),
            "x.io/missing:1",
            "nobody knows anything of it any more"
        );
        let later = now.after(5 * MINUTE);
        let expected = of(&["x.io/oldest:1", "x.io/due:1", "x.io/younger:1", "x.io/missing:1"]);
        assert_eq!(tags(&retries, later), expected);
    }

    #[test]
    fn tags_wait_when_one_was_not_resolved_within_its_time_by_this_process() {
        let rules = rules(Kind::PullThrough, NOW);
        let wait = |presence: Presence, seen_at: Timestamp, minutes| {
            let mut index = Index::default();
            index.write("a", tagged(), presence, seen_at, seen_at);
            let (tenure, now) = tenure(minutes);
            tenure.tags_wait(&index, "a", &rules, now)
        };
        let present = || Presence::Present(proof('a'));
        assert!(!wait(present(), NOW, 60));
        assert!(wait(present(), NOW, 61));
        assert!(
            !wait(present(), NOW.before(900 * MINUTE), 60),
            "it was not ours to resolve"
        );
        assert!(!wait(Presence::Missing, NOW, 61));
    }

    #[test]
    fn a_complete_sweep_proves_what_it_covered_from_its_start_on() {
        let later = NOW.after(Duration::from_hours(1));
        let rules = Rules::of(&mirror("a", &["docker.io"]), NOW);
        let proven = |index: &Index, key: KeyRef<'_>| matches!(index.judge("a", key, &rules, later), Judgement::Proven(_, at) if at == later);
        let mut index = index(Presence::Present(proof('a')));
        let sweep = Sweep::plan(&index, "a", Class::Tag, later, all);
        // Written while the sweep ran, so it cannot say that it saw it.
        let late = key("docker.io/library/late:1");
        index.write("a", late, Presence::Present(proof('a')), NOW, NOW);
        assert!(!proven(&index, tagged()));
        index.swept("a", Class::Tag, sweep.complete());
        assert!(proven(&index, tagged()));
        assert!(!proven(&index, late));
    }
}
