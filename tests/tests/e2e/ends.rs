// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the ends of a move are: positions that others share, sinks with `O_DIRECT` or without room,
//! sockets of messages, one file at both ends.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write, pipe};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use getbuf_tests::{
    Folder, Rig, Stop, Verdict, is_quiet, pattern, reader, skip, tcp, until_free, writer,
};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use uring_getbuf::relay::{FanOut, Proxy, Relay, Report};
use uring_getbuf::{Engine, Error, ErrorKind, Ring, STREAM};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("source_at_its_position", source_at_its_position),
    ("source_position_after_a_failure", source_position_after_a_failure),
    ("shared_source_position", shared_source_position),
    ("sink_at_its_position", sink_at_its_position),
    ("shared_sink_position", shared_sink_position),
    ("fan_at_positions", fan_at_positions),
    ("full_by_its_own_limit", full_by_its_own_limit),
    ("direct_sink", direct_sink),
    ("sockets_of_messages", sockets_of_messages),
    ("pipe_of_packets", pipe_of_packets),
    ("one_file_at_both_ends", one_file_at_both_ends),
    ("what_was_copied", what_was_copied),
    ("receivers_that_talk", receivers_that_talk),
];

fn quiet(ring: &mut Ring) {
    let free = ring.capacity();
    let events = until_free(ring, free);
    assert!(events.iter().all(is_quiet), "{events:?}");
}

/// A new memfd.
fn memory() -> Result<File, Stop> {
    Ok(File::from(memfd_create("getbuf-test", MemfdFlags::CLOEXEC)?))
}

fn all_of(file: &File) -> Result<Vec<u8>, Stop> {
    let mut got = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut got, 0)?;
    Ok(got)
}

fn source_at_its_position(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(70, 100_001));
    let mut ring = rig.ring();
    let mut source = folder.source(&content)?;
    for (from, limit) in [(0, u64::MAX), (1000, 70_000), (4096, 5), (100_001, 9), (200_000, 9)] {
        let want = &content[content.len().min(from as usize)..];
        let want = &want[..want.len().min(limit as usize)];
        let check = |source: &mut File, report: Report, got: Vec<u8>, what| -> Verdict {
            assert!(got == want, "{from} {limit} {what}: {} bytes", got.len());
            assert_eq!(report.bytes, want.len() as u64);
            assert_eq!(source.stream_position()?, from + report.bytes, "{from} {limit} {what}");
            Ok(())
        };
        let sink = folder.sink()?;
        source.seek(SeekFrom::Start(from))?;
        let relay = Relay::new(&source, &sink).source_offset(STREAM).limit(limit);
        let report = relay.run(&mut ring)?;
        check(&mut source, report, folder.sunk()?, "to a file")?;
        let (reads, writes) = pipe()?;
        let peer = reader(reads);
        source.seek(SeekFrom::Start(from))?;
        let relay = Relay::new(&source, &writes).source_offset(STREAM).limit(limit);
        let report = relay.block_size(1000).run(&mut ring)?;
        drop(writes);
        check(&mut source, report, peer.join().expect("the peer"), "to a pipe")?;
        quiet(&mut ring);
    }
    // One that does not tell its size.
    let mut source = File::open("/proc/filesystems")?;
    let mut want = Vec::new();
    source.read_to_end(&mut want)?;
    source.seek(SeekFrom::Start(10))?;
    let sink = folder.sink()?;
    let report = Relay::new(&source, &sink).source_offset(STREAM).run(&mut ring)?;
    assert_eq!(report.bytes, want.len() as u64 - 10);
    assert!(folder.sunk()? == want[10..]);
    assert_eq!(source.stream_position()?, want.len() as u64);
    // One that is longer than it was.
    std::fs::write(folder.path("source"), &content[..5000])?;
    let mut source = File::open(folder.path("source"))?;
    let sink = folder.sink()?;
    let mut once = true;
    let relay = Relay::new(&source, &sink).source_offset(STREAM).on_progress(|_| {
        if std::mem::take(&mut once) {
            std::fs::write(folder.path("source"), &content).expect("growing");
        }
    });
    assert_eq!(relay.run(&mut ring)?.bytes, content.len() as u64);
    assert!(folder.sunk()? == content);
    assert_eq!(source.stream_position()?, content.len() as u64);
    Ok(())
}

