// SPDX-License-Identifier: MIT OR Apache-2.0
//! `getbuf bench`

use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use getbuf_bench::cases::CASES;
use getbuf_bench::{Options, Progress, Results};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::BenchArgs;
use crate::end::End;
use crate::ends::{DASH, failed};
use crate::signals::Signals;
use crate::stdio::Output;

pub(crate) fn run(args: &BenchArgs) -> Result<(), End> {
    let output = Output::open()?;
    let cases = if args.cases.is_empty() { CASES.iter().collect() } else { args.cases.clone() };
    let options = Options {
        cases,
        time: Duration::from_secs(u64::from(args.time)),
        requests: args.requests,
        repeats: usize::from(args.repeats),
        folder: args.dir.clone().unwrap_or_else(std::env::temp_dir),
        only: args.only.clone(),
    };
    let signals = Signals::take()?;
    let bar = Bar::new();
    let results =
        getbuf_bench::run(&options, &|| signals.are_there(), |progress| bar.show(progress));
    bar.0.finish_and_clear();
    let results = results.map_err(|error| End::failed(format!("{error:#}")))?;
    tell(args, &results, output)?;
    if signals.are_there() {
        return Err(signals.interrupted("interrupted"));
    }
    Ok(())
}

fn tell(args: &BenchArgs, results: &Results, output: Output) -> Result<(), End> {
    let is_output = args.json.as_deref() == Some(Path::new(DASH));
    let text = if is_output { results.json() } else { results.table() };
    let written = output.print(&text);
    if let (Some(path), false) = (&args.json, is_output) {
        save(path, &results.json())?;
    }
    if let Some(path) = &args.report {
        let page = results.html().map_err(|error| End::failed(format!("{error:#}")))?;
        save(path, &page)?;
    }
    written
}

fn save(path: &Path, text: &str) -> Result<(), End> {
    fs::write(path, text).map_err(|error| failed(&path.display().to_string(), error))
}

/// On a terminal only.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("[{bar:30}] {pos}/{len} {elapsed} {wide_msg}");
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
        let bar = bar.with_style(style.expect("a valid template"));
        bar.enable_steady_tick(Duration::from_secs(1));
        Self(bar)
    }

    fn show(&self, progress: Progress<'_>) {
        self.0.set_length(progress.total as u64);
        self.0.set_position(progress.done as u64);
        self.0.set_message(progress.what.to_owned());
    }
}
