use std::time::{Duration, Instant};

use super::*;
use crate::domain::{
    examples::mirror,
    mapping::Mapping,
    mirror::Mode,
    routing::{Keeper, Routing},
    selector::{Operator, Requirement, Selector},
};

/// A mirror in this registry with this template.
fn at(name: &str, registry: &str, template: &str, sources: &[Source]) -> Mirror {
    Mirror {
        mapping: Mapping {
            registry: registry.parse().unwrap(),
            template: template.parse().unwrap(),
        },
        sources: sources.to_vec(),
        ..mirror(name, &[])
    }
}

const WHOLE: &str = "{registry}/{repository}";

fn public(prefix: &str) -> Source {
    crate::domain::examples::source(prefix, &[])
}

fn private(prefix: &str) -> Source {
    Source {
        access: mirror::Access::Private,
        with_credentials: true,
        ..public(prefix)
    }
}

fn with_login(prefix: &str) -> Source {
    Source {
        with_credentials: true,
        ..public(prefix)
    }
}

/// Checks who decides about an image on a mirror: the mirrors that must serve, by name, and `upstream`.
#[track_caller]
fn check(mirrors: &[Mirror], on: &str, image: &str, expected: &[&str]) {
    let routing = Routing::compile(mirrors.to_vec());
    let image = Reference::parse(image).unwrap();
    let key = image.key();
    let on = routing.find(on).unwrap();
    let candidates = routing.candidates(key.by_ref().name());
    let candidate = candidates.ordered.iter().find(|found| found.mirror == on);
    let access = routing.access(candidate.unwrap(), &image);
    let name = |id: &MirrorId| routing.mirror(*id).name.clone();
    let mut found: Vec<String> = access.private.iter().map(name).collect();
    found.sort_unstable();
    found.extend(access.asks_upstream.then(|| "upstream".to_owned()));
    assert_eq!(found, expected, "{image}");
}

#[test]
fn a_private_source_decides_wherever_its_images_lie() {
    let main = at("main", "m.io", WHOLE, &[public("docker.io"), public("ghcr.io")]);
    let acme = at("acme", "m.io", WHOLE, &[private("ghcr.io/acme")]);
    let both = [main.clone(), acme.clone()];
    check(&both, "main", "ghcr.io/acme/secret:1", &["acme"]);
    check(
        &both,
        "main",
        "ghcr.io/acme@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        &["acme"],
    );
    // Whom it serves itself is asked anyway.
    check(&both, "acme", "ghcr.io/acme/secret:1", &[]);
    check(&both, "main", "ghcr.io/acmeister/open:1", &[]);
    check(&both, "main", "nginx", &[]);

    // Whatever it does by now, what it copied is there still.
    let off = Mirror {
        mode: Mode::Off,
        ..acme.clone()
    };
    check(&[main.clone(), off], "main", "ghcr.io/acme/secret:1", &["acme"]);
    // Another registry, or another path of it, is another place.
    for registry in ["n.io", "m.io:5000", "m.io/path"] {
        let elsewhere = at("acme", registry, WHOLE, &acme.sources);
        check(&[main.clone(), elsewhere], "main", "ghcr.io/acme/secret:1", &[]);
    }
    let same = at("acme", "M.io:443", WHOLE, &acme.sources);
    check(&[main.clone(), same], "main", "ghcr.io/acme/secret:1", &["acme"]);
    let below = at("acme", "m.io/ghcr.io", "{repository}", &acme.sources);
    check(&[main.clone(), below], "main", "ghcr.io/acme/secret:1", &["acme"]);

    // What the private mirror itself gives to everybody, or leaves alone.
    let sources = [private("ghcr.io/acme"), public("ghcr.io/acme/open")];
    let opened = at("acme", "m.io", WHOLE, &sources);
    check(
        &[main.clone(), opened.clone()],
        "main",
        "ghcr.io/acme/open/a:1",
        &[],
    );
    check(
        &[main.clone(), opened],
        "main",
        "ghcr.io/acme/opened:1",
        &["acme"],
    );
    let excluding = Source {
        exclude: vec!["ghcr.io/acme/open/**".to_owned()],
        ..private("ghcr.io/acme")
    };
    let excluding = at("acme", "m.io", WHOLE, &[excluding]);
    check(
        &[main.clone(), excluding.clone()],
        "main",
        "ghcr.io/acme/open/a:1",
        &[],
    );
    check(&[main, excluding], "main", "ghcr.io/acme/secret:1", &["acme"]);
}

