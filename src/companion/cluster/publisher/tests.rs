//! Tests of what is written, and in which order.

use serde_json::{Value, json};

use super::{
    images::{Action, Outcome},
    queues::{ImageWrite, Queues},
    statuses::{StatusOutcome, StatusWrite},
    *,
};
use crate::{
    api::v1alpha1::{MirroredImage, MirroredImageSpec, Presence as Written, micro_time},
    cluster::{mirrors::Document, objects::Entry},
    companion::{cluster::mirrors::MirrorResource, mirror::reports::SweepEnd},
    domain::{
        examples::{self, proof},
        health::State,
        presence::{Counts, Index, Presence},
    },
};

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

const PRESENT: &str = "docker.io/library/nginx:1.29";

/// The queues of a leader with an API server of the test's own.
struct Scene {
    queues: Queues,
    index: Index,
    cluster: ClusterView,
    start: Instant,
    now: Timestamp,
    /// The version of the last write to the API server.
    version: u64,
}

impl Scene {
    /// A leader that has taken over nothing, and these mirrors.
    fn new(mirrors: &[&str]) -> Self {
        let mut scene = Self::listing(mirrors, &[]);
        scene.stand();
        scene
    }

    /// A leader that takes over these objects, before it knows which mirrors are in force.
    fn listing(mirrors: &[&str], objects: &[Value]) -> Self {
        let mut scene = Self {
            queues: Queues::default(),
            index: Index::default(),
            cluster: ClusterView::default(),
            start: Instant::now(),
            now: NOW,
            version: 1000,
        };
        for name in mirrors {
            scene.create_mirror(name);
        }
        scene.list(objects);
        scene.index.track_changes();
        scene
    }

    fn create_mirror(&mut self, name: &str) {
        self.version += 1;
        let document = Document {
            uid: format!("{name}-{}", self.version),
            version: Some(Version(self.version)),
            generation: 1,
            ..Document::default()
        };
        let resource = MirrorResource {
            document: document.into(),
            ..MirrorResource::default()
        };
        self.cluster.mirrors.insert(name.to_owned(), resource);
    }

    fn delete_mirror(&mut self, name: &str) {
        self.cluster.mirrors.remove(name);
        self.index.retain_mirrors(|mirror| mirror != name);
        self.stand();
    }

    /// Every mirror that there is is in force.
    fn stand(&mut self) -> Vec<String> {
        let in_force = self.cluster.mirrors.keys().map(String::as_str).collect();
        self.queues.stand(&self.cluster, &in_force, &self.index)
    }

    fn tell(&mut self, event: Event<Option<Entry>>) {
        self.queues.take(event, &mut self.index, self.now);
    }

    /// The watch lists these.
    fn list(&mut self, objects: &[Value]) {
        self.tell(Event::Listing);
        for object in objects {
            self.tell(Event::Listed(found(object)));
        }
        self.tell(Event::ListedAll { round: 0 });
        self.version += 1;
        self.tell(Event::Reached(Version(self.version)));
    }

    /// The watch tells of a change.
    fn watch(&mut self, event: Event<Option<Entry>>) {
        let (Event::Changed(Some(found)) | Event::Deleted(Some(found))) = &event else {
            panic!("{event:?}")
        };
        let version = found.version;
        self.tell(event);
        self.tell(Event::Reached(version));
    }

    /// The leader's workers looked at an image.
    fn look(&mut self, mirror: &str, key: &str, presence: Presence) {
        let key = examples::key(key);
        self.index.write(mirror, key, presence, self.now, self.now);
        let changes = self.index.take_changes();
        self.queues.changed(&changes, &self.index);
    }

    fn next_at(&mut self, after: Duration) -> Option<ImageWrite> {
        let changes = self.index.take_changes();
        self.queues.changed(&changes, &self.index);
        self.queues.next(&self.index, self.start + after)
    }

    fn next(&mut self) -> Option<ImageWrite> {
        self.next_at(Duration::ZERO)
    }

    fn done(&mut self, write: &ImageWrite, outcome: Outcome) {
        let now = (self.start, self.now);
        self.queues
            .done(&write.mirror, &write.key, outcome, &mut self.index, now);
    }

    /// The API server does what it is asked to. Returns what the watch will tell of it.
    fn answer(&mut self, write: &ImageWrite) -> Event<Option<Entry>> {
        self.version += 1;
        let (outcome, event) = match &write.action {
            Action::Create(spec) | Action::Replace(spec, _) => {
                let object = object_of(spec, self.version);
                let outcome = Outcome::Wrote(spec.clone(), Version(self.version));
                (outcome, Event::Changed(found(&object)))
            }
            Action::Delete(_) => {
                let spec =
                    crate::api::image::spec(&write.mirror, write.key.by_ref(), &Presence::Missing, NOW);
                let object = object_of(&spec, self.version);
                (Outcome::Deleted, Event::Deleted(found(&object)))
            }
        };
        self.done(write, outcome);
        event
    }

