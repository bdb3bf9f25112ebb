//! Originals that Pods record, for other Pods of the same namespace that have a mirror's name and no record: as a copy
//! has that `kubectl debug --copy-to` makes, which keeps the name and drops the annotations.
//!
//! Kagami never makes up an original, since upstream's name may be a stranger's. What is lent is what some Pod of that
//! very namespace records, or did within the last hour, and the mapping of a mirror turns into that very image; where Pods
//! record different ones of an image, none is lent. Whoever records something else than was written there can say no more by it than by
//! writing that reference into Pods of the namespace, which the mirror maps to this image and to no other. It proves
//! nothing: who uses it proves it again ([`super::original`]), by the mirrors of that moment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{
    image::Reference,
    pod::{Place, Pod},
    time::Timestamp,
};

/// How many originals are lent, how many of one namespace, and how many bytes they may have as they are written: a
/// ConfigMap holds 1 MiB, and every webhook reads it with each change.
const KEPT: usize = 1_000;
const OF_ONE: usize = 64;
const BYTES: usize = 512 * 1024;

/// How long a reference may be.
const LONGEST: usize = 512;

/// How long something is kept after the last Pod that records it went, if there is room: CronJobs and CI make Pods that
/// record the same again and again.
const STAYS: Duration = Duration::from_hours(1);

/// How often it is looked which were kept for long enough: what only went makes no more changes than that.
const LOOK: Duration = Duration::from_mins(5);

/// Whether an original may be lent for an image: as that Pod records it, it names the same digest, or neither does. A
/// mapping makes any tag into any digest that it was pinned to; but whoever writes a digest into a Pod of his own wants
/// that one, and no tag instead.
fn names_as_much(image: &str, original: &str) -> bool {
    let digest = |reference: &str| reference.split_once('@').map(|(_, digest)| digest.to_owned());
    digest(image) == digest(original)
}

/// The originals that are lent, as they are written for everybody who decides about Pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lent {
    /// By namespace and image.
    namespaces: BTreeMap<Box<str>, BTreeMap<Box<str>, Arc<str>>>,
}

impl Lent {
    /// Reads what was written. What cannot be read of it, or was not written by Kagami, is passed over.
    pub fn read(text: &str) -> Self {
        let mut lent = Self::default();
        for line in text.lines().take(KEPT) {
            let Ok([namespace, image, original]) = serde_json::from_str::<[Box<str>; 3]>(line) else {
                continue;
            };
            let images = lent.namespaces.entry(namespace).or_default();
            if images.len() < OF_ONE {
                images.insert(image, original.into());
            }
        }
        lent
    }

    /// Returns what is to be written, a line of JSON for each.
    pub fn write(&self) -> String {
        let mut text = String::new();
        for (namespace, images) in &self.namespaces {
            for (image, original) in images {
                let line = serde_json::json!([&**namespace, &**image, &**original]);
                text.push_str(&line.to_string());
                text.push('\n');
            }
        }
        text
    }

    /// Gives a Pod of a namespace what others there record of its images. What it records itself comes first.
    pub fn lend(&self, namespace: &str, pod: &mut Pod<'_>) {
        let Some(known) = self.namespaces.get(namespace) else {
            return;
        };
        let of = |place: &Place<'_>| {
            let original = known.get(&*place.image)?;
            names_as_much(&place.image, original).then_some(original)
        };
        // Mostly none does: images are upstream's, as users write them.
        if pod.places.iter().any(|place| of(place).is_some()) {
            pod.lent = pod.places.iter().map(|place| of(place).cloned()).collect();
        }
    }
}

/// What one Pod records of one image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    image: Box<str>,
    original: Box<str>,
}

impl Record {
    /// Returns how many bytes it takes at most as it is written. A reference has no character that is escaped.
    fn size(&self, namespace: &str) -> usize {
        namespace.len() + self.image.len() + self.original.len() + 12
    }
}

