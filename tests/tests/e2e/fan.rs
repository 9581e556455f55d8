// SPDX-License-Identifier: MIT OR Apache-2.0
//! One lease, many consumers at once.

use std::fs::File;
use std::io::{PipeReader, Read, pipe};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use getbuf_tests::{
    Folder, Rig, Stop, Verdict, fill, is_quiet, pattern, reader, tcp, until, until_free, writer,
};
use uring_getbuf::relay::{Canceller, FanOut, FanReport};
use uring_getbuf::slots::Event;
use uring_getbuf::{Engine, ErrorKind, Ring, STREAM, SendFlags};

use crate::Case;

/// With every ring setup.
pub(crate) const CENTRAL: &[Case] = &[
    ("four_consumers_and_release", four_consumers),
    ("one_never_reads", one_never_reads),
    ("file_to_all", file_to_all),
    ("pipe_to_all", pipe_to_all),
    ("lagging", lagging),
    ("impatient", impatient),
];

pub(crate) const CASES: &[Case] = &[
    ("zero_copy", zero_copy),
    ("slow_one_is_waited_for", slow_one_is_waited_for),
    ("nonblocking", nonblocking),
    ("short_writes", short_writes),
    ("one_closes", one_closes),
    ("all_close", all_close),
    ("offsets_and_limit", offsets_and_limit),
    ("direct", direct),
    ("device", device),
    ("source_fails", source_fails),
    ("cancel", cancel),
    ("wrong_numbers", wrong_numbers),
];

fn four_consumers(rig: &Rig) -> Verdict {
    consume_by_four(rig, || {})
}

/// A fetch; then four consumers, none linked to another, and the release, all in one submission.
/// `mark` is called before the first and after the last system call that this takes.
pub(crate) fn consume_by_four(rig: &Rig, mark: impl Fn()) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(40, 4096));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let (mut tcp_reads, unix, (mut reads, writes)) = (tcp()?, UnixStream::pair()?, pipe()?);
    let file = ring.attach(&folder.sink()?)?;
    let socket = ring.attach(&tcp_reads.0)?;
    let local = ring.attach(&unix.0)?;
    let pipe = ring.attach(&writes)?;

    mark();
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    let engine = lease.origin();
    let uses = [
        ring.write(&lease, .., &file, 0)?,
        ring.send(&lease, .., &socket, SendFlags::WAIT_ALL)?,
        ring.send(&lease, .., &local, SendFlags::WAIT_ALL)?,
        ring.write(&lease, .., &pipe, STREAM)?,
    ];
    assert_eq!(lease.uses(), 4);
    ring.release(lease);
    // The memory of the kernel's that is lent is given back by a request, which completes, too.
    ring.wait(uses.len() + usize::from(engine != Engine::Copy))?;
    mark();

    let mut done = Vec::new();
    while let Some(event) = ring.next_event() {
        match event {
            Event::Used { id, result, more } => {
                assert_eq!((result, more), (Ok(4096), false));
                done.push(id);
            }
            event => assert!(is_quiet(&event), "{event:?}"),
        }
    }
    assert!(uses.iter().all(|id| done.contains(id)), "{done:?}");
    assert_eq!(ring.free(), 4, "the slot is free with the last completion");
    let mut got = vec![0; 4096];
    assert!(folder.sunk()? == content, "the file");
    for (name, from) in
        [("tcp", &mut tcp_reads.1 as &mut dyn Read), ("unix", &mut &unix.1), ("pipe", &mut reads)]
    {
        got.fill(0);
        from.read_exact(&mut got)?;
        assert!(got == content, "{name}");
    }
    Ok(())
}

