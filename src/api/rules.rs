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
    /// CEL that makes the message of the value, where it has the value in it.
    pub(super) expression: Option<&'static str>,
    /// The field that is at fault, below the value that carries the rule: `.namespaceSelector`.
    pub(super) field: Option<&'static str>,
}

impl Rule {
    fn to_json(&self) -> Value {
        let mut rule = json!({"rule": self.cel, "message": self.message});
        if let Some(expression) = self.expression {
            rule["messageExpression"] = expression.into();
        }
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
    expression: None,
    field: None,
};

pub(super) const IMMUTABLE_ENTRY: Rule = Rule {
    cel: "self == oldSelf",
    message: "is immutable: the object's name is made from it",
    expression: None,
    field: None,
};

pub(super) const PRIVATE_NEEDS_SELECTOR: Rule = Rule {
    cel: "self.sources.all(s, has(s.access) ? s.access == 'Public' : !has(s.credentials)) \
          || (has(self.namespaceSelector.matchLabels) && size(self.namespaceSelector.matchLabels) > 0) \
          || (has(self.namespaceSelector.matchExpressions) && size(self.namespaceSelector.matchExpressions) > 0)",
    message: "must select namespaces when a source is Private (the default of a source with credentials): \
              an empty selector would give private images to everybody",
    expression: None,
    field: Some(".namespaceSelector"),
};

/// `copy.policy` where a mirror fetches by itself.
pub(super) const COPY_NEEDS_HOSTED: Rule = Rule {
    cel: "!has(self.copy) || self.copy.policy == 'Off' || self.kind == 'Hosted'",
    message: "must be Off unless kind is Hosted: a PullThrough mirror fetches by itself",
    expression: None,
    field: Some(".copy.policy"),
};

pub(super) const TEMPLATE_NEEDS_REGISTRY: Rule = Rule {
    cel: "self.repository.contains('{registry}') || size(self.sources) == 1",
    message: "must contain {registry} when there is more than one source: else images of different \
              registries get one name",
    expression: None,
    field: Some(".repository"),
};

pub(super) const TEMPLATE_NEEDS_REPOSITORY: Rule = Rule {
    cel: "self.contains('{repository}')",
    message: "must contain {repository}",
    expression: None,
    field: None,
};

/// Whether an address is at fault already by what stands at its beginning.
macro_rules! spoiled {
    () => {
        "self.contains('://') || self.contains('*') \
         || !self.matches('^([^/]*[.:A-Z][^/]*|localhost)(/|$)') || self.matches('^[^/]*[.](/|$)')"
    };
}

/// What follows the scheme in an address, without slashes at its end.
macro_rules! rest {
    () => {
        "self.substring(self.indexOf('://') + 3).find('^.*[^/]')"
    };
}

/// What to write instead of an address with a scheme: without what a registry's API has more.
macro_rules! without_scheme {
    () => {
        concat!(
            "(",
            rest!(),
            ".matches('^[^/]*/v[12]$') ? ",
            rest!(),
            ".find('^[^/]*') : ",
            rest!(),
            ")"
        )
    };
}

/// What is wrong with a prefix; `domain::source` says it in the same words. The first that is broken tells.
pub(super) const PREFIX: [Rule; 7] = [
    Rule {
        cel: "!self.contains('://')",
        message: "leave out the scheme",
        expression: Some(concat!(
            "'cannot use prefix \"' + self + '\": leave out the scheme: write ' + ",
            without_scheme!()
        )),
        field: None,
    },
    Rule {
        cel: "self.contains('://') || !self.contains('*')",
        message: "a prefix has no wildcards",
        expression: Some(
            "'cannot use prefix \"' + self + '\": a prefix has no wildcards' + (self.matches('^[^*/][^*]*/[*/]+$') \
             ? ', and covers all that lies below it: write ' + self.find('^[^*]*[^*/]') \
             : ': name each registry by its host, as in docker.io')",
        ),
        field: None,
    },
    Rule {
        cel: "self.contains('://') || self.contains('*') \
              || self.matches('^([^/]*[.:A-Z][^/]*|localhost)(/|$)')",
        message: "must begin with a registry's host",
        expression: Some(
            "'cannot use prefix \"' + self + '\": it must begin with a registry\\'s host: docker.io/' \
             + (self.contains('/') || self == 'library' ? self : 'library/' + self) + ', for example'",
        ),
        field: None,
    },
    Rule {
        cel: "self.contains('://') || self.contains('*') || !self.matches('^[^/]*[.](/|$)')",
        message: "leave out the dot at the end of the host",
        expression: Some(
            "'cannot use prefix \"' + self + '\": leave out the \".\" at the end of the host: write ' \
             + self.find('^[^/]*[^./]') + self.find('/.*$')",
        ),
        field: None,
    },
    Rule {
        cel: concat!(spoiled!(), " || !self.endsWith('/')"),
        message: "leave out the slash at the end",
        expression: Some(
            "'cannot use prefix \"' + self + '\": leave out the \"/\" at the end: write ' + self.find('^.*[^/]')",
        ),
        field: None,
    },
    Rule {
        cel: concat!(spoiled!(), " || self.endsWith('/') || !self.matches('/.*[:@]')"),
        message: "must have neither tag nor digest",
        expression: Some(
            "'cannot use prefix \"' + self + '\": it must have neither tag nor digest: write ' \
             + self.find('^[^/]*/[^:@]*')",
        ),
        field: None,
    },
    Rule {
        cel: concat!(
            spoiled!(),
            " || self.endsWith('/') || self.matches('/.*[:@]') || !self.matches('/.*[A-Z]')"
        ),
        message: "must be in lower case",
        expression: Some("'cannot use prefix \"' + self + '\": the repository must be in lower case'"),
        field: None,
    },
];

/// What is wrong with a mirror's registry; `domain::mapping` says it in the same words.
pub(super) const REGISTRY: [Rule; 7] = [
    IMMUTABLE,
    Rule {
        cel: "!self.contains('://')",
        message: "leave out the scheme",
        expression: Some(concat!(
            "'cannot use registry \"' + self + '\": leave out the scheme, it belongs to endpoint.url: write ' + ",
            without_scheme!()
        )),
        field: None,
    },
    Rule {
        cel: "self.contains('://') || self.matches('^([^/]*[.:A-Z][^/]*|localhost)(/|$)')",
        message: "must begin with a host",
        expression: Some(
            "'cannot use registry \"' + self + '\": its first part must have a \".\" or a \":port\" or be \
             \"localhost\", else it is taken for a repository on Docker Hub'",
        ),
        field: None,
    },
    Rule {
        cel: "self.contains('://') || !self.matches('^[^/]*[.](/|$)')",
        message: "leave out the dot at the end of the host",
        expression: Some(
            "'cannot use registry \"' + self + '\": leave out the \".\" at the end of the host: write ' \
             + self.find('^[^/]*[^./]') + self.find('/.*$')",
        ),
        field: None,
    },
    Rule {
        cel: "!self.matches('^(?i:docker[.]io|(index|registry-1)[.]docker[.]io|((registry[.])?hub[.])?docker[.]com)(/|$)')",
        message: "cannot be Docker Hub",
        expression: Some(
            "'cannot use registry \"' + self + '\": Docker Hub cannot be a mirror, name a registry of your own'",
        ),
        field: None,
    },
    Rule {
        cel: concat!(spoiled!(), " || !self.endsWith('/')"),
        message: "leave out the slash at the end",
        expression: Some(
            "'cannot use registry \"' + self + '\": leave out the \"/\" at the end: write ' + self.find('^.*[^/]')",
        ),
        field: None,
    },
    Rule {
        cel: concat!(
            spoiled!(),
            " || self.endsWith('/') || !self.matches('/[^:@]*[A-Z][^:@]*$')"
        ),
        message: "must be in lower case",
        expression: Some("'cannot use registry \"' + self + '\": the repository must be in lower case'"),
        field: None,
    },
];

/// What is wrong with `endpoint.url`: the first that is broken tells, so each later one holds where an earlier
/// one is broken.
pub(super) const ENDPOINT_URL: [Rule; 6] = [
    Rule {
        cel: "self.matches('^https?://')",
        message: "must begin with https:// or http://, as in https://mirror.kagami.svc:5000",
        expression: None,
        field: None,
    },
    Rule {
        cel: "!self.matches('^https?://[^/?#]*@')",
        message: "must hold no user and no password: put them into a Secret, and name it in \
                  spec.endpoint.credentials.secretRef",
        expression: None,
        field: None,
    },
    Rule {
        cel: "!self.matches('^https?://[^@?#]*(/[^?#]*)?[?#]')",
        message: "must have no query and no fragment: nothing after the port",
        expression: None,
        field: None,
    },
    Rule {
        cel: "!self.matches('^https?://[^/?#@]*/[^?#]+$')",
        message: "must have no path: that of spec.registry is used, and the registry's /v2/ comes by itself",
        expression: None,
        field: None,
    },
    Rule {
        cel: "!self.matches('^https?://[^/?#@]*[.](:[^/?#@]*)?/?$')",
        message: "must not end its host with a dot; leave it away, a name with a dot inside is looked up as it is",
        expression: None,
        field: None,
    },
    Rule {
        cel: "self.matches('^https?://([^/?#]*@|[^?#]*[?#]|[^/?#]*/[^?#]+$|[^/?#]*[.](:[^/?#]*)?/?$)') \
              || !self.matches('^https?://') \
              || self.matches('^https?://([[][0-9a-fA-F:]+[]]|[a-zA-Z0-9]+((-+|[.])[a-zA-Z0-9]+)*)' \
              + '(:([0-9]{1,4}|[0-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?/?$')",
        message: "must have a host after the scheme, and at most a port up to 65535 after it",
        expression: None,
        field: None,
    },
];

/// What is wrong with `endpoint.caBundle`, likewise.
pub(super) const CA_BUNDLE: [Rule; 2] = [
    Rule {
        cel: "!self.contains('PRIVATE KEY-----')",
        message: "must hold no private key, which everybody who reads this resource would have: make another \
                  key, and leave this one out",
        expression: None,
        field: None,
    },
    Rule {
        cel: "self.contains('-----BEGIN CERTIFICATE-----') || self.contains('PRIVATE KEY-----')",
        message: "must hold certificates in PEM: -----BEGIN CERTIFICATE-----",
        expression: None,
        field: None,
    },
];

/// `endpoint.trust` says what counts beside a bundle.
pub(super) const TRUST_NEEDS_BUNDLE: Rule = Rule {
    cel: "!has(self.trust) || has(self.caBundle)",
    message: "trust has no effect without caBundle: the system's authorities are trusted then",
    expression: None,
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
/// Not below what a usual pull takes; and a pull that hangs is told before containerd's own timeout, if at all.
pub(super) const HANG_AFTER: Range = Range::new(Duration::from_secs(10), Duration::from_hours(1));
pub(super) const FRESHNESS: Range = Range::new(Duration::from_secs(1), Duration::from_hours(720));

/// What a size looks like: a whole number with a unit of bytes.
pub(super) const SIZE_PATTERN: &str = "^[1-9][0-9]{0,5}(Mi|Gi|Ti)$";

/// Returns the bytes that a text of the form of [`SIZE_PATTERN`] names.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(2)?)?;
    let is_number = (1..=6).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    let unit = match unit {
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1_u64 << 40,
        _ => return None,
    };
    let number: u64 = number
        .parse()
        .ok()
        .filter(|_| is_number && !number.starts_with('0'))?;
    number.checked_mul(unit)
}

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
    fn sizes_are_whole_numbers_with_a_unit() {
        for (text, expected) in [
            ("1Mi", Some(1 << 20)),
            ("20Gi", Some(20 << 30)),
            ("999999Ti", Some(999_999 << 40)),
            ("1000000Ti", None),
            ("0Gi", None),
            ("01Gi", None),
            ("1.5Gi", None),
            ("+1Gi", None),
            ("1G", None),
            ("Gi", None),
            ("1\u{e9}", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text}");
        }
    }

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
