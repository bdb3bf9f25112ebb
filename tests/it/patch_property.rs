//! The promise that no patch denies a Pod or changes what it must not: for random Pods and random
//! state the patch applies, changes images, our annotations and one pull secret only, follows from
//! proof or goes back to what is recorded and maps, and admission leaves its own output as it is. Then
//! the state changes, and the same holds of what the first round wrote: nothing is called rewritten
//! that the state of now does not prove. What others lend of a Pod's images is as what it records itself: a
//! copy of what was rewritten that lost its annotations is rewritten as that is.

use std::{cell::Cell, sync::Arc};

use kagami::{
    api, clock,
    domain::{
        answer::MediaType,
        digest::Digest,
        health::{Health, State},
        image::{ImageKey, Reference},
        lent::Lent,
        mapping::Mapping,
        mirror::{
            Access, Freshness, HANG_AFTER, HealthSettings, Kind, Mirror, Mode, OwnerPattern, Pin, Prefer,
            RescuePolicy, Source, Tags,
        },
        platform::Platforms,
        presence::{Presence, Proof},
        reason::Reason,
        routing::Routing,
        selector::Selector,
        standing::Standing,
        time::Timestamp,
    },
    state::{Configured, Store},
};
use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRunner};
use serde_json::Value;

use crate::{
    shared::reviews::{patched, review_of},
    support::{
        pods::{self, DIGESTS, NAMES, REGISTRIES},
        reviews::{admission, ask},
    },
};

const LISTS: [(&str, &str); 4] = [
    ("containers", "/image"),
    ("initContainers", "/image"),
    ("ephemeralContainers", "/image"),
    ("volumes", "/image/reference"),
];

/// How the annotations begin that Kagami writes.
const OURS: [&str; 3] = [
    "kagami.dev/decisions",
    "original-image.kagami.dev/",
    "original-volume.kagami.dev/",
];

/// A mirror, its health, and what it holds.
#[derive(Clone, Debug)]
struct Peer {
    mirror: Mirror,
    standing: Arc<Standing>,
    state: State,
    images: Vec<(ImageKey, Presence)>,
}

