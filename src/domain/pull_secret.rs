//! Pull secrets: what the one Secret of each namespace is to hold, what stands there instead, and what to do about it.
//!
//! Kubelet offers each login of such a Secret to whatever image its key matches, and a key is a mere beginning of the
//! name (kubernetes v1.36, `pkg/credentialprovider/keyring.go`): that of `team` would also serve `team2`. So keys end
//! with a slash, and no mirror's is shorter than what all its images begin with.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hash,
};

use super::{
    mirror::{Mirror, Mode},
    names::MODE_LABEL,
    routing::MirrorId,
    snapshot::Snapshot,
};

/// Returns the keys under which kubelet finds the login for the images of a mirror, and for no others as far as whole
/// components of names tell. None where it finds none under any key: for an IPv6 address without a port, whose
/// brackets it takes for a pattern.
pub fn keys(mirror: &Mirror) -> Option<BTreeSet<String>> {
    let host = mirror.mapping.registry.host();
    if host.starts_with('[') && host.ends_with(']') {
        return None;
    }
    let beginnings = mirror
        .upstreams()
        .map(|upstream| mirror.mapping.beginning(upstream));
    Some(beginnings.map(|beginning| key(&beginning)).collect())
}

/// Returns the key for all names that begin so, `host[:port]/` or `host[:port]/path/`.
fn key(beginning: &str) -> String {
    match beginning.split_once('/') {
        // Kubelet takes these off, as the version of a registry's API; so there has to be one more.
        Some((host, path)) if path.starts_with("v1/") || path.starts_with("v2/") => {
            format!("{host}/v2/{path}")
        }
        Some((host, "")) => host.to_owned(),
        _ => beginning.to_owned(),
    }
}

/// Returns which mirrors' logins each namespace is to hold, in the order in which they are asked: those that need one,
/// may rewrite, serve the namespace, and that `may` allows; in namespaces that are labelled enforce and that are not
/// left alone. What none serves is not among them.
pub fn wanted(snapshot: &Snapshot, may: impl Fn(MirrorId, &Mirror) -> bool) -> BTreeMap<&str, Vec<MirrorId>> {
    let mut mirrors: Vec<_> = snapshot
        .routing
        .mirrors()
        .filter(|(id, mirror)| mirror.pull_secret && mirror.mode == Mode::Enforce && may(*id, mirror))
        .collect();
    mirrors.sort_by(|(_, a), (_, b)| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
    let of = |(namespace, labels): (&'_ String, &BTreeMap<String, String>)| {
        let is_enforced = labels.get(MODE_LABEL).is_some_and(|mode| mode == "enforce");
        if !is_enforced || snapshot.left_alone.contains(namespace) {
            return None;
        }
        let serving = mirrors.iter().map(|(id, _)| *id);
        let serving: Vec<_> = serving.filter(|id| snapshot.serves(*id, namespace)).collect();
        (!serving.is_empty()).then_some(serving)
    };
    let namespaces = snapshot.namespaces.iter();
    namespaces
        .filter_map(|namespace| Some((namespace.0.as_str(), of(namespace)?)))
        .collect()
}

/// The logins that one Secret is to hold.
#[derive(Debug)]
pub struct Entries<'a, L> {
    pub by_key: BTreeMap<&'a str, &'a L>,
    /// The mirrors whose login stands under all of their keys.
    pub complete: BTreeSet<MirrorId>,
}

/// Returns the logins for mirrors of one namespace, given in their order with keys and login. A key has one login:
/// where two mirrors have the same place and another login each, that of the first counts.
pub fn entries<'a, L: PartialEq>(
    mirrors: impl IntoIterator<Item = (MirrorId, &'a BTreeSet<String>, &'a L)>,
) -> Entries<'a, L> {
    let mut entries = Entries {
        by_key: BTreeMap::new(),
        complete: BTreeSet::new(),
    };
    for (mirror, keys, login) in mirrors {
        let mut is_complete = true;
        for key in keys {
            is_complete &= *entries.by_key.entry(key.as_str()).or_insert(login) == login;
        }
        if is_complete {
            entries.complete.insert(mirror);
        }
    }
    entries
}