/// One of the consumers waits for a pipe that nobody reads: the others finish, the lease is
/// released, and its slot is not given to anybody before that one is done.
fn one_never_reads(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(41, 8192));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let (mut near, mut unix, (mut reads, writes)) = (tcp()?, UnixStream::pair()?, pipe()?);
    let full = fill(&writes)?;
    let pipe = ring.attach(&writes)?;
    let file = ring.attach(&folder.sink()?)?;
    let socket = ring.attach(&near.0)?;
    let local = ring.attach(&unix.0)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    let slot = lease.id().slot();
    let stuck = ring.write(&lease, .., &pipe, STREAM)?;
    ring.send(&lease, .., &socket, SendFlags::WAIT_ALL)?;
    ring.write(&lease, .., &file, 0)?;
    ring.send(&lease, .., &local, SendFlags::WAIT_ALL)?;
    let released = lease.release();
    let mut left = 3;
    until(&mut ring, |event| {
        if let Event::Used { id, result, .. } = event {
            assert_ne!(*id, stuck);
            assert_eq!(*result, Ok(4096));
            left -= 1;
        }
        left == 0
    });
    let mut got = vec![0; 4096];
    near.1.read_exact(&mut got)?;
    assert!(got == content[..4096], "tcp");
    unix.1.read_exact(&mut got)?;
    assert!(got == content[..4096], "unix");
    assert!(folder.sunk()? == content[..4096], "the file");
    assert!(!released.is_over());
    // The other slots go round meanwhile, with other bytes.
    for _ in 0..8 {
        // A kernel thread may take its time to empty the slots.
        until_free(&mut ring, 1);
        let fetched = ring.fetch(&source, 4096, 4096)?;
        let other = ring.wait_installed(fetched)?.expect("a block");
        assert_ne!(other.id().slot(), slot);
    }
    reads.read_exact(&mut vec![0; full])?;
    assert_eq!(ring.wait_used(stuck)?, 4096);
    reads.read_exact(&mut got)?;
    assert!(got == content[..4096], "the pipe");
    until_free(&mut ring, 4);
    assert!(released.is_over());
    Ok(())
}

/// Lengths around the edges of blocks of 4096 bytes, on a ring with 4 of them.
const LENGTHS: [usize; 7] = [0, 1, 4096, 4097, 16384, 16385, 37 * 4096 + 123];

/// A file, a TCP connection, a UNIX socket and a pipe, with somebody who reads all of it.
struct Four {
    file: File,
    socket: std::net::TcpStream,
    local: UnixStream,
    pipe: std::io::PipeWriter,
    readers: [JoinHandle<Vec<u8>>; 3],
}

impl Four {
    fn new(folder: &Folder) -> Result<Self, Stop> {
        let (tcp, unix, pipe) = (tcp()?, UnixStream::pair()?, pipe()?);
        Ok(Self {
            file: folder.sink()?,
            socket: tcp.0,
            local: unix.0,
            pipe: pipe.1,
            readers: [reader(tcp.1), reader(unix.1), reader(pipe.0)],
        })
    }

    fn add<'a>(&'a self, fan: FanOut<'a>) -> FanOut<'a> {
        fan.sink(&self.file).sink(&self.socket).sink(&self.local).sink(&self.pipe)
    }

    /// What the readers got.
    fn close(self) -> [Vec<u8>; 3] {
        drop((self.file, self.socket, self.local, self.pipe));
        self.readers.map(|reader| reader.join().expect("a reader"))
    }
}

/// What is right after a fan-out of which every sink has everything.
fn whole(ring: &mut Ring, report: &FanReport, want: usize) {
    assert_eq!(report.bytes, want as u64);
    assert!(report.engine == ring.engine() || ring.stats().fallbacks > 0);
    for sink in &report.sinks {
        assert!(sink.error.is_none(), "{:?}", sink.error);
        assert_eq!(sink.bytes, want as u64);
    }
    let events = until_free(ring, ring.capacity());
    assert!(events.iter().all(is_quiet), "{events:?}");
}

/// The error of the sink with this number, and the bytes that it took. All others have everything.
fn only_failed(report: &FanReport, failed: usize, want: usize) -> (ErrorKind, u64) {
    for (index, sink) in report.sinks.iter().enumerate() {
        if index != failed {
            assert!(sink.error.is_none(), "{index}: {:?}", sink.error);
            assert_eq!(sink.bytes, want as u64, "{index}");
        }
    }
    let sink = &report.sinks[failed];
    (sink.error.as_ref().expect("it failed").kind(), sink.bytes)
}

