// SPDX-License-Identifier: MIT OR Apache-2.0
//! `getbuf cp`

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat, ftruncate};

use crate::args::CpArgs;
use crate::end::End;
use crate::ends::{self, DASH, Named, failed};
use crate::fit;
use crate::signals::{self, Signals};
use crate::stdio::Stream;
use crate::transfer;

pub(crate) fn run(args: &CpArgs) -> Result<(), End> {
    let source = ends::open_source(&args.source)?;
    let from = source.stat()?;
    let mut ring = fit::ring(&args.options, 2)?;
    let signals = Signals::prepare()?;
    signals::need_worker()?;
    let sink = open_sink(args, &from)?;
    let to = sink.stat()?;
    if are_same(&from, &to) {
        return Err(End::failed(format!("{} and {} are the same file", source.name, sink.name)));
    }
    signals.begin()?;
    // Only now: whatever could be refused has been.
    if is_file(&to) && sink.stream.is_none() {
        ftruncate(&sink.file, 0).map_err(|errno| failed(&sink.name, errno))?;
    }
    let moved = transfer::run(&mut ring, &source, &sink, &args.options, &signals)?;
    moved.tell(&args.options, "");
    Ok(())
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Whether both hold the same bytes. Two ends of a terminal do not.
fn are_same(from: &Stat, to: &Stat) -> bool {
    match (FileType::from_raw_mode(from.st_mode), FileType::from_raw_mode(to.st_mode)) {
        (FileType::RegularFile, FileType::RegularFile) => {
            (from.st_dev, from.st_ino) == (to.st_dev, to.st_ino)
        }
        // A disk can have several names that are no links.
        (FileType::BlockDevice, FileType::BlockDevice) => from.st_rdev == to.st_rdev,
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
