//! Reading an AdmissionReview: one pass over its bytes, only what decides is kept.
//!
//! How much is kept has a bound for each list: whoever may create a Pod decides what stands in it, and
//! the API server looks at most limits only after admission. Past a bound nothing more is read.

use std::{borrow::Cow, collections::BTreeSet};

use serde_json::Value;

use super::scan::{Cursor, ScanError};
use crate::domain::{
    decision::Operation,
    names::{DECISIONS_ANNOTATION, MODE_LABEL, ORIGINAL_IMAGE_PREFIX, ORIGINAL_VOLUME_PREFIX},
    owners,
    platform::{Label, Landing},
    pod::{Annotations, Owner, Place, PlaceKind, Pod},
};

/// How many places of a Pod that name images are decided about.
pub(crate) const PLACES_LIMIT: usize = 1000;

/// How many of Kagami's annotations are read: two for each place are more than there are.
pub(crate) const OURS_LIMIT: usize = 2 * PLACES_LIMIT;

/// How many owners of a Pod are looked at.
const OWNERS_LIMIT: usize = PLACES_LIMIT;

/// The longest affinity that is parsed, which takes many times its memory. One that is longer is taken
/// for one that does not speak of platforms.
const AFFINITY_LIMIT: usize = 64 * 1024;

/// An AdmissionReview as far as it was understood. Even after a fault it holds what came before,
/// because the answer needs the UID.
#[derive(Debug, Default)]
pub(crate) struct Review<'a> {
    pub(crate) api_version: Cow<'a, str>,
    pub(crate) kind: Cow<'a, str>,
    pub(crate) uid: Cow<'a, str>,
    pub(crate) namespace: Cow<'a, str>,
    pub(crate) dry_run: bool,
    group: Cow<'a, str>,
    version: Cow<'a, str>,
    object_kind: Cow<'a, str>,
    sub_resource: Cow<'a, str>,
    operation: Cow<'a, str>,
    object: Option<Object<'a>>,
    old_object: Option<Object<'a>>,
}

/// What a review asks for.
#[derive(Debug)]
pub(crate) enum Question<'a> {
    /// Decide about this Pod.
    Pod(Operation, Pod<'a>),
    /// Nothing that Kagami decides: another version, kind or operation, or no object.
    Nothing,
}

#[derive(Debug, Default)]
struct Object<'a> {
    pod: Pod<'a>,
    has_metadata: bool,
}

type Scan<T> = Result<T, ScanError>;

/// Fills one optional slot, refusing a second value: a decoder that takes the last of two equal
/// keys and one that takes the first would see different Pods.
macro_rules! once {
    ($seen:ident, $bit:literal, $name:literal) => {
        if $seen & (1 << $bit) != 0 {
            return Err(ScanError::Duplicate($name));
        }
        $seen |= 1 << $bit;
    };
}

impl<'a> Review<'a> {
    /// Reads a review. What was read before a fault stays in `self`.
    pub(crate) fn read(&mut self, text: &'a str) -> Scan<()> {
        let mut cursor = Cursor::new(text);
        let mut seen = 0_u8;
        cursor.object(|key, cursor| {
            match key {
                "apiVersion" => {
                    once!(seen, 0, "apiVersion");
                    self.api_version = cursor.string()?;
                }
                "kind" => {
                    once!(seen, 1, "kind");
                    self.kind = cursor.string()?;
                }
                "request" => {
                    once!(seen, 2, "request");
                    self.read_request(cursor)?;
                }
                _ => {
                    cursor.skip()?;
                }
            }
            Ok(())
        })?;
        cursor.end()
    }

    fn read_request(&mut self, cursor: &mut Cursor<'a>) -> Scan<()> {
        let mut seen = 0_u16;
        cursor.object(|key, cursor| {
            match key {
                "uid" => {
                    once!(seen, 0, "uid");
                    self.uid = cursor.string()?;
                }
                "kind" => {
                    once!(seen, 1, "kind");
                    self.read_kind(cursor)?;
                }
                "subResource" => {
                    once!(seen, 2, "subResource");
                    self.sub_resource = cursor.string()?;
                }
                "namespace" => {
                    once!(seen, 3, "namespace");
                    self.namespace = cursor.string()?;
                }
                "operation" => {
                    once!(seen, 4, "operation");
                    self.operation = cursor.string()?;
                }
                "object" => {
                    once!(seen, 5, "object");
                    self.object = Object::read(cursor)?;
                }
                "oldObject" => {
                    once!(seen, 6, "oldObject");
                    self.old_object = Object::read(cursor)?;
                }
                "dryRun" => {
                    once!(seen, 7, "dryRun");
                    self.dry_run = cursor.boolean()?;
                }
                _ => {
                    cursor.skip()?;
                }
            }
            Ok(())
        })
    }

