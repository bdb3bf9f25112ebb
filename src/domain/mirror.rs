//! The settings of one mirror, validated: what an ImageMirror resource says, in the core's types.
//!
//! `api` makes these from resources; whoever holds one need not check anything again. Credentials
//! are not here: the core only knows whether there are some.

use std::time::Duration;

use super::{
    digest::Digest,
    mapping::{Form, Mapping},
    owners::group_of,
    platform::Platforms,
    selector::Selector,
};

/// How far a mirror, a namespace or a Pod lets Kagami go; a later variant allows more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Nothing is decided.
    Off,
    /// Decide, tell the audit log, change nothing.
    Audit,
    /// Decide, warn the caller, change nothing.
    Warn,
    /// Rewrite.
    Enforce,
}

impl Mode {
    /// Every mode, the weakest first.
    pub const ALL: [Self; 4] = [Self::Off, Self::Audit, Self::Warn, Self::Enforce];

    /// Returns the mode that the value of a `kagami.dev/mode` label names.
    pub fn from_label(value: &str) -> Option<Self> {
        match value {
            "off" => Some(Self::Off),
            "audit" => Some(Self::Audit),
            "warn" => Some(Self::Warn),
            "enforce" => Some(Self::Enforce),
            _ => None,
        }
    }

    /// Returns the mode of a namespace with this value of the label, or with none. For a value that
    /// nobody knows the API server calls no webhook.
    pub fn of_namespace(label: Option<&str>, default: Self) -> Self {
        label.map_or(default, |value| Self::from_label(value).unwrap_or(Self::Off))
    }

    /// Returns the value that the label has for this mode.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Audit => "audit",
            Self::Warn => "warn",
            Self::Enforce => "enforce",
        }
    }
}

/// What a mirror does with an image that nobody has asked it for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It holds copies; looking for one is cheap and a 404 means absence.
    Hosted,
    /// It fetches on demand; looking for an image may download it whole, as distribution's proxy does.
    PullThrough,
}

impl Kind {
    /// Returns the kind's name as it stands in resources.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hosted => "Hosted",
            Self::PullThrough => "PullThrough",
        }
    }
}

/// Which side is asked first for an image that both hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prefer {
    Mirror,
    /// The mirror only while the upstream registry fails.
    Upstream,
}

/// Whose certificates are trusted at a mirror's own host, where a CA bundle is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Trust {
    #[default]
    Bundle,
    BundleAndSystem,
}

/// Who may read an image upstream, and so who may get it from the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Anybody; where the source has credentials, only what an anonymous client gets upstream too.
    Public,
    /// Only the namespaces that the mirror names.
    Private,
}

/// One `spec.sources[]`: a part of the upstream world that the mirror has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Host (lower case, as normalised), or host and leading path components: `docker.io/library`.
    pub prefix: String,
    /// Globs on the normalised name (host/path, no tag) that this mirror leaves alone.
    pub exclude: Vec<String>,
    pub access: Access,
    /// Whether upstream credentials are configured for this source.
    pub with_credentials: bool,
}

/// `spec.health`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthSettings {
    pub interval: Duration,
    pub timeout: Duration,
    pub failure_threshold: u32,
    pub success_threshold: u32,
    pub stale_after: Duration,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            failure_threshold: 2,
            success_threshold: 2,
            stale_after: Duration::from_secs(30),
        }
    }
}

/// `spec.freshness`: how old a proof may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    pub tag: Duration,
    pub digest: Duration,
    pub missing: Duration,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            tag: Duration::from_mins(10),
            digest: Duration::from_hours(1),
            missing: Duration::from_secs(30),
        }
    }
}

/// `spec.tags.pin`: whether rewritten tags get the digest that was proven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pin {
    #[default]
    None,
    /// `name:tag@digest`, which not every runtime takes.
    Digest,
    /// `name@digest`.
    DigestOnly,
}

impl Pin {
    /// Returns the form in which an image is written whose digest was proven.
    pub const fn form(self, proven: &Digest) -> Form<'_> {
        match self {
            Self::None => Form::Written,
            Self::Digest => Form::TagAndDigest(proven),
            Self::DigestOnly => Form::Digest(proven),
        }
    }
}

/// `spec.tags.drift`: what becomes of a tag that means another image upstream than in a mirror that is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drift {
    /// It is copied anew; until it was, it is upstream's.
    #[default]
    Sync,
    /// It is upstream's until somebody copies it.
    Warn,
    /// What the mirror has is served on.
    Keep,
}

impl Drift {
    /// Returns its name as it stands in resources.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "Sync",
            Self::Warn => "Warn",
            Self::Keep => "Keep",
        }
    }
}

/// `spec.tags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tags {
    pub pin: Pin,
    pub refresh: Duration,
    pub drift: Drift,
}

impl Default for Tags {
    fn default() -> Self {
        Self {
            pin: Pin::None,
            refresh: Duration::from_hours(1),
            drift: Drift::default(),
        }
    }
}