    /// Writes whatever is to be written, with the watch telling at once. Returns what was.
    fn write_all(&mut self) -> Vec<ImageWrite> {
        let mut written = Vec::new();
        while let Some(write) = self.next() {
            let event = self.answer(&write);
            self.watch(event);
            written.push(write);
        }
        written
    }

    /// A sweep over tags ended.
    fn sweep(&mut self, mirror: &str, started_at: Timestamp) {
        let changes = self.index.take_changes();
        self.queues.changed(&changes, &self.index);
        let end = SweepEnd {
            started_at,
            finished_at: started_at.after(Duration::from_secs(1)),
            counts: Counts {
                present: 1,
                ..Counts::default()
            },
            period: Duration::from_mins(5),
            bound: "spec.freshness.tag",
            tags_wait: false,
        };
        let mirror = self.queues.get_mut(mirror).unwrap();
        if mirror.status.swept(Class::Tag, end) {
            mirror.images.swept(Class::Tag, &self.index);
        }
        mirror.images.hurry(Class::Tag);
    }

    fn status(&mut self, name: &str) -> Option<StatusWrite> {
        let changes = self.index.take_changes();
        self.queues.changed(&changes, &self.index);
        let mirror = self.queues.get_mut(name)?;
        for class in mirror.status.waiting().collect::<Vec<_>>() {
            mirror.images.hurry(class);
        }
        self.status_at_once(name)
    }

    /// The same, where the watch told something since what waits was hurried.
    fn status_at_once(&mut self, name: &str) -> Option<StatusWrite> {
        let reached = self.queues.reached()?;
        let resource = &self.cluster.mirrors[name];
        let mirror = self.queues.get_mut(name)?;
        let seen = Seen {
            generation: 1,
            health: Some(Health {
                state: State::Healthy,
                ..Health::unknown(NOW)
            }),
            ..Seen::default()
        };
        let now = (self.start, self.now);
        let write = mirror.status.next(resource, seen, &mirror.images, reached, now)?;
        self.version += 1;
        let stored = StatusOutcome::Stored(Box::new(write.next.clone()), self.version);
        mirror.status.done(write.clone(), stored, self.start);
        Some(write)
    }

    /// Returns the version through which the last sweep over tags is told, once it is.
    fn through(&mut self, name: &str) -> Option<u64> {
        told(&self.status(name)?)
    }
}

/// Returns the version through which a status tells a sweep over tags.
fn told(write: &StatusWrite) -> Option<u64> {
    let sweep = write.next.sweeps.tag.as_ref()?;
    Some(sweep.through_resource_version.parse().unwrap())
}

fn object_of(spec: &MirroredImageSpec, version: u64) -> Value {
    json!({
        "metadata": {
            "name": MirroredImage::object_name(&spec.mirror, &spec.image),
            "resourceVersion": version.to_string(),
        },
        "spec": spec,
    })
}

fn found(object: &Value) -> Option<Entry> {
    objects::entry(&serde_json::from_value(object.clone()).unwrap())
}

/// An object as somebody left it, that says that the mirror has the image.
fn present(mirror: &str, key: &str, version: u64, verified_at: Timestamp) -> Value {
    let presence = Presence::Present(proof('a'));
    let mut spec = crate::api::image::spec(mirror, examples::key(key), &presence, verified_at);
    spec.last_used = Some(crate::companion::cluster::status::time(verified_at));
    object_of(&spec, version)
}

fn changed(object: &Value) -> Event<Option<Entry>> {
    Event::Changed(found(object))
}

fn has_it() -> Presence {
    Presence::Present(proof('a'))
}

fn says(write: &ImageWrite) -> (&str, Option<Written>) {
    match &write.action {
        Action::Create(spec) => ("create", Some(spec.presence)),
        Action::Replace(spec, _) => ("replace", Some(spec.presence)),
        Action::Delete(_) => ("delete", None),
    }
}

fn key(number: usize) -> String {
    format!("docker.io/library/image-{number:05}:1")
}

#[test]
fn mirrors_are_served_in_turn_and_what_is_gone_comes_last_with_one_write_each() {
    let mut objects: Vec<Value> = (0..2_000)
        .map(|number| present("a", &key(number), 10, NOW))
        .collect();
    objects.extend((0..3).map(|number| present("b", &key(number), 10, NOW)));
    let mut scene = Scene::listing(&["a", "b", "c"], &objects);
    scene.stand();
    scene.delete_mirror("a");
    for number in 0..3 {
        scene.look("b", &key(number), Presence::Missing);
        scene.look("c", &key(number), has_it());
    }
    let written = scene.write_all();
    let order: Vec<_> = written.iter().take(6).map(|write| &*write.mirror).collect();
    assert_eq!(order, ["b", "c", "b", "c", "b", "c"]);
    assert_eq!(written.len(), 6 + 2_000);
    assert!(
        written[6..]
            .iter()
            .all(|write| &*write.mirror == "a" && says(write) == ("delete", None))
    );
    assert!(scene.queues.get("a").is_some());
    scene.stand();
    assert!(scene.queues.get("a").is_none(), "nothing is kept of it");
}

