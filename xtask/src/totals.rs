// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counting verdicts: of test runners by what they print, and of checks one by one.

use std::fmt;

use anyhow::Result;

/// How many passed, failed and were skipped, and the names of those that did not pass.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
    failures: Vec<String>,
    skips: Vec<String>,
}

impl Totals {
    /// Something passed, and something was run.
    pub(crate) fn good(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
    }

    /// A check that failed.
    pub(crate) fn fail(&mut self, name: &str, reason: impl fmt::Display) {
        println!("{name}: FAILED: {reason:#}");
        self.failed += 1;
        self.failures.push(format!("{name}: {reason:#}"));
    }

    /// A check that cannot be done here.
    pub(crate) fn skip(&mut self, name: &str, reason: impl fmt::Display) {
        println!("{name}: skipped: {reason:#}");
        self.skipped += 1;
        self.skips.push(format!("{name}: {reason:#}"));
    }

    /// Does one check.
    pub(crate) fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        println!("== {name}");
        match check() {
            Ok(()) => self.passed += 1,
            Err(error) => self.fail(name, error),
        }
    }
}

impl fmt::Display for Totals {
    /// The last line is for programs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (title, names) in [("skipped", &self.skips), ("FAILED", &self.failures)] {
            if !names.is_empty() {
                writeln!(f, "\n{title}:")?;
            }
            for name in names {
                writeln!(f, "  {name}")?;
            }
        }
        writeln!(f, "\n{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Reads what test runners print. libtest, rustdoc and libtest-mimic say the same.
#[derive(Debug)]
pub(crate) struct Reader {
    run: String,
    totals: Totals,
}

impl Reader {
    /// `run` says where the tests run; it is put before their names.
    pub(crate) fn new(run: &str) -> Self {
        Self { run: run.into(), totals: Totals::default() }
    }

    pub(crate) fn line(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.totals.passed += count(counts, "passed");
            self.totals.failed += count(counts, "failed");
            self.totals.skipped += count(counts, "ignored");
        } else if let Some((name, verdict)) =
            line.strip_prefix("test ").and_then(|line| line.rsplit_once(" ... "))
        {
            let name = format!("{}: {}", self.run, name.trim_end());
            if verdict.starts_with("FAILED") {
                self.totals.failures.push(name);
            } else if let Some(reason) = verdict.strip_prefix("ignored") {
                self.totals.skips.push(format!("{name}{}", reason.replacen(", ", ": ", 1)));
            }
        }
    }

    /// The totals, when the runners have ended so.
    pub(crate) fn end(mut self, end: &Result<(), String>) -> Totals {
        if let Err(end) = end
            && self.totals.failed == 0
        {
            self.totals.fail(&self.run, format_args!("no test failed, and yet: {end}"));
        } else if self.totals.passed == 0 && self.totals.failed == 0 {
            self.totals.fail(&self.run, "no test was run");
        }
        self.totals
    }
}

/// The number before a word, as in `ok. 3 passed; 0 failed`.
fn count(counts: &str, word: &str) -> u64 {
    let mut before = "";
    for now in counts.split([' ', ';']) {
        if now == word {
            return before.parse().unwrap_or(0);
        }
        before = now;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str], end: Result<(), String>) -> Totals {
        let mut reader = Reader::new("host");
        for line in lines {
            reader.line(line);
        }
        reader.end(&end)
    }

    #[test]
    fn sums_all_runners() {
        let totals = read(
            &[
                "test a ... ok",
                "test b - should panic ... FAILED",
                "test src/lib.rs - x (line 3) ... ignored",
                "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out",
                "test c ... ignored, no such kernel",
                "test result: ok. 20 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s",
            ],
            Err("1".into()),
        );
        assert_eq!((totals.passed, totals.failed, totals.skipped), (21, 1, 2));
        assert_eq!(totals.failures, ["host: b - should panic"]);
        assert_eq!(totals.skips, ["host: src/lib.rs - x (line 3)", "host: c: no such kernel"]);
        assert!(totals.to_string().ends_with("\n21 passed, 1 failed, 2 skipped\n"));
    }

    #[test]
    fn a_runner_that_dies_or_runs_nothing_fails() {
        assert!(!read(&["test result: ok. 2 passed; 0 failed; 0 ignored"], Err("9".into())).good());
        assert!(!read(&["test result: ok. 0 passed; 0 failed; 0 ignored"], Ok(())).good());
        assert!(read(&["test result: ok. 1 passed; 0 failed; 0 ignored"], Ok(())).good());
    }
}
