//! The rules that both the API server (as CEL) and `mirror` (in Rust, for files) apply, with one
//! message for both.
//!
//! The bounds on strings and lists in `v1alpha1` keep the estimated cost of these expressions below
//! what the API server accepts.

use std::time::Duration;

use serde_json::{Value, json};

/// A CEL rule with the message of whoever finds it broken.
pub(super) struct Rule {
    pub(super) cel: &'static str,
    pub(super) message: &'static str,
    /// The field that is at fault, below the value that carries the rule: `.namespaceSelector`.
    pub(super) field: Option<&'static str>,
}

impl Rule {
    fn to_json(&self) -> Value {
        let mut rule = json!({"rule": self.cel, "message": self.message});
        if let Some(field) = self.field {
            rule["fieldPath"] = field.into();
        }
        rule
    }
}

/// Returns the value of `x-kubernetes-validations`.
pub(super) fn validations(rules: &[Rule]) -> Value {
    rules.iter().map(Rule::to_json).collect()
}

pub(super) const IMMUTABLE: Rule = Rule {
    cel: "self == oldSelf",
    message: "is immutable: create another ImageMirror instead",
    field: None,
};

pub(super) const IMMUTABLE_ENTRY: Rule = Rule {
    cel: "self == oldSelf",
    message: "is immutable: the object's name is made from it",
    field: None,
};

pub(super) const PRIVATE_NEEDS_SELECTOR: Rule = Rule {
    cel: "self.sources.all(s, has(s.access) ? s.access == 'Public' : !has(s.credentials)) \
          || (has(self.namespaceSelector.matchLabels) && size(self.namespaceSelector.matchLabels) > 0) \
          || (has(self.namespaceSelector.matchExpressions) && size(self.namespaceSelector.matchExpressions) > 0)",
    message: "must select namespaces when a source is Private (the default of a source with credentials): \
              an empty selector would give private images to everybody",
    field: Some(".namespaceSelector"),
};

pub(super) const TEMPLATE_NEEDS_REGISTRY: Rule = Rule {
    cel: "self.repository.contains('{registry}') || size(self.sources) == 1",
    message: "must contain {registry} when there is more than one source: else images of different \
              registries get one name",
    field: Some(".repository"),
};

pub(super) const TEMPLATE_NEEDS_REPOSITORY: Rule = Rule {
    cel: "self.contains('{repository}')",
    message: "must contain {repository}",
    field: None,
};

pub(super) const ENDPOINT_URL: Rule = Rule {
    cel: "self.matches('^https?://[^/?#@ ]+/?$')",
    message: "must be http:// or https:// with a host and at most a port: https://mirror.kagami.svc:5000",
    field: None,
};

/// The durations that a field accepts.
pub(super) struct Range {
    pub(super) shortest: Duration,
    pub(super) longest: Duration,
}

impl Range {
    const fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest, longest }
    }

    pub(super) fn message(&self) -> String {
        let (shortest, longest) = (to_text(self.shortest), to_text(self.longest));
        format!("must be between {shortest} and {longest}")
    }

    pub(super) fn validations(&self) -> Value {
        let (shortest, longest) = (to_text(self.shortest), to_text(self.longest));
        json!([{
            "rule": format!("duration(self) >= duration('{shortest}') && duration(self) <= duration('{longest}')"),
            "message": self.message(),
        }])
    }
}

pub(super) const INTERVAL: Range = Range::new(Duration::from_millis(100), Duration::from_mins(10));
pub(super) const TIMEOUT: Range = Range::new(Duration::from_millis(10), Duration::from_mins(1));
/// Twice the companion's heartbeat at least: one late renewal must not make the state stale.
pub(super) const STALE_AFTER: Range = Range::new(Duration::from_secs(10), Duration::from_mins(10));
pub(super) const FRESHNESS: Range = Range::new(Duration::from_secs(1), Duration::from_hours(720));

/// What a duration looks like: whole numbers with units, at most four of them (the form that
/// Gateway API's GEP-2257 took from Go's `time.ParseDuration`).
pub(super) const DURATION_PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// Returns the duration that a text of the form of [`DURATION_PATTERN`] names.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail
            .find(|character: char| character.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        if digits == 0 || digits > 5 {
            return None;
        }
        let number: u64 = number.parse().ok()?;
        total += match unit {
            "h" => Duration::from_hours(number),
            "m" => Duration::from_mins(number),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        parts += 1;
        rest = tail;
    }
    (1..=4).contains(&parts).then_some(total)
}

/// Returns the shortest text that [`parse_duration`] reads as this duration, to the millisecond.
pub(super) fn to_text(duration: Duration) -> String {
    let mut millis = duration.as_millis();
    let mut text = String::new();
    for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if millis >= length {
            text.push_str(&(millis / length).to_string());
            text.push_str(unit);
            millis %= length;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_whole_numbers_with_units() {
        for (text, millis) in [
            ("2s", 2_000),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
            ("1s500ms", 1_500),
            ("0s", 0),
        ] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(text), Some(duration), "{text}");
            assert_eq!(to_text(duration), text);
        }
        for text in [
            "",
            "2",
            "s",
            "1.5s",
            "-1s",
            "2 s",
            "1d",
            "2s ",
            "123456s",
            "1s1s1s1s1s",
            "٣s",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
