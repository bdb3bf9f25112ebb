//! Owners whose Pods are left alone because they kept recreating rewritten ones, and what makes that permanent.

use serde::Serialize;

use crate::{
    api::MODE_LABEL,
    cli::output::Table,
    domain::{foreign::Foreign, snapshot::Snapshot, time::Timestamp},
};

/// How many the table has.
const SHOWN: usize = 50;

/// One of them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OwnerLeftAlone {
    namespace: String,
    api_version: String,
    kind: String,
    name: String,
    /// How many times it was left alone, this one included.
    times: u32,
    since: String,
    until: String,
    /// The label of its Pods that makes it permanent.
    label: String,
}

/// Returns those of one namespace, or of all: the last first.
pub(super) fn of(snapshot: &Snapshot, namespace: Option<&str>, now: Timestamp) -> Vec<OwnerLeftAlone> {
    let looping = snapshot.owners.looping(now).into_iter();
    let looping = looping.filter(|noted| namespace.is_none_or(|name| name == &*noted.owner.namespace));
    let told = looping.map(|noted| OwnerLeftAlone {
        namespace: noted.owner.namespace.to_string(),
        api_version: noted.owner.api_version.to_string(),
        kind: noted.owner.kind.to_string(),
        name: noted.owner.name.to_string(),
        times: noted.times,
        since: noted.since.to_string(),
        until: noted.until.to_string(),
        label: format!("{MODE_LABEL}: \"off\""),
    });
    told.collect()
}

/// Returns the table of the first ones, and what it means.
pub(super) fn table(owners: &[OwnerLeftAlone]) -> Vec<String> {
    let (shown, more) = owners.split_at(owners.len().min(SHOWN));
    let mut table = Table::new(&["NAMESPACE", "OWNER LEFT ALONE", "TIMES", "UNTIL"]);
    for owner in shown {
        let name = format!("{} {} ({})", owner.kind, owner.name, owner.api_version);
        table.row([
            &Foreign(&owner.namespace),
            &Foreign(&name),
            &owner.times,
            &owner.until,
        ]);
    }
    if table.is_empty() {
        return Vec::new();
    }
    let mut lines = table.lines();
    if !more.is_empty() {
        lines.push(format!("and {} more (--output json lists them)", more.len()));
    }
    lines.push(format!(
        "OwnerLoop: it recreated Pods whose images were rewritten again and again. The label {MODE_LABEL}: \"off\" on \
         its Pods makes it permanent, or its kind in spec.excludeOwners"
    ));
    lines.push(String::new());
    lines
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::{
        examples::{NOW, snapshot},
        owners::LeftAlone,
    };

    #[test]
    fn owners_that_fight_are_listed_with_what_makes_it_permanent() {
        let mut snapshot = snapshot(Vec::new());
        let (now, later) = (NOW.as_millis(), NOW.as_millis() + 1);
        let line = |name: &str, until: u64| {
            format!("[[\"{name}\",\"team-{name}\",\"example.com/v1\",\"Web\",\"{name}\"],2,{now},{until}]\n")
        };
        let loops = [line("a", later), line("b", later), line("c", now)].concat();
        snapshot.owners = Arc::new(LeftAlone::read(&loops, ""));
        let names = |namespace| -> Vec<String> {
            let told = of(&snapshot, namespace, NOW).into_iter();
            told.map(|owner| owner.name).collect()
        };
        assert_eq!(names(None), ["a", "b"]);
        assert_eq!(names(Some("team-b")), ["b"]);
        let lines = table(&of(&snapshot, Some("team-a"), NOW));
        assert_eq!(lines.len(), 4);
        assert!(lines[1].starts_with("team-a"), "{lines:?}");
        assert!(lines[1].contains("Web a (example.com/v1)"), "{lines:?}");
        assert!(lines[2].contains("kagami.dev/mode: \"off\""), "{lines:?}");
        assert!(table(&[]).is_empty());
    }
}
