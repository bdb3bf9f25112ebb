//! The ImageMirrors of a cluster as a watch tells them, each in its last good form.
//!
//! One that cannot be used, or not even be read, is told with its faults; what it said when it last was
//! good stays in force. No object stops the watch.

use std::sync::Arc;

use super::{
    collection::Collection,
    objects::{Object, Reader},
    watch::{Event, version},
};
use crate::{
    api::{
        mirror::{Connection, closed},
        newer::{Reading, Unknown},
        v1alpha1::ImageMirrorStatus,
    },
    domain::{mirror::Mirror, presence::Version, routing::Closed},
};

/// What an ImageMirror says.
pub type Form = (Mirror, Connection);

/// An ImageMirror as it stands in the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    pub uid: String,
    pub version: Option<Version>,
    pub generation: i64,
    pub status: ImageMirrorStatus,
    /// What it says, or said when it last was good; none if it never was since it is watched.
    pub form: Option<Form>,
    /// What is kept for nobody while there is no form of it, as far as it can be read.
    pub closed: Option<Closed>,
    /// What is wrong with it as it is now.
    pub faults: Vec<String>,
    /// What this program does not know of it.
    pub unknown: Vec<Unknown>,
}

/// What an event changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// What is in force.
    pub forms: bool,
    /// Anything that is told of ImageMirrors.
    pub documents: bool,
}

/// Every ImageMirror.
#[derive(Debug, Default)]
pub struct Mirrors {
    reader: Reader,
    documents: Collection<Arc<Document>>,
}

impl Document {
    /// Reads an ImageMirror, given what it was `before`. `check` says why something that can be read
    /// cannot be used, given what was in force before.
    fn read(
        reader: &Reader,
        object: &Object,
        before: Option<&Self>,
        check: impl FnOnce(Option<&Form>, &Form) -> Result<(), String>,
    ) -> Self {
        let status = reader.status(&object.status);
        let before = before.and_then(|before| before.form.as_ref());
        let Reading { taken, unknown } = reader.mirror(object);
        let taken = taken
            .map_err(|faults| faults.iter().map(ToString::to_string).collect())
            .and_then(|form| match check(before, &form) {
                Ok(()) => Ok(form),
                Err(fault) => Err(vec![fault]),
            });
        let (form, faults) = match taken {
            Ok(form) => (Some(form), Vec::new()),
            Err(faults) => (before.cloned(), faults),
        };
        let closed = form
            .is_none()
            .then(|| closed(&object.metadata.name, &object.spec));
        Self {
            uid: object.metadata.uid.clone(),
            version: version(&object.metadata.resource_version),
            generation: object.metadata.generation,
            status,
            form,
            closed: closed.flatten(),
            faults,
            unknown,
        }
    }
}

impl Mirrors {
    /// Takes in an event. `check` says why something that can be read cannot be used, given what was in force
    /// before.
    pub fn take(
        &mut self,
        event: Event<Object>,
        check: impl FnOnce(Option<&Form>, &Form) -> Result<(), String>,
    ) -> Change {
        let documents = &self.documents;
        let mut same_form = false;
        let event = event.map(|object| {
            let before = documents.get(&object.metadata.name).map(AsRef::as_ref);
            let document = Document::read(&self.reader, &object, before, check);
            same_form =
                before.is_some_and(|before| before.form == document.form && before.closed == document.closed);
            (object.metadata.name, Arc::new(document))
        });
        let goes = matches!(event, Event::Deleted(_) | Event::ListedAll { .. });
        let documents = self.documents.take(event);
        Change {
            forms: documents && (goes || !same_form),
            documents,
        }
    }

    /// Whether all were told once.
    pub const fn is_complete(&self) -> bool {
        self.documents.is_complete()
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Document>> {
        self.documents.get(name)
    }

    /// Returns every ImageMirror by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Arc<Document>)> {
        self.documents.iter()
    }

    /// Returns what is in force.
    pub fn forms(&self) -> impl Iterator<Item = &Form> {
        self.iter().filter_map(|(_, document)| document.form.as_ref())
    }

