// SPDX-License-Identifier: MIT OR Apache-2.0
//! One transfer: the progress bar, and the line at its end.

use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use rustix::fs::{SeekFrom, ftruncate, seek, tell as position};
use rustix::io::Errno;
use uring_getbuf::relay::{Failure, Relay, Report};
use uring_getbuf::{Engine, ErrorKind, Ring};

use crate::args::Options;
use crate::end::{End, say};
use crate::ends::{Named, failed};
use crate::progress::Bar;
use crate::signals::Signals;
use crate::stdio::Stream;

/// What is moved from where to where.
pub(crate) struct Transfer<'a> {
    pub(crate) source: &'a Named,
    pub(crate) sink: &'a Named,
    pub(crate) options: &'a Options,
    pub(crate) signals: &'a Signals,
}

/// What was moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved {
    pub(crate) bytes: u64,
    /// Those of them that went through the pool.
    pub(crate) copied: u64,
    /// Bytes of holes, which were not.
    pub(crate) holes: u64,
    pub(crate) engine: Engine,
}

/// A transfer that ended early: why, and how many bytes of the sink are right.
pub(crate) struct Early {
    pub(crate) end: End,
    pub(crate) right: u64,
}

impl Transfer<'_> {
    /// Moves everything. With `holes` both are files that begin at 0, the sink is empty, and what are
    /// holes in the source become holes in the sink.
    pub(crate) fn run(&self, ring: &mut Ring, holes: bool) -> Result<(), Early> {
        let mut bar = Bar::new(self.options);
        let begin = Instant::now();
        let mut moved = Moved { bytes: 0, copied: 0, holes: 0, engine: ring.engine() };
        let done = match holes {
            true => self.ranges(ring, &mut bar, &mut moved),
            false => self.range(ring, &mut bar, &mut moved, None).map(|_| ()),
        };
        bar.clear();
        done?;
        if !self.options.quiet {
            let holes = match moved.holes {
                0 => String::new(),
                holes => format!(", and {} of holes", plural(holes)),
            };
            tell(moved, begin.elapsed(), &holes);
        }
        Ok(())
    }

    /// Moves what is no hole, range by range.
    fn ranges(&self, ring: &mut Ring, bar: &mut Bar, moved: &mut Moved) -> Result<(), Early> {
        let (from, size) = (&self.source.file, self.size(0)?);
        let mut at = 0;
        // Where it cannot be said, nothing is a hole.
        let data = |at| match seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => None,
            data => Some(data.unwrap_or(at)),
        };
        while let Some(start) = data(at) {
            let hole = seek(from, SeekFrom::Hole(start)).unwrap_or(size);
            moved.holes += start - at;
            // What is behind the last one is moved as well, if the file grows.
            let limit = if hole < size { hole - start } else { u64::MAX };
            let bytes = self.range(ring, bar, moved, Some((start, limit, size)))?;
            if bytes < limit {
                return Ok(());
            }
            at = hole;
        }
        let size = self.size(at)?.max(at);
        moved.holes += size - at;
        let early = |errno| Early { end: failed(&self.sink.name, errno), right: at };
        ftruncate(&self.sink.file, size).map_err(early)
    }

    fn size(&self, right: u64) -> Result<u64, Early> {
        let stat = self.source.stat().map_err(|end| Early { end, right })?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Moves a range of a file, which has this start, length and the size of the whole; or everything.
    fn range(
        &self,
        ring: &mut Ring,
        bar: &mut Bar,
        moved: &mut Moved,
        range: Option<(u64, u64, u64)>,
    ) -> Result<u64, Early> {
        let Self { source, sink, options, signals } = *self;
        let mut relay = Relay::new(&source.file, &sink.file)
            .source_offset(source.offset())
            .sink_offset(sink.offset())
            // The ring's own are whole pages.
            .block_size(options.block_size.unwrap_or(u32::MAX))
            .canceller(signals.canceller());
        if let Some((start, limit, _)) = range {
            relay = relay.source_offset(start).sink_offset(start).limit(limit);
        }
        let relay = relay.on_progress(|mut progress| {
            if let Some((start, _, size)) = range {
                progress.bytes += start;
                progress.total = Some(size.max(progress.bytes));
            }
            bar.show(progress);
        });
        let outcome = relay.run(ring);
        let (start, limit, _) = range.unwrap_or((0, u64::MAX, 0));
        let Report { bytes, copied, .. } = match outcome {
            Ok(report) => report,
            // There was nothing left to interrupt.
            Err(Failure { error, report })
                if error.kind() == ErrorKind::Cancelled
                    && report.bytes == report.taken
                    && limit == u64::MAX
                    && self.is_over(start + report.bytes) =>
            {
                report
            }
            Err(failure) => {
                let right = start + failure.report.bytes;
                return Err(Early { end: self.why(&failure, right), right });
            }
        };
        moved.bytes += bytes;
        moved.copied += copied;
        if moved.copied > moved.bytes / 2 {
            moved.engine = Engine::Copy;
        }
        Ok(bytes)
    }

    /// Whether the source has no more, having been read up to here.
    fn is_over(&self, read: u64) -> bool {
        let at = match self.source.stream {
            Some(_) => position(&self.source.file).ok(),
            None => Some(read),
        };
        at.is_some_and(|at| self.source.ends_at(at))
    }

    /// Says whose fault it was, and how much arrived.
    fn why(&self, failure: &Failure, right: u64) -> End {
        let Self { source, sink, signals, .. } = *self;
        let arrived = format!("{} arrived at {}", plural(right), sink.name);
        let error = &failure.error;
        match error.kind() {
            ErrorKind::Cancelled => signals.interrupted(format_args!("interrupted; {arrived}")),
            ErrorKind::Source => failed(&source.name, format_args!("{error}; {arrived}")),
            ErrorKind::Sink if self.is_closed_output(failure) => End::quietly(),
            ErrorKind::Sink => failed(&sink.name, format_args!("{error}; {arrived}")),
            _ => End::failed(format!("{} to {}: {error}; {arrived}", source.name, sink.name)),
        }
    }

    /// The reader of our standard output has gone, as `head` does.
    fn is_closed_output(&self, failure: &Failure) -> bool {
        self.sink.stream == Some(Stream::Output)
            && failure.error.raw_os_error() == Some(Errno::PIPE.raw_os_error())
    }
}

/// What was fetched, in what time and how.
pub(crate) fn tell(moved: Moved, time: Duration, remark: &str) {
    let Moved { bytes, copied, engine, .. } = moved;
    let seconds = time.as_secs_f64();
    let rate = HumanBytes((bytes as f64 / seconds.max(1e-9)) as u64);
    let copies = match engine.copies() {
        1 => "1 copy".into(),
        copies => format!("{copies} copies"),
    };
    let others = match engine {
        Engine::Copy if copied < bytes => format!("; {} lent", plural(bytes - copied)),
        engine if engine != Engine::Copy && copied > 0 => format!("; {} copied", plural(copied)),
        _ => String::new(),
    };
    let said = plural(bytes);
    say(format_args!(
        "{said} in {seconds:.3} s, {rate}/s, engine {engine} ({copies}{others}){remark}"
    ));
}

pub(crate) fn plural(bytes: u64) -> String {
    format!("{bytes} byte{}", if bytes == 1 { "" } else { "s" })
}
