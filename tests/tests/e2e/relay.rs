// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whole files and streams, of every kind, with everything that can end them early.

use std::fs::File;
use std::io::{Read, Seek, Write, pipe};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use getbuf_tests::{
    Folder, Rig, Stop, Verdict, fill, is_quiet, pattern, reader, skip, tcp, until, until_free,
    writer,
};
use io_uring::opcode::Nop;
use uring_getbuf::chain::ChainOutcome;
use uring_getbuf::relay::{Canceller, Failure, Relay, Report};
use uring_getbuf::ring::Ring;
use uring_getbuf::slots::Event;
use uring_getbuf::{Engine, ErrorKind, STREAM};

use crate::Case;
use crate::child::Sleeper;

pub(crate) const CENTRAL: &[Case] = &[
    ("file_to_file", file_to_file),
    ("file_to_pipe", file_to_pipe),
    ("file_to_tiny_pipe", file_to_tiny_pipe),
    ("pipe_to_file", pipe_to_file),
    ("pipe_to_pipe", pipe_to_pipe),
    ("file_to_tcp", file_to_tcp),
    ("tcp_to_file", tcp_to_file),
    ("unix_to_unix", unix_to_unix),
    ("nonblocking_sink", nonblocking_sink),
    ("short_writes", short_writes),
    ("nonblocking_source", nonblocking_source),
    ("zero_copy_to_a_nonblocking_socket", zero_copy_to_a_nonblocking_socket),
    ("cancel_blocked_source", cancel_blocked_source),
    ("cancel_blocked_sink", cancel_blocked_sink),
    ("peer_closes", peer_closes),
    ("zero_copy_comes_back_after_a_failure", zero_copy_comes_back_after_a_failure),
];

pub(crate) const CASES: &[Case] = &[
    ("offsets_and_limit", offsets_and_limit),
    ("default_ring", default_ring),
    ("empty", empty),
    ("append", append),
    ("procfs", procfs),
    ("positions_stay", positions_stay),
    ("dev_full", dev_full),
    ("tiny_file_system", tiny_file_system),
    ("file_size_limit", file_size_limit),
    ("source_truncated", source_truncated),
    ("source_grows", source_grows),
    ("source_cut_and_grown", source_cut_and_grown),
    ("signals", signals),
    ("progress", progress),
    ("on_this_thread", on_this_thread),
    ("two_in_a_row", two_in_a_row),
    ("beside_others", beside_others),
    ("readiness_of_others", readiness_of_others),
    ("every_slot_held", every_slot_held),
    ("wrong_ends", wrong_ends),
    ("already_cancelled", already_cancelled),
    ("direct_source_of_odd_length", direct_source_of_odd_length),
    ("unix_zero_copy", unix_zero_copy),
    ("no_stale_bytes", no_stale_bytes),
    ("sink_ahead_of_source", sink_ahead_of_source),
];

/// Lengths around the edges of blocks of 4096 bytes, on a ring with 4 of them.
const LENGTHS: [usize; 9] = [0, 1, 4095, 4096, 4097, 8191, 16384, 16385, 37 * 4096 + 123];

/// What is right after a relay that succeeded.
fn whole(ring: &mut Ring, report: Report, want: usize) {
    assert_eq!((report.bytes, report.taken), (want as u64, want as u64));
    assert!(report.engine == ring.engine() || ring.stats().fallbacks > 0);
    match ring.engine() {
        Engine::Copy => assert_eq!(report.copied, report.taken),
        _ => assert!(report.copied == 0 || ring.stats().fallbacks > 0),
    }
    let free = ring.capacity();
    quiet(ring, free);
}

/// Everything comes back, and nothing is told of it.
fn quiet(ring: &mut Ring, free: usize) {
    let events = until_free(ring, free);
    assert!(events.iter().all(is_quiet), "{events:?}");
}

fn file_to_file(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    for len in LENGTHS {
        let (folder, content) = (Folder::new()?, pattern(len as u64, len));
        let (source, sink) = (folder.source(&content)?, folder.sink()?);
        let report = Relay::new(&source, &sink).run(&mut ring)?;
        whole(&mut ring, report, len);
        assert!(folder.sunk()? == content, "{len} bytes");
    }
    Ok(())
}

/// Whoever copies, bytes, errors and a cancellation are alike. With engines that lend it
/// changes nothing.
fn on_this_thread(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    for len in LENGTHS {
        let (folder, content) = (Folder::new()?, pattern(len as u64, len));
        let (source, sink) = (folder.source(&content)?, folder.sink()?);
        let report = Relay::new(&source, &sink).on_this_thread(true).run(&mut ring)?;
        whole(&mut ring, report, len);
        assert!(folder.sunk()? == content, "{len} bytes");
    }
    let (folder, content) = (Folder::new()?, pattern(5, 40 * 4096 + 100));
    let (source, sink) = (folder.source(&content)?, folder.sink()?);
    let relay = Relay::new(&source, &sink).on_this_thread(true);
    let report = relay.source_offset(4097).sink_offset(77).limit(90_001).run(&mut ring)?;
    whole(&mut ring, report, 90_001);
    assert!(folder.sunk()?[77..] == content[4097..4097 + 90_001]);

    // It tells how far it is, and ends when it is cancelled there.
    let (canceller, sink) = (Canceller::new(), folder.sink()?);
    let mut told = 0;
    let relay = Relay::new(&source, &sink).on_this_thread(true).canceller(&canceller);
    let failure = relay
        .on_progress(|progress| {
            told += 1;
            assert!(progress.bytes < content.len() as u64 && progress.total.is_some());
            canceller.cancel();
        })
        .run(&mut ring)
        .expect_err("it was cancelled");
    assert_eq!(failure.error.kind(), ErrorKind::Cancelled);
    assert!(told >= 1 && failure.report.bytes < content.len() as u64, "{failure}");
    let free = ring.capacity();
    quiet(&mut ring, free);

    let full = File::options().write(true).open("/dev/full")?;
    let failure = Relay::new(&source, &full).on_this_thread(true).run(&mut ring);
    let failure = failure.expect_err("the sink is full");
    assert_eq!(failure.error.kind(), ErrorKind::Sink);
    quiet(&mut ring, free);
    Ok(())
}

