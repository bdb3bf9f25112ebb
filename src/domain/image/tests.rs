use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::{BoxedKey, Class, ImageKey, KeyRef, ParseKeyError, ParseReferenceError as E, Reference};

const SHA256: &str = "sha256:86e0e091d0da6bde2456dbb48306f3956bbeb2eae1b5b9a43045843f69fe4aaa";

#[track_caller]
fn key(written: &str) -> String {
    let mut room = "left over".to_owned();
    let key = Reference::parse(written).unwrap().write_key(&mut room);
    key.to_string()
}

#[track_caller]
fn check_error(written: &str, expected: E) {
    assert_eq!(Reference::parse(written).err(), Some(expected), "{written}");
}

#[test]
fn each_fault_has_its_own_error() {
    let hexadecimal = "1a3f5e7d9c1b3a5f7e9d1c3b5a7f9e1d3c5b7a9f1e3d5d7c9b1a3f5e7d9c1b3a";
    check_error("", E::NoRepository);
    check_error(":tag", E::NoRepository);
    for text in [
        " ",
        "nginx ",
        " nginx",
        "nginx:1.27\n",
        "ngi nx",
        "nginx\u{1b}",
        "nginx\u{a0}",
    ] {
        check_error(text, E::WhiteSpace);
    }
    check_error("example.com/", E::NoRepository);
    check_error(&format!("@{SHA256}"), E::NoRepository);
    check_error(hexadecimal, E::Identifier);
    check_error(SHA256, E::Identifier);
    check_error(&format!("sha512:{}", "f".repeat(128)), E::Identifier);
    check_error("foo_bar.com/app", E::InvalidHost);
    check_error("a..b/app", E::InvalidHost);
    check_error("a-.b/app", E::InvalidHost);
    check_error("a.-b/app", E::InvalidHost);
    check_error("a.b-/app", E::InvalidHost);
    check_error(":5000/app", E::InvalidHost);
    check_error("[::1/app", E::InvalidHost);
    check_error("[::1]x/app", E::InvalidHost);
    check_error("[::ffff:192.0.2.1]/app", E::InvalidHost);
    check_error("[fe80::1%eth0]/app", E::InvalidHost);
    check_error("[1:2]/app", E::InvalidHost);
    check_error("host:/app", E::InvalidPort);
    check_error("host:http/app", E::InvalidPort);
    check_error("host:+80/app", E::InvalidPort);
    check_error("host:65536/app", E::InvalidPort);
    check_error("host:000080/app", E::InvalidPort);
    check_error("[::1]:/app", E::InvalidPort);
    check_error("Docker.io/library/nginx", E::MiscasedDockerHub);
    check_error("INDEX.docker.io/nginx", E::MiscasedDockerHub);
    check_error("example.com/App", E::UppercasePath);
    check_error("App", E::UppercasePath);
    check_error("example.com/a//b", E::InvalidPath);
    check_error("example.com/a/", E::InvalidPath);
    check_error("a___b", E::InvalidPath);
    check_error("a..b", E::InvalidPath);
    check_error("a_-b", E::InvalidPath);
    check_error("a-.b", E::InvalidPath);
    check_error("a.-b", E::InvalidPath);
    check_error("ngınx", E::InvalidPath);
    check_error("docker.io/library/", E::InvalidPath);
    check_error("nginx:", E::InvalidTag);
    check_error("nginx:.1", E::InvalidTag);
    check_error("library/nginx:a/b", E::InvalidTag);
    check_error("nginx:a:b", E::InvalidTag);
    check_error(&format!("nginx:{}", "t".repeat(129)), E::InvalidTag);
    check_error("nginx@sha256:abc", E::InvalidDigest);
    check_error("nginx@", E::InvalidDigest);
    check_error(&format!("nginx@{SHA256}@{SHA256}"), E::InvalidDigest);
    check_error(
        &format!("nginx@{}", SHA256.to_uppercase()),
        E::UnsupportedDigestAlgorithm,
    );
    check_error("nginx@sha384:abc", E::UnsupportedDigestAlgorithm);
}

/// The three inputs of distribution/reference's `TestInvalidReferenceComponents`.
#[test]
fn invalid_components_are_refused() {
    check_error("-foo", E::InvalidPath);
    check_error("busybox:-foo", E::InvalidTag);
    check_error("busybox@foo", E::InvalidDigest);
}

