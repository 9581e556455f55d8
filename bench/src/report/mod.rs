// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was measured, and how it is shown.

mod html;
mod json;
mod table;

use uring_getbuf::Engine;

use crate::cases::{Axis, Case, Point};
use crate::machine::Machine;
use crate::measure::{Memory, Sample};

/// What was measured.
#[derive(Debug)]
pub struct Results {
    pub(crate) machine: Machine,
    /// Engines that do not work here, and why.
    pub(crate) missing: Vec<(Engine, String)>,
    pub(crate) cases: Vec<CaseResult>,
    /// It was ended early.
    pub(crate) interrupted: bool,
}

#[derive(Debug)]
pub(crate) struct CaseResult {
    pub(crate) case: Case,
    pub(crate) points: Vec<PointResult>,
}

#[derive(Debug)]
pub(crate) struct PointResult {
    pub(crate) point: Point,
    pub(crate) ways: Vec<WayResult>,
}

#[derive(Debug)]
pub(crate) struct WayResult {
    pub(crate) name: String,
    pub(crate) outcome: Result<Measured, NotRun>,
}

/// Why a way could not run.
#[derive(Debug)]
pub(crate) enum NotRun {
    NoEngine(Engine),
    Failed(String),
}

impl Results {
    /// Whether it was ended before everything was measured.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.interrupted
    }
}

impl From<anyhow::Error> for NotRun {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

/// The samples of a way.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) samples: Vec<Sample>,
    /// What it took when it was set up.
    pub(crate) memory: Memory,
}

/// A median, and how far the samples are from it: half the distance between least and most, as a
/// share of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Median {
    pub(crate) value: f64,
    pub(crate) spread: f64,
}

impl Median {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let value = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        let spread = if value > 0.0 { (most - least) / 2.0 / value } else { 0.0 };
        Some(Self { value, spread })
    }
}

impl Measured {
    fn median(&self, value: impl Fn(&Sample) -> f64) -> Option<Median> {
        Median::of(self.samples.iter().map(value).collect())
    }

    /// Requests in a second.
    pub(crate) fn rate(&self) -> Option<Median> {
        self.median(|sample| sample.requests as f64 / sample.wall.as_secs_f64())
    }

    /// Seconds of processor time for a request, worker threads included.
    pub(crate) fn processor(&self) -> Option<Median> {
        self.median(|sample| {
            (sample.own + sample.workers_time).as_secs_f64() / sample.requests as f64
        })
    }

    pub(crate) fn workers(&self) -> usize {
        self.samples.iter().map(|sample| sample.workers).max().unwrap_or(0)
    }
}

impl CaseResult {
    /// The names of the ways, in order, of those of which anything was measured.
    fn ways(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for way in self.points.iter().flat_map(|point| &point.ways) {
            let measured = way.outcome.as_ref().is_ok_and(|way| !way.samples.is_empty());
            if measured && !names.contains(&way.name.as_str()) {
                names.push(&way.name);
            }
        }
        names
    }

    /// Why ways did not run, besides missing engines: the reason, and what it is the reason for.
    fn reasons(&self) -> Vec<(&str, Vec<String>)> {
        let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
        for point in &self.points {
            for way in &point.ways {
                let Err(NotRun::Failed(reason)) = &way.outcome else { continue };
                let all = self.points.iter().all(|point| {
                    point.ways.iter().any(|other| other.name == way.name && other.outcome.is_err())
                });
                let what = if all {
                    way.name.clone()
                } else {
                    format!("{} ({})", way.name, self.value(point.point))
                };
                match reasons.iter_mut().find(|(known, _)| known == reason) {
                    Some((_, names)) if names.contains(&what) => {}
                    Some((_, names)) => names.push(what),
                    None => reasons.push((reason, vec![what])),
                }
            }
        }
        reasons
    }

    /// The place on the axis, in words.
    fn value(&self, point: Point) -> String {
        let value = point.on(self.case.axis);
        if self.case.axis == Axis::Block { size(value) } else { value.to_string() }
    }
}

impl PointResult {
    fn measured(&self, name: &str) -> Option<&Measured> {
        self.ways.iter().find(|way| way.name == name)?.outcome.as_ref().ok()
    }
}

/// "64 KiB".
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        let median = Median::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((median.value, median.spread), (2.0, 0.5));
        assert_eq!(Median::of(vec![1.0, 2.0]).unwrap().value, 1.5);
        assert_eq!(Median::of(Vec::new()), None);
    }

    #[test]
    fn sizes() {
        assert_eq!([size(100), size(4096), size(1 << 20)], ["100 B", "4 KiB", "1 MiB"]);
    }
}
