// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bad days: a device that fails, a queue that runs over. Those that need a process of their own are
//! in [`child`](crate::child); a full disk, a receiver that dies and a full pipe are with the relay.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::pipe;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use getbuf_tests::{Folder, Rig, Stop, Verdict, pattern, reader, skip, until_free};
use io_uring::opcode::Nop;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uring_getbuf::chain::ChainOutcome;
use uring_getbuf::relay::{Failure, FanOut, Relay};
use uring_getbuf::ring::{Attached, Ring};
use uring_getbuf::slots::Event;
use uring_getbuf::{Error, ErrorKind};

use crate::Case;

/// With every ring setup.
pub(crate) const CENTRAL: &[Case] = &[
    ("device_that_fails", device_that_fails),
    ("more_completions_than_the_queue_holds", more_completions_than_the_queue_holds),
];

pub(crate) const CASES: &[Case] = &[("file_on_a_device_that_fails", file_on_a_device_that_fails)];

/// What there is of the source.
const SIZE: usize = 256 << 10;
/// From here on its device fails. No folio reaches across.
const CUT: usize = SIZE / 2;
const BLOCK: usize = 4096;

/// Makes a loop device of a file. It goes with its last descriptor, or when it is unmounted.
fn loop_device(image: &Path) -> Result<(File, PathBuf), Stop> {
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
    const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
    /// LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR
    const FLAGS: u32 = 1 | 4;
    let Ok(control) = File::options().read(true).write(true).open("/dev/loop-control") else {
        return skip("loop devices take privileges and a kernel that has them");
    };
    let backing = File::open(image)?;
    // struct loop_config: the descriptor of the backing file comes first.
    let mut config = [0_u32; 76];
    config[0] = backing.as_raw_fd() as u32;
    config[15] = FLAGS;
    for _ in 0..100 {
        // SAFETY: takes no memory.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let Ok(device) = File::open(&path) else {
            return skip("there is no node for a loop device here");
        };
        // SAFETY: the kernel reads a structure of 304 bytes, which lives until the call returns.
        match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, config.as_ptr()) } {
            0 => return Ok((device, path)),
            // Somebody else was faster.
            _ if std::io::Error::last_os_error().raw_os_error() == Some(libc::EBUSY) => {}
            _ => return skip("no loop device can be made here"),
        }
    }
    skip("somebody else takes every loop device")
}

fn is_eio(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Source, "{error}");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(error.to_string().contains("source"), "{error}");
}

/// Fetches a block of a source, and writes it to a file.
fn block(ring: &mut Ring, source: &Attached, at: usize, len: usize) -> Result<Vec<u8>, Error> {
    let fetched = ring.fetch(source, at as u64, len as u32)?;
    let Some(lease) = ring.wait_installed(fetched)? else { return Ok(Vec::new()) };
    let mut bytes = vec![0; lease.len() as usize];
    ring.copy_out(&lease, 0, &mut bytes)?;
    Ok(bytes)
}

