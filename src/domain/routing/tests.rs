use proptest::prelude::*;

use super::*;
use crate::domain::{
    examples::{digest, mirror, source},
    mapping::Mapping,
};

/// Returns the normalised name of an image.
fn name(image: &str) -> String {
    let key = Reference::parse(image).unwrap().key();
    key.by_ref().name().to_owned()
}

/// Checks the order of the candidates: `mirror prefix`, and `excluded` at the end if some mirror
/// excludes the image.
#[track_caller]
fn check(mirrors: &[Mirror], image: &str, expected: &[&str]) {
    let routing = Routing::compile(mirrors.to_vec());
    let candidates = routing.candidates(&name(image));
    let mut found: Vec<String> = candidates
        .ordered
        .iter()
        .map(|candidate| {
            let mirror = routing.mirror(candidate.mirror);
            format!("{} {}", mirror.name, mirror.sources[candidate.source].prefix)
        })
        .collect();
    found.extend(candidates.excluded.then(|| "excluded".to_owned()));
    assert_eq!(found, expected, "{image}");
}

fn with_priority(priority: i32, mirror: Mirror) -> Mirror {
    Mirror { priority, ..mirror }
}

fn excluding(name: &str, prefix: &str, exclude: &[&str]) -> Mirror {
    Mirror {
        sources: vec![source(prefix, exclude)],
        ..mirror(name, &[])
    }
}

#[test]
fn candidates_are_ordered_by_priority_then_prefix_then_name() {
    let mirrors = [
        mirror("c", &["docker.io"]),
        mirror("b", &["docker.io/library"]),
        mirror("a", &["docker.io"]),
        with_priority(101, mirror("d", &["docker.io"])),
        with_priority(-1, mirror("e", &["docker.io/library/nginx"])),
    ];
    check(
        &mirrors,
        "nginx",
        &[
            "d docker.io",
            "b docker.io/library",
            "a docker.io",
            "c docker.io",
            "e docker.io/library/nginx",
        ],
    );
    check(
        &mirrors,
        "bitnami/nginx",
        &["d docker.io", "a docker.io", "c docker.io"],
    );
    check(&mirrors, "quay.io/a/nginx", &[]);
}

#[test]
fn prefixes_end_on_the_boundaries_of_components() {
    let mirrors = [mirror("m", &["quay.io/team"])];
    check(&mirrors, "quay.io/team", &["m quay.io/team"]);
    check(&mirrors, "quay.io/team/app", &["m quay.io/team"]);
    check(&mirrors, "quay.io/teams/app", &[]);
    check(&mirrors, "quay.io/a/team", &[]);
    check(&mirrors, "quay.io:443/team/app", &[]);
    check(&mirrors, "Quay.IO/team/app", &["m quay.io/team"]);
}

#[test]
fn the_longest_prefix_of_a_mirror_wins_wherever_it_stands() {
    let image = "docker.io/library/nginx";
    for prefixes in [
        ["docker.io", "docker.io/library", "docker.io/library/nginx"],
        ["docker.io/library/nginx", "docker.io", "docker.io/library"],
    ] {
        check(&[mirror("m", &prefixes)], image, &["m docker.io/library/nginx"]);
    }
}

#[test]
fn an_exclusion_acts_on_its_own_mirror_only() {
    let mirrors = [
        excluding("a", "docker.io", &["docker.io/bitnami/**"]),
        mirror("b", &["docker.io"]),
    ];
    check(&mirrors, "nginx", &["a docker.io", "b docker.io"]);
    check(&mirrors, "bitnami/redis", &["b docker.io", "excluded"]);
    check(&mirrors[..1], "bitnami/redis", &["excluded"]);
}

#[test]
fn an_exclusion_at_the_longest_prefix_does_not_fall_back_to_a_shorter_one() {
    let mut both = mirror("m", &["docker.io"]);
    both.sources.push(source("docker.io/library", &["**/nginx"]));
    check(&[both.clone()], "nginx", &["excluded"]);
    check(&[both], "redis", &["m docker.io/library"]);

    let mut outer = excluding("m", "docker.io", &["**/nginx"]);
    outer.sources.push(source("docker.io/library", &[]));
    check(&[outer], "nginx", &["m docker.io/library"]);
}

/// Checks whether the mirror at `registry` is found by its own image of `nginx`, and that it knows
/// that image as its own.
#[track_caller]
fn check_named(registry: &str, image: &str, expected: bool) {
    let mut named = mirror("m", &["docker.io"]);
    named.mapping = Mapping {
        registry: registry.parse().unwrap(),
        ..named.mapping
    };
    let routing = Routing::compile(vec![named]);
    let found = routing.mirrors_named_by(&name(image)).next().is_some();
    assert_eq!(found, expected, "{image} on {registry}");
}

