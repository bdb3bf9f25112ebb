//! A Pod as far as Kagami looks at it: every place that names an image, and what decides about it.
//!
//! All text is borrowed from the request's bytes where it needs no unescaping. An image-bearing
//! field that Kubernetes adds one day is simply not here, so it stays as it is.

use std::{borrow::Cow, fmt, sync::Arc};

use super::{
    mirror::Mode,
    names::{ORIGINAL_IMAGE_PREFIX, ORIGINAL_VOLUME_PREFIX},
    platform::Landing,
};

/// The Pods that run, as a field selector of the API server: they pull images, or may. One that is done
/// stays in the API for as long as its owner likes, and says nothing of what is in use.
pub const RUNNING: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// How large all annotations of a Pod may become; the API server's own limit is 256 KiB.
pub const ANNOTATIONS_LIMIT: usize = 200 * 1024;

/// The parts of a Pod.
#[derive(Clone, Debug, Default)]
pub struct Pod<'a> {
    /// `metadata.name`, or `generateName` where the name is not made yet; for people only.
    pub name: Cow<'a, str>,
    /// The Pod's own `kagami.dev/mode` label.
    pub mode_label: Option<Cow<'a, str>>,
    /// Absent where the Pod has no `metadata.annotations` at all.
    pub annotations: Option<Annotations<'a>>,
    pub owners: Vec<Owner<'a>>,
    pub places: Vec<Place<'a>>,
    /// Absent where the Pod has no `spec.imagePullSecrets` at all.
    pub pull_secrets: Option<Vec<Cow<'a, str>>>,
    /// What other Pods of its namespace record as the original of each place's image, if one does ([`super::lent`]);
    /// shorter where nobody lends anything.
    pub lent: Box<[Option<Arc<str>>]>,
    /// Where node selector, affinity and `spec.os` let it land.
    pub landing: Landing,
    /// Size of the Pod's JSON in bytes.
    pub size: usize,
}

/// The annotations of a Pod: only those that Kagami reads, and the size of all.
#[derive(Clone, Debug, Default)]
pub struct Annotations<'a> {
    /// Bytes of all keys and values, as the API server counts them.
    pub size: usize,
    /// Sorted by key.
    ours: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Whether a kubelet made this object to show a static Pod (`kubernetes.io/config.mirror`).
    pub static_pod: bool,
}

impl<'a> Annotations<'a> {
    /// Returns annotations of `size` bytes, `ours` among them: those under `kagami.dev`,
    /// `original-image.kagami.dev` and `original-volume.kagami.dev`. None if one of ours is there twice.
    pub fn new(size: usize, mut ours: Vec<(Cow<'a, str>, Cow<'a, str>)>) -> Option<Self> {
        ours.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let twice = ours.array_windows().any(|[(one, _), (other, _)]| one == other);
        (!twice).then_some(Self {
            size,
            ours,
            static_pod: false,
        })
    }

    /// Returns Kagami's annotations: key and value.
    pub fn ours(&self) -> &[(Cow<'a, str>, Cow<'a, str>)] {
        &self.ours
    }

    /// Returns the value of one of Kagami's annotations, whose key is given in two parts.
    fn value(&self, prefix: &str, name: &str) -> Option<&str> {
        let order = |(key, _): &(Cow<'_, str>, Cow<'_, str>)| {
            let (start, rest) = key.as_bytes().split_at(key.len().min(prefix.len()));
            start
                .cmp(prefix.as_bytes())
                .then_with(|| rest.cmp(name.as_bytes()))
        };
        let position = self.ours.binary_search_by(order).ok()?;
        Some(&self.ours[position].1)
    }
}

/// One owner reference.
#[derive(Clone, Debug, Default)]
pub struct Owner<'a> {
    pub api_version: Cow<'a, str>,
    pub kind: Cow<'a, str>,
    pub uid: Cow<'a, str>,
}

/// A place in a Pod that names an image.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    pub kind: PlaceKind,
    /// Position in its list.
    pub index: usize,
    /// The container's or volume's name.
    pub name: Cow<'a, str>,
    /// The image as the user wrote it.
    pub image: Cow<'a, str>,
    /// The pull policy is Never.
    pub never: bool,
}

/// The lists of a Pod whose entries name images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PlaceKind {
    InitContainer,
    Container,
    EphemeralContainer,
    Volume,
}

impl PlaceKind {
    /// Returns the list's name in `spec`.
    pub const fn list(self) -> &'static str {
        match self {
            Self::InitContainer => "initContainers",
            Self::Container => "containers",
            Self::EphemeralContainer => "ephemeralContainers",
            Self::Volume => "volumes",
        }
    }

    /// Returns the path of the image within an entry of the list.
    pub const fn image_path(self) -> &'static str {
        match self {
            Self::Volume => "image/reference",
            _ => "image",
        }
    }

    /// Returns the prefix of the annotation that holds the original reference.
    pub const fn original_prefix(self) -> &'static str {
        match self {
            Self::Volume => ORIGINAL_VOLUME_PREFIX,
            _ => ORIGINAL_IMAGE_PREFIX,
        }
    }
}

impl Place<'_> {
    /// Returns the place's name in decisions and audit annotations, such as `containers.app`.
    pub fn label(&self) -> PlaceLabel<'_> {
        PlaceLabel::new(self.kind, &self.name)
    }

    /// Whether no image stands there yet.
    pub fn is_placeholder(&self) -> bool {
        self.label().holds_placeholder(&self.image)
    }
}

/// A place's name, as [`Place::label`] gives it.
#[derive(Clone, Copy, Debug)]
pub struct PlaceLabel<'a>(PlaceKind, &'a str);

impl<'a> PlaceLabel<'a> {
    /// Returns the label of an entry of that name in that list.
    pub const fn new(kind: PlaceKind, name: &'a str) -> Self {
        Self(kind, name)
    }

    /// Whether an image there is none yet: Istio's injector puts its own in place of this one. Else it would
    /// be taken for an image of Docker Hub.
    pub fn holds_placeholder(self, image: &str) -> bool {
        self.1 == "istio-proxy" && image == "auto"
    }

    /// Returns what stands one after the other in the label: the list and a dot, which need no escapes
    /// anywhere, and the name.
    pub const fn parts(self) -> [&'a str; 3] {
        [self.0.list(), ".", self.1]
    }

    /// Returns the name of the annotation that holds the place's original.
    pub fn original_annotation(self) -> String {
        [self.0.original_prefix(), self.1].concat()
    }
}

impl fmt::Display for PlaceLabel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts().into_iter().try_for_each(|part| f.write_str(part))
    }
}

impl Pod<'_> {
    /// Returns the mode that the Pod's own label leaves: the label only ever weakens, and a value
    /// that nobody knows means off.
    pub fn weaken(&self, mode: Mode) -> Mode {
        match &self.mode_label {
            None => mode,
            Some(value) => mode.min(Mode::from_label(value).unwrap_or(Mode::Off)),
        }
    }

    /// Returns the value of one of Kagami's annotations.
    pub fn annotation(&self, prefix: &str, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.value(prefix, name)
    }

    /// Returns the reference that a user is said to have written at a place.
    pub fn original(&self, place: &Place<'_>) -> Option<&str> {
        self.annotation(place.kind.original_prefix(), &place.name)
    }

    /// Whether the Pod lists a pull secret of this name.
    pub fn lists_pull_secret(&self, name: &str) -> bool {
        self.pull_secrets
            .as_ref()
            .is_some_and(|secrets| secrets.iter().any(|secret| secret == name))
    }
}