#[test]
fn the_end_of_a_sweep_waits_for_its_own_mirrors_changes_only() {
    let objects = [present("a", PRESENT, 10, NOW), present("b", PRESENT, 11, NOW)];
    let mut scene = Scene::listing(&["a", "b"], &objects);
    scene.stand();
    scene.look("a", PRESENT, Presence::Missing);
    scene.sweep("a", NOW);
    scene.sweep("b", NOW);
    assert_eq!(scene.through("a"), None);
    let listed = scene.queues.reached().unwrap().0;
    assert_eq!(scene.through("b"), Some(listed), "the version of the list");
    let write = scene.next().unwrap();
    assert_eq!(scene.through("a"), None, "it is under way");
    let event = scene.answer(&write);
    let version = scene.version;
    assert_eq!(scene.through("a"), None, "the watch has not come so far");
    scene.watch(event);
    assert_eq!(scene.through("a"), Some(version));
}

#[test]
fn new_images_do_not_hold_up_the_end_of_a_sweep() {
    let mut scene = Scene::new(&["a"]);
    scene.look("a", PRESENT, has_it());
    scene.look("a", &key(1), has_it());
    scene.write_all();
    scene.look("a", &key(2), has_it());
    let through = scene.version;
    scene.sweep("a", NOW);
    let write = scene.next().unwrap();
    assert_eq!(scene.through("a"), Some(through));
    drop(scene.answer(&write));
}

#[test]
fn what_came_by_other_hands_is_covered_by_no_sweep_before_somebody_looked() {
    let mut scene = Scene::new(&["a"]);
    scene.look("a", &key(1), has_it());
    scene.write_all();
    let week = Duration::from_hours(24 * 7);
    scene.version += 1;
    let restored = present("a", PRESENT, scene.version, NOW.before(week));
    scene.watch(changed(&restored));
    // It is looked at from now on, but the sweep that ends now did not know it.
    assert_eq!(
        scene.index.get("a", examples::key(PRESENT)).unwrap().presence,
        Presence::Unknown(None)
    );
    assert_eq!(scene.next(), None, "a look may come first");
    scene.sweep("a", NOW);
    assert_eq!(scene.through("a"), None);
    let write = scene.next().unwrap();
    assert_eq!(says(&write), ("replace", Some(Written::Unknown)));
    let event = scene.answer(&write);
    scene.watch(event);
    assert_eq!(scene.through("a"), Some(scene.version - 1));
}

#[test]
fn what_came_by_other_hands_at_the_last_moment_holds_up_the_end_of_a_sweep() {
    let mut scene = Scene::new(&["a"]);
    scene.look("a", &key(1), has_it());
    scene.write_all();
    scene.sweep("a", NOW);
    scene.version += 1;
    let restored = present("a", PRESENT, scene.version, NOW.before(Duration::from_hours(1)));
    scene.watch(changed(&restored));
    let status = scene.status_at_once("a");
    assert_eq!(status.as_ref().and_then(told), None, "nobody looked at it");
    assert_eq!(scene.through("a"), None);
    let written = scene.write_all();
    assert_eq!(says(&written[0]), ("replace", Some(Written::Unknown)));
    assert_eq!(scene.through("a"), Some(scene.version - 1));
}

#[test]
fn what_came_by_other_hands_is_written_once_if_somebody_looked() {
    let mut scene = Scene::new(&["a"]);
    scene.version += 1;
    let restored = present("a", PRESENT, scene.version, NOW.before(Duration::from_hours(1)));
    scene.watch(changed(&restored));
    scene.look("a", PRESENT, has_it());
    let written = scene.write_all();
    assert_eq!(written.len(), 1);
    assert_eq!(says(&written[0]), ("replace", Some(Written::Present)));
    // The same over what the leader knows already: its own word counts, whatever the other says.
    for presence in [Written::Unknown, Written::Present] {
        scene.version += 1;
        let mut changed_by = restored.clone();
        changed_by["metadata"]["resourceVersion"] = scene.version.to_string().into();
        changed_by["spec"]["presence"] = serde_json::to_value(presence).unwrap();
        scene.watch(changed(&changed_by));
        let written = scene.write_all();
        assert_eq!(written.len(), 1, "{presence:?}");
        assert_eq!(says(&written[0]), ("replace", Some(Written::Present)));
    }
}