fn offsets_and_limit(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(1, 50_000));
    let mut ring = rig.ring();
    let source = folder.source(&content)?;
    for (from, to, limit) in
        [(0, 0, 0), (1, 0, 1), (0, 1, 4097), (4095, 8193, 12_288), (49_999, 3, 9), (60_000, 0, 9)]
    {
        let sink = folder.sink()?;
        let relay = Relay::new(&source, &sink).source_offset(from).sink_offset(to).limit(limit);
        let report = relay.run(&mut ring)?;
        let want = &content[content.len().min(from as usize)..];
        let want = &want[..want.len().min(limit as usize)];
        whole(&mut ring, report, want.len());
        let got = folder.sunk()?;
        assert_eq!(&got[got.len().min(to as usize)..], want, "{from} {to} {limit}");
        // The same to a stream.
        let (near, far) = pipe()?;
        let peer = reader(near);
        let relay = Relay::new(&source, &far).source_offset(from).limit(limit);
        let report = relay.block_size(1000).depth(3).run(&mut ring)?;
        whole(&mut ring, report, want.len());
        drop(far);
        assert_eq!(peer.join().expect("the peer"), want);
    }
    let sink = folder.sink()?;
    for relay in [
        Relay::new(&source, &sink).source_offset(u64::MAX - 1),
        Relay::new(&source, &sink).sink_offset(1 << 63),
        Relay::new(&source, &sink).block_size(0),
        Relay::new(&source, &sink).depth(0),
    ] {
        let failure = relay.run(&mut ring).expect_err("nonsense");
        assert_eq!(failure.error.kind(), ErrorKind::InvalidInput, "{failure}");
        assert_eq!(failure.report.bytes, 0);
    }
    Ok(())
}

fn default_ring(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(2, 5_000_001));
    let mut ring = Ring::builder().engine(rig.engine).build()?;
    let report = Relay::new(&folder.source(&content)?, &folder.sink()?).run(&mut ring)?;
    whole(&mut ring, report, content.len());
    assert!(folder.sunk()? == content);
    Ok(())
}

fn file_to_pipe(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    for len in LENGTHS {
        let (folder, content) = (Folder::new()?, pattern(len as u64, len));
        let (from, to) = pipe()?;
        let peer = reader(from);
        let report = Relay::new(&folder.source(&content)?, &to).run(&mut ring)?;
        whole(&mut ring, report, len);
        drop(to);
        assert!(peer.join().expect("the peer") == content, "{len} bytes");
    }
    Ok(())
}

/// Every write waits, and most are cut: the order must stay, whoever submits.
fn file_to_tiny_pipe(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(3, 300 * 1000 + 7));
    let mut ring = rig.small().slots(16).build()?;
    let (from, to) = pipe()?;
    rustix::pipe::fcntl_setpipe_size(&to, 4096)?;
    let peer = reader(from);
    let report = Relay::new(&folder.source(&content)?, &to).block_size(1000).run(&mut ring)?;
    whole(&mut ring, report, content.len());
    drop(to);
    assert!(peer.join().expect("the peer") == content);
    Ok(())
}

fn pipe_to_file(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    for len in LENGTHS {
        let (folder, content) = (Folder::new()?, pattern(len as u64, len));
        let (from, to) = pipe()?;
        let peer = writer(to, content.clone());
        let report = Relay::new(&from, &folder.sink()?).run(&mut ring)?;
        peer.join().expect("the peer");
        whole(&mut ring, report, len);
        assert!(folder.sunk()? == content, "{len} bytes");
    }
    Ok(())
}

fn pipe_to_pipe(rig: &Rig) -> Verdict {
    let content = pattern(4, 200_001);
    let mut ring = rig.ring();
    let (from, feed) = pipe()?;
    let (drain, to) = pipe()?;
    let (feeder, peer) = (writer(feed, content.clone()), reader(drain));
    let report = Relay::new(&from, &to).run(&mut ring)?;
    feeder.join().expect("the feeder");
    whole(&mut ring, report, content.len());
    drop(to);
    assert!(peer.join().expect("the peer") == content);
    Ok(())
}

fn file_to_tcp(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    for zero_copy in [None, Some(true), Some(false)] {
        for len in LENGTHS {
            let (folder, content) = (Folder::new()?, pattern(len as u64, len));
            let (near, far) = tcp()?;
            let peer = reader(far);
            let source = folder.source(&content)?;
            let mut relay = Relay::new(&source, &near);
            if let Some(yes) = zero_copy {
                relay = relay.zero_copy_send(yes);
            }
            let report = relay.run(&mut ring)?;
            whole(&mut ring, report, len);
            drop(near);
            assert!(peer.join().expect("the peer") == content, "{len} bytes, {zero_copy:?}");
        }
    }
    Ok(())
}

fn tcp_to_file(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(5, 300_003));
    let mut ring = rig.ring();
    let (near, far) = tcp()?;
    let feeder = writer(far, content.clone());
    let report = Relay::new(&near, &folder.sink()?).run(&mut ring)?;
    feeder.join().expect("the feeder");
    whole(&mut ring, report, content.len());
    assert!(folder.sunk()? == content);
    Ok(())
}

