//! The architecture as a test: who may use whom, and that every file is part of the program.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A part of `src` with the parts and the crates that it may use. What is not named is forbidden.
struct Layer {
    name: &'static str,
    parts: &'static [&'static str],
    /// Crates beside `std`; none at all are bound for the edges, whose dependencies are their point.
    crates: Option<&'static [&'static str]>,
}

const EDGES: &[&str] = &[
    "api",
    "certificates",
    "clock",
    "cluster",
    "credentials",
    "domain",
    "metrics",
    "registry",
    "server",
    "state",
    "tasks",
    "telemetry",
];

/// Bottom up, as in ARCHITECTURE.md.
const LAYERS: &[Layer] = &[
    Layer {
        name: "domain",
        parts: &[],
        crates: Some(&[
            "foldhash",
            "hashbrown",
            "memchr",
            "serde",
            "serde_json",
            "smallvec",
            "thiserror",
        ]),
    },
    Layer {
        name: "api",
        parts: &["domain"],
        crates: Some(&[
            "k8s_openapi",
            "kube",
            "schemars",
            "serde",
            "serde_json",
            "sha2",
            "jiff",
        ]),
    },
    Layer {
        name: "clock",
        parts: &["domain"],
        crates: Some(&[]),
    },
    Layer {
        name: "certificates",
        parts: &["domain"],
        crates: Some(&["rcgen", "thiserror"]),
    },
    Layer {
        name: "tasks",
        parts: &[],
        crates: Some(&["thiserror", "tokio", "tracing"]),
    },
    Layer {
        name: "telemetry",
        parts: &["domain"],
        crates: Some(&["kube", "thiserror", "tracing", "tracing_subscriber"]),
    },
    Layer {
        name: "metrics",
        parts: &["domain", "server"],
        crates: Some(&["prometheus_client"]),
    },
    Layer {
        name: "credentials",
        parts: &["domain"],
        crates: Some(&["base64", "serde", "serde_json", "thiserror", "tokio"]),
    },
    Layer {
        name: "registry",
        parts: &["clock", "credentials", "domain"],
        crates: None,
    },
    Layer {
        name: "server",
        parts: &["certificates", "domain", "tasks", "telemetry"],
        crates: None,
    },
    Layer {
        name: "cluster",
        parts: &["api", "clock", "domain", "metrics", "telemetry"],
        crates: None,
    },
    Layer {
        name: "state",
        parts: &[
            "api",
            "clock",
            "cluster",
            "credentials",
            "domain",
            "metrics",
            "registry",
            "tasks",
            "telemetry",
        ],
        crates: None,
    },
    Layer {
        name: "webhook",
        parts: EDGES,
        crates: None,
    },
    Layer {
        name: "companion",
        parts: EDGES,
        crates: None,
    },
    Layer {
        name: "cli",
        parts: &[
            "api",
            "certificates",
            "clock",
            "cluster",
            "companion",
            "credentials",
            "domain",
            "metrics",
            "registry",
            "server",
            "state",
            "tasks",
            "telemetry",
            "webhook",
        ],
        crates: None,
    },
];

/// What the core must not touch, even though `std` has it.
const IMPURE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "Instant",
    "SystemTime",
    "async ",
    ".await",
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Returns every Rust file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Returns the layer that a file belongs to: the first component of its path.
fn layer_of(file: &Path) -> String {
    let relative = file.strip_prefix(source()).unwrap();
    let first = relative.components().next().unwrap();
    Path::new(first.as_os_str())
        .file_stem()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

/// Returns a file's code without comments and without its test module.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let uncommented = |line: &str| line.split("//").next().unwrap().trim_end().to_owned();
    text.lines().map(uncommented).collect::<Vec<_>>().join("\n")
}

fn is_test(file: &Path) -> bool {
    file.file_stem()
        .is_some_and(|stem| stem == "tests" || stem == "vectors")
        || file.components().any(|part| part.as_os_str() == "tests")
}

/// Returns the first path components that follow `crate::`, groups in braces included.
fn parts_used(code: &str) -> BTreeSet<String> {
    heads_after(code, "crate::")
}

