//! Images whose names a Pod passes on to its programs as well, in arguments or environment.
//!
//! Operators give such names to Pods that they create, or compare them with what runs. Kagami changes what
//! Pods pull and never these texts, so the two differ once an image is rewritten. What is found here is for
//! people to look at: whether a program compares cannot be seen.

use std::{borrow::Cow, collections::BTreeSet};

use serde::{Deserialize, Serialize};

use crate::domain::{foreign::Foreign, image::Reference, pod::PlaceKind, routing::Routing};

/// How many are told of one Pod.
const OF_A_POD: usize = 10;

/// How long the name of a flag may be to be told.
const LONGEST_FLAG: usize = 64;

/// What stands in the names of what is told to nobody: `user:password` is an image's name too.
const SECRETS: [&str; 7] = ["auth", "passw", "pwd", "secret", "token", "cred", "login"];

/// How many lines are shown of all Pods.
pub(super) const SHOWN: usize = 20;

/// What is said after the lines.
pub(super) const MEANING: &str = "these names stay as they are where Pods' images are rewritten; a program that \
                                  compares the two, or creates Pods by them, may need an exception \
                                  (docs/neighbours.md, Operators that compare images)";

/// An image's name that is passed on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PassedOn {
    /// The container, such as `containers.app`.
    pub(super) place: String,
    /// The argument or the variable.
    pub(super) by: String,
    /// As it stands there.
    pub(super) image: String,
}

#[derive(Deserialize)]
struct PodText<'a> {
    #[serde(borrow)]
    spec: Spec<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    #[serde(borrow)]
    containers: Option<Vec<Container<'a>>>,
    #[serde(borrow)]
    init_containers: Option<Vec<Container<'a>>>,
    #[serde(borrow)]
    ephemeral_containers: Option<Vec<Container<'a>>>,
}

#[derive(Deserialize)]
struct Container<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    command: Option<Vec<String>>,
    args: Option<Vec<String>>,
    #[serde(borrow)]
    env: Option<Vec<Variable<'a>>>,
}

#[derive(Deserialize)]
struct Variable<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    value: Option<String>,
}

/// Returns the names that a Pod passes on: of its own `images`, as their users wrote them, and of others that
/// a mirror has a source for.
pub(super) fn of<'i>(pod: &str, images: impl Iterator<Item = &'i str>, routing: &Routing) -> Vec<PassedOn> {
    // What is no Pod is told by whoever decides about it.
    let Ok(PodText { spec }) = serde_json::from_str(pod) else {
        return Vec::new();
    };
    let (mut keys, mut names) = (BTreeSet::new(), BTreeSet::new());
    for reference in images.filter_map(|image| Reference::parse(image).ok()) {
        let key = reference.key();
        names.insert(key.by_ref().name().to_owned());
        keys.insert(key.as_str().to_owned());
    }
    let search = Search { keys, names, routing };
    let lists = [
        (PlaceKind::InitContainer, spec.init_containers),
        (PlaceKind::Container, spec.containers),
        (PlaceKind::EphemeralContainer, spec.ephemeral_containers),
    ];
    let mut found = BTreeSet::new();
    for (kind, containers) in lists {
        for container in containers.iter().flatten() {
            for (by, text) in container.texts() {
                for image in search.images(&by, text) {
                    if found.len() == OF_A_POD {
                        return found.into_iter().collect();
                    }
                    found.insert(PassedOn {
                        place: format!("{}.{}", kind.list(), container.name),
                        by: by.clone().into_owned(),
                        image: image.to_owned(),
                    });
                }
            }
        }
    }
    found.into_iter().collect()
}

impl PassedOn {
    /// Returns the line that tells of it.
    pub(super) fn line(&self, pod: &str) -> String {
        let Self { place, by, image } = self;
        let (pod, place, by, image) = (Foreign(pod), Foreign(place), Foreign(by), Foreign(image));
        format!("{pod} {place}: {by} passes on {image}")
    }
}