fn file_to_all(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    for len in LENGTHS {
        let (folder, content) = (Folder::new()?, pattern(42, len));
        let source = folder.source(&content)?;
        let four = Four::new(&folder)?;
        let mut order = Vec::new();
        let fan = four.add(FanOut::new(&source)).on_done(|index, sink| {
            assert_eq!(sink.bytes, len as u64);
            order.push(index);
        });
        let report = fan.run(&mut ring)?;
        whole(&mut ring, &report, len);
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3]);
        assert!(folder.sunk()? == content, "{len}: the file");
        assert!(four.close().iter().all(|got| *got == content), "{len}");
    }
    Ok(())
}

fn pipe_to_all(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (folder, content) = (Folder::new()?, pattern(43, 37 * 4096 + 123));
    let (from, to) = pipe()?;
    let feeder = writer(to, content.clone());
    let four = Four::new(&folder)?;
    let report = four.add(FanOut::new(&from)).run(&mut ring)?;
    feeder.join().expect("the feeder");
    whole(&mut ring, &report, content.len());
    assert!(folder.sunk()? == content, "the file");
    assert!(four.close().iter().all(|got| *got == content));
    Ok(())
}

fn zero_copy(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (folder, content) = (Folder::new()?, pattern(44, 37 * 4096 + 123));
    let source = folder.source(&content)?;
    let four = Four::new(&folder)?;
    let report = four.add(FanOut::new(&source)).zero_copy_send(true).run(&mut ring)?;
    whole(&mut ring, &report, content.len());
    assert!(folder.sunk()? == content, "the file");
    assert!(four.close().iter().all(|got| *got == content));
    Ok(())
}

/// Somebody who reads a little at a time.
fn slow_reader(mut from: PipeReader) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut all, mut piece) = (Vec::new(), [0; 8192]);
        while let Ok(bytes @ 1..) = from.read(&mut piece) {
            all.extend_from_slice(&piece[..bytes]);
            thread::sleep(Duration::from_millis(2));
        }
        all
    })
}

fn slow_one_is_waited_for(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (folder, content) = (Folder::new()?, pattern(45, 64 * 4096 + 5));
    let source = folder.source(&content)?;
    let four = Four::new(&folder)?;
    let (reads, writes) = pipe()?;
    rustix::pipe::fcntl_setpipe_size(&writes, 4096)?;
    let slow = slow_reader(reads);
    let fan = four.add(FanOut::new(&source)).sink(&writes).patience(Duration::from_secs(20));
    let report = fan.run(&mut ring)?;
    whole(&mut ring, &report, content.len());
    drop(writes);
    assert!(slow.join().expect("the slow reader") == content);
    assert!(four.close().iter().all(|got| *got == content));
    Ok(())
}

/// One that never reads is given up when it is too far behind. So may be others that read slowly,
/// but not all of them, and each has the beginning of what was sent.
fn lagging(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (folder, content) = (Folder::new()?, pattern(46, 64 * 4096 + 5));
    let source = folder.source(&content)?;
    // More blocks than there are leases are one less than the leases.
    for lag in [0, 2, 1000] {
        let four = Four::new(&folder)?;
        let (_reads, writes) = pipe()?;
        assert!(fill(&writes)? > 0);
        let report = four.add(FanOut::new(&source)).sink(&writes).lag(lag).run(&mut ring)?;
        let error = report.sinks[4].error.as_ref().expect("it never reads");
        assert_eq!((error.kind(), report.sinks[4].bytes), (ErrorKind::Lagging, 0), "{error}");
        let [socket, local, pipe] = four.close();
        let got = [folder.sunk()?, socket, local, pipe];
        for (sink, got) in report.sinks.iter().zip(&got) {
            assert_eq!(sink.bytes, got.len() as u64);
            assert!(content.starts_with(got));
            match &sink.error {
                None => assert_eq!(got.len(), content.len()),
                Some(error) => assert_eq!(error.kind(), ErrorKind::Lagging),
            }
        }
        assert!(got.contains(&content), "nobody has everything");
        until_free(&mut ring, 4);
    }
    Ok(())
}