#[test]
fn places_are_compared_whatever_template_and_name_lead_there() {
    // docker.io/ghcr.io/acme/secret is anybody's to make.
    let flat = at("flat", "m.io", "{repository}", &[public("docker.io")]);
    let acme = at("acme", "m.io", WHOLE, &[private("ghcr.io/acme")]);
    let both = [flat.clone(), acme];
    check(
        &both,
        "flat",
        "ghcr.io/acme/secret:1"
            .replace("ghcr.io", "docker.io/ghcr.io")
            .as_str(),
        &["acme"],
    );
    check(&both, "flat", "docker.io/quay.io/acme/secret:1", &[]);
    let hub = at("hub", "m.io", "{repository}", &[private("quay.io/library")]);
    check(&[flat, hub], "flat", "nginx", &["hub"]);

    for template in ["{repository}/of/{registry}", "x-{registry}/y-{repository}/z"] {
        let main = at(
            "main",
            "m.io/p",
            template,
            &[public("ghcr.io"), public("[::1]:5000")],
        );
        let acme = at(
            "acme",
            "m.io",
            &format!("p/{template}"),
            &[private("ghcr.io/acme"), private("[::1]:5000")],
        );
        let both = [main, acme];
        check(&both, "main", "ghcr.io/acme/secret:1", &["acme"]);
        check(&both, "main", "[::1]:5000/a/b:1", &["acme"]);
        check(&both, "main", "ghcr.io/acme2/secret:1", &[]);
    }
}

#[test]
fn of_several_private_sources_all_decide() {
    let wide = at("wide", "m.io", WHOLE, &[private("ghcr.io")]);
    let a = at("a", "m.io", WHOLE, &[private("ghcr.io/acme")]);
    let b = at("b", "m.io", WHOLE, &[private("ghcr.io/acme")]);
    let all = [wide, a, b];
    for on in ["wide", "a", "b"] {
        // The copy may have come with the login of each, also before the other sources were there.
        check(&all, on, "ghcr.io/acme/secret:1", &["a", "b", "wide"]);
    }
    check(&all, "wide", "ghcr.io/other/secret:1", &["wide"]);

    // Two upstreams at one place.
    let ghcr = at("ghcr", "m.io", "{repository}", &[private("ghcr.io/acme")]);
    let quay = at("quay", "m.io", "{repository}", &[private("quay.io")]);
    check(&[ghcr, quay], "quay", "quay.io/acme/secret:1", &["ghcr", "quay"]);

    // The name of one upstream may stand between that of another one and what is below it.
    let mirrors = [
        ("top", "quay.io"),
        ("dash", "quay.io-x.com/b"),
        ("deep", "quay.io/b"),
    ];
    let mirrors = mirrors.map(|(name, prefix)| at(name, "m.io", "{repository}", &[private(prefix)]));
    check(&mirrors, "top", "quay.io/b/c:1", &["dash", "deep", "top"]);
    // What the wider one leaves alone is no matter of its own.
    let excluding = Source {
        exclude: vec!["ghcr.io/acme/**".to_owned()],
        ..private("ghcr.io")
    };
    let acme = at("acme", "m.io", WHOLE, &[private("ghcr.io/acme")]);
    let wide = at("wide", "m.io", WHOLE, &[excluding]);
    check(&[acme, wide], "acme", "ghcr.io/acme/secret:1", &["acme"]);
}

#[test]
fn a_source_of_one_repository_is_found_whatever_follows_its_name() {
    for template in [
        "{registry}/{repository}-mirror",
        "{registry}/{repository}-mirror/of",
        "{registry}/x-{repository}_y",
    ] {
        let main = at("main", "m.io", template, &[public("ghcr.io")]);
        let secret = at("secret", "m.io", template, &[private("ghcr.io/acme/secret")]);
        let both = [main.clone(), secret];
        check(&both, "main", "ghcr.io/acme/secret:1", &["secret"]);
        check(&both, "main", "ghcr.io/acme/secret/part:1", &["secret"]);
        check(&both, "main", "ghcr.io/acme/secrets:1", &[]);
        check(&both, "main", "ghcr.io/acme:1", &[]);
        // Of one mirror the longest source, in whatever order they stand.
        for open in ["ghcr.io/acme", "ghcr.io/acme/open"] {
            let mut sources = [private("ghcr.io"), public(open)];
            for _ in 0..2 {
                sources.reverse();
                let acme = at("acme", "m.io", template, &sources);
                let both = [main.clone(), acme];
                check(&both, "main", "ghcr.io/acme/open:1", &[]);
                check(&both, "main", "ghcr.io/other:1", &["acme"]);
            }
        }
    }
}

