//! What a server's certificate says of itself: for people, who are to mend it, and for the one certificate
//! that is trusted as it is.

use std::{fmt, net::IpAddr};

use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::FromDer as _,
    public_key::PublicKey,
    time::ASN1Time,
    x509::{SubjectPublicKeyInfo, X509Name},
};

use crate::domain::{foreign::visible, time::Timestamp};

/// How many names are told; some certificates have hundreds.
const NAMES: usize = 6;

/// How much of each text is told.
const LONGEST_TEXT: usize = 100;

/// The shortest RSA keys by which anybody is believed.
const SHORTEST_RSA: usize = 2048;

/// A certificate as people speak of it.
#[derive(Debug)]
pub(super) struct Certificate {
    subject: String,
    issuer: String,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
    /// The first DNS names and addresses that it is good for.
    names: Vec<String>,
    more_names: usize,
    pub(super) is_authority: bool,
    /// Whether its own key signed it, as far as its names tell.
    pub(super) is_self_signed: bool,
    /// Whether its purposes allow a server to use it.
    pub(super) is_for_servers: bool,
    /// The length of an RSA key that is too short.
    pub(super) short_key: Option<usize>,
}

impl Certificate {
    /// Reads a certificate; returns none if it is none.
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        let general = alternatives.map_or(&[][..], |names| &names.value.general_names);
        let mut names = general.iter().filter_map(name);
        let purposes = certificate.extended_key_usage().ok().flatten();
        Some(Self {
            subject: distinguished(certificate.subject()),
            issuer: distinguished(certificate.issuer()),
            not_before: time(certificate.validity().not_before),
            not_after: time(certificate.validity().not_after),
            names: names.by_ref().take(NAMES).collect(),
            more_names: names.count(),
            is_authority: certificate.is_ca(),
            // Before they are cut for people.
            is_self_signed: certificate.subject().as_raw() == certificate.issuer().as_raw(),
            is_for_servers: purposes.is_none_or(|purposes| purposes.value.server_auth || purposes.value.any),
            short_key: short_key(certificate.public_key()),
        })
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            subject,
            issuer,
            not_before,
            not_after,
            names,
            more_names,
            is_self_signed,
            ..
        } = self;
        write!(f, "subject {subject}, ")?;
        if *is_self_signed {
            f.write_str("signed by itself")?;
        } else {
            write!(f, "issuer {issuer}")?;
        }
        write!(f, ", valid from {not_before} until {not_after}, ")?;
        if names.is_empty() {
            return f.write_str("for no name at all");
        }
        write!(f, "for {}", names.join(", "))?;
        if *more_names > 0 {
            write!(f, " and {more_names} more")?;
        }
        Ok(())
    }
}

fn distinguished(name: &X509Name<'_>) -> String {
    match name.to_string() {
        text if text.is_empty() => "without a name".to_owned(),
        text => short(&text),
    }
}

/// Returns a text of a certificate as it may be shown.
fn short(text: &str) -> String {
    visible(text).chars().take(LONGEST_TEXT).collect()
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(short(name)),
        GeneralName::IPAddress(bytes) => {
            let address = <[u8; 4]>::try_from(*bytes)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

fn time(time: ASN1Time) -> Timestamp {
    let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
    Timestamp::from_millis(seconds.saturating_mul(1000))
}

fn short_key(key: &SubjectPublicKeyInfo<'_>) -> Option<usize> {
    match key.parsed() {
        Ok(PublicKey::RSA(key)) => Some(key.key_size()).filter(|bits| *bits < SHORTEST_RSA),
        _ => None,
    }
}
