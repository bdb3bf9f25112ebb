//! Which mirrors share a registry, and so what one puts there and another could give away.
//!
//! What lies at one place of a registry may have come by any mirror that puts images there: a mirror finds it there
//! whoever copied it with whichever login. So it is given only to whom every such mirror lets have it. Places are
//! compared, and not the names of images: with templates without `{registry}` several images have one place.
//!
//! Two registries that are one under two names cannot be told from two.

use std::{cmp::Reverse, collections::HashMap};

use foldhash::quality::RandomState;
use smallvec::SmallVec;

use super::{Candidate, MirrorId, glob_matches, normalised, prefixes};
use crate::domain::{
    image::Reference,
    mapping::{Mapping, MirrorRegistry},
    mirror::{self, Mirror, Source},
};

/// Who may get what lies at one place of a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Each of these mirrors must serve the namespace.
    pub private: SmallVec<[MirrorId; 2]>,
    /// This one keeps it from everybody.
    pub closed: Option<ClosedId>,
    /// Whether upstream must give the image to everybody.
    pub asks_upstream: bool,
}

/// A mirror of which no good form is known: what it may have put in its registry for namespaces of its own is for nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    pub name: String,
    pub mapping: Mapping,
    /// The prefixes of the sources that may not be for everybody; everything in its registry where nobody knows them.
    pub prefixes: Option<Vec<String>>,
}

/// The position of a [`Closed`] in the routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedId(pub(super) usize);

/// Where the images of mirrors lie that share their registry with others and hold what is not for everybody.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// By the whole components that all places of a source begin with.
    nodes: HashMap<Box<str>, Vec<Holding>, RandomState>,
    /// The same of what is for nobody.
    closed: HashMap<Box<str>, Vec<(ClosedId, Place)>, RandomState>,
    /// The hosts of the mirrors' registries, in the routing's order; none where nothing of another mirror that is not for
    /// everybody may lie among a mirror's images.
    shared: Vec<Option<Box<str>>>,
}

/// The images of one source, as they lie in the mirror's registry.
#[derive(Debug)]
struct Holding {
    mirror: MirrorId,
    source: usize,
    place: Place,
}

/// Where all images of a source lie.
#[derive(Debug)]
struct Place {
    /// What their places begin and end with.
    start: Box<str>,
    end: Box<str>,
    /// Whether the start is the place of an image, or of what has images below it.
    is_whole: bool,
}

impl Place {
    /// Returns where images below a prefix lie, on a registry's host.
    fn of(mapping: &Mapping, registry: &str, prefix: &str) -> Self {
        let (host, path) = prefix.split_once('/').unwrap_or((prefix, ""));
        let (before, end) = mapping.around(host);
        Self {
            start: format!("{registry}/{before}{path}").into(),
            end: end.into(),
            is_whole: !path.is_empty(),
        }
    }

    /// Returns where everything of a registry on this host lies.
    fn everything(registry: &MirrorRegistry, host: &str) -> Self {
        let path = registry.path();
        let slash = if path.is_empty() { "" } else { "/" };
        Self {
            start: format!("{host}/{path}{slash}").into(),
            end: "".into(),
            is_whole: false,
        }
    }

    /// Returns the whole components of the start. Its last one is whole only where no place goes on within it, as with a
    /// template that puts letters right after the repository.
    fn components(&self) -> &str {
        let is_whole = self.is_whole && (self.end.is_empty() || self.end.starts_with('/'));
        match self.start.rfind('/') {
            Some(end) if !is_whole => &self.start[..end],
            _ => &self.start,
        }
    }

    /// Returns what stands at a place after the source's prefix, if it is a place of this source.
    fn rest<'p>(&self, place: &'p str) -> Option<&'p str> {
        let rest = place.strip_prefix(&*self.start)?.strip_suffix(&*self.end)?;
        let fits = if self.is_whole {
            rest.is_empty() || rest.starts_with('/')
        } else {
            !rest.is_empty()
        };
        fits.then_some(rest)
    }
}

impl Holdings {
    /// Compiles them.
    pub(super) fn of(mirrors: &[Mirror], closed: &[Closed]) -> Self {
        let mut by_host: HashMap<String, Vec<MirrorId>, RandomState> = HashMap::default();
        for (id, mirror) in (0..).map(MirrorId).zip(mirrors) {
            let host = host_of(&mirror.mapping.registry);
            by_host.entry(host).or_default().push(id);
        }
        let mut holdings = Self {
            shared: vec![None; mirrors.len()],
            ..Self::default()
        };
        for (host, ids) in &by_host {
            let restricted = |id: &&MirrorId| {
                let mirror = &mirrors[id.index()];
                let mut sources = mirror.sources.iter();
                sources.any(|source| source.access == mirror::Access::Private || lets_in(mirror, source))
            };
            let restricted: Vec<MirrorId> = ids.iter().filter(restricted).copied().collect();
            for id in ids {
                let is_shared = restricted.iter().any(|other| other != id);
                holdings.shared[id.index()] = is_shared.then(|| host.as_str().into());
            }
            if ids.len() < 2 {
                continue;
            }
            for id in restricted {
                let settings = &mirrors[id.index()];
                for (index, source) in settings.sources.iter().enumerate() {
                    let place = Place::of(&settings.mapping, host, &source.prefix);
                    let node = holdings.nodes.entry(place.components().into()).or_default();
                    node.push(Holding {
                        mirror: id,
                        source: index,
                        place,
                    });
                }
            }
        }
        for (id, closed) in closed.iter().enumerate() {
            let host = host_of(&closed.mapping.registry);
            for mirror in by_host.get(&host).into_iter().flatten() {
                holdings.shared[mirror.index()] = Some(host.as_str().into());
            }
            let places: Vec<Place> = match &closed.prefixes {
                None => vec![Place::everything(&closed.mapping.registry, &host)],
                Some(prefixes) => {
                    let prefixes = prefixes.iter();
                    prefixes
                        .map(|prefix| Place::of(&closed.mapping, &host, prefix))
                        .collect()
                }
            };
            for place in places {
                let node = holdings.closed.entry(place.components().into()).or_default();
                node.push((ClosedId(id), place));
            }
        }
        holdings
    }