fn unix_to_unix(rig: &Rig) -> Verdict {
    let content = pattern(6, 300_003);
    let mut ring = rig.ring();
    let (from, feed) = UnixStream::pair()?;
    let (to, drain) = UnixStream::pair()?;
    small_buffer(&to)?;
    let (feeder, peer) = (writer(feed, content.clone()), reader(drain));
    let report = Relay::new(&from, &to).run(&mut ring)?;
    feeder.join().expect("the feeder");
    whole(&mut ring, report, content.len());
    drop(to);
    assert!(peer.join().expect("the peer") == content);
    Ok(())
}

fn small_buffer(socket: &impl AsFd) -> Result<(), Stop> {
    Ok(rustix::net::sockopt::set_socket_send_buffer_size(socket, 1)?)
}

/// `AF_UNIX` refuses `SEND_ZC`; the relay goes on without it.
fn unix_zero_copy(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(7, 100_003));
    let mut ring = rig.ring();
    let (to, drain) = UnixStream::pair()?;
    let peer = reader(drain);
    let relay_source = folder.source(&content)?;
    let report = Relay::new(&relay_source, &to).zero_copy_send(true).run(&mut ring)?;
    whole(&mut ring, report, content.len());
    drop(to);
    assert!(peer.join().expect("the peer") == content);
    Ok(())
}

fn nonblocking_sink(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(8, 150_003));
    let mut ring = rig.ring();
    let source = folder.source(&content)?;
    let (from, to) = pipe()?;
    rustix::pipe::fcntl_setpipe_size(&to, 4096)?;
    rustix::io::ioctl_fionbio(&to, true)?;
    let peer = reader(from);
    let report = Relay::new(&source, &to).run(&mut ring)?;
    whole(&mut ring, report, content.len());
    drop(to);
    assert!(peer.join().expect("the peer") == content, "pipe");
    let (to, drain) = UnixStream::pair()?;
    small_buffer(&to)?;
    to.set_nonblocking(true)?;
    let peer = reader(drain);
    let report = Relay::new(&source, &to).block_size(3000).run(&mut ring)?;
    whole(&mut ring, report, content.len());
    drop(to);
    assert!(peer.join().expect("the peer") == content, "socket");
    Ok(())
}

/// A pipe has room for a part of each block: the rest of it comes next.
fn short_writes(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(32, 150_003));
    let mut ring = rig.small().block_size(16 << 10).build()?;
    let (from, to) = pipe()?;
    rustix::pipe::fcntl_setpipe_size(&to, 4096)?;
    rustix::io::ioctl_fionbio(&to, true)?;
    let peer = reader(from);
    let report = Relay::new(&folder.source(&content)?, &to).run(&mut ring)?;
    whole(&mut ring, report, content.len());
    drop(to);
    assert!(peer.join().expect("the peer") == content);
    Ok(())
}

/// Sends that are cut break their link, and those behind are cancelled: of `SEND_ZC` these have
/// notifications that nobody announced.
fn zero_copy_to_a_nonblocking_socket(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(9, 2_000_003));
    let mut ring = rig.small().slots(16).block_size(16 << 10).build()?;
    let source = folder.source(&content)?;
    let (to, drain) = tcp()?;
    small_buffer(&to)?;
    to.set_nonblocking(true)?;
    let peer = reader(drain);
    let report = Relay::new(&source, &to).zero_copy_send(true).run(&mut ring)?;
    whole(&mut ring, report, content.len());
    drop(to);
    assert!(peer.join().expect("the peer") == content);
    assert_eq!(ring.stats().stale, 0);
    Ok(())
}

fn nonblocking_source(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(10, 50_003));
    let mut ring = rig.ring();
    let (from, mut to) = pipe()?;
    rustix::io::ioctl_fionbio(&from, true)?;
    let sent = content.clone();
    let feeder = thread::spawn(move || {
        for (index, piece) in sent.chunks(7000).enumerate() {
            thread::sleep(Duration::from_millis(if index % 3 == 0 { 5 } else { 0 }));
            to.write_all(piece).expect("the relay reads");
        }
    });
    let report = Relay::new(&from, &folder.sink()?).run(&mut ring)?;
    feeder.join().expect("the feeder");
    whole(&mut ring, report, content.len());
    assert!(folder.sunk()? == content);
    Ok(())
}

fn empty(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let source = folder.source(b"")?;
    let report = Relay::new(&source, &folder.sink()?).run(&mut ring)?;
    whole(&mut ring, report, 0);
    let (near, far) = tcp()?;
    let report = Relay::new(&source, &near).run(&mut ring)?;
    whole(&mut ring, report, 0);
    far.shutdown(Shutdown::Write)?;
    let report = Relay::new(&near, &folder.sink()?).run(&mut ring)?;
    whole(&mut ring, report, 0);
    assert_eq!(folder.sunk()?, b"");
    Ok(())
}

fn append(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(11, 30_001));
    let mut ring = rig.ring();
    std::fs::write(folder.path("sink"), b"already here,")?;
    let sink = File::options().append(true).open(folder.path("sink"))?;
    let report = Relay::new(&folder.source(&content)?, &sink).run(&mut ring)?;
    whole(&mut ring, report, content.len());
    let got = folder.sunk()?;
    assert!(got.starts_with(b"already here,") && got[13..] == content);
    Ok(())
}

