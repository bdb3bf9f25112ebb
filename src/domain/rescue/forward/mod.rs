//! The other way: a container that its own registry does not give its image goes forward to a mirror which would
//! serve it.
//!
//! Whether one would is not decided here but where it is for every new Pod ([`decide`]): health, proof, platforms,
//! the mirror's selector, access, owners and pull secret. So a turn gives nobody more than making the Pod anew in that
//! namespace would, and why upstream refuses, which only the registry's own words tell, need not be known: an image
//! that is gone there, or asks for other credentials, goes forward exactly where a new Pod would be sent to the mirror.
//! One thing is read beyond the reference: what the node itself refuses for its signature is not got elsewhere.
//!
//! Beyond that the namespace must be labelled enforce, the mirror's registry be listed in the settings, as a policy of
//! the API server asks for too, and what is written end as what stood there. One turn forward for each container.
//!
//! One that went back, and whose own registry does not serve its node either, comes forward again by the same rules: each
//! way is gone once, so there is no going to and fro. Kubelet has to tell that the image itself failed, by its name, which
//! after the turn takes two tries, some forty seconds in all; and what the mirror is believed to have was seen there after
//! the turn. Whether the mirror was out of use in between does not matter: a fault that only nodes met, or that was over
//! before anybody was sure of it, never shows. Where nobody has looked since, a look is asked for.

use std::borrow::Cow;

use super::{
    Failure, LONGEST_NAME, Pod, REASONS, StuckContainer, StuckPod, Turn, Turning, Way,
    message::SIGNATURE,
    original::{Original, mirrors_named_by},
    turn_label,
};
use crate::domain::{
    decision::{Operation, Probing, Request, decide},
    image::{ImageKey, Reference},
    mapping::Form,
    mirror::{Mode, RescuePolicy},
    names::{MODE_LABEL, PULL_SECRET},
    platform::Landing,
    pod::{self, Owner, Place},
    presence::Index,
    reason::{Outcome, Reason},
    routing::MirrorId,
    snapshot::Snapshot,
    time::Timestamp,
};

/// How many owners a Pod may have to be kept in mind.
const OWNERS: usize = 8;

/// What admission would look at besides images, if a Pod came now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newcomer {
    /// API version, kind and UID.
    owners: Box<[[Box<str>; 3]]>,
    lists_pull_secret: bool,
    landing: Landing,
}

/// What decides whether stuck containers go forward.
#[derive(Clone, Copy, Debug)]
pub struct Ahead<'a> {
    pub snapshot: &'a Snapshot,
    pub index: &'a Index,
    /// The registries that Pods may be turned forward to: `host[:port][/path]`.
    pub registries: &'a [String],
    pub now: Timestamp,
}

/// An image that a mirror has to be looked at for: its name, and the image as its users write it.
pub type Unseen = (Box<str>, ImageKey);

/// Why a container does not go forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stays {
    /// The message speaks of another image, or of none.
    OtherFailure,
    /// The node refuses the image for its signature.
    Signature,
    /// The namespace is not labelled enforce.
    NotEnforced,
    /// More or longer owners than are kept in mind.
    Owners,
    /// Another image is recorded as its original.
    Recorded,
    /// It was turned forward before.
    TurnedBefore,
    /// What was turned before cannot be read.
    TurnsUnreadable,
    /// It was turned back, and the mirror was not seen to have the image since.
    NotSince(Unseen),
    /// So a new Pod would keep its image too.
    Kept(Reason),
    /// The registry is not among those that the settings list.
    NotListed,
    /// What the mirror calls the image does not end as the image.
    NameDiffers,
    /// The mirror's policy says so.
    PolicyOff,
}

impl Newcomer {
    /// Returns how much text is kept of it, and a little for each thing that has some.
    pub(super) fn size(&self) -> usize {
        let owners = self.owners.iter();
        owners
            .map(|owner| 64 + owner.iter().map(|text| text.len()).sum::<usize>())
            .sum()
    }

    /// Returns what is kept of a Pod; none where its owners are too much to be kept.
    pub(super) fn of(pod: &Pod<'_>) -> Option<Self> {
        if pod.owners.len() > OWNERS {
            return None;
        }
        let owners = pod.owners.iter().map(|owner| {
            let words = [&owner.api_version, &owner.kind, &owner.uid];
            let short = words.iter().all(|word| word.len() <= LONGEST_NAME);
            short.then(|| words.map(|word| Box::from(&**word)))
        });
        Some(Self {
            owners: owners.collect::<Option<_>>()?,
            lists_pull_secret: pod.lists_pull_secret,
            landing: pod.landing,
        })
    }

    /// Returns a Pod as admission has it, of places alone.
    fn with<'a>(&'a self, places: Vec<Place<'a>>) -> pod::Pod<'a> {
        let owners = self.owners.iter().map(|[api_version, kind, uid]| Owner {
            api_version: Cow::Borrowed(api_version),
            kind: Cow::Borrowed(kind),
            uid: Cow::Borrowed(uid),
        });
        pod::Pod {
            owners: owners.collect(),
            pull_secrets: self.lists_pull_secret.then(|| vec![PULL_SECRET.into()]),
            landing: self.landing,
            places,
            ..pod::Pod::default()
        }
    }

