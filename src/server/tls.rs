//! The serving certificate and the authorities of clients, replaced while connections are served.
//!
//! - Files are compared by their bytes every few seconds: a watch on a file ends with the first
//!   rotation that the kubelet does, because it swaps a symbolic link above the file.
//! - What is read takes effect only if it is complete: a key that fits, a certificate that is valid
//!   now. Otherwise what was in force stays in force, and [`Certificate::fault`] says why.
//! - Everything is in one `ServerConfig` that is swapped whole, and sessions are never resumed (the
//!   API server keeps none), so each handshake is held to the present files.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use tokio::{sync::watch, time::MissedTickBehavior};
use yasna::{ASN1Error, ASN1ErrorKind, BERReader, tags};

use crate::{
    certificates::Pair,
    domain::time::Timestamp,
    tasks::{Shutdown, Stage},
    telemetry::chain,
};

/// Where the pair comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Two PEM files, read again when they change.
    Files { certificate: PathBuf, key: PathBuf },
    /// A pair that stays.
    Memory(Pair),
}

/// What to serve with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub pair: Source,
    /// A PEM file of authorities; if given, clients need a certificate that one of them issued. It
    /// is read again when it changes.
    pub client_authorities: Option<PathBuf>,
}

/// The certificate in force and what became of the last attempt to replace it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The end of its validity.
    pub not_after: Timestamp,
    /// How often what was in force has been replaced.
    pub replacements: u64,
    /// How often what was read was refused, each cause counted once until it changes.
    pub faults: u64,
    /// Why what lies in the files now is refused; absent if it is in force.
    pub fault: Option<String>,
}