#[test]
fn a_mirror_is_known_by_its_registry_in_every_form() {
    for (registry, image, expected) in [
        (
            "mirror.example.com",
            "mirror.example.com/docker.io/library/nginx",
            true,
        ),
        (
            "mirror.example.com",
            "Mirror.Example.COM/docker.io/library/nginx",
            true,
        ),
        (
            "Mirror.Example.COM",
            "mirror.example.com/docker.io/library/nginx",
            true,
        ),
        ("mirror.example.com", "mirror.example.com/x", true),
        ("mirror.example.com", "mirror.example.com:443/x", false),
        ("mirror.example.com:5000", "mirror.example.com/x", false),
        ("mirror.example.com/cache", "mirror.example.com/cache/x", true),
        ("mirror.example.com/cache", "mirror.example.com/caches/x", false),
        ("mirror.example.com/cache", "mirror.example.com/x", false),
        ("[fd00::1]:5000", "[fd00::1]:5000/x", true),
        ("[FD00:0:0::1]:5000", "[FD00:0:0::1]:5000/x", true),
        ("[FD00:0:0::1]:5000/a", "[fd00::1]:5000/a/x", true),
        ("[fd00::1]:5000", "[fd00:0::0001]:5000/x", true),
        ("[::ffff:a00:1]", "[::ffff:a00:1]/x", true),
        ("localhost", "localhost/x", true),
    ] {
        check_named(registry, image, expected);
    }
}

#[test]
fn a_mirror_knows_its_own_images_pinned_or_not_and_no_others() {
    let pinned = Mirror {
        tags: super::super::mirror::Tags {
            pin: Pin::Digest,
            ..Default::default()
        },
        ..mirror("m", &["docker.io"])
    };
    let a = digest('a');
    let b = digest('b');
    for (original, current, expected) in [
        ("nginx", "m.example.com/docker.io/library/nginx".to_owned(), true),
        (
            "nginx",
            format!("m.example.com/docker.io/library/nginx:latest@{a}"),
            true,
        ),
        (
            "nginx",
            format!("m.example.com/docker.io/library/nginx@{a}"),
            true,
        ),
        (
            "redis",
            format!("m.example.com/docker.io/library/nginx@{a}"),
            false,
        ),
        (
            "nginx:2",
            format!("m.example.com/docker.io/library/nginx:1@{a}"),
            false,
        ),
        (
            "nginx:1",
            "m.example.com/docker.io/library/nginx".to_owned(),
            false,
        ),
        (
            "nginx:1",
            "m.example.com/docker.io/library/nginx:1".to_owned(),
            true,
        ),
        (
            "docker.io/library/nginx:1",
            "m.example.com/docker.io/library/nginx:1".to_owned(),
            true,
        ),
        (
            "redis:1",
            "m.example.com/docker.io/library/nginx:1".to_owned(),
            false,
        ),
        (
            "nginx:1",
            "o.example.com/docker.io/library/nginx:1".to_owned(),
            false,
        ),
        (
            "nginx:1",
            format!("m.example.com/docker.io/library/nginx:1@{b}"),
            true,
        ),
    ] {
        for mirror in [mirror("m", &["docker.io"]), pinned.clone()] {
            let reference = Reference::parse(original).unwrap();
            assert_eq!(
                mirror.maps_to(&reference, &current),
                expected,
                "{original} → {current}"
            );
        }
    }
    let written = format!("nginx@{a}");
    let reference = Reference::parse(&written).unwrap();
    assert!(!pinned.maps_to(&reference, &format!("m.example.com/docker.io/library/nginx@{b}")));
    assert!(pinned.maps_to(&reference, &format!("m.example.com/docker.io/library/nginx@{a}")));
}

#[test]
fn globs_match_whole_names() {
    for (glob, name, expected) in [
        ("docker.io/library/nginx", "docker.io/library/nginx", true),
        ("docker.io/library/nginx", "docker.io/library/nginx2", false),
        ("docker.io/library/*", "docker.io/library/nginx", true),
        ("docker.io/*", "docker.io/library/nginx", false),
        ("docker.io/**", "docker.io/library/nginx", true),
        ("docker.io/**", "docker.io", false),
        ("**", "anything/at/all", true),
        ("*", "anything/at/all", false),
        ("**/nginx", "docker.io/library/nginx", true),
        ("**/nginx", "nginx", false),
        ("*/library/ng*x", "docker.io/library/nginx", true),
        ("**/ng*x/**/z", "docker.io/nginx/a/nginx/b/z", true),
        ("*a*b/c", "xaxb/b/c", false),
        ("", "", true),
        ("", "a", false),
    ] {
        assert_eq!(glob_matches(glob, name), expected, "{glob} on {name}");
    }
}

