// SPDX-License-Identifier: MIT OR Apache-2.0
//! The figures, as they are checked in and shown.

use std::fmt::{self, Write};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// The instructions of a request, in one way at one point.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    pub(super) case: String,
    /// What differs between the points of the case, and its value here.
    axis: String,
    at: u64,
    pub(super) way: String,
    user: f64,
    kernel: f64,
    /// How far a second run was from this one, as a share.
    pub(super) apart: f64,
}

/// All of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figures {
    linux: String,
    qemu: String,
    pub(super) all: Vec<Figure>,
}

impl Figure {
    fn total(&self) -> f64 {
        self.user + self.kernel
    }

    fn is_same(&self, other: &Self) -> bool {
        (&self.case, self.at, &self.way) == (&other.case, other.at, &other.way)
    }

    /// Whether it is this project's to answer for.
    fn is_ours(&self) -> bool {
        ["opcode", "module", "GET_BUF"].iter().any(|word| self.way.contains(word))
            || (self.way.contains("copy") && !self.way.contains('('))
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, at, axis, way, .. } = self;
        write!(f, "{case}, {at} {axis}, {way}: {:.0}", self.total())
    }
}

impl Figures {
    /// From what `getbuf bench` has written, and the numbers at its marks.
    pub(super) fn read(results: &Value, marks: &str, qemu: &str) -> Result<Self> {
        let marks = marks.lines().map(|line| {
            let (user, kernel) = line.split_once(' ').context("two numbers at a mark")?;
            Ok((user.parse()?, kernel.parse()?))
        });
        let marks = marks.collect::<Result<Vec<(f64, f64)>>>()?;
        let list = |value: &Value, name: &str| -> Result<Vec<Value>> {
            value[name].as_array().cloned().with_context(|| format!("no {name} in the results"))
        };
        let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let mut all = Vec::new();
        for case in list(results, "cases")? {
            let axis = text(&case, "axis");
            let field = match axis.as_str() {
                "in flight" => "depth",
                axis => axis,
            };
            for point in list(&case, "points")? {
                for way in list(&point, "ways")? {
                    let Some(samples) = way["samples"].as_array() else { continue };
                    let counted = samples.iter().map(|sample| -> Result<_> {
                        let at = sample["mark"].as_u64().context("no mark")? as usize;
                        let requests = sample["requests"].as_f64().context("no requests")?;
                        let here = marks.get(at).context("a mark is missing")?;
                        let next = marks.get(at + 1).context("a mark is missing")?;
                        Ok(((next.0 - here.0) / requests, (next.1 - here.1) / requests))
                    });
                    let counted = counted.collect::<Result<Vec<_>>>()?;
                    // The one in which least else happened: ticks of the guest's clock count too.
                    let least = counted.iter().min_by(|one, two| {
                        let (one, two) = (one.0 + one.1, two.0 + two.1);
                        one.total_cmp(&two)
                    });
                    let Some((user, kernel)) = least else { continue };
                    all.push(Figure {
                        case: text(&case, "name"),
                        axis: axis.clone(),
                        at: point[field].as_u64().context("no place on the axis")?,
                        way: text(&way, "name"),
                        user: *user,
                        kernel: *kernel,
                        apart: 0.0,
                    });
                }
            }
        }
        ensure!(!all.is_empty(), "nothing was measured");
        let linux = text(&results["machine"], "kernel");
        Ok(Self { linux, qemu: qemu.to_owned(), all })
    }

    fn find(&self, like: &Figure) -> Option<&Figure> {
        self.all.iter().find(|figure| figure.is_same(like))
    }

    /// Puts newer figures of some of the cases in the place of these.
    pub(super) fn with(mut self, newer: Self) -> Self {
        let case = |figure: &Figure| figure.case.clone();
        let place = self.all.iter().position(|figure| newer.all[0].case == figure.case);
        let cases: Vec<_> = newer.all.iter().map(case).collect();
        self.all.retain(|figure| !cases.contains(&figure.case));
        let place = place.unwrap_or(usize::MAX).min(self.all.len());
        self.all.splice(place..place, newer.all);
        Self { linux: newer.linux, qemu: newer.qemu, all: self.all }
    }