/// One that never reads is given up after a time, also where nobody waits for it any more.
fn impatient(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    for len in [8192, 64 * 4096 + 5] {
        let (folder, content) = (Folder::new()?, pattern(47, len));
        let source = folder.source(&content)?;
        let four = Four::new(&folder)?;
        let (_reads, writes) = pipe()?;
        let full = fill(&writes)?;
        assert!(full > 0);
        let (begin, patience) = (Instant::now(), Duration::from_secs(1));
        let mut order = Vec::new();
        let fan = four.add(FanOut::new(&source)).sink(&writes).patience(patience);
        let report = fan.on_done(|index, _| order.push(index)).run(&mut ring)?;
        assert!(begin.elapsed() >= patience);
        assert_eq!(order.len(), 5);
        if len == 8192 {
            assert_eq!(order[4], 4, "the others are done long before");
        }
        assert_eq!(only_failed(&report, 4, len), (ErrorKind::Lagging, 0));
        assert!(folder.sunk()? == content, "the file");
        assert!(four.close().iter().all(|got| *got == content));
        until_free(&mut ring, 4);
    }
    Ok(())
}

fn nonblocking(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (folder, content) = (Folder::new()?, pattern(48, 100 * 4096 + 5));
    let (from, to) = pipe()?;
    rustix::io::ioctl_fionbio(&from, true)?;
    let four = Four::new(&folder)?;
    four.socket.set_nonblocking(true)?;
    four.local.set_nonblocking(true)?;
    rustix::io::ioctl_fionbio(&four.pipe, true)?;
    let feeder = writer(to, content.clone());
    let report = four.add(FanOut::new(&from)).run(&mut ring)?;
    feeder.join().expect("the feeder");
    whole(&mut ring, &report, content.len());
    assert!(folder.sunk()? == content, "the file");
    assert!(four.close().iter().all(|got| *got == content));
    Ok(())
}

/// One has room for a part of each block: the rest of it comes next.
fn short_writes(rig: &Rig) -> Verdict {
    let mut ring = rig.small().block_size(16 << 10).build()?;
    let (folder, content) = (Folder::new()?, pattern(49, 150_003));
    let (source, sink) = (folder.source(&content)?, folder.sink()?);
    let (from, to) = pipe()?;
    rustix::pipe::fcntl_setpipe_size(&to, 4096)?;
    rustix::io::ioctl_fionbio(&to, true)?;
    let peer = reader(from);
    let report = FanOut::new(&source).sink(&sink).sink(&to).run(&mut ring)?;
    whole(&mut ring, &report, content.len());
    drop(to);
    assert!(folder.sunk()? == content, "the file");
    assert!(peer.join().expect("the peer") == content, "the pipe");
    Ok(())
}

fn one_closes(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (folder, content) = (Folder::new()?, pattern(49, 64 * 4096 + 5));
    let source = folder.source(&content)?;
    let four = Four::new(&folder)?;
    let (mut reads, writes) = pipe()?;
    let leaver = thread::spawn(move || reads.read_exact(&mut [0; 10_000]));
    let report = four.add(FanOut::new(&source)).sink(&writes).run(&mut ring)?;
    leaver.join().expect("the leaver")?;
    let (kind, bytes) = only_failed(&report, 4, content.len());
    assert_eq!(kind, ErrorKind::Sink);
    assert!((10_000..content.len() as u64).contains(&bytes), "{bytes}");
    let error = report.sinks[4].error.as_ref().and_then(uring_getbuf::Error::raw_os_error);
    assert_eq!(error, Some(libc::EPIPE));
    assert!(four.close().iter().all(|got| *got == content));
    until_free(&mut ring, 4);
    Ok(())
}

/// A source that has no end is not read on when nobody is left.
fn all_close(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let source = File::open("/dev/urandom")?;
    let (near, far) = tcp()?;
    let (reads, writes) = pipe()?;
    drop(reads);
    near.shutdown(Shutdown::Write)?;
    let report = FanOut::new(&source).sink(&near).sink(&writes).run(&mut ring)?;
    for sink in &report.sinks {
        assert_eq!(sink.error.as_ref().expect("it has gone").kind(), ErrorKind::Sink);
    }
    drop(far);
    let events = until_free(&mut ring, 4);
    assert!(events.iter().all(is_quiet), "{events:?}");
    Ok(())
}