/// Returns the keys of all images that random Pods name.
fn keys() -> Vec<ImageKey> {
    let mut keys = Vec::new();
    for name in NAMES {
        for suffix in [
            ":1".to_owned(),
            String::new(),
            ":v1.2.3-rc.1_x".to_owned(),
            format!("@{}", DIGESTS[0]),
            format!("@{}", DIGESTS[1]),
        ] {
            keys.push(Reference::parse(&format!("{name}{suffix}")).unwrap().key());
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

/// Returns what a mirror knows of an image; `chance` is any number.
fn presence(chance: u8) -> Option<Presence> {
    let (digest, platforms) = match chance % 16 {
        0..6 => (DIGESTS[0], Platforms::ALL),
        6..8 => (DIGESTS[0], Platforms::of("linux", "amd64", "")),
        8..11 => (DIGESTS[1], Platforms::ALL),
        11 => (DIGESTS[1], Platforms::NONE),
        12 => return Some(Presence::Missing),
        13 => return Some(Presence::Unknown(Some(Reason::RegistryError))),
        _ => return None,
    };
    let digest = digest.parse().unwrap();
    let media_type = MediaType::OciIndex;
    Some(Presence::Present(Proof {
        digest,
        media_type,
        platforms,
        size: None,
        public: None,
    }))
}

fn source() -> impl Strategy<Value = Source> {
    let prefixes = vec![
        "docker.io",
        "docker.io/library",
        "quay.io/team",
        "registry.example.com:5000",
        "[fd00::2]:5000",
        "localhost",
    ];
    let exclude = select(vec![vec![], vec!["**/redis"], vec!["docker.io/*/*"]]);
    (select(prefixes), exclude, any::<bool>()).prop_map(|(prefix, exclude, private)| Source {
        prefix: prefix.to_owned(),
        exclude: exclude.into_iter().map(str::to_owned).collect(),
        access: if private { Access::Private } else { Access::Public },
        with_credentials: false,
    })
}

fn peer(number: usize, keys: &[ImageKey]) -> impl Strategy<Value = Peer> + use<> {
    let mode = prop_oneof![6 => Just(Mode::Enforce), 1 => Just(Mode::Warn), 1 => Just(Mode::Audit), 1 => Just(Mode::Off)];
    let kind = prop_oneof![3 => Just(Kind::Hosted), 1 => Just(Kind::PullThrough)];
    let place = (
        select(REGISTRIES.to_vec()),
        select(vec!["{registry}/{repository}", "copy/{registry}/{repository}"]),
    );
    // What a digest is added to is lent nothing, so most peers add none.
    let pin = prop_oneof![3 => Just(Pin::None), 1 => Just(Pin::Digest), 1 => Just(Pin::DigestOnly)];
    let wants = (mode, kind, -1..2_i32, prop::bool::weighted(0.1), pin);
    let secret = (prop::bool::weighted(0.3), prop::bool::weighted(0.7));
    let state =
        prop_oneof![6 => Just(State::Healthy), 1 => Just(State::Unhealthy), 1 => Just(State::Unknown)];
    let keys = keys.to_vec();
    let chances = vec(any::<u8>(), keys.len());
    (place, wants, secret, vec(source(), 2..6), state, chances).prop_map(
        move |(
            (registry, template),
            (mode, kind, priority, upstream, pin),
            (pull_secret, in_place),
            sources,
            state,
            chances,
        )| {
            let mirror = Mirror {
                name: format!("m{number}"),
                mode,
                mapping: Mapping {
                    registry: registry.parse().unwrap(),
                    template: template.parse().unwrap(),
                },
                copying: None,
                read_secret: None,
                kind,
                priority,
                prefer: if upstream {
                    Prefer::Upstream
                } else {
                    Prefer::Mirror
                },
                namespaces: Selector::default(),
                sources,
                health: HealthSettings::default(),
                freshness: Freshness::default(),
                sweep_rate: None,
                tags: Tags {
                    pin,
                    ..Tags::default()
                },
                pull_secret,
                exclude_owners: OwnerPattern::built_in(),
                rescue: RescuePolicy::Enforce,
                hang_after: HANG_AFTER,
                delete_pods: false,
                runs_in: Vec::new(),
            };
            let images = keys
                .iter()
                .cloned()
                .zip(chances)
                .filter_map(|(key, chance)| Some((key, presence(chance)?)))
                .collect();
            let namespaces = in_place.then(|| "team".to_owned());
            Peer {
                mirror,
                standing: Arc::new(Standing {
                    pull_secret_namespaces: namespaces.into_iter().collect(),
                    ..Standing::NONE
                }),
                state,
                images,
            }
        },
    )
}

/// What may become of a mirror: its mode, its health, and what it holds.
type Later = (Mode, State, Vec<u8>);

fn later(keys: usize) -> impl Strategy<Value = Later> {
    let mode = prop_oneof![6 => Just(Mode::Enforce), 1 => Just(Mode::Audit), 1 => Just(Mode::Off)];
    let state = prop_oneof![2 => Just(State::Healthy), 1 => Just(State::Unhealthy)];
    (mode, state, vec(any::<u8>(), keys))
}

fn changed(peers: &[Peer], later: &[Later], keys: &[ImageKey]) -> Vec<Peer> {
    let changed = peers.iter().zip(later).map(|(peer, (mode, state, chances))| {
        let mirror = Mirror {
            mode: *mode,
            ..peer.mirror.clone()
        };
        let images = keys.iter().cloned().zip(chances);
        let images = images.filter_map(|(key, chance)| Some((key, presence(*chance)?)));
        Peer {
            mirror,
            standing: Arc::clone(&peer.standing),
            state: *state,
            images: images.collect(),
        }
    });
    changed.collect()
}

/// What other Pods of the namespace record: images and their originals.
type Loans = Vec<(String, String)>;

/// Returns some that a mirror may turn into that image, and some that none does.
fn loans() -> impl Strategy<Value = Loans> {
    let pairs = [
        ("docker.io/library/nginx", "nginx"),
        ("docker.io/library/nginx:1", "nginx:1"),
        ("docker.io/bitnami/redis:latest", "bitnami/redis:latest"),
        ("quay.io/team/app:1", "quay.io/team/app:1"),
    ];
    let pin = select(vec![String::new(), format!("@{}", DIGESTS[0])]);
    let fitting = (select(REGISTRIES.to_vec()), select(pairs.to_vec()), pin).prop_map(
        |(registry, (path, original), pin)| (format!("{registry}/{path}{pin}"), original.to_owned()),
    );
    let any = (pods::mirrored(), pods::upstream());
    vec(prop_oneof![4 => fitting, 1 => any], 0..12)
}

fn store(peers: &[Peer], loans: &Loans) -> Store {
    let store = Store::default();
    let lines = loans.iter().map(|(image, original)| {
        let line = serde_json::json!(["team", image, original]);
        format!("{line}\n")
    });
    store.set_lent(Arc::new(Lent::read(&lines.collect::<String>())));
    let routing = Routing::compile(peers.iter().map(|peer| peer.mirror.clone()).collect());
    store.configure(
        Configured {
            routing,
            standings: peers
                .iter()
                .map(|peer| (peer.mirror.name.clone(), Arc::clone(&peer.standing)))
                .collect(),
            ..Configured::default()
        },
        clock::now(),
    );
    let now = clock::now();
    let long_ago = Timestamp::from_millis(1);
    for Peer {
        mirror,
        state,
        images,
        ..
    } in peers
    {
        store.set_health(
            &mirror.name,
            Health {
                state: *state,
                fault: None,
                cause: None,
                since: long_ago,
                refused_since: None,
                proven_since: long_ago,
            },
        );
        for (key, presence) in images {
            store
                .index_mut()
                .write(&mirror.name, key.by_ref(), presence.clone(), now, now);
        }
    }
    store
}

/// Whether some healthy mirror in enforce mode holds `original` and has it as `current`.
fn is_proven(peers: &[Peer], original: &str, current: &str) -> bool {
    let reference = Reference::parse(original).unwrap();
    let key = reference.key();
    peers.iter().any(
        |Peer {
             mirror,
             state,
             images,
             ..
         }| {
            // A digest that was added elsewhere is as good as one of our own if it is the proven one.
            let proven = |digest: &Digest| {
                mirror.map(&reference, digest).as_deref() == Ok(current)
                    || mirror.pins(&reference, digest, current)
            };
            let found = images.iter().find(|(image, _)| *image == key);
            *state == State::Healthy
                && mirror.mode == Mode::Enforce
                && matches!(found, Some((_, Presence::Present(proof))) if proven(&proof.digest))
        },
    )
}

/// Returns the recorded original of a place if some mirror turns it into the image that stands there.
fn mapped_original<'p>(
    peers: &[Peer],
    pod: &'p Value,
    list: &str,
    index: usize,
    image: &str,
) -> Option<&'p str> {
    let prefix = if list == "volumes" { "volume" } else { "image" };
    let name = pod["spec"][list][index]["name"].as_str()?;
    let recorded = pod["metadata"]["annotations"][format!("original-{prefix}.kagami.dev/{name}")].as_str()?;
    let original = Reference::parse(recorded).ok()?;
    let maps = peers.iter().any(|peer| peer.mirror.maps_to(&original, image));
    maps.then_some(recorded)
}

/// The same of one that is lent.
fn lent_original<'p>(peers: &[Peer], loans: &'p Loans, image: &str) -> Option<&'p str> {
    // The last line of an image counts.
    let (_, lent) = loans.iter().rev().find(|(known, _)| known == image)?;
    let original = Reference::parse(lent).ok()?;
    let maps = peers.iter().any(|peer| peer.mirror.maps_to(&original, image));
    maps.then_some(lent)
}

