//! A certificate authority for one run of the tests.

use std::{path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Signs the serving certificates of every program of the run.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
#[derive(Debug)]
pub(crate) struct Pair {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "Kagami test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
        }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// What goes into the `caBundle` of a webhook.
    pub(crate) fn bundle(&self) -> String {
        BASE64.encode(self.pem())
    }

    /// A serving certificate for 127.0.0.1 and localhost.
    pub(crate) fn issue(&self) -> Pair {
        self.issue_for(&["localhost", "127.0.0.1"])
    }

    /// A serving certificate for these names and addresses.
    pub(crate) fn issue_for(&self, names: &[&str]) -> Pair {
        self.sign(&Self::params(names))
    }

    /// The same, but it ended long ago.
    pub(crate) fn expired(&self, names: &[&str]) -> Pair {
        let mut params = Self::params(names);
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.sign(&params)
    }

    /// The same, but it begins in a far future.
    pub(crate) fn not_valid_yet(&self, names: &[&str]) -> Pair {
        let mut params = Self::params(names);
        params.not_before = date_time_ymd(2901, 1, 1);
        params.not_after = date_time_ymd(2902, 1, 1);
        self.sign(&params)
    }

    /// A certificate with which a client shows that it is this user of this group.
    pub(crate) fn issue_client(&self, user: &str, group: &str) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    /// A serving certificate for these names that its own key signed, and that may be an authority's.
    pub(crate) fn of_its_own(names: &[&str], is_authority: bool) -> Pair {
        let mut params = Self::params(names);
        params.distinguished_name.push(DnType::CommonName, "mirror");
        params.is_ca = if is_authority {
            IsCa::Ca(BasicConstraints::Unconstrained)
        } else {
            IsCa::ExplicitNoCa
        };
        Self::self_sign(&params)
    }

    /// The same, but it ended long ago.
    pub(crate) fn of_its_own_and_expired(names: &[&str]) -> Pair {
        let mut params = Self::params(names);
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        Self::self_sign(&params)
    }

    fn self_sign(params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        Pair {
            certificate: params.self_signed(&key).unwrap(),
            key,
        }
    }

    fn params(names: &[&str]) -> CertificateParams {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        CertificateParams::new(names).unwrap()
    }

    fn sign(&self, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        Pair {
            certificate: params.signed_by(&key, &self.issuer).unwrap(),
            key,
        }
    }

    /// A client that trusts this authority and nobody else.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        Arc::new(
            ClientConfig::builder()
                .with_root_certificates(roots)
                .with_no_client_auth(),
        )
    }
}

impl Pair {
    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// Writes `<name>.crt` and `<name>.key` and returns their paths.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> (String, String) {
        let path = |extension| {
            folder
                .join(format!("{name}.{extension}"))
                .to_str()
                .unwrap()
                .to_owned()
        };
        let (certificate, key) = (path("crt"), path("key"));
        std::fs::write(&certificate, self.certificate.pem()).unwrap();
        std::fs::write(&key, self.key.serialize_pem()).unwrap();
        (certificate, key)
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        let key = self.key.serialize_der().try_into().unwrap();
        let chain = vec![self.certificate.der().clone()];
        Arc::new(
            ServerConfig::builder()
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .unwrap(),
        )
    }
}
