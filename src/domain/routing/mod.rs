//! Which mirrors may serve which image: compiled once, looked up without scanning.
//!
//! One hash map holds every source prefix and every mirror registry. An image is looked up by its
//! own prefixes on component boundaries, longest first, so the cost depends on the depth of its
//! name and not on the number of mirrors.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use foldhash::quality::RandomState;
use memchr::memrchr;
use smallvec::SmallVec;

use access::Holdings;

use super::{
    digest::Digest,
    image::Reference,
    mapping::{Form, MapError, MirrorRegistry},
    mirror::{Mirror, Mode, Pin},
    source::normalise_host,
};

mod access;

pub use access::{Access, Closed, ClosedId};

/// How many mirrors are named that stand in one's way.
const OVERLAPS: usize = 3;

/// The position of a mirror in [`Routing`]; valid for that very routing only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MirrorId(u32);

/// All mirrors, compiled for look-up.
#[derive(Debug, Default)]
pub struct Routing {
    mirrors: Vec<Mirror>,
    nodes: HashMap<Box<str>, Node, RandomState>,
    holdings: Holdings,
    closed: Vec<Closed>,
    /// The mirrors from which each is not separated, in the routing's order.
    not_separated: Vec<Vec<MirrorId>>,
}

#[derive(Debug, Default)]
struct Node {
    /// Mirrors whose registry this is.
    registries: Vec<MirrorId>,
    /// Sources that have this prefix.
    sources: Vec<(MirrorId, usize)>,
}

/// Who keeps from a namespace what lies at a place of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// A mirror with a private source for it, which does not serve the namespace.
    Mirror(MirrorId),
    /// One of which no good form is known.
    Closed(ClosedId),
}

/// A mirror that has a source for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub mirror: MirrorId,
    /// Position in the mirror's `sources`.
    pub source: usize,
    /// Length of the source's prefix.
    prefix: usize,
}

/// The mirrors for one image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// In the order in which they are asked.
    pub ordered: SmallVec<[Candidate; 2]>,
    /// Whether some mirror has a source for the image but excludes it.
    pub excluded: bool,
    /// Whether the image already names a mirror.
    pub names_mirror: bool,
}

impl Mirror {
    /// Returns the mirror's reference for an image, in the form in which the image was written; a
    /// tag gets the digest that was proven, or gives way to it, where the mirror pins.
    pub fn map(&self, reference: &Reference<'_>, proven: &Digest) -> Result<String, MapError> {
        self.mapping.map(reference, self.tags.pin.form(proven))
    }

    /// Returns the hosts of the registries that it mirrors, some more than once.
    pub fn upstreams(&self) -> impl Iterator<Item = &str> {
        let prefixes = self.sources.iter().map(|source| source.prefix.as_str());
        prefixes.map(|prefix| prefix.split('/').next().unwrap_or_default())
    }

    /// Whether `current` is what this mirror makes of `original`, as its mapping tells. One that does not keep registries
    /// apart tells nothing of other hosts than its source's: any image of that path would become the same.
    pub fn maps_to(&self, original: &Reference<'_>, current: &str) -> bool {
        let is_of_its_host = || self.upstreams().any(|host| host == original.host());
        (self.mapping.template.keeps_registries_apart() || is_of_its_host())
            && self.mapping.maps_to(original, current)
    }

    /// Whether `current` is what this mirror makes of `original` when it pins it to `digest`, now or not,
    /// and may stay. A tag beside it may not where runtimes refuse that.
    pub fn pins(&self, original: &Reference<'_>, digest: &Digest, current: &str) -> bool {
        let forms = [Form::Digest(digest), Form::TagAndDigest(digest)];
        match self.tags.pin {
            Pin::DigestOnly => self.mapping.makes(original, &forms[..1], current),
            Pin::None | Pin::Digest => self.mapping.makes(original, &forms, current),
        }
    }
}

impl Routing {
    /// Compiles mirrors, all of which are known in a good form.
    pub fn compile(mirrors: Vec<Mirror>) -> Self {
        Self::compile_with(mirrors, &[])
    }

    /// Compiles mirrors, beside others of which no good form is known.
    pub fn compile_with(mirrors: Vec<Mirror>, closed: &[Closed]) -> Self {
        let mut nodes: HashMap<Box<str>, Node, RandomState> = HashMap::default();
        for (id, mirror) in (0..).map(MirrorId).zip(&mirrors) {
            let registry = normalised(&mirror.mapping.registry);
            nodes.entry(registry.into()).or_default().registries.push(id);
            for (index, source) in mirror.sources.iter().enumerate() {
                nodes
                    .entry(source.prefix.as_str().into())
                    .or_default()
                    .sources
                    .push((id, index));
            }
        }
        let holdings = Holdings::of(&mirrors, closed);
        let not_separated = access::not_separated(&mirrors);
        Self {
            mirrors,
            nodes,
            holdings,
            closed: closed.to_vec(),
            not_separated,
        }
    }

