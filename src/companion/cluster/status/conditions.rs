//! The conditions of a status: their types, and how one is set.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff,
};

use crate::{
    api::FORWARD_ALLOWED,
    domain::{foreign::visible, time::Timestamp},
};

/// How long a condition's message may be (Kubernetes allows 32,768 bytes).
pub(super) const MESSAGE: usize = 4096;

/// What a condition of an ImageMirror speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::companion::cluster) enum ConditionType {
    Ready,
    UnknownFields,
    MirrorsOverlap,
    AccessNotSeparated,
    Healthy,
    CredentialsValid,
    SchemaCurrent,
    NodesCanPull,
    ImagesReadable,
    SweepInTime,
    CopyCredentialsValid,
    Writable,
    ForwardAllowed,
    OwnersLeftAlone,
    OriginalsRecorded,
    PullSecretsInPlace,
}

impl ConditionType {
    /// Every type.
    pub(super) const ALL: [Self; 16] = [
        Self::Ready,
        Self::UnknownFields,
        Self::MirrorsOverlap,
        Self::AccessNotSeparated,
        Self::Healthy,
        Self::CredentialsValid,
        Self::SchemaCurrent,
        Self::NodesCanPull,
        Self::ImagesReadable,
        Self::SweepInTime,
        Self::CopyCredentialsValid,
        Self::Writable,
        Self::ForwardAllowed,
        Self::OwnersLeftAlone,
        Self::OriginalsRecorded,
        Self::PullSecretsInPlace,
    ];

    /// Returns its name as users see it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::UnknownFields => "UnknownFields",
            Self::MirrorsOverlap => "MirrorsOverlap",
            Self::AccessNotSeparated => "AccessNotSeparated",
            Self::Healthy => "Healthy",
            Self::CredentialsValid => "CredentialsValid",
            Self::SchemaCurrent => "SchemaCurrent",
            Self::NodesCanPull => "NodesCanPull",
            Self::ImagesReadable => "ImagesReadable",
            Self::SweepInTime => "SweepInTime",
            Self::CopyCredentialsValid => "CopyCredentialsValid",
            Self::Writable => "Writable",
            Self::ForwardAllowed => FORWARD_ALLOWED,
            Self::OwnersLeftAlone => "OwnersLeftAlone",
            Self::OriginalsRecorded => "OriginalsRecorded",
            Self::PullSecretsInPlace => "PullSecretsInPlace",
        }
    }
}

/// Whether what a condition speaks of holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConditionStatus {
    True,
    False,
    Unknown,
}

impl ConditionStatus {
    /// Returns its name as Kubernetes has it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// The conditions of one status, and what those that are set now speak of.
pub(super) struct Conditions<'a> {
    pub(super) list: &'a mut Vec<Condition>,
    pub(super) generation: i64,
    pub(super) now: Timestamp,
}

impl Conditions<'_> {
    /// Whether a condition has that reason now.
    pub(super) fn says(&self, type_: ConditionType, reason: &str) -> bool {
        let mut conditions = self.list.iter();
        conditions.any(|condition| condition.type_ == type_.as_str() && condition.reason == reason)
    }
    /// Notes that a condition holds for the present generation too.
    pub(super) fn observed(&mut self, type_: ConditionType) {
        let generation = self.generation;
        let mut of_type = self
            .list
            .iter_mut()
            .filter(|condition| condition.type_ == type_.as_str());
        if let Some(condition) = of_type.next() {
            condition.observed_generation = Some(generation);
        }
    }

    /// Whether a condition was ever told.
    pub(super) fn has(&self, type_: ConditionType) -> bool {
        self.list
            .iter()
            .any(|condition| condition.type_ == type_.as_str())
    }

    pub(super) fn is_false(&self, type_: ConditionType) -> bool {
        let is_it = |condition: &&Condition| condition.type_ == type_.as_str();
        self.list
            .iter()
            .find(is_it)
            .is_some_and(|condition| condition.status == ConditionStatus::False.as_str())
    }

    /// Sets a condition, which keeps the time of its last transition where its status is the same.
    pub(super) fn set(&mut self, type_: ConditionType, status: ConditionStatus, reason: &str, message: &str) {
        let (type_, status) = (type_.as_str(), status.as_str());
        let at = self.list.iter().position(|condition| condition.type_ == type_);
        let since = at
            .and_then(|at| self.list.get(at))
            .filter(|condition| condition.status == status)
            .map_or_else(
                || time(self.now),
                |condition| condition.last_transition_time.clone(),
            );
        let mut message = visible(message).into_owned();
        message.truncate(message.floor_char_boundary(MESSAGE));
        let condition = Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: since,
            observed_generation: Some(self.generation),
        };
        match at.and_then(|at| self.list.get_mut(at)) {
            Some(slot) => *slot = condition,
            None => self.list.push(condition),
        }
    }
}

/// Returns a time to the second, as conditions have it.
pub(in crate::companion::cluster) fn time(at: Timestamp) -> Time {
    let seconds = i64::try_from(at.as_millis() / 1000).unwrap_or(i64::MAX);
    Time(jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX))
}