/// Returns the first path components that follow a path, groups in braces included.
fn heads_after(code: &str, path: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (position, _) in code.match_indices(path) {
        let before = code[..position].chars().next_back();
        let is_whole =
            |character: char| !(character.is_alphanumeric() || character == '_' || character == ':');
        // Only `crate::` begins a path; others may follow one.
        if path == "crate::" && !before.is_none_or(is_whole) {
            continue;
        }
        used.extend(heads(&code[position + path.len()..]));
    }
    used.remove("");
    used
}

/// Returns the path component that text begins with, or those of a group in braces.
fn heads(text: &str) -> Vec<String> {
    match text.strip_prefix('{') {
        Some(group) => group_heads(group),
        None => vec![identifier(text)],
    }
}

/// Returns the identifiers at the top level of a group that was just opened.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut heads) = (1_usize, 0, Vec::new());
    for (position, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => {
                heads.push(identifier(group[start..position].trim_start()));
                start = position + 1;
            }
            _ => {}
        }
        if depth == 0 {
            heads.push(identifier(group[start..position].trim_start()));
            break;
        }
    }
    heads
}

fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|character| character.is_alphanumeric() || *character == '_')
        .collect()
}

/// Returns the crates that `use` lines of a file name.
fn crates_used(code: &str) -> BTreeSet<String> {
    code.lines()
        .filter_map(|line| {
            line.trim_start()
                .strip_prefix("use ")
                .or_else(|| line.trim_start().strip_prefix("pub use "))
        })
        .map(|path| identifier(path.trim_start_matches("::")))
        .filter(|name| !matches!(name.as_str(), "std" | "core" | "crate" | "self" | "super" | ""))
        .collect()
}

/// Returns what a file does that its layer does not allow.
fn violations(layer: &Layer, name: &str, code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in parts_used(code) {
        if part != layer.name && !layer.parts.contains(&part.as_str()) {
            found.push(format!("{name}: {} may not use crate::{part}", layer.name));
        }
    }
    if let Some(allowed) = layer.crates {
        // A name that the file's own modules or items have is no crate.
        let own =
            |used: &String| code.contains(&format!("mod {used};")) || used.starts_with(char::is_uppercase);
        for used in crates_used(code)
            .iter()
            .filter(|used| !own(used) && !allowed.contains(&used.as_str()))
        {
            found.push(format!("{name}: {} may not use the crate {used}", layer.name));
        }
    }
    if layer.name == "domain" {
        for impure in IMPURE.iter().filter(|impure| code.contains(**impure)) {
            found.push(format!("{name}: the core may not use {impure}"));
        }
    }
    found
}