/// Files of procfs say that they have no bytes, and end reads in the middle. That of a process that
/// sleeps stays as it is.
fn procfs(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let sleeper = Sleeper::new()?;
    let paths = [format!("/proc/{}/smaps", sleeper.id()), "/proc/filesystems".into()];
    for path in &paths {
        let want = std::fs::read(path)?;
        if std::fs::read(path)? != want {
            // It does not stay.
            continue;
        }
        let source = File::open(path)?;
        let mut block = vec![0; 4096];
        let cut = source.read_at(&mut block, 0)? < want.len().min(4096);
        println!("{path}: {} bytes, reads are cut: {cut}", want.len());
        let report = Relay::new(&source, &folder.sink()?).run(&mut ring)?;
        whole(&mut ring, report, want.len());
        assert!(folder.sunk()? == want, "{path} to a file");
        let (from, to) = pipe()?;
        let peer = reader(from);
        let report = Relay::new(&source, &to).block_size(1500).run(&mut ring)?;
        drop(to);
        whole(&mut ring, report, want.len());
        assert!(peer.join().expect("the peer") == want, "{path} to a pipe");
    }
    Ok(())
}

fn positions_stay(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(12, 10_000));
    let mut ring = rig.ring();
    let (mut source, mut sink) = (folder.source(&content)?, folder.sink()?);
    source.seek(std::io::SeekFrom::Start(17))?;
    sink.seek(std::io::SeekFrom::Start(5))?;
    Relay::new(&source, &sink).run(&mut ring)?;
    assert_eq!((source.stream_position()?, sink.stream_position()?), (17, 5));
    assert!(folder.sunk()? == content);
    let (from, to) = pipe()?;
    let peer = reader(from);
    Relay::new(&source, &to).run(&mut ring)?;
    drop(to);
    assert!(peer.join().expect("the peer") == content);
    assert_eq!(source.stream_position()?, 17);
    Ok(())
}

fn no_space(failure: &Failure) {
    assert_eq!(failure.error.kind(), ErrorKind::Sink, "{failure}");
    assert_eq!(failure.error.raw_os_error(), Some(libc::ENOSPC), "{failure}");
}

fn dev_full(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let source = folder.source(&pattern(13, 100_000))?;
    let failure = Relay::new(&source, &File::create("/dev/full")?).run(&mut ring);
    let failure = failure.expect_err("it is full");
    // Also with kernel memory, which the device cannot take: it has no `->write_iter`.
    no_space(&failure);
    assert_eq!(failure.report.bytes, 0);
    quiet(&mut ring, 4);
    Ok(())
}

/// In a mount namespace of this thread's own, which goes with the thread.
fn tiny_file_system(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let source = folder.source(&pattern(14, 1 << 20))?;
    std::fs::create_dir(folder.path("tiny"))?;
    // SAFETY: takes no memory; this thread alone leaves the namespace of mounts.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return skip("a mount of its own takes privileges");
    }
    let mount = |source: &std::ffi::CStr, path: &std::ffi::CStr, flags, data: &std::ffi::CStr| {
        let kind = c"tmpfs".as_ptr();
        // SAFETY: every pointer is of a C string that lives until the call returns.
        unsafe { libc::mount(source.as_ptr(), path.as_ptr(), kind, flags, data.as_ptr().cast()) }
    };
    let path = std::ffi::CString::new(folder.path("tiny").into_os_string().into_encoded_bytes())?;
    if mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE, c"") != 0
        || mount(c"none", &path, 0, c"size=256k") != 0
    {
        return skip("mounting a tmpfs is not permitted");
    }
    let mut ring = rig.ring();
    for stream in [false, true] {
        let path = folder.path("tiny/sink");
        let sink = File::options().write(!stream).append(stream).create(true).open(&path)?;
        let failure = Relay::new(&source, &sink).run(&mut ring).expect_err("256 KiB");
        no_space(&failure);
        assert!((100_000..300_000).contains(&failure.report.bytes), "{failure}");
        if stream {
            let arrived = std::fs::read(&path)?;
            assert_eq!(arrived.len() as u64, failure.report.bytes);
            assert!(arrived == pattern(14, 1 << 20)[..arrived.len()]);
        }
        quiet(&mut ring, 4);
        std::fs::remove_file(&path)?;
    }
    // There is no room for the first block, and the others have theirs: what is behind a gap counts
    // for nothing.
    let sink = File::create(folder.path("tiny/sink"))?;
    let mut at = 4096;
    while sink.write_at(&[0xee; 4096], at).is_ok() {
        at += 4096;
    }
    for on_this_thread in [false, true] {
        let relay = Relay::new(&source, &sink).on_this_thread(on_this_thread);
        let failure = relay.limit(at).run(&mut ring).expect_err("no room for the first block");
        no_space(&failure);
        assert_eq!(failure.report.bytes, 0, "{failure}");
        quiet(&mut ring, 4);
    }
    Ok(())
}

/// A sink that ends in the middle of a block: the write is cut, and the next one fails.
fn file_size_limit(rig: &Rig) -> Verdict {
    // The limit is within the last block: no other one fails there.
    let (folder, content) = (Folder::new()?, pattern(15, 10_500));
    let mut ring = rig.ring();
    let (source, sink) = (folder.source(&content)?, folder.sink()?);
    // The largest file of this file system, without content.
    let (mut good, mut bad) = (0_u64, i64::MAX as u64);
    while bad - good > 1 {
        let middle = good.midpoint(bad);
        if sink.set_len(middle).is_ok() { good = middle } else { bad = middle }
    }
    sink.set_len(0)?;
    if good > i64::MAX as u64 - 200_000 {
        return skip("the file system of TMPDIR has no limit but that of offsets");
    }
    let failure = Relay::new(&source, &sink).sink_offset(good - 10_001).run(&mut ring);
    let failure = failure.expect_err("there is room for 10001 bytes");
    assert_eq!(failure.error.kind(), ErrorKind::Sink, "{failure}");
    assert_eq!(failure.error.raw_os_error(), Some(libc::EFBIG), "{failure}");
    assert_eq!(failure.report.bytes, 10_001);
    let mut got = vec![0; 10_001];
    File::open(folder.path("sink"))?.read_exact_at(&mut got, good - 10_001)?;
    assert!(got == content[..10_001]);
    quiet(&mut ring, 4);
    Ok(())
}