    /// Notes how far another run is from this one.
    pub(super) fn compare_runs(&mut self, other: &Self) {
        for figure in &mut self.all {
            let there = other.find(figure).map_or(f64::INFINITY, Figure::total);
            figure.apart = (there / figure.total() - 1.0).abs();
        }
    }

    /// Those whose two runs are further apart than this.
    pub(super) fn apart(&self, close: f64) -> impl Iterator<Item = &Figure> {
        self.all.iter().filter(move |figure| figure.apart > close)
    }

    /// What is more than that dearer or cheaper in newer figures.
    pub(super) fn changes(&self, now: &Self, least: f64) -> Vec<String> {
        let change = |figure: &Figure| {
            let new = now.find(figure)?;
            let ratio = new.total() / figure.total();
            ((ratio - 1.0).abs() > least).then(|| {
                format!("{figure}, now {:.0} ({:+.1} %)", new.total(), (ratio - 1.0) * 100.0)
            })
        };
        self.all.iter().filter_map(change).collect()
    }

    /// What of this project's is that much dearer in newer figures, and steady enough to tell.
    pub(super) fn worse(&self, now: &Self, steady: f64, most: f64) -> Result<Vec<String>> {
        let mut compared = 0;
        let mut worse = Vec::new();
        for figure in self.all.iter().filter(|figure| figure.is_ours() && figure.apart < steady) {
            let Some(new) = now.find(figure) else { continue };
            compared += 1;
            let ratio = new.total() / figure.total();
            if ratio > 1.0 + most {
                worse.push(format!(
                    "{figure}, now {:.0} ({:+.1} %)",
                    new.total(),
                    (ratio - 1.0) * 100.0
                ));
            }
        }
        ensure!(compared > 0, "there is nothing to compare with");
        println!("{compared} figures compared, {} worse", worse.len());
        Ok(worse)
    }

    /// One line for each figure, so that a change is a line of a diff.
    pub(super) fn json(&self) -> String {
        let rows = self.all.iter().map(|figure| {
            let one = |value: f64| (value * 10.0).round() / 10.0;
            let row = json!({
                "case": figure.case, "axis": figure.axis, "at": figure.at, "way": figure.way,
                "user": one(figure.user), "kernel": one(figure.kernel),
                "apart": (figure.apart.min(9.0) * 1e5).round() / 1e5,
            });
            format!("    {row}")
        });
        let rows = rows.collect::<Vec<_>>().join(",\n");
        let (linux, qemu) = (json!(self.linux), json!(self.qemu));
        format!(
            "{{\n  \"linux\": {linux},\n  \"qemu\": {qemu},\n  \"figures\": [\n{rows}\n  ]\n}}\n"
        )
    }

    /// What [`json`](Self::json) has written.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)?;
        let rows = value["figures"].as_array().context("no figures")?;
        let figure = |row: &Value| -> Option<Figure> {
            let text = |name: &str| Some(row[name].as_str()?.to_owned());
            Some(Figure {
                case: text("case")?,
                axis: text("axis")?,
                at: row["at"].as_u64()?,
                way: text("way")?,
                user: row["user"].as_f64()?,
                kernel: row["kernel"].as_f64()?,
                apart: row["apart"].as_f64()?,
            })
        };
        let all = rows.iter().map(|row| figure(row).context("a figure that is none"));
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Ok(Self { linux: text("linux"), qemu: text("qemu"), all: all.collect::<Result<_>>()? })
    }

    /// Tables for people.
    pub(super) fn markdown(&self) -> String {
        let mut text = format!(
            "# Instructions per request\n\n\
             Written by `cargo xtask bench --exact`; what the cases and ways are, and what the \
             figures mean, is in [performance.md](../performance.md). Linux {} with the project's \
             patches and its module, one processor of QEMU {} (TCG, `-icount`), files on tmpfs. All that the \
             machine executes counts, worker threads and whoever receives included; in brackets \
             the share of user space. Copies count eight bytes as one instruction. A figure with \
             a tilde is not steady: a second run differed by more than 0.1 %.\n",
            self.linux, self.qemu
        );
        let mut rest = &self.all[..];
        while let Some(first) = rest.first() {
            let count = rest.iter().take_while(|figure| figure.case == first.case).count();
            let (case, others) = rest.split_at(count);
            rest = others;
            table(&mut text, case);
        }
        text
    }
}

