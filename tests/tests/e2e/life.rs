// SPDX-License-Identifier: MIT OR Apache-2.0
//! What outlives what: leases, rings and registrations that go in the wrong order.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use getbuf_tests::{
    Folder, Rig, Verdict, fill, pattern, reader, tcp, until, until_free, until_issued,
};
use uring_getbuf::chain::ChainOutcome;
use uring_getbuf::engine::Engine;
use uring_getbuf::relay::Relay;
use uring_getbuf::slots::Event;
use uring_getbuf::{Pool, STREAM, SendFlags};

use crate::Case;

pub(crate) const CENTRAL: &[Case] = &[
    ("ring_dropped_with_leases", ring_dropped_with_leases),
    ("ring_dropped_with_blocked_requests", ring_dropped_with_blocked_requests),
    ("ring_dropped_with_queued_requests", ring_dropped_with_queued_requests),
    ("ring_dropped_but_not_its_descriptor", ring_dropped_but_not_its_descriptor),
    ("foreign_unregister_buffers", foreign_unregister_buffers),
    ("foreign_unregister_files", foreign_unregister_files),
];

pub(crate) const CASES: &[Case] = &[
    ("forget", forget),
    ("panic_in_callback", panic_in_callback),
    ("panic_with_a_full_ring", panic_with_a_full_ring),
    ("two_rings_at_once", two_rings_at_once),
    ("more_rings_than_a_thread_can_register", more_rings_than_a_thread_can_register),
    ("attached_outlives_its_descriptor", attached_outlives_its_descriptor),
];

fn ring_dropped_with_leases(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&pattern(1, 4096))?)?;
    let first = ring.fetch(&source, 0, 4096)?;
    let installed = ring.wait_installed(first)?.expect("a block");
    let fetched = ring.fetch(&source, 0, 4096)?;
    let other = ring.fetch(&source, 0, 4096)?;
    let other = ring.wait_installed(other)?.expect("a block");
    let released = other.release();
    drop(ring);
    assert_eq!(installed.len(), 4096);
    let _ = (installed.uses(), released.is_over(), fetched.is_pending());
    drop((released, source));
    let _ = fetched.installed();
    let _ = installed.release();
    Ok(())
}

/// A send and a write that wait for a peer which never reads, a read that waits for a peer which
/// never writes: the drop does not wait for them for ever, and the peers see the end.
fn ring_dropped_with_blocked_requests(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&pattern(2, 4096))?)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    let (near, far) = UnixStream::pair()?;
    let full = fill(&near)?;
    let socket = ring.attach(&near)?;
    let (mut from, to) = pipe()?;
    let full_pipe = fill(&to)?;
    let sink = ring.attach(&to)?;
    let (empty, mut writer) = pipe()?;
    let silent = ring.attach(&empty)?;
    let _ = ring.send(&lease, .., &socket, SendFlags::WAIT_ALL)?;
    let _ = ring.write(&lease, .., &sink, STREAM)?;
    let waiting = ring.fetch(&silent, STREAM, 4096)?;
    let chained = ring.chain_write(&silent, STREAM, 4096, &sink, STREAM)?;
    let _ = chained;
    ring.submit()?;
    drop((near, to, empty));
    let begin = Instant::now();
    drop(ring);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    drop((lease, waiting, socket, sink, silent));
    // The ring has let go of its files: what was full has an end now, and nothing was added.
    let got = reader(far).join().expect("the peer");
    assert_eq!(got.len(), full);
    let mut got = Vec::new();
    from.read_to_end(&mut got)?;
    assert_eq!(got.len(), full_pipe);
    let mut closed = Err(std::io::ErrorKind::TimedOut.into());
    for _ in 0..200 {
        closed = writer.write_all(b"x");
        if closed.is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(closed.expect_err("nobody reads").kind(), std::io::ErrorKind::BrokenPipe);
    Ok(())
}

/// Who has duplicated the ring's descriptor keeps the kernel from ending the requests: the drop
/// must have done so, or they would go on, from memory that is not the pool's any more.
fn ring_dropped_but_not_its_descriptor(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&pattern(10, 4096))?)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    let (near, mut far) = UnixStream::pair()?;
    let full = fill(&near)?;
    let socket = ring.attach(&near)?;
    let (mut from, to) = pipe()?;
    let full_pipe = fill(&to)?;
    let sink = ring.attach(&to)?;
    let (empty, mut writer) = pipe()?;
    let silent = ring.attach(&empty)?;
    let _ = ring.send(&lease, .., &socket, SendFlags::WAIT_ALL)?;
    let _ = ring.write(&lease, .., &sink, STREAM)?;
    let waiting = ring.fetch(&silent, STREAM, 4096)?;
    ring.submit()?;
    ring.wait_timeout(1, Duration::from_millis(20))?;
    let kept = ring.as_fd().try_clone_to_owned()?;
    drop(ring);
    drop((lease, waiting));
    // Very likely where the pool was.
    let poison = Pool::new(4, 4096)?;
    far.read_exact(&mut vec![0; full])?;
    from.read_exact(&mut vec![0; full_pipe])?;
    writer.write_all(b"x")?;
    std::thread::sleep(Duration::from_millis(20));
    far.set_nonblocking(true)?;
    rustix::io::ioctl_fionbio(&from, true)?;
    rustix::io::ioctl_fionbio(&empty, true)?;
    let mut room = [0; 16];
    for (what, got) in [("send", far.read(&mut room)), ("write", from.read(&mut room))] {
        let error = got.expect_err("it was cancelled");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{what}");
    }
    assert_eq!((&empty).read(&mut room)?, 1, "the fetch was cancelled");
    drop((kept, poison));
    Ok(())
}

