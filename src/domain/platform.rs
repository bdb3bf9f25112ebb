//! Operating systems and architectures together, as a small set, and which entry of an index a node takes.
//!
//! The rules are containerd's (its package `platforms`: `Normalize`, `Only`; its `images.Manifest`), which
//! CRI-O's library shares as far as they matter here. Of all entries of an index a node takes one: the first
//! that names the best platform for it, else the first that names none, whose configuration must fit then.
//! There is no second try, so an entry that is not to be had is not replaced by another one.

use std::fmt;

/// The platforms that Kagami tells apart, each a bit: its name, its architecture and its variant, as images and
/// node labels have them. A row without a name stands for all others of that operating system, or of all
/// others: images for them count as not there.
const ROWS: [(&str, &str, &str); 20] = [
    ("linux/amd64", "amd64", ""),
    ("linux/arm64", "arm64", ""),
    ("linux/arm/v5", "arm", "v5"),
    ("linux/arm/v6", "arm", "v6"),
    ("linux/arm/v7", "arm", "v7"),
    ("linux/arm/v8", "arm", "v8"),
    ("linux/386", "386", ""),
    ("linux/ppc64le", "ppc64le", ""),
    ("linux/s390x", "s390x", ""),
    ("linux/riscv64", "riscv64", ""),
    ("linux/loong64", "loong64", ""),
    ("linux/mips64le", "mips64le", ""),
    ("linux/mips64", "mips64", ""),
    ("linux/mipsle", "mipsle", ""),
    ("linux/ppc64", "ppc64", ""),
    ("", "", ""),
    ("windows/amd64", "amd64", ""),
    ("windows/arm64", "arm64", ""),
    ("", "", ""),
    ("", "", ""),
];

