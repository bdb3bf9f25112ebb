//! Mirrors that were there not long ago: a Pod may be stuck on one after it was deleted, and its record is proven by
//! the mapping that the mirror had.
//!
//! The mappings of all mirrors are noted while these are there, so that one is known too that was deleted while
//! nobody led.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Former;
use crate::domain::{
    mapping::Mapping,
    mirror::{Mirror, RescuePolicy},
    routing::Routing,
    time::Timestamp,
};

/// How long a mirror is remembered after it went.
const REMEMBERED: Duration = Duration::from_hours(24);

/// How many of those that went are remembered: the last ones.
const GONE: usize = 20;

/// How many of those that are there are noted: the first by name.
const THERE: usize = 200;

/// The mappings of mirrors that are there, or were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register {
    notes: Vec<Note>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    mirror: Former,
    /// When it was first seen to be gone.
    gone_at: Option<Timestamp>,
}

/// A note as it is written. What cannot be read of one is passed over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    name: String,
    registry: String,
    repository: String,
    rescue: String,
    /// Milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gone_at: Option<u64>,
}

impl Register {
    /// Reads what was written, line by line.
    pub fn read(text: &str) -> Self {
        let notes = text.lines().filter_map(|line| {
            let line: Line = serde_json::from_str(line).ok()?;
            Some(Note {
                mirror: Former {
                    name: line.name,
                    mapping: Mapping {
                        registry: line.registry.parse().ok()?,
                        template: line.repository.parse().ok()?,
                    },
                    rescue: RescuePolicy::from_name(&line.rescue)?,
                },
                gone_at: line.gone_at.map(Timestamp::from_millis),
            })
        });
        Self {
            notes: notes.take(THERE + GONE).collect(),
        }
    }

    /// Returns what is to be written, a line for each mirror.
    pub fn write(&self) -> String {
        let mut text = String::new();
        for Note { mirror, gone_at } in &self.notes {
            let line = Line {
                name: mirror.name.clone(),
                registry: mirror.mapping.registry.to_string(),
                repository: mirror.mapping.template.to_string(),
                rescue: mirror.rescue.as_str().to_owned(),
                gone_at: gone_at.map(Timestamp::as_millis),
            };
            // Text alone: nothing of it cannot be written.
            text.push_str(&serde_json::to_string(&line).unwrap_or_default());
            text.push('\n');
        }
        text
    }

    /// Takes in which mirrors are there now.
    pub fn update(&mut self, routing: &Routing, now: Timestamp) {
        let mut there: Vec<&Mirror> = routing.mirrors().map(|(_, mirror)| mirror).collect();
        there.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        let is_there = |note: &Note| {
            let of_its_name = there.binary_search_by(|mirror| mirror.name.cmp(&note.mirror.name));
            let mirror = of_its_name.ok().and_then(|index| there.get(index));
            mirror.is_some_and(|mirror| mirror.mapping == note.mirror.mapping)
        };
        let mut gone: Vec<Note> = self.notes.drain(..).filter(|note| !is_there(note)).collect();
        for note in &mut gone {
            // One from the future went by a clock that was wrong: it is remembered for as long from now on at most.
            note.gone_at = Some(note.gone_at.unwrap_or(now).min(now));
        }
        gone.retain(|note| note.gone_at.is_some_and(|at| now.since(at) < REMEMBERED));
        gone.sort_by_key(|note| std::cmp::Reverse(note.gone_at));
        gone.truncate(GONE);
        let there = there.into_iter().take(THERE).map(|mirror| Note {
            mirror: Former {
                name: mirror.name.clone(),
                mapping: mirror.mapping.clone(),
                rescue: mirror.rescue,
            },
            gone_at: None,
        });
        self.notes = there.chain(gone).collect();
    }

    /// Takes in what another one has: of a mirror that both have, what this one says of it stays.
    pub fn merge(&mut self, other: &Self) {
        for note in &other.notes {
            let mut known = self.notes.iter();
            let is_it = |known: &Note| {
                known.mirror.name == note.mirror.name && known.mirror.mapping == note.mirror.mapping
            };
            if !known.any(is_it) {
                self.notes.push(note.clone());
            }
        }
    }

