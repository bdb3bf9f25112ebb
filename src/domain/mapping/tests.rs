use proptest::prelude::*;

use super::{
    Form, MapError, Mapping, MirrorRegistry, ParseMirrorRegistryError as R, ParseTemplateError as T, Template,
};
use crate::domain::{digest::Digest, image::Reference};

const DEFAULT: &str = "{registry}/{repository}";
const SHA256: &str = "sha256:86e0e091d0da6bde2456dbb48306f3956bbeb2eae1b5b9a43045843f69fe4aaa";
const OTHER: &str = "sha256:e6693c20186f837fc393390135d8a598a96a833917917789d63766cab6c59582";

#[track_caller]
fn mapping(registry: &str, template: &str) -> Mapping {
    Mapping {
        registry: registry.parse().unwrap(),
        template: template.parse().unwrap(),
    }
}

#[track_caller]
fn map(mapping: &Mapping, written: &str) -> String {
    mapping
        .map(&Reference::parse(written).unwrap(), Form::Written)
        .unwrap()
}

#[test]
fn the_written_form_is_kept() {
    let mirror = mapping("mirror.example.com", DEFAULT);
    let check = |written: &str, expected: &str| {
        assert_eq!(map(&mirror, written), expected, "{written}");
    };
    check("nginx", "mirror.example.com/docker.io/library/nginx");
    check("nginx:1.27", "mirror.example.com/docker.io/library/nginx:1.27");
    check("quay.io/a/b:Tag", "mirror.example.com/quay.io/a/b:Tag");
    check(
        &format!("nginx@{SHA256}"),
        &format!("mirror.example.com/docker.io/library/nginx@{SHA256}"),
    );
    check(
        &format!("nginx:1.27@{SHA256}"),
        &format!("mirror.example.com/docker.io/library/nginx:1.27@{SHA256}"),
    );
}

#[test]
fn hosts_become_one_component() {
    let mirror = mapping("[fd00::1]:5000/team/images", "copies/{registry}/{repository}");
    let check = |written: &str, expected: &str| {
        let expected = format!("[fd00::1]:5000/team/images/copies/{expected}");
        assert_eq!(map(&mirror, written), expected, "{written}");
    };
    check("Quay.IO/a/b", "quay.io/a/b");
    check("Foo/bar", "foo/bar");
    check("localhost:5000/app", "localhost_5000/app");
    check("[::1]/app", "ipv6_00000000000000000000000000000001/app");
    check(
        "[2001:DB8::C000:201]:443/app:1",
        "ipv6_20010db80000000000000000c0000201_443/app:1",
    );
}

#[test]
fn a_pin_writes_the_tag_out_or_takes_its_place_and_leaves_digests_alone() {
    let mirror = mapping("mirror.example.com", "{repository}");
    let pin: Digest = OTHER.parse().unwrap();
    let check = |written: &str, both: &str, only: &str| {
        let image = Reference::parse(written).unwrap();
        for (form, expected) in [(Form::TagAndDigest(&pin), both), (Form::Digest(&pin), only)] {
            let mapped = mirror.map(&image, form).unwrap();
            assert_eq!(
                mapped,
                format!("mirror.example.com/library/{expected}"),
                "{written}"
            );
        }
    };
    let (own, pinned) = (format!("nginx@{SHA256}"), format!("nginx@{OTHER}"));
    check("nginx", &format!("nginx:latest@{OTHER}"), &pinned);
    check("nginx:1.27", &format!("nginx:1.27@{OTHER}"), &pinned);
    check(&own, &own, &own);
    let tagged = format!("nginx:1.27@{SHA256}");
    check(&tagged, &tagged, &own);
}

#[test]
fn a_name_over_255_bytes_has_no_place() {
    let mirror = mapping("mirror.example.com:5000/team", DEFAULT);
    let fits = 255 - "mirror.example.com:5000/team/quay.io/".len();
    let written = |length: usize| format!("quay.io/{}:tag", "a".repeat(length));

    let mapped = map(&mirror, &written(fits));
    assert!(Reference::parse(&mapped).is_ok());
    let too_long = written(fits + 1);
    let image = Reference::parse(&too_long).unwrap();
    let refused = MapError::NameTooLong { length: 256 };
    assert_eq!(mirror.map(&image, Form::Written), Err(refused));
    assert_eq!(mirror.repository_path(&image), Err(refused));
}

#[test]
fn the_repository_path_has_neither_host_nor_tag() {
    let mirror = mapping("mirror.example.com:5000/team", DEFAULT);
    let text = format!("nginx:1.27@{SHA256}");
    let image = Reference::parse(&text).unwrap();
    assert_eq!(
        mirror.repository_path(&image).unwrap(),
        "team/docker.io/library/nginx"
    );
}