    /// Returns what is kept for nobody, of those that never were good since they are watched.
    pub fn closed(&self) -> impl Iterator<Item = &Closed> {
        self.iter().filter_map(|(_, document)| document.closed.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An ImageMirror with this priority, one that nobody understands without, and these platforms in its
    /// status.
    fn object(version: u64, priority: Option<i32>, platforms: &[&str]) -> Object {
        serde_json::from_value(json!({
            "metadata": {"name": "main", "uid": "u", "generation": 3, "resourceVersion": version.to_string()},
            "spec": {
                "registry": "mirror.test",
                "kind": "Hosted",
                "sources": [{"prefix": "docker.io"}],
                "priority": priority.unwrap_or_default(),
                "mode": if priority.is_some() { "Enforce" } else { "Sometimes" },
            },
            "status": {"platforms": platforms},
        }))
        .unwrap()
    }

    fn priority(mirrors: &Mirrors) -> Option<i32> {
        mirrors.forms().next().map(|(mirror, _)| mirror.priority)
    }

    #[test]
    fn the_last_good_form_stays_in_force() {
        let mut mirrors = Mirrors::default();
        let refused = |_: Option<&Form>, (mirror, _): &Form| {
            (mirror.priority != 13)
                .then_some(())
                .ok_or_else(|| "unlucky".to_owned())
        };
        let mut check = |told: Option<i32>, forms: bool, expected: Option<i32>, faults: usize| {
            let version = mirrors
                .iter()
                .next()
                .map_or(1, |(_, known)| known.version.unwrap().0 + 1);
            let event = Event::Changed(object(version, told, &[]));
            let change = mirrors.take(event, refused);
            assert_eq!(
                change,
                Change {
                    forms,
                    documents: true
                }
            );
            assert_eq!(priority(&mirrors), expected, "{told:?}");
            let (_, document) = mirrors.iter().next().unwrap();
            assert_eq!(document.faults.len(), faults, "{:?}", document.faults);
            assert_eq!((document.generation, document.uid.as_str()), (3, "u"));
        };
        check(None, true, None, 1);
        check(Some(1), true, Some(1), 0);
        check(Some(1), false, Some(1), 0);
        check(None, false, Some(1), 1);
        check(Some(13), false, Some(1), 1);
        check(Some(2), true, Some(2), 0);
        let change = mirrors.take(Event::Deleted(object(9, Some(2), &[])), refused);
        assert!(change.forms && priority(&mirrors).is_none());
    }

    /// Else a process that begins while an ImageMirror has a fault would give its private copies to everybody.
    #[test]
    fn what_never_was_good_is_closed_until_it_is_or_goes() {
        let mut mirrors = Mirrors::default();
        let private = |version: u64, mode: &str, prefix: &str| {
            let mut object = object(version, Some(1), &[]);
            object.spec["mode"] = json!(mode);
            object.spec["sources"] = json!([{"prefix": prefix, "access": "Private"}]);
            object.spec["namespaceSelector"] = json!({"matchLabels": {"a": "b"}});
            object
        };
        let mut take = |event: Event<Object>| {
            let change = mirrors.take(event, |_, _| Ok(()));
            let closed: Vec<_> = mirrors
                .closed()
                .map(|closed| closed.prefixes.clone().unwrap())
                .collect();
            (change.forms, closed.concat(), mirrors.forms().count())
        };
        let of = |prefix: &str| vec![prefix.to_owned()];
        let changed = |version, mode, prefix| Event::Changed(private(version, mode, prefix));
        assert_eq!(take(changed(1, "Sometimes", "ghcr.io")), (true, of("ghcr.io"), 0));
        assert_eq!(take(changed(2, "Never", "ghcr.io")), (false, of("ghcr.io"), 0));
        assert_eq!(take(changed(3, "Never", "quay.io")), (true, of("quay.io"), 0));
        assert_eq!(take(changed(4, "Enforce", "quay.io")), (true, Vec::new(), 1));
        // Its last good form holds what it held.
        assert_eq!(take(changed(5, "Never", "quay.io")), (false, Vec::new(), 1));
        let gone = Event::Deleted(private(6, "Never", "quay.io"));
        assert_eq!(take(gone), (true, Vec::new(), 0));
    }

    #[test]
    fn what_is_told_again_changes_nothing_and_a_status_no_form() {
        let mut mirrors = Mirrors::default();
        let mut take = |version, platforms: &[&str]| {
            let event = Event::Changed(object(version, Some(1), platforms));
            let Change { forms, documents } = mirrors.take(event, |_, _| Ok(()));
            (forms, documents)
        };
        assert_eq!(take(1, &[]), (true, true));
        assert_eq!(take(1, &[]), (false, false));
        assert_eq!(take(2, &["arm64"]), (false, true));
        let (_, document) = mirrors.iter().next().unwrap();
        assert_eq!(document.status.platforms, ["arm64"]);
    }
}
