//! The bars: each with its figure, held or missed.

use std::fmt;

/// One figure that must not pass its bar.
#[derive(Debug)]
struct Bar {
    name: String,
    figure: f64,
    limit: f64,
    at_least: bool,
    unit: &'static str,
}

/// All bars of a run, in the order in which they were measured.
#[derive(Debug, Default)]
pub struct Bars(Vec<Bar>);

impl Bars {
    pub fn at_least(&mut self, name: impl Into<String>, figure: f64, limit: f64, unit: &'static str) {
        self.0.push(Bar {
            name: name.into(),
            figure,
            limit,
            at_least: true,
            unit,
        });
    }

    pub fn at_most(&mut self, name: impl Into<String>, figure: f64, limit: f64, unit: &'static str) {
        self.0.push(Bar {
            name: name.into(),
            figure,
            limit,
            at_least: false,
            unit,
        });
    }

    /// Notes that a part did not come to its end, which holds nothing.
    pub fn unfinished(&mut self, part: &str) {
        self.at_most(format!("{part}: did not come to its end"), f64::NAN, 0.0, "");
    }

    /// Whether every bar holds.
    pub fn hold(&self) -> bool {
        self.0.iter().all(Bar::holds)
    }
}

impl Bar {
    /// A figure that is no number holds nothing.
    fn holds(&self) -> bool {
        if self.at_least {
            self.figure >= self.limit
        } else {
            self.figure <= self.limit
        }
    }
}

impl fmt::Display for Bars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for bar in &self.0 {
            let sign = if bar.at_least { "≥" } else { "≤" };
            let verdict = if bar.holds() { "ok" } else { "MISSED" };
            let Bar {
                name,
                figure,
                limit,
                unit,
                ..
            } = bar;
            writeln!(
                f,
                "  {name:<62} {figure:>9.2} {sign} {limit:>7.2} {unit:<5} {verdict}"
            )?;
        }
        Ok(())
    }
}
