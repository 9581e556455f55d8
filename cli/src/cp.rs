// SPDX-License-Identifier: MIT OR Apache-2.0
//! `getbuf cp`

use std::fmt::Display;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, SeekFrom, Stat, ftruncate, seek, stat};

use crate::args::CpArgs;
use crate::end::End;
use crate::ends::{self, DASH, Named, failed};
use crate::fit;
use crate::signals::{self, Signals};
use crate::stdio::Stream;
use crate::transfer::{Early, Transfer};

pub(crate) fn run(args: &CpArgs) -> Result<(), End> {
    refuse_same(args)?;
    let source = ends::open_source(&args.source)?;
    let from = source.stat()?;
    let mut ring = fit::ring(&args.options, 2)?;
    let signals = Signals::prepare()?;
    signals::need_worker()?;
    let sink = open_sink(args, &from)?;
    let to = sink.stat()?;
    if are_same(&from, &to) {
        return Err(same(&source.name, &sink.name));
    }
    signals.begin()?;
    // Only now: whatever could be refused has been.
    let ours = is_file(&to) && sink.stream.is_none();
    if ours {
        ftruncate(&sink.file, 0).map_err(|errno| failed(&sink.name, errno))?;
    }
    let holes = ours && !args.no_holes && source.stream.is_none() && has_holes(&source, &from);
    let (source, sink, options) = (&source, &sink, &args.options);
    let transfer = Transfer { source, sink, options, signals: &signals };
    transfer.run(&mut ring, holes).map_err(|Early { end, right }| {
        if ours {
            // What is behind it is not what the source has there.
            let _ = ftruncate(&sink.file, right);
        }
        end
    })
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn has_holes(source: &Named, stat: &Stat) -> bool {
    let first = || seek(&source.file, SeekFrom::Hole(0));
    let is_before = |size| first().is_ok_and(|hole| hole < size);
    is_file(stat) && u64::try_from(stat.st_size).is_ok_and(is_before)
}

/// Before they are opened, which has to wait for somebody else where they are pipes.
fn refuse_same(args: &CpArgs) -> Result<(), End> {
    if [&args.source, &args.destination].into_iter().any(|path| path == Path::new(DASH)) {
        return Ok(());
    }
    let destination = destination(args)?;
    match (stat(&args.source), stat(&destination)) {
        (Ok(from), Ok(to)) if are_same(&from, &to) => {
            Err(same(&args.source.display(), &destination.display()))
        }
        _ => Ok(()),
    }
}

fn same(source: &dyn Display, sink: &dyn Display) -> End {
    End::failed(format!("{source} and {sink} are the same file"))
}

/// Whether both hold the same bytes. Two ends of a terminal or a socket do not.
fn are_same(from: &Stat, to: &Stat) -> bool {
    let kinds = [from, to].map(|stat| FileType::from_raw_mode(stat.st_mode));
    match kinds {
        [FileType::RegularFile, FileType::RegularFile] | [FileType::Fifo, FileType::Fifo] => {
            (from.st_dev, from.st_ino) == (to.st_dev, to.st_ino)
        }
        // A disk can have several names that are no links.
        [FileType::BlockDevice, FileType::BlockDevice] => from.st_rdev == to.st_rdev,
        _ => false,
    }
}

/// Opens the destination without touching what is in it.
fn open_sink(args: &CpArgs, from: &Stat) -> Result<Named, End> {
    if args.destination == Path::new(DASH) {
        return Stream::Output.open();
    }
    let path = destination(args)?;
    let name = path.display().to_string();
    // A new file gets the source's permissions, less the umask, as with cp(1).
    let mode = if is_file(from) { from.st_mode & 0o777 } else { 0o666 };
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(&path);
    let file = opened.map_err(|error| failed(&name, error))?;
    Ok(Named::own(name, file))
}

/// In a directory: under the source's own name.
fn destination(args: &CpArgs) -> Result<PathBuf, End> {
    if !args.destination.is_dir() {
        return Ok(args.destination.clone());
    }
    match args.source.file_name() {
        Some(name) if args.source != Path::new(DASH) => Ok(args.destination.join(name)),
        _ => Err(failed(
            &args.destination.display().to_string(),
            format_args!(
                "it is a directory, and {} has no name to have in it",
                args.source.display()
            ),
        )),
    }
}
