//! From an image to its place in a mirror's registry.
//!
//! No two images share a place: with `{registry}` in the template, two references have one mapped
//! identity exactly if they have one themselves ([`Reference::write_key`]). Without it, that holds
//! among the images of one host, and whoever accepts a template must see to it
//! ([`Template::keeps_registries_apart`]).
//!
//! The form that was written is kept: no tag stays no tag, and tag@digest stays both.

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

/// Why an image has no place in a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The path would be longer than runtimes and registries accept.
    #[error("the repository in the mirror would have {length} characters, more than {PATH_LIMIT}")]
    NameTooLong {
        /// The path's length in bytes.
        length: usize,
    },
}

impl Mapping {
    /// Returns the mirror's reference for an image.
    ///
    /// With `pin`, the digest is added to an image that has none, whose tag then is written out
    /// (`name:latest@digest`); an image with a digest of its own is not changed by it.
    pub fn map(&self, image: &Reference<'_>, pin: Option<&Digest>) -> Result<String, MapError> {
        let pin = pin.filter(|_| image.digest().is_none()).map(Digest::to_string);
        let pin = pin.as_deref();
        let tag = image.tag().or_else(|| pin.map(|_| DEFAULT_TAG));
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

    /// Returns the repository of an image in the mirror's registry, its path without the host, as the
    /// registry's API is asked for it.
    pub fn repository_path(&self, image: &Reference<'_>) -> Result<String, MapError> {
        let mut path = String::with_capacity(self.capacity(image));
        self.push_repository(&mut path, image)?;
        Ok(path)
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
        let length = out.len() - start;
        if length > PATH_LIMIT {
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