/// The Pods of a cluster that record originals, as far as there is room.
#[derive(Debug, Default)]
pub struct Lenders {
    namespaces: BTreeMap<Box<str>, Namespace>,
    /// Those that no Pod records any more, by since when.
    gone: BTreeSet<(Timestamp, Box<str>, Arc<Record>)>,
    /// When it was last looked which of them were kept for long enough.
    looked: Timestamp,
    count: usize,
    bytes: usize,
    /// Counts the changes of what is kept.
    version: u64,
    /// The number of the last list of all Pods, and whether one has ended.
    listing: u32,
    is_complete: bool,
}

#[derive(Debug, Default)]
struct Namespace {
    records: BTreeMap<Arc<Record>, Holders>,
    pods: HashMap<Box<str>, Lender>,
    bytes: usize,
}

/// Who records something.
#[derive(Debug)]
struct Holders {
    pods: usize,
    /// Since when there is none.
    gone: Option<Timestamp>,
}

/// A Pod that records something that is kept.
#[derive(Debug)]
struct Lender {
    records: Box<[Arc<Record>]>,
    /// The list that last named it.
    listing: u32,
}

impl Lenders {
    /// Begins a list of all Pods: those not taken in before [`Lenders::end_listing`] are gone.
    pub const fn begin_listing(&mut self) {
        self.listing = self.listing.wrapping_add(1);
    }

    /// Ends it.
    pub fn end_listing(&mut self, now: Timestamp) {
        let mut gone: Vec<(Box<str>, Box<str>)> = Vec::new();
        for (namespace, known) in &self.namespaces {
            let pods = known.pods.iter();
            let pods = pods.filter(|(_, lender)| lender.listing != self.listing);
            gone.extend(pods.map(|(pod, _)| (namespace.clone(), pod.clone())));
        }
        for (namespace, pod) in gone {
            self.remove(&namespace, &pod, now);
        }
        // Before that less is known than what may have been lent.
        self.version += u64::from(!self.is_complete);
        self.is_complete = true;
    }

    /// Takes in what a Pod records: images that name a mirror, each with an original that the mapping turns into it.
    pub fn take(&mut self, (namespace, pod): (&str, &str), recorded: &[(&str, &str)], now: Timestamp) {
        let mut records: Vec<Arc<Record>> = Vec::new();
        for (image, original) in recorded {
            if image.len().max(original.len()) > LONGEST || !names_as_much(image, original) {
                continue;
            }
            let record = Record {
                image: (*image).into(),
                original: (*original).into(),
            };
            if !records.iter().any(|known| **known == record) {
                records.extend(self.acquire(namespace, record));
            }
        }
        // What it records still is not forgotten and noted again in between.
        self.remove(namespace, pod, now);
        if records.is_empty() {
            return;
        }
        let lender = Lender {
            records: records.into(),
            listing: self.listing,
        };
        let known = self.namespaces.entry(namespace.into()).or_default();
        known.pods.insert(pod.into(), lender);
    }

    /// Forgets a Pod; what it recorded is kept for a while.
    pub fn remove(&mut self, namespace: &str, pod: &str, now: Timestamp) {
        let lender = self.namespaces.get_mut(namespace);
        let Some(lender) = lender.and_then(|known| known.pods.remove(pod)) else {
            return;
        };
        for record in &lender.records {
            self.release(namespace, record, now);
        }
        self.tidy(namespace);
    }