#[test]
fn every_part_uses_only_what_lies_below_it() {
    let mut found = Vec::new();
    for file in files(&source()) {
        let layer = layer_of(&file);
        if layer == "lib" || layer == "main" || is_test(&file) {
            continue;
        }
        let name = file.strip_prefix(source()).unwrap().display().to_string();
        match LAYERS.iter().find(|known| known.name == layer) {
            Some(known) => found.extend(violations(known, &name, &code(&file))),
            None => found.push(format!(
                "{name}: {layer} stands in no layer; add it to LAYERS and ARCHITECTURE.md"
            )),
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The rooms of a part, bottom up: none may use one above it. What stands beside them in the part's `mod.rs` is
/// the ground of `state` and the roof of the others.
const ROOMS: &[(&str, &[&str])] = &[
    ("companion", &["mirror", "cluster"]),
    (
        "companion/cluster",
        &[
            "placed",
            "status",
            "probe_entry",
            "mirrors",
            "leader",
            "inherit",
            "certificates",
            "definitions",
            "heartbeat",
            "brake",
            "pod_events",
            "rescuer",
            "register",
            "hangs",
            "lasting",
            "unrecorded",
            "evictor",
            "owners",
            "originals",
            "pods",
            "probe_secret",
            "pull_secrets",
            "publisher",
        ],
    ),
    (
        "companion/mirror",
        &[
            "reports",
            "wants",
            "context",
            "upstream",
            "look",
            "verifier",
            "copier",
            "refresher",
            "demand",
            "prober",
            "resolver",
            "sweeper",
        ],
    ),
    (
        "state",
        &[
            "interest",
            "canaries",
            "pinger",
            "configuration",
            "file",
            "logins",
            "feed",
            "replica",
        ],
    ),
];

/// The parts whose own `mod.rs` builds on all their rooms.
const ROOFED: &[&str] = &["companion/cluster", "companion/mirror"];

/// Returns what a file names directly below its part.
fn named_in_part(part: &str, depth: usize, code: &str) -> BTreeSet<String> {
    let by_path = format!("{}::", part.replace('/', "::"));
    let upwards = "super::".repeat(depth);
    let mut named = heads_after(code, &by_path);
    for position in code.match_indices(&upwards).map(|(position, _)| position) {
        // Longer ways up lead out of the part.
        if !code[..position].ends_with("super::") {
            named.extend(heads(&code[position + upwards.len()..]));
        }
    }
    // A group's last comma leaves nothing behind it.
    named.remove("");
    named.remove("super");
    named.remove("self");
    named
}

/// Returns the rooms above its own, and what of the roof, a file names.
fn rooms_above(part: &str, rooms: &[&str], own: &str, depth: usize, code: &str) -> Vec<String> {
    let own = rooms.iter().position(|room| *room == own);
    let above = |name: &String| match rooms.iter().position(|room| room == name) {
        Some(room) => Some(room) > own,
        None => ROOFED.contains(&part),
    };
    named_in_part(part, depth, code)
        .into_iter()
        .filter(above)
        .collect()
}

#[test]
fn no_room_uses_one_above_it() {
    let mut found = Vec::new();
    for (part, rooms) in ROOMS {
        let folder = source().join(part);
        for file in files(&folder).into_iter().filter(|file| !is_test(file)) {
            let relative = file.strip_prefix(&folder).unwrap();
            let first = Path::new(relative.components().next().unwrap().as_os_str());
            let own = first.file_stem().unwrap().to_str().unwrap();
            if own == "mod" {
                continue;
            }
            assert!(rooms.contains(&own), "{part}/{own} is no room that ROOMS names");
            // From a folder's `mod.rs` one step leads up, from the files in it one more.
            let folders = relative.components().count();
            let is_map = file.file_stem().is_some_and(|stem| stem == "mod");
            let depth = if is_map { folders - 1 } else { folders };
            for named in rooms_above(part, rooms, own, depth, &code(&file)) {
                found.push(format!("{part}/{} uses {named}", relative.display()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// What writes to registries, and who alone may name it: the webhook must have no way to any of it, nor must what it
/// stands on.
const GUARDED: &[(&str, &str, &[&str])] = &[
    ("registry::", "push", &["registry"]),
    ("registry::", "source", &["registry"]),
    ("registry::", "exchange", &["registry"]),
    ("registry::", "copy", &["registry", "cli", "companion"]),
    ("domain::", "copying", &["domain", "registry", "cli", "companion"]),
];

/// Returns what of [`GUARDED`] a file of a layer names and may not.
fn guarded_named(layer: &str, code: &str) -> Vec<String> {
    GUARDED
        .iter()
        .filter(|(part, room, by)| !by.contains(&layer) && heads_after(code, part).contains(*room))
        .map(|(part, room, _)| format!("{part}{room}"))
        .collect()
}

#[test]
fn nobody_writes_to_registries_but_who_copies() {
    let mut found = Vec::new();
    for file in files(&source()).into_iter().filter(|file| !is_test(file)) {
        let name = file.strip_prefix(source()).unwrap().display().to_string();
        for named in guarded_named(&layer_of(&file), &code(&file)) {
            found.push(format!("{name} names {named}"));
        }
    }
    // Within the registry's own part, what only looks must not write either.
    let folder = source().join("registry");
    for file in files(&folder) {
        let first = file.strip_prefix(&folder).unwrap().components().next().unwrap();
        let own = Path::new(first.as_os_str())
            .file_stem()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let named = heads_after(&code(&file), "super::");
        let writes = ["push", "copy"].iter().filter(|room| named.contains(**room));
        let may = matches!(own.as_str(), "push" | "copy" | "mod");
        found.extend(
            writes
                .filter(|_| !may)
                .map(|room| format!("registry/{own} names {room}")),
        );
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_rules_see_what_they_forbid() {
    assert_eq!(
        guarded_named("webhook", "use crate::registry::{Client, copy::Job};").len(),
        1
    );
    assert_eq!(
        guarded_named(
            "state",
            "use crate::{domain::{copying::Plan, image}, registry::push};"
        )
        .len(),
        2
    );
    assert_eq!(guarded_named("cli", "use crate::registry::copy::Job;").len(), 0);
    let rooms = ["mirror", "cluster"];
    let above = |own: &str, depth, code: &str| rooms_above("companion", &rooms, own, depth, code).len();
    assert_eq!(above("mirror", 1, "use crate::companion::cluster::View;"), 1);
    assert_eq!(above("mirror", 2, "use super::super::{cluster, mirror};"), 1);
    assert_eq!(above("mirror", 2, "use super::cluster;"), 0);
    assert_eq!(above("mirror", 1, "use crate::companion::clusters;"), 0);
    assert_eq!(above("mirror", 1, "use crate::cluster::watch;"), 0);
    assert_eq!(above("cluster", 1, "use crate::companion::mirror;"), 0);
    let roof = |code: &str| rooms_above("companion/mirror", &["look"], "look", 1, code).len();
    assert_eq!(roof("use super::{Worker, look::locate};"), 1);
    assert_eq!(roof("use super::look::locate;"), 0);
    let domain = &LAYERS[0];
    let check = |code: &str| violations(domain, "x.rs", code).len();
    assert_eq!(check("use crate::domain::time;"), 0);
    assert_eq!(check("use crate::{api::{self, Fault}, webhook};"), 2);
    assert_eq!(check("let now = crate::clock::now();"), 1);
    assert_eq!(check("use tokio::time;"), 1);
    assert_eq!(check("use std::fs;"), 1);
    assert_eq!(check("async fn f() {}"), 1);
}

/// A file that no `mod` line names is never compiled, and nobody notices.
#[test]
fn every_file_is_part_of_the_program() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut orphans = Vec::new();
    let benches = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/throughput");
    for root in [
        source(),
        tests.join("it"),
        tests.join("e2e"),
        tests.join("node"),
        tests.join("support"),
        benches,
    ] {
        for file in files(&root) {
            let stem = file.file_stem().unwrap().to_str().unwrap();
            let folder = file.parent().unwrap();
            if stem == "mod" && folder == tests.join("support") {
                // Each ring names it by its path.
                continue;
            }
            let (name, parent) = match stem {
                "lib" | "main" => continue,
                "mod" => (
                    folder.file_name().unwrap().to_str().unwrap(),
                    folder.parent().unwrap(),
                ),
                stem => (stem, folder),
            };
            let declares = |declaring: PathBuf| {
                fs::read_to_string(declaring).is_ok_and(|text| {
                    text.lines().any(|line| {
                        let line = line.trim();
                        line.ends_with(&format!("mod {name};"))
                    })
                })
            };
            let declaring = [
                parent.join("mod.rs"),
                parent.join("lib.rs"),
                parent.join("main.rs"),
                parent.with_extension("rs"),
            ];
            if !declaring.into_iter().any(declares) {
                orphans.push(file.display().to_string());
            }
        }
    }
    assert!(orphans.is_empty(), "no `mod` line names {orphans:?}");
}

/// Where `cargo deny` is not installed, at least what must never come in is looked for.
#[test]
fn no_banned_crate_is_locked() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    let locked: BTreeSet<&str> = lock
        .lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .collect();
    assert!(
        locked.contains("rustls"),
        "the lock file is not read as it is written"
    );
    for banned in ["openssl", "openssl-sys", "native-tls", "aws-lc-sys", "h2"] {
        assert!(
            !locked.contains(banned),
            "{banned} must not be in Cargo.lock; see deny.toml"
        );
    }
}

#[test]
fn the_architecture_document_stays_short() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    assert!(
        text.lines().count() <= 150,
        "ARCHITECTURE.md tells only what rarely changes"
    );
    for layer in LAYERS {
        assert!(
            text.contains(&format!("`{}`", layer.name)),
            "ARCHITECTURE.md does not name `{}`",
            layer.name
        );
    }
}