    /// Returns the name of the mirror that keeps something from a namespace.
    pub fn keeper(&self, keeper: Keeper) -> &str {
        match keeper {
            Keeper::Mirror(mirror) => &self.mirror(mirror).name,
            Keeper::Closed(ClosedId(position)) => self.closed.get(position).map_or("", |closed| &closed.name),
        }
    }

    /// Returns a mirror.
    pub fn mirror(&self, id: MirrorId) -> &Mirror {
        &self.mirrors[id.index()]
    }

    /// Returns every mirror with its position.
    pub fn mirrors(&self) -> impl Iterator<Item = (MirrorId, &Mirror)> {
        (0..).map(MirrorId).zip(&self.mirrors)
    }

    /// Returns the position of the mirror of that name. Goes through them all: there are few.
    pub fn find(&self, name: &str) -> Option<MirrorId> {
        self.mirrors()
            .find(|(_, mirror)| mirror.name == name)
            .map(|(id, _)| id)
    }

    /// Returns the names of the mirrors that do not keep their images from namespaces that they do not serve, as another
    /// mirror of an overlapping registry serves those: a login for the one reads what lies in the other. None is given
    /// to Pods for such a mirror. Another one that is Off and keeps nothing from anybody takes no login away: people
    /// prepare a mirror so, and Pods that pull with a login do so again and again.
    pub fn not_separated(&self) -> impl Iterator<Item = &str> {
        let hinders = |other: &MirrorId| {
            let other = self.mirror(*other);
            other.mode != Mode::Off || access::keeps_something(other)
        };
        let all = self.mirrors.iter().zip(&self.not_separated);
        all.filter(move |(_, others)| others.iter().any(hinders))
            .map(|(mirror, _)| mirror.name.as_str())
    }

    /// Returns the names of the mirrors from which this one is not separated.
    pub fn not_separated_from(&self, id: MirrorId) -> impl Iterator<Item = &str> {
        let others = self.not_separated.get(id.index()).into_iter().flatten();
        others.map(|other| self.mirror(*other).name.as_str())
    }

    /// Returns who may get what lies at an image's place in a mirror. Nothing is computed where no other mirror could
    /// have put something there.
    pub fn access(&self, candidate: &Candidate, image: &Reference<'_>) -> Access {
        self.holdings.access(&self.mirrors, candidate, image)
    }

    /// Returns the mirrors by name.
    pub fn by_name(&self) -> BTreeMap<&str, MirrorId> {
        self.mirrors()
            .map(|(id, mirror)| (mirror.name.as_str(), id))
            .collect()
    }

    /// Returns the number of mirrors.
    pub fn len(&self) -> usize {
        self.mirrors.len()
    }

    /// Whether there is no mirror.
    pub fn is_empty(&self) -> bool {
        self.mirrors.is_empty()
    }

    /// Returns the mirrors that an image already names. `name` is the image's normalised name with
    /// its host in lower case, without tag and digest.
    pub fn mirrors_named_by(&self, name: &str) -> impl Iterator<Item = MirrorId> {
        prefixes(name)
            .filter_map(|prefix| self.nodes.get(prefix))
            .flat_map(|node| &node.registries)
            .copied()
    }

    /// Returns the mirrors that have an image, in the order in which they are asked: priority, then
    /// length of the prefix, then name. `name` as for [`Self::mirrors_named_by`].
    pub fn candidates(&self, name: &str) -> Candidates {
        let mut candidates = Candidates::default();
        let mut excluding: SmallVec<[MirrorId; 4]> = SmallVec::new();
        for prefix in prefixes(name) {
            let Some(node) = self.nodes.get(prefix) else {
                continue;
            };
            candidates.names_mirror |= !node.registries.is_empty();
            for (mirror, source) in node.sources.iter().copied() {
                let longer_seen = excluding.contains(&mirror)
                    || candidates.ordered.iter().any(|seen| seen.mirror == mirror);
                if longer_seen {
                    continue;
                }
                let exclude = &self.mirror(mirror).sources[source].exclude;
                if exclude.iter().any(|glob| glob_matches(glob, name)) {
                    excluding.push(mirror);
                } else {
                    candidates.ordered.push(Candidate {
                        mirror,
                        source,
                        prefix: prefix.len(),
                    });
                }
            }
        }
        candidates.excluded = !excluding.is_empty();
        candidates.ordered.sort_unstable_by(|a, b| {
            let (left, right) = (self.mirror(a.mirror), self.mirror(b.mirror));
            let by_priority = right.priority.cmp(&left.priority);
            by_priority
                .then(b.prefix.cmp(&a.prefix))
                .then_with(|| left.name.cmp(&right.name))
        });
        candidates
    }
}

