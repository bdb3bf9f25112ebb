//! CPU architectures as a small set.

use std::fmt;

/// The architectures that Kagami tells apart, by the names of Go's GOARCH, which images and the
/// node label `kubernetes.io/arch` use alike. Images for others count as not there.
const NAMES: [&str; 12] = [
    "amd64", "arm64", "arm", "386", "ppc64le", "s390x", "riscv64", "loong64", "mips64le", "mips64", "mipsle",
    "ppc64",
];

/// A set of architectures.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Architectures(u16);

impl Architectures {
    /// No architecture.
    pub const NONE: Self = Self(0);
    /// Every architecture: what a single manifest counts for, as it does not name its own.
    pub const ALL: Self = Self(u16::MAX);

    /// Some architecture that Kagami has no name for.
    const OTHER: Self = Self(1 << 15);

    /// Returns the set of one architecture.
    pub fn of(name: &str) -> Self {
        NAMES
            .iter()
            .position(|known| *known == name)
            .map_or(Self::OTHER, |index| Self(1 << index))
    }

    /// Returns this set without what Kagami has no name for: what may be believed of an image.
    pub const fn known(self) -> Self {
        Self(self.0 & !Self::OTHER.0)
    }

    /// Returns what is in either set.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns what is in both sets.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns this set without what is in the other.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether everything in `wanted` is in this set.
    pub const fn contains(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// Whether nothing is in this set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the names in this set; none for the set of all.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let bits = if self == Self::ALL { 0 } else { self.0 };
        NAMES
            .iter()
            .enumerate()
            .filter(move |(index, _)| bits & (1 << index) != 0)
            .map(|(_, name)| *name)
    }
}

impl<'a> FromIterator<&'a str> for Architectures {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        names
            .into_iter()
            .fold(Self::NONE, |set, name| set.or(Self::of(name)))
    }
}

impl fmt::Debug for Architectures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            f.write_str("any")
        } else {
            f.debug_list().entries(self.names()).finish()
        }
    }
}