fn ring_dropped_with_queued_requests(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let file = folder.source(&pattern(3, 4096))?;
    let source = ring.attach(&file)?;
    let (near, _far) = tcp()?;
    fill(&near)?;
    let sink = ring.attach(&near)?;
    let lease = ring.fetch(&source, 0, 4096)?;
    let chain = ring.chain_send(&source, 0, 4096, &sink, SendFlags::NONE)?;
    let _ = chain;
    ring.cancel(&sink)?;
    ring.poll_readable(&sink, 3)?;
    drop(ring);
    drop(lease);
    Ok(())
}

fn foreign_unregister_buffers(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(4, 4096));
    let mut ring = rig.ring();
    let file = File::options().read(true).write(true).open({
        drop(folder.source(&content)?);
        folder.path("source")
    })?;
    let source = ring.attach(&file)?;
    let sink = ring.attach(&folder.sink()?)?;
    let (silent, mut wakes) = pipe()?;
    let silent = ring.attach(&silent)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    let waiting = ring.fetch(&silent, STREAM, 4096)?;
    let waiting_id = waiting.id();
    until_issued(&mut ring, &sink);
    // SAFETY: the tables become empty, and nothing is put in their places.
    unsafe { ring.submitter() }.unregister_buffers()?;
    // Under a lease: the table is empty, a request that looks it up fails.
    let error = ring.write_all(&lease, &sink, 0).expect_err("no buffer");
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "{error}");
    let write = ring.writev(&lease, &[0..10, 20..30], &sink, 0)?;
    assert_eq!(ring.wait_used(write).expect_err("no buffer").raw_os_error(), Some(libc::EFAULT));
    let chain = ring.chain_write(&source, 0, 4096, &sink, 0)?;
    assert!(matches!(
        ring.wait_chain(chain)?,
        ChainOutcome::FetchFailed(_) | ChainOutcome::UseFailed(_)
    ));
    // What was in flight keeps its buffer, and ends as ever.
    wakes.write_all(b"awake")?;
    // The pool's block is pinned for it; kernel memory finds no slot any more.
    until(&mut ring, |event| {
        let Event::Fetched { lease, result } = event else { return false };
        *lease == waiting_id && (*result == Ok(5) || rig.engine != Engine::Copy)
    });
    drop((waiting.installed(), lease));
    until_free(&mut ring, 4);
    let failed = Relay::new(&file, &folder.sink()?).run(&mut ring);
    assert!(failed.is_err() || folder.sunk()? == content);
    assert_eq!(std::fs::read(folder.path("source"))?, content, "the source is as it was");
    drop(ring);
    assert_eq!(std::fs::read(folder.path("source"))?, content);
    Ok(())
}

fn foreign_unregister_files(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(5, 4096));
    let mut ring = rig.ring();
    let file = folder.source(&content)?;
    let source = ring.attach(&file)?;
    let sink = ring.attach(&folder.sink()?)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    let (from, to) = pipe()?;
    fill(&to)?;
    let full = ring.attach(&to)?;
    let blocked = ring.write(&lease, .., &full, STREAM)?;
    until_issued(&mut ring, &sink);
    // SAFETY: the tables become empty, and nothing is put in their places.
    unsafe { ring.submitter() }.unregister_files()?;
    let error = ring.write_all(&lease, &sink, 0).expect_err("no file");
    assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{error}");
    let fetched = ring.fetch(&source, 0, 1)?;
    let error = ring.wait_installed(fetched).expect_err("no file");
    assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{error}");
    assert!(ring.attach(&file).is_err(), "there is no table");
    drop(to);
    let peer = reader(from);
    assert_eq!(ring.wait_used(blocked)?, 4096, "it had its file");
    drop((lease, source, sink, full));
    until_free(&mut ring, 4);
    drop(ring);
    let _ = peer.join();
    assert_eq!(std::fs::read(folder.path("source"))?, content);
    assert_eq!(folder.sunk()?, b"");
    Ok(())
}

fn forget(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(6, 4 * 4096));
    let mut ring = rig.ring();
    let file = folder.source(&content)?;
    let source = ring.attach(&file)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    getbuf_tests::forget(ring.wait_installed(fetched)?.expect("a block"));
    let fetched = ring.fetch(&source, 0, 4096)?;
    getbuf_tests::forget(fetched);
    let _ = until_free(&mut ring, 2);
    assert_eq!(ring.free(), 2, "two slots are lost");
    assert_eq!(Relay::new(&file, &folder.sink()?).run(&mut ring)?.bytes, 4 * 4096);
    assert_eq!(folder.sunk()?, content);
    assert_eq!(ring.free(), 2, "and no more");
    getbuf_tests::forget(source);
    drop(ring);
    Ok(())
}