#[test]
fn what_a_mirror_without_a_good_form_may_have_put_there_is_for_nobody() {
    let closed = |registry: &str, template: &str, prefixes: Option<&[&str]>| Closed {
        name: "acme".to_owned(),
        mapping: Mapping {
            registry: registry.parse().unwrap(),
            template: template.parse().unwrap(),
        },
        prefixes: prefixes.map(|prefixes| prefixes.iter().map(|prefix| (*prefix).to_owned()).collect()),
    };
    let main = at("main", "m.io", WHOLE, &[public("docker.io"), public("ghcr.io")]);
    let wide: &[&str] = &["quay.io", "ghcr.io/acme"];
    for (closed, images) in [
        (closed("M.io:443", WHOLE, Some(wide)), [true, true, false, false]),
        (
            closed("m.io/ghcr.io", "{repository}", Some(&["ghcr.io/acme"])),
            [true, true, false, false],
        ),
        (
            closed("m.io/ghcr.io", "{repository}", None),
            [true, true, true, false],
        ),
        (closed("m.io", WHOLE, None), [true; 4]),
        (closed("n.io", WHOLE, None), [false; 4]),
        (closed("m.io/path", WHOLE, None), [false; 4]),
    ] {
        let routing = Routing::compile_with(vec![main.clone()], std::slice::from_ref(&closed));
        let names = [
            "ghcr.io/acme/secret:1",
            "ghcr.io/acme:1",
            "ghcr.io/acmeister/open:1",
            "nginx",
        ];
        for (image, expected) in names.into_iter().zip(images) {
            let reference = Reference::parse(image).unwrap();
            let key = reference.key();
            let candidates = routing.candidates(key.by_ref().name());
            let access = routing.access(&candidates.ordered[0], &reference);
            let keeper = access.closed.map(|id| routing.keeper(Keeper::Closed(id)));
            assert_eq!(keeper, expected.then_some("acme"), "{image}, {closed:?}");
        }
    }
}

#[test]
fn what_is_pulled_through_with_a_login_is_for_whom_upstream_gives_it_to() {
    let main = at("main", "m.io", WHOLE, &[public("docker.io")]);
    let hub = Mirror {
        kind: mirror::Kind::PullThrough,
        ..at("hub", "m.io", WHOLE, &[with_login("docker.io/shop")])
    };
    let both = [main.clone(), hub.clone()];
    check(&both, "main", "shop/a:1", &["upstream"]);
    check(&both, "hub", "shop/a:1", &["upstream"]);
    check(&both, "main", "nginx", &[]);
    check(std::slice::from_ref(&main), "main", "nginx", &[]);
    let own = at("own", "n.io", WHOLE, &[with_login("docker.io")]);
    check(&[main.clone(), own], "own", "nginx", &["upstream"]);
    // Who may have what is private may have it.
    let shop = at("shop", "m.io", WHOLE, &[private("docker.io/shop")]);
    check(&[hub, shop], "shop", "shop/a:1", &["shop"]);

    // What is copied with a login is asked about before it is copied: others need not ask again.
    let paid = at("paid", "m.io", WHOLE, &[with_login("docker.io")]);
    let both = [main, paid];
    check(&both, "main", "nginx", &[]);
    check(&both, "paid", "nginx", &["upstream"]);
}