fn peer_closes(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(16, 4 << 20));
    let mut ring = rig.ring();
    let source = folder.source(&content)?;
    for kind in 0..3 {
        let read_some = |mut from: Box<dyn Read + Send>| {
            thread::spawn(move || {
                let mut got = vec![0; 100_000];
                from.read_exact(&mut got).expect("the relay writes");
                got
            })
        };
        let (failure, peer) = match kind {
            0 => {
                let (from, to) = pipe()?;
                let peer = read_some(Box::new(from));
                (Relay::new(&source, &to).run(&mut ring), peer)
            }
            1 => {
                let (near, far) = tcp()?;
                // So that what nobody reads does not fit between the two.
                rustix::net::sockopt::set_socket_recv_buffer_size(&far, 64 << 10)?;
                rustix::net::sockopt::set_socket_send_buffer_size(&near, 64 << 10)?;
                let peer = read_some(Box::new(far));
                (Relay::new(&source, &near).run(&mut ring), peer)
            }
            _ => {
                let (near, far) = UnixStream::pair()?;
                let peer = read_some(Box::new(far));
                (Relay::new(&source, &near).run(&mut ring), peer)
            }
        };
        let failure = failure.expect_err("nobody reads the rest");
        assert_eq!(failure.error.kind(), ErrorKind::Sink, "{failure}");
        let errno = failure.error.raw_os_error();
        assert!(matches!(errno, Some(libc::EPIPE | libc::ECONNRESET)), "{failure}");
        assert!((100_000..4 << 20).contains(&failure.report.bytes), "{failure}");
        assert!(failure.to_string().contains(&failure.report.bytes.to_string()));
        assert!(peer.join().expect("the peer") == content[..100_000]);
        quiet(&mut ring, 4);
    }
    Ok(())
}

/// What the network still holds of a relay that has failed comes back without a word.
fn zero_copy_comes_back_after_a_failure(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(18, 16 << 20));
    let source = folder.source(&content)?;
    let mut ring = rig.ring();
    if !ring.support().features().send_zc {
        return skip("the kernel has no SEND_ZC");
    }
    let (near, far) = tcp()?;
    let canceller = Canceller::new();
    let full = canceller.clone();
    let cancel = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        full.cancel();
    });
    let relay = Relay::new(&source, &near).zero_copy_send(true).canceller(&canceller);
    let failure = relay.run(&mut ring).expect_err("nobody reads");
    cancel.join().expect("it cancels");
    assert_eq!(failure.error.kind(), ErrorKind::Cancelled, "{failure}");
    drop((near, far));
    quiet(&mut ring, 4);
    assert_eq!(ring.stats().stale, 0);
    Ok(())
}

/// What is cut off while the relay runs is not there; what is there is moved.
fn source_truncated(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(17, 40 * 4096));
    for to_pipe in [false, true] {
        let mut ring = rig.ring();
        drop(folder.source(&content)?);
        let source = File::options().read(true).write(true).open(folder.path("source"))?;
        let cut = source.try_clone()?;
        let sink = folder.sink()?;
        let (from, to) = pipe()?;
        let peer = reader(from);
        let mut once = true;
        let relay = if to_pipe { Relay::new(&source, &to) } else { Relay::new(&source, &sink) };
        let report = relay
            .on_progress(move |_| {
                if std::mem::take(&mut once) {
                    cut.set_len(20 * 4096 + 100).expect("truncating");
                }
            })
            .run(&mut ring)?;
        drop(to);
        whole(&mut ring, report, 20 * 4096 + 100);
        let got = if to_pipe { peer.join().expect("the peer") } else { folder.sunk()? };
        assert!(got == content[..20 * 4096 + 100]);
    }
    Ok(())
}

fn source_grows(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(18, 40 * 4096 + 9));
    for to_pipe in [false, true] {
        let mut ring = rig.ring();
        drop(folder.source(&content[..20 * 4096 + 100])?);
        let source = File::options().read(true).write(true).open(folder.path("source"))?;
        let (more, rest) = (source.try_clone()?, content[20 * 4096 + 100..].to_vec());
        let sink = folder.sink()?;
        let (from, to) = pipe()?;
        let peer = reader(from);
        let mut once = true;
        let relay = if to_pipe { Relay::new(&source, &to) } else { Relay::new(&source, &sink) };
        let report = relay
            .on_progress(move |_| {
                if std::mem::take(&mut once) {
                    more.write_all_at(&rest, 20 * 4096 + 100).expect("growing");
                }
            })
            .run(&mut ring)?;
        drop(to);
        whole(&mut ring, report, content.len());
        let got = if to_pipe { peer.join().expect("the peer") } else { folder.sunk()? };
        assert!(got == content);
    }
    Ok(())
}