impl Container<'_> {
    /// Returns what the program is given, each text with what people call it by.
    fn texts(&self) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
        let arguments = [("command", &self.command), ("args", &self.args)];
        let arguments = arguments.into_iter().flat_map(|(list, texts)| {
            let texts = texts.as_deref().unwrap_or_default();
            texts
                .iter()
                .enumerate()
                .map(move |(index, text)| argument(list, texts, index, text))
        });
        let variables = self.env.iter().flatten().filter_map(|variable| {
            let value = variable.value.as_deref()?;
            Some((Cow::Borrowed(&*variable.name), value))
        });
        arguments.chain(variables)
    }
}

/// Returns what an argument is called by, and its value: the flag in it or before it, else its position.
fn argument<'t>(list: &str, texts: &'t [String], index: usize, text: &'t str) -> (Cow<'t, str>, &'t str) {
    if let Some((flag, value)) = text.split_once('=').filter(|(flag, _)| is_flag(flag)) {
        return (flag.into(), value);
    }
    let before = index.checked_sub(1).and_then(|before| texts.get(before));
    match before.filter(|before| is_flag(before)) {
        Some(flag) => (flag.into(), text),
        None => (format!("{list}[{index}]").into(), text),
    }
}

/// Whether a text is the name of a flag and nothing else: behind a single dash there may be a password, and
/// an argument may be a whole script.
fn is_flag(text: &str) -> bool {
    let is_long = |name: &str| {
        name.len() <= LONGEST_FLAG
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    text.strip_prefix("--").is_some_and(is_long) || (text.len() == 2 && text.starts_with('-'))
}

struct Search<'r> {
    /// Of the Pod's own images.
    keys: BTreeSet<String>,
    names: BTreeSet<String>,
    routing: &'r Routing,
}

