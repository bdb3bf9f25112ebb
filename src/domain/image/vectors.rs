//! The test vectors of distribution/reference v0.6.0, see `tests/fixtures/references/README.md`.

use serde_json::Value;

use super::Reference;

/// Reads a table, compares each of its vectors with what v0.6.0 makes of the input, and with the
/// table's own expectation by `agrees`, which gets the parsed reference if there is one.
#[track_caller]
fn check(table: &str, json: &str, count: usize, agrees: impl Fn(&Value, Option<Reference<'_>>) -> bool) {
    let vectors: Vec<Value> = serde_json::from_str(json).expect("the fixture is JSON");
    assert_eq!(vectors.len(), count, "number of vectors of {table}");
    for vector in &vectors {
        let input = text(&vector["input"]);
        let normalized = &vector["normalized"];
        let parsed = Reference::parse_normalized(input).ok();
        let found = parsed.map(|reference| {
            let path = reference.path_parts().concat();
            (reference.host(), path, reference.tag(), reference.digest())
        });
        let wanted = normalized.is_object().then(|| {
            let path = text(&normalized["path"]).to_owned();
            let tag = normalized["tag"].as_str();
            (
                text(&normalized["domain"]),
                path,
                tag,
                normalized["digest"].as_str(),
            )
        });
        assert_eq!(found, wanted, "{table}: {input:?}");
        let expected = &vector["expected"];
        assert!(
            agrees(expected, parsed),
            "{table}: {input:?} should be {expected}, is {parsed:?}"
        );
    }
    println!("{count} vectors of distribution/reference passed: {table}");
}

/// Vectors that are references by the grammar, and of which nothing can be pulled.
#[test]
fn what_cannot_be_pulled_is_refused() {
    use super::ParseReferenceError::{Identifier, InvalidHost, InvalidPort};
    let digest = "sha256:dbcc1c35ac38df41fd2f5e4130b32ffdb93ebae8b3dbe638c23575912276fc9c";
    for (input, fault) in [
        ("192.168.1.1:75050/repo", InvalidPort),
        ("192.168.1.1:750050/repo", InvalidPort),
        ("[fd00:1:2::3]:75050/repo", InvalidPort),
        ("[fd00123123123]:75050/repo", InvalidHost),
        (digest, Identifier),
    ] {
        assert!(Reference::parse_normalized(input).is_ok(), "{input}");
        assert_eq!(Reference::parse(input).err(), Some(fault), "{input}");
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Returns the reference if there is something to pull by it.
fn pulled(reference: Reference<'_>) -> Option<Reference<'_>> {
    Reference::parse(reference.written()).ok()
}

fn same_tag_and_digest(expected: &Value, reference: &Reference<'_>) -> bool {
    reference.tag() == expected["tag"].as_str() && reference.digest() == expected["digest"].as_str()
}

macro_rules! table {
    ($file:literal) => {
        include_str!(concat!("../../../tests/fixtures/references/", $file, ".json"))
    };
}

#[test]
fn validate_reference_name() {
    let json = table!("validate_reference_name");
    check("TestValidateReferenceName", json, 41, |expected, parsed| {
        expected["valid"] == parsed.is_some()
    });
}

#[test]
fn validate_remote_name() {
    let json = table!("validate_remote_name");
    check("TestValidateRemoteName", json, 21, |expected, parsed| {
        expected["valid"] == parsed.is_some()
    });
}

#[test]
fn parse_repository_info() {
    let json = table!("parse_repository_info");
    check("TestParseRepositoryInfo", json, 48, |expected, parsed| {
        parsed.is_some_and(|reference| {
            reference.host() == expected["Domain"]
                && reference.path_parts().concat() == expected["RemoteName"]
                && reference.to_string() == expected["FullName"]
        })
    });
}

#[test]
fn parse_reference_with_tag_and_digest() {
    let json = table!("parse_reference_with_tag_and_digest");
    check(
        "TestParseReferenceWithTagAndDigest",
        json,
        1,
        |expected, parsed| {
            parsed.is_some_and(|reference| {
                reference.to_string() == format!("docker.io/library/{}", text(&expected["familiar"]))
                    && reference.tag().is_some()
                    && reference.digest().is_some()
            })
        },
    );
}

/// Identifiers and bare digests, which that function accepts, are no images to pull.
#[test]
fn parse_any_reference() {
    let json = table!("parse_any_reference");
    check(
        "TestParseAnyReference",
        json,
        14,
        |expected, parsed| match parsed.and_then(pulled) {
            Some(reference) => reference.to_string() == expected["Equivalent"],
            None => expected["Expected"] == "digestReference",
        },
    );
}

#[test]
fn normalized_split_hostname() {
    let json = table!("normalized_split_hostname");
    check("TestNormalizedSplitHostname", json, 11, |expected, parsed| {
        parsed.is_some_and(|reference| {
            reference.host() == expected["domain"] && reference.path_parts().concat() == expected["path"]
        })
    });
}

#[test]
fn parse_docker_ref() {
    let json = table!("parse_docker_ref");
    check("TestParseDockerRef", json, 11, |expected, parsed| {
        parsed.is_some_and(|reference| reference.key().as_str() == expected["expected"])
    });
}

/// Of names without a host, `Parse` says what is written and Kagami what is meant; so only tag,
/// digest and refusals are compared with this table's own columns.
#[test]
fn reference_parse() {
    let json = table!("reference_parse");
    check("TestReferenceParse", json, 47, |expected, parsed| match parsed {
        Some(reference) => expected["err"].is_null() && same_tag_and_digest(expected, &reference),
        None => expected["err"].is_string(),
    });
}

/// Names with a tag or a digest are no names, but they are references.
#[test]
fn with_name_failure() {
    let json = table!("with_name_failure");
    check("TestWithNameFailure", json, 7, |expected, parsed| {
        parsed.is_none() || expected["input"] == "example.com/repo:tag"
    });
}

#[test]
fn domain_and_path() {
    let json = table!("domain_and_path");
    check("TestDomainAndPath", json, 6, |expected, parsed| {
        parsed.is_some_and(|reference| {
            let host = match text(&expected["domain"]) {
                "" => "docker.io",
                host => host,
            };
            reference.host() == host && reference.path_parts().concat() == expected["path"]
        })
    });
}

#[test]
fn serialization() {
    let json = table!("serialization");
    check("TestSerialization", json, 4, |expected, parsed| match parsed {
        Some(reference) => {
            let name = [reference.host(), "/", reference.path_parts()[1]].concat();
            name == expected["name"] && same_tag_and_digest(expected, &reference)
        }
        None => expected["err"] == "ErrNameEmpty",
    });
}

#[test]
fn parse_named() {
    let json = table!("parse_named");
    check("TestParseNamed", json, 8, |expected, parsed| {
        parsed.is_some_and(|reference| {
            let canonical = reference.to_string() == reference.written();
            canonical == expected["err"].is_null()
        })
    });
}

#[test]
fn domain_regexp() {
    let json = table!("domain_regexp");
    check("TestDomainRegexp", json, 30, |expected, parsed| {
        expected["match"] == parsed.is_some()
    });
}

/// A name that matches may still be too long, and one that does not may be a name with a tag.
#[test]
fn full_name_regexp() {
    let json = table!("full_name_regexp");
    check("TestFullNameRegexp", json, 63, |expected, parsed| {
        let input = text(&expected["input"]);
        expected["match"] == parsed.is_some() || input.len() > 255 || input == "foo_bar.com:8080"
    });
}

#[test]
fn reference_regexp() {
    let json = table!("reference_regexp");
    check("TestReferenceRegexp", json, 12, |expected, parsed| {
        expected["match"] == parsed.is_some()
    });
}

/// An identifier is the one thing that is no name; capitals are none either.
#[test]
fn identifier_regexp() {
    let json = table!("identifier_regexp");
    check("TestIdentifierRegexp", json, 5, |expected, parsed| {
        expected["match"] == false || parsed.is_none()
    });
}
