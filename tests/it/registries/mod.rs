//! Real registries of several makes as mirrors: what Kagami says of each image there, and whether a node could pull
//! it. `scripts/registries` runs this, because most of these registries take long to build.

mod makes;
mod page;
mod pull;
mod rows;

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::{
    makes::{MAKES, Make, Place},
    rows::{HEALTH, ROWS, Stage, Stocked},
};
use crate::{
    shared::mirror::image_mirror,
    support::{
        kagami::{Kagami, Setup},
        real::{PASSWORD, USERNAME},
    },
};

/// How long what is known of a hosted mirror may be used, so that sweeps see each change soon.
const FRESHNESS: &str = "3s";

/// How long after a change answers may still be those from before it: two sweeps and more.
const SETTLING: Duration = Duration::from_secs(10);

/// How long answers must stay the same. Pull-through mirrors are asked for one manifest or configuration a second, the
/// manifests of many images first.
const STEADY: Duration = Duration::from_secs(20);

/// When answers that do not stay the same are taken as they are.
const LONGEST: Duration = Duration::from_mins(4);

/// How long a review may wait for probes: of all images at once, and behind each other's.
const BUDGET: Duration = Duration::from_secs(5);

/// The mirrors of a run: name, prefixes, and the password for it.
const MIRRORS: [(&str, &[&str], Option<&str>); 4] = [
    ("open", &["docker.io", "mcr.microsoft.com"], None),
    ("right", &["quay.io"], Some(PASSWORD)),
    ("without", &["ghcr.io"], None),
    ("wrong", &["registry.k8s.io"], Some("looking-glass")),
];

/// What stands for a row that the registry does not take or offer.
const NOT_TAKEN: &str = "not taken";

/// Kagami says that it is there, and it cannot be pulled.
const MISLED: &str = "\u{2717}";

/// Kagami leaves it, though it could be pulled.
const LEFT: &str = "\u{25cb}";

#[test]
fn the_page_has_every_make_and_row() {
    assert_eq!(page::makes(), MAKES.map(|make| make.name.to_owned()));
    let rows = ROWS.iter().map(|row| row.what).chain([HEALTH]);
    assert_eq!(page::rows(), rows.map(ToOwned::to_owned).collect::<Vec<_>>());
}

#[tokio::test]
#[ignore = "scripts/registries runs it"]
async fn every_make_is_told_as_the_page_says() {
    let mut places = Vec::new();
    for make in &MAKES {
        places.push((make, Place::start(make).await));
    }
    // Side by side, because each mostly waits.
    let columns = places.into_iter().map(|(make, place)| column(make, place));
    let columns = join_all(columns).await;
    page::keep(&page::table(&columns));
}

/// Returns the cells of a registry, from top to bottom.
async fn column(make: &Make, mut place: Place) -> Vec<String> {
    let mut cells = vec![NOT_TAKEN.to_owned(); ROWS.len() + 1];
    let mut stocked = Vec::new();
    for (index, row) in ROWS.iter().enumerate() {
        if let Some(image) = row.stock(&place).await {
            stocked.push((index, image));
        }
    }
    let mut kagami = None;
    for stage in Stage::ALL {
        let mut hindered = HashSet::new();
        for (index, image) in &stocked {
            if image.row.stage == stage && !image.befall(&place).await {
                hindered.insert(*index);
            }
        }
        stocked.retain(|(index, _)| !hindered.contains(index));
        match stage {
            Stage::Stocked | Stage::Changed => {}
            Stage::Collected => {
                let repositories = stocked.iter().map(|(_, image)| image.row.repository);
                place.collect_garbage(repositories).await;
            }
            Stage::Dead => place.kill(),
        }
        if kagami.is_none() {
            kagami = Some(start(make, &place).await);
        }
        let asked: Vec<_> = stocked
            .iter()
            .filter(|(_, image)| image.row.is_asked_at(stage))
            .collect();
        let kagami = kagami.as_ref().unwrap();
        let told = told(kagami, &asked).await;
        for ((index, image), reasons) in asked.into_iter().zip(told) {
            // What is known later must have been pulled by nodes as well.
            let pulled = pull::pull(&place, image).await;
            if image.row.stage == stage {
                eprintln!("{}: {}: {reasons}; {pulled:?}", make.name, image.row.what);
                let mark = match (reasons.contains("Mirrored"), pulled.is_ok()) {
                    (true, false) => format!(" {MISLED}"),
                    (false, true) => format!(" {LEFT}"),
                    _ => String::new(),
                };
                cells[*index] = format!("{reasons}{mark}");
            }
        }
        if stage == Stage::Dead {
            let status = kagami.status().await;
            let health = &status["mirrors"]["open"]["health"]["state"];
            cells[ROWS.len()] = health.as_str().unwrap().into();
        }
    }
    cells
}

async fn start(make: &Make, place: &Place) -> Kagami {
    let mut documents = Vec::new();
    for (name, prefixes, password) in MIRRORS {
        let mut settings = json!({
            "kind": make.kind(),
            // No machine is so busy that this is too short.
            "health": {"interval": "1s", "timeout": "10s"},
        });
        settings["freshness"] = match make.kind() {
            "Hosted" => json!({"tag": FRESHNESS, "digest": FRESHNESS, "missing": "1s"}),
            // What is absent is asked for once, so that it is not in the way of what is new.
            _ => json!({"missing": "1h"}),
        };
        let registry = format!("{name}.test");
        if let Some(password) = password {
            settings["endpoint"] = json!({"credentials": {"secretRef": {"name": name}}});
            documents.push(secret(name, &registry, password));
        }
        let endpoint = place.mirror_of(prefixes[0]).0;
        documents.push(image_mirror(name, &registry, prefixes, endpoint, &settings));
    }
    let setup = Setup {
        arguments: vec!["--budget".to_owned(), format!("{}s", BUDGET.as_secs())],
        ..Setup::default()
    };
    let kagami = Kagami::start_with(&documents, setup).await;
    kagami
        .until_status(
            "/mirrors/open/health/state",
            &json!("Healthy"),
            Duration::from_secs(20),
        )
        .await;
    kagami
}

fn secret(name: &str, registry: &str, password: &str) -> Value {
    let auth = BASE64_STANDARD.encode(format!("{USERNAME}:{password}"));
    let auths = json!({"auths": {registry: {"auth": auth}}}).to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": BASE64_STANDARD.encode(auths)},
    })
}

/// Asks about all images again and again, and returns for each the reason that was given once answers had settled;
/// all of them, if they never did.
async fn told(kagami: &Kagami, asked: &[&(usize, Stocked)]) -> Vec<String> {
    let images: Vec<_> = asked.iter().map(|(_, image)| image.name.as_str()).collect();
    // How soon it answers is for others to test.
    let mut caller = kagami.connect().await.with_timeout("10s", LONGEST);
    let started = Instant::now();
    let mut answers: Vec<(Instant, Vec<String>)> = Vec::new();
    loop {
        let now = Instant::now();
        answers.push((now, caller.ask(&images).await.reasons));
        answers.retain(|(at, _)| now - *at <= STEADY);
        let differ = answers.iter().any(|(_, reasons)| *reasons != answers[0].1);
        if now - started > SETTLING + STEADY && !differ || now - started > LONGEST {
            break;
        }
        sleep(Duration::from_millis(200)).await;
    }
    let seen = |index: usize| {
        let reasons: BTreeSet<_> = answers
            .iter()
            .map(|(_, reasons)| reasons[index].as_str())
            .collect();
        reasons.into_iter().collect::<Vec<_>>().join(", ")
    };
    (0..images.len()).map(seen).collect()
}