#[test]
fn own_writes_are_known_whether_the_watch_or_the_answer_is_first() {
    let mut scene = Scene::new(&["a"]);
    scene.look("a", PRESENT, has_it());
    let write = scene.next().unwrap();
    let Action::Create(spec) = &write.action else {
        panic!("{write:?}")
    };
    scene.version += 1;
    let version = Version(scene.version);
    let event = changed(&object_of(spec, scene.version));
    scene.watch(event);
    scene.done(&write, Outcome::Wrote(spec.clone(), version));
    assert_eq!(scene.next(), None);
    let event = changed(&object_of(spec, scene.version));
    scene.watch(event);
    assert_eq!(scene.next(), None);
    // Somebody else was faster than the answer.
    scene.look("a", PRESENT, Presence::Missing);
    let write = scene.next().unwrap();
    let Action::Replace(spec, _) = &write.action else {
        panic!("{write:?}")
    };
    scene.version += 2;
    scene.watch(changed(&present("a", PRESENT, scene.version, NOW)));
    scene.done(&write, Outcome::Wrote(spec.clone(), Version(scene.version - 1)));
    let write = scene.next().unwrap();
    assert_eq!(says(&write), ("replace", Some(Written::Missing)));
    assert!(matches!(write.action, Action::Replace(_, Version(version)) if version == scene.version));
}

#[test]
fn what_others_delete_comes_back_while_it_is_known() {
    let mut scene = Scene::new(&["a"]);
    scene.look("a", PRESENT, has_it());
    scene.write_all();
    scene.version += 1;
    let deleted = found(&present("a", PRESENT, scene.version, NOW));
    scene.watch(Event::Deleted(deleted));
    let written = scene.write_all();
    assert_eq!(written.len(), 1);
    assert_eq!(says(&written[0]), ("create", Some(Written::Present)));
    // Nobody wants it any more: it goes, and stays away.
    scene.index.remove("a", examples::key(PRESENT));
    let written = scene.write_all();
    assert_eq!(says(&written[0]), ("delete", None));
    assert_eq!(written.len(), 1);
}

#[test]
fn a_deletion_counts_for_sweeps_once_the_watch_has_told_of_it() {
    let mut scene = Scene::new(&["a"]);
    scene.look("a", PRESENT, has_it());
    scene.look("a", &key(1), has_it());
    scene.write_all();
    scene.index.remove("a", examples::key(PRESENT));
    scene.sweep("a", NOW);
    let write = scene.next().unwrap();
    let event = scene.answer(&write);
    let version = scene.version;
    assert_eq!(says(&write), ("delete", None));
    assert_eq!(scene.through("a"), None, "its version is not known yet");
    scene.watch(event);
    assert_eq!(scene.through("a"), Some(version));
}

#[test]
fn a_listing_tells_what_was_deleted_meanwhile() {
    let mut scene = Scene::new(&["a"]);
    scene.look("a", PRESENT, has_it());
    scene.look("a", &key(1), has_it());
    scene.write_all();
    let kept = present("a", &key(1), scene.version - 1, NOW);
    // Written after the listing was begun, so it does not name it.
    scene.tell(Event::Listing);
    scene.tell(Event::Listed(found(&kept)));
    let listed = scene.version + 1;
    scene.version += 1;
    scene.look("a", &key(2), has_it());
    let write = scene.next().unwrap();
    drop(scene.answer(&write));
    scene.tell(Event::ListedAll { round: 0 });
    scene.tell(Event::Reached(Version(listed)));
    let written = scene.write_all();
    let created: Vec<_> = written
        .iter()
        .map(|write| (says(write).0, write.key.as_str()))
        .collect();
    assert_eq!(created, [("create", PRESENT)]);
}

#[test]
fn a_deletion_that_is_older_than_a_list_is_not_waited_for() {
    for outcome in [Outcome::Deleted, Outcome::Changed(None)] {
        let mut scene = Scene::new(&["a"]);
        scene.look("a", PRESENT, has_it());
        scene.look("a", &key(1), has_it());
        scene.write_all();
        let kept = present("a", &key(1), scene.version - 1, NOW);
        scene.index.remove("a", examples::key(PRESENT));
        let write = scene.next().unwrap();
        assert_eq!(says(&write), ("delete", None));
        // The list was read after the deletion, and before its answer came.
        scene.version += 1;
        scene.list(&[kept]);
        scene.done(&write, outcome);
        scene.sweep("a", NOW);
        assert!(scene.through("a").is_some(), "the watch never tells of it");
    }
}

#[test]
fn what_the_watch_told_before_a_list_does_not_outlast_it() {
    let mut scene = Scene::new(&["a"]);
    scene.look("a", PRESENT, has_it());
    scene.write_all();
    scene.look("a", PRESENT, Presence::Missing);
    let write = scene.next().unwrap();
    scene.version += 1;
    let by_others = present("a", PRESENT, scene.version, NOW);
    scene.watch(changed(&by_others));
    scene.version += 1;
    scene.list(&[]);
    scene.done(&write, Outcome::Failed("no answer".to_owned()));
    let again = scene.next_at(Duration::from_secs(3)).unwrap();
    assert_eq!(says(&again), ("create", Some(Written::Missing)));
}