fn panic_in_callback(rig: &Rig) -> Verdict {
    let content = pattern(7, 40 * 4096 + 1);
    for to_pipe in [false, true] {
        let folder = Folder::new()?;
        let mut ring = rig.ring();
        let file = folder.source(&content)?;
        let sink = folder.sink()?;
        let (from, to) = pipe()?;
        let peer = reader(from);
        let mut calls = 0;
        let relay = if to_pipe { Relay::new(&file, &to) } else { Relay::new(&file, &sink) };
        let relay = relay.on_progress(move |_| {
            calls += 1;
            if calls == 3 {
                // As a panic, but without its message on the terminal.
                std::panic::resume_unwind(Box::new("of the callback"));
            }
        });
        let run = std::panic::AssertUnwindSafe(|| relay.run(&mut ring));
        assert!(std::panic::catch_unwind(run).is_err());
        until_free(&mut ring, 4);
        drop(to);
        let _ = peer.join();
        let again = folder.path("again");
        Relay::new(&file, &File::create(&again)?).run(&mut ring)?;
        assert_eq!(std::fs::read(again)?, content);
        until_free(&mut ring, 4);
        let source = ring.attach(&file)?;
        let fetched = ring.fetch(&source, 0, 4096)?;
        assert_eq!(ring.wait_installed(fetched)?.expect("a block").len(), 4096);
    }
    Ok(())
}

/// The next relay begins while requests of the one that panicked are still in flight.
fn panic_with_a_full_ring(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(8, 100 * 4096));
    let mut ring = rig.ring();
    let file = folder.source(&content)?;
    for round in 0..5 {
        let sink = folder.sink()?;
        let relay = Relay::new(&file, &sink);
        let relay = relay.on_progress(|_| std::panic::resume_unwind(Box::new("early")));
        let run = std::panic::AssertUnwindSafe(|| relay.run(&mut ring));
        assert!(std::panic::catch_unwind(run).is_err());
        let again = folder.path("again");
        while ring.free() == 0 {
            ring.wait(1)?;
            while ring.next_event().is_some() {}
        }
        let report = Relay::new(&file, &File::create(&again)?).run(&mut ring)?;
        assert_eq!(report.bytes, content.len() as u64, "round {round}");
        assert_eq!(std::fs::read(again)?, content, "round {round}");
    }
    Ok(())
}

fn two_rings_at_once(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(9, 4096));
    let file = folder.source(&content)?;
    let (mut one, mut two) = (rig.ring(), rig.ring());
    let (from_one, from_two) = (one.attach(&file)?, two.attach(&file)?);
    let (first, second) = (one.fetch(&from_one, 0, 4096)?, two.fetch(&from_two, 0, 100)?);
    let second = two.wait_installed(second)?.expect("100 bytes");
    let first = one.wait_installed(first)?.expect("a block");
    assert_eq!((first.len(), second.len()), (4096, 100));
    drop(two);
    let sink = one.attach(&folder.sink()?)?;
    one.write_all(&first, &sink, 0)?;
    assert_eq!(folder.sunk()?, content);
    Ok(())
}

/// A thread of the kernel's knows 16 rings by a number of its own. The others work as well, and
/// nothing keeps one that is gone.
fn more_rings_than_a_thread_can_register(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let file = folder.source(&pattern(12, 100))?;
    for _ in 0..2 {
        let mut rings = Vec::new();
        let mut ends = Vec::new();
        for _ in 0..20 {
            let mut ring = rig.small().slots(1).build()?;
            let source = ring.attach(&file)?;
            let (from, to) = pipe()?;
            let sink = ring.attach(&to)?;
            let fetched = ring.fetch(&source, 0, 100)?;
            let lease = ring.wait_installed(fetched)?.expect("100 bytes");
            ring.write_all(&lease, &sink, STREAM)?;
            ends.push(from);
            rings.push((ring, source, sink, lease));
        }
        drop(rings);
        for mut end in ends {
            // The end comes when the ring's own reference is gone.
            let mut bytes = Vec::new();
            end.read_to_end(&mut bytes)?;
            assert_eq!(bytes, pattern(12, 100));
        }
    }
    Ok(())
}

fn attached_outlives_its_descriptor(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let (from, mut to) = pipe()?;
    let source = ring.attach(&from)?;
    let fetched = ring.fetch(&source, STREAM, 100)?;
    ring.submit()?;
    drop((from, source));
    // The number is free, and another file gets it.
    let _other = folder.source(b"not this")?;
    to.write_all(b"this")?;
    let lease = ring.wait_installed(fetched)?.expect("4 bytes");
    assert_eq!(lease.len(), 4);
    let sink = ring.attach(&folder.sink()?)?;
    ring.write_all(&lease, &sink, 0)?;
    assert_eq!(folder.sunk()?, b"this");
    // Detached with its last request: the writer is told.
    ring.submit()?;
    assert_eq!(to.write(b"x").expect_err("detached").kind(), std::io::ErrorKind::BrokenPipe);
    Ok(())
}
