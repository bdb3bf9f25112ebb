//! A token service as distribution's `auth: token` wants it, on the scripted server.

use std::{collections::HashMap, sync::Arc};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use kagami::clock;
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};

use super::faulty::{Action, Behaviour, Faulty, Reply, Request};

pub const ISSUER: &str = "kagami-tests";
pub const SERVICE: &str = "registry.test";

/// A service that gives tokens to one user, and to nobody else.
pub struct TokenService {
    pub server: Faulty,
    key: Arc<KeyPair>,
}

impl TokenService {
    pub async fn start(username: &str, password: &str) -> Self {
        let key = Arc::new(KeyPair::generate_for(&PKCS_ED25519).unwrap());
        let basic = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
        let signing = Arc::clone(&key);
        let script = move |request: &Request| -> Action {
            if request.authorization() != Some(&basic) {
                return Reply::error(401, "UNAUTHORIZED").into();
            }
            let scope = query(&request.target).remove("scope");
            let token = token(&signing, scope.as_deref());
            Reply::json(200, &json!({"token": token, "expires_in": 300})).into()
        };
        Self {
            server: Faulty::start(Behaviour::answer(script)).await,
            key,
        }
    }

    pub fn realm(&self) -> String {
        format!("{}/token", self.server.url())
    }

    /// Returns the service's public key as the set of keys that a registry trusts.
    pub fn key_set(&self) -> Value {
        let public = URL_SAFE_NO_PAD.encode(self.key.der_bytes());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "test", "use": "sig", "x": public}]})
    }

    /// Returns a token that permits everything in a repository.
    pub fn push_token(&self, repository: &str) -> String {
        token(
            &self.key,
            Some(&format!("repository:{repository}:pull,push,delete")),
        )
    }
}

/// Returns the parameters of a request's query, percent-decoded.
pub fn query(target: &str) -> HashMap<String, String> {
    let url = reqwest::Url::parse(&format!("http://localhost{target}")).unwrap();
    url.query_pairs().into_owned().collect()
}

fn token(key: &KeyPair, scope: Option<&str>) -> String {
    let access: Vec<Value> = scope
        .iter()
        .map(|scope| {
            let (kind, rest) = scope.split_once(':').unwrap();
            let (name, actions) = rest.rsplit_once(':').unwrap();
            json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()})
        })
        .collect();
    let now = clock::now().as_millis() / 1000;
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(&json!({"typ": "JWT", "alg": "EdDSA", "kid": "test"}));
    let claims = part(&json!({
        "iss": ISSUER, "sub": "alice", "aud": SERVICE,
        "iat": now, "nbf": now - 10, "exp": now + 300, "access": access,
    }));
    let signature = key.sign(format!("{header}.{claims}").as_bytes()).unwrap();
    format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode(signature))
}
