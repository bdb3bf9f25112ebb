//! Makes a certificate authority and a serving pair, for trying out, for running without
//! files and for the companion of a cluster.
//!
//! The keys are ECDSA P-256: every client of Kubernetes takes them, and they sign many times
//! faster than RSA. Nothing here writes files or keeps a key anywhere.

use std::{fmt, net::IpAddr, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};

use crate::domain::time::Timestamp;

/// How far in the past certificates begin, for clients whose clock is behind.
pub const BEFORE: Duration = Duration::from_mins(5);

/// The common name of every authority.
const AUTHORITY: &str = "Kagami CA";

/// A certificate chain and its private key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The serving certificate first, then those that lead to the authority.
    pub certificate: String,
    pub key: String,
}

/// A serving pair and the certificate (PEM) of the authority that issued it.
#[derive(Clone, Debug)]
pub struct Issued {
    pub authority: String,
    pub pair: Pair,
}

/// A name that a serving certificate is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    Dns(String),
    Ip(IpAddr),
}

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A DNS name with characters that a certificate cannot hold.
    #[error("invalid DNS name {0:?} for a certificate")]
    InvalidName(String),
    /// The signing failed.
    #[error("cannot make a certificate")]
    Sign(#[from] rcgen::Error),
}

/// A certificate authority with its key in memory.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    /// Makes an authority that is valid from shortly before `now` until `validity` after it.
    pub fn new(now: Timestamp, validity: Duration) -> Result<Self, Error> {
        let mut params = params(AUTHORITY, now, validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
        })
    }

    /// Returns the authority that this certificate and key (PEM) make. The certificate must be one
    /// made here; it is not read.
    pub fn load(certificate: String, key: &str) -> Result<Self, Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        name(&mut params, AUTHORITY);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self {
            issuer: Issuer::new(params, KeyPair::from_pem(key)?),
            certificate,
        })
    }

    /// Returns the authority's private key as PEM.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Returns the authority's certificate as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Issues a pair that servers (for the names given) and clients can use.
    pub fn issue(&self, names: &[Name], now: Timestamp, validity: Duration) -> Result<Pair, Error> {
        let mut params = params("Kagami", now, validity)?;
        params.subject_alt_names = names
            .iter()
            .map(|name| match name {
                Name::Dns(dns) => match dns.as_str().try_into() {
                    Ok(dns) => Ok(SanType::DnsName(dns)),
                    Err(_) => Err(Error::InvalidName(dns.clone())),
                },
                Name::Ip(ip) => Ok(SanType::IpAddress(*ip)),
            })
            .collect::<Result<_, _>>()?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// Makes an authority and a serving pair; the authority's key is thrown away.
pub fn issue(names: &[Name], now: Timestamp, validity: Duration) -> Result<Issued, Error> {
    let authority = Authority::new(now, validity)?;
    let pair = authority.issue(names, now, validity)?;
    Ok(Issued {
        authority: authority.certificate,
        pair,
    })
}

fn params(common_name: &str, now: Timestamp, validity: Duration) -> Result<CertificateParams, Error> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |time: Timestamp| epoch + Duration::from_secs(time.as_millis() / 1000);
    let mut params = CertificateParams::new(Vec::new())?;
    name(&mut params, common_name);
    params.not_before = at(now.before(BEFORE));
    params.not_after = at(now.after(validity));
    Ok(params)
}

fn name(params: &mut CertificateParams, common_name: &str) {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
}

impl From<IpAddr> for Name {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip)
    }
}

impl From<&str> for Name {
    /// An IP address is one; everything else is a DNS name.
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Dns(text.to_owned()), Self::Ip)
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("certificate", &self.certificate)
            .field("key", &"(hidden)")
            .finish()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_certificate_can_hold_are_refused() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let error = issue(&["mirror.é".into()], now, BEFORE).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid DNS name \"mirror.é\" for a certificate"
        );
    }

    #[test]
    fn addresses_and_names_are_told_apart() {
        assert_eq!(Name::from("::1"), Name::Ip("::1".parse().unwrap()));
        assert_eq!(Name::from("a.b.svc"), Name::Dns("a.b.svc".to_owned()));
    }

    #[test]
    fn keys_are_not_printed() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let issued = issue(&["a".into()], now, BEFORE).unwrap();
        assert!(issued.pair.key.starts_with("-----BEGIN PRIVATE KEY-----"));
        assert!(!format!("{issued:?}").contains("PRIVATE"));
    }
}
