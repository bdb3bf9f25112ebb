//! What of a Pod tells whether its owner fights rewrites.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use super::{Pod, timestamp, used::Record};
use crate::domain::{
    owners,
    pod::{PlaceKind, PlaceLabel},
    routing::Routing,
};

impl Pod {
    /// Returns what counts of a Pod whose owner may be one that fights rewrites; none of one that nobody owns, or a
    /// controller that never compares images, and of an owner that cannot be.
    pub fn as_owned(&self, routing: &Routing) -> Option<owners::Pod<'_>> {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let owner = metadata.owner_references.iter().find(|owner| owner.controller)?;
        let owner = owners::Owner {
            api_version: &owner.api_version,
            kind: &owner.kind,
            name: &owner.name,
            uid: &owner.uid,
        };
        let kind = owners::Kind::of(owner.api_version, owner.kind);
        // A Deployment's ReplicaSet: there are many of them, and nobody need ask whose each is.
        let of_deployment = kind == Some(owners::Kind::ReplicaSet) && metadata.labels.template.is_some();
        if of_deployment || kind.is_none() && !owners::is_custom(owner.api_version) || !owner.can_be() {
            return None;
        }
        let deleted = metadata.deletion_timestamp.as_ref().map(|time| {
            // It is the time until which the Pod may take to end.
            let grace = metadata.deletion_grace_period_seconds.unwrap_or(0);
            timestamp(time).before(Duration::from_secs(grace))
        });
        let mut conditions = status.conditions.iter();
        let is_disrupted =
            conditions.any(|known| known.type_ == "DisruptionTarget" && known.status == "True");
        let ready = status.conditions.iter().find(|known| known.type_ == "Ready");
        let ready = ready.and_then(|ready| {
            let since = timestamp(ready.last_transition_time.as_ref()?);
            Some((ready.status == "True", since))
        });
        let (is_rewritten, revision) = self.wanted(routing);
        Some(owners::Pod {
            uid: &metadata.uid,
            namespace: &metadata.namespace,
            name: &metadata.name,
            owner,
            created: metadata.creation_timestamp.as_ref().map(timestamp),
            deleted,
            is_rewritten,
            revision,
            is_disrupted,
            ready,
            node: &spec.node_name,
        })
    }

    /// Returns whether some image was rewritten, and a number that is the same where the same was wanted: of images as
    /// their users wrote them, and of templates.
    fn wanted(&self, routing: &Routing) -> (bool, u64) {
        let labels = &self.metadata.labels;
        let mut hasher = DefaultHasher::new();
        (&labels.template, &labels.revision, &labels.rollout).hash(&mut hasher);
        let record = Record::of(self);
        let mut is_rewritten = false;
        let lists = [
            (PlaceKind::InitContainer, &self.spec.init_containers),
            (PlaceKind::Container, &self.spec.containers),
        ];
        for (kind, containers) in lists {
            for container in containers {
                let place = PlaceLabel::new(kind, &container.name);
                let found = record.key_of(place, &container.image, routing);
                is_rewritten |= found.as_ref().is_some_and(|(_, mirror)| mirror.is_some());
                let key = found
                    .as_ref()
                    .map_or(container.image.as_str(), |(key, _)| key.as_str());
                (container.name.as_str(), key).hash(&mut hasher);
            }
        }
        (is_rewritten, hasher.finish())
    }
}