/// The position says what was moved, and not what was read ahead.
fn source_position_after_a_failure(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(71, 1 << 20));
    let mut ring = rig.ring();
    let mut source = folder.source(&content)?;
    source.seek(SeekFrom::Start(7))?;
    let (mut reads, writes) = pipe()?;
    let peer = thread::spawn(move || reads.read_exact(&mut [0; 100_000]));
    let relay = Relay::new(&source, &writes).source_offset(STREAM);
    let failure = relay.run(&mut ring).expect_err("nobody reads the rest");
    peer.join().expect("the peer")?;
    assert_eq!(failure.error.kind(), ErrorKind::Sink, "{failure}");
    assert_eq!(source.stream_position()?, 7 + failure.report.bytes);
    quiet(&mut ring);

    source.seek(SeekFrom::Start(7))?;
    let (mut reads, writes) = pipe()?;
    let peer = thread::spawn(move || reads.read_exact(&mut [0; 100_000]));
    let report = FanOut::new(&source).source_offset(STREAM).sink(&writes).run(&mut ring)?;
    peer.join().expect("the peer")?;
    assert!(report.sinks[0].error.is_some());
    assert_eq!(source.stream_position()?, 7 + report.sinks[0].bytes);
    quiet(&mut ring);
    Ok(())
}

/// Who reads through one position gets each byte once.
fn shared_source_position(rig: &Rig) -> Verdict {
    const RECORDS: u64 = 256 << 10;
    let folder = Folder::new()?;
    let content: Vec<_> = (0..RECORDS).flat_map(u64::to_le_bytes).collect();
    let source = folder.source(&content)?;
    let (mut seen, mut threads) = (vec![0; RECORDS as usize], Vec::new());
    for _ in 0..2 {
        let (rig, source) = (*rig, source.try_clone()?);
        threads.push(thread::spawn(move || -> Result<Vec<u8>, String> {
            let (mut ring, sink) = (rig.ring(), memory().map_err(|stop| format!("{stop:?}"))?);
            let relay = Relay::new(&source, &sink).source_offset(STREAM);
            relay.run(&mut ring).map_err(|failure| failure.to_string())?;
            all_of(&sink).map_err(|stop| format!("{stop:?}"))
        }));
    }
    let got = threads.into_iter().map(|thread| thread.join().expect("a relay"));
    for got in got.collect::<Result<Vec<_>, _>>().map_err(Stop::Fail)? {
        for record in got.chunks(8) {
            seen[u64::from_le_bytes(record.try_into()?) as usize] += 1;
        }
    }
    assert!(seen.iter().all(|seen| *seen == 1));
    Ok(())
}

fn sink_at_its_position(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(72, 50_001));
    let mut ring = rig.ring();
    let source = folder.source(&content)?;
    std::fs::write(folder.path("sink"), vec![7; 100_000])?;
    let mut sink = File::options().write(true).open(folder.path("sink"))?;
    sink.seek(SeekFrom::Start(100))?;
    assert_eq!(Relay::new(&source, &sink).sink_offset(STREAM).run(&mut ring)?.bytes, 50_001);
    assert_eq!(sink.stream_position()?, 50_101);
    let (reads, writes) = pipe()?;
    let feeder = writer(writes, content.clone());
    assert_eq!(Relay::new(&reads, &sink).sink_offset(STREAM).run(&mut ring)?.bytes, 50_001);
    feeder.join().expect("the feeder");
    assert_eq!(sink.stream_position()?, 100_102);
    let got = folder.sunk()?;
    assert!(got[..100] == [7; 100] && got[100..50_101] == content && got[50_101..] == content);
    // It is where the last byte is, also when nothing more came.
    let (mut reads, mut writes) = pipe()?;
    writes.write_all(b"some")?;
    drop(writes);
    Relay::new(&reads, &sink).sink_offset(STREAM).limit(1 << 20).run(&mut ring)?;
    assert_eq!(reads.read(&mut [0])?, 0);
    assert_eq!(sink.stream_position()?, 100_106);
    quiet(&mut ring);
    Ok(())
}

