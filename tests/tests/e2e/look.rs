// SPDX-License-Identifier: MIT OR Apache-2.0
//! A look at the bytes of a lease, and relays that decide by it.

use std::fs::File;
use std::io::{PipeReader, Read, Write, pipe};
use std::thread;
use std::time::Duration;

use getbuf_tests::{
    Folder, Rig, Verdict as Outcome, fill, is_quiet, pattern, reader, tcp, until, until_free,
    writer,
};
use uring_getbuf::relay::{Canceller, Relay, Verdict};
use uring_getbuf::slots::Event;
use uring_getbuf::{Engine, ErrorKind, STREAM};

use crate::Case;

/// With every ring setup.
pub(crate) const CENTRAL: &[Case] = &[
    ("copy_out", copy_out),
    ("others_complete_meanwhile", others_complete_meanwhile),
    ("trimmed", trimmed),
];

pub(crate) const CASES: &[Case] = &[
    ("copy_out_of_much", copy_out_of_much),
    ("copy_out_of_a_pipe", copy_out_of_a_pipe),
    ("foreign_unregistration", foreign_unregistration),
    ("wrong_ring", wrong_ring),
    ("passed", passed),
    ("refused", refused),
    ("redirected", redirected),
    ("header_in_pieces", header_in_pieces),
    ("cancelled_before_a_byte", cancelled_before_a_byte),
    ("cut_too_much", cut_too_much),
    ("direct", direct),
];

