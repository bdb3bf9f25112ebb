//! Whom a registry's client trusts to be whom, and in words why it does not.
//!
//! A CA bundle alone counts for the endpoint's own host, unless its owner widens that; for the other hosts
//! that it names, as token services and storage, the system's authorities count too. A certificate that
//! stands in the bundle itself is accepted from whoever shows that he has its key, for its own names and its
//! own time, as nodes accept it: it needs no authority above it, and may be one.

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use reqwest::Url;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError,
    RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
    version::{TLS12, TLS13},
};

use super::certificate::Certificate;
use crate::domain::{foreign::visible, mirror::Trust, time::Timestamp};

/// How much is told of one certificate: an Event has room for about 1,000 characters.
const LONGEST_WORDS: usize = 800;

/// Why a server is not believed to be who it should be, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Distrust(Box<str>);

/// Checks the certificates of the servers that one endpoint's client talks to.
struct Verifier {
    /// The endpoint's own host.
    own: Option<Box<str>>,
    trust: Trust,
    bundle: Vec<CertificateDer<'static>>,
    /// Trusts the bundle alone; none without one.
    narrow: Option<Arc<dyn ServerCertVerifier>>,
    /// Trusts the bundle and the system's authorities; none if there are neither. Where there is a bundle, the
    /// system's are read when another host is asked first.
    wide: OnceLock<Option<Arc<dyn ServerCertVerifier>>>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("own", &self.own)
            .field("trust", &self.trust)
            .finish_non_exhaustive()
    }
}

/// Returns the TLS settings of an endpoint's client. Without a bundle the system must have authorities,
/// unless only plain HTTP is spoken with the endpoint.
pub(super) fn config(
    base: &Url,
    bundle: Vec<CertificateDer<'static>>,
    trust: Trust,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let narrow = match bundle.as_slice() {
        [] => None,
        certificates => Some(alone(certificates, &provider)?),
    };
    let wide = OnceLock::new();
    if narrow.is_none() {
        let system = match with_system(&[], &provider) {
            Ok(verifier) => Some(verifier),
            Err(error) if base.scheme() == "https" => return Err(error),
            Err(_) => None,
        };
        wide.get_or_init(|| system);
    }
    let verifier = Verifier {
        own: base.host_str().map(bare).map(usual),
        trust,
        bundle,
        narrow,
        wide,
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Returns who trusts these authorities and no others.
fn alone(
    certificates: &[CertificateDer<'static>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone())?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    Ok(verifier.map_err(|error| Error::Other(OtherError(Arc::new(error))))?)
}

/// Returns who trusts these authorities and the system's.
fn with_system(
    certificates: &[CertificateDer<'static>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let certificates = certificates.iter().cloned();
    let verifier =
        rustls_platform_verifier::Verifier::new_with_extra_roots(certificates, Arc::clone(provider))?;
    Ok(Arc::new(verifier))
}

/// Returns a host as server names have it: addresses are written in several ways.
fn usual(host: &str) -> Box<str> {
    let address: Result<IpAddr, _> = host.parse();
    address.map_or_else(|_| host.into(), |address| address.to_string().into())
}

/// Returns a host without what is written around it in a URL.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches([']', '.'])
}

/// Returns why a handshake failed, in words.
pub(super) fn words(error: &Error) -> Box<str> {
    let text = match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => {
            if let Some(Distrust(words)) = cause.downcast_ref() {
                return words.clone();
            }
            cause.to_string()
        }
        Error::InvalidMessage(_) => "what answers there does not speak TLS; is it plain http?".to_owned(),
        Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "the server does not know the name that it was asked for".to_owned()
        }
        Error::AlertReceived(alert) => format!("the server ends the handshake: {alert:?}"),
        other => other.to_string(),
    };
    bounded(&text)
}

fn bounded(text: &str) -> Box<str> {
    let visible = visible(text);
    visible.chars().take(LONGEST_WORDS).collect::<String>().into()
}

/// Returns the error that a handshake ends with because of a certificate.
fn distrust(problem: &str, certificate: Option<&Certificate>) -> Error {
    let words = match certificate {
        Some(certificate) => format!("{problem} ({certificate})"),
        None => problem.to_owned(),
    };
    let distrust = Distrust(bounded(&words));
    CertificateError::Other(OtherError(Arc::new(distrust))).into()
}

impl Verifier {
    fn wide(&self) -> Option<&Arc<dyn ServerCertVerifier>> {
        let wide = self
            .wide
            .get_or_init(|| with_system(&self.bundle, &self.provider).ok());
        wide.as_ref()
    }

    /// Whether the bundle alone counts for a server.
    fn is_narrow(&self, name: &str) -> bool {
        let is_own = self
            .own
            .as_deref()
            .is_some_and(|own| own.eq_ignore_ascii_case(name));
        self.narrow.is_some() && is_own && self.trust == Trust::Bundle
    }

    /// Checks a certificate that stands in the bundle itself: what is left is for whom and when it is good.
    fn check_itself(
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(certificate);
        let (Ok(parsed), Some(read)) = (parsed, Certificate::read(certificate)) else {
            return Err(distrust("the certificate cannot be read", None));
        };
        let now = Timestamp::from_millis(now.as_secs().saturating_mul(1000));
        if let Some(problem) = out_of_time(&read, now) {
            return Err(distrust(problem, Some(&read)));
        }
        if verify_server_name(&parsed, name).is_err() {
            return Err(distrust(&other_names(name), Some(&read)));
        }
        if !read.is_for_servers {
            return Err(distrust(NOT_FOR_SERVERS, Some(&read)));
        }
        Ok(ServerCertVerified::assertion())
    }

    /// Returns what is wrong with a certificate, in words.
    fn objection(
        &self,
        error: &CertificateError,
        certificate: &Certificate,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Error {
        let at = Timestamp::from_millis(now.as_secs().saturating_mul(1000));
        if let Some(problem) = out_of_time(certificate, at) {
            return distrust(problem, Some(certificate));
        }
        let whom = self.whom(&host_of(name));
        let problem = match error {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                let others = chain.iter().chain(&self.bundle);
                let mut others = others.filter_map(|other| Certificate::read(other));
                let authority = others.find(|other| out_of_time(other, at).is_some());
                let authority = authority.map_or_else(String::new, |other| format!(": {other}"));
                format!("an authority above the certificate has ended or not begun{authority}; below it")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                other_names(name)
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                NOT_FOR_SERVERS.to_owned()
            }
            // What the system's verifier says of a purpose is its own.
            CertificateError::Other(_) if !certificate.is_for_servers => NOT_FOR_SERVERS.to_owned(),
            _ if certificate.is_authority => format!(
                "the certificate is an authority's (CA:TRUE), which may be a server's only where it stands in \
                 caBundle itself: put it there, or make one with CA:FALSE that is signed by {whom}"
            ),
            CertificateError::UnknownIssuer if certificate.is_self_signed => {
                "the certificate is signed by itself, and does not stand in caBundle".to_owned()
            }
            CertificateError::UnknownIssuer => format!("the certificate is not signed by {whom}"),
            CertificateError::BadSignature => format!(
                "the certificate is not signed by {whom}: the authority of its issuer's name there has another \
                 key"
            ),
            other => format!("the certificate cannot be used: {other}"),
        };
        distrust(&problem, Some(certificate))
    }

    /// Returns in words whose signature counts for a server.
    fn whom(&self, host: &str) -> &'static str {
        if self.is_narrow(host) {
            return "an authority in caBundle";
        }
        match (&self.narrow, self.wide()) {
            (Some(_), Some(_)) => "an authority in caBundle or of the system",
            (Some(_), None) => "an authority in caBundle (the system has none)",
            (None, Some(_)) => "an authority of the system, and there is no caBundle",
            (None, None) => "anybody known: there is no caBundle, and the system has no authorities",
        }
    }

    fn signed(
        result: Result<HandshakeSignatureValid, Error>,
        certificate: &CertificateDer<'_>,
    ) -> Result<HandshakeSignatureValid, Error> {
        result.map_err(|error| {
            let read = Certificate::read(certificate);
            let short = read.as_ref().and_then(|read| read.short_key);
            let problem = match short {
                Some(bits) => {
                    format!("the certificate's RSA key has {bits} bits, and at least 2048 are asked for")
                }
                None => format!("the server does not show that it has the certificate's key: {error}"),
            };
            distrust(&problem, read.as_ref())
        })
    }
}