#[test]
fn the_path_ends_at_255_bytes_with_library_and_without_the_host() {
    let longest = "a".repeat(255);
    assert!(Reference::parse(&format!("{}.example.com/{longest}:tag", "h".repeat(60))).is_ok());
    check_error(&format!("example.com/{longest}a"), E::PathTooLong);
    assert!(Reference::parse(&longest[..247]).is_ok());
    check_error(&longest[..248], E::PathTooLong);
    assert!(Reference::parse(&format!("nginx:{}", "t".repeat(128))).is_ok());
}

#[test]
fn keys_are_the_identity_of_an_image() {
    assert_eq!(key("nginx"), "docker.io/library/nginx:latest");
    assert_eq!(key("index.docker.io/nginx:1.27"), "docker.io/library/nginx:1.27");
    assert_eq!(key("docker.io/library"), "docker.io/library/library:latest");
    assert_eq!(key("Quay.IO:443/a/b:Tag"), "quay.io:443/a/b:Tag");
    assert_eq!(
        key(&format!("nginx:1.27@{SHA256}")),
        format!("docker.io/library/nginx@{SHA256}")
    );
    assert_eq!(key(&format!("nginx@{SHA256}")), key(&format!("nginx:x@{SHA256}")));
    assert_eq!(key("[0:0:0::0001]:5000/app"), "[::1]:5000/app:latest");
    assert_eq!(key("[::FFFF:C000:201]/app"), "[::ffff:c000:201]/app:latest");
}

#[test]
fn a_host_known_by_its_capitals_stays_one_in_the_key() {
    assert_eq!(key("Foo/bar"), "FOO/bar:latest");
    assert_eq!(key("FOO/bar"), "FOO/bar:latest");
    assert_eq!(key("foo/bar"), "docker.io/foo/bar:latest");
    assert_eq!(key("LocalHost/bar"), "localhost/bar:latest");
}

#[test]
fn only_the_form_that_all_share_is_a_key() {
    let check = |text: &str, expected: Result<(), ParseKeyError>| {
        assert_eq!(KeyRef::parse(text).map(drop), expected, "{text}");
        assert_eq!(text.parse::<ImageKey>().map(drop), expected, "{text}");
    };
    check("docker.io/library/nginx:latest", Ok(()));
    check("FOO/bar:1", Ok(()));
    check("[::1]:5000/app:1", Ok(()));
    check(&format!("quay.io/a/b@{SHA256}"), Ok(()));
    for written in [
        "nginx",
        "nginx:1",
        "docker.io/nginx:1",
        "index.docker.io/library/nginx:1",
        "docker.io/library/nginx",
        "Quay.io/a/b:1",
        "Foo/bar:1",
        "[0::1]/app:1",
        "[::FFFF:C000:201]/app:1",
        &format!("quay.io/a/b:1@{SHA256}"),
    ] {
        check(written, Err(ParseKeyError::NotNormal));
    }
    check("", Err(E::NoRepository.into()));
    check("docker.io/library/nginx:1 ", Err(E::WhiteSpace.into()));
    check("main", Err(ParseKeyError::NotNormal));
}

#[test]
fn a_key_tells_its_parts() {
    let check = |written: &str, host: &str, name: &str, class: Class| {
        let key = Reference::parse(written).unwrap().key();
        let found = (key.by_ref().host(), key.by_ref().name(), key.by_ref().class());
        assert_eq!(found, (host, name, class), "{written}");
    };
    check("nginx", "docker.io", "docker.io/library/nginx", Class::Tag);
    let pinned = format!("nginx:1@{SHA256}");
    check(&pinned, "docker.io", "docker.io/library/nginx", Class::Digest);
    check("a.b:5000/c:1", "a.b:5000", "a.b:5000/c", Class::Tag);
    let pinned = format!("a.b:5000/c@{SHA256}");
    check(&pinned, "a.b:5000", "a.b:5000/c", Class::Digest);
    check("[::1]:5000/c", "[::1]:5000", "[::1]:5000/c", Class::Tag);
}