/// What a node takes besides its own platform, the best first. A node's architecture without a variant is
/// normalised as an image's is, so `arm` means v7 and `arm64` means v8.
const INSTEAD: [(&str, &[&str]); 5] = [
    ("linux/amd64", &["linux/386"]),
    (
        "linux/arm64",
        &["linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"],
    ),
    ("linux/arm/v8", &["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
    ("linux/arm/v7", &["linux/arm/v6", "linux/arm/v5"]),
    ("linux/arm/v6", &["linux/arm/v5"]),
];

/// A set of platforms: of nodes, or the one of an image.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Platforms(u32);

impl Platforms {
    /// No platform.
    pub const NONE: Self = Self(0);
    /// Every platform.
    pub const ALL: Self = Self((1 << ROWS.len()) - 1);
    /// Linux on every architecture.
    pub const LINUX: Self = Self(0xffff);
    /// Windows on every architecture.
    pub const WINDOWS: Self = Self(0b111 << 16);
    /// What a single manifest counts for while nobody knows its operating system: Linux on every architecture.
    pub const ASSUMED: Self = Self(Self::LINUX.0 | 1 << 31);

    const LINUX_OTHERS: Self = Self(1 << 15);
    const WINDOWS_OTHERS: Self = Self(1 << 18);
    const OTHERS: Self = Self(1 << 19);
    /// All that Kagami has no name for.
    const UNNAMED: Self = Self::LINUX_OTHERS.or(Self::WINDOWS_OTHERS).or(Self::OTHERS);

    /// Returns the platform that an image or a node says it is for. Without an operating system it is for that
    /// of whoever asks.
    pub fn of(os: &str, architecture: &str, variant: &str) -> Self {
        Self::of_os(os).and(Self::of_variant(architecture, variant))
    }

    /// Returns the platform of a name such as `linux/arm/v7`; none for one that names no operating system.
    pub fn parse(name: &str) -> Option<Self> {
        let (os, rest) = name.split_once('/')?;
        let (architecture, variant) = rest.split_once('/').unwrap_or((rest, ""));
        let whole = !os.is_empty() && !architecture.is_empty();
        whole.then(|| Self::of(os, architecture, variant))
    }

    /// Returns the platform of a name that people wrote, where it is one of those that are told apart here; else what is
    /// wrong with it.
    pub fn written(name: &str) -> Result<Self, String> {
        let known = Self::parse(name).filter(|platform| platform.names().next().is_some());
        known.ok_or_else(|| {
            format!("{name:?} is no platform that Kagami knows: write it as linux/amd64 or linux/arm/v7")
        })
    }

    /// Returns an operating system on every architecture.
    pub fn of_os(name: &str) -> Self {
        if name.is_empty() {
            Self::ALL
        } else if name.eq_ignore_ascii_case("linux") {
            Self::LINUX
        } else if name.eq_ignore_ascii_case("windows") {
            Self::WINDOWS
        } else {
            Self::OTHERS
        }
    }

    /// Returns an architecture under every operating system.
    pub fn of_architecture(name: &str) -> Self {
        Self::of_variant(name, "")
    }

    fn of_variant(architecture: &str, variant: &str) -> Self {
        let is = |text: &str, names: &[&str]| names.iter().any(|name| text.eq_ignore_ascii_case(name));
        let (architecture, variant) = if is(architecture, &["x86_64", "x86-64", "amd64"]) {
            ("amd64", if is(variant, &["v1"]) { "" } else { variant })
        } else if is(architecture, &["aarch64", "arm64"]) {
            let eight = is(variant, &["8", "v8", "v8.0"]);
            ("arm64", if eight { "" } else { variant })
        } else if is(architecture, &["i386"]) {
            ("386", "")
        } else if is(architecture, &["armhf"]) {
            ("arm", "v7")
        } else if is(architecture, &["armel"]) {
            ("arm", "v6")
        } else if is(architecture, &["arm"]) {
            let least = match variant {
                "" | "7" => "v7",
                "5" => "v5",
                "6" => "v6",
                "8" => "v8",
                other => other,
            };
            ("arm", least)
        } else {
            (architecture, variant)
        };
        let mut found = Self::NONE;
        for (bit, (name, of_row, least)) in ROWS.iter().enumerate() {
            let same = architecture.eq_ignore_ascii_case(of_row) && variant.eq_ignore_ascii_case(least);
            if same && !name.is_empty() {
                found = found.or(Self(1 << bit));
            }
        }
        // Where one operating system has no name for it, it is among the others there.
        let mut rest = Self::UNNAMED;
        if !found.and(Self::LINUX).is_empty() {
            rest = rest.without(Self::LINUX_OTHERS);
        }
        if !found.and(Self::WINDOWS).is_empty() {
            rest = rest.without(Self::WINDOWS_OTHERS);
        }
        found.or(rest)
    }

    /// Returns the nodes that take an image of one of these platforms, where nothing better is there.
    pub fn takers(self) -> Self {
        let takes = |node: &Self| node.preferences().any(|best| self.contains(best));
        Self::named().filter(takes).fold(Self::NONE, Self::or)
    }

    /// Returns what a node of this platform takes, the best first.
    fn preferences(self) -> impl Iterator<Item = Self> {
        let instead = INSTEAD.iter().find(|(name, _)| Self::parse(name) == Some(self));
        let instead = instead.into_iter().flat_map(|(_, instead)| *instead);
        [self]
            .into_iter()
            .chain(instead.filter_map(|name| Self::parse(name)))
    }

    /// Returns every platform that has a name, each as a set of its own.
    fn named() -> impl Iterator<Item = Self> {
        let named = ROWS.iter().enumerate().filter(|(_, (name, ..))| !name.is_empty());
        named.map(|(bit, _)| Self(1 << bit))
    }

    /// Returns this set without what Kagami has no name for: what may be believed of an index.
    pub const fn known(self) -> Self {
        self.without(Self::UNNAMED)
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

    /// Returns the names in this set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let rows = ROWS.iter().enumerate();
        let there = rows.filter(move |(bit, _)| self.0 & (1 << bit) != 0);
        there.map(|(_, (name, ..))| *name).filter(|name| !name.is_empty())
    }
}

impl fmt::Debug for Platforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALL => f.write_str("any"),
            Self::LINUX => f.write_str("linux"),
            Self::WINDOWS => f.write_str("windows"),
            Self::ASSUMED => f.write_str("linux, it seems"),
            _ => f.debug_list().entries(self.names()).finish(),
        }
    }
}