#[test]
fn the_text_is_allocated_once() {
    for registry in ["mirror.example.com", "mirror.example.com/team"] {
        let mirror = mapping(registry, "x/{registry}/{repository}");
        let pin: Digest = SHA256.parse().unwrap();
        let image = Reference::parse("quay.io:443/a/b:1").unwrap();
        let capacity = "mirror.example.com//".len() + mirror.capacity(&image) + ":1@".len() + SHA256.len();
        let mapped = mirror.map(&image, Form::TagAndDigest(&pin)).unwrap();
        assert!(
            mapped.capacity() <= capacity,
            "{mapped}: grew to {}",
            mapped.capacity()
        );
    }
}

#[test]
fn each_fault_of_a_registry_has_its_own_error() {
    let check = |text: &str, expected: fn(&R) -> bool| {
        let error = text.parse::<MirrorRegistry>().unwrap_err();
        assert!(expected(&error), "{text}: {error:?}");
    };
    check("https://mirror.example.com", |e| matches!(e, R::Scheme(_)));
    check("mirror", |e| matches!(e, R::NotAHost(_)));
    check("MIRROR", |e| matches!(e, R::NotAHost(_)));
    check("mirror/team", |e| matches!(e, R::NotAHost(_)));
    check("", |e| matches!(e, R::NotAHost(_)));
    check("a..b", |e| matches!(e, R::InvalidHost { .. }));
    check("mirror:70000", |e| matches!(e, R::InvalidHost { .. }));
    check("mirror:latest", |e| matches!(e, R::InvalidHost { .. }));
    check("docker.io", |e| matches!(e, R::DockerHub(_)));
    check("index.docker.io/team", |e| matches!(e, R::DockerHub(_)));
    check("Docker.IO/team", |e| matches!(e, R::DockerHub(_)));
    check("mirror.example.com/", |e| matches!(e, R::TrailingSlash(_)));
    check("mirror.example.com/team/", |e| matches!(e, R::TrailingSlash(_)));
    check("mirror.example.com/team:1", |e| matches!(e, R::TagOrDigest(_)));
    check("mirror.example.com@sha256:a", |e| matches!(e, R::TagOrDigest(_)));
    check("mirror.example.com/Team", |e| matches!(e, R::InvalidPath { .. }));
    check("mirror.example.com//team", |e| matches!(e, R::InvalidPath { .. }));
}

#[test]
fn each_fault_of_a_template_has_its_own_error() {
    let check = |text: &str, expected: fn(&T) -> bool| {
        let error = text.parse::<Template>().unwrap_err();
        assert!(expected(&error), "{text}: {error:?}");
    };
    check("", |e| matches!(e, T::RepositoryMissing(_)));
    check("{registry}", |e| matches!(e, T::RepositoryMissing(_)));
    check("{repository}/{repository}", |e| {
        matches!(e, T::RepositoryRepeated(_))
    });
    check("{registry}/{registry}/{repository}", |e| {
        matches!(e, T::RegistryRepeated(_))
    });
    check("{registry}-{repository}", |e| matches!(e, T::NotKeptApart(_)));
    check("{repository}{registry}", |e| matches!(e, T::NotKeptApart(_)));
    check("x/{repository}_{registry}/y", |e| matches!(e, T::NotKeptApart(_)));
    check(
        "{tag}/{repository}",
        |e| matches!(e, T::UnknownPlaceholder { placeholder, .. } if placeholder == "tag"),
    );
    check("{registry/{repository}", |e| {
        matches!(e, T::UnknownPlaceholder { .. })
    });
    check("{registry}/{repository", |e| matches!(e, T::UnpairedBrace(_)));
    check("registry}/{repository}", |e| matches!(e, T::UnpairedBrace(_)));
    check("{repository}}", |e| matches!(e, T::UnpairedBrace(_)));
    check("/{repository}", |e| matches!(e, T::EmptyComponent(_)));
    check("{repository}/", |e| matches!(e, T::EmptyComponent(_)));
    check("{registry}//{repository}", |e| matches!(e, T::EmptyComponent(_)));
    check("X/{repository}", |e| matches!(e, T::InvalidText { .. }));
    check("{repository}-", |e| matches!(e, T::InvalidText { .. }));
    check("_{repository}", |e| matches!(e, T::InvalidText { .. }));
    check("x:1/{repository}", |e| matches!(e, T::InvalidText { .. }));
}

#[test]
fn messages_tell_what_to_do() {
    let error = "{registry}-{repository}".parse::<Template>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot use repository template \"{registry}-{repository}\": there must be a \"/\" between \
         {registry} and {repository}, else two images could have one name"
    );
    let error = "{tag}/{repository}".parse::<Template>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot use repository template \"{tag}/{repository}\": {tag} is unknown, there are {registry} \
         and {repository}"
    );
}