/// Why files or a pair cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no PEM certificates in {what}")]
    NoCertificate { what: &'static str },
    #[error("malformed PEM in {what}")]
    Pem {
        what: &'static str,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("malformed serving certificate")]
    Malformed(#[source] ASN1Error),
    #[error("the serving certificate is not valid before {0}, by the clock of this machine")]
    NotYetValid(Timestamp),
    #[error("the serving certificate has expired at {0}, by the clock of this machine")]
    Expired(Timestamp),
    /// The key does not belong to the certificate, or rustls knows no use for one of them.
    #[error("the certificate and the key cannot be used together")]
    Unusable(#[source] rustls::Error),
    #[error("the client authorities cannot be used")]
    ClientAuthorities(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The TLS settings in force; clones follow the same [`Reloader`].
#[derive(Clone)]
pub struct Tls {
    config: watch::Receiver<Arc<ServerConfig>>,
    certificate: watch::Receiver<Certificate>,
}

impl Tls {
    /// Returns the settings for the next handshake.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.config.borrow().clone()
    }

    /// Returns the certificate in force, and those that follow it.
    pub fn certificate(&self) -> watch::Receiver<Certificate> {
        self.certificate.clone()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("certificate", &*self.certificate.borrow())
            .finish_non_exhaustive()
    }
}

/// Replaces what [`Tls`] serves with when the files change.
#[derive(Debug)]
pub struct Reloader {
    settings: Settings,
    in_force: Material,
    config: watch::Sender<Arc<ServerConfig>>,
    certificate: watch::Sender<Certificate>,
}

/// Reads and checks what to serve with, for the first time.
pub async fn load(settings: Settings, now: Timestamp) -> Result<(Tls, Reloader), Error> {
    let material = Material::read(&settings).await?;
    let (config, not_after) = material.check(now)?;
    let (config_sender, config) = watch::channel(config);
    let (certificate_sender, certificate) = watch::channel(Certificate {
        not_after,
        replacements: 0,
        faults: 0,
        fault: None,
    });
    let reloader = Reloader {
        settings,
        in_force: material,
        config: config_sender,
        certificate: certificate_sender,
    };
    Ok((Tls { config, certificate }, reloader))
}

impl Reloader {
    /// Looks at the files every `interval` until the process stops.
    pub async fn run(mut self, interval: Duration, now: impl Fn() -> Timestamp, mut shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.reached(Stage::Stopping) => return,
                _ = ticks.tick() => self.look(now()).await,
            }
        }
    }

    /// Looks at the files once. What is refused is tried again the next time, even unchanged: it
    /// may only have been read between two writes, or not be valid yet.
    pub async fn look(&mut self, now: Timestamp) {
        match Material::read(&self.settings).await {
            Ok(found) if found == self.in_force => {
                self.certificate
                    .send_if_modified(|state| state.fault.take().is_some());
            }
            Ok(found) => match found.check(now) {
                Ok((config, not_after)) => {
                    self.in_force = found;
                    self.config.send_replace(config);
                    self.certificate.send_modify(|state| {
                        state.not_after = not_after;
                        state.replacements += 1;
                        state.fault = None;
                    });
                    tracing::info!(not_after = not_after.as_millis(), "serving certificate replaced");
                }
                Err(error) => self.refuse(&error),
            },
            Err(error) => self.refuse(&error),
        }
    }

    fn refuse(&self, error: &Error) {
        let text = chain(error);
        self.certificate.send_if_modified(|state| {
            if state.fault.as_deref() == Some(&text) {
                return false;
            }
            tracing::error!(error = text, "the former serving certificate stays in force");
            state.faults += 1;
            state.fault = Some(text);
            true
        });
    }
}

/// The bytes that the settings name.
#[derive(PartialEq, Eq)]
struct Material {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_authorities: Option<Vec<u8>>,
}

impl Material {
    async fn read(settings: &Settings) -> Result<Self, Error> {
        let (certificate, key) = match &settings.pair {
            Source::Files { certificate, key } => (read(certificate).await?, read(key).await?),
            Source::Memory(pair) => (pair.certificate.clone().into(), pair.key.clone().into()),
        };
        let client_authorities = match &settings.client_authorities {
            Some(path) => Some(read(path).await?),
            None => None,
        };
        Ok(Self {
            certificate,
            key,
            client_authorities,
        })
    }

    /// Returns the settings made of these bytes and the end of the certificate's validity.
    fn check(&self, now: Timestamp) -> Result<(Arc<ServerConfig>, Timestamp), Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(&self.certificate, "the serving certificate")?;
        let what = "the serving key";
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|source| Error::Pem { what, source })?;

        let (not_before, not_after) = validity(&chain[0]).map_err(Error::Malformed)?;
        if now < not_before {
            return Err(Error::NotYetValid(not_before));
        }
        if now > not_after {
            return Err(Error::Expired(not_after));
        }
        let certified = CertifiedKey::from_der(chain, key, &provider).map_err(Error::Unusable)?;

        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(Error::Unusable)?;
        let builder = match &self.client_authorities {
            None => builder.with_no_client_auth(),
            Some(pem) => builder.with_client_cert_verifier(client_verifier(pem, provider)?),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok((Arc::new(config), not_after))
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").finish_non_exhaustive()
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, Error> {
    tokio::fs::read(path).await.map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// Returns at least one certificate.
fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::Pem { what, source })?;
    if certificates.is_empty() {
        return Err(Error::NoCertificate { what });
    }
    Ok(certificates)
}

fn client_verifier(
    pem: &[u8],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, "the client authorities")? {
        roots
            .add(certificate)
            .map_err(|error| Error::ClientAuthorities(error.into()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| Error::ClientAuthorities(error.into()))
}

/// Returns from when until when the first certificate of a PEM text is valid; none if it cannot be
/// read.
pub fn validity_of(pem: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let chain = certificates(pem, "a certificate").ok()?;
    validity(chain.first()?).ok()
}

/// Returns from when until when a certificate is valid (RFC 5280, 4.1: the fifth field of a
/// `TBSCertificate`, before which only the version may be absent).
fn validity(certificate: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), ASN1Error> {
    yasna::parse_der(certificate, |reader| {
        reader.read_sequence(|reader| {
            let validity = reader.next().read_sequence(|reader| {
                reader.read_optional(|reader| reader.read_tagged(yasna::Tag::context(0), skip))?;
                let (_serial, _algorithm, _issuer) =
                    (skip(reader.next())?, skip(reader.next())?, skip(reader.next())?);
                let validity = reader
                    .next()
                    .read_sequence(|reader| Ok((time(reader.next())?, time(reader.next())?)))?;
                while reader.read_optional(skip)?.is_some() {}
                Ok(validity)
            })?;
            let (_algorithm, _signature) = (skip(reader.next())?, skip(reader.next())?);
            Ok(validity)
        })
    })
}

fn skip(reader: BERReader<'_, '_>) -> Result<Vec<u8>, ASN1Error> {
    reader.read_der()
}

fn time(reader: BERReader<'_, '_>) -> Result<Timestamp, ASN1Error> {
    let seconds = if reader.lookahead_tag()? == tags::TAG_UTCTIME {
        reader.read_utctime()?.datetime().unix_timestamp()
    } else {
        reader.read_generalized_time()?.datetime().unix_timestamp()
    };
    let seconds = u64::try_from(seconds).map_err(|_| ASN1Error::new(ASN1ErrorKind::Invalid))?;
    Ok(Timestamp::from_millis(seconds.saturating_mul(1000)))
}