/// Returns for each entry of an index which nodes take it, by the platform that it names, if it names one.
///
/// Of Windows entries, which differ by the release that they are for, nobody knows here which one a node
/// takes, so it may be each of them.
pub fn takers(entries: &[Option<Platforms>]) -> Vec<Platforms> {
    let mut takers = vec![Platforms::NONE; entries.len()];
    let is_any = |entry: &Option<Platforms>| entry.is_none();
    let nameless = entries.iter().position(is_any);
    for node in Platforms::named() {
        let names = |best: Platforms| {
            let found = entries.iter().enumerate();
            found.filter(move |(_, entry)| entry.is_some_and(|entry| entry.contains(best)))
        };
        let best = node.preferences().find(|best| names(*best).next().is_some());
        match (best, nameless) {
            (Some(best), _) => {
                let each = if Platforms::WINDOWS.contains(node) {
                    usize::MAX
                } else {
                    1
                };
                for (position, _) in names(best).take(each) {
                    takers[position] = takers[position].or(node);
                }
            }
            (None, Some(position)) => takers[position] = takers[position].or(node),
            (None, None) => {}
        }
    }
    takers
}

/// What a node's labels, and so a Pod's constraints, tell of its platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    Os,
    Architecture,
}

impl Label {
    /// Returns what a label is about, by its present or its deprecated name.
    pub fn from_key(key: &str) -> Option<Self> {
        match key {
            "kubernetes.io/os" | "beta.kubernetes.io/os" => Some(Self::Os),
            "kubernetes.io/arch" | "beta.kubernetes.io/arch" => Some(Self::Architecture),
            _ => None,
        }
    }

    fn platforms(self, value: &str) -> Platforms {
        match self {
            // No node has an empty label, and nothing else is asked of whoever wants one.
            _ if value.is_empty() => Platforms::NONE,
            Self::Os => Platforms::of_os(value),
            Self::Architecture => Platforms::of_architecture(value),
        }
    }
}

/// Where a Pod may land, by its own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landing {
    allowed: Platforms,
    /// It lists architectures, so each of them counts, whatever nodes there are at this moment.
    lists_architectures: bool,
}

impl Landing {
    /// It says nothing.
    pub const ANYWHERE: Self = Self {
        allowed: Platforms::ALL,
        lists_architectures: false,
    };

    /// Returns where a Pod may land that asks for one of these values.
    pub fn of<'v>(label: Label, values: impl IntoIterator<Item = &'v str>) -> Self {
        let values = values.into_iter().map(|value| label.platforms(value));
        Self {
            allowed: values.fold(Platforms::NONE, Platforms::or),
            lists_architectures: label == Label::Architecture,
        }
    }

    /// Returns where a Pod may land that asks for none of these values.
    pub fn not_of<'v>(label: Label, values: impl IntoIterator<Item = &'v str>) -> Self {
        let named = Self::of(label, values).allowed;
        // Others stay others: nobody knows which of them were meant.
        let others = Platforms::UNNAMED;
        let os = |os: Platforms| if named.contains(os) { os } else { Platforms::NONE };
        let others = others
            .without(os(Platforms::LINUX))
            .without(os(Platforms::WINDOWS));
        Self {
            allowed: Platforms::ALL.without(named).or(others),
            lists_architectures: false,
        }
    }

    /// Returns where both hold.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            allowed: self.allowed.and(other.allowed),
            lists_architectures: self.lists_architectures || other.lists_architectures,
        }
    }

    /// Returns where one of both holds.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self {
            allowed: self.allowed.or(other.allowed),
            lists_architectures: self.lists_architectures && other.lists_architectures,
        }
    }

    /// Returns what an image must be there for, given the platforms of the cluster's nodes, or none if they are
    /// not known.
    pub const fn among(self, nodes: Platforms) -> Wanted {
        let Self {
            allowed,
            lists_architectures,
        } = if self.allowed.is_empty() {
            // No node fits, so it lands nowhere.
            Self::ANYWHERE
        } else {
            self
        };
        let (linux, here) = (allowed.and(Platforms::LINUX), allowed.and(nodes));
        match (lists_architectures, here.is_empty(), linux.is_empty()) {
            (false, false, _) => Wanted::Each(here),
            (false, true, false) => Wanted::Any(linux),
            (false, true, true) => Wanted::Any(allowed),
            (true, _, false) => Wanted::Each(linux.or(here)),
            (true, _, true) => Wanted::Each(allowed),
        }
    }
}