    /// Returns who may get what lies at an image's place in a mirror.
    pub(super) fn access(&self, mirrors: &[Mirror], candidate: &Candidate, image: &Reference<'_>) -> Access {
        let settings = &mirrors[candidate.mirror.index()];
        let own = &settings.sources[candidate.source];
        let mut access = Access {
            private: SmallVec::new(),
            closed: None,
            asks_upstream: asks(own),
        };
        let Some(Some(host)) = self.shared.get(candidate.mirror.index()) else {
            return access;
        };
        let Ok(repository) = settings.mapping.repository_path(image) else {
            // It has no place there.
            return access;
        };
        let place = format!("{host}/{repository}");
        let mut found: SmallVec<[(&Holding, &str); 4]> = prefixes(&place)
            .filter_map(|prefix| self.nodes.get(prefix))
            .flatten()
            .filter_map(|holding| Some((holding, holding.place.rest(&place)?)))
            .collect();
        if !self.closed.is_empty() {
            let mut closed = prefixes(&place)
                .filter_map(|prefix| self.closed.get(prefix))
                .flatten();
            let closed = closed.find(|(_, closed)| closed.rest(&place).is_some());
            access.closed = closed.map(|(id, _)| *id);
        }
        // Of each mirror its longest source.
        found.sort_unstable_by_key(|(holding, _)| (holding.mirror, Reverse(holding.place.start.len())));
        found.dedup_by_key(|(holding, _)| holding.mirror);
        for (holding, rest) in found {
            let mirror = &mirrors[holding.mirror.index()];
            let source = &mirror.sources[holding.source];
            if excludes(source, rest) {
                continue;
            }
            match source.access {
                // Nobody can tell with whose login a copy came: each of them must let it go. Also that with a shorter
                // prefix, which may have brought it before the other one was there, or pulls it through by itself.
                mirror::Access::Private => access.private.push(holding.mirror),
                mirror::Access::Public => {
                    access.asks_upstream |= own.access == mirror::Access::Public && lets_in(mirror, source);
                }
            }
        }
        access
    }
}

/// Whether upstream says who gets a source's images.
const fn asks(source: &Source) -> bool {
    matches!(source.access, mirror::Access::Public) && source.with_credentials
}

/// Whether images may lie in a mirror that its login for a source reads, and that upstream does not give to everybody: one
/// that pulls through takes in whatever the login reads. Into others only what everybody gets is copied.
fn lets_in(mirror: &Mirror, source: &Source) -> bool {
    mirror.kind == mirror::Kind::PullThrough && asks(source)
}

/// Whether a source leaves an image alone, known by what its name has after the source's prefix.
fn excludes(source: &Source, rest: &str) -> bool {
    if source.exclude.is_empty() {
        return false;
    }
    let slash = if rest.is_empty() || rest.starts_with('/') {
        ""
    } else {
        "/"
    };
    let name = format!("{}{slash}{rest}", source.prefix);
    source.exclude.iter().any(|glob| glob_matches(glob, &name))
}

/// Returns, for each mirror, those that it is not separated from: their registries overlap, they serve by different
/// selectors, and one of the two has images that are not for everybody, or a login that Pods get.
pub(super) fn not_separated(mirrors: &[Mirror]) -> Vec<Vec<MirrorId>> {
    let mut by_registry: HashMap<String, Vec<MirrorId>, RandomState> = HashMap::default();
    let all = || (0..).map(MirrorId).zip(mirrors);
    for (id, mirror) in all() {
        let registry = registry_of(&mirror.mapping.registry);
        by_registry.entry(registry).or_default().push(id);
    }
    let mut found = vec![Vec::new(); mirrors.len()];
    for (id, mirror) in all() {
        let registry = registry_of(&mirror.mapping.registry);
        let around = prefixes(&registry)
            .filter_map(|prefix| by_registry.get(prefix))
            .flatten();
        for other in around.copied().filter(|other| *other != id) {
            let it = &mirrors[other.index()];
            if it.namespaces != mirror.namespaces && (keeps_something(it) || keeps_something(mirror)) {
                // The longer registry sees the shorter one; where both are the same, each sees the other.
                for (one, two) in [(id, other), (other, id)] {
                    found[one.index()].push(two);
                }
            }
        }
    }
    for others in &mut found {
        others.sort_unstable();
        others.dedup();
    }
    found
}

/// Whether a mirror has images that are not for everybody, or a login that Pods get.
pub(super) fn keeps_something(mirror: &Mirror) -> bool {
    let mut sources = mirror.sources.iter();
    mirror.pull_secret || sources.any(|source| source.access == mirror::Access::Private)
}

/// Returns a registry's host as other mirrors' are compared with it.
fn host_of(registry: &MirrorRegistry) -> String {
    let whole = registry_of(registry);
    let host = whole.split('/').next().unwrap_or_default();
    host.to_owned()
}

/// Returns a registry without the port that it has anyway.
fn registry_of(registry: &MirrorRegistry) -> String {
    let whole = normalised(registry);
    let (host, path) = whole.split_once('/').unwrap_or((&whole, ""));
    let host = host.strip_suffix(":443").unwrap_or(host);
    let slash = if path.is_empty() { "" } else { "/" };
    format!("{host}{slash}{path}")
}

#[cfg(test)]
mod tests;