    fn read_kind(&mut self, cursor: &mut Cursor<'a>) -> Scan<()> {
        cursor.object(|key, cursor| {
            match key {
                "group" => self.group = cursor.string()?,
                "version" => self.version = cursor.string()?,
                "kind" => self.object_kind = cursor.string()?,
                _ => {
                    cursor.skip()?;
                }
            }
            Ok(())
        })
    }

    /// Returns what is asked, taking the Pod out of the review.
    pub(crate) fn question(&mut self) -> Question<'a> {
        let about_pod = self.api_version == "admission.k8s.io/v1"
            && self.kind == "AdmissionReview"
            && self.group.is_empty()
            && self.version == "v1"
            && self.object_kind == "Pod";
        let operation = match (&*self.operation, &*self.sub_resource) {
            ("CREATE", "") => Operation::Create,
            ("UPDATE", "ephemeralcontainers") => Operation::AddEphemeralContainers,
            _ => return Question::Nothing,
        };
        // Without `metadata` there is no place for annotations, and the API server sends none such.
        let Some(Object {
            mut pod,
            has_metadata: true,
        }) = self.object.take().filter(|_| about_pod)
        else {
            return Question::Nothing;
        };
        if operation == Operation::AddEphemeralContainers {
            let is_ephemeral = |place: &Place<'_>| place.kind == PlaceKind::EphemeralContainer;
            let old = self
                .old_object
                .take()
                .map(|old| old.pod.places)
                .unwrap_or_default();
            let old = old.into_iter().filter(is_ephemeral);
            let existed: BTreeSet<_> = old.map(|place| place.name).collect();
            pod.places
                .retain(|place| is_ephemeral(place) && !existed.contains(&place.name));
        }
        Question::Pod(operation, pod)
    }
}

/// Returns a Pod that stands by itself, as in a list, read as admission reads it; nothing if it cannot
/// be.
pub fn read_pod(text: &str) -> Option<Pod<'_>> {
    let object = Object::read(&mut Cursor::new(text)).ok()??;
    object.has_metadata.then_some(object.pod)
}

impl<'a> Object<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Scan<Option<Self>> {
        if cursor.null()? {
            return Ok(None);
        }
        let mut object = Self::default();
        cursor.peek()?;
        let start = cursor.position();
        let mut seen = 0_u8;
        cursor.object(|key, cursor| {
            match key {
                "metadata" => {
                    once!(seen, 0, "metadata");
                    object.has_metadata = !cursor.null()?;
                    if object.has_metadata {
                        read_metadata(&mut object.pod, cursor)?;
                    }
                }
                "spec" => {
                    once!(seen, 1, "spec");
                    read_spec(&mut object.pod, cursor)?;
                }
                _ => {
                    cursor.skip()?;
                }
            }
            Ok(())
        })?;
        object.pod.size = cursor.position() - start;
        Ok(Some(object))
    }
}

fn read_metadata<'a>(pod: &mut Pod<'a>, cursor: &mut Cursor<'a>) -> Scan<()> {
    let mut seen = 0_u8;
    cursor.object(|key, cursor| {
        match key {
            "name" => {
                once!(seen, 0, "name");
                pod.name = cursor.string()?;
            }
            "generateName" => {
                once!(seen, 1, "generateName");
                let prefix = cursor.string()?;
                if pod.name.is_empty() {
                    pod.name = prefix;
                }
            }
            "labels" => {
                once!(seen, 2, "labels");
                cursor.object(|key, cursor| {
                    if owners::is_telling(key) {
                        let value = cursor.string()?;
                        if let Some((api_version, kind)) = owners::owner_by_label(key, &value) {
                            let owner = Owner {
                                api_version: api_version.into(),
                                kind: kind.into(),
                                uid: Cow::default(),
                            };
                            push(&mut pod.owners, owner, OWNERS_LIMIT, "owners")?;
                        }
                    } else if key != MODE_LABEL {
                        cursor.skip()?;
                    } else if pod.mode_label.replace(cursor.string()?).is_some() {
                        return Err(ScanError::Duplicate(MODE_LABEL));
                    }
                    Ok(())
                })?;
            }
            "annotations" => {
                once!(seen, 3, "annotations");
                pod.annotations = read_annotations(cursor)?;
            }
            "ownerReferences" => {
                once!(seen, 4, "ownerReferences");
                cursor.array(|_, cursor| {
                    let mut owner = Owner::default();
                    cursor.object(|key, cursor| {
                        match key {
                            "apiVersion" => owner.api_version = cursor.string()?,
                            "kind" => owner.kind = cursor.string()?,
                            "uid" => owner.uid = cursor.string()?,
                            _ => {
                                cursor.skip()?;
                            }
                        }
                        Ok(())
                    })?;
                    push(&mut pod.owners, owner, OWNERS_LIMIT, "owners")?;
                    Ok(())
                })?;
            }
            _ => {
                cursor.skip()?;
            }
        }
        Ok(())
    })
}

