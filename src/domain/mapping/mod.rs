//! From an image to its place in a mirror's registry.
//!
//! No two images share a place: with `{registry}` in the template, two references have one mapped
//! identity exactly if they have one themselves ([`Reference::key`]). Without it, that holds
//! among the images of one host, and whoever accepts a template must see to it
//! ([`Template::keeps_registries_apart`]).
//!
//! The form that was written is kept, no tag stays no tag, and tag@digest stays both, unless the mirror
//! pins ([`Form`]). Whatever is written, every runtime takes it for a name: the strictest of them is the
//! measure (docs/runtimes.md).

mod registry;
mod template;

use std::fmt::Write as _;

pub use registry::{MirrorRegistry, ParseMirrorRegistryError};
pub use template::{ParseTemplateError, Template};

use super::{
    digest::Digest,
    image::{DEFAULT_TAG, Host, PATH_LIMIT, Reference},
};

/// Where a mirror keeps its images: a registry and the template of the repositories in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub registry: MirrorRegistry,
    pub template: Template,
}

/// The longest name, host and path, with which every runtime pulls: distribution/reference v0.6.0 (kubelet,
/// containerd) measures the path alone, container-libs all of it (CRI-O, podman, skopeo; image v5.42.1,
/// `reference.Parse`).
const NAME_LIMIT: usize = PATH_LIMIT;

/// In which form an image is written.
#[derive(Clone, Copy, Debug)]
pub enum Form<'a> {
    /// As it was.
    Written,
    /// With its tag, written out (`name:latest@digest`), and this digest, if it has none of its own.
    TagAndDigest(&'a Digest),
    /// Without its tag, with its own digest or this one.
    Digest(&'a Digest),
}

/// Why an image has no place in a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The name would be longer than every runtime and registry accepts.
    #[error("the name in the mirror would have {length} characters, more than {NAME_LIMIT}")]
    NameTooLong {
        /// The length in bytes of host and path.
        length: usize,
    },
}

impl Mapping {
    /// Returns the mirror's reference for an image.
    pub fn map(&self, image: &Reference<'_>, form: Form<'_>) -> Result<String, MapError> {
        let pin = match form {
            Form::Written => None,
            Form::TagAndDigest(digest) | Form::Digest(digest) => Some(digest),
        };
        let pin = pin.filter(|_| image.digest().is_none()).map(Digest::to_string);
        let pin = pin.as_deref();
        let tag = match form {
            Form::Digest(_) => None,
            Form::Written | Form::TagAndDigest(_) => image.tag().or_else(|| pin.map(|_| DEFAULT_TAG)),
        };
        let digest = image.digest().or(pin);
        let length = |part: Option<&str>| part.map_or(0, |part| part.len() + 1);

        let host = self.registry.host();
        let capacity = host.len() + 1 + self.capacity(image) + length(tag) + length(digest);
        let mut mapped = String::with_capacity(capacity);
        mapped.push_str(host);
        mapped.push('/');
        self.push_repository(&mut mapped, image)?;
        if let Some(tag) = tag {
            mapped.push(':');
            mapped.push_str(tag);
        }
        if let Some(digest) = digest {
            mapped.push('@');
            mapped.push_str(digest);
        }
        Ok(mapped)
    }

    /// Whether `current` is what becomes of `original` here, in whatever form and with whatever digest an image
    /// without one is pinned to.
    pub fn maps_to(&self, original: &Reference<'_>, current: &str) -> bool {
        let pinned: Option<Digest> = current
            .split_once('@')
            .and_then(|(_, digest)| digest.parse().ok());
        match &pinned {
            None => self.makes(original, &[Form::Written], current),
            Some(pin) => self.makes(original, &[Form::TagAndDigest(pin), Form::Digest(pin)], current),
        }
    }

    /// Whether `current` is what becomes of `original` in one of these forms.
    pub fn makes(&self, original: &Reference<'_>, forms: &[Form<'_>], current: &str) -> bool {
        let is_it = |form: &Form<'_>| self.map(original, *form).is_ok_and(|mapped| mapped == current);
        forms.iter().any(is_it)
    }

    /// Returns what the mirror's references for all images of a host begin with, as far as whole components go, with
    /// a slash at the end: `mirror.example.com/docker.io/`.
    pub fn beginning(&self, host: &str) -> String {
        let mut beginning = format!("{}/", self.registry);
        self.template.push_beginning(&mut beginning, host);
        beginning
    }

    /// Returns the repository of an image in the mirror's registry, its path without the host, as the
    /// registry's API is asked for it.
    pub fn repository_path(&self, image: &Reference<'_>) -> Result<String, MapError> {
        let mut path = String::with_capacity(self.capacity(image));
        self.push_repository(&mut path, image)?;
        Ok(path)
    }

    /// Returns what the paths of all images of a host begin and end with in the mirror's registry: what stands between
    /// is the image's own repository, with Docker Hub's `library/`.
    pub fn around(&self, host: &str) -> (String, String) {
        let (before, after) = self.template.around(host);
        let path = self.registry.path();
        let slash = if path.is_empty() { "" } else { "/" };
        (format!("{path}{slash}{before}"), after)
    }

    /// The room that a repository takes at most, unless its host is an IPv6 address.
    fn capacity(&self, image: &Reference<'_>) -> usize {
        let [library, path] = image.path_parts();
        self.registry.path().len()
            + 1
            + self.template.literal_length()
            + image.host().len()
            + library.len()
            + path.len()
    }

    fn push_repository(&self, out: &mut String, image: &Reference<'_>) -> Result<(), MapError> {
        let start = out.len();
        if !self.registry.path().is_empty() {
            out.push_str(self.registry.path());
            out.push('/');
        }
        self.template.push(out, image);
        let length = self.registry.host().len() + 1 + out.len() - start;
        if length > NAME_LIMIT {
            return Err(MapError::NameTooLong { length });
        }
        Ok(())
    }
}

/// Appends a host as one component of a path: in lower case, `:port` as `_port`, and an IPv6 address
/// as `ipv6_` and its 32 hex digits.
///
/// A host has no `_`, and a port never 32 digits, so no two hosts meet.
fn push_registry(out: &mut String, host: &str) {
    let port = match Host::split(host) {
        Some(Host::Ipv6(address, port)) => {
            let written = write!(out, "ipv6_{:032x}", address.to_bits());
            debug_assert!(written.is_ok(), "writing to a String cannot fail");
            port
        }
        Some(Host::Name(name, port)) => {
            let start = out.len();
            out.push_str(name);
            if let Some(name) = out.get_mut(start..) {
                name.make_ascii_lowercase();
            }
            port
        }
        None => None,
    };
    if let Some(port) = port {
        out.push('_');
        out.push_str(port);
    }
}

#[cfg(test)]
mod tests;