    /// Returns the mirror that admission would send an image to, or why to none. Of a Pod that is there already the list of
    /// pull secrets cannot be changed. Only what is known counts, nobody is asked.
    pub(super) fn admit(
        &self,
        operation: Operation,
        place: Place<'_>,
        namespace: &str,
        mode: Mode,
        by: &Ahead<'_>,
    ) -> Result<(MirrorId, Outcome), Reason> {
        let request = Request {
            namespace,
            mode,
            operation,
            heal: false,
            pod: self.with(vec![place]),
        };
        let plan = decide(by.snapshot, by.index, &request, Probing::Hosted, by.now);
        let decisions = plan.settle(by.snapshot, &[]);
        let decision = decisions.first().ok_or(Reason::Internal)?;
        match (decision.outcome, decision.mirror) {
            (Outcome::Rewritten | Outcome::WouldRewrite, Some(mirror)) => Ok((mirror, decision.outcome)),
            _ => Err(decision.reason),
        }
    }
}

impl Ahead<'_> {
    /// Whether a namespace itself is labelled enforce.
    pub(super) fn enforces(&self, namespace: &str) -> bool {
        enforces(self.snapshot, namespace)
    }

    /// Whether Pods may be turned forward to a registry.
    fn lists(&self, registry: &str) -> bool {
        is_listed(self.registries, registry)
    }
}

/// Whether a namespace itself is labelled enforce.
pub(super) fn enforces(snapshot: &Snapshot, namespace: &str) -> bool {
    let labels = snapshot.namespaces.get(namespace);
    let mode = labels.and_then(|labels| labels.get(MODE_LABEL));
    mode.map(String::as_str) == Some(Mode::Enforce.as_label())
}

/// Whether a registry is one of those listed, or below one.
pub fn is_listed(registries: &[String], registry: &str) -> bool {
    let below = |listed: &String| {
        let rest = registry.strip_prefix(listed.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    registries.iter().any(below)
}

impl StuckPod {
    /// Returns how a container goes forward, as far as the policy allows, or why it stays.
    pub fn forward(
        &self,
        container: &StuckContainer,
        by: &Ahead<'_>,
    ) -> Result<(Turning, RescuePolicy), Stays> {
        if container.failure != Failure::Image {
            return Err(Stays::OtherFailure);
        }
        if container.is_refused_by_node {
            return Err(Stays::Signature);
        }
        let namespace = &*self.id.namespace;
        if !by.enforces(namespace) {
            return Err(Stays::NotEnforced);
        }
        let image = &*container.image;
        let is_recorded = container.recorded.as_deref() == Some(image);
        if container.has_record && !is_recorded {
            return Err(Stays::Recorded);
        }
        let turns = self.turns.as_ref().ok_or(Stays::TurnsUnreadable)?;
        if turns.contains_key(&turn_label(container.kind, &container.name, Way::Forward)) {
            return Err(Stays::TurnedBefore);
        }
        let newcomer = self.newcomer.as_ref().ok_or(Stays::Owners)?;
        let place = Place {
            kind: container.kind,
            index: container.index,
            name: Cow::Borrowed(&container.name),
            image: Cow::Borrowed(image),
            never: false,
        };
        let admitted = newcomer.admit(Operation::AddEphemeralContainers, place, namespace, self.mode, by);
        let (mirror, outcome) = admitted.map_err(Stays::Kept)?;
        let routing = &by.snapshot.routing;
        let settings = routing.mirror(mirror);
        let registry = &settings.mapping.registry;
        if !by.lists(&registry.to_string()) {
            return Err(Stays::NotListed);
        }
        let reference = Reference::parse(image).map_err(|_| Stays::Kept(Reason::InvalidReference))?;
        let key = reference.key();
        if let Some(back) = turns.get(&turn_label(container.kind, &container.name, Way::Back))
            && !is_before(back, by.index.verified_at(&settings.name, key.by_ref()))
        {
            return Err(Stays::NotSince((settings.name.as_str().into(), key)));
        }
        // As it is written, even where the mirror pins: a policy lets what it ends with pass, and nothing else.
        let to = settings.mapping.map(&reference, Form::Written);
        let to = to.map_err(|_| Stays::Kept(Reason::NameTooLong))?;
        let comes_back = Original::prove(routing, &to, image, || Some(&settings.name)).is_some();
        if !ends_as(&to, image) || !comes_back {
            return Err(Stays::NameDiffers);
        }
        // Nobody can tell later which of the mirrors in one registry it was, so the weakest policy holds.
        let named = mirrors_named_by(routing, &to).into_iter();
        let policies = named.map(|mirror| routing.mirror(mirror).rescue);
        let policy = policies.fold(settings.rescue, RescuePolicy::min);
        let policy = match outcome {
            Outcome::Rewritten => policy,
            _ => policy.min(RescuePolicy::Audit),
        };
        if policy == RescuePolicy::Off {
            return Err(Stays::PolicyOff);
        }
        let turning = Turning {
            way: Way::Forward,
            kind: container.kind,
            index: container.index,
            container: container.name.clone(),
            from: image.into(),
            to: to.into(),
            mirror: settings.name.as_str().into(),
        };
        Ok((turning, policy))
    }
}

/// Whether a container was turned before its image was last seen on a mirror; not where nobody of this process has.
fn is_before(back: &Turn, seen_at: Option<Timestamp>) -> bool {
    seen_at.is_some_and(|seen_at| back.compared_to(seen_at).is_lt())
}

/// Whether a message tells of a signature that the node does not accept.
pub(super) fn refuses_signature(reason: &str, message: &str) -> bool {
    reason == SIGNATURE || REASONS.contains(&reason) && super::message::names_signature(message)
}

/// Whether an image of a mirror ends with the repository path and the tag or digest of another image, as it is written
/// there. The chart's policy has the same rule, in the same words.
fn ends_as(mirrored: &str, image: &str) -> bool {
    let path = match image.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path,
        _ => image,
    };
    let before = mirrored.strip_suffix(path);
    before.is_some_and(|before| before.ends_with('/'))
}

#[cfg(test)]
mod tests;