#[test]
fn a_deletion_that_is_newer_than_a_list_is_waited_for() {
    for is_named in [true, false] {
        let mut scene = Scene::new(&["a"]);
        scene.look("a", &key(1), has_it());
        scene.write_all();
        let kept = present("a", &key(1), scene.version, NOW);
        if is_named {
            scene.look("a", PRESENT, has_it());
            scene.write_all();
        }
        scene.version += 1;
        let listed = scene.version;
        scene.tell(Event::Listing);
        scene.tell(Event::Listed(found(&kept)));
        if is_named {
            let named = present("a", PRESENT, listed - 1, NOW);
            scene.tell(Event::Listed(found(&named)));
        } else {
            // Written when the list had been read.
            scene.look("a", PRESENT, has_it());
            let write = scene.next().unwrap();
            drop(scene.answer(&write));
        }
        scene.index.remove("a", examples::key(PRESENT));
        let write = scene.next().unwrap();
        assert_eq!(says(&write), ("delete", None));
        let event = scene.answer(&write);
        let version = scene.version;
        scene.tell(Event::ListedAll { round: 0 });
        scene.tell(Event::Reached(Version(listed)));
        scene.sweep("a", NOW);
        assert_eq!(scene.through("a"), None, "its version is not known yet");
        scene.watch(event);
        assert_eq!(scene.through("a"), Some(version));
    }
}

#[test]
fn after_a_restored_backup_everything_is_written_again() {
    let mut scene = Scene::new(&["a"]);
    scene.look("a", PRESENT, has_it());
    scene.write_all();
    scene.look("a", PRESENT, Presence::Missing);
    scene.write_all();
    // The API server is back at the time before, and says so with an older version.
    let older = present("a", PRESENT, scene.version - 1, NOW);
    scene.tell(Event::Listing);
    scene.tell(Event::Listed(found(&older)));
    scene.tell(Event::ListedAll { round: 0 });
    scene.tell(Event::Reached(Version(scene.version - 1)));
    let write = scene.next().unwrap();
    assert_eq!(says(&write), ("replace", Some(Written::Missing)));
    let conflict = Outcome::Changed(found(&older).map(Box::new));
    scene.done(&write, conflict);
    let write = scene.next().unwrap();
    assert!(matches!(write.action, Action::Replace(_, Version(version)) if version == scene.version - 1));
    drop(scene.answer(&write));
    assert_eq!(scene.next(), None);
}

#[test]
fn an_object_from_before_what_was_written_is_noticed_at_the_end_of_a_list() {
    let mut scene = Scene::new(&["a"]);
    scene.look("a", PRESENT, has_it());
    scene.write_all();
    let older = present("a", PRESENT, scene.version, NOW);
    assert!(scene.status("a").is_some());
    let list = |scene: &mut Scene, version: u64| {
        scene.tell(Event::Listing);
        scene.tell(Event::Listed(found(&older)));
        scene.tell(Event::ListedAll { round: 0 });
        scene.tell(Event::Reached(Version(version)));
    };
    // Written after the list was read.
    scene.stand();
    let listed = scene.queues.reached().unwrap().0;
    scene.look("a", PRESENT, Presence::Missing);
    let write = scene.next().unwrap();
    let event = scene.answer(&write);
    list(&mut scene, listed);
    assert_eq!(scene.next(), None);
    assert_eq!(scene.stand(), [""; 0]);
    scene.watch(event);
    assert!(scene.status("a").is_none());
    // The API server lost it, and was written to so often since that its versions are later all the same.
    scene.version += 100;
    let version = scene.version;
    list(&mut scene, version);
    assert_eq!(scene.stand(), ["a"], "what was proven before is void");
    let write = scene.next().unwrap();
    assert_eq!(says(&write), ("replace", Some(Written::Missing)));
    let Action::Replace(_, over) = &write.action else {
        panic!("{write:?}")
    };
    assert_eq!(*over, found(&older).unwrap().version);
    assert!(
        scene.status("a").is_some(),
        "nobody knows what it has of statuses"
    );
    assert_eq!(scene.stand(), [""; 0]);
    // A change on the way to the list's end is none.
    let event = scene.answer(&write);
    scene.tell(Event::Listing);
    scene.tell(Event::Listed(found(&older)));
    let Event::Changed(now) = event else { panic!() };
    scene.tell(Event::Listed(now));
    scene.tell(Event::ListedAll { round: 0 });
    scene.tell(Event::Reached(Version(scene.version)));
    assert_eq!(scene.stand(), [""; 0]);
}

#[test]
fn what_is_from_the_future_is_believed_in_nothing_and_written_unknown() {
    let year = Duration::from_hours(24 * 365);
    let objects = [
        present("a", PRESENT, 10, NOW.after(year)),
        present("a", &key(1), 11, NOW.after(Duration::from_secs(4))),
    ];
    let mut scene = Scene::listing(&["a"], &objects);
    assert_eq!(
        scene.index.get("a", examples::key(PRESENT)).unwrap().presence,
        Presence::Unknown(None)
    );
    assert_eq!(scene.queues.newest(), NOW.after(Duration::from_secs(4)));
    scene.stand();
    let written = scene.write_all();
    assert_eq!(written.len(), 1);
    assert_eq!(says(&written[0]), ("replace", Some(Written::Unknown)));
    scene.look("a", PRESENT, has_it());
    let written = scene.write_all();
    let Action::Replace(spec, _) = &written[0].action else {
        panic!("{written:?}")
    };
    assert_eq!(spec.verified_at, Some(micro_time(NOW)));
    // The same if it comes later.
    scene.version += 1;
    scene.watch(changed(&present("a", PRESENT, scene.version, NOW.after(year))));
    let written = scene.write_all();
    let Action::Replace(spec, _) = &written[0].action else {
        panic!("{written:?}")
    };
    assert_eq!(spec.verified_at, Some(micro_time(NOW)));
}