/// What stands in a namespace under the name of pull secrets. `F` is what tells one content from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Found<F> {
    pub uid: String,
    pub version: String,
    /// It has Kagami's label and the type of pull secrets.
    pub is_ours: bool,
    /// Nobody can change what it holds.
    pub is_immutable: bool,
    /// It was deleted, and something keeps it from going.
    pub is_going: bool,
    pub content: F,
}

/// What there is to do in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    // In the order in which they are done: what is to go gives somebody a login that is not meant for him.
    /// Delete what stands there, and look again.
    Remove,
    Create,
    /// Write what it is to hold.
    Change,
}

/// How a namespace stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be, with a pull secret or without.
    Done,
    /// Somebody else's Secret has the name.
    Foreign,
    /// What is there will be gone sooner or later.
    Going,
    Due(Step),
}

/// Returns how a namespace stands where this is wanted and that was found. What is not Kagami's stays as it is.
pub fn judge<F: PartialEq>(wanted: Option<&F>, found: Option<&Found<F>>) -> Verdict {
    match (wanted, found) {
        (None, None) => Verdict::Done,
        (None, Some(found)) if !found.is_ours => Verdict::Done,
        (Some(_), Some(found)) if !found.is_ours => Verdict::Foreign,
        (_, Some(found)) if found.is_going => Verdict::Going,
        (Some(wanted), Some(found)) if found.content == *wanted => Verdict::Done,
        (Some(_), Some(found)) if !found.is_immutable => Verdict::Due(Step::Change),
        (Some(_) | None, Some(_)) => Verdict::Due(Step::Remove),
        (Some(_), None) => Verdict::Due(Step::Create),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::routing::Routing;
    use crate::domain::{
        examples,
        selector::{Labels, Operator, Requirement, Selector},
    };

    fn mirror(name: &str, registry: &str) -> Mirror {
        let mut mirror = examples::mirror(name, &["docker.io"]);
        mirror.mapping.registry = registry.parse().unwrap();
        mirror.pull_secret = true;
        mirror
    }

    fn for_team(team: &str) -> Selector {
        Selector {
            requirements: vec![Requirement {
                key: "team".to_owned(),
                operator: Operator::In(vec![team.to_owned()]),
            }],
        }
    }

    #[test]
    fn a_key_ends_where_the_mirrors_own_images_begin() {
        for (registry, template, expected) in [
            (
                "mirror.test",
                "{registry}/{repository}",
                Some("mirror.test/docker.io/"),
            ),
            (
                "mirror.test:5000/team",
                "{registry}/{repository}",
                Some("mirror.test:5000/team/docker.io/"),
            ),
            ("mirror.test/team", "{repository}", Some("mirror.test/team/")),
            ("mirror.test", "{repository}", Some("mirror.test")),
            ("mirror.test", "all/of-{repository}", Some("mirror.test/all/")),
            ("mirror.test", "{repository}/{registry}", Some("mirror.test")),
            ("mirror.test/v2/x", "{repository}", Some("mirror.test/v2/v2/x/")),
            ("mirror.test/v1", "{repository}", Some("mirror.test/v2/v1/")),
            ("mirror.test/v20", "{repository}", Some("mirror.test/v20/")),
            ("[::1]:5000", "{repository}", Some("[::1]:5000")),
            ("[::1]", "{repository}", None),
        ] {
            let mut mirror = mirror("main", registry);
            mirror.mapping.template = template.parse().unwrap();
            let found = keys(&mirror);
            let found: Option<Vec<&str>> = found
                .as_ref()
                .map(|keys| keys.iter().map(String::as_str).collect());
            assert_eq!(found, expected.map(|key| vec![key]), "{registry} {template}");
        }
    }

    #[test]
    fn a_namespace_gets_what_serves_it_and_enforce_alone_counts() {
        let mut blue = mirror("blue", "blue.test");
        blue.namespaces = for_team("blue");
        let mut first = mirror("zz-first", "first.test");
        first.priority = 200;
        let mut weaker = mirror("weaker", "weaker.test");
        weaker.mode = Mode::Audit;
        let without = examples::mirror("without", &["docker.io"]);
        let mut snapshot = examples::snapshot(vec![mirror("all", "all.test"), blue, first, weaker, without]);
        let labels = |mode: &str, team: &str| -> Labels {
            [(MODE_LABEL, mode), ("team", team)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into()
        };
        snapshot.namespaces = Arc::new(
            [
                ("red", labels("enforce", "red")),
                ("sea", labels("enforce", "blue")),
                ("told", labels("warn", "blue")),
                ("seen", labels("audit", "blue")),
                ("none", Labels::new()),
                ("kube-system", labels("enforce", "blue")),
            ]
            .map(|(name, labels)| (name.to_owned(), labels))
            .into(),
        );
        snapshot.left_alone = Arc::new(BTreeSet::from(["kube-system".to_owned()]));
        let names = |may: &dyn Fn(&str) -> bool| -> Vec<(String, Vec<String>)> {
            let wanted = wanted(&snapshot, |_, mirror| may(&mirror.name));
            let name = |id: &MirrorId| snapshot.routing.mirror(*id).name.clone();
            wanted
                .iter()
                .map(|(namespace, ids)| ((*namespace).to_owned(), ids.iter().map(name).collect()))
                .collect()
        };
        let of = |namespace: &str, mirrors: &[&str]| {
            (
                namespace.to_owned(),
                mirrors.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
            )
        };
        assert_eq!(
            names(&|_| true),
            [
                of("red", &["zz-first", "all"]),
                of("sea", &["zz-first", "all", "blue"])
            ]
        );
        assert_eq!(names(&|name| name == "blue"), [of("sea", &["blue"])]);
        assert_eq!(names(&|_| false), []);
    }

    #[test]
    fn of_two_logins_for_one_place_the_first_counts() {
        let routing = Routing::compile(["a", "b", "c"].map(|name| mirror(name, "m.test")).into());
        let ids: Vec<_> = routing.mirrors().map(|(id, _)| id).collect();
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>();
        let (one, two) = (keys(&["m/x/"]), keys(&["m/x/", "m/y/"]));
        let entries = entries([
            (ids[0], &one, &"ada"),
            (ids[1], &two, &"bob"),
            (ids[2], &one, &"ada"),
        ]);
        assert_eq!(
            entries.by_key,
            BTreeMap::from([("m/x/", &"ada"), ("m/y/", &"bob")])
        );
        assert_eq!(entries.complete, BTreeSet::from([ids[0], ids[2]]));
    }

    #[test]
    fn what_is_not_ours_stays_as_it_is() {
        let ours = Found {
            uid: "u".to_owned(),
            version: "1".to_owned(),
            is_ours: true,
            is_immutable: false,
            is_going: false,
            content: 1,
        };
        let foreign = Found {
            is_ours: false,
            ..ours.clone()
        };
        let immutable = Found {
            is_immutable: true,
            ..ours.clone()
        };
        let going = Found {
            is_going: true,
            ..ours.clone()
        };
        for (wanted, found, expected) in [
            (None, None, Verdict::Done),
            (None, Some(&foreign), Verdict::Done),
            (Some(1), Some(&foreign), Verdict::Foreign),
            (Some(2), Some(&foreign), Verdict::Foreign),
            (None, Some(&ours), Verdict::Due(Step::Remove)),
            (None, Some(&immutable), Verdict::Due(Step::Remove)),
            (None, Some(&going), Verdict::Going),
            (Some(1), Some(&going), Verdict::Going),
            (Some(1), Some(&ours), Verdict::Done),
            (Some(1), Some(&immutable), Verdict::Done),
            (Some(2), Some(&ours), Verdict::Due(Step::Change)),
            (Some(2), Some(&immutable), Verdict::Due(Step::Remove)),
            (Some(1), None, Verdict::Due(Step::Create)),
        ] {
            assert_eq!(judge(wanted.as_ref(), found), expected, "{wanted:?} {found:?}");
        }
    }
}