fn copy_out(rig: &Rig) -> Outcome {
    let (folder, content) = (Folder::new()?, pattern(60, 3000));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    for (offset, len) in [(0, 64), (0, 3000), (1, 1), (2999, 1), (100, 2000), (7, 0), (3000, 0)] {
        let mut into = vec![0; len];
        assert_eq!(ring.copy_out(&lease, offset, &mut into)?, len);
        assert!(into == content[offset as usize..][..len], "{len} bytes at {offset}");
    }
    // There may be less than there is room for, and nothing is written behind it.
    let mut into = [0xee; 100];
    assert_eq!(ring.copy_out(&lease, 2990, &mut into)?, 10);
    assert!(into[..10] == content[2990..] && into[10..] == [0xee; 90]);
    assert_eq!(ring.copy_out(&lease, 3000, &mut into)?, 0);
    let error = ring.copy_out(&lease, 3001, &mut into).expect_err("outside");
    assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
    // What needs no request can be had without a ring.
    match lease.copy_out(5, &mut into) {
        Ok(copied) => assert!(lease.origin() == Engine::Copy && into[..] == content[5..][..copied]),
        Err(error) => {
            assert_ne!(lease.origin(), Engine::Copy);
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
    }
    // It is as good as before.
    let sink = ring.attach(&folder.sink()?)?;
    ring.write_all(&lease, &sink, 0)?;
    assert!(folder.sunk()? == content);
    drop(lease);
    until_free(&mut ring, 4);
    Ok(())
}

/// More than a pipe holds.
fn copy_out_of_much(rig: &Rig) -> Outcome {
    let (folder, content) = (Folder::new()?, pattern(61, 300_000));
    let mut ring = rig.small().block_size(1 << 19).build()?;
    let source = ring.attach(&folder.source(&content)?)?;
    let fetched = ring.fetch(&source, 0, 1 << 19)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    let mut into = vec![0; 1 << 19];
    let there = lease.len() as usize;
    assert!(there > 65536, "{there}");
    assert_eq!(ring.copy_out(&lease, 0, &mut into)?, there);
    assert!(into[..there] == content[..there]);
    assert_eq!(ring.copy_out(&lease, 3, &mut into[..200_000])?, 200_000);
    assert!(into[..200_000] == content[3..200_003]);
    drop(lease);
    until_free(&mut ring, 4);
    Ok(())
}

fn copy_out_of_a_pipe(rig: &Rig) -> Outcome {
    let mut ring = rig.ring();
    let (reads, mut writes) = pipe()?;
    writes.write_all(b"GET / HTTP/1.1\r\n")?;
    let source = ring.attach(&reads)?;
    let fetched = ring.fetch(&source, STREAM, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a line");
    let mut head = [0; 3];
    assert_eq!(ring.copy_out(&lease, 0, &mut head)?, 3);
    assert_eq!(&head, b"GET");
    let mut rest = [0; 64];
    assert_eq!(ring.copy_out(&lease, 6, &mut rest)?, 10);
    assert_eq!(&rest[..10], b"HTTP/1.1\r\n");
    Ok(())
}

/// What completes while a look is waited for is there afterwards.
fn others_complete_meanwhile(rig: &Rig) -> Outcome {
    let (folder, content) = (Folder::new()?, pattern(62, 4096));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let (near, mut far) = tcp()?;
    let socket = ring.attach(&near)?;
    let (mut reads, writes) = pipe()?;
    let full = fill(&writes)?;
    let blocked = ring.attach(&writes)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    let stuck = ring.write(&lease, .., &blocked, STREAM)?;
    let waiting = ring.fetch(&socket, STREAM, 100)?;
    ring.submit()?;
    far.write_all(b"some")?;
    reads.read_exact(&mut vec![0; full])?;
    // Queued and not sent yet.
    let sent = ring.fetch(&source, 1000, 10)?;
    let mut head = [0; 64];
    for _ in 0..20 {
        assert_eq!(ring.copy_out(&lease, 0, &mut head)?, 64);
        assert!(head == content[..64]);
        thread::sleep(Duration::from_millis(1));
    }
    let (mut fetches, mut uses) = (Vec::new(), Vec::new());
    until(&mut ring, |event| {
        match event {
            Event::Fetched { lease, result } => fetches.push((*lease, *result)),
            Event::Used { id, result, .. } => uses.push((*id, *result)),
            event => assert!(is_quiet(event), "{event:?}"),
        }
        fetches.len() + uses.len() == 3
    });
    assert!(fetches.contains(&(waiting.id(), Ok(4))) && fetches.contains(&(sent.id(), Ok(10))));
    assert_eq!(uses, [(stuck, Ok(4096))]);
    let mut got = vec![0; 4096];
    reads.read_exact(&mut got)?;
    assert!(got == content);
    drop((lease, waiting, sent));
    until_free(&mut ring, 4);
    Ok(())
}

/// Somebody has emptied the ring's table. The look fails, or sees the right bytes.
fn foreign_unregistration(rig: &Rig) -> Outcome {
    let (folder, content) = (Folder::new()?, pattern(63, 4096));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    // SAFETY: the tables become empty, and nothing is put in their places.
    unsafe { ring.submitter() }.unregister_buffers()?;
    let mut head = [0; 64];
    match ring.copy_out(&lease, 0, &mut head) {
        Ok(64) => assert!(head == content[..64]),
        outcome => assert_eq!(outcome.expect_err("no bytes").kind(), ErrorKind::Ring),
    }
    Ok(())
}

fn wrong_ring(rig: &Rig) -> Outcome {
    let folder = Folder::new()?;
    let (mut ring, mut other) = (rig.ring(), rig.ring());
    let source = ring.attach(&folder.source(b"abc")?)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    let error = other.copy_out(&lease, 0, &mut [0]).expect_err("another ring's");
    assert_eq!(error.kind(), ErrorKind::WrongRing, "{error}");
    Ok(())
}

/// The content in a file, in a pipe that is fed, and in a pipe that does not wait.
fn sources(folder: &Folder, content: &[u8]) -> std::io::Result<[File; 3]> {
    let feed = || -> std::io::Result<PipeReader> {
        let (reads, writes) = pipe()?;
        writer(writes, content.to_vec());
        Ok(reads)
    };
    let impatient = feed()?;
    rustix::io::ioctl_fionbio(&impatient, true)?;
    let file = |pipe: PipeReader| File::from(std::os::fd::OwnedFd::from(pipe));
    Ok([folder.source(content)?, file(feed()?), file(impatient)])
}

fn passed(rig: &Rig) -> Outcome {
    let mut ring = rig.ring();
    for (len, look) in [(0, 10), (5, 10), (30_000, 10), (30_000, 10_000), (30_000, 0)] {
        let (folder, content) = (Folder::new()?, pattern(64, len));
        for source in sources(&folder, &content)? {
            let (sink, mut calls) = (folder.sink()?, 0);
            let relay = Relay::new(&source, &sink).inspect(look, |head| {
                calls += 1;
                // A stream gives a little at a time at first, and there are four leases.
                assert!(content.starts_with(head), "{len} {look}");
                assert!(head.len() >= len.min(look as usize).min(10), "{len} {look}");
                Verdict::Pass
            });
            let report = relay.run(&mut ring)?;
            assert_eq!((report.bytes, calls), (len as u64, 1));
            assert!(folder.sunk()? == content, "{len} {look}");
            until_free(&mut ring, 4);
        }
    }
    Ok(())
}

fn refused(rig: &Rig) -> Outcome {
    let mut ring = rig.ring();
    let (folder, content) = (Folder::new()?, pattern(65, 30_000));
    for source in sources(&folder, &content)? {
        let sink = folder.sink()?;
        let relay = Relay::new(&source, &sink).inspect(4, |_| Verdict::refuse("not this one"));
        let failure = relay.run(&mut ring).expect_err("it was refused");
        assert_eq!(failure.error.kind(), ErrorKind::Refused);
        assert!(failure.to_string().contains("not this one"), "{failure}");
        assert_eq!(failure.report.bytes, 0);
        assert!(folder.sunk()?.is_empty());
        let events = until_free(&mut ring, 4);
        assert!(events.iter().all(is_quiet), "{events:?}");
    }
    Ok(())
}

fn redirected(rig: &Rig) -> Outcome {
    let mut ring = rig.ring();
    let (folder, content) = (Folder::new()?, pattern(66, 30_000));
    for source in sources(&folder, &content)? {
        let (sink, (reads, writes)) = (folder.sink()?, pipe()?);
        let got = reader(reads);
        let relay = Relay::new(&source, &sink).inspect(4, |head| {
            assert_eq!(head, &content[..4]);
            Verdict::redirect(writes)
        });
        assert_eq!(relay.run(&mut ring)?.bytes, 30_000);
        assert!(got.join().expect("a reader") == content);
        assert!(folder.sunk()?.is_empty());
        until_free(&mut ring, 4);
    }
    Ok(())
}

fn trimmed(rig: &Rig) -> Outcome {
    let mut ring = rig.ring();
    let (folder, content) = (Folder::new()?, pattern(67, 30_000));
    for (skip, limit) in [(0, 7), (4, 20_000), (7, u64::MAX), (8, 0), (3, 5)] {
        let want = &content[skip as usize..][..limit.min(30_000 - u64::from(skip)) as usize];
        for source in sources(&folder, &content)? {
            let sink = folder.sink()?;
            let relay = Relay::new(&source, &sink)
                .sink_offset(2)
                .inspect(8, |_| Verdict::Trim { skip, limit });
            assert_eq!(relay.run(&mut ring)?.bytes, want.len() as u64, "{skip} {limit}");
            assert!(folder.sunk()?.get(2..).unwrap_or_default() == want, "{skip} {limit}");
            until_free(&mut ring, 4);
        }
    }
    Ok(())
}

/// A stream may give less at a time than the inspector wants.
fn header_in_pieces(rig: &Rig) -> Outcome {
    let mut ring = rig.ring();
    let (near, mut far) = tcp()?;
    let feeder = thread::spawn(move || {
        far.set_nodelay(true)?;
        for piece in ["he", "ad", "er\nbody"] {
            far.write_all(piece.as_bytes())?;
            thread::sleep(Duration::from_millis(20));
        }
        std::io::Result::Ok(())
    });
    let folder = Folder::new()?;
    let sink = folder.sink()?;
    let relay = Relay::new(&near, &sink).inspect(7, |head| {
        assert_eq!(head, b"header\n");
        Verdict::Trim { skip: 7, limit: u64::MAX }
    });
    assert_eq!(relay.run(&mut ring)?.bytes, 4);
    feeder.join().expect("the feeder")?;
    assert_eq!(folder.sunk()?, b"body");
    Ok(())
}

fn cancelled_before_a_byte(rig: &Rig) -> Outcome {
    let mut ring = rig.ring();
    for waits in [true, false] {
        let (reads, _writes) = pipe()?;
        rustix::io::ioctl_fionbio(&reads, !waits)?;
        let folder = Folder::new()?;
        let (sink, canceller) = (folder.sink()?, Canceller::new());
        let other = canceller.clone();
        let thread = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            other.cancel();
        });
        let relay = Relay::new(&reads, &sink).canceller(&canceller);
        let failure = relay.inspect(4, |_| Verdict::Pass).run(&mut ring).expect_err("cancelled");
        thread.join().expect("the canceller");
        assert_eq!(failure.error.kind(), ErrorKind::Cancelled, "{failure}");
        let events = until_free(&mut ring, 4);
        assert!(events.iter().all(is_quiet), "{events:?}");
    }
    Ok(())
}

