// SPDX-License-Identifier: MIT OR Apache-2.0
//! A FUSE file system whose files say what they like about themselves.
//!
//! It is mounted in a mount namespace of the calling thread's own, so nobody else sees it, and it
//! goes with the thread at the latest.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, Session, WriteFlags,
};

use crate::{Folder, Stop, skip};

/// The kernel asks again each time.
const TTL: Duration = Duration::ZERO;

/// A file of such a file system. Files are named by their index: "0", "1".
#[derive(Clone, Debug)]
pub struct Odd {
    /// What it has.
    pub content: Arc<[u8]>,
    /// The size that it says it has.
    pub says: u64,
    /// Most bytes that the server answers to one request.
    pub answer: usize,
    /// Reads that touch these bytes fail with `EIO`,
    pub fails: Range<u64>,
    /// but not before this time has passed.
    pub fails_after: Duration,
    /// Opened with `FOPEN_DIRECT_IO`: the kernel keeps no pages of it, and does not mind its size.
    pub direct_io: bool,
}

impl Odd {
    /// One that tells the truth, with pages in the cache.
    #[must_use]
    pub fn new(content: &[u8]) -> Self {
        Self {
            content: content.into(),
            says: content.len() as u64,
            answer: usize::MAX,
            fails: 0..0,
            fails_after: Duration::ZERO,
            direct_io: false,
        }
    }

    /// One with `direct_io`, which says that it has `says` bytes.
    #[must_use]
    pub fn sized(content: &[u8], says: u64) -> Self {
        Self { says, direct_io: true, ..Self::new(content) }
    }

    fn attributes(&self, number: INodeNo) -> FileAttr {
        let now = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: number,
            size: self.says,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind: FileType::RegularFile,
            perm: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }
}

struct Server {
    files: Vec<Odd>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Server {
    fn file(&self, number: INodeNo) -> Option<&Odd> {
        self.files.get((u64::from(number) as usize).checked_sub(2)?)
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.parse::<u64>().ok());
        let number = number.map_or(INodeNo(u64::MAX), |number| INodeNo(number + 2));
        match self.file(number) {
            Some(file) => reply.entry(&TTL, &file.attributes(number), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.file(number) {
            Some(file) => reply.attr(&TTL, &file.attributes(number)),
            None => {
                let root = FileAttr {
                    kind: FileType::Directory,
                    perm: 0o755,
                    ..Odd::new(b"").attributes(number)
                };
                reply.attr(&TTL, &root);
            }
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let direct = self.file(number).is_some_and(|file| file.direct_io);
        let flags = if direct { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.file(number) else { return reply.error(Errno::ENOENT) };
        let end = offset + u64::from(size);
        if offset < file.fails.end && file.fails.start < end {
            let after = file.fails_after;
            thread::spawn(move || {
                thread::sleep(after);
                reply.error(Errno::EIO);
            });
            return;
        }
        let rest = file.content.get(offset as usize..).unwrap_or_default();
        reply.data(&rest[..rest.len().min(size as usize).min(file.answer)]);
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(file) = self.file(number) else { return reply.error(Errno::ENOENT) };
        let data = &data[..data.len().min(file.answer)];
        let mut written = self.written.lock().expect("nobody panics here");
        let (start, end) = (offset as usize, offset as usize + data.len());
        if written.len() < end {
            written.resize(end, 0);
        }
        written[start..end].copy_from_slice(data);
        reply.written(data.len() as u32);
    }
}

impl Drop for Fuse {
    /// Ends what waits for an answer, also of threads that a case has left behind: they would keep
    /// the process from ending, which has their server.
    fn drop(&mut self) {
        let path = self.folder.path(".").into_os_string().into_encoded_bytes();
        if let Ok(path) = CString::new(path) {
            // SAFETY: the kernel reads a C string that lives until the call returns.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
        }
    }
}

/// Such a file system, mounted. All its files are written to the same bytes.
#[derive(Debug)]
pub struct Fuse {
    // Unmounted before its folder goes.
    _session: BackgroundSession,
    folder: Folder,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Fuse {
    /// Mounts one with these files. The calling thread has a mount namespace of its own then.
    ///
    /// # Errors
    ///
    /// [`Stop::Skip`] where this process may not mount one, or the kernel has no FUSE.
    pub fn mount(files: &[Odd]) -> Result<Self, Stop> {
        if File::options().read(true).write(true).open("/dev/fuse").is_err() {
            return skip("mounting a FUSE file system takes root and /dev/fuse");
        }
        // SAFETY: takes no memory; this thread alone leaves the namespace of mounts.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return skip("a mount of its own takes root");
        }
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let (none, root) = (std::ptr::null(), c"/".as_ptr());
        // SAFETY: the kernel reads a C string that lives until the call returns, and nothing else.
        if unsafe { libc::mount(none, root, none, private, none.cast()) } != 0 {
            return skip("a mount of its own takes root");
        }
        let folder = Folder::new()?;
        let written = Arc::default();
        let server = Server { files: files.to_vec(), written: Arc::clone(&written) };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("getbuf-test".into())];
        let session = Session::new(server, folder.path("."), &config)?.spawn()?;
        Ok(Self { _session: session, folder, written })
    }

    /// Opens a file of it for reading.
    ///
    /// # Errors
    ///
    /// Those of opening it.
    pub fn open(&self, index: usize) -> std::io::Result<File> {
        self.open_with(index, 0)
    }

    /// Opens a file of it for reading, with these flags.
    ///
    /// # Errors
    ///
    /// Those of opening it.
    pub fn open_with(&self, index: usize, flags: i32) -> std::io::Result<File> {
        let path = self.folder.path(&index.to_string());
        File::options().read(true).custom_flags(flags).open(path)
    }

    /// Opens a file of it for writing, with these flags.
    ///
    /// # Errors
    ///
    /// Those of opening it.
    pub fn sink(&self, index: usize, flags: i32) -> std::io::Result<File> {
        let path = self.folder.path(&index.to_string());
        File::options().write(true).custom_flags(flags).open(path)
    }

    /// What was written since the last time.
    ///
    /// # Panics
    ///
    /// If the server has.
    #[must_use]
    pub fn written(&self) -> Vec<u8> {
        std::mem::take(&mut self.written.lock().expect("nobody panics here"))
    }
}
