//! The images that a Pod uses, as its user wrote them, and how its containers stand with them.

use std::collections::{BTreeMap, HashMap};

use super::{ContainerState, Images, Pod, Waiting, places, timestamp};
use crate::{
    api::DECISIONS_ANNOTATION,
    domain::{
        image::ImageKey,
        names::{ORIGINAL_IMAGE_PREFIX, ORIGINAL_VOLUME_PREFIX},
        original::{Original, RecordedDecisions, key_of},
        pod::{PlaceKind, PlaceLabel},
        pulls::{Failure, Pull, Pulled},
        rescue::{self, message::cause},
        routing::{MirrorId, Routing},
    },
};

/// Returns the keys of what a Pod pulls, as its user wrote it.
pub fn images(pod: &Pod, routing: &Routing) -> Vec<ImageKey> {
    let record = Record::of(pod);
    let keys = places(pod)
        .filter(|(place, image)| !place.holds_placeholder(image))
        .filter_map(|(place, image)| record.key_of(place, image, routing));
    keys.map(|(key, _)| key).collect()
}

/// Returns the images of a Pod that name a mirror and what it records as their originals, where the mapping turns these
/// into those.
pub fn originals<'p>(pod: &'p Pod, routing: &Routing) -> Vec<(&'p str, &'p str)> {
    let annotations = &pod.metadata.annotations;
    let has_any = annotations.keys().any(|key| {
        let prefixes = [ORIGINAL_IMAGE_PREFIX, ORIGINAL_VOLUME_PREFIX];
        prefixes.iter().any(|prefix| key.starts_with(prefix))
    });
    if !has_any {
        return Vec::new();
    }
    let originals = places(pod).filter_map(|(place, image)| {
        let recorded = annotations.get(&place.original_annotation())?;
        Original::prove(routing, image, recorded, || None)?;
        Some((image, recorded.as_str()))
    });
    originals.collect()
}

/// Returns how a Pod's containers stand with the images that they were sent to a mirror for.
pub fn pulled(pod: &Pod, routing: &Routing) -> Vec<Pulled> {
    let Images {
        containers,
        init_containers,
        ephemeral_containers,
        ..
    } = &pod.spec;
    let places = [
        (PlaceKind::Container, containers, &pod.status.containers),
        (
            PlaceKind::InitContainer,
            init_containers,
            &pod.status.init_containers,
        ),
        (
            PlaceKind::EphemeralContainer,
            ephemeral_containers,
            &pod.status.ephemeral_containers,
        ),
    ];
    let record = Record::of(pod);
    let mut pulled = Vec::new();
    for (kind, containers, statuses) in places {
        let images = containers
            .iter()
            .map(|container| (&container.name, &container.image));
        let images: HashMap<_, _> = images.collect();
        pulled.extend(statuses.iter().filter_map(|status| {
            let place = PlaceLabel::new(kind, &status.name);
            let image = images.get(&status.name)?;
            let pull = pull(&status.state, image)?;
            let (key, mirror) = record.key_of(place, image, routing)?;
            let mirror = Box::from(routing.mirror(mirror?).name.as_str());
            Some(Pulled { mirror, key, pull })
        }));
    }
    pulled
}

/// What a Pod says of its images' origin.
pub(super) struct Record<'p> {
    annotations: &'p BTreeMap<String, String>,
    decisions: RecordedDecisions<'p>,
}

impl<'p> Record<'p> {
    pub(super) fn of(pod: &'p Pod) -> Self {
        let annotations = &pod.metadata.annotations;
        let decisions = annotations.get(DECISIONS_ANNOTATION).map(String::as_str);
        Self {
            annotations,
            decisions: RecordedDecisions::new(decisions),
        }
    }

    /// Returns the key of what the user wrote at a place, and the mirror that it was sent to.
    pub(super) fn key_of(
        &self,
        place: PlaceLabel<'_>,
        image: &str,
        routing: &Routing,
    ) -> Option<(ImageKey, Option<MirrorId>)> {
        let recorded = self.annotations.get(&place.original_annotation());
        key_of(routing, image, recorded.map(String::as_str), || {
            self.decisions.mirror(place)
        })
    }
}

/// The reasons for which a container waits whose image could not be pulled just now, and that of one that waits since.
const FAILED: [&str; 3] = ["ErrImagePull", "RegistryUnavailable", "SignatureValidationFailed"];
const WAITING: &str = "ImagePullBackOff";

/// Returns how a container stands with its image, as far as its state tells.
fn pull(state: &ContainerState, image: &str) -> Option<Pull> {
    let begun = state
        .running
        .as_ref()
        .or_else(|| state.terminated.as_ref().map(|ended| &ended.begun));
    if let Some(begun) = begun {
        let started = begun.started_at.as_ref().map(timestamp);
        return Some(Pull::Done(started.unwrap_or_default()));
    }
    let Waiting { reason, message } = state.waiting.as_ref()?;
    // It may speak of another image, or of the node alone.
    if rescue::failure(image, message) != rescue::Failure::Image {
        return None;
    }
    let cause = cause(message);
    if let Some(code) = FAILED.iter().find(|known| *known == reason) {
        return Some(Pull::Failed(Failure { cause, code }));
    }
    let waits = Failure { cause, code: WAITING };
    (reason == WAITING).then_some(Pull::Waiting(waits))
}
