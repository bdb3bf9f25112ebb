//! Pulls as a node does: the manifest, the one for its platform, its configuration and its layers.

use reqwest::{StatusCode, header};
use serde_json::Value;

use super::{
    makes::Place,
    rows::{Stocked, named_by},
};
use crate::support::{images::digest, real::USERNAME};
use kagami::domain::answer::MediaType;

/// Pulls an image from the mirror that it is mapped to; else returns what went wrong.
pub async fn pull(place: &Place, image: &Stocked) -> Result<(), String> {
    let repository = image.row.repository;
    let (url, password) = place.mirror_of(repository);
    let puller = Puller {
        http: &place.http,
        base: format!("{url}/v2/{repository}"),
        password,
    };
    puller.manifest(&image.reference).await
}

struct Puller<'a> {
    http: &'a reqwest::Client,
    base: String,
    password: Option<&'a str>,
}

impl Puller<'_> {
    async fn manifest(&self, reference: &str) -> Result<(), String> {
        let bytes = self.get("manifests", reference).await?;
        let manifest: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        let named = named_by(&manifest);
        if named.is_empty() {
            return Err("nothing for linux/amd64".to_owned());
        }
        for (kind, digest) in named {
            if kind == "manifests" {
                Box::pin(self.manifest(&digest)).await?;
            } else {
                self.get(kind, &digest).await?;
            }
        }
        Ok(())
    }

    async fn get(&self, kind: &str, reference: &str) -> Result<Vec<u8>, String> {
        let url = format!("{}/{kind}/{reference}", self.base);
        let accepted = MediaType::ALL.map(MediaType::as_str).join(", ");
        let ask = |authorization: Option<String>| {
            let request = self.http.get(&url).header(header::ACCEPT, &accepted);
            match authorization {
                Some(authorization) => request.header(header::AUTHORIZATION, authorization),
                None => request,
            }
            .send()
        };
        let told = |error: reqwest::Error| error.to_string();
        let mut answer = ask(None).await.map_err(told)?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            let challenge = answer.headers().get(header::WWW_AUTHENTICATE).cloned();
            let challenge = challenge.ok_or("refused without a challenge")?;
            let authorization = self.meet(challenge.to_str().unwrap_or_default()).await?;
            answer = ask(Some(authorization)).await.map_err(told)?;
        }
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(told)?.to_vec();
        if status != StatusCode::OK {
            let start = String::from_utf8_lossy(&bytes)
                .chars()
                .take(200)
                .collect::<String>();
            return Err(format!("{kind}/{reference}: {status} {start}"));
        }
        if reference.starts_with("sha256:") && digest(&bytes).to_string() != reference {
            return Err(format!("{kind}/{reference} is something else"));
        }
        Ok(bytes)
    }

    /// Returns what to send to who challenges: a password, or a token.
    async fn meet(&self, challenge: &str) -> Result<String, String> {
        let (scheme, parameters) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            let password = self.password.ok_or("it asks for a password")?;
            return Ok(basic(password));
        }
        let parameter = |name: &str| {
            let (_, rest) = parameters.split_once(&format!("{name}=\""))?;
            Some(rest.split('"').next()?.to_owned())
        };
        let realm = parameter("realm").ok_or("a challenge without a realm")?;
        let query = ["service", "scope"]
            .into_iter()
            .filter_map(|name| Some((name, parameter(name)?)));
        let query: Vec<_> = query.collect();
        let mut url = reqwest::Url::parse(&realm).map_err(|error| error.to_string())?;
        url.query_pairs_mut().extend_pairs(query);
        let mut request = self.http.get(url);
        if let Some(password) = self.password {
            request = request.header(header::AUTHORIZATION, basic(password));
        }
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|error| error.to_string())?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let token = body["token"].as_str().or_else(|| body["access_token"].as_str());
        let token = token.ok_or_else(|| format!("no token: {status}"))?;
        Ok(format!("Bearer {token}"))
    }
}

fn basic(password: &str) -> String {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    format!(
        "Basic {}",
        BASE64_STANDARD.encode(format!("{USERNAME}:{password}"))
    )
}
