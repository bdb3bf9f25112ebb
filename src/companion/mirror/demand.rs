//! Images that somebody asks about: new ones are noted and looked at for the first time, known ones again because a node
//! could not pull them.

use std::{collections::HashMap, time::Duration};

use tokio::{sync::mpsc, task::JoinSet};

use super::{context::Context, look::locate};
use crate::{
    clock,
    domain::{
        answer::Answer,
        health::State,
        image::{ImageKey, KeyRef},
        mirror::Kind,
        presence::Presence,
        reason::Reason,
    },
    state::{Demand, Why},
};

/// How many images of one mirror are kept in mind. Past it, those used longest ago are forgotten.
const IMAGES: usize = 150_000;

/// How many new images are looked at at once.
const AT_ONCE: usize = 16;

/// How many namespaces are kept in mind that want the same image while it is looked at.
const WAITING: usize = 16;

/// Takes in new images until the task is dropped.
pub(super) async fn run(context: Context, mut wanted: mpsc::Receiver<Demand>) {
    // With the namespaces that want it.
    let mut under_way: HashMap<ImageKey, Vec<Box<str>>> = HashMap::new();
    let mut looks: JoinSet<ImageKey> = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = looks.join_next() => match ended {
                Ok(key) => {
                    for namespace in under_way.remove(&key).unwrap_or_default() {
                        want(&context, &namespace, &key);
                    }
                }
                Err(error) => {
                    // Without its key there is no telling which image it was.
                    tracing::error!(%error, mirror = context.mirror, "a look at a new image ended");
                    under_way.clear();
                }
            },
            Some(demand) = wanted.recv(), if looks.len() < AT_ONCE => {
                let key = demand.key.by_ref();
                let is_due = match &demand.why {
                    Why::New | Why::Wanted { .. } => is_due(&context, key),
                    Why::PullFailed { .. } => true,
                };
                let by = match &demand.why {
                    Why::Wanted { by } => Some(by.clone()),
                    Why::New | Why::PullFailed { .. } => None,
                };
                if let Some(waiting) = under_way.get_mut(&demand.key) {
                    if let Some(by) = by
                        && waiting.len() < WAITING
                        && !waiting.contains(&by)
                    {
                        waiting.push(by);
                    }
                    continue;
                }
                if !is_due {
                    if let Some(by) = by {
                        want(&context, &by, &demand.key);
                    }
                    continue;
                }
                under_way.insert(demand.key.clone(), by.into_iter().collect());
                let context = context.clone();
                looks.spawn(async move {
                    match demand.why {
                        Why::New | Why::Wanted { .. } => context.first_look(demand.key.by_ref()).await,
                        Why::PullFailed { is_believed } => {
                            look_again(&context, demand.key.by_ref(), is_believed).await;
                        }
                    }
                    demand.key
                });
            }
        }
    }
}

/// Whether an image was not looked at for as long as an absence is remembered. Notes it if new.
fn is_due(context: &Context, key: KeyRef<'_>) -> bool {
    let Some(present) = context.present() else {
        return false;
    };
    let now = clock::now();
    let mut index = context.store.index_mut();
    if let Some(entry) = index.get(&context.mirror, key) {
        let bound: Duration = present.settings().freshness.missing;
        entry.presence == Presence::Unknown(None) || now.since(entry.verified_at) > bound
    } else {
        index.make_room(&context.mirror, IMAGES);
        index.write(&context.mirror, key, Presence::Unknown(None), now, now);
        true
    }
}

/// Notes that a namespace wants an image, where the mirror is filled and is known to lack it or to have an older one.
fn want(context: &Context, namespace: &str, key: &ImageKey) {
    let fills = context
        .present()
        .is_some_and(|present| present.settings().copying.is_some());
    if fills && context.needs_copy(key.by_ref()) {
        context.means.wants.add(&context.mirror, namespace, key);
    }
}