fn read_annotations<'a>(cursor: &mut Cursor<'a>) -> Scan<Option<Annotations<'a>>> {
    if cursor.null()? {
        return Ok(None);
    }
    let (mut size, mut ours, mut static_pod) = (0, Vec::new(), false);
    cursor.object(|key, cursor| {
        let is_ours = key == DECISIONS_ANNOTATION
            || key.starts_with(ORIGINAL_IMAGE_PREFIX)
            || key.starts_with(ORIGINAL_VOLUME_PREFIX);
        if is_ours {
            let value = cursor.string()?;
            size += key.len() + value.len();
            let annotation = (Cow::Owned(key.to_owned()), value);
            push(&mut ours, annotation, OURS_LIMIT, "annotations of Kagami's")?;
        } else {
            static_pod |= key == "kubernetes.io/config.mirror";
            // Escapes make this a little more than the value is; the limit is no exact one.
            size += key.len() + cursor.skip()?.len();
        }
        Ok(())
    })?;
    let Some(mut annotations) = Annotations::new(size, ours) else {
        return Err(ScanError::Duplicate("one of Kagami's annotations"));
    };
    annotations.static_pod = static_pod;
    Ok(Some(annotations))
}

/// Appends to a list that has a limit.
fn push<T>(list: &mut Vec<T>, entry: T, limit: usize, what: &'static str) -> Scan<()> {
    if list.len() == limit {
        return Err(ScanError::TooMany(what));
    }
    list.push(entry);
    Ok(())
}

fn read_spec<'a>(pod: &mut Pod<'a>, cursor: &mut Cursor<'a>) -> Scan<()> {
    let mut seen = 0_u16;
    let mut landing = Landing::ANYWHERE;
    cursor.object(|key, cursor| {
        match key {
            "containers" => {
                once!(seen, 0, "containers");
                read_containers(pod, PlaceKind::Container, cursor)?;
            }
            "initContainers" => {
                once!(seen, 1, "initContainers");
                read_containers(pod, PlaceKind::InitContainer, cursor)?;
            }
            "ephemeralContainers" => {
                once!(seen, 2, "ephemeralContainers");
                read_containers(pod, PlaceKind::EphemeralContainer, cursor)?;
            }
            "volumes" => {
                once!(seen, 3, "volumes");
                cursor.array(|index, cursor| read_volume(pod, index, cursor))?;
            }
            "imagePullSecrets" => {
                once!(seen, 4, "imagePullSecrets");
                if !cursor.null()? {
                    let mut secrets = Vec::new();
                    cursor.array(|_, cursor| {
                        cursor.object(|key, cursor| {
                            if key == "name" {
                                secrets.push(cursor.string()?);
                            } else {
                                cursor.skip()?;
                            }
                            Ok(())
                        })
                    })?;
                    pod.pull_secrets = Some(secrets);
                }
            }
            "nodeSelector" => {
                once!(seen, 5, "nodeSelector");
                cursor.object(|key, cursor| {
                    if let Some(label) = Label::from_key(key) {
                        let value = cursor.string()?;
                        landing = landing.and(Landing::of(label, [&*value]));
                    } else {
                        cursor.skip()?;
                    }
                    Ok(())
                })?;
            }
            "affinity" => {
                once!(seen, 6, "affinity");
                let affinity = cursor.skip()?;
                if affinity.len() <= AFFINITY_LIMIT {
                    landing = landing.and(required_landing(affinity).unwrap_or_default());
                }
            }
            "os" => {
                once!(seen, 7, "os");
                cursor.object(|key, cursor| {
                    if key == "name" {
                        let name = cursor.string()?;
                        landing = landing.and(Landing::of(Label::Os, [&*name]));
                    } else {
                        cursor.skip()?;
                    }
                    Ok(())
                })?;
            }
            _ => {
                cursor.skip()?;
            }
        }
        Ok(())
    })?;
    pod.landing = landing;
    Ok(())
}