fn table(text: &mut String, case: &[Figure]) {
    let (mut columns, mut ways): (Vec<u64>, Vec<&str>) = (Vec::new(), Vec::new());
    for figure in case {
        if !columns.contains(&figure.at) {
            columns.push(figure.at);
        }
        if !ways.contains(&figure.way.as_str()) {
            ways.push(&figure.way);
        }
    }
    let _ = write!(text, "\n## {}\n\n| {} |", case[0].case, case[0].axis);
    for column in &columns {
        let _ = write!(text, " {column} |");
    }
    let _ = write!(text, "\n|---|{}\n", "--:|".repeat(columns.len()));
    for way in ways {
        let _ = write!(text, "| {way} |");
        for column in &columns {
            match case.iter().find(|figure| figure.way == way && figure.at == *column) {
                Some(figure) => {
                    let tilde = if figure.apart > super::CLOSE { "~" } else { "" };
                    let _ = write!(text, " {tilde}{:.0} ({:.0}) |", figure.total(), figure.user);
                }
                None => text.push_str(" |"),
            }
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(way: &str, kernel: f64) -> Figure {
        Figure {
            case: "rfc".into(),
            axis: "in flight".into(),
            at: 32,
            way: way.into(),
            user: 100.0,
            kernel,
            apart: 0.0,
        }
    }

    fn figures(all: &[Figure]) -> Figures {
        Figures { linux: "7.3".into(), qemu: "7.2".into(), all: all.to_vec() }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let all = figures(&[figure("chain, opcode", 1000.5), figure("splice(2)", 7.0)]);
        assert_eq!(Figures::parse(&all.json()).unwrap(), all);
        assert!(all.markdown().contains("| chain, opcode | 1100 (100) |"));
    }

    #[test]
    fn some_cases_are_renewed_where_they_were() {
        let of = |case: &str, kernel| Figure { case: case.into(), ..figure("w", kernel) };
        let before = figures(&[of("a", 1.0), of("b", 1.0), of("b", 2.0), of("c", 1.0)]);
        let after = before.with(figures(&[of("b", 3.0)]));
        assert_eq!(after, figures(&[of("a", 1.0), of("b", 3.0), of("c", 1.0)]));
    }

    #[test]
    fn marks_become_figures() {
        let sample = |mark: u64| json!({ "requests": 10, "mark": mark });
        let way = json!({ "name": "w", "samples": [sample(0), sample(2), sample(4)] });
        let point = json!({ "depth": 4, "ways": [way, { "name": "x", "not_run": "y" }] });
        let case = json!({ "name": "rfc", "axis": "in flight", "points": [point] });
        let results = json!({ "machine": { "kernel": "7.3" }, "cases": [case] });
        let marks = "0 0\n10 20\n50 50\n80 90\n90 90\n100 120\n";
        let all = Figures::read(&results, marks, "7.2").unwrap().all;
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].at, all[0].user, all[0].kernel), (4, 1.0, 2.0));
        assert!(Figures::read(&results, "0 0\n", "7.2").is_err());
    }

    #[test]
    fn only_our_own_and_only_what_is_steady_can_be_worse() {
        let unsteady = Figure { apart: 0.5, at: 1, ..figure("chain, opcode", 1000.0) };
        let before = figures(&[
            figure("chain, opcode", 1000.0),
            figure("splice(2)", 1000.0),
            unsteady.clone(),
        ]);
        let dearer = |figure: Figure| Figure { kernel: 2000.0, ..figure };
        let all = figures(&before.all.iter().cloned().map(dearer).collect::<Vec<_>>());
        assert_eq!(before.worse(&all, 0.01, 0.03).unwrap().len(), 1);
        assert!(before.worse(&before, 0.01, 0.03).unwrap().is_empty());
        assert!(before.worse(&figures(&[]), 0.01, 0.03).is_err());
    }
}