    /// Returns what is lent in namespaces where Pods are rewritten, and a number that is another one after every change of
    /// what is kept; nothing before all Pods were told once. What no Pod records any more goes where it was kept for long
    /// enough, or where none is rewritten: a namespace of that name may be somebody else's tomorrow.
    pub fn lent(&mut self, is_rewritten: impl Fn(&str) -> bool, now: Timestamp) -> Option<(Lent, u64)> {
        if !self.is_complete {
            return None;
        }
        // The clock may have been set back, too.
        let is_time = now < self.looked || now.since(self.looked) >= LOOK;
        if is_time {
            self.looked = now;
        }
        let goes = |at: Timestamp, namespace: &str| {
            !is_rewritten(namespace) || is_time && (at.after(STAYS) <= now || at > now)
        };
        let gone = self.gone.iter().filter(|(at, namespace, _)| goes(*at, namespace));
        for (_, namespace, record) in gone.cloned().collect::<Vec<_>>() {
            self.drop_record(&namespace, &record);
        }
        let namespaces = self.namespaces.iter().filter(|(name, _)| is_rewritten(name));
        let namespaces = namespaces.filter_map(|(name, known)| {
            let images = known.lent();
            (!images.is_empty()).then(|| (name.clone(), images))
        });
        let lent = Lent {
            namespaces: namespaces.collect(),
        };
        Some((lent, self.version))
    }

    /// Returns the number that [`Lenders::lent`] gives.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Notes that one more Pod records something, if there is room for it.
    fn acquire(&mut self, namespace: &str, record: Record) -> Option<Arc<Record>> {
        if let Some(known) = self.namespaces.get_mut(namespace)
            && let Some((held, _)) = known.records.get_key_value(&record)
        {
            let held = Arc::clone(held);
            let holders = known.records.get_mut(&held)?;
            holders.pods += 1;
            if let Some(at) = holders.gone.take() {
                self.gone.remove(&(at, namespace.into(), Arc::clone(&held)));
            }
            return Some(held);
        }
        let size = record.size(namespace);
        if !self.make_room(namespace, size) {
            return None;
        }
        let record = Arc::new(record);
        let known = self.namespaces.entry(namespace.into()).or_default();
        let holders = Holders { pods: 1, gone: None };
        known.records.insert(Arc::clone(&record), holders);
        known.bytes += size;
        self.bytes += size;
        self.count += 1;
        self.version += 1;
        Some(record)
    }

    /// Makes room for a record of a namespace, by those that no Pod records any more, and then by those of namespaces that
    /// have more: nobody drives out another's. Returns whether there is some.
    fn make_room(&mut self, namespace: &str, size: usize) -> bool {
        let known = self.namespaces.get(namespace);
        if let Some(known) = known.filter(|known| known.records.len() >= OF_ONE) {
            let gone = known.records.iter();
            let gone = gone.filter_map(|(record, holders)| Some((holders.gone?, record)));
            let Some(record) = gone.min().map(|(_, record)| Arc::clone(record)) else {
                return false;
            };
            self.drop_record(namespace, &record);
        }
        let known = self.namespaces.get(namespace);
        let own = known.map_or(0, |known| known.bytes) + size;
        while self.count >= KEPT || self.bytes + size > BYTES {
            if let Some((_, gone, record)) = self.gone.first().cloned() {
                self.drop_record(&gone, &record);
                continue;
            }
            let fullest = self.namespaces.iter().max_by_key(|(_, known)| known.bytes);
            let Some((fullest, record)) = fullest.and_then(|(fullest, known)| {
                let (record, _) = known.records.last_key_value()?;
                (known.bytes > own).then(|| (fullest.clone(), Arc::clone(record)))
            }) else {
                return false;
            };
            self.drop_record(&fullest, &record);
        }
        true
    }

    /// Notes that one Pod less records something.
    fn release(&mut self, namespace: &str, record: &Arc<Record>, now: Timestamp) {
        let Some(known) = self.namespaces.get_mut(namespace) else {
            return;
        };
        // It may have been dropped for want of room, and be noted again because of others.
        let held = known.records.get_key_value(record);
        if !held.is_some_and(|(held, _)| Arc::ptr_eq(held, record)) {
            return;
        }
        if let Some(holders) = known.records.get_mut(record) {
            holders.pods -= 1;
            if holders.pods == 0 {
                holders.gone = Some(now);
                self.gone.insert((now, namespace.into(), Arc::clone(record)));
            }
        }
    }