#[test]
fn what_is_held_is_found_by_what_is_borrowed() {
    let texts = ["docker.io/library/nginx:1", "quay.io/a/b:1", "a.b/c:1"];
    let keys = || texts.into_iter().map(|text| KeyRef::parse(text).unwrap());
    let shared: HashMap<ImageKey, &str> = keys().map(ImageKey::from).zip(texts).collect();
    let sorted: BTreeMap<ImageKey, &str> = keys().map(ImageKey::from).zip(texts).collect();
    let boxed: HashMap<BoxedKey, &str> = keys().map(BoxedKey::from).zip(texts).collect();
    for key in keys() {
        let found = [
            shared.get(key.as_str()),
            sorted.get(key.as_str()),
            boxed.get(key.as_str()),
        ];
        assert_eq!(found, [Some(&key.as_str()); 3]);
    }
    let mut in_order: Vec<KeyRef<'_>> = keys().collect();
    in_order.sort_unstable();
    let held: Vec<KeyRef<'_>> = sorted.keys().map(ImageKey::by_ref).collect();
    assert_eq!(held, in_order);
}

/// A replica holds one for each image that is known.
#[test]
fn a_held_key_is_no_larger_than_its_text() {
    assert_eq!(size_of::<BoxedKey>(), size_of::<Box<str>>());
    assert_eq!(size_of::<ImageKey>(), size_of::<Box<str>>());
}

#[test]
fn a_digest_decides_the_class_and_what_is_asked_for() {
    let check = |written: &str, class, asked: &str| {
        let reference = Reference::parse(written).unwrap();
        assert_eq!(
            (reference.class(), reference.manifest_reference()),
            (class, asked),
            "{written}"
        );
    };
    check("nginx", Class::Tag, "latest");
    check("nginx:1.27", Class::Tag, "1.27");
    check(&format!("nginx@{SHA256}"), Class::Digest, SHA256);
    check(&format!("nginx:1.27@{SHA256}"), Class::Digest, SHA256);
}

/// Texts that are references, mostly, and near misses.
fn texts() -> impl Strategy<Value = String> {
    let host = prop_oneof![
        Just(String::new()),
        "(docker\\.io|index\\.docker\\.io|localhost|Foo|quay\\.io|A-b\\.C)(:[0-9]{1,6})?/",
        "\\[[0-9a-fA-F:]{2,12}\\](:[0-9]{1,5})?/",
        "[a-zA-Z0-9._:-]{1,8}/",
    ];
    let path = "(library/)?[a-z0-9]{1,3}([._-]{0,2}[a-z0-9]){0,3}(/[a-zA0-9._-]{1,6}){0,2}";
    let tag = prop_oneof![Just(String::new()), ":[A-Za-z0-9_.-]{0,6}"];
    let digest = prop_oneof![
        Just(String::new()),
        "@sha256:[0-9a-f]{64}",
        "@sha512:[0-9a-f]{128}"
    ];
    (host, path, tag, digest).prop_map(|(host, path, tag, digest)| host + &path + &tag + &digest)
}

proptest! {
    #[test]
    fn what_is_printed_parses_to_the_same(text in texts()) {
        if let Ok(reference) = Reference::parse(&text) {
            let printed = reference.to_string();
            let again = Reference::parse(&printed).unwrap();
            prop_assert_eq!(again.to_string(), printed.as_str());
            prop_assert_eq!(again.host(), reference.host());
            prop_assert_eq!(again.path_parts(), reference.path_parts());
            prop_assert_eq!(again.tag(), reference.tag());
            prop_assert_eq!(again.digest(), reference.digest());
        }
    }

    #[test]
    fn a_key_parses_to_itself(text in texts()) {
        if let Ok(reference) = Reference::parse(&text) {
            let first = reference.key();
            let key = KeyRef::parse(first.as_str());
            prop_assert_eq!(key, Ok(first.by_ref()));
            prop_assert_eq!(key.unwrap().class(), reference.class());
            let parsed = Reference::parse(first.as_str()).unwrap();
            for again in [parsed, first.by_ref().reference()] {
                prop_assert_eq!(again.class(), reference.class());
                prop_assert_eq!(again.manifest_reference(), reference.manifest_reference());
                prop_assert_eq!(again.path_parts(), reference.path_parts());
                prop_assert_eq!(again.host(), first.by_ref().host());
                prop_assert_eq!(again.tag().is_some(), reference.digest().is_none());
                prop_assert_eq!(again.digest(), reference.digest());
                prop_assert_eq!(again.written(), first.as_str());
                prop_assert_eq!(again.key(), first.clone());
            }
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
        drop(Reference::parse(&text).map(|reference| reference.to_string()));
    }
}