impl Default for Landing {
    fn default() -> Self {
        Self::ANYWHERE
    }
}

/// What an image must be there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nobody knows where the Pod may land of all these.
    Each(Platforms),
    /// One of these is enough.
    Any(Platforms),
}

impl Wanted {
    /// Whether an image that is there for these platforms is there for the Pod.
    pub const fn is_met_by(self, there: Platforms) -> bool {
        match self {
            Self::Each(wanted) => there.contains(wanted),
            Self::Any(wanted) => !there.and(wanted).is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> Platforms {
        names
            .iter()
            .map(|name| Platforms::parse(name).unwrap())
            .fold(Platforms::NONE, Platforms::or)
    }

    #[track_caller]
    fn check_takers(entries: &[Option<&str>], expected: &[&[&str]]) {
        let entries: Vec<_> = entries.iter().map(|name| name.map(|name| set(&[name]))).collect();
        let takers: Vec<Vec<_>> = takers(&entries)
            .iter()
            .map(|nodes| nodes.names().collect())
            .collect();
        assert_eq!(takers, expected);
    }

    #[test]
    fn platforms_are_told_apart_by_what_a_node_would_take() {
        let name = |os, architecture, variant| {
            let names: Vec<_> = Platforms::of(os, architecture, variant).names().collect();
            names.join(" ")
        };
        assert_eq!(name("linux", "amd64", ""), "linux/amd64");
        assert_eq!(name("Linux", "x86_64", "v1"), "linux/amd64");
        // No node says that it is one of these, so none takes it.
        assert_eq!(name("linux", "amd64", "v3"), "");
        assert_eq!(name("linux", "arm64", "v8"), "linux/arm64");
        assert_eq!(name("linux", "arm64", "v9"), "");
        assert_eq!(name("linux", "arm", ""), "linux/arm/v7");
        assert_eq!(name("linux", "arm", "5"), "linux/arm/v5");
        assert_eq!(name("linux", "arm", "v6"), "linux/arm/v6");
        assert_eq!(name("linux", "armhf", ""), "linux/arm/v7");
        assert_eq!(name("windows", "amd64", ""), "windows/amd64");
        assert_eq!(name("windows", "arm", ""), "");
        assert_eq!(name("", "amd64", ""), "linux/amd64 windows/amd64");
        assert_eq!(name("unknown", "unknown", ""), "");
        assert_eq!(name("linux", "", ""), "");
        assert_eq!(Platforms::parse("amd64"), None);
        assert_eq!(Platforms::parse("linux/"), None);
        for (known, ..) in ROWS.into_iter().filter(|(name, ..)| !name.is_empty()) {
            assert_eq!(set(&[known]).names().collect::<Vec<_>>(), [known]);
        }
    }

    #[test]
    fn a_node_takes_the_best_entry_and_no_other() {
        check_takers(
            &[Some("linux/amd64"), Some("windows/amd64"), Some("linux/386")],
            &[&["linux/amd64"], &["windows/amd64"], &["linux/386"]],
        );
        check_takers(
            &[Some("linux/arm/v5"), Some("linux/arm/v7")],
            &[
                &["linux/arm/v5", "linux/arm/v6"],
                &["linux/arm64", "linux/arm/v7", "linux/arm/v8"],
            ],
        );
        check_takers(&[Some("linux/386")], &[&["linux/amd64", "linux/386"]]);
        // The second of two equal ones is never taken, but on Windows nobody knows.
        check_takers(
            &[Some("linux/s390x"), Some("linux/s390x")],
            &[&["linux/s390x"], &[]],
        );
        check_takers(
            &[Some("windows/amd64"), Some("windows/amd64")],
            &[&["windows/amd64"], &["windows/amd64"]],
        );
    }

    #[test]
    fn an_entry_that_names_nothing_is_for_whoever_finds_nothing_better() {
        let entries = [None, Some(set(&["linux/amd64"])), None];
        let takers = takers(&entries);
        assert_eq!(takers[1], set(&["linux/amd64"]));
        assert!(takers[0].contains(set(&["linux/arm64", "linux/386", "windows/amd64"])));
        assert!(takers[0].and(takers[1]).is_empty());
        assert_eq!(takers[2], Platforms::NONE);
        assert_eq!(
            set(&["linux/arm/v6"]).takers(),
            set(&["linux/arm64", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8"])
        );
    }

    #[test]
    fn what_is_wanted_follows_the_pod_then_the_nodes_then_is_linux() {
        let os = |value| Landing::of(Label::Os, [value]);
        let architecture = |value| Landing::of(Label::Architecture, [value]);
        let mixed = set(&["linux/amd64", "linux/arm64", "windows/amd64"]);
        let none = Platforms::NONE;
        let check = |landing: Landing, nodes, expected: Wanted| {
            assert_eq!(landing.among(nodes), expected, "{landing:?} {nodes:?}");
        };
        check(Landing::ANYWHERE, none, Wanted::Any(Platforms::LINUX));
        check(Landing::ANYWHERE, mixed, Wanted::Each(mixed));
        check(os("windows"), none, Wanted::Any(Platforms::WINDOWS));
        check(os("windows"), mixed, Wanted::Each(set(&["windows/amd64"])));
        check(
            os("linux"),
            mixed,
            Wanted::Each(set(&["linux/amd64", "linux/arm64"])),
        );
        check(architecture("arm64"), none, Wanted::Each(set(&["linux/arm64"])));
        check(
            architecture("amd64"),
            mixed,
            Wanted::Each(set(&["linux/amd64", "windows/amd64"])),
        );
        check(
            architecture("amd64").and(os("windows")),
            none,
            Wanted::Each(set(&["windows/amd64"])),
        );
        // A node of each architecture that a Pod lists may come.
        let two = Landing::of(Label::Architecture, ["amd64", "arm64"]);
        check(
            two,
            set(&["linux/amd64"]),
            Wanted::Each(set(&["linux/amd64", "linux/arm64"])),
        );
        let not = Landing::not_of(Label::Architecture, ["arm64"]);
        check(not, mixed, Wanted::Each(set(&["linux/amd64", "windows/amd64"])));
        check(not.and(os("linux")), mixed, Wanted::Each(set(&["linux/amd64"])));
        let not = Landing::not_of(Label::Os, ["windows"]);
        check(not, mixed, Wanted::Each(set(&["linux/amd64", "linux/arm64"])));
        check(
            Landing::not_of(Label::Os, ["linux"]),
            mixed,
            Wanted::Each(set(&["windows/amd64"])),
        );
        // Nothing fits, so nothing is said.
        check(
            architecture("arm64").and(architecture("amd64")).and(os("")),
            mixed,
            Wanted::Each(mixed),
        );
    }
}
