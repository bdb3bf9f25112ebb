//! What is known of the pull secrets of a mirror, and how its status tells it.
//!
//! The condition says nothing of who: names of namespaces stand in `status.pullSecretNamespaces` alone, those in which
//! the Secret is in place.

use std::{collections::BTreeMap, sync::Arc};

use crate::domain::reason::Reason;

/// How many namespaces a status lists: some 300 KB. In those beyond, images stay upstream.
pub(super) const LISTED: usize = 5000;

/// What is known of all mirrors' pull secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Placing {
    /// Nothing yet, as of a leader that has just begun: what statuses say stays.
    #[default]
    Unknown,
    /// None are placed at all.
    Off,
    /// By mirror.
    On(BTreeMap<String, Placed>),
}

/// What is known of one mirror's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// The namespaces in which the login of now is in place, by name.
    pub(super) in_place: Arc<[String]>,
    pub(super) told: Told,
}

/// What the condition says. The first that holds, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The mirror asks for none.
    NotAsked,
    /// The chart's value is off.
    Off,
    /// The mirror may not rewrite.
    ModeTooWeak,
    /// Another mirror's images lie in the same place, and serve other namespaces.
    NotSeparated,
    /// Kubelet finds no login for such an address.
    NoKey,
    /// There is no Secret of this name.
    SecretNotFound(Arc<str>),
    /// The Secret gives no login, for this reason.
    SecretFaulty(String),
    /// Another mirror of the same place has another login.
    AnotherLogin,
    /// In some namespace somebody takes it away again and again.
    Contested,
    /// In some namespace somebody else's Secret has the name.
    Foreign,
    /// In some namespace it cannot be read or written.
    NotWritten,
    /// There are more namespaces than a status lists.
    TooMany,
    /// It is being written.
    Placing,
    InPlace,
}

impl Placing {
    /// Returns what is known of a mirror, which asks for pull secrets or not; none where nobody knows.
    pub(super) fn of(&self, mirror: &str, asks: bool) -> Option<Placed> {
        let nowhere = |told| {
            Some(Placed {
                in_place: Arc::default(),
                told,
            })
        };
        match self {
            _ if !asks => nowhere(Told::NotAsked),
            Self::Unknown => None,
            Self::Off => nowhere(Told::Off),
            Self::On(mirrors) => mirrors.get(mirror).cloned(),
        }
    }
}

impl Told {
    /// Whether the pull secret is in place; none where that is about to be known.
    pub(super) const fn holds(&self) -> Option<bool> {
        match self {
            Self::InPlace => Some(true),
            Self::Placing => None,
            _ => Some(false),
        }
    }

    /// Returns the reason that the condition gives.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::NotAsked => "NotAsked",
            Self::Off => "SwitchedOff",
            Self::ModeTooWeak => "ModeTooWeak",
            Self::NotSeparated => "AccessNotSeparated",
            Self::NoKey => "AddressNotMatched",
            Self::SecretNotFound(_) => "SecretNotFound",
            Self::SecretFaulty(_) => "SecretFaulty",
            Self::AnotherLogin => "AnotherLogin",
            Self::Contested => "SecretContested",
            Self::Foreign => "SecretOfAnother",
            Self::NotWritten => "NotWritten",
            Self::TooMany => "TooManyNamespaces",
            Self::Placing => "Placing",
            Self::InPlace => "InPlace",
        }
    }

    /// Returns what it says, in words.
    pub(super) fn message(&self) -> String {
        let what = match self {
            Self::NotAsked => return "The mirror has no spec.pullSecret.".to_owned(),
            Self::InPlace => {
                return "The login of spec.pullSecret is in place wherever it is to be: status.pullSecretNamespaces."
                    .to_owned();
            }
            Self::Placing => {
                return "The login of spec.pullSecret is being written into the namespaces that the mirror serves.".to_owned();
            }
            Self::Off => "The chart's value pullSecrets.enabled is false, so spec.pullSecret is placed nowhere".to_owned(),
            Self::ModeTooWeak => "The mirror may not rewrite, by its spec.mode, so spec.pullSecret is placed nowhere".to_owned(),
            Self::NotSeparated => {
                "Another ImageMirror has its images at the same place, or above or below it, and serves other namespaces: a \
                 login for one would open the other's, so spec.pullSecret is placed nowhere"
                    .to_owned()
            }
            Self::NoKey => {
                "Nodes find no login for an IPv6 address without a port, so spec.pullSecret is placed nowhere: write the \
                 port into spec.registry"
                    .to_owned()
            }
            Self::SecretNotFound(name) => format!("There is no Secret {name} in Kagami's namespace"),
            Self::SecretFaulty(fault) => {
                format!("The last good login, if any, stays in place for an hour at most: {fault}")
            }
            Self::AnotherLogin => {
                "Another ImageMirror has its images at the same place and another login: that of the one which is asked \
                 first counts"
                    .to_owned()
            }
            Self::Contested => {
                "In some namespace somebody changes or deletes the Secret kagami-pull again and again: it does not count \
                 there for a minute, and longer each time, up to an hour"
                    .to_owned()
            }
            Self::Foreign => {
                "In some namespace there is a Secret kagami-pull that is not Kagami's, and stays as it is: an Event there \
                 tells"
                    .to_owned()
            }
            Self::NotWritten => "In some namespace the Secret cannot be read or written: the companion's log tells why".to_owned(),
            Self::TooMany => format!("The mirror serves more than {LISTED} namespaces, and no more are listed"),
        };
        let kept = Reason::PullSecretNotReady.as_str();
        format!("{what}. Where Pods need it and it is not in place, images stay upstream ({kept}).")
    }
}