/// A block that was short is asked for its rest, which may be there by then.
fn source_cut_and_grown(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(31, 12 * 4096 + 9));
    let cut = 6 * 4096 + 100;
    for to_pipe in [false, true] {
        // One block at a time, so that the short one is the last that was asked for.
        let mut ring = rig.small().slots(1).build()?;
        drop(folder.source(&content)?);
        let source = File::options().read(true).write(true).open(folder.path("source"))?;
        let (other, rest) = (source.try_clone()?, content[cut..].to_vec());
        let sink = folder.sink()?;
        let (from, to) = pipe()?;
        let peer = reader(from);
        let (mut before, mut is_cut, mut grown) = (0, false, false);
        let relay = if to_pipe { Relay::new(&source, &to) } else { Relay::new(&source, &sink) };
        let relay = relay.on_progress(|progress| {
            if !is_cut {
                other.set_len(cut as u64).expect("truncating");
                is_cut = true;
            } else if !grown && progress.bytes >= 6 * 4096 && progress.bytes == before {
                other.write_all_at(&rest, cut as u64).expect("growing");
                grown = true;
            }
            before = progress.bytes;
        });
        let report = relay.run(&mut ring)?;
        drop(to);
        assert!(grown, "no progress without bytes");
        whole(&mut ring, report, content.len());
        let got = if to_pipe { peer.join().expect("the peer") } else { folder.sunk()? };
        assert!(got == content);
    }
    Ok(())
}

fn cancel_blocked_source(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let (from, mut to) = pipe()?;
    to.write_all(b"so far")?;
    let canceller = Canceller::new();
    let remote = canceller.clone();
    let (moved, all_moved) = channel();
    let thread = thread::spawn(move || {
        all_moved.recv().expect("six bytes");
        thread::sleep(Duration::from_millis(50));
        remote.cancel();
    });
    let begin = Instant::now();
    let failure = Relay::new(&from, &folder.sink()?)
        .canceller(&canceller)
        .on_progress(|progress| {
            if progress.bytes == 6 {
                // After the first time nobody listens.
                let _ = moved.send(());
            }
        })
        .run(&mut ring);
    let failure = failure.expect_err("cancelled");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    thread.join().expect("the canceller");
    assert_eq!(failure.error.kind(), ErrorKind::Cancelled, "{failure}");
    assert_eq!(failure.report.bytes, 6);
    assert_eq!(folder.sunk()?, b"so far");
    quiet(&mut ring, 4);
    // The pipe was not read from any more, and the ring works.
    to.write_all(b"later")?;
    drop(to);
    let report = Relay::new(&from, &folder.sink()?).run(&mut ring)?;
    whole(&mut ring, report, 5);
    assert_eq!(folder.sunk()?, b"later");
    Ok(())
}

fn cancel_blocked_sink(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(19, 40 * 4096));
    for socket in [false, true] {
        let mut ring = rig.ring();
        let (near, far) = UnixStream::pair()?;
        let (from, to) = pipe()?;
        let canceller = Canceller::new();
        let remote = canceller.clone();
        let thread = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            remote.cancel();
        });
        let source = folder.source(&content)?;
        if socket {
            fill(&near)?;
        }
        let relay = if socket { Relay::new(&source, &near) } else { Relay::new(&source, &to) };
        let failure = relay.canceller(&canceller).run(&mut ring).expect_err("cancelled");
        thread.join().expect("the canceller");
        assert_eq!(failure.error.kind(), ErrorKind::Cancelled, "{failure}");
        quiet(&mut ring, 4);
        drop((near, to));
        ring.submit()?;
        if socket {
            assert_eq!(failure.report.bytes, 0);
            drop(far);
        } else {
            let got = reader(from).join().expect("the peer");
            assert_eq!(got.len() as u64, failure.report.bytes);
            assert!(got == content[..got.len()]);
        }
    }
    Ok(())
}

fn already_cancelled(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let canceller = Canceller::new();
    canceller.cancel();
    assert!(canceller.is_cancelled());
    let (from, _to) = pipe()?;
    let failure = Relay::new(&from, &folder.sink()?).canceller(&canceller).run(&mut ring);
    assert_eq!(failure.expect_err("cancelled").error.kind(), ErrorKind::Cancelled);
    let source = folder.source(&pattern(20, 400_000))?;
    let failure = Relay::new(&source, &folder.sink()?).canceller(&canceller).run(&mut ring);
    assert_eq!(failure.expect_err("cancelled").error.kind(), ErrorKind::Cancelled);
    quiet(&mut ring, 4);
    Ok(())
}

