// SPDX-License-Identifier: MIT OR Apache-2.0
//! A page that needs nothing but itself: plots as SVG, and the numbers below them.

use std::fmt::Write;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::table::short;
use super::{CaseResult, Measured, Results};
use crate::cases::Axis;

const STYLE: &str = "\
body { font: 15px/1.5 sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em; color: #222 }
h2 { margin-top: 2em } table { border-collapse: collapse; font-size: 13px }
td, th { padding: 2px 8px; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
td:first-child, th:first-child { text-align: left } .plots { display: flex; flex-wrap: wrap }
.plots svg { width: 540px; height: auto } .legend span { margin-right: 1.2em; white-space: nowrap }
.legend i { display: inline-block; width: 1em; height: .7em; margin-right: .3em } \
small, .why { color: #555 }";

/// Told apart by most people, also by those who are colour-blind, as far as so many can be.
const COLOURS: [RGBColor; 12] = [
    RGBColor(0, 90, 181),
    RGBColor(220, 50, 32),
    RGBColor(0, 140, 90),
    RGBColor(230, 159, 0),
    RGBColor(120, 60, 170),
    RGBColor(86, 180, 233),
    RGBColor(204, 121, 167),
    RGBColor(90, 70, 50),
    RGBColor(110, 160, 20),
    RGBColor(0, 0, 0),
    RGBColor(150, 150, 150),
    RGBColor(255, 110, 80),
];

type Value = fn(&Measured, f64) -> Option<f64>;

/// What is plotted. Of those that are not on a logarithmic scale, nothing is left out.
const PLOTS: [(&str, bool, Value); 5] = [
    ("requests/s", true, |way, _| way.rate().map(|median| median.value)),
    ("GB/s", true, |way, block| way.rate().map(|median| median.value * block / 1e9)),
    ("CPU seconds per GiB", true, |way, block| {
        way.processor().map(|median| median.value / block * (1_u64 << 30) as f64)
    }),
    ("worker threads of the kernel", false, |way, _| Some(way.workers() as f64)),
    ("MiB of memory when set up", false, |way, _| {
        Some(way.memory.resident as f64 / f64::from(1 << 20))
    }),
];

impl Results {
    /// A page with plots.
    ///
    /// # Errors
    ///
    /// Where a plot cannot be drawn.
    pub fn html(&self) -> Result<String> {
        let mut page = String::from("<!doctype html>\n<html lang=en><meta charset=utf-8>\n");
        write!(page, "<title>getbuf bench</title><style>{STYLE}</style>\n<h1>getbuf bench</h1>\n")?;
        writeln!(page, "<p>{}, version {}</p>", escaped(&self.machine.to_string()), version())?;
        for (engine, reason) in &self.missing {
            writeln!(page, "<p class=why>Not here: the {engine} engine: {}</p>", escaped(reason))?;
        }
        page.push_str(
            "<p>Every way ran in this one run, interleaved with the others. Points are medians. \
             Processor time is that of the way's own thread and of the worker threads that the \
             kernel started for it; whoever receives, or fills a pipe, does not count.</p>\n",
        );
        if self.interrupted {
            page.push_str("<p><b>The run was interrupted.</b></p>\n");
        }
        for case in &self.cases {
            case.html(&mut page)?;
        }
        page.push_str("</html>\n");
        Ok(page)
    }
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

impl CaseResult {
    fn html(&self, page: &mut String) -> Result<()> {
        let names = self.ways();
        writeln!(page, "<h2>{}</h2>\n<p>{}</p>", self.case.name, escaped(self.case.about))?;
        if !names.is_empty() {
            page.push_str("<p class=legend>");
            for (index, name) in names.iter().enumerate() {
                let RGBColor(r, g, b) = COLOURS[index % COLOURS.len()];
                let style = if index < COLOURS.len() { "solid" } else { "double" };
                write!(
                    page,
                    "<span><i style='border-top: 5px {style} rgb({r},{g},{b})'></i>{}</span> ",
                    escaped(name)
                )?;
            }
            page.push_str("</p>\n<div class=plots>\n");
            for (title, log, value) in PLOTS {
                page.push_str(&self.plot(&names, title, log, value)?);
            }
            page.push_str("</div>\n");
            self.numbers(page, &names)?;
        }
        for (reason, ways) in self.reasons() {
            let (ways, reason) = (escaped(&ways.join("; ")), escaped(reason));
            writeln!(page, "<p class=why>Not run: {ways}: {reason}</p>")?;
        }
        Ok(())
    }

    /// Points of a way: where on the axis, and how much.
    fn series(&self, name: &str, value: Value) -> Vec<(f64, f64)> {
        let point = |point: &super::PointResult| {
            let way = point.measured(name)?;
            if way.samples.is_empty() {
                return None;
            }
            let block = f64::from(point.point.block);
            Some((point.point.on(self.case.axis) as f64, value(way, block)?))
        };
        self.points.iter().filter_map(point).collect()
    }

    fn plot(&self, names: &[&str], title: &str, log: bool, value: Value) -> Result<String> {
        let all: Vec<_> = names.iter().map(|name| self.series(name, value)).collect();
        let values = || all.iter().flatten().map(|(_, y)| *y);
        let most = values().fold(0.0, f64::max);
        let least = values().fold(f64::INFINITY, f64::min);
        if most <= 0.0 {
            return Ok(format!("<p><small>{title}: none.</small></p>\n"));
        }
        let mut svg = String::new();
        let drawn = {
            let area = SVGBackend::with_string(&mut svg, (540, 330)).into_drawing_area();
            let range = if log { least * 0.8..most * 1.25 } else { 0.0..most * 1.1 };
            self.draw(&area, &all, title, log, range)
                .and_then(|()| area.present().map_err(|error| error.to_string()))
        };
        drawn.map_err(|error| anyhow!("drawing a plot: {error}"))?;
        Ok(svg)
    }

    fn draw(
        &self,
        area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
        all: &[Vec<(f64, f64)>],
        title: &str,
        log: bool,
        range: std::ops::Range<f64>,
    ) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        area.fill(&WHITE).map_err(|error| text(&error))?;
        let xs = || self.points.iter().map(|point| point.point.on(self.case.axis) as f64);
        let x = xs().fold(f64::INFINITY, f64::min) * 0.9..xs().fold(0.0, f64::max) * 1.1;
        let axis = self.case.axis;
        let mark = |value: &f64| {
            let value = value.round() as u64;
            if axis == Axis::Block { super::size(value) } else { value.to_string() }
        };
        let mut chart = ChartBuilder::on(area);
        chart
            .caption(title, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(32)
            .y_label_area_size(52);
        macro_rules! finish {
            ($chart:expr) => {{
                let mut chart = $chart.map_err(|error| text(&error))?;
                chart
                    .configure_mesh()
                    .x_desc(axis.name())
                    .x_labels(8)
                    .y_labels(7)
                    .x_label_formatter(&mark)
                    .y_label_formatter(&|value| short(*value))
                    .light_line_style(WHITE)
                    .draw()
                    .map_err(|error| text(&error))?;
                for (index, points) in all.iter().enumerate() {
                    let colour = COLOURS[index % COLOURS.len()];
                    let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
                    chart.draw_series(line).map_err(|error| text(&error))?;
                    let filled = index < COLOURS.len();
                    let dots = points.iter().map(|point| {
                        let style = if filled { colour.filled() } else { colour.stroke_width(1) };
                        Circle::new(*point, 3, style)
                    });
                    chart.draw_series(dots).map_err(|error| text(&error))?;
                }
                Ok(())
            }};
        }
        let x = x.log_scale().base(2.0);
        if log {
            finish!(chart.build_cartesian_2d(x, range.log_scale()))
        } else {
            finish!(chart.build_cartesian_2d(x, range))
        }
    }

    fn numbers(&self, page: &mut String, names: &[&str]) -> Result<()> {
        page.push_str("<details><summary>Numbers</summary>\n");
        for (title, _, value) in PLOTS {
            write!(page, "<table><tr><th>{title}, by {}</th>", self.case.axis.name())?;
            for point in &self.points {
                write!(page, "<th>{}</th>", self.value(point.point))?;
            }
            page.push_str("</tr>\n");
            for name in names {
                write!(page, "<tr><td>{}</td>", escaped(name))?;
                for point in &self.points {
                    let way = point.measured(name).filter(|way| !way.samples.is_empty());
                    let value = way.and_then(|way| value(way, f64::from(point.point.block)));
                    write!(page, "<td>{}</td>", value.map_or_else(|| "-".into(), short))?;
                }
                page.push_str("</tr>\n");
            }
            page.push_str("</table><br>\n");
        }
        page.push_str("</details>\n");
        Ok(())
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