fn offsets_and_limit(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (folder, content) = (Folder::new()?, pattern(50, 30_000));
    let (source, sink) = (folder.source(&content)?, folder.sink()?);
    let (reads, writes) = pipe()?;
    let fan = FanOut::new(&source).source_offset(5000).limit(20_000).block_size(1000).depth(3);
    let report = fan.sink_at(&sink, 77).sink(&writes).run(&mut ring)?;
    whole(&mut ring, &report, 20_000);
    drop(writes);
    assert!(reader(reads).join().expect("a reader") == content[5000..25_000]);
    assert!(folder.sunk()?[77..] == content[5000..25_000]);
    Ok(())
}

fn direct(rig: &Rig) -> Verdict {
    use std::os::unix::fs::OpenOptionsExt;
    let mut ring = rig.ring();
    let (folder, content) = (Folder::new()?, pattern(51, 9 * 4096 + 777));
    drop(folder.source(&content)?);
    let mut options = File::options();
    let options = options.read(true).custom_flags(libc::O_DIRECT);
    let Ok(source) = options.open(folder.path("source")) else {
        return getbuf_tests::skip("the file system has no O_DIRECT");
    };
    let four = Four::new(&folder)?;
    let report = four.add(FanOut::new(&source)).run(&mut ring)?;
    whole(&mut ring, &report, content.len());
    assert!(folder.sunk()? == content, "the file");
    assert!(four.close().iter().all(|got| *got == content));
    Ok(())
}

/// A device may not be able to take the kernel's memory.
fn device(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (folder, content) = (Folder::new()?, pattern(52, 9 * 4096 + 777));
    let (source, null) = (folder.source(&content)?, File::create("/dev/null")?);
    let (reads, writes) = pipe()?;
    let got = reader(reads);
    let report = FanOut::new(&source).sink(&null).sink(&writes).run(&mut ring)?;
    assert_eq!(report.engine, Engine::Copy);
    drop(writes);
    assert!(got.join().expect("a reader") == content);
    until_free(&mut ring, 4);
    Ok(())
}

/// Nothing is to be read at the begin of a process's memory.
fn source_fails(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (folder, source) = (Folder::new()?, File::open("/proc/self/mem")?);
    let (_reads, writes) = pipe()?;
    let failure = FanOut::new(&source).sink(&folder.sink()?).sink(&writes).run(&mut ring);
    let failure = failure.expect_err("nothing is there");
    assert_eq!(failure.error.kind(), ErrorKind::Source, "{failure}");
    assert!(failure.report.sinks.iter().all(|sink| sink.bytes == 0 && sink.error.is_none()));
    until_free(&mut ring, 4);
    Ok(())
}

fn cancel(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (from, _to) = pipe()?;
    let (_reads, writes) = pipe()?;
    let canceller = Canceller::new();
    let other = canceller.clone();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        other.cancel();
    });
    let fan = FanOut::new(&from).sink(&writes).canceller(&canceller);
    let failure = fan.run(&mut ring).expect_err("it was cancelled");
    thread.join().expect("the canceller");
    assert_eq!(failure.error.kind(), ErrorKind::Cancelled, "{failure}");
    let events = until_free(&mut ring, 4);
    assert!(events.iter().all(is_quiet), "{events:?}");
    Ok(())
}

fn wrong_numbers(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let folder = Folder::new()?;
    let (source, sink) = (folder.source(b"x")?, folder.sink()?);
    for fan in [
        FanOut::new(&source),
        FanOut::new(&source).sink(&sink).depth(0),
        FanOut::new(&source).sink(&sink).block_size(0),
        FanOut::new(&source).sink_at(&sink, u64::MAX - 1),
    ] {
        let failure = fan.run(&mut ring).expect_err("nonsense");
        assert_eq!(failure.error.kind(), ErrorKind::InvalidInput, "{failure}");
    }
    assert_eq!(ring.free(), 4);
    Ok(())
}