const NOT_FOR_SERVERS: &str = "the certificate is not for servers (extended key usage)";

fn other_names(name: &ServerName<'_>) -> String {
    format!("the certificate is for other names than {}", host_of(name))
}

fn host_of(name: &ServerName<'_>) -> String {
    bare(&name.to_str()).to_owned()
}

/// Returns what is wrong with a certificate's time, if something is.
fn out_of_time(certificate: &Certificate, now: Timestamp) -> Option<&'static str> {
    if certificate.not_after < now {
        Some("the certificate has ended")
    } else if now < certificate.not_before {
        Some("the certificate is not valid yet")
    } else {
        None
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.bundle.iter().any(|trusted| trusted == end_entity) {
            return Self::check_itself(end_entity, server_name, now);
        }
        let check = |by: Option<&Arc<dyn ServerCertVerifier>>| match by {
            Some(by) => by.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        let is_narrow = self.is_narrow(&host_of(server_name));
        let own = || self.narrow.as_ref().filter(|_| is_narrow);
        let checked = check(own().or_else(|| self.wide()));
        let Err(Error::InvalidCertificate(error)) = checked else {
            return checked;
        };
        // Others are no matter of who signed, and the system's authorities are read for the first time here.
        let is_of_signer = matches!(
            error,
            CertificateError::UnknownIssuer | CertificateError::BadSignature
        );
        if is_narrow && is_of_signer && check(self.wide()).is_ok() {
            let problem = "the certificate is not signed by an authority in caBundle but by one of the system, \
                           which spec.endpoint.trust: BundleAndSystem trusts as well";
            return Err(distrust(problem, Certificate::read(end_entity).as_ref()));
        }
        let Some(certificate) = Certificate::read(end_entity) else {
            return Err(distrust(
                &format!("the certificate cannot be read: {error}"),
                None,
            ));
        };
        Err(self.objection(&error, &certificate, intermediates, server_name, now))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        Self::signed(
            verify_tls12_signature(message, certificate, signature, algorithms),
            certificate,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        Self::signed(
            verify_tls13_signature(message, certificate, signature, algorithms),
            certificate,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_alone_counts_for_the_endpoints_own_host_however_it_is_written() {
        for (url, name) in [
            ("https://mirror.test", "mirror.test"),
            ("https://Mirror.test.:5000", "MIRROR.test"),
            ("https://10.0.0.1:5000", "10.0.0.1"),
            ("https://[fd00:0:0::1]:5000", "fd00::1"),
            ("https://[::ffff:10.0.0.1]:5000", "::ffff:10.0.0.1"),
        ] {
            let base = Url::parse(url).unwrap();
            let own = base.host_str().map(bare).map(usual).unwrap();
            let name = ServerName::try_from(name).unwrap();
            assert!(own.eq_ignore_ascii_case(&host_of(&name)), "{url}: {own}");
        }
    }
}
