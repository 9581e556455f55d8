// SPDX-License-Identifier: MIT OR Apache-2.0
//! For programs.

use serde_json::{Map, Value, json};

use super::{CaseResult, Measured, Median, NotRun, PointResult, Results};

impl Results {
    /// Everything, as JSON.
    #[must_use]
    pub fn json(&self) -> String {
        let machine = &self.machine;
        let missing = self.missing.iter();
        let missing =
            missing.map(|(engine, reason)| (engine.name().to_owned(), reason.as_str().into()));
        let all = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "interrupted": self.interrupted,
            "machine": {
                "kernel": machine.kernel,
                "architecture": machine.architecture,
                "processor": machine.processor,
                "processors": machine.processors,
                "memory": machine.memory,
                "virtual": machine.is_virtual,
                "file_system": machine.file_system,
            },
            "missing_engines": missing.collect::<Map<_, _>>(),
            "cases": self.cases.iter().map(case).collect::<Vec<_>>(),
        });
        format!("{all:#}\n")
    }
}

fn case(result: &CaseResult) -> Value {
    let case = &result.case;
    json!({
        "name": case.name,
        "about": case.about,
        "source": case.source.name(),
        "sink": case.sink.name(),
        "axis": case.axis.name(),
        "points": result.points.iter().map(point).collect::<Vec<_>>(),
    })
}

fn point(result: &PointResult) -> Value {
    let ways = result.ways.iter().map(|way| match &way.outcome {
        Ok(measured) => measured_way(&way.name, measured),
        Err(NotRun::Failed(reason)) => json!({ "name": way.name, "not_run": reason }),
        Err(NotRun::NoEngine(engine)) => {
            json!({ "name": way.name, "not_run": format!("there is no {engine} engine here") })
        }
    });
    let point = result.point;
    json!({
        "block": point.block,
        "depth": point.depth,
        "flows": point.flows,
        "sinks": point.sinks,
        "ways": ways.collect::<Vec<_>>(),
    })
}

fn measured_way(name: &str, way: &Measured) -> Value {
    let samples = way.samples.iter().map(|sample| {
        json!({
            "requests": sample.requests,
            "wall_ns": sample.wall.as_nanos() as u64,
            "thread_cpu_ns": sample.own.as_nanos() as u64,
            "worker_cpu_ns": sample.workers_time.as_nanos() as u64,
            "workers": sample.workers,
            "mark": sample.mark,
        })
    });
    json!({
        "name": name,
        "requests_per_second": median(way.rate()),
        "cpu_seconds_per_request": median(way.processor()),
        "workers": way.workers(),
        "resident_bytes": way.memory.resident,
        "pinned_bytes": way.memory.pinned,
        "samples": samples.collect::<Vec<_>>(),
    })
}

fn median(median: Option<Median>) -> Value {
    median.map_or(Value::Null, |median| json!({ "median": median.value, "spread": median.spread }))
}