impl Search<'_> {
    /// Returns the images that a text names, which is called by `by`.
    fn images<'t>(&self, by: &str, text: &'t str) -> impl Iterator<Item = &'t str> {
        let by = by.to_ascii_lowercase();
        let is_of_images = by.contains("image") && !SECRETS.iter().any(|word| by.contains(word));
        text.split(|c: char| c.is_whitespace() || ",;=|\"'`()[]{}<>".contains(c))
            .filter(move |word| self.is_image(word, is_of_images))
    }

    /// Whether a word names an image that Kagami may rewrite. Nearly every word could be an image of Docker
    /// Hub, and `localhost:8080` too: so the word is one of the Pod's own images, or has a registry's host,
    /// or what it is called by speaks of images.
    fn is_image(&self, word: &str, is_of_images: bool) -> bool {
        if !word.contains(['/', ':', '@']) {
            return false;
        }
        let Ok(reference) = Reference::parse(word) else {
            return false;
        };
        let key = reference.key();
        let name = key.by_ref().name();
        let has_version = reference.tag().is_some() || reference.digest().is_some();
        let has_host = word
            .strip_prefix(reference.host())
            .is_some_and(|rest| rest.starts_with('/'));
        let is_meant = self.keys.contains(key.as_str())
            || (has_host && (has_version || self.names.contains(name)))
            || (is_of_images && has_version);
        is_meant && !self.routing.candidates(name).ordered.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::examples::mirror;

    #[track_caller]
    fn check(container: &serde_json::Value, expected: &[(&str, &str)]) {
        let routing = Routing::compile(vec![mirror("main", &["docker.io"])]);
        let mut container = container.clone();
        container["name"] = "app".into();
        let image = container["image"].as_str().unwrap_or("nginx:1.27").to_owned();
        let pod = json!({"spec": {"containers": [container]}}).to_string();
        let found = of(&pod, std::iter::once(&*image), &routing);
        let found: Vec<_> = found
            .iter()
            .map(|found| (found.by.as_str(), found.image.as_str()))
            .collect();
        assert_eq!(found, expected, "{pod}");
    }

    #[test]
    fn names_of_images_are_found_wherever_they_are_passed_on() {
        check(
            &json!({"args": ["--reloader=docker.io/org/reloader:v1", "--log-level=info"]}),
            &[("--reloader", "docker.io/org/reloader:v1")],
        );
        check(
            &json!({"args": ["--image=nginx:1.27"]}),
            &[("--image", "nginx:1.27")],
        );
        check(&json!({"args": ["--image=redis:8"]}), &[("--image", "redis:8")]);
        check(
            &json!({"command": ["run", "--from", "nginx:1.27"]}),
            &[("--from", "nginx:1.27")],
        );
        check(
            &json!({"command": ["run", "nginx:1.27"]}),
            &[("command[1]", "nginx:1.27")],
        );
        // What stands before may be a password or a script.
        for before in ["-pgeheim", "- echo\n", "--user geheim", "--"] {
            check(
                &json!({"command": [before, "nginx:1.27"]}),
                &[(if before == "--" { "--" } else { "command[1]" }, "nginx:1.27")],
            );
        }
        check(
            &json!({"env": [{"name": "RELATED_IMAGE_CACHE", "value": "org/cache@sha256:0000000000000000000000000000000000000000000000000000000000000000"}]}),
            &[(
                "RELATED_IMAGE_CACHE",
                "org/cache@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            )],
        );
        check(
            &json!({"env": [{"name": "SIDECARS", "value": "a=docker.io/org/a:1,b=docker.io/org/b:2;docker.io/org/c:3"}]}),
            &[
                ("SIDECARS", "docker.io/org/a:1"),
                ("SIDECARS", "docker.io/org/b:2"),
                ("SIDECARS", "docker.io/org/c:3"),
            ],
        );
        check(
            &json!({"env": [{"name": "CONFIG", "value": "{\"proxy\": {\"image\": \"docker.io/org/proxy:1\"}}"}]}),
            &[("CONFIG", "docker.io/org/proxy:1")],
        );
        // Its own image, under whatever name, and its repository alone.
        check(
            &json!({"env": [{"name": "SELF", "value": "docker.io/library/nginx:1.27"}]}),
            &[("SELF", "docker.io/library/nginx:1.27")],
        );
        check(
            &json!({"env": [{"name": "SELF", "value": "docker.io/library/nginx"}]}),
            &[("SELF", "docker.io/library/nginx")],
        );
    }

    #[test]
    fn what_is_no_image_of_a_mirror_is_not_told() {
        check(
            &json!({
                "image": "nginx",
                "command": ["run", "-image=redis:8", "-predis:8", "-"],
                "args": [
                    "nginx", "--listen=localhost:8080", "--path=/var/lib/nginx:ro", "--db=org/name",
                    "http://docker.io/org/a:1", "--image=quay.io/org/other:1", "--image-policy=Always", "a:b:c", "",
                ],
                "env": [
                    {"name": "IMAGE_REGISTRY_LOGIN", "value": "user:geheim"}, {"name": "IMAGE_PULL_TOKEN", "value": "a:b"},
                    {"name": "IMAGE", "value": "nginx"}, {"name": "HOST", "value": "docker.io/org"},
                    {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                ],
            }),
            &[],
        );
        assert_eq!(of("{}", std::iter::empty(), &Routing::default()), []);
    }

    #[test]
    fn a_pod_has_only_so_many() {
        let value: Vec<String> = (0..100).map(|index| format!("docker.io/org/a:{index}")).collect();
        let pod = json!({"spec": {"initContainers": [
            {"name": "app", "env": [{"name": "ALL", "value": value.join(",")}]},
        ]}});
        let routing = Routing::compile(vec![mirror("main", &["docker.io"])]);
        let found = of(&pod.to_string(), std::iter::empty(), &routing);
        assert_eq!(found.len(), OF_A_POD);
        assert_eq!(
            found[0].line("web"),
            "web initContainers.app: ALL passes on docker.io/org/a:0"
        );
    }
}