/// What keeps a mirror, or a part of it, from ever being used as it stands: another mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// Both put the same images at the same place.
    SamePlace { other: String },
    /// The images of a source lie in the other mirror, where they stay as they are.
    SourceIsMirror { prefix: String, other: String },
}

impl Overlap {
    /// Returns its name as users see it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::SamePlace { .. } => "SameRegistry",
            Self::SourceIsMirror { .. } => "SourceIsMirror",
        }
    }
}

impl fmt::Display for Overlap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SamePlace { other } => write!(
                formatter,
                "ImageMirror {other} has the same registry, so where both have a source for an image, asking the \
                 second one never helps"
            ),
            Self::SourceIsMirror { prefix, other } => write!(
                formatter,
                "images below {prefix} lie in the registry of ImageMirror {other}, and so stay as they are"
            ),
        }
    }
}

impl Routing {
    /// Returns what other mirrors keep this one from; of each kind and source the first few.
    pub fn overlaps(&self, id: MirrorId) -> Vec<Overlap> {
        let mirror = self.mirror(id);
        let place = normalised(&mirror.mapping.registry);
        let others = |node: Option<&Node>| {
            let registries: &[MirrorId] = node.map_or(&[], |node| &node.registries);
            let others: SmallVec<[MirrorId; OVERLAPS]> = registries
                .iter()
                .copied()
                .filter(|other| *other != id)
                .take(OVERLAPS)
                .collect();
            others
        };
        let name = |other: MirrorId| self.mirror(other).name.clone();
        let mut overlaps = Vec::new();
        for other in others(self.nodes.get(place.as_str())) {
            if self.mirror(other).mapping.template == mirror.mapping.template {
                overlaps.push(Overlap::SamePlace { other: name(other) });
            }
        }
        for source in &mirror.sources {
            for other in prefixes(&source.prefix).flat_map(|prefix| others(self.nodes.get(prefix))) {
                let (prefix, other) = (source.prefix.clone(), name(other));
                overlaps.push(Overlap::SourceIsMirror { prefix, other });
            }
        }
        overlaps
    }
}

/// What is compiled follows from the mirrors, and from what is closed.
impl PartialEq for Routing {
    fn eq(&self, other: &Self) -> bool {
        self.mirrors == other.mirrors && self.closed == other.closed
    }
}

impl MirrorId {
    /// Returns the position as an index into lists kept beside the routing.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Returns a mirror's registry as normalised names begin.
fn normalised(registry: &MirrorRegistry) -> String {
    // A mirror's host was checked by the rules of references, so there is always a normal form.
    let mut prefix = normalise_host(registry.host()).unwrap_or_default();
    if !registry.path().is_empty() {
        prefix.push('/');
        prefix.push_str(registry.path());
    }
    prefix
}

/// Returns the prefixes of a name on component boundaries, longest first.
fn prefixes(name: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(name);
    std::iter::from_fn(move || {
        let prefix = rest?;
        rest = memrchr(b'/', prefix.as_bytes()).map(|end| &prefix[..end]);
        Some(prefix)
    })
}

/// Whether a glob matches a whole name: `*` stays within a component, `**` crosses.
pub fn glob_matches(glob: &str, name: &str) -> bool {
    // Iterative, with one point to come back to for each kind of star: time is
    // polynomial, whatever the glob.
    fn matches(glob: &[u8], name: &[u8]) -> bool {
        let (mut g, mut n) = (0, 0);
        let mut single: Option<(usize, usize)> = None;
        let mut double: Option<(usize, usize)> = None;
        loop {
            if glob[g..].starts_with(b"**") {
                double = Some((g + 2, n));
                single = None;
                g += 2;
                continue;
            }
            match (glob.get(g), name.get(n)) {
                (Some(b'*'), _) => {
                    single = Some((g + 1, n));
                    g += 1;
                    continue;
                }
                (Some(wanted), Some(byte)) if wanted == byte => {
                    (g, n) = (g + 1, n + 1);
                    continue;
                }
                (None, None) => return true,
                _ => {}
            }
            if let Some((after, from)) = single
                && from < name.len()
                && name[from] != b'/'
            {
                single = Some((after, from + 1));
                (g, n) = (after, from + 1);
            } else if let Some((after, from)) = double
                && from < name.len()
            {
                double = Some((after, from + 1));
                single = None;
                (g, n) = (after, from + 1);
            } else {
                return false;
            }
        }
    }
    matches(glob.as_bytes(), name.as_bytes())
}

#[cfg(test)]
mod tests;