/// Returns what stands in every place that names an image.
fn images(pod: &Value) -> impl Iterator<Item = (&'static str, usize, &str)> {
    LISTS.into_iter().flat_map(move |(list, image)| {
        let entries = pod["spec"][list].as_array().into_iter().flatten().enumerate();
        entries.filter_map(move |(index, entry)| Some((list, index, entry.pointer(image)?.as_str()?)))
    })
}

/// Checks that what a Pod is said to be rewritten by is proven now.
fn check_told(peers: &[Peer], pod: &Value) {
    let Some(told) = pod["metadata"]["annotations"]["kagami.dev/decisions"].as_str() else {
        return;
    };
    let told: Value = serde_json::from_str(told).unwrap();
    for (list, index, image) in images(pod) {
        let name = pod["spec"][list][index]["name"].as_str().unwrap();
        if told[format!("{list}.{name}")]["outcome"] == "Rewritten" {
            let original = mapped_original(peers, pod, list, index, image);
            let original = original.unwrap_or_else(|| panic!("nothing maps to {image}"));
            assert!(
                is_proven(peers, original, image),
                "{list} {index}: {original} → {image} is told and not proven"
            );
        }
    }
}

/// Returns a copy of a Pod without Kagami's annotations, and what the Pod records of the images that it is said to be
/// rewritten to.
fn copied(peers: &[Peer], pod: &Value) -> (Value, Loans) {
    let mut loans = Loans::new();
    if let Some(told) = pod["metadata"]["annotations"]["kagami.dev/decisions"].as_str() {
        let told: Value = serde_json::from_str(told).unwrap();
        for (list, index, image) in images(pod) {
            let name = pod["spec"][list][index]["name"].as_str().unwrap();
            if told[format!("{list}.{name}")]["outcome"] == "Rewritten" {
                let original = mapped_original(peers, pod, list, index, image).unwrap();
                // What names a digest is lent no original without it.
                let digest = |reference: &str| reference.split_once('@').map(|(_, digest)| digest.to_owned());
                if digest(image) == digest(original) {
                    loans.push((image.to_owned(), original.to_owned()));
                }
            }
        }
    }
    let mut copy = pod.clone();
    if let Some(annotations) = copy["metadata"]["annotations"].as_object_mut() {
        annotations.retain(|key, _| !OURS.iter().any(|ours| key.starts_with(ours)));
    }
    (copy, loans)
}

