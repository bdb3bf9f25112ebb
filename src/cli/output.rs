//! Printing: what is asked for on standard output, everything else on standard error.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write as _},
};

use crate::domain::foreign::visible;

/// Whether colours may be used on a stream: a terminal, and NO_COLOR is not set.
#[expect(clippy::disallowed_methods, reason = "settings enter in `cli`")]
pub(super) fn colours(stream: &impl IsTerminal) -> bool {
    // https://no-color.org: any value but the empty one.
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints text on standard output. A reader that went away (`| head`) is no fault.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Prints a line on standard error, one line whatever is in it.
pub(super) fn complain(line: &str) {
    // There is nobody left to tell if this fails.
    drop(writeln!(io::stderr(), "{}", visible(line)));
}

/// A table whose columns are as wide as their content.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Returns a table with that heading.
    pub(super) fn new(heading: &[&str]) -> Self {
        Self {
            rows: vec![heading.iter().map(|cell| (*cell).to_owned()).collect()],
        }
    }

    /// Adds a row. What comes from outside is wrapped in [`crate::domain::foreign::Foreign`].
    pub(super) fn row<const N: usize>(&mut self, cells: [&dyn Display; N]) {
        self.rows.push(cells.map(ToString::to_string).into());
    }

    /// Whether there is nothing below the heading.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// Returns the lines of the table.
    pub(super) fn lines(&self) -> Vec<String> {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            cells.join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}