/// A source of which everything from [`CUT`] on cannot be read.
fn source_that_fails(rig: &Rig, source: &File, content: &[u8]) -> Verdict {
    let mut ring = rig.small().block_size(4 * BLOCK as u32).build()?;
    let attached = ring.attach(source)?;
    // Block by block it is as with `pread`, whatever has been read ahead.
    for at in (0..SIZE).step_by(BLOCK) {
        let read = source.read_exact_at(&mut [0; BLOCK], at as u64);
        match block(&mut ring, &attached, at, BLOCK) {
            Ok(bytes) => {
                assert!(at < CUT && read.is_ok(), "{at}: {read:?}");
                assert!(bytes == content[at..at + BLOCK], "{at}: the bytes");
            }
            Err(error) => {
                is_eio(&error);
                assert!(at >= CUT, "{at}: {error}");
                assert_eq!(read.expect_err("likewise").raw_os_error(), Some(libc::EIO));
            }
        }
    }
    // What is before it comes, as a short fetch.
    let bytes = block(&mut ring, &attached, CUT - BLOCK, 4 * BLOCK)?;
    assert!(bytes == content[CUT - BLOCK..CUT], "{} bytes", bytes.len());
    // Each slot has come back.
    until_free(&mut ring, 4);

    let folder = Folder::new()?;
    let failed = |outcome: Result<_, Failure>| {
        let failure = outcome.expect_err("the device fails");
        is_eio(&failure.error);
        assert!(failure.report.bytes <= CUT as u64, "{failure}");
        failure.report
    };
    let to_file = |ring: &mut Ring| -> Result<usize, Stop> {
        let sink = folder.sink()?;
        let moved = failed(Relay::new(source, &sink).block_size(BLOCK as u32).run(ring));
        let got = folder.sunk()?;
        let whole = |at: &usize| got.get(*at..*at + BLOCK) == Some(&content[*at..*at + BLOCK]);
        let arrived = (0..SIZE).step_by(BLOCK).filter(whole).count() * BLOCK;
        assert_eq!(arrived as u64, moved.taken, "what it says that it has moved is there");
        let in_order = (0..SIZE).step_by(BLOCK).take_while(whole).count() * BLOCK;
        assert_eq!(in_order as u64, moved.bytes, "without a gap");
        Ok(in_order)
    };
    assert!(to_file(&mut ring)? > 0);
    let (from, to) = pipe()?;
    let peer = reader(from);
    let moved = failed(Relay::new(source, &to).run(&mut ring));
    drop(to);
    let got = peer.join().expect("the peer");
    assert_eq!(moved.bytes, CUT as u64, "in order, everything before it");
    assert!(got == content[..CUT]);
    // Also where the sink is slow, and the error is known long before.
    for fan in [false, true] {
        let (from, to) = pipe()?;
        rustix::pipe::fcntl_setpipe_size(&to, 4096)?;
        let peer = reader(from);
        let error = match fan {
            false => Relay::new(source, &to).run(&mut ring).expect_err("the device fails").error,
            true => FanOut::new(source).sink(&to).run(&mut ring).expect_err("it fails").error,
        };
        is_eio(&error);
        drop(to);
        let got = peer.join().expect("the peer");
        assert!(got == content[..CUT], "{} bytes, {fan}", got.len());
    }
    until_free(&mut ring, 4);
    // As chains.
    let null = ring.attach(&File::create("/dev/null")?)?;
    let chain = ring.chain_write(&attached, CUT as u64, BLOCK as u32, &null, 0)?;
    match ring.wait_chain(chain)? {
        ChainOutcome::FetchFailed(errno) => assert_eq!(errno.raw(), libc::EIO),
        outcome => panic!("{outcome:?}"),
    }
    assert_eq!(ring.stats().stale, 0);
    until_free(&mut ring, 4);
    // The ring serves what can be read as ever.
    assert!(block(&mut ring, &attached, 0, 4 * BLOCK)? == content[..4 * BLOCK]);
    Ok(())
}

/// And when it can be read again, all of it comes.
fn source_that_works(rig: &Rig, source: &File, content: &[u8]) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    // An error is not kept in place of the bytes.
    let report = Relay::new(source, &folder.sink()?).run(&mut ring)?;
    assert_eq!(report.bytes, content.len() as u64);
    assert!(folder.sunk()? == content);
    Ok(())
}

/// A block device that is shorter than it says.
fn device_that_fails(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(31, SIZE));
    let image = folder.path("image");
    fs::write(&image, &content)?;
    let (device, _) = loop_device(&image)?;
    let backing = File::options().write(true).open(&image)?;
    backing.set_len(CUT as u64)?;
    source_that_fails(rig, &device, &content)?;
    backing.write_all_at(&content[CUT..], CUT as u64)?;
    source_that_works(rig, &device, &content)
}

/// A file of a file system on such a device. In a mount namespace of this thread's own, which goes
/// with the thread.
fn file_on_a_device_that_fails(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(32, SIZE));
    let (image, tree, mounted) =
        (folder.path("image"), folder.path("tree"), folder.path("mounted"));
    fs::create_dir(&tree)?;
    fs::create_dir(&mounted)?;
    fs::write(tree.join("file"), &content)?;
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F", "-b", "4096", "-O", "^has_journal", "-d"]).arg(&tree).arg(&image);
    match make.arg("4M").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => {}
        _ => return skip("there is no mkfs.ext4 here that fills what it makes"),
    }
    // Where the image is to end, so that the file's second half is gone and nothing else.
    let all = fs::read(&image)?;
    let place = |block: &[u8]| {
        let at = all.chunks(BLOCK).position(|other| other == block);
        at.expect("a block of the file") * BLOCK
    };
    let (before, behind) = content.split_at(CUT);
    let end = place(&behind[..BLOCK]);
    assert!(before.chunks(BLOCK).all(|block| place(block) < end));
    assert!(behind.chunks(BLOCK).all(|block| place(block) >= end));
    // SAFETY: takes no memory; this thread alone leaves the namespace of mounts.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return skip("a mount of its own takes privileges");
    }
    let (device, node) = loop_device(&image)?;
    let mount = |source: &Path, target: &Path, flags| -> Result<bool, Stop> {
        let [source, target] =
            [source, target].map(|path| CString::new(path.as_os_str().as_bytes()));
        let (source, target, kind) = (source?, target?, c"ext4");
        // SAFETY: every pointer is of a C string that lives until the call returns.
        Ok(unsafe {
            libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null())
        } == 0)
    };
    if !mount(Path::new("none"), Path::new("/"), libc::MS_REC | libc::MS_PRIVATE)?
        || !mount(&node, &mounted, libc::MS_RDONLY)?
    {
        return skip("this kernel mounts no ext4");
    }
    drop(device);
    let source = File::open(mounted.join("file"))?;
    let backing = File::options().write(true).open(&image)?;
    backing.set_len(end as u64)?;
    let done = source_that_fails(rig, &source, &content).and_then(|()| {
        backing.write_all_at(&all[end..], end as u64)?;
        source_that_works(rig, &source, &content)
    });
    drop(source);
    let path = CString::new(mounted.as_os_str().as_bytes())?;
    // SAFETY: the pointer is of a C string that lives until the call returns.
    unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    done
}

