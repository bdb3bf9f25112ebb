//! Image references and their mapping: nothing panics, everything printed parses to itself, and no
//! two images share a place in a mirror.
//!
//! An input has up to four lines: an image, another image, a registry, a template. Without the last
//! two, usual ones are used.

#![no_main]

use kagami::domain::{
    image::{ImageKey, KeyRef, Reference},
    mapping::{Form, Mapping, MirrorRegistry, Template},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| check(text));

fn check(text: &str) {
    let mut lines = text.split('\n');
    let images = [lines.next(), lines.next()].map(|line| parse(line.unwrap_or_default()));
    let mapping = mapping(
        lines.next().unwrap_or("mirror.example.com:5000/team"),
        lines.next().unwrap_or("{registry}/{repository}"),
    );
    let Some(mapping) = mapping else { return };
    let mapped = images.map(|image| image.and_then(|image| map(&mapping, &image)));
    if let (true, [Some(one), Some(other)]) = (mapping.template.keeps_registries_apart(), mapped) {
        assert_eq!(one.0 == other.0, one.1 == other.1, "{one:?} and {other:?}");
    }
}

/// Parses an image; what is printed and the key must parse to themselves.
fn parse(text: &str) -> Option<Reference<'_>> {
    let image = Reference::parse(text).ok()?;
    let printed = image.to_string();
    let again = Reference::parse(&printed).expect("what is printed parses");
    assert_eq!(again.to_string(), printed);
    assert_eq!(again.key(), image.key());

    let first = image.key();
    assert_eq!(KeyRef::parse(first.as_str()), Ok(first.by_ref()));
    let parsed = Reference::parse(first.as_str()).expect("a key parses");
    for again in [parsed, first.by_ref().reference()] {
        assert_eq!(again.key(), first);
        assert_eq!(again.manifest_reference(), image.manifest_reference());
    }
    Some(image)
}

fn mapping(registry: &str, template: &str) -> Option<Mapping> {
    let mapping = Mapping {
        registry: registry.parse().ok()?,
        template: template.parse().ok()?,
    };
    let again: MirrorRegistry = mapping
        .registry
        .to_string()
        .parse()
        .expect("a printed registry parses");
    assert_eq!(again, mapping.registry);
    let again: Template = mapping
        .template
        .to_string()
        .parse()
        .expect("a printed template parses");
    assert_eq!(again, mapping.template);
    Some(mapping)
}

/// Maps an image, and returns its key and that of its place.
fn map(mapping: &Mapping, image: &Reference<'_>) -> Option<(ImageKey, ImageKey)> {
    let mapped = mapping.map(image, Form::Written).ok()?;
    let place = Reference::parse(&mapped).expect("what is mapped parses");
    assert_eq!(place.to_string(), mapped, "what is mapped is complete");
    assert_eq!(
        place.host(),
        mapping.registry.host(),
        "{mapped} is in {}",
        mapping.registry
    );
    assert_eq!((place.tag(), place.digest()), (image.tag(), image.digest()));
    Some((image.key(), place.key()))
}
