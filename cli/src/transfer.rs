// SPDX-License-Identifier: MIT OR Apache-2.0
//! One transfer: the progress bar, and the line at its end.

use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use rustix::io::Errno;
use uring_getbuf::relay::{Failure, Relay, Report};
use uring_getbuf::{Engine, ErrorKind, Ring};

use crate::args::Options;
use crate::end::{End, say};
use crate::ends::Named;
use crate::progress::Bar;
use crate::signals::Signals;
use crate::stdio::Stream;

/// What was moved, and how long that took.
#[derive(Debug)]
pub(crate) struct Moved {
    report: Report,
    time: Duration,
}

/// Moves everything from one to the other.
pub(crate) fn run(
    ring: &mut Ring,
    source: &Named,
    sink: &Named,
    options: &Options,
    signals: &Signals,
) -> Result<Moved, End> {
    let (from, to) = (source.position(), sink.position());
    let mut bar = Bar::new(options);
    let begin = Instant::now();
    let moved = Relay::new(&source.file, &sink.file)
        .source_offset(from.unwrap_or(0))
        .sink_offset(to.unwrap_or(0))
        // The ring's own are whole pages.
        .block_size(options.block_size.unwrap_or(u32::MAX))
        .canceller(signals.canceller())
        .on_progress(|progress| bar.show(progress))
        .run(ring);
    let time = begin.elapsed();
    bar.clear();
    let bytes = moved.as_ref().map_or_else(|failure| failure.report.bytes, |report| report.bytes);
    source.advance(from, bytes);
    sink.advance(to, bytes);
    let report = moved.map_err(|failure| why(&failure, source, sink, signals))?;
    Ok(Moved { report, time })
}

impl Moved {
    /// The line at the end.
    pub(crate) fn tell(&self, options: &Options, remark: &str) {
        if options.quiet {
            return;
        }
        let Report { bytes, engine, .. } = self.report;
        tell(bytes, engine, self.time, remark);
    }
}

/// What was fetched, in what time and how.
pub(crate) fn tell(bytes: u64, engine: Engine, time: Duration, remark: &str) {
    let seconds = time.as_secs_f64();
    let rate = HumanBytes((bytes as f64 / seconds.max(1e-9)) as u64);
    let copies = match engine.copies() {
        1 => "1 copy".into(),
        copies => format!("{copies} copies"),
    };
    let said = plural(bytes);
    say(format_args!("{said} in {seconds:.3} s, {rate}/s, engine {engine} ({copies}){remark}"));
}

pub(crate) fn plural(bytes: u64) -> String {
    format!("{bytes} byte{}", if bytes == 1 { "" } else { "s" })
}

/// Says whose fault it was, and how much arrived.
fn why(failure: &Failure, source: &Named, sink: &Named, signals: &Signals) -> End {
    let arrived = format!("{} arrived at {}", plural(failure.report.bytes), sink.name);
    let error = &failure.error;
    match error.kind() {
        ErrorKind::Cancelled => signals.interrupted(format_args!("interrupted; {arrived}")),
        ErrorKind::Source => End::failed(format!("{}: {error}; {arrived}", source.name)),
        ErrorKind::Sink if is_closed_output(failure, sink) => End::quietly(),
        ErrorKind::Sink => End::failed(format!("{}: {error}; {arrived}", sink.name)),
        _ => End::failed(format!("{} to {}: {error}; {arrived}", source.name, sink.name)),
    }
}

/// The reader of our standard output has gone, as `head` does.
fn is_closed_output(failure: &Failure, sink: &Named) -> bool {
    sink.stream == Some(Stream::Output)
        && failure.error.raw_os_error() == Some(Errno::PIPE.raw_os_error())
}