fn cut_too_much(rig: &Rig) -> Outcome {
    let mut ring = rig.ring();
    let folder = Folder::new()?;
    let (source, sink) = (folder.source(b"abc")?, folder.sink()?);
    let relay = Relay::new(&source, &sink);
    let relay = relay.inspect(8, |_| Verdict::Trim { skip: 4, limit: 1 });
    let failure = relay.run(&mut ring).expect_err("there are three bytes");
    assert_eq!(failure.error.kind(), ErrorKind::InvalidInput, "{failure}");
    until_free(&mut ring, 4);
    Ok(())
}

fn direct(rig: &Rig) -> Outcome {
    use std::os::unix::fs::OpenOptionsExt;
    let mut ring = rig.ring();
    let (folder, content) = (Folder::new()?, pattern(68, 9 * 4096 + 777));
    drop(folder.source(&content)?);
    let mut options = File::options();
    let options = options.read(true).custom_flags(libc::O_DIRECT);
    let Ok(source) = options.open(folder.path("source")) else {
        return getbuf_tests::skip("the file system has no O_DIRECT");
    };
    let sink = folder.sink()?;
    let relay = Relay::new(&source, &sink).inspect(16, |head| {
        assert_eq!(head, &content[..16]);
        Verdict::Pass
    });
    assert_eq!(relay.run(&mut ring)?.bytes, content.len() as u64);
    assert!(folder.sunk()? == content);
    Ok(())
}