/// What others write through the same position is not overwritten, and nothing is left out.
fn shared_sink_position(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let ours: Vec<_> = pattern(73, 400_003).iter().map(|byte| byte & 0x7f).collect();
    let mut ring = rig.ring();
    for from_pipe in [false, true] {
        let sink = folder.sink()?;
        let other = Arc::new(Mutex::new((sink.try_clone()?, 0_u32)));
        let write = |other: &Mutex<(File, u32)>| {
            let (file, count) = &mut *other.lock().expect("nobody panics here");
            file.write_all(&[0x80 | (*count % 128) as u8; 1000]).expect("writing");
            *count += 1;
        };
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let theirs = Arc::clone(&other);
        let others = thread::spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                write(&theirs);
                thread::sleep(Duration::from_micros(300));
            }
        });
        let source = folder.source(&ours)?;
        let (reads, writes) = pipe()?;
        let feeder = writer(writes, if from_pipe { ours.clone() } else { Vec::new() });
        let relay = if from_pipe { Relay::new(&reads, &sink) } else { Relay::new(&source, &sink) };
        // Also for certain: whenever something has moved.
        let relay = relay.sink_offset(STREAM).block_size(1500).on_progress(|_| write(&other));
        let report = relay.run(&mut ring)?;
        feeder.join().expect("the feeder");
        drop(stop);
        others.join().expect("the others");
        let count = other.lock().expect("nobody panics here").1;
        assert_eq!(report.bytes, ours.len() as u64);
        let (mine, theirs): (Vec<u8>, Vec<u8>) =
            folder.sunk()?.iter().partition(|byte| **byte < 0x80);
        assert!(mine == ours, "{} of {} bytes", mine.len(), ours.len());
        let want: Vec<_> = (0..count).flat_map(|n| [0x80 | (n % 128) as u8; 1000]).collect();
        assert!(theirs == want, "{} of {} bytes", theirs.len(), want.len());
        assert!(count > 3, "the others hardly wrote");
        quiet(&mut ring);
    }
    Ok(())
}

fn fan_at_positions(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(74, 70_001));
    let mut ring = rig.ring();
    let mut source = folder.source(&content)?;
    source.seek(SeekFrom::Start(3))?;
    let (mut one, mut other) = (folder.sink()?, memory()?);
    one.write_all(b"before")?;
    other.seek(SeekFrom::Start(20))?;
    let fan = FanOut::new(&source).source_offset(STREAM).limit(60_000);
    let report = fan.sink_at(&one, STREAM).sink_at(&other, STREAM).run(&mut ring)?;
    assert!(report.sinks.iter().all(|sink| sink.bytes == 60_000 && sink.error.is_none()));
    assert!(folder.sunk()?[6..] == content[3..60_003]);
    assert!(all_of(&other)?[20..] == content[3..60_003]);
    assert_eq!((one.stream_position()?, other.stream_position()?), (60_006, 60_020));
    assert_eq!(source.stream_position()?, 60_003);
    let report = FanOut::new(&source).source_offset(STREAM).sink_at(&one, 0).run(&mut ring)?;
    assert_eq!((report.bytes, source.stream_position()?), (9_998, 70_001));
    assert!(folder.sunk()?[..9_998] == content[60_003..]);
    quiet(&mut ring);
    Ok(())
}