/// Whether anything of a Pod may change, in enforce mode.
fn is_enforced(pod: &Value) -> bool {
    let label = &pod["metadata"]["labels"]["kagami.dev/mode"];
    let static_pod = &pod["metadata"]["annotations"]["kubernetes.io/config.mirror"];
    (label.is_null() || label == "enforce") && static_pod.is_null()
}

/// Returns what Kagami may write of a Pod: images and its own annotations and secret, each in one
/// place, so that what is left can be compared.
fn without_ours(pod: &Value) -> Value {
    let mut pod = pod.clone();
    for (list, image) in LISTS {
        for entry in pod["spec"][list].as_array_mut().into_iter().flatten() {
            if let Some(image) = entry.pointer_mut(image) {
                *image = Value::Null;
            }
        }
    }
    let annotations = &mut pod["metadata"]["annotations"];
    if let Some(fields) = annotations.as_object_mut() {
        fields.retain(|key, _| !OURS.iter().any(|ours| key.starts_with(ours)));
        if fields.is_empty() {
            *annotations = Value::Null;
        }
    }
    let secrets = &mut pod["spec"]["imagePullSecrets"];
    if let Some(entries) = secrets.as_array_mut() {
        if entries
            .last()
            .is_some_and(|last| last["name"] == api::PULL_SECRET)
        {
            entries.pop();
        }
        if entries.is_empty() {
            *secrets = Value::Null;
        }
    }
    pod
}

fn secrets(pod: &Value) -> Vec<&Value> {
    pod["spec"]["imagePullSecrets"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|secret| &secret["name"])
        .collect()
}

fn check_change(peers: &[Peer], loans: &Loans, before: &Value, after: &Value, known_ephemeral: usize) {
    assert_eq!(images(before).count(), images(after).count());
    for ((list, index, old), (_, _, new)) in images(before).zip(images(after)) {
        if old == new {
            continue;
        }
        let healed = |original: &str| original == new || is_proven(peers, original, new);
        let original = mapped_original(peers, before, list, index, old);
        let original = original.or_else(|| lent_original(peers, loans, old));
        assert!(
            original.map_or_else(|| is_proven(peers, old, new), healed),
            "{old} → {new} without proof"
        );
        assert!(
            list != "ephemeralContainers" || index >= known_ephemeral,
            "one that runs was changed"
        );
    }
    let (had, has) = (secrets(before), secrets(after));
    assert_eq!(has[..had.len()], had);
    assert!(
        has.len() == had.len()
            || (!had.contains(&&Value::from(api::PULL_SECRET)) && has.len() == had.len() + 1)
    );
    assert_eq!(without_ours(before), without_ours(after));
}