/// What the kernel could not put into the queue of completions; it does not tell while it is busy.
fn overflown(ring: &Ring) -> Option<usize> {
    let path = format!("/proc/self/fdinfo/{}", ring.as_raw_fd());
    let text = fs::read_to_string(path).ok()?;
    let (_, list) = text.split_once("CqOverflowList:")?;
    Some(list.lines().filter(|line| line.contains("user_data")).count())
}

/// Many times the completions that the queue holds, which nobody takes, and requests all the same: what has no room in the
/// queue waits in the kernel, and nothing is refused.
fn more_completions_than_the_queue_holds(rig: &Rig) -> Verdict {
    const MANY: u64 = 400;
    let (folder, content) = (Folder::new()?, pattern(33, 4 * BLOCK));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let sink = ring.attach(&folder.sink()?)?;
    let fetched = ring.fetch(&source, 0, BLOCK as u32)?;
    let flood = |ring: &mut Ring, from: u64| -> Verdict {
        for number in from..from + MANY {
            // SAFETY: the request names nothing.
            unsafe { ring.push(&Nop::new().build().user_data(number)) }?;
        }
        Ok(ring.submit()?)
    };
    flood(&mut ring, 0)?;
    let waiting = overflown(&ring);
    assert!(waiting.is_none_or(|waiting| waiting > 300), "the queue ran over: {waiting:?}");
    // Behind all of them: a lease that was fetched before, one that is fetched now, a chain.
    let first = ring.wait_installed(fetched)?.expect("a block");
    let fetched = ring.fetch(&source, BLOCK as u64, BLOCK as u32)?;
    let second = ring.wait_installed(fetched)?.expect("a block");
    flood(&mut ring, MANY)?;
    let chain =
        ring.chain_write(&source, 2 * BLOCK as u64, BLOCK as u32, &sink, 2 * BLOCK as u64)?;
    ring.write_all(&first, &sink, 0)?;
    ring.write_all(&second, &sink, BLOCK as u64)?;
    drop((first, second));
    // In an event loop, which waits for the descriptor and nothing else.
    let (mut told, mut chained) = (vec![false; 2 * MANY as usize], None);
    let mut left = told.len();
    while left > 0 || chained.is_none() {
        let mut taken = 0;
        ring.submit()?;
        while let Some(event) = ring.next_event() {
            taken += 1;
            match event {
                Event::Foreign { user_data, result: 0, .. } => {
                    let again = std::mem::replace(&mut told[user_data as usize], true);
                    assert!(!again, "{user_data} is told twice");
                    left -= 1;
                }
                Event::Chained { id, outcome } if id == chain => chained = Some(outcome),
                event => assert!(getbuf_tests::is_quiet(&event), "{event:?}"),
            }
        }
        if taken == 0 {
            let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
            let mut ready = [PollFd::new(&ring, PollFlags::IN)];
            assert_eq!(poll(&mut ready, Some(&limit))?, 1, "{left} are missing");
        }
    }
    assert_eq!(chained, Some(ChainOutcome::Done(BLOCK as u32)));
    assert!(folder.sunk()? == content[..3 * BLOCK]);
    until_free(&mut ring, 4);
    assert_eq!(overflown(&ring).unwrap_or(0), 0);
    assert_eq!(ring.stats().stale, 0);
    Ok(())
}
