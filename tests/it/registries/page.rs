//! The table in `docs/registries.md`.

use std::{env, fs, path::PathBuf};

use super::{
    makes::MAKES,
    rows::{HEALTH, ROWS},
};

const BEGIN: &str = "<!-- table: written by scripts/registries -->\n";
const END: &str = "<!-- end of table -->";

/// Set to compare the table with the page instead of writing it there.
const CHECK: &str = "KAGAMI_REGISTRIES_CHECK";

/// The names of the makes as they stand in the page.
pub fn makes() -> Vec<String> {
    cells(current().lines().next().unwrap_or_default())
        .skip(1)
        .collect()
}

/// The names of the rows as they stand in the page.
pub fn rows() -> Vec<String> {
    let table = current();
    table
        .lines()
        .skip(2)
        .filter_map(|line| cells(line).next())
        .collect()
}

/// Returns the table, of the cells of each column.
pub fn table(columns: &[Vec<String>]) -> String {
    let names = MAKES.iter().map(|make| make.name);
    let mut table = line("", names);
    table.push_str(&line("---", MAKES.iter().map(|_| "---")));
    for (index, what) in ROWS.iter().map(|row| row.what).chain([HEALTH]).enumerate() {
        table.push_str(&line(what, columns.iter().map(|column| column[index].as_str())));
    }
    table
}

/// Prints the table and writes it into the page, or fails if the page has another.
pub fn keep(table: &str) {
    eprintln!("{table}");
    if env::var_os(CHECK).is_some() {
        let page = certain(&current());
        assert_eq!(certain(table), page, "docs/registries.md has another table");
        return;
    }
    let text = fs::read_to_string(path()).unwrap();
    let (before, after) = around(&text);
    fs::write(path(), format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
}

/// Returns a table without what chance decides.
fn certain(table: &str) -> String {
    let by_chance = |what: &str| ROWS.iter().any(|row| row.what == what && row.by_chance);
    let mut rest = String::new();
    for row in table.lines() {
        let mut cells: Vec<_> = cells(row).collect();
        let what = cells[0].clone();
        for (cell, make) in cells[1..].iter_mut().zip(&MAKES) {
            // olareg tidies up only what it has in memory just then.
            let is_left_by_chance = what == "collected: image without a tag" && make.name.contains("olareg");
            if is_left_by_chance || by_chance(&what) && make.kind() == "PullThrough" {
                cell.clear();
            }
        }
        rest.push_str(&cells.join("|"));
        rest.push('\n');
    }
    rest
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/registries.md")
}

/// The table that the page has.
fn current() -> String {
    let text = fs::read_to_string(path()).unwrap();
    let (before, after) = around(&text);
    text[before.len() + BEGIN.len()..text.len() - END.len() - after.len()].to_owned()
}

fn around(text: &str) -> (&str, &str) {
    let (before, rest) = text
        .split_once(BEGIN)
        .expect("the page has a place for the table");
    let (_, after) = rest.split_once(END).expect("the place has an end");
    (before, after)
}

fn line<'a>(first: &'a str, others: impl Iterator<Item = &'a str>) -> String {
    let cells: Vec<_> = [first].into_iter().chain(others).collect();
    format!("| {} |\n", cells.join(" | "))
}

fn cells(line: &str) -> impl Iterator<Item = String> {
    let inner = line.trim_start_matches('|').trim_end_matches('|');
    inner.split('|').map(|cell| cell.trim().to_owned())
}
