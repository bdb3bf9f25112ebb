//! The key of an image: its identity, under which its presence is kept.
//!
//! A key is `host/path:tag`, with `latest` where nothing is written, or `host/path@digest`. The host is in
//! lower case, Docker Hub under one name, and an IPv6 address in its one form of RFC 5952. Two references
//! have one key exactly if they name one image. A key is made of a [`Reference`] or is a text that proves to
//! be its own, so that nothing else passes for one: no name of a mirror, and no image as a user wrote it.

use std::{borrow::Borrow, fmt, net::Ipv6Addr, ops::Range, str::FromStr, sync::Arc};

use memchr::{memchr, memrchr};

use super::{Class, DOCKER_HUB, Host, ParseReferenceError, Reference, complete, names_host, split_once};

/// A key that is held. Its text is held once: clones share it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageKey(Arc<str>);

/// A key that is borrowed: from one that is held, or from the room in which it was written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRef<'a>(&'a str);

/// A key that is held in as little memory as can be, for who has many and shares none.
#[derive(PartialEq, Eq, Hash)]
pub(in crate::domain) struct BoxedKey(Box<str>);

/// Keys that were written one after the other into one room, for who looks many of them up at once.
#[derive(Debug, Default)]
pub struct Keys(String);

/// Which of them it is.
#[derive(Clone, Debug)]
pub struct KeySpan(Range<usize>);

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// It names no image at all.
    #[error("the key is no image reference")]
    NoReference(#[from] ParseReferenceError),
    /// It names an image in another form than the one that all share.
    #[error("the key is not in its normal form")]
    NotNormal,
}

impl<'a> KeyRef<'a> {
    /// Takes a text for a key if it is one: what somebody else wrote may be anything.
    pub fn parse(text: &'a str) -> Result<Self, ParseKeyError> {
        let mut normal = String::new();
        if Reference::parse(text)?.write_key(&mut normal).0 == text {
            Ok(Self(text))
        } else {
            Err(ParseKeyError::NotNormal)
        }
    }

    /// Returns the whole text.
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// Returns how the image is pinned, which is how long a proof about it lasts.
    pub fn class(self) -> Class {
        match memchr(b'@', self.0.as_bytes()) {
            Some(_) => Class::Digest,
            None => Class::Tag,
        }
    }

    /// Returns the image's name as mirrors' sources have it: host and path, without tag and digest.
    pub fn name(self) -> &'a str {
        self.parts().0
    }

    /// Returns the host of the image's own registry, with its port.
    pub fn host(self) -> &'a str {
        split_once(self.0, b'/').map_or(self.0, |(host, _)| host)
    }

    /// Returns the reference that the key is.
    pub fn reference(self) -> Reference<'a> {
        let (name, class, pinned_by) = self.parts();
        let (host, path) = split_once(name, b'/').unwrap_or((name, ""));
        let (library, path) = if host == DOCKER_HUB {
            complete(path)
        } else {
            ("", path)
        };
        let of = |this| (class == this).then_some(pinned_by);
        Reference {
            written: self.0,
            host,
            library,
            path,
            tag: of(Class::Tag),
            digest: of(Class::Digest),
        }
    }

    /// Splits into the name, and the tag or the digest. No name and no tag has an `@`, and no tag a `:`.
    fn parts(self) -> (&'a str, Class, &'a str) {
        let bytes = self.0.as_bytes();
        let (class, end) = match memchr(b'@', bytes) {
            Some(end) => (Class::Digest, Some(end)),
            None => (Class::Tag, memrchr(b':', bytes)),
        };
        end.map_or((self.0, class, ""), |end| {
            (&self.0[..end], class, &self.0[end + 1..])
        })
    }
}

impl ImageKey {
    /// Returns the key, borrowed.
    pub fn by_ref(&self) -> KeyRef<'_> {
        KeyRef(&self.0)
    }

    /// Returns the whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Keys {
    /// Returns room for so many keys of usual length.
    pub fn with_room_for(keys: usize) -> Self {
        Self(String::with_capacity(64 * keys))
    }

    /// Writes the key of an image, and returns by what [`Self::get`] finds it.
    pub fn push(&mut self, reference: &Reference<'_>) -> KeySpan {
        let start = self.0.len();
        reference.push_key(&mut self.0);
        KeySpan(start..self.0.len())
    }

    /// Returns a key that was pushed here.
    pub fn get(&self, span: &KeySpan) -> KeyRef<'_> {
        KeyRef(&self.0[span.0.clone()])
    }
}

impl BoxedKey {
    /// Returns the key, borrowed.
    pub(in crate::domain) fn by_ref(&self) -> KeyRef<'_> {
        KeyRef(&self.0)
    }
}

impl Reference<'_> {
    /// Replaces the content of `room` with the key of the image, and returns the key.
    ///
    /// It parses, and to itself; so a host that is one only by its capital letters (`Foo/bar`) is written
    /// in capitals.
    pub fn write_key<'k>(&self, room: &'k mut String) -> KeyRef<'k> {
        room.clear();
        self.push_key(room);
        KeyRef(room)
    }

    /// Appends the key of the image.
    fn push_key(&self, room: &mut String) {
        room.reserve(
            self.host.len() + self.library.len() + self.path.len() + 2 + self.manifest_reference().len(),
        );
        if let Some(Host::Ipv6(address, port)) = Host::split(self.host) {
            push_ipv6_host(room, address, port);
        } else {
            let start = room.len();
            room.push_str(self.host);
            if let Some(host) = room.get_mut(start..) {
                host.make_ascii_lowercase();
                if !names_host(host) {
                    host.make_ascii_uppercase();
                }
            }
        }
        room.push('/');
        room.push_str(self.library);
        room.push_str(self.path);
        room.push(match self.class() {
            Class::Tag => ':',
            Class::Digest => '@',
        });
        room.push_str(self.manifest_reference());
    }

    /// Returns the key of the image.
    pub fn key(&self) -> ImageKey {
        self.write_key(&mut String::new()).into()
    }
}

impl From<KeyRef<'_>> for ImageKey {
    fn from(key: KeyRef<'_>) -> Self {
        Self(key.0.into())
    }
}

impl From<KeyRef<'_>> for BoxedKey {
    fn from(key: KeyRef<'_>) -> Self {
        Self(key.0.into())
    }
}

impl FromStr for ImageKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        KeyRef::parse(text).map(Self::from)
    }
}

/// For looking up by a [`KeyRef`]; keys compare and hash as their texts.
impl Borrow<str> for ImageKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// For looking up by a [`KeyRef`]; keys compare and hash as their texts.
impl Borrow<str> for BoxedKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for KeyRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for ImageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Debug for KeyRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

impl fmt::Debug for BoxedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

fn push_ipv6_host(out: &mut String, address: Ipv6Addr, port: Option<&str>) {
    use std::fmt::Write as _;
    // An IPv4-mapped address would be printed with dots, which references do not allow.
    let written = match address.to_ipv4_mapped() {
        Some(_) => {
            let [.., high, low] = address.segments();
            write!(out, "[::ffff:{high:x}:{low:x}]")
        }
        None => write!(out, "[{address}]"),
    };
    debug_assert!(written.is_ok(), "writing to a String cannot fail");
    if let Some(port) = port {
        out.push(':');
        out.push_str(port);
    }
}