/// Interrupted again and again, a relay moves everything all the same.
fn signals(rig: &Rig) -> Verdict {
    static CAUGHT: AtomicU64 = AtomicU64::new(0);
    extern "C" fn caught(_: libc::c_int) {
        CAUGHT.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: all zeroes is an action without flags and with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // Without SA_RESTART.
    action.sa_sigaction = caught as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the handler only counts, in an atomic; the action lives until the call returns.
    let set = unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    let (folder, content) = (Folder::new()?, pattern(21, 400_003));
    let mut ring = rig.ring();
    let (from, to) = pipe()?;
    let (stop, stopped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (stops, has_stopped) = (Arc::clone(&stop), Arc::clone(&stopped));
    // SAFETY: it only names the calling thread.
    let relaying = unsafe { libc::pthread_self() };
    let interrupter = thread::spawn(move || {
        while !stops.load(Ordering::Acquire) {
            // SAFETY: that thread waits for this one below, so it is there.
            unsafe { libc::pthread_kill(relaying, libc::SIGUSR1) };
            thread::sleep(Duration::from_micros(200));
        }
        has_stopped.store(true, Ordering::Release);
    });
    let feeder = {
        let content = content.clone();
        let mut to = to;
        thread::spawn(move || {
            for piece in content.chunks(20_000) {
                thread::sleep(Duration::from_millis(3));
                to.write_all(piece).expect("the relay reads");
            }
        })
    };
    let (drain, out) = pipe()?;
    let peer = reader(drain);
    let outcome = Relay::new(&from, &out).run(&mut ring);
    let waited = ring.wait_timeout(1, Duration::from_millis(20));
    stop.store(true, Ordering::Release);
    while !stopped.load(Ordering::Acquire) {
        thread::yield_now();
    }
    interrupter.join().expect("the interrupter");
    feeder.join().expect("the feeder");
    drop(out);
    whole(&mut ring, outcome?, content.len());
    waited?;
    assert!(peer.join().expect("the peer") == content);
    assert!(CAUGHT.load(Ordering::Relaxed) > 10, "hardly a signal came");
    let _ = folder;
    Ok(())
}

fn progress(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(22, 30 * 4096 + 5));
    let mut ring = rig.ring();
    let source = folder.source(&content)?;
    for kind in 0..3 {
        let sink = folder.sink()?;
        let (from, to) = pipe()?;
        let (drain, out) = pipe()?;
        let peer = reader(drain);
        let feeder = (kind == 2).then(|| writer(to, content.clone()));
        let relay = match kind {
            0 => Relay::new(&source, &sink),
            1 => Relay::new(&source, &out),
            _ => Relay::new(&from, &sink),
        };
        let mut seen = Vec::new();
        let report = relay.on_progress(|progress| seen.push(progress)).run(&mut ring)?;
        drop(out);
        if let Some(thread) = feeder {
            thread.join().expect("the feeder");
        }
        let _ = peer.join();
        whole(&mut ring, report, content.len());
        assert!(seen.len() > 2, "{seen:?}");
        assert!(seen.is_sorted_by_key(|progress| progress.bytes), "{seen:?}");
        assert_eq!(seen.last().map(|progress| progress.bytes), Some(report.bytes));
        let total = if kind == 2 { None } else { Some(report.bytes) };
        assert_eq!(seen[0].total, total, "{kind}");
        assert!(kind == 2 || seen.iter().all(|progress| progress.total == total), "{seen:?}");
    }
    Ok(())
}

fn two_in_a_row(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(23, 20 * 4096 + 5));
    let mut ring = rig.small().files(2).build()?;
    let source = folder.source(&content)?;
    for _ in 0..3 {
        let report = Relay::new(&source, &folder.sink()?).run(&mut ring)?;
        assert_eq!(report.bytes, content.len() as u64);
        assert!(folder.sunk()? == content);
        let (near, far) = tcp()?;
        let peer = reader(far);
        let report = Relay::new(&source, &near).zero_copy_send(true).run(&mut ring)?;
        assert_eq!(report.bytes, content.len() as u64);
        drop(near);
        assert!(peer.join().expect("the peer") == content);
    }
    until_free(&mut ring, 4);
    Ok(())
}

/// A relay leaves the caller's leases, requests and events alone.
fn beside_others(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(24, 20 * 4096 + 5));
    let mut ring = rig.small().slots(6).build()?;
    let file = folder.source(&content)?;
    let source = ring.attach(&file)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let held = ring.wait_installed(fetched)?.expect("a block");
    let (mut from, to) = pipe()?;
    let full = fill(&to)?;
    let blocked_sink = ring.attach(&to)?;
    let blocked = ring.write(&held, .., &blocked_sink, STREAM)?;
    let (silent, mut speak) = pipe()?;
    let silent = ring.attach(&silent)?;
    let waiting = ring.fetch(&silent, STREAM, 100)?;
    let other = folder.path("chained");
    let chain_sink = ring.attach(&File::create(&other)?)?;
    let chain = ring.chain_write(&source, 0, 4096, &chain_sink, 0)?;
    let nop = Nop::new().build().user_data(99);
    // SAFETY: it names nothing.
    unsafe { ring.push(&nop) }?;
    for to_pipe in [false, true] {
        let sink = folder.sink()?;
        let (drain, out) = pipe()?;
        let peer = reader(drain);
        let relay = if to_pipe { Relay::new(&file, &out) } else { Relay::new(&file, &sink) };
        assert_eq!(relay.run(&mut ring)?.bytes, content.len() as u64);
        drop(out);
        let got = if to_pipe { peer.join().expect("the peer") } else { folder.sunk()? };
        assert!(got == content);
    }
    assert_eq!((held.len(), held.uses()), (4096, 1));
    assert_eq!(ring.wait_chain(chain)?, ChainOutcome::Done(4096));
    until(&mut ring, |event| matches!(event, Event::Foreign { user_data: 99, .. }));
    speak.write_all(b"at last")?;
    assert_eq!(ring.wait_installed(waiting)?.expect("7 bytes").len(), 7);
    from.read_exact(&mut vec![0; full])?;
    assert_eq!(ring.wait_used(blocked)?, 4096);
    let mut got = vec![0; 4096];
    from.read_exact(&mut got)?;
    assert_eq!(got, content[..4096]);
    drop(held);
    until_free(&mut ring, 6);
    Ok(())
}

/// The caller's waits for readiness are not taken for the relay's, and the relay leaves none.
fn readiness_of_others(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(25, 20_000));
    let mut ring = rig.ring();
    let (ready, mut writes) = pipe()?;
    writes.write_all(b"x")?;
    let ready = ring.attach(&ready)?;
    let mut mine = Vec::new();
    for token in [0, 1, u32::MAX - 3, u32::MAX - 2, u32::MAX - 1, u32::MAX] {
        match ring.poll_readable(&ready, token) {
            Ok(()) => mine.push(token),
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}"),
        }
    }
    let (from, mut to) = pipe()?;
    rustix::io::ioctl_fionbio(&from, true)?;
    let sent = content.clone();
    let feeder = thread::spawn(move || {
        for piece in sent.chunks(5000) {
            thread::sleep(Duration::from_millis(5));
            to.write_all(piece).expect("the relay reads");
        }
    });
    let report = Relay::new(&from, &folder.sink()?).run(&mut ring)?;
    feeder.join().expect("the feeder");
    assert_eq!(report.bytes, 20_000);
    assert!(folder.sunk()? == content);
    let mut told = Vec::new();
    for event in until_free(&mut ring, 4) {
        if let Event::Ready { token, .. } = event {
            told.push(token);
        }
    }
    told.sort_unstable();
    assert_eq!(told, mine);
    Ok(())
}