fn too_big(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Sink, "{error}");
    assert_eq!(error.raw_os_error(), Some(libc::EFBIG), "{error}");
}

/// That no file is longer is the sink's error, after what fitted, and not the end of the source.
fn full_by_its_own_limit(rig: &Rig) -> Verdict {
    const LAST: u64 = i64::MAX as u64;
    let (folder, content) = (Folder::new()?, pattern(75, 100_000));
    let mut ring = rig.ring();
    let source = folder.source(&content)?;
    for room in [0, 10, 4096, 5000] {
        for at_position in [false, true] {
            let mut sink = memory()?;
            sink.seek(SeekFrom::Start(LAST - room))?;
            let offset = if at_position { STREAM } else { LAST - room };
            let failure = Relay::new(&source, &sink).sink_offset(offset).run(&mut ring);
            let failure = failure.expect_err("no file is longer");
            too_big(&failure.error);
            assert_eq!(failure.report.bytes, room);
            let mut got = vec![0; room as usize];
            sink.read_exact_at(&mut got, LAST - room)?;
            assert!(got == content[..room as usize], "{room}");
            if at_position {
                assert_eq!(sink.stream_position()?, LAST);
            }
            // What fits is no error.
            sink.seek(SeekFrom::Start(LAST - room))?;
            let relay = Relay::new(&source, &sink).source_offset(100_000 - room);
            assert_eq!(relay.sink_offset(offset).run(&mut ring)?.bytes, room);
            sink.seek(SeekFrom::Start(LAST - room))?;
            let relay = Relay::new(&source, &sink).sink_offset(offset).limit(room);
            assert_eq!(relay.run(&mut ring)?.bytes, room);

            let sink = memory()?;
            let (reads, mut writes) = pipe()?;
            writes.write_all(&content[..6000])?;
            drop(writes);
            let failure = Relay::new(&reads, &sink).sink_offset(LAST - room).run(&mut ring);
            let failure = failure.expect_err("from a pipe");
            too_big(&failure.error);
            assert_eq!(failure.report.bytes, room);
            // Of many sinks it is one's.
            let (mut sink, whole) = (memory()?, memory()?);
            sink.seek(SeekFrom::Start(LAST - room))?;
            let fan = FanOut::new(&source).sink_at(&sink, offset).sink(&whole);
            let report = fan.run(&mut ring)?;
            too_big(report.sinks[0].error.as_ref().expect("it is full"));
            assert_eq!(report.sinks[0].bytes, room);
            assert!(report.sinks[1].error.is_none());
            assert!(all_of(&whole)? == content);
            quiet(&mut ring);
        }
    }
    Ok(())
}