/// `spec.rescue.policy`: what becomes of Pods that cannot be pulled from a mirror; a later variant allows more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RescuePolicy {
    /// Nothing.
    Off,
    /// It is told that they would go back.
    Audit,
    /// They go back to what their user wrote.
    #[default]
    Enforce,
}

/// `spec.rescue.hangAfter` where nothing is written.
pub const HANG_AFTER: Duration = Duration::from_mins(2);

impl RescuePolicy {
    /// Returns the policy's name as it stands in resources.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "Off",
            Self::Audit => "Audit",
            Self::Enforce => "Enforce",
        }
    }

    /// Returns the policy of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Off, Self::Audit, Self::Enforce]
            .into_iter()
            .find(|policy| policy.as_str() == name)
    }
}

/// `spec.copy` of a mirror that is filled with what it lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copying {
    /// The nodes that images are copied for.
    pub platforms: Platforms,
    /// Whether signatures and what else refers to an image come along.
    pub referrers: bool,
    /// The most bytes that an image may have; none is unbounded.
    pub max_size: Option<u64>,
    /// The most bytes that are sent within a day for what one namespace wants; none is unbounded.
    pub max_per_day: Option<u64>,
}

/// One owner whose Pods are left alone: an API group and a kind, `*` for every kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerPattern {
    pub group: String,
    pub kind: String,
}

impl OwnerPattern {
    /// Returns the owners whose controllers are known to compare the images of their Pods with what they asked for, and
    /// to recreate those that differ.
    pub fn built_in() -> Vec<Self> {
        [
            // cloudnative-pg/cloudnative-pg#4138, #6344 ("the instance is using an old init container image"), #10872.
            ("postgresql.cnpg.io", "*"),
            // operator-framework/operator-lifecycle-manager#2986.
            ("operators.coreos.com", "CatalogSource"),
            // aerospike/aerospike-kubernetes-operator#402: it deletes the Pods of its StatefulSets.
            ("asdb.aerospike.com", "AerospikeCluster"),
            // zalando/postgres-operator, pkg/cluster/sync.go: a Pod whose image is not its StatefulSet's is marked for a
            // rolling update at each sync. Its Pods are known by a label (`owners::owner_by_label`).
            ("acid.zalan.do", "postgresql"),
            // konpyutaika/nifikop#541; what came of it (#500) takes one other tool's names for its own, and no more.
            ("nifi.konpyutaika.com", "NifiCluster"),
            // adobe/koperator#269: until then it compared running Pods with what it wants; banzaicloud's does still.
            ("kafka.banzaicloud.io", "KafkaCluster"),
        ]
        .map(|(group, kind)| Self {
            group: group.to_owned(),
            kind: kind.to_owned(),
        })
        .into()
    }

    /// Whether an owner reference falls under this pattern.
    pub fn matches(&self, api_version: &str, kind: &str) -> bool {
        self.group == group_of(api_version) && (self.kind == "*" || self.kind == kind)
    }
}

/// One mirror: its settings. What its status tells is its [`super::standing::Standing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub name: String,
    pub mode: Mode,
    /// `spec.registry` and `spec.repository`: where an image stands in the mirror.
    pub mapping: Mapping,
    pub kind: Kind,
    pub priority: i32,
    pub prefer: Prefer,
    pub namespaces: Selector,
    pub sources: Vec<Source>,
    pub health: HealthSettings,
    pub freshness: Freshness,
    /// Requests a second that sweeps may make; none is unbounded.
    pub sweep_rate: Option<u32>,
    pub tags: Tags,
    /// How it is filled with images that Pods use; none where it is not.
    pub copying: Option<Copying>,
    /// Name of the Secret with which Kagami reads it, for who tells of it.
    pub read_secret: Option<String>,
    /// Whether Pods need a pull secret for this mirror.
    pub pull_secret: bool,
    pub exclude_owners: Vec<OwnerPattern>,
    /// What becomes of Pods that cannot be pulled from it.
    pub rescue: RescuePolicy,
    /// How long a pull from it lasts before that is told.
    pub hang_after: Duration,
    /// Whether Pods are evicted that are stuck on an image volume of it.
    pub delete_pods: bool,
    /// Namespaces in which the mirror itself runs (it is reached as `*.NAMESPACE.svc`): their Pods
    /// cannot wait for it.
    pub runs_in: Vec<String>,
}

impl Mirror {
    /// Whether a tag that is known to mean another image upstream is left to upstream. Only where the mirror is filled,
    /// for nobody asks upstream elsewhere.
    pub fn yields_moved_tags(&self) -> bool {
        self.copying.is_some() && self.tags.drift != Drift::Keep
    }

    /// Whether such a tag is copied anew.
    pub fn copies_moved_tags(&self) -> bool {
        self.copying.is_some() && self.tags.drift == Drift::Sync
    }

    /// Whether it leaves alone the Pods of owners of this `apiVersion` and kind.
    pub fn excludes(&self, api_version: &str, kind: &str) -> bool {
        let mut patterns = self.exclude_owners.iter();
        patterns.any(|pattern| pattern.matches(api_version, kind))
    }
}