/// Looks at an image that a node could not pull, while it is known to be there. Unless it is believed it is unknown from
/// now on until there is an answer; on a pull-through mirror, where it waits for its turn and no review would look, once
/// there was no answer.
async fn look_again(context: &Context, key: KeyRef<'_>, is_believed: bool) {
    let Some(present) = context.present() else { return };
    // While the mirror fails nothing that is known of its images counts anyhow.
    if present.health().state != State::Healthy {
        return;
    }
    let Some(located) = locate(present.settings(), key) else {
        return;
    };
    let asked_at = clock::now();
    let write = |presence| {
        let mut index = context.store.index_mut();
        // One that went away meanwhile, or that another look found to be gone, says nothing new.
        let entry = index.get(&context.mirror, key);
        if entry.is_some_and(|entry| entry.presence != Presence::Missing) {
            index.write(&context.mirror, key, presence, asked_at, clock::now());
        }
    };
    if !is_believed && present.settings().kind == Kind::Hosted {
        write(Presence::Unknown(Some(Reason::ImageUnknown)));
    }
    match context.inspect(&present, &located, None).await {
        Ok(presence) | Err((Answer::Unauthorized | Answer::Ambiguous(_), presence)) => write(presence),
        // Of an image that is believed, no answer says nothing.
        Err((_, presence)) if !is_believed => write(presence),
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{io::AsyncReadExt as _, net::TcpListener, time::Instant};

    use super::*;
    use crate::{
        companion::mirror::{reports::Reports, wants::Means},
        domain::{
            examples::{mirror, proof},
            health::Health,
            mirror::{Mirror, Trust},
            routing::Routing,
            time::Timestamp,
        },
        metrics::Metrics,
        registry::{Client, Endpoint, pace::Pace, pool::Pool},
        state::{Configured, Store},
        telemetry::Throttle,
    };

    const NGINX: &str = "docker.io/library/nginx:1";

    /// A mirror of a kind at that port, which is healthy and known to have an image.
    fn context(kind: Kind, port: u16) -> Context {
        let store = Store::default();
        let mirror = Mirror {
            kind,
            ..mirror("main", &["docker.io"])
        };
        let configured = Configured {
            routing: Routing::compile(vec![mirror]),
            ..Configured::default()
        };
        let long_ago = Timestamp::from_millis(1);
        store.configure(configured, long_ago);
        let healthy = Health {
            state: State::Healthy,
            ..Health::unknown(long_ago)
        };
        assert!(store.set_health("main", healthy));
        let (key, now) = (KeyRef::parse(NGINX).unwrap(), clock::now());
        store
            .index_mut()
            .write("main", key, Presence::Present(proof('a')), now, now);
        let endpoint = Endpoint {
            url: format!("http://127.0.0.1:{port}"),
            ca_bundle: None,
            trust: Trust::default(),
            credentials: None,
        };
        Context {
            mirror: "main".to_owned(),
            client: Client::new(&endpoint).unwrap(),
            means: Means::default(),
            store,
            metrics: Metrics::new().0,
            upstreams: Pool::default(),
            reports: Reports::default(),
            downloads: Arc::new(Pace::new(None)),
            began: (now, Instant::now()),
            faults: Arc::new(Throttle::each_minute()),
        }
    }

    /// A pull-through mirror is never asked in admission, so what is unknown there is upstream's for everybody.
    #[tokio::test]
    async fn an_image_that_is_not_believed_is_unknown_at_once_or_once_there_was_no_answer() {
        drop(rustls::crypto::ring::default_provider().install_default());
        for (at_once, kind) in [(true, Kind::Hosted), (false, Kind::PullThrough)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let context = context(kind, listener.local_addr().unwrap().port());
            let key = KeyRef::parse(NGINX).unwrap();
            let is_unknown = || {
                let index = context.store.index();
                matches!(index.get("main", key).unwrap().presence, Presence::Unknown(_))
            };
            let asked = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
                assert_eq!(is_unknown(), at_once, "while it is asked");
                drop(stream);
                // Whoever asks again learns nothing either.
                while let Ok((stream, _)) = listener.accept().await {
                    drop(stream);
                }
            };
            tokio::select! {
                () = look_again(&context, key, false) => {}
                () = asked => {}
            }
            assert!(is_unknown(), "there was no answer");
        }
    }

    #[tokio::test]
    async fn an_image_that_is_believed_stays_so_without_an_answer() {
        drop(rustls::crypto::ring::default_provider().install_default());
        for kind in [Kind::Hosted, Kind::PullThrough] {
            let context = context(kind, 1);
            let key = KeyRef::parse(NGINX).unwrap();
            look_again(&context, key, true).await;
            let index = context.store.index();
            assert!(matches!(
                index.get("main", key).unwrap().presence,
                Presence::Present(_)
            ));
        }
    }
}
