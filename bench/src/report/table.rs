// SPDX-License-Identifier: MIT OR Apache-2.0
//! For a terminal of 80 columns.

use std::fmt::Write;

use super::{CaseResult, Measured, Median, Results};
use crate::cases::Axis;

const NAME: usize = 23;

impl Results {
    /// Tables for a terminal.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        wrap(&mut text, "", &self.machine.to_string());
        for (engine, reason) in &self.missing {
            wrap(&mut text, "", &format!("not here: the {engine} engine: {reason}"));
        }
        for case in &self.cases {
            case.table(&mut text);
        }
        if self.interrupted {
            text.push_str("\nInterrupted: this is what there was until then.\n");
        }
        text
    }
}

impl CaseResult {
    fn table(&self, text: &mut String) {
        let _ = writeln!(text, "\n{}: {}", self.case.name, self.case.about);
        let names = self.ways();
        if !names.is_empty() {
            // Where the block is the same, requests tell the same as bytes.
            if self.case.axis == Axis::Block {
                self.rows(text, &names, "GB/s", |way, block| scaled(way.rate(), block / 1e9));
            } else {
                self.rows(text, &names, "requests/s", |way, _| scaled(way.rate(), 1.0));
            }
            self.rows(text, &names, "CPU us/request", |way, _| scaled(way.processor(), 1e6));
            self.workers(text, &names);
        }
        for (reason, ways) in self.reasons() {
            wrap(text, "  ", &format!("not run: {}: {reason}", ways.join("; ")));
        }
    }

    fn rows(
        &self,
        text: &mut String,
        names: &[&str],
        unit: &str,
        value: impl Fn(&Measured, f64) -> Option<Median>,
    ) {
        let title = format!("{unit}, {}", self.case.axis.name());
        let _ = write!(text, "{title:NAME$}");
        let width = if self.points.len() > 5 { 9 } else { 11 };
        for point in &self.points {
            let _ = write!(text, "{:>width$}", self.value(point.point));
        }
        text.push('\n');
        for name in names {
            let _ = write!(text, "  {name:0$}", NAME - 2);
            for point in &self.points {
                let block = f64::from(point.point.block);
                let cell = point.measured(name).and_then(|way| value(way, block));
                let cell = cell.map_or_else(|| "-".into(), shown);
                let _ = write!(text, "{cell:>width$}");
            }
            text.push('\n');
        }
    }

    fn workers(&self, text: &mut String, names: &[&str]) {
        let most = |name: &&str| {
            let counts = self.points.iter().filter_map(|point| point.measured(name));
            counts.map(Measured::workers).max().unwrap_or(0)
        };
        let used: Vec<_> = names
            .iter()
            .map(|name| (name, most(name)))
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name}: {count}"))
            .collect();
        let used = if used.is_empty() { "none".into() } else { used.join("; ") };
        wrap(text, "  ", &format!("worker threads of the kernel: {used}"));
    }
}

fn scaled(median: Option<Median>, factor: f64) -> Option<Median> {
    median.map(|median| Median { value: median.value * factor, ..median })
}

/// "1.23M±4": four figures and the spread in per cent.
fn shown(median: Median) -> String {
    let percent = (median.spread * 100.0).round().min(99.0);
    format!("{}±{percent}", short(median.value))
}

/// Three digits or four, and a letter for thousands.
pub(super) fn short(value: f64) -> String {
    let (value, letter) = match value {
        1e9.. => (value / 1e9, "G"),
        1e6.. => (value / 1e6, "M"),
        1e4.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match value {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{value:.digits$}{letter}")
}

/// Lines of at most 80 columns.
fn wrap(text: &mut String, indent: &str, line: &str) {
    let mut column = 0;
    for word in line.split(' ') {
        let length = word.chars().count();
        if column == 0 {
            text.push_str(indent);
            column = indent.len();
        } else if column + 1 + length > 80 {
            let _ = write!(text, "\n{indent}  ");
            column = indent.len() + 2;
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let all = [0.1234, 1.234, 12.34, 1234.0, 12_340.0, 1_234_000.0, 123.4e9].map(short);
        assert_eq!(all, ["0.123", "1.23", "12.3", "1234", "12.3k", "1.23M", "123G"]);
    }

    #[test]
    fn long_lines_are_broken() {
        let mut text = String::new();
        wrap(&mut text, "  ", &"word ".repeat(40));
        assert!(text.lines().count() > 2);
        assert!(text.lines().all(|line| line.len() <= 80 && line.starts_with("  ")));
    }
}