#[test]
fn a_patch_applies_changes_only_what_it_may_and_is_final() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let keys = keys();
    let of_peers = keys.clone();
    let peers = prop_oneof![1 => Just(0), 9 => 1..5_usize].prop_flat_map(move |count| {
        (0..count)
            .map(|number| peer(number, &of_peers))
            .collect::<Vec<_>>()
    });
    let later = vec(later(keys.len()), 5);
    let mode = prop_oneof![8 => Just(Mode::Enforce), 1 => Just(Mode::Warn), 1 => Just(Mode::Audit)];
    // How many of the ephemeral containers are there already, where some are added.
    let known = prop_oneof![5 => Just(None), 1 => (0..3_usize).prop_map(Some)];
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(10_000)
    };
    let (rewritten, healed, recorded) = (Cell::new(0_u32), Cell::new(0_u32), Cell::new(0_u32));
    let mut runner = TestRunner::new(config);
    let result = runner.run(
        &(peers, pods::pod(), mode, known, later, loans()),
        |(peers, pod, mode, known, later, loans)| {
            let old = known.map(|known| {
                let mut old = pod.clone();
                if let Some(containers) = old["spec"]["ephemeralContainers"].as_array_mut() {
                    containers.truncate(known);
                }
                old
            });
            let known = known.unwrap_or_default();
            // Asks until nothing changes any more, which is once and once again.
            let settled = |peers: &[Peer], pod: &Value, loans: &Loans| {
                let admission = admission(store(peers, loans));
                let answer = runtime.block_on(ask(&admission, mode, &review_of(pod, old.as_ref())));
                let operations = answer.get("patch").and_then(Value::as_array);
                for operation in operations.into_iter().flatten() {
                    prop_assert!(
                        operation["op"] == "add" || operation["op"] == "replace",
                        "{}",
                        operation
                    );
                }
                prop_assert!(
                    mode == Mode::Enforce || operations.is_none(),
                    "changed in {mode:?} mode"
                );
                let after = patched(pod, &answer);
                check_change(peers, loans, pod, &after, known);
                if old.is_some() {
                    prop_assert_eq!(&after["metadata"], &pod["metadata"]);
                } else if mode == Mode::Enforce && is_enforced(pod) {
                    check_told(peers, &after);
                }
                let again = runtime.block_on(ask(&admission, mode, &review_of(&after, old.as_ref())));
                prop_assert_eq!(again.get("patch"), None, "first: {}", answer);
                Ok(after)
            };
            let count = |counter: &Cell<u32>, met: bool| counter.set(counter.get() + u32::from(met));
            let differs = |a: &Value, b: &Value| !images(a).eq(images(b));
            let first = settled(&peers, &pod, &loans)?;
            count(&rewritten, differs(&pod, &first));
            if old.is_none() && mode == Mode::Enforce && is_enforced(&pod) {
                let (copy, lent) = copied(&peers, &first);
                let of_copy = settled(&peers, &copy, &lent)?;
                let (_, again) = copied(&peers, &of_copy);
                // A place of the same image that had no record before gets the loan as well.
                let is_again = |image: &String| again.iter().any(|(known, _)| known == image);
                let lost: Vec<_> = lent.iter().filter(|(image, _)| !is_again(image)).collect();
                prop_assert!(lost.is_empty(), "{:?} of {:?}", lost, again);
                count(&recorded, !lent.is_empty());
            }
            let second = settled(&changed(&peers, &later, &keys), &first, &loans)?;
            let back = |((_, _, was), ((_, _, then), (_, _, now)))| was != then && was == now;
            count(
                &healed,
                images(&pod).zip(images(&first).zip(images(&second))).any(back),
            );
            Ok(())
        },
    );
    if let Err(error) = result {
        panic!("{error}");
    }
    for (what, count, enough) in [
        ("rewritten", rewritten.get(), 500),
        ("healed", healed.get(), 500),
        ("copied", recorded.get(), 500),
    ] {
        assert!(
            count > enough,
            "only {count} Pods were {what}: this proves little"
        );
    }
}