#[test]
fn what_cannot_be_read_is_looked_at_and_then_replaced() {
    let mut unreadable = present("a", PRESENT, 10, NOW);
    unreadable["spec"]["presence"] = "Perhaps".into();
    let mut scene = Scene::listing(&["a"], std::slice::from_ref(&unreadable));
    scene.stand();
    assert_eq!(scene.next(), None);
    scene.look("a", PRESENT, has_it());
    let written = scene.write_all();
    assert_eq!(says(&written[0]), ("replace", Some(Written::Present)));
    assert_eq!(written.len(), 1);
    // Something is there that was not known of, and cannot be read.
    scene.look("a", &key(1), has_it());
    let write = scene.next().unwrap();
    assert_eq!(says(&write), ("create", Some(Written::Present)));
    scene.version += 1;
    let mut other = present("a", &key(1), scene.version, NOW);
    other["spec"]["presence"] = "Perhaps".into();
    scene.done(&write, Outcome::Changed(found(&other).map(Box::new)));
    let write = scene.next().unwrap();
    assert_eq!(says(&write), ("replace", Some(Written::Present)));
    // Something else altogether: it goes.
    scene.done(&write, Outcome::Taken(Version(scene.version)));
    let written = scene.write_all();
    let kinds: Vec<_> = written.iter().map(|write| says(write).0).collect();
    assert_eq!(kinds, ["delete", "create"]);
}

#[test]
fn an_image_that_cannot_be_written_is_set_aside_and_holds_up_no_other() {
    let mut scene = Scene::new(&["a"]);
    scene.look("a", &key(1), has_it());
    scene.look("a", &key(2), has_it());
    let first = scene.next().unwrap();
    scene.done(&first, Outcome::Failed("no answer".to_owned()));
    let second = scene.next().unwrap();
    assert_ne!(first.key, second.key);
    drop(scene.answer(&second));
    assert_eq!(scene.next(), None);
    let again = scene.next_at(Duration::from_secs(3)).unwrap();
    assert_eq!(again.key, first.key);
    scene.done(&again, Outcome::Refused("no".to_owned()));
    assert_eq!(scene.next_at(Duration::from_secs(3)), None);
    let again = scene.next_at(Duration::from_secs(61)).unwrap();
    assert_eq!(again.key, first.key);
    // What may not be replaced is not true any more, so it goes; and no sweep ends before.
    drop(scene.answer(&again));
    scene.look("a", first.key.as_str(), Presence::Missing);
    let write = scene.next().unwrap();
    scene.done(&write, Outcome::Refused("no".to_owned()));
    scene.sweep("a", NOW);
    assert_eq!(scene.through("a"), None);
    assert_eq!(says(&scene.next().unwrap()), ("delete", None));
}

#[test]
fn what_cannot_be_written_is_told_while_it_holds_back_a_sweep() {
    let mut scene = Scene::new(&["a"]);
    let in_time = |write: &StatusWrite| {
        let mut conditions = write.next.conditions.iter();
        let found = conditions.find(|condition| condition.type_ == "SweepInTime")?;
        Some((found.status.clone(), found.reason.clone(), found.message.clone()))
    };
    scene.look("a", PRESENT, has_it());
    scene.look("a", &key(1), has_it());
    scene.write_all();
    scene.sweep("a", NOW);
    let (status, reason, _) = in_time(&scene.status("a").unwrap()).unwrap();
    assert_eq!((&*status, &*reason), ("True", "InTime"));
    // Neither to be replaced nor to be deleted.
    scene.look("a", PRESENT, Presence::Missing);
    let refuse = |scene: &mut Scene, cause: &str| {
        let write = scene.next().unwrap();
        assert_eq!(write.key.as_str(), PRESENT);
        scene.done(&write, Outcome::Refused(cause.to_owned()));
    };
    refuse(&mut scene, "the policy says no");
    refuse(&mut scene, "the policy says no again");
    scene.sweep("a", NOW.after(Duration::from_mins(5)));
    assert!(scene.status("a").is_none(), "it may be over soon");
    scene.start += Duration::from_secs(61);
    let (status, reason, message) = in_time(&scene.status("a").unwrap()).unwrap();
    assert_eq!((&*status, &*reason), ("False", "NotWritten"));
    let object = MirroredImage::object_name("a", PRESENT);
    let expected = format!("MirroredImage {object} ({PRESENT}): the policy says no");
    assert!(message.ends_with(&expected), "{message}");
    // Tried again and again, and another one too: nothing new to tell.
    scene.look("a", &key(1), Presence::Missing);
    let other = scene.next().unwrap();
    let write = scene.next().unwrap();
    assert_eq!(
        (other.key.as_str(), write.key.as_str()),
        (key(1).as_str(), PRESENT)
    );
    assert!(scene.status("a").is_none());
    scene.done(&other, Outcome::Failed("no answer".to_owned()));
    scene.done(
        &write,
        Outcome::Refused("the policy says no for the third time".to_owned()),
    );
    assert!(scene.status("a").is_none());
    // That one is over; the other is not.
    for _ in 0..2 {
        scene.start += Duration::from_secs(61);
        while let Some(write) = scene.next() {
            if write.key.as_str() == PRESENT {
                let event = scene.answer(&write);
                scene.watch(event);
            } else {
                scene.done(&write, Outcome::Failed("no answer".to_owned()));
            }
        }
    }
    let (_, reason, message) = in_time(&scene.status("a").unwrap()).unwrap();
    assert_eq!(reason, "NotWritten");
    assert!(
        message.ends_with(&format!("({}): no answer", key(1))),
        "{message}"
    );
    scene.start += Duration::from_secs(3);
    scene.write_all();
    let (status, reason, _) = in_time(&scene.status("a").unwrap()).unwrap();
    assert_eq!((&*status, &*reason), ("True", "InTime"));
}