/// What is no whole sector is written without `O_DIRECT`, which is set afterwards as before.
fn direct_sink(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    drop(folder.sink()?);
    let open = || {
        let mut options = File::options();
        options.write(true).truncate(true).custom_flags(libc::O_DIRECT).open(folder.path("sink"))
    };
    if open().is_err() {
        return skip("the file system of TMPDIR has no O_DIRECT");
    }
    let mut ring = rig.ring();
    for (len, at) in [(9 * 4096 + 777, 0), (5, 0), (8192, 0), (20_001, 4096), (20_001, 77), (0, 0)]
    {
        let content = pattern(76, len);
        let source = folder.source(&content)?;
        let check = |sink: &File, bytes: u64, what| -> Verdict {
            assert_eq!(bytes, len as u64, "{what}");
            assert!(folder.sunk()?.get(at as usize..).unwrap_or_default() == content, "{what}");
            assert!(fcntl_getfl(sink)?.contains(OFlags::DIRECT), "{what}");
            Ok(())
        };
        for on_this_thread in [false, true] {
            let sink = open()?;
            let relay = Relay::new(&source, &sink).sink_offset(at).on_this_thread(on_this_thread);
            check(&sink, relay.run(&mut ring)?.bytes, "from a file")?;
        }
        let sink = open()?;
        (&sink).seek(SeekFrom::Start(at))?;
        let report = Relay::new(&source, &sink).sink_offset(STREAM).run(&mut ring)?;
        check(&sink, report.bytes, "at its position")?;
        let sink = open()?;
        let (reads, writes) = pipe()?;
        let feeder = writer(writes, content.clone());
        let report = Relay::new(&reads, &sink).sink_offset(at).run(&mut ring)?;
        feeder.join().expect("the feeder");
        check(&sink, report.bytes, "from a pipe")?;
        let sink = open()?;
        let (near, far) = tcp()?;
        let feeder = writer(far, content.clone());
        let report = Relay::new(&near, &sink).sink_offset(at).run(&mut ring)?;
        feeder.join().expect("the feeder");
        check(&sink, report.bytes, "from a socket")?;
        let (sink, other) = (open()?, memory()?);
        let report = FanOut::new(&source).sink_at(&sink, at).sink(&other).run(&mut ring)?;
        assert!(report.sinks.iter().all(|sink| sink.error.is_none()), "{report:?}");
        check(&sink, report.sinks[0].bytes, "fanned out")?;
        let mut options = File::options();
        let options = options.read(true).custom_flags(libc::O_DIRECT);
        let (sink, direct) = (open()?, options.open(folder.path("source"))?);
        let report = Relay::new(&direct, &sink).sink_offset(at).run(&mut ring)?;
        check(&sink, report.bytes, "from O_DIRECT")?;
        for fan in [false, true] {
            let (sink, mut direct) = (open()?, options.open(folder.path("source"))?);
            let bytes = match fan {
                false => {
                    let relay = Relay::new(&direct, &sink).source_offset(STREAM).sink_offset(at);
                    relay.run(&mut ring)?.bytes
                }
                true => {
                    let fan = FanOut::new(&direct).source_offset(STREAM).sink_at(&sink, at);
                    fan.run(&mut ring)?.bytes
                }
            };
            check(&sink, bytes, "from where O_DIRECT stands")?;
            assert_eq!(direct.stream_position()?, len as u64, "from where O_DIRECT stands");
        }
        quiet(&mut ring);
    }
    Ok(())
}

fn is_invalid(error: &Error, word: &str) {
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains(word), "{error}");
}

/// They are refused before anything is moved: a message that is cut is lost.
fn sockets_of_messages(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let source = folder.source(b"a message that is not cut")?;
    let packets =
        || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let datagrams = || UnixDatagram::pair().map(|(one, other)| (one.into(), other.into()));
    let pairs: [(OwnedFd, OwnedFd); 2] = [packets()?, datagrams()?];
    for (near, far) in pairs {
        rustix::io::write(&far, &[7; 6000])?;
        rustix::io::write(&far, &[])?;
        let sink = folder.sink()?;
        let word = "SOCK_STREAM";
        let failure = Relay::new(&near, &sink).run(&mut ring).expect_err("as a source");
        is_invalid(&failure.error, word);
        let failure = FanOut::new(&near).sink(&sink).run(&mut ring).expect_err("as a source");
        is_invalid(&failure.error, word);
        let failure = Relay::new(&source, &near).run(&mut ring).expect_err("as a sink");
        is_invalid(&failure.error, word);
        let fan = FanOut::new(&source).sink(&sink).sink(&near);
        is_invalid(&fan.run(&mut ring).expect_err("as a sink").error, word);
        assert_eq!(folder.sunk()?, b"");
        let mut proxy = Proxy::new(&ring);
        let near_too = near.try_clone()?;
        is_invalid(&proxy.add(&mut ring, near_too, tcp()?.0).expect_err("first"), word);
        let near_too = near.try_clone()?;
        is_invalid(&proxy.add(&mut ring, tcp()?.0, near_too).expect_err("second"), word);
        // Nothing was taken, and nothing was sent.
        assert_eq!(rustix::io::read(&near, &mut [0; 8192])?, 6000);
        rustix::io::ioctl_fionbio(&far, true)?;
        assert_eq!(rustix::io::read(&far, &mut [0; 10]), Err(rustix::io::Errno::AGAIN));
        quiet(&mut ring);
    }
    Ok(())
}