#[test]
fn templates_and_registries_print_as_they_were_written() {
    for text in [DEFAULT, "x-{registry}_y/z/a__{repository}-b", "{repository}"] {
        let template: Template = text.parse().unwrap();
        assert_eq!(template.to_string(), text);
        assert_eq!(
            template.keeps_registries_apart(),
            text.contains("{registry}"),
            "{text}"
        );
    }
    for text in [
        "mirror.example.com",
        "Mirror:5000/a/b",
        "[fd00::1]:5000/x",
        "localhost",
    ] {
        assert_eq!(text.parse::<MirrorRegistry>().unwrap().to_string(), text);
    }
}

/// References from so few parts that look-alikes meet: hosts with ports beside paths such as
/// `a.b_5000`, and one host in several spellings.
fn images() -> impl Strategy<Value = String> {
    let host = prop::sample::select(vec![
        "",
        "docker.io/",
        "index.docker.io/",
        "a.b/",
        "A.b/",
        "a.b:5000/",
        "a.b:500/",
        "a.b5000/",
        "a:5000/",
        "A/",
        "A-B/",
        "a.b-x/",
        "localhost/",
        "LOCALHOST/",
        "IPV6/",
        "[::1]/",
        "[0:0::1]/",
        "[::1]:5000/",
        "[::5000]/",
        "[::FFFF:1:2]/",
        "[::ffff:1:2]/",
    ]);
    let look_alike = prop::sample::select(vec![
        "a",
        "x",
        "library",
        "a.b",
        "a.b_5000",
        "a_5000",
        "a-b",
        "ipv6_00000000000000000000000000000001",
        "ipv6_00000000000000000000000000000001_5000",
    ]);
    let component = prop_oneof![look_alike.prop_map(String::from), "[ab]([_-][ab])?"];
    let path = prop::collection::vec(component, 1..3).prop_map(|components| components.join("/"));
    let version = prop_oneof![
        Just(String::new()),
        Just(":latest".to_owned()),
        Just(":5000".to_owned()),
        Just(format!("@{SHA256}")),
        Just(format!(":5000@{SHA256}")),
        Just(format!("@{OTHER}")),
    ];
    (host, path, version)
        .prop_map(|(host, path, version)| format!("{host}{path}{version}"))
        // Without a host, a path such as `a.b_5000/a` begins with what would be a host.
        .prop_filter("a reference", |text| Reference::parse(text).is_ok())
}

fn mappings() -> impl Strategy<Value = Mapping> {
    let registry = prop::sample::select(vec![
        "a.b",
        "Mirror.Example.com:5000",
        "[fd00::1]:5000/a",
        "localhost/a/x",
    ]);
    let template = prop::sample::select(vec![
        DEFAULT,
        "{repository}/{registry}",
        "x/{registry}-a/b_{repository}-x",
        "a-{repository}-a/a/a_{registry}_5000/a",
    ]);
    (registry, template).prop_map(|(registry, template)| mapping(registry, template))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn images_share_a_place_exactly_if_they_are_the_same(
        mirror in mappings(), one in images(), other in images()
    ) {
        let (one, other) = (Reference::parse(&one).unwrap(), Reference::parse(&other).unwrap());
        let (mapped_one, mapped_other) = (mirror.map(&one, Form::Written).unwrap(), mirror.map(&other, Form::Written).unwrap());
        let mapped_key = |mapped: &str| Reference::parse(mapped).unwrap().key();
        prop_assert_eq!(
            one.key() == other.key(),
            mapped_key(&mapped_one) == mapped_key(&mapped_other),
            "{} and {}, {} and {}", one, other, mapped_one, mapped_other
        );
    }

    #[test]
    fn what_is_mapped_parses_to_its_place_in_the_mirror(mirror in mappings(), image in images()) {
        let image = Reference::parse(&image).unwrap();
        let pin: Digest = OTHER.parse().unwrap();
        for form in [Form::Written, Form::TagAndDigest(&pin), Form::Digest(&pin)] {
            let mapped = mirror.map(&image, form).unwrap();
            let parsed = Reference::parse(&mapped).unwrap();
            prop_assert_eq!(parsed.host(), mirror.registry.host());
            prop_assert_eq!(parsed.to_string(), mapped.as_str());
            prop_assert_eq!(parsed.path_parts().concat(), mirror.repository_path(&image).unwrap());
            let pinned = (!matches!(form, Form::Written)).then_some(OTHER);
            prop_assert_eq!(parsed.digest(), image.digest().or(pinned));
            if matches!(form, Form::Digest(_)) {
                prop_assert_eq!(parsed.tag(), None);
            }
        }
    }
}