#[test]
fn what_is_as_it_was_sent_and_still_not_written_is_set_aside() {
    let mut scene = Scene::new(&["a"]);
    let (soon, later) = (Duration::from_secs(1), Duration::from_secs(3));
    scene.look("a", PRESENT, has_it());
    // As if there were no definition.
    let write = scene.next().unwrap();
    assert_eq!(says(&write).0, "create");
    scene.done(&write, Outcome::Changed(None));
    assert_eq!(scene.next_at(soon), None);
    let write = scene.next_at(later).unwrap();
    let event = scene.answer(&write);
    scene.watch(event);
    // A conflict that is not about the version.
    let there = present("a", PRESENT, scene.version, NOW);
    scene.look("a", PRESENT, Presence::Missing);
    let write = scene.next().unwrap();
    assert_eq!(says(&write).0, "replace");
    scene.done(&write, Outcome::Changed(found(&there).map(Box::new)));
    assert_eq!(scene.next_at(soon), None);
    scene.sweep("a", NOW);
    assert_eq!(scene.through("a"), None, "it is not true");
    let write = scene.next_at(later).unwrap();
    assert_eq!(says(&write), ("replace", Some(Written::Missing)));
    // The same with what is to go.
    let there = Version(scene.version - 1);
    scene.done(&write, Outcome::Taken(there));
    let write = scene.next_at(2 * later).unwrap();
    assert_eq!(says(&write).0, "delete");
    scene.done(&write, Outcome::Taken(there));
    assert_eq!(scene.next_at(soon), None);
    let write = scene.next_at(later).unwrap();
    assert_eq!(write.action, Action::Delete(there));
    // Whoever was faster is answered at once.
    scene.version += 1;
    let other = present("a", PRESENT, scene.version, NOW);
    scene.done(&write, Outcome::Changed(found(&other).map(Box::new)));
    assert_eq!(says(&scene.next().unwrap()), ("replace", Some(Written::Missing)));
}

#[test]
fn a_name_is_not_a_mirror() {
    let objects: Vec<Value> = (0..10_000)
        .map(|number| present("a", &key(number), 10, NOW.after(Duration::from_secs(2))))
        .collect();
    let mut scene = Scene::listing(&["a"], &objects);
    scene.stand();
    scene.delete_mirror("a");
    for _ in 0..100 {
        let write = scene.next().unwrap();
        let event = scene.answer(&write);
        scene.watch(event);
    }
    // Made again while most of its images are left.
    scene.create_mirror("a");
    assert_eq!(scene.stand(), ["a"], "it is another one");
    let left = scene.queues.get("a").unwrap().images.newest();
    assert_eq!(
        left,
        NOW.after(Duration::from_secs(2)),
        "proofs begin later than that"
    );
    // Its own first image and sweep.
    scene.look("a", PRESENT, has_it());
    scene.sweep("a", NOW.after(Duration::from_secs(10)));
    let mut deleted = 0;
    while let Some(write) = scene.next() {
        assert_eq!(scene.through("a"), None, "{deleted} of the former one are gone");
        deleted += usize::from(says(&write) == ("delete", None));
        let event = scene.answer(&write);
        scene.watch(event);
    }
    assert_eq!(deleted, 9_900);
    assert!(scene.through("a").is_some());
    // Made again so quickly that nobody saw it missing.
    scene.cluster.mirrors.remove("a");
    scene.create_mirror("a");
    assert_eq!(scene.stand(), ["a"]);
    assert_eq!(scene.stand(), [""; 0]);
}

