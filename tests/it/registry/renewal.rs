//! Credentials that change while a client is in use.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kagami::{domain::answer::MediaType, registry::Credentials};
use serde_json::json;
use tokio::time::Instant;

use super::{Client, REPOSITORY, client_with, seen, serve};
use crate::support::{
    faulty::{Action, Behaviour, Faulty, Reply, Request},
    images::{self, Image},
    kagami::eventually,
    soon,
};

fn user(name: &str) -> Credentials {
    Credentials {
        username: name.to_owned(),
        password: "secret".to_owned(),
    }
}

/// Returns the header that a user sends.
fn basic(name: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:secret")))
}

/// A registry that takes tokens only, the realm that gives them, and a client for `old`.
struct Scene {
    registry: Faulty,
    realm: Faulty,
    image: Image,
    client: Client,
}

impl Scene {
    /// The realm gives each user a token of the user's name; the registry takes those that begin so.
    async fn start(taken: &'static str) -> Self {
        let realm = Faulty::start(Behaviour::answer(|request| {
            let name = match request.authorization() {
                None => "anonymous",
                Some(header) if header == basic("old") => "old",
                Some(_) => "new",
            };
            Reply::json(200, &json!({"token": name, "expires_in": 300})).into()
        }))
        .await;
        let image = images::single(MediaType::OciManifest, "nginx");
        let challenge = format!(r#"Bearer realm="{}/token",service="test""#, realm.url());
        let of_script = image.clone();
        let registry = Faulty::start(Behaviour::answer(move |request| {
            let refusal = || Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", &challenge);
            match request
                .authorization()
                .and_then(|header| header.strip_prefix("Bearer "))
            {
                Some(token) if token.starts_with(taken) => serve(&of_script, request).into(),
                // Long enough for a Secret to change meanwhile.
                Some(_) => Action::Later(Duration::from_millis(500), refusal()),
                None => refusal().into(),
            }
        }))
        .await;
        let client = client_with(&registry.url(), None, Some(user("old")));
        Self {
            registry,
            realm,
            image,
            client,
        }
    }

    async fn look(&self) {
        let answer = self.client.head(REPOSITORY, "1", soon()).await;
        assert_eq!(answer, seen(&self.image));
    }

    /// Returns what the realm was asked with, in order.
    fn asked_with(&self) -> Vec<Option<String>> {
        let asked = self.realm.requests();
        asked
            .iter()
            .map(|request| request.authorization().map(str::to_owned))
            .collect()
    }
}

#[tokio::test]
async fn other_credentials_leave_no_token_of_the_former_ones() {
    let scene = Scene::start("").await;
    scene.look().await;
    let connections = scene.registry.connections();
    // The same again are no others.
    scene.client.set_credentials(Some(&user("old")), None);
    scene.look().await;
    assert_eq!(scene.asked_with(), [Some(basic("old"))]);
    scene.client.set_credentials(Some(&user("new")), None);
    scene.look().await;
    let sent = scene.registry.requests();
    assert_eq!(sent.last().unwrap().authorization(), Some("Bearer new"));
    scene.client.set_credentials(None, None);
    scene.look().await;
    assert_eq!(scene.asked_with(), [Some(basic("old")), Some(basic("new")), None]);
    assert_eq!(
        scene.registry.connections(),
        connections,
        "it is one client all the time"
    );
}

#[tokio::test]
async fn what_is_refused_while_credentials_change_is_asked_once_more() {
    // A token that the registry refuses.
    let scene = Scene::start("new").await;
    let asked = scene.client.head(REPOSITORY, "1", soon());
    let change = async {
        let under_way = |request: &Request| request.authorization() == Some("Bearer old");
        eventually(
            "it is asked with the old token",
            Duration::from_secs(5),
            async || {
                let requests = scene.registry.requests();
                requests
                    .iter()
                    .any(under_way)
                    .then_some(())
                    .ok_or_else(|| format!("{requests:?}"))
            },
        )
        .await;
        scene.client.set_credentials(Some(&user("new")), None);
    };
    let (answer, ()) = tokio::join!(asked, change);
    assert_eq!(answer, seen(&scene.image));

    // A password that the realm refuses.
    let mut scene = Scene::start("new").await;
    scene
        .realm
        .set(Behaviour::answer(|request| {
            if request.authorization() == Some(&basic("new")) {
                return Reply::json(200, &json!({"token": "new"})).into();
            }
            Action::Later(Duration::from_millis(500), Reply::error(401, "UNAUTHORIZED"))
        }))
        .await;
    let before = scene.realm.requests().len();
    let asked = scene.client.head(REPOSITORY, "1", soon());
    let change = async {
        eventually("the realm is asked", Duration::from_secs(5), async || {
            let now = scene.realm.requests().len();
            (now > before).then_some(()).ok_or_else(|| now.to_string())
        })
        .await;
        scene.client.set_credentials(Some(&user("new")), None);
    };
    let (answer, ()) = tokio::join!(asked, change);
    assert_eq!(answer, seen(&scene.image));
}

#[tokio::test]
async fn credentials_are_used_until_their_end_only() {
    let scene = Scene::start("").await;
    let later = Instant::now() + Duration::from_mins(1);
    scene.client.set_credentials(Some(&user("old")), Some(later));
    scene.look().await;
    scene
        .client
        .set_credentials(Some(&user("old")), Some(Instant::now()));
    scene.look().await;
    assert_eq!(scene.asked_with(), [Some(basic("old")), None]);
    // The end is no end of the client.
    scene.client.set_credentials(Some(&user("new")), None);
    scene.look().await;
    assert_eq!(scene.asked_with().len(), 3);
}
