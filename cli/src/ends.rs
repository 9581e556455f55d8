// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two ends of a transfer: files with names.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Stat, fstat};
use rustix::io::pread;
use uring_getbuf::STREAM;

use crate::end::End;
use crate::stdio::Stream;

/// What stands for the standard input or output.
pub(crate) const DASH: &str = "-";

/// One end of a transfer, with the name that messages call it by.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) file: OwnedFd,
    /// The standard stream that it is, whose position others may share.
    pub(crate) stream: Option<Stream>,
}

impl Named {
    /// A file that was opened for this alone.
    pub(crate) fn own(name: String, file: impl Into<OwnedFd>) -> Self {
        Self { name, file: file.into(), stream: None }
    }

    pub(crate) fn stat(&self) -> Result<Stat, End> {
        fstat(&self.file).map_err(|errno| failed(&self.name, errno))
    }

    /// Where a transfer begins. A standard stream is read or written where it stands at the time, and
    /// its position moves: others may share it, such as the next command of a shell's group.
    pub(crate) fn offset(&self) -> u64 {
        if self.stream.is_some() { STREAM } else { 0 }
    }

    pub(crate) fn is_regular(&self) -> bool {
        let kind = |stat: Stat| FileType::from_raw_mode(stat.st_mode);
        self.stat().is_ok_and(|stat| kind(stat) == FileType::RegularFile)
    }

    /// Whether a file has nothing more from here on. It is asked, and not its size.
    pub(crate) fn ends_at(&self, offset: u64) -> bool {
        self.is_regular() && pread(&self.file, &mut [0; 1], offset) == Ok(0)
    }
}

/// Opens a source; `-` is the standard input.
pub(crate) fn open_source(path: &Path) -> Result<Named, End> {
    let source = if path == Path::new(DASH) {
        Stream::Input.open()?
    } else {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| failed(&name, error))?;
        Named::own(name, file)
    };
    if FileType::from_raw_mode(source.stat()?.st_mode) == FileType::Directory {
        return Err(failed(&source.name, "it is a directory, and only files can be read"));
    }
    Ok(source)
}

/// A failure that names the file and the cause.
pub(crate) fn failed(name: &str, cause: impl std::fmt::Display) -> End {
    End::failed(format!("{name}: {cause}"))
}