/// What globs mean, written for reading: the first piece takes what it may, the rest the rest.
fn reference_matches(glob: &[char], name: &[char]) -> bool {
    match glob {
        [] => name.is_empty(),
        ['*', '*', rest @ ..] => (0..=name.len()).any(|end| reference_matches(rest, &name[end..])),
        ['*', rest @ ..] => {
            let component = name
                .iter()
                .position(|character| *character == '/')
                .unwrap_or(name.len());
            (0..=component).any(|end| reference_matches(rest, &name[end..]))
        }
        [wanted, rest @ ..] => name.first() == Some(wanted) && reference_matches(rest, &name[1..]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn globs_match_what_they_mean(glob in "((\\*|\\*\\*)?[ab/]){0,5}(\\*|\\*\\*)?", name in "[ab/]{0,10}") {
        let characters = |text: &str| text.chars().collect::<Vec<_>>();
        let expected = reference_matches(&characters(&glob), &characters(&name));
        prop_assert_eq!(glob_matches(&glob, &name), expected);
    }

    #[test]
    fn candidates_are_those_that_a_scan_of_all_mirrors_finds(
        mirrors in prop::collection::vec((prop::collection::vec("[ab]\\.io(/[ab]){0,2}", 1..3), -1_i32..2), 0..5),
        image in "[abc]\\.io(/[ab]){1,3}",
    ) {
        let mirrors: Vec<Mirror> = mirrors
            .into_iter()
            .enumerate()
            .map(|(number, (prefixes, priority))| {
                let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
                with_priority(priority, mirror(&format!("m{number}"), &prefixes))
            })
            .collect();
        let longest = |mirror: &Mirror| {
            let fits = |prefix: &str| image == prefix || image.starts_with(&format!("{prefix}/"));
            mirror.sources.iter().map(|source| source.prefix.as_str()).filter(|prefix| fits(prefix)).map(str::len).max()
        };
        let mut expected: Vec<_> = mirrors
            .iter()
            .filter_map(|mirror| Some((-mirror.priority, std::cmp::Reverse(longest(mirror)?), mirror.name.clone())))
            .collect();
        expected.sort();
        let expected: Vec<String> = expected.into_iter().map(|(_, _, name)| name).collect();
        let routing = Routing::compile(mirrors);
        let found: Vec<String> = routing
            .candidates(&image)
            .ordered
            .iter()
            .map(|candidate| routing.mirror(candidate.mirror).name.clone())
            .collect();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn mirrors_in_each_others_way_are_named() {
    let of = |registry: &str, template: &str, name: &str, prefixes: &[&str]| {
        let mut made = mirror(name, prefixes);
        made.mapping.registry = registry.parse().unwrap();
        made.mapping.template = template.parse().unwrap();
        made
    };
    let usual = "{registry}/{repository}";
    let routing = Routing::compile(vec![
        of("one.test/cache", usual, "a", &["docker.io"]),
        of("ONE.test/cache", usual, "b", &["docker.io", "ghcr.io"]),
        of(
            "one.test/cache",
            "apart/{registry}/{repository}",
            "c",
            &["docker.io"],
        ),
        of(
            "two.test",
            usual,
            "d",
            &["one.test/cache/team", "one.test", "quay.io"],
        ),
    ]);
    let told = |id: usize| -> Vec<String> {
        let (id, _) = routing.mirrors().nth(id).unwrap();
        let overlaps = routing.overlaps(id).into_iter();
        overlaps
            .map(|overlap| format!("{}: {overlap}", overlap.as_str()))
            .collect()
    };
    let same = |other: &str| {
        format!(
            "SameRegistry: ImageMirror {other} has the same registry, so where both have a source for an image, \
             asking the second one never helps"
        )
    };
    assert_eq!(told(0), [same("b")]);
    assert_eq!(told(1), [same("a")]);
    assert_eq!(told(2), [""; 0]);
    let within = ["a", "b", "c"].map(|other| {
        format!(
            "SourceIsMirror: images below one.test/cache/team lie in the registry of ImageMirror {other}, and so \
             stay as they are"
        )
    });
    assert_eq!(told(3), within);
}