    fn drop_record(&mut self, namespace: &str, record: &Arc<Record>) {
        if let Some(known) = self.namespaces.get_mut(namespace)
            && let Some(holders) = known.records.remove(record)
        {
            let size = record.size(namespace);
            known.bytes -= size;
            self.bytes -= size;
            self.count -= 1;
            self.version += 1;
            if let Some(at) = holders.gone {
                self.gone.remove(&(at, namespace.into(), Arc::clone(record)));
            }
            self.tidy(namespace);
        }
    }

    /// Forgets a namespace of which nothing is left.
    fn tidy(&mut self, namespace: &str) {
        let known = self.namespaces.get(namespace);
        if known.is_some_and(|known| known.pods.is_empty() && known.records.is_empty()) {
            self.namespaces.remove(namespace);
        }
    }
}

impl Namespace {
    /// Returns the one original of each image: as it was written where it comes first, if Pods write one reference in
    /// several ways.
    fn lent(&self) -> BTreeMap<Box<str>, Arc<str>> {
        let mut lent: BTreeMap<Box<str>, Option<&str>> = BTreeMap::new();
        let key = |original: &str| Reference::parse(original).ok().map(|original| original.key());
        for record in self.records.keys() {
            let known = lent.entry(record.image.clone()).or_insert(Some(&record.original));
            if known.is_none_or(|known| key(known) != key(&record.original)) {
                *known = None;
            }
        }
        let lent = lent.into_iter();
        lent.filter_map(|(image, original)| Some((image, original?.into())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        examples::{NOW, place},
        pod::PlaceKind,
    };

    const MIRRORED: &str = "a.example.com/docker.io/library/nginx:1";

    fn lent(lenders: &mut Lenders) -> Vec<String> {
        lent_at(lenders, NOW)
    }

    fn lent_at(lenders: &mut Lenders, now: Timestamp) -> Vec<String> {
        let (lent, _) = lenders.lent(|namespace| namespace != "audited", now).unwrap();
        let text = lent.write();
        assert_eq!(Lent::read(&text), lent);
        text.lines().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn a_digest_that_somebody_wrote_is_not_exchanged_for_a_tag() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let pinned = format!("{MIRRORED}@{digest}");
        for (original, image, is_lent) in [
            ("nginx:1", MIRRORED, true),
            (&*format!("nginx:1@{digest}"), &*pinned, true),
            ("nginx:1", &*pinned, false),
            (&*format!("nginx:1@{digest}"), MIRRORED, false),
        ] {
            let mut lenders = complete();
            lenders.take(("shop", "web"), &[(image, original)], NOW);
            assert_eq!(!lent(&mut lenders).is_empty(), is_lent, "{original} for {image}");
            // Nor where it was written down.
            let text = serde_json::json!(["shop", image, original]).to_string();
            let mut pod = Pod {
                places: vec![place(PlaceKind::Container, 0, "app", image)],
                ..Pod::default()
            };
            Lent::read(&text).lend("shop", &mut pod);
            assert_eq!(!pod.lent.is_empty(), is_lent, "{original} for {image}");
        }
    }

    fn complete() -> Lenders {
        let mut lenders = Lenders::default();
        lenders.begin_listing();
        lenders.end_listing(NOW);
        lenders
    }

    fn line(namespace: &str, original: &str) -> String {
        format!(r#"["{namespace}","{MIRRORED}","{original}"]"#)
    }

    #[test]
    fn what_a_pod_records_is_lent_in_its_own_namespace_and_for_a_while_after_it_went() {
        let mut lenders = complete();
        let record = [(MIRRORED, "nginx:1")];
        lenders.take(("team", "one"), &record, NOW);
        lenders.take(("team", "two"), &record, NOW);
        lenders.take(("audited", "one"), &record, NOW);
        assert_eq!(lent(&mut lenders), [line("team", "nginx:1")]);
        let version = lenders.version();
        lenders.remove("team", "one", NOW);
        lenders.take(("team", "two"), &record, NOW);
        assert_eq!(lent(&mut lenders), [line("team", "nginx:1")]);
        assert_eq!(lenders.version(), version, "nothing else is recorded");
        // It went back to its own image. What it recorded is kept for a while, and goes at a look.
        lenders.take(("team", "two"), &[], NOW);
        let minutes = |minutes| NOW.after(Duration::from_mins(minutes));
        assert_eq!(lent_at(&mut lenders, minutes(59)), [line("team", "nginx:1")]);
        assert_eq!(lent_at(&mut lenders, minutes(62)), [line("team", "nginx:1")]);
        assert_eq!(lenders.version(), version);
        assert_eq!(lent_at(&mut lenders, minutes(64)), [""; 0]);
        assert_ne!(lenders.version(), version);
        lenders.remove("audited", "one", NOW);
        assert_eq!(lent_at(&mut lenders, minutes(65)), [""; 0]);
        assert!(lenders.namespaces.is_empty() && lenders.bytes == 0 && lenders.count == 0);
    }

    #[test]
    fn a_list_forgets_the_pods_that_it_does_not_name_and_nothing_is_lent_before_the_first() {
        let mut lenders = Lenders::default();
        lenders.begin_listing();
        lenders.take(("team", "one"), &[(MIRRORED, "nginx:1")], NOW);
        assert!(lenders.lent(|_| true, NOW).is_none());
        lenders.end_listing(NOW);
        assert_eq!(lent(&mut lenders).len(), 1);
        lenders.begin_listing();
        assert_eq!(lent(&mut lenders).len(), 1);
        lenders.end_listing(NOW);
        assert!(lent_at(&mut lenders, NOW.after(2 * STAYS)).is_empty());
    }

    /// As of a CronJob: a list that every replica reads is not another one because of it.
    #[test]
    fn what_comes_and_goes_again_and_again_changes_what_is_lent_once() {
        let mut lenders = complete();
        let before = lenders.version();
        let mut now = NOW;
        for run in 0..10 {
            let pod = format!("run-{run}");
            lenders.take(("team", &pod), &[(MIRRORED, "nginx:1")], now);
            now = now.after(Duration::from_secs(20));
            lenders.remove("team", &pod, now);
            now = now.after(Duration::from_mins(5));
            assert_eq!(lent_at(&mut lenders, now), [line("team", "nginx:1")], "{run}");
            assert_eq!(lenders.version(), before + 1, "{run}");
        }
        // Where none is rewritten any more nothing is kept for Pods that went: the name may be another's tomorrow.
        let (all, _) = lenders.lent(|_| false, now).unwrap();
        assert_eq!(all, Lent::default());
        assert!(lenders.namespaces.is_empty() && lenders.gone.is_empty());
        // What was noted under a clock that was ahead is not kept until that time comes.
        lenders.take(("team", "one"), &[(MIRRORED, "nginx:1")], now);
        lenders.remove("team", "one", now);
        assert_eq!(lent_at(&mut lenders, now.before(2 * STAYS)), [""; 0]);
    }

    /// Kept records make room for those that Pods have.
    #[test]
    fn what_went_makes_room() {
        let mut lenders = complete();
        let mut take = |namespace: &str, number: usize, stays: bool, at: u64| {
            let now = NOW.after(Duration::from_secs(at));
            let (image, pod) = (format!("x/{number}"), number.to_string());
            lenders.take((namespace, &pod), &[(&image, "x")], now);
            if !stays {
                lenders.remove(namespace, &pod, now);
            }
            let known = &lenders.namespaces[namespace];
            let numbers: Vec<_> = known
                .records
                .keys()
                .map(|record| record.image[2..].to_owned())
                .collect();
            (numbers.contains(&pod), numbers.len(), lenders.count)
        };
        for number in 0..OF_ONE {
            take("team", number, number % 2 == 0, number as u64);
        }
        for number in OF_ONE..3 * OF_ONE / 2 {
            assert_eq!(take("team", number, true, 1000), (true, OF_ONE, OF_ONE));
        }
        assert!(!take("team", 2 * OF_ONE, true, 1000).0, "all have Pods");
        for number in 0..KEPT {
            take(&format!("other-{}", number / 10), number, false, 2000);
        }
        assert_eq!(take("last", 0, true, 3000), (true, 1, KEPT));
        assert_eq!(lenders.namespaces["team"].records.len(), OF_ONE);
    }

    #[test]
    fn where_pods_record_different_originals_none_is_lent() {
        let check = |originals: &[&str], expected: Option<&str>| {
            let mut lenders = complete();
            for (number, original) in originals.iter().enumerate() {
                lenders.take(("team", &number.to_string()), &[(MIRRORED, original)], NOW);
            }
            let expected: Vec<_> = expected.iter().map(|original| line("team", original)).collect();
            assert_eq!(lent(&mut lenders), expected, "{originals:?}");
        };
        check(&["nginx:1", "docker.io/nginx:1"], Some("docker.io/nginx:1"));
        check(&["nginx:1", "nginx:2"], None);
        check(&["nginx:1", "nginx:2", "nginx:1", "docker.io/nginx:1"], None);
        check(&["nginx:1", "Not An Image"], None);
        check(&["nginx:1", &"n".repeat(LONGEST + 1)], Some("nginx:1"));
    }

    #[test]
    fn what_is_kept_has_a_bound_and_nobody_drives_out_another() {
        let mut lenders = complete();
        let long = "n".repeat(LONGEST - 8);
        let take = |lenders: &mut Lenders, namespace: &str, pod: usize| {
            let image = format!("{long}{pod}");
            lenders.take((namespace, &pod.to_string()), &[(&image, "nginx:1")], NOW);
        };
        take(&mut lenders, "small", 0);
        for namespace in 0..40 {
            for pod in 0..2 * OF_ONE {
                take(&mut lenders, &format!("team-{namespace}"), pod);
                assert!(lenders.count <= KEPT && lenders.bytes <= BYTES);
            }
        }
        // Bytes are what there is none left of.
        let full = lenders.count;
        assert!(full < KEPT && full > KEPT / 2, "{full}");
        for known in lenders.namespaces.values() {
            assert!(known.records.len() <= OF_ONE);
        }
        assert!(lenders.namespaces["small"].records.len() == 1);
        take(&mut lenders, "last", 0);
        assert_eq!(lenders.namespaces["last"].records.len(), 1);
        assert_eq!(lenders.namespaces["small"].records.len(), 1);
        let (all, _) = lenders.lent(|_| true, NOW).unwrap();
        assert!(all.write().len() <= BYTES);
        // Those that were dropped are not counted down again.
        for namespace in 0..40 {
            for pod in 0..2 * OF_ONE {
                lenders.remove(&format!("team-{namespace}"), &pod.to_string(), NOW);
            }
        }
        lenders.lent(|_| true, NOW.after(STAYS)).unwrap();
        assert_eq!(lenders.count, 2);
        assert_eq!(lenders.namespaces.len(), 2);
    }

    #[test]
    fn there_are_so_many_at_most() {
        let mut lenders = complete();
        for pod in 0..2 * KEPT {
            let (image, namespace) = (format!("x/{pod}"), format!("team-{}", pod / 10));
            lenders.take((&namespace, &pod.to_string()), &[(&image, "x")], NOW);
        }
        assert_eq!(lenders.count, KEPT);
        assert_eq!(lent(&mut lenders).len(), KEPT);
        let many = "[\"team\",\"x\",\"y\"]\n".repeat(2 * KEPT);
        assert_eq!(Lent::read(&many).namespaces.len(), 1);
        let of_one: Vec<_> = (0..2 * OF_ONE)
            .map(|number| format!("[\"team\",\"x{number}\",\"y\"]\nnot a line\n"))
            .collect();
        assert_eq!(Lent::read(&of_one.concat()).namespaces["team"].len(), OF_ONE);
    }
}
