// SPDX-License-Identifier: MIT OR Apache-2.0
//! One transfer: the ring for it, the progress bar, Ctrl-C, and the line at its end.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::fs::{FileType, SeekFrom};
use uring_getbuf::relay::{Canceller, Failure, Relay};
use uring_getbuf::{ErrorKind, Ring};

use crate::args::Options;
use crate::end::End;

const BLOCK_SIZE: u32 = 256 << 10;
const DEPTH: u16 = 16;
/// Most redraws of the bar in a second.
const REDRAWS: u8 = 10;

/// One end of a transfer, with the name that messages call it by.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) file: OwnedFd,
}

/// Opens a source; `-` is the standard input.
pub(crate) fn open_source(path: &Path) -> Result<Named, End> {
    if path == Path::new("-") {
        let file = std::io::stdin().as_fd().try_clone_to_owned();
        let file = file.map_err(|error| End::failed(format!("standard input: {error}")))?;
        return Ok(Named { name: "standard input".into(), file });
    }
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| End::failed(format!("{name}: {error}")))?;
    Ok(Named { name, file: file.into() })
}

/// Moves everything from one to the other.
pub(crate) fn run(
    ring: &mut Ring,
    source: &Named,
    sink: &Named,
    options: &Options,
) -> Result<(), End> {
    let canceller = Canceller::new();
    cancel_on_signals(&canceller)?;
    let bar = bar(options);
    let from = Instant::now();
    let mut total = None;
    let moved = Relay::new(&source.file, &sink.file)
        .source_offset(position(source.file.as_fd()))
        .sink_offset(position(sink.file.as_fd()))
        .canceller(&canceller)
        .on_progress(|progress| {
            if let (None, Some(all)) = (total, progress.total) {
                bar.set_length(all);
                bar.set_style(with_length());
                total = progress.total;
            }
            bar.set_position(progress.bytes);
        })
        .run(ring);
    bar.finish_and_clear();
    let report = moved.map_err(|failure| why(&failure, source, sink))?;
    if !options.quiet {
        let seconds = from.elapsed().as_secs_f64();
        let rate = HumanBytes((report.bytes as f64 / seconds.max(1e-9)) as u64);
        let copies = match report.engine.copies() {
            1 => "1 copy".into(),
            copies => format!("{copies} copies"),
        };
        eprintln!(
            "{} bytes in {seconds:.3} s, {rate}/s, engine {} ({copies})",
            report.bytes, report.engine
        );
    }
    Ok(())
}

/// A ring as it was asked for, or, where nothing was, as it fits. Made before anything is touched.
pub(crate) fn ring(options: &Options) -> Result<Ring, End> {
    let block_size = options.block_size.unwrap_or(BLOCK_SIZE);
    let mut depth = options.depth.unwrap_or(DEPTH);
    loop {
        let mut builder = Ring::builder().slots(depth).block_size(block_size).files(4);
        if let Some(engine) = options.engine {
            builder = builder.engine(engine);
        }
        match builder.build() {
            Ok(ring) => return Ok(ring),
            // Others of this user may have pinned most of what the limit allows.
            Err(error)
                if error.kind() == ErrorKind::MemoryLimit
                    && (options.depth, options.block_size) == (None, None)
                    && depth > 1 =>
            {
                depth /= 2;
            }
            Err(error) => return Err(End::failed(error)),
        }
    }
}

/// Where a file stands that somebody else has opened and may have read from; 0 for all else.
fn position(file: BorrowedFd<'_>) -> u64 {
    let seekable = rustix::fs::fstat(file).is_ok_and(|stat| {
        matches!(
            FileType::from_raw_mode(stat.st_mode),
            FileType::RegularFile | FileType::BlockDevice
        )
    });
    if seekable { rustix::fs::seek(file, SeekFrom::Current(0)).unwrap_or(0) } else { 0 }
}

/// The first signal ends the transfer in order, the second one ends the program.
fn cancel_on_signals(canceller: &Canceller) -> Result<(), End> {
    let mut signals = signal_hook::iterator::Signals::new(signal_hook::consts::TERM_SIGNALS)
        .map_err(|error| End::failed(format!("handling signals: {error}")))?;
    let canceller = canceller.clone();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if canceller.is_cancelled() {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            canceller.cancel();
        }
    });
    Ok(())
}

fn bar(options: &Options) -> ProgressBar {
    if options.quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::no_length().with_style(
        ProgressStyle::with_template("{bytes:>12} {binary_bytes_per_sec} {elapsed}")
            .expect("a valid template"),
    );
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS));
    bar
}

fn with_length() -> ProgressStyle {
    ProgressStyle::with_template(
        "{percent:>3}% [{wide_bar}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}",
    )
    .expect("a valid template")
}

/// Says whose fault it was, and how much arrived.
fn why(failure: &Failure, source: &Named, sink: &Named) -> End {
    let arrived = format!("{} bytes arrived", failure.report.bytes);
    match failure.error.kind() {
        ErrorKind::Cancelled => End::interrupted(format!("interrupted; {arrived}")),
        ErrorKind::Source => {
            End::failed(format!("{}: {}; {arrived} at {}", source.name, failure.error, sink.name))
        }
        ErrorKind::Sink if is_closed_output(failure, sink) => End::quietly(),
        ErrorKind::Sink => End::failed(format!("{}: {}; {arrived}", sink.name, failure.error)),
        _ => End::failed(format!("{}; {arrived} at {}", failure.error, sink.name)),
    }
}

/// The reader of our standard output has gone, as `head` does.
fn is_closed_output(failure: &Failure, sink: &Named) -> bool {
    sink.name == crate::cp::STANDARD_OUTPUT
        && failure.error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error())
}