#[test]
fn what_the_index_lost_unnoticed_goes_before_a_sweep_is_told() {
    let objects = [present("a", PRESENT, 10, NOW), present("a", &key(1), 11, NOW)];
    let mut scene = Scene::listing(&["a"], &objects);
    scene.stand();
    scene.index.retain_mirrors(|_| false);
    scene.look("a", &key(1), has_it());
    scene.sweep("a", NOW);
    assert_eq!(scene.through("a"), None);
    let written = scene.write_all();
    let gone: Vec<_> = written
        .iter()
        .map(|write| (says(write).0, write.key.as_str()))
        .collect();
    assert_eq!(gone, [("delete", PRESENT)]);
    assert!(scene.through("a").is_some());
}

#[test]
fn times_of_use_are_written_once_a_day_however_many_there_are() {
    const IMAGES: usize = 20_000;
    let objects: Vec<Value> = (0..IMAGES)
        .map(|number| present("a", &key(number), 10, NOW))
        .collect();
    let mut scene = Scene::listing(&["a"], &objects);
    scene.stand();
    let mut written = vec![Vec::new(); IMAGES];
    let mut writes_in_a_minute = 0;
    for minute in 0..48 * 60 {
        let begun = writes_in_a_minute;
        for second in 0..60 {
            let passed = Duration::from_secs(minute * 60 + second);
            scene.now = NOW.after(passed);
            if second == 0 && minute % (6 * 60) == 0 {
                for number in 0..IMAGES {
                    scene.index.touch("a", examples::key(&key(number)), scene.now);
                }
            }
            while let Some(write) = scene.queues.next(&scene.index, scene.start + passed) {
                let Action::Replace(spec, _) = &write.action else {
                    panic!("{write:?}")
                };
                scene.version += 1;
                let version = Version(scene.version);
                scene.done(&write, Outcome::Wrote(spec.clone(), version));
                let number: usize = write.key.as_str()["docker.io/library/image-".len()..][..5]
                    .parse()
                    .unwrap();
                written[number].push(passed);
                writes_in_a_minute += 1;
            }
        }
        assert!(writes_in_a_minute - begun <= 60, "at most one a second");
    }
    for (number, times) in written.iter().enumerate() {
        assert_eq!(times.len(), 1, "{number}: {times:?}");
    }
}

#[test]
fn a_time_of_use_goes_along_with_whatever_else_is_written() {
    let mut scene = Scene::new(&["a"]);
    scene.look("a", PRESENT, has_it());
    scene.write_all();
    let day = Duration::from_hours(25);
    scene.now = NOW.after(day);
    scene.index.touch("a", examples::key(PRESENT), scene.now);
    scene.look("a", PRESENT, Presence::Missing);
    let written = scene.write_all();
    assert_eq!(written.len(), 1);
    assert_eq!(scene.next_at(day), None);
    // Who was not used has no time to write.
    scene.now = NOW.after(2 * day);
    assert_eq!(scene.next_at(2 * day), None);
}

#[test]
fn a_time_of_use_holds_up_no_sweep_unless_the_image_changes_meanwhile() {
    let mut scene = Scene::new(&["a"]);
    scene.look("a", PRESENT, has_it());
    scene.look("a", &key(1), has_it());
    scene.write_all();
    let through = scene.version;
    let day = Duration::from_hours(25);
    scene.now = NOW.after(day);
    scene.index.touch("a", examples::key(PRESENT), scene.now);
    let write = scene.next_at(day).unwrap();
    assert_eq!(says(&write), ("replace", Some(Written::Present)));
    scene.sweep("a", NOW);
    assert_eq!(scene.through("a"), Some(through));
    scene.look("a", PRESENT, Presence::Missing);
    scene.sweep("a", NOW.after(day));
    assert!(scene.status("a").is_none(), "it is not true any more");
    let event = scene.answer(&write);
    scene.watch(event);
    assert!(scene.status("a").is_none());
    scene.write_all();
    assert_eq!(scene.through("a"), Some(scene.version - 1));
}

#[test]
fn credentials_that_come_and_go_are_told_once_a_minute() {
    let started = Instant::now();
    let mut told = Told::default();
    let mut check = |mirror: &str, action, reason, seconds, expected| {
        let message = Message {
            action,
            reason,
            note: String::new(),
            is_warning: false,
        };
        let now = started + Duration::from_secs(seconds);
        assert_eq!(
            told.is_due(mirror, &message, now),
            expected,
            "{mirror} {reason} {seconds}"
        );
    };
    check("a", "Authenticate", "CredentialsInvalid", 0, true);
    check("a", "Authenticate", "CredentialsValid", 2, true);
    check("a", "Authenticate", "CredentialsInvalid", 4, false);
    check("b", "Authenticate", "CredentialsInvalid", 4, true);
    check("a", "Authenticate", "CredentialsInvalid", 60, true);
    // Health has thresholds of its own.
    check("a", PROBE, "Unhealthy", 60, true);
    check("a", PROBE, "Unhealthy", 61, true);
}