/// What a read leaves of a packet is gone: blocks that are too small for one are not taken.
fn pipe_of_packets(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let content = pattern(77, 9000);
    for fan in [false, true] {
        let (reads, writes) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::DIRECT)?;
        for packet in content.chunks(3000) {
            rustix::io::write(&writes, packet)?;
        }
        drop(writes);
        let sink = folder.sink()?;
        let bytes = match fan {
            false => Relay::new(&reads, &sink).block_size(1000).run(&mut ring)?.bytes,
            true => FanOut::new(&reads).sink(&sink).block_size(1000).run(&mut ring)?.bytes,
        };
        assert_eq!(bytes, 9000);
        assert!(folder.sunk()? == content);
    }
    Ok(())
}

fn one_file_at_both_ends(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(78, 50_000));
    let mut ring = rig.ring();
    std::fs::write(folder.path("file"), &content)?;
    std::fs::hard_link(folder.path("file"), folder.path("link"))?;
    let open = |name| File::options().read(true).write(true).open(folder.path(name));
    let (file, link) = (open("file")?, open("link")?);
    let append = File::options().append(true).open(folder.path("link"))?;
    (&link).seek(SeekFrom::Start(60_000))?;
    for relay in [
        Relay::new(&file, &file),
        Relay::new(&file, &link).sink_offset(100_000),
        Relay::new(&file, &file).sink_offset(49_999).limit(50_000),
        Relay::new(&file, &file).source_offset(1000),
        Relay::new(&file, &link).source_offset(1000).limit(1001),
        Relay::new(&file, &append),
        Relay::new(&file, &link).sink_offset(STREAM),
    ] {
        let failure = relay.run(&mut ring).expect_err("it would read what it has written");
        is_invalid(&failure.error, "overlaps");
    }
    let fan = FanOut::new(&file).sink(&folder.sink()?).sink_at(&link, 100_000).run(&mut ring);
    is_invalid(&fan.expect_err("of many sinks").error, "overlaps");
    assert!(std::fs::read(folder.path("file"))? == content);
    let (reads, writes) = pipe()?;
    (&writes).write_all(b"round and round")?;
    let failure = Relay::new(&reads, &writes).run(&mut ring).expect_err("it would never end");
    is_invalid(&failure.error, "same pipe");

    // What does not overlap is moved.
    let relay = Relay::new(&file, &link).sink_offset(50_000).limit(50_000);
    assert_eq!(relay.run(&mut ring)?.bytes, 50_000);
    let relay = Relay::new(&file, &file).source_offset(90_000);
    assert_eq!(relay.run(&mut ring)?.bytes, 10_000);
    let relay = Relay::new(&file, &append).limit(5000);
    assert_eq!(relay.run(&mut ring)?.bytes, 5000);
    let want = [&content[40_000..], &content[10_000..], &content[..], &content[40_000..45_000]];
    assert!(std::fs::read(folder.path("file"))? == want.concat());
    // What a socket has sent can go back to it.
    let (near, mut far) = UnixStream::pair()?;
    far.write_all(b"echo")?;
    assert_eq!(Relay::new(&near, &near).limit(4).run(&mut ring)?.bytes, 4);
    let mut got = [0; 4];
    far.read_exact(&mut got)?;
    assert_eq!(&got, b"echo");
    quiet(&mut ring);
    Ok(())
}