/// Returns the shortest of several times that it takes to ask who may get an image, where so many mirrors of one
/// registry have it.
fn time_of_access(count: usize) -> Duration {
    let team = |number: usize| {
        // Many have the same prefix, and of those that differ each is below another one.
        let prefix = format!("ghcr.io{}", "/a".repeat(number % 10));
        at(&format!("team-{number}"), "m.io", WHOLE, &[private(&prefix)])
    };
    let routing = Routing::compile((0..count).map(team).collect());
    let image = format!("ghcr.io{}/app:1", "/a".repeat(10));
    let image = Reference::parse(&image).unwrap();
    let key = image.key();
    let candidates = routing.candidates(key.by_ref().name());
    assert_eq!(candidates.ordered.len(), count);
    let times = (0..10).map(|_| {
        let started = Instant::now();
        let access = routing.access(&candidates.ordered[0], &image);
        assert!(!access.private.is_empty());
        started.elapsed()
    });
    times.min().unwrap_or_default()
}

#[test]
fn who_may_get_an_image_is_known_in_about_linear_time() {
    let (few, many) = (time_of_access(30), time_of_access(3000));
    // A hundred times as many; squared it would be 10,000 times, which small steps do not reach yet.
    assert!(many < few * 400, "{few:?} with 30 mirrors, {many:?} with 3,000");
}

/// Checks from which others each mirror is not separated.
#[track_caller]
fn check_separation(mirrors: &[Mirror], expected: &[(&str, &[&str])]) {
    let routing = Routing::compile(mirrors.to_vec());
    let others = |(id, mirror): (MirrorId, &Mirror)| {
        let others: Vec<String> = routing.not_separated_from(id).map(str::to_owned).collect();
        (!others.is_empty()).then(|| (mirror.name.clone(), others))
    };
    let found: Vec<(String, Vec<String>)> = routing.mirrors().filter_map(others).collect();
    let expected: Vec<(String, Vec<String>)> = expected
        .iter()
        .map(|(name, others)| {
            (
                (*name).to_owned(),
                others.iter().map(|other| (*other).to_owned()).collect(),
            )
        })
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn mirrors_of_overlapping_registries_are_separated_by_nothing_but_one_selector() {
    let blue = |mirror: Mirror| Mirror {
        namespaces: Selector {
            requirements: vec![Requirement {
                key: "team".to_owned(),
                operator: Operator::In(vec!["blue".to_owned()]),
            }],
        },
        ..mirror
    };
    let main = at("main", "m.io", WHOLE, &[public("docker.io")]);
    let acme = |registry: &str| blue(at("acme", registry, WHOLE, &[private("ghcr.io")]));
    for registry in ["m.io", "M.io:443", "m.io/acme"] {
        let expected: [(&str, &[&str]); 2] = [("main", &["acme"]), ("acme", &["main"])];
        check_separation(&[main.clone(), acme(registry)], &expected);
    }
    check_separation(&[main.clone(), acme("n.io")], &[]);
    let team = |registry: &str| at("team", registry, WHOLE, &[public("docker.io")]);
    check_separation(&[team("m.io/team"), acme("m.io/team2")], &[]);
    check_separation(&[blue(team("m.io")), acme("m.io")], &[]);
    // What is for everybody need not be kept from anybody, unless a login comes with it.
    check_separation(&[main.clone(), blue(team("m.io"))], &[]);
    let paid = Mirror {
        pull_secret: true,
        ..blue(team("m.io"))
    };
    let both: [(&str, &[&str]); 2] = [("main", &["team"]), ("team", &["main"])];
    check_separation(&[main.clone(), paid.clone()], &both);
    // Who prepares a mirror takes no login away, as long as it has nothing to hide itself.
    let is_off = |mirror: &Mirror| Mirror {
        mode: Mode::Off,
        ..mirror.clone()
    };
    let other = |name: &str| Mirror {
        name: name.to_owned(),
        namespaces: Selector::default(),
        ..paid.clone()
    };
    let hidden = at("acme", "m.io", WHOLE, &[private("ghcr.io")]);
    for (mirrors, withheld) in [
        ([main.clone(), paid.clone()], &["main", "team"][..]),
        ([is_off(&main), paid.clone()], &["main"]),
        ([is_off(&other("main")), paid.clone()], &["main", "team"]),
        ([is_off(&hidden), paid.clone()], &["acme", "team"]),
    ] {
        let routing = Routing::compile(mirrors.to_vec());
        assert_eq!(routing.not_separated().collect::<Vec<_>>(), withheld);
    }
    check_separation(&[is_off(&main), paid], &both);
    check_separation(
        &[acme("m.io/a"), main, blue(team("m.io/b"))],
        &[("acme", &["main"]), ("main", &["acme"])],
    );
}