    /// Returns the mirrors that are gone.
    pub fn gone(&self) -> Vec<Former> {
        let gone = self.notes.iter().filter(|note| note.gone_at.is_some());
        gone.map(|note| note.mirror.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::examples::{NOW, mirror};

    fn register(names: &[&str], register: &mut Register, now: Timestamp) -> Vec<String> {
        let mirrors = names.iter().map(|name| mirror(name, &["docker.io"])).collect();
        register.update(&Routing::compile(mirrors), now);
        register.gone().into_iter().map(|former| former.name).collect()
    }

    #[test]
    fn a_mirror_is_remembered_for_a_day_after_it_went() {
        let mut known = Register::default();
        assert!(register(&["a", "b"], &mut known, NOW).is_empty());
        assert_eq!(register(&["a"], &mut known, NOW), ["b"]);
        let nearly = NOW.after(REMEMBERED.saturating_sub(Duration::from_millis(1)));
        assert_eq!(register(&["a"], &mut known, nearly), ["b"]);
        assert!(register(&["a"], &mut known, NOW.after(REMEMBERED)).is_empty());
        // One that is back is there, and may go again.
        assert_eq!(register(&[], &mut known, NOW), ["a"]);
        assert!(register(&["a"], &mut known, NOW).is_empty());
    }

    #[test]
    fn under_its_name_another_mapping_is_another_mirror() {
        let mut known = Register::default();
        register(&["a"], &mut known, NOW);
        let other = Mirror {
            mapping: mirror("b", &[]).mapping,
            rescue: RescuePolicy::Audit,
            ..mirror("a", &["docker.io"])
        };
        known.update(&Routing::compile(vec![other]), NOW);
        let gone = known.gone();
        assert_eq!(gone.len(), 1);
        assert_eq!(gone[0].mapping, mirror("a", &[]).mapping);
    }

    #[test]
    fn the_last_ones_are_remembered() {
        let mut known = Register::default();
        for number in 0..2 * GONE {
            let name = format!("m{number}");
            register(
                &[&name],
                &mut known,
                NOW.after(Duration::from_secs(number as u64)),
            );
        }
        let gone = register(&[], &mut known, NOW.after(Duration::from_mins(1)));
        assert_eq!(gone.len(), GONE);
        assert_eq!(gone[0], format!("m{}", 2 * GONE - 1));
        let names: Vec<_> = (0..2 * THERE).map(|number| format!("n{number}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        register(&names, &mut known, NOW);
        assert!(known.notes.len() <= THERE + GONE);
    }

    #[test]
    fn one_that_went_in_the_future_goes_before_nobody_and_is_forgotten_in_time() {
        let mut known = Register::default();
        register(&["wrong"], &mut known, NOW);
        register(&[], &mut known, NOW.after(10 * REMEMBERED));
        assert_eq!(known.gone().len(), 1);
        // The clock is right again.
        register(&["a"], &mut known, NOW);
        assert_eq!(
            register(&[], &mut known, NOW.after(Duration::from_secs(1))),
            ["a", "wrong"]
        );
        assert!(register(&[], &mut known, NOW.after(REMEMBERED + Duration::from_secs(1))).is_empty());
    }

    #[test]
    fn one_that_is_there_and_not_noted_for_want_of_room_has_not_gone() {
        let mut known = Register::default();
        register(&["z"], &mut known, NOW);
        let names: Vec<_> = (0..THERE).map(|number| format!("n{number}")).collect();
        let mut names: Vec<_> = names.iter().map(String::as_str).collect();
        names.push("z");
        assert!(register(&names, &mut known, NOW).is_empty());
    }

    #[test]
    fn what_is_written_is_read_and_what_is_not_ours_is_passed_over() {
        let mut known = Register::default();
        register(&["a", "b"], &mut known, NOW);
        register(&["a"], &mut known, NOW);
        assert_eq!(Register::read(&known.write()), known);
        assert_eq!(known.write().lines().count(), 2);
        for odd in [
            "",
            "?",
            "{}",
            r#"{"name":"a","registry":"https://a","repository":"{registry}/{repository}","rescue":"Enforce"}"#,
            r#"{"name":"a","registry":"a.example.com","repository":"{repository}","rescue":"Sometimes"}"#,
        ] {
            assert_eq!(Register::read(odd), Register::default(), "{odd}");
        }
    }
}