/// What is said to be lent was lent, also where nobody asked for the lease's own engine.
fn what_was_copied(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    // It tells its size, and no engine lends it.
    let odd = ["/sys/kernel/btf/vmlinux", "/proc/config.gz", "/sys/kernel/notes"];
    let odd = odd.iter().filter_map(|path| File::open(path).ok());
    let mut odd = odd.filter(|file| file.metadata().is_ok_and(|stat| stat.len() > 0));
    let source = folder.source(&pattern(79, 300_000))?;
    let mut sources = vec![(&source, false)];
    let cannot_lend = odd.next();
    sources.extend(cannot_lend.as_ref().map(|file| (file, true)));
    for (source, never) in sources {
        for to_pipe in [false, true] {
            let before = ring.stats().fallbacks;
            let sink = folder.sink()?;
            let (reads, writes) = pipe()?;
            let peer = reader(reads);
            let relay =
                if to_pipe { Relay::new(source, &writes) } else { Relay::new(source, &sink) };
            let report = relay.limit(1 << 20).run(&mut ring)?;
            drop(writes);
            let got = if to_pipe { peer.join().expect("the peer") } else { folder.sunk()? };
            assert_eq!(report.bytes, got.len() as u64);
            let refused = ring.stats().fallbacks - before;
            println!("{report:?}, {refused} were refused");
            if never || rig.engine == Engine::Copy {
                assert_eq!((report.copied, report.engine), (report.bytes, Engine::Copy));
            } else if refused == 0 {
                assert_eq!((report.copied, report.engine), (0, rig.engine));
            } else {
                assert!(report.copied > 0);
            }
            assert!(refused > 0 || !never || rig.engine == Engine::Copy);
        }
        let sink = folder.sink()?;
        let report = FanOut::new(source).sink(&sink).limit(1 << 20).run(&mut ring)?;
        if never || rig.engine == Engine::Copy {
            assert_eq!((report.copied, report.engine), (report.bytes, Engine::Copy));
        }
    }
    quiet(&mut ring);
    Ok(())
}

/// A peer that says much more than a connection holds before it takes the next piece.
fn talker(mut peer: TcpStream) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut all, mut piece) = (Vec::new(), vec![0; 100_000]);
        loop {
            match peer.read(&mut piece) {
                Ok(0) | Err(_) => return all,
                Ok(bytes) => all.extend_from_slice(&piece[..bytes]),
            }
            if all.len() < 500_000 && peer.write_all(&[9; 1 << 20]).is_err() {
                return all;
            }
        }
    })
}

/// What a receiver says while it receives is read, and does not keep it from receiving.
fn receivers_that_talk(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(80, 4 << 20));
    let mut ring = rig.ring();
    let source = folder.source(&content)?;
    for (discard, zero_copy) in [(false, false), (true, false), (true, true)] {
        let ((near, far), (other, silent)) = (tcp()?, tcp()?);
        for socket in [&near, &far] {
            rustix::net::sockopt::set_socket_recv_buffer_size(socket, 64 << 10)?;
            rustix::net::sockopt::set_socket_send_buffer_size(socket, 64 << 10)?;
        }
        let (peer, quiet_one) = (talker(far), reader(silent));
        let fan = FanOut::new(&source).sink(&near).sink(&other).discard_replies(discard);
        let fan = fan.patience(Duration::from_secs(2)).zero_copy_send(zero_copy);
        let mut told = 0;
        let report = fan.on_done(|_, _| told += 1).run(&mut ring)?;
        assert_eq!(told, 2);
        drop((near, other));
        let (got, all) = (peer.join().expect("it"), quiet_one.join().expect("the other one"));
        assert!(all == content && report.sinks[1].error.is_none(), "{report:?}");
        match &report.sinks[0].error {
            None => assert!(discard && got == content, "{} bytes", got.len()),
            Some(error) => {
                assert!(!discard, "{error}");
                assert_eq!(error.kind(), ErrorKind::Lagging, "{error}");
            }
        }
        quiet(&mut ring);
    }
    Ok(())
}
