// SPDX-License-Identifier: MIT OR Apache-2.0
//! `getbuf cp`

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat, fstat, ftruncate};

use crate::args::CpArgs;
use crate::end::End;
use crate::transfer::{self, Named};

pub(crate) const STANDARD_OUTPUT: &str = "standard output";

pub(crate) fn run(args: &CpArgs) -> Result<(), End> {
    let source = transfer::open_source(&args.source)?;
    let from = look(&source)?;
    if FileType::from_raw_mode(from.st_mode) == FileType::Directory {
        return Err(End::failed(format!("{}: it is a folder, and cp copies files", source.name)));
    }
    let mut ring = transfer::ring(&args.options)?;
    let sink = open_sink(args, &from)?;
    let to = look(&sink)?;
    if is_file(&from) && (from.st_dev, from.st_ino) == (to.st_dev, to.st_ino) {
        return Err(End::failed(format!("{} and {} are the same file", source.name, sink.name)));
    }
    // Only now: whatever could be refused has been.
    if is_file(&to) && sink.name != STANDARD_OUTPUT {
        ftruncate(&sink.file, 0).map_err(|errno| failed(&sink.name, errno))?;
    }
    transfer::run(&mut ring, &source, &sink, &args.options)
}

fn failed(name: &str, error: impl Into<std::io::Error>) -> End {
    End::failed(format!("{name}: {}", error.into()))
}

fn look(file: &Named) -> Result<Stat, End> {
    fstat(&file.file).map_err(|errno| failed(&file.name, errno))
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Opens the destination without touching what is in it.
fn open_sink(args: &CpArgs, from: &Stat) -> Result<Named, End> {
    if args.destination == Path::new("-") {
        let file = std::io::stdout().as_fd().try_clone_to_owned();
        let file = file.map_err(|error| failed(STANDARD_OUTPUT, error))?;
        return Ok(Named { name: STANDARD_OUTPUT.into(), file });
    }
    let path = destination(args)?;
    let name = path.display().to_string();
    // A new file gets the source's permissions, less the umask, as with cp(1).
    let mode = if is_file(from) { from.st_mode & 0o777 } else { 0o666 };
    let open = || -> std::io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(&path)
    };
    Ok(Named { file: open().map_err(|error| failed(&name, error))?.into(), name })
}

/// In a folder: under the source's own name.
fn destination(args: &CpArgs) -> Result<PathBuf, End> {
    if !args.destination.is_dir() {
        return Ok(args.destination.clone());
    }
    match args.source.file_name() {
        Some(name) if args.source != Path::new("-") => Ok(args.destination.join(name)),
        _ => Err(End::failed(format!(
            "{}: it is a folder, and {} has no name to have in it",
            args.destination.display(),
            args.source.display()
        ))),
    }
}