fn read_containers<'a>(pod: &mut Pod<'a>, kind: PlaceKind, cursor: &mut Cursor<'a>) -> Scan<()> {
    cursor.array(|index, cursor| {
        let (mut name, mut image, mut policy) = (None, None, None);
        cursor.object(|key, cursor| {
            let slot = match key {
                "name" => &mut name,
                "image" => &mut image,
                "imagePullPolicy" => &mut policy,
                _ => return cursor.skip().map(|_| ()),
            };
            match slot.replace(cursor.string()?) {
                None => Ok(()),
                Some(_) => Err(ScanError::Duplicate(
                    "a container's name, image or imagePullPolicy",
                )),
            }
        })?;
        push_place(pod, kind, index, name, image, policy.as_deref())
    })
}

fn read_volume<'a>(pod: &mut Pod<'a>, index: usize, cursor: &mut Cursor<'a>) -> Scan<()> {
    let (mut name, mut reference, mut policy) = (None, None, None);
    let mut seen = 0_u8;
    cursor.object(|key, cursor| {
        match key {
            "name" => {
                if name.replace(cursor.string()?).is_some() {
                    return Err(ScanError::Duplicate("a volume's name"));
                }
            }
            "image" => {
                once!(seen, 0, "a volume's image");
                cursor.object(|key, cursor| {
                    let slot = match key {
                        "reference" => &mut reference,
                        "pullPolicy" => &mut policy,
                        _ => return cursor.skip().map(|_| ()),
                    };
                    match slot.replace(cursor.string()?) {
                        None => Ok(()),
                        Some(_) => Err(ScanError::Duplicate("a volume's image")),
                    }
                })?;
            }
            _ => {
                cursor.skip()?;
            }
        }
        Ok(())
    })?;
    push_place(pod, PlaceKind::Volume, index, name, reference, policy.as_deref())
}

fn push_place<'a>(
    pod: &mut Pod<'a>,
    kind: PlaceKind,
    index: usize,
    name: Option<Cow<'a, str>>,
    image: Option<Cow<'a, str>>,
    policy: Option<&str>,
) -> Scan<()> {
    // An image may be left out where a higher level fills it in; there is nothing to decide then.
    let Some(image) = image.filter(|image| !image.is_empty()) else {
        return Ok(());
    };
    let place = Place {
        kind,
        index,
        name: name.unwrap_or_default(),
        image,
        never: policy == Some("Never"),
    };
    push(&mut pod.places, place, PLACES_LIMIT, "images")
}

/// Returns where a required node affinity lets a Pod land: one of its alternatives, each of which holds whole.
/// None if it has none. Rare enough for a whole parse.
fn required_landing(affinity: &str) -> Option<Landing> {
    let affinity: Value = serde_json::from_str(affinity).ok()?;
    let terms = affinity
        .get("nodeAffinity")?
        .get("requiredDuringSchedulingIgnoredDuringExecution")?
        .get("nodeSelectorTerms")?
        .as_array()?;
    let of_term = |term: &Value| {
        let expressions = term.get("matchExpressions").and_then(Value::as_array);
        let expressions = expressions.into_iter().flatten();
        expressions.fold(Landing::ANYWHERE, |landing, expression| {
            landing.and(expressed(expression).unwrap_or_default())
        })
    };
    terms.iter().map(of_term).reduce(Landing::or)
}

/// Returns where one expression lets a Pod land; none if it does not speak of that.
fn expressed(expression: &Value) -> Option<Landing> {
    let label = Label::from_key(expression.get("key")?.as_str()?)?;
    let values = expression.get("values")?.as_array()?;
    let values = values.iter().filter_map(Value::as_str);
    match expression.get("operator")?.as_str()? {
        "In" => Some(Landing::of(label, values)),
        "NotIn" => Some(Landing::not_of(label, values)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
