// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two ends of a transfer: files with names.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, OFlags, SeekFrom, Stat, fcntl_getfl, fstat, seek};

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

    /// Where it stands, if it is a file that is addressed by offset: somebody else may have opened
    /// it, and read from it or written to it.
    pub(crate) fn position(&self) -> Option<u64> {
        let by_offset = matches!(
            FileType::from_raw_mode(self.stat().ok()?.st_mode),
            FileType::RegularFile | FileType::BlockDevice
        );
        // What is appended moves the position by itself, and to elsewhere.
        let appended = fcntl_getfl(&self.file).is_ok_and(|flags| flags.contains(OFlags::APPEND));
        (by_offset && !appended).then(|| seek(&self.file, SeekFrom::Current(0)).ok())?
    }

    /// Has it stand behind `bytes` that were moved: whoever shares it goes on from there, such as
    /// the next command of a shell's group. Requests with an offset do not do that.
    pub(crate) fn advance(&self, position: Option<u64>, bytes: u64) {
        if let Some(position) = position {
            let _ = seek(&self.file, SeekFrom::Start(position + bytes));
        }
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
