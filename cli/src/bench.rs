// SPDX-License-Identifier: MIT OR Apache-2.0
//! `getbuf bench`

use std::fs::{self, File};
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use getbuf_bench::cases::CASES;
use getbuf_bench::{Options, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::BenchArgs;
use crate::end::End;
use crate::ends::{DASH, failed};
use crate::signals::Signals;
use crate::stdio::Output;

pub(crate) fn run(args: &BenchArgs) -> Result<(), End> {
    let output = Output::open()?;
    let is_output = args.json.as_deref() == Some(Path::new(DASH));
    let json = args.json.as_deref().filter(|_| !is_output).map(Page::open).transpose()?;
    let report = args.report.as_deref().map(Page::open).transpose()?;
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
    let printed = output.print(&if is_output { results.json() } else { results.table() });
    if let Some(json) = json {
        json.write(&results.json())?;
    }
    if let Some(report) = report {
        let page = results.html().map_err(|error| End::failed(format!("{error:#}")))?;
        report.write(&page)?;
    }
    printed?;
    if results.is_interrupted() {
        return Err(signals.interrupted("interrupted"));
    }
    Ok(())
}

/// A file for a result, opened before there is one: a long run is not to end in front of a folder that
/// does not exist.
struct Page<'a> {
    path: &'a Path,
    file: File,
    /// It was not there before, and nothing is in it.
    is_new: bool,
}

impl<'a> Page<'a> {
    fn open(path: &'a Path) -> Result<Self, End> {
        let create = File::options().write(true).create_new(true).open(path);
        let (file, is_new) = match create {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                (File::options().write(true).open(path), false)
            }
            created => (created, true),
        };
        let file = file.map_err(|error| failed(&path.display().to_string(), error))?;
        Ok(Self { path, file, is_new })
    }

    fn write(mut self, text: &str) -> Result<(), End> {
        self.is_new = false;
        // What is there stays until now. Only a file can be cut.
        let is_file = self.file.metadata().is_ok_and(|file| file.is_file());
        let cut = if is_file { self.file.set_len(0) } else { Ok(()) };
        let written = cut.and_then(|()| self.file.write_all(text.as_bytes()));
        written.map_err(|error| failed(&self.path.display().to_string(), error))
    }
}

impl Drop for Page<'_> {
    fn drop(&mut self) {
        if self.is_new {
            let _ = fs::remove_file(self.path);
        }
    }
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
        Self(bar)
    }

    fn show(&self, progress: Progress<'_>) {
        self.0.set_length(progress.total as u64);
        self.0.set_position(progress.done as u64);
        self.0.set_message(progress.what.to_owned());
    }
}