fn every_slot_held(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(26, 40_000));
    let mut ring = rig.ring();
    let file = folder.source(&content)?;
    let source = ring.attach(&file)?;
    let mut held = Vec::new();
    for _ in 0..4 {
        let fetched = ring.fetch(&source, 0, 4096)?;
        held.extend(ring.wait_installed(fetched)?);
    }
    let failure = Relay::new(&file, &folder.sink()?).run(&mut ring).expect_err("no slot");
    assert_eq!(failure.error.kind(), ErrorKind::InvalidInput, "{failure}");
    held.pop();
    until_free(&mut ring, 1);
    let report = Relay::new(&file, &folder.sink()?).run(&mut ring)?;
    assert_eq!(report.bytes, 40_000);
    assert!(folder.sunk()? == content);
    // Dropped, but nothing has been sent yet: the relay sees to it.
    drop(held);
    let (near, far) = tcp()?;
    let peer = reader(far);
    assert_eq!(Relay::new(&file, &near).run(&mut ring)?.bytes, 40_000);
    drop(near);
    assert!(peer.join().expect("the peer") == content);
    until_free(&mut ring, 4);
    Ok(())
}

fn wrong_ends(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let (source, sink) = (folder.source(&pattern(27, 10_000))?, folder.sink()?);
    let directory = File::open(folder.path("."))?;
    for relay in [Relay::new(&directory, &sink), Relay::new(&source, &directory)] {
        let failure = relay.run(&mut ring).expect_err("a directory");
        assert_eq!(failure.error.kind(), ErrorKind::InvalidInput, "{failure}");
        assert!(failure.to_string().contains("directory"), "{failure}");
    }
    let other = File::create(folder.path("other"))?;
    let failure = Relay::new(&sink, &other).limit(5).run(&mut ring);
    let failure = failure.expect_err("not open for reading");
    assert_eq!(failure.error.kind(), ErrorKind::Source, "{failure}");
    let closed = File::open(folder.path("other"))?;
    let failure = Relay::new(&source, &closed).run(&mut ring).expect_err("not for writing");
    assert_eq!(failure.error.kind(), ErrorKind::Sink, "{failure}");
    assert_eq!(failure.error.raw_os_error(), Some(libc::EBADF));
    quiet(&mut ring, 4);
    Ok(())
}

/// With `O_DIRECT` a fetch must ask for whole sectors, also of the last block.
fn direct_source_of_odd_length(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(28, 9 * 4096 + 77));
    drop(folder.source(&content)?);
    let open = File::options().read(true).custom_flags(libc::O_DIRECT).open(folder.path("source"));
    let Ok(source) = open else { return skip("the file system of TMPDIR has no O_DIRECT") };
    let mut ring = rig.ring();
    let report = Relay::new(&source, &folder.sink()?).run(&mut ring)?;
    whole(&mut ring, report, content.len());
    assert!(folder.sunk()? == content, "to a file");
    let (from, to) = pipe()?;
    let peer = reader(from);
    let report = Relay::new(&source, &to).run(&mut ring)?;
    drop(to);
    whole(&mut ring, report, content.len());
    assert!(peer.join().expect("the peer") == content, "to a pipe");
    let sink = folder.sink()?;
    let relay = Relay::new(&source, &sink).source_offset(4096).limit(10_001);
    let report = relay.run(&mut ring)?;
    whole(&mut ring, report, 10_001);
    assert!(folder.sunk()? == content[4096..4096 + 10_001], "a part");
    Ok(())
}

/// The pool is full of another file's bytes; a relay of a shorter one moves none of them.
fn no_stale_bytes(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let content: Vec<_> = pattern(29, 3 * 4096 + 50).iter().map(|byte| byte & 0x7f).collect();
    for round in 0..4 {
        let poison = folder.source(&[0xee; 8 * 4096])?;
        Relay::new(&poison, &folder.sink()?).run(&mut ring)?;
        std::fs::write(folder.path("clean"), &content)?;
        let clean = File::open(folder.path("clean"))?;
        let report = Relay::new(&clean, &folder.sink()?).limit(1 << 40).run(&mut ring)?;
        assert_eq!(report.bytes, content.len() as u64);
        assert!(folder.sunk()? == content, "round {round}");
        let (near, far) = tcp()?;
        let peer = reader(far);
        Relay::new(&clean, &near).zero_copy_send(round % 2 == 0).run(&mut ring)?;
        drop(near);
        assert!(peer.join().expect("the peer") == content, "round {round}");
    }
    Ok(())
}

/// What is in the sink beyond what is moved stays, as with any write.
fn sink_ahead_of_source(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(30, 10_000));
    let mut ring = rig.ring();
    std::fs::write(folder.path("sink"), vec![7; 20_000])?;
    let sink = File::options().write(true).open(folder.path("sink"))?;
    Relay::new(&folder.source(&content)?, &sink).sink_offset(5_000).run(&mut ring)?;
    let got = folder.sunk()?;
    assert_eq!(got.len(), 20_000);
    assert!(got[5_000..15_000] == content);
    assert!(got[..5_000].iter().chain(&got[15_000..]).all(|byte| *byte == 7));
    Ok(())
}
