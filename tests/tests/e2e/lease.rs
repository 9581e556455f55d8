// SPDX-License-Identifier: MIT OR Apache-2.0
//! One lease at a time: fetch, consume, release, and what is refused.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use getbuf_tests::{
    Folder, Rig, Verdict, fill, is_quiet, pattern, reader, skip, tcp, until, until_free,
};
use io_uring::opcode::{Nop, PollAdd};
use io_uring::types::Fd;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use uring_getbuf::engine::Engine;
use uring_getbuf::ring::{Attached, Setup};
use uring_getbuf::slots::{DEFAULT_TAG, Event};
use uring_getbuf::{ErrorKind, STREAM, SendFlags};

use crate::Case;

/// With every ring setup.
pub(crate) const CENTRAL: &[Case] = &[
    ("fetch_and_write", fetch_and_write),
    ("short_fetch_and_end_of_file", short_fetch_and_end_of_file),
    ("writev", writev),
    ("send", send),
    ("send_zc", send_zc),
    ("release_while_in_use", release_while_in_use),
    ("drop_while_fetching", drop_while_fetching),
    ("drop_while_used", drop_while_used),
    ("cancel", cancel),
    ("wait_timeout", wait_timeout),
    ("what_was_taken_does_not_count", what_was_taken_does_not_count),
    ("epoll", from_epoll),
    ("foreign_requests", foreign_requests),
    ("many_fetches_then_waits", many_fetches_then_waits),
];

pub(crate) const CASES: &[Case] = &[
    ("lengths_that_make_no_sense", lengths_that_make_no_sense),
    ("ranges_outside", ranges_outside),
    ("more_uses_than_sequence_numbers", more_uses_than_sequence_numbers),
    ("send_zc_on_unix_socket", send_zc_on_unix_socket),
    ("every_slot_taken", every_slot_taken),
    ("every_file_taken", every_file_taken),
    ("wrong_ring", wrong_ring),
    ("detach_in_flight", detach_in_flight),
    ("detach_in_use", detach_in_use),
    ("write_all_to_a_full_pipe", write_all_to_a_full_pipe),
    ("source_that_fails", source_that_fails),
    ("sink_that_fails", sink_that_fails),
    ("direct", direct),
    ("pipe_falls_back", pipe_falls_back),
    ("do_not_wait", do_not_wait),
    ("cancel_then_detach", cancel_then_detach),
    ("cancel_hits_no_other_file", cancel_hits_no_other_file),
];

fn fetch_and_write(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(1, 5 * 4096 + 17));
    let mut ring = rig.ring();
    assert_eq!(ring.engine(), rig.engine);
    let source = ring.attach(&folder.source(&content)?)?;
    let sink = ring.attach(&folder.sink()?)?;
    let mut offset = 0;
    loop {
        let fetched = ring.fetch(&source, offset, 4096)?;
        let Some(lease) = ring.wait_installed(fetched)? else { break };
        if rig.engine == Engine::Copy {
            assert_eq!(lease.origin(), Engine::Copy);
        }
        // In two pieces that are in flight together, the second one first.
        let half = lease.len() / 2;
        let second = ring.write(&lease, half.., &sink, offset + u64::from(half))?;
        let first = ring.write(&lease, ..half, &sink, offset)?;
        assert_eq!(lease.uses(), 2);
        assert_eq!(ring.wait_used(first)?, half);
        assert_eq!(ring.wait_used(second)?, lease.len() - half);
        assert_eq!(lease.uses(), 0);
        offset += u64::from(lease.len());
        ring.release(lease);
    }
    until_free(&mut ring, 4);
    assert_eq!(folder.sunk()?, content);
    Ok(())
}

fn short_fetch_and_end_of_file(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(2, 100));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let fetched = ring.fetch(&source, 40, 4096)?;
    assert!(fetched.is_pending());
    let lease = ring.wait_installed(fetched)?.expect("60 bytes are there");
    assert_eq!(lease.len(), 60);
    let sink = ring.attach(&folder.sink()?)?;
    ring.write_all(&lease, &sink, 7)?;
    assert_eq!(folder.sunk()?[7..], content[40..]);
    for offset in [100, 101, 1 << 40] {
        let fetched = ring.fetch(&source, offset, 1)?;
        assert!(ring.wait_installed(fetched)?.is_none(), "nothing at {offset}");
    }
    assert_eq!(lease.len(), 60, "other fetches do not touch it");
    drop(lease);
    until_free(&mut ring, 4);
    Ok(())
}

fn lengths_that_make_no_sense(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(b"x")?)?;
    for len in [0, 4097, u32::MAX] {
        let error = ring.fetch(&source, 0, len).expect_err("nonsense");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(&len.to_string()), "{error}");
    }
    assert_eq!(ring.free(), 4);
    Ok(())
}

fn ranges_outside(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&pattern(3, 10))?)?;
    let sink = ring.attach(&folder.sink()?)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("10 bytes");
    let refused = |outcome: uring_getbuf::Result<_>| {
        let error = outcome.map(|_| ()).expect_err("outside");
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
    };
    refused(ring.write(&lease, ..11, &sink, 0));
    refused(ring.write(&lease, ..=10, &sink, 0));
    refused(ring.write(&lease, 10.., &sink, 0));
    refused(ring.write(&lease, 5..5, &sink, 0));
    refused(ring.write(&lease, ..=u32::MAX, &sink, 0));
    #[expect(clippy::reversed_empty_ranges, reason = "it is to be refused")]
    refused(ring.write(&lease, 6..5, &sink, 0));
    refused(ring.send(&lease, 4096.., &sink, SendFlags::NONE));
    refused(ring.writev(&lease, &[0..1, 9..11], &sink, 0));
    assert_eq!(lease.uses(), 0);
    let error = ring.writev(&lease, &[], &sink, 0).expect_err("no range");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let error = ring.writev(&lease, &[const { 0..1 }; 9], &sink, 0).expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let written = ring.write(&lease, 9..=9, &sink, 0)?;
    assert_eq!(ring.wait_used(written)?, 1);
    assert_eq!(folder.sunk()?, pattern(3, 10)[9..]);
    Ok(())
}

fn writev(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(4, 4096));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let (mut from, to) = pipe()?;
    let size = fill(&to)?;
    let sink = ring.attach(&to)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    // The pipe is full, so the first one stays in flight.
    let first = ring.writev(&lease, &[100..200, 0..10, 4000..4096], &sink, STREAM)?;
    ring.submit()?;
    let error = ring.writev(&lease, &[const { 0..1 }], &sink, STREAM).expect_err("one at a time");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    from.read_exact(&mut vec![0; size])?;
    assert_eq!(ring.wait_used(first)?, 206);
    let second = ring.writev(&lease, &[const { 1..2 }; 8], &sink, STREAM)?;
    assert_eq!(ring.wait_used(second)?, 8);
    let mut got = [0; 214];
    from.read_exact(&mut got)?;
    assert_eq!(got[..100], content[100..200]);
    assert_eq!(got[100..110], content[..10]);
    assert_eq!(got[110..206], content[4000..]);
    assert_eq!(got[206..], [content[1]; 8]);
    Ok(())
}

fn send(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(5, 3 * 4096));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    for unix in [false, true] {
        let (near, peer): (Attached, _) = if unix {
            let (near, far) = UnixStream::pair()?;
            (ring.attach(&near)?, reader(far))
        } else {
            let (near, far) = tcp()?;
            (ring.attach(&near)?, reader(far))
        };
        for block in 0..3 {
            let fetched = ring.fetch(&source, block * 4096, 4096)?;
            let lease = ring.wait_installed(fetched)?.expect("a block");
            let sent = ring.send(&lease, ..4000, &near, SendFlags::WAIT_ALL)?;
            let rest = ring.send(&lease, 4000.., &near, SendFlags::NONE);
            assert_eq!(ring.wait_used(sent)?, 4000);
            assert_eq!(ring.wait_used(rest?)?, 96);
        }
        drop(near);
        ring.submit()?;
        assert_eq!(peer.join().expect("the peer"), content);
    }
    Ok(())
}

fn send_zc(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(6, 3 * 4096));
    let mut ring = rig.ring();
    if !ring.support().features().send_zc {
        return skip("this kernel has no SEND_ZC");
    }
    let source = ring.attach(&folder.source(&content)?)?;
    let (near, far) = tcp()?;
    let sink = ring.attach(&near)?;
    drop(near);
    let peer = reader(far);
    for block in 0..3 {
        let fetched = ring.fetch(&source, block * 4096, 4096)?;
        let lease = ring.wait_installed(fetched)?.expect("a block");
        let sent = ring.send_zc(&lease, .., &sink, SendFlags::WAIT_ALL)?;
        assert_eq!(ring.wait_used(sent)?, 4096);
        until(&mut ring, |event| *event == Event::Returned { id: sent });
        assert_eq!(lease.uses(), 0);
        drop(lease);
        until_free(&mut ring, 4);
    }
    drop(sink);
    ring.submit()?;
    assert_eq!(peer.join().expect("the peer"), content);
    Ok(())
}

fn send_zc_on_unix_socket(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    if !ring.support().features().send_zc {
        return skip("this kernel has no SEND_ZC");
    }
    let source = ring.attach(&folder.source(&pattern(7, 4096))?)?;
    let (near, _far) = UnixStream::pair()?;
    let sink = ring.attach(&near)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    let sent = ring.send_zc(&lease, .., &sink, SendFlags::NONE)?;
    let error = ring.wait_used(sent).expect_err("AF_UNIX cannot");
    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{error}");
    assert_eq!(error.kind(), ErrorKind::Sink);
    // The notification comes all the same, and until then the lease is in use.
    until(&mut ring, |event| *event == Event::Returned { id: sent });
    assert_eq!(lease.uses(), 0);
    drop(lease);
    until_free(&mut ring, 4);
    Ok(())
}

/// A pipe that is full, its capacity, and a lease of `content` with a write of it in flight.
fn release_while_in_use(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(8, 8192));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let (mut from, to) = pipe()?;
    let size = fill(&to)?;
    let sink = ring.attach(&to)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    let written = ring.write(&lease, .., &sink, STREAM)?;
    ring.submit()?;
    let released = lease.release();
    // Others come and go in the other slots, and one of them may not get the block in use.
    for _ in 0..8 {
        // A kernel thread may take its time to empty the slots.
        assert!(until_free(&mut ring, 1).iter().all(is_quiet));
        let fetched = ring.fetch(&source, 4096, 4096)?;
        assert_ne!(fetched.id().slot(), released.id().slot());
        drop(ring.wait_installed(fetched)?);
    }
    assert!(!released.is_over());
    assert!(until_free(&mut ring, 3).iter().all(is_quiet));
    assert_eq!(ring.free(), 3);
    from.read_exact(&mut vec![0; size])?;
    assert_eq!(ring.wait_used(written)?, 4096);
    let mut got = vec![0; 4096];
    from.read_exact(&mut got)?;
    assert_eq!(got, content[..4096]);
    until_free(&mut ring, 4);
    assert!(released.is_over());
    Ok(())
}

fn drop_while_fetching(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (from, mut to) = pipe()?;
    let source = ring.attach(&from)?;
    let fetched = ring.fetch(&source, STREAM, 4096)?;
    let id = fetched.id();
    ring.submit()?;
    drop(fetched);
    ring.wait_timeout(1, Duration::from_millis(20))?;
    while ring.next_event().is_some() {}
    assert_eq!(ring.free(), 3, "the kernel may still write into the block");
    to.write_all(b"late")?;
    let events = until_free(&mut ring, 4);
    assert!(events.contains(&Event::Fetched { lease: id, result: Ok(4) }), "{events:?}");
    Ok(())
}

fn drop_while_used(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(9, 4 * 4096));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let (from, to) = pipe()?;
    fill(&to)?;
    let sink = ring.attach(&to)?;
    for block in 0..4 {
        let fetched = ring.fetch(&source, block * 4096, 4096)?;
        let lease = ring.wait_installed(fetched)?.expect("a block");
        let _ = ring.write(&lease, .., &sink, STREAM)?;
        ring.submit()?;
    }
    // Every lease is dropped, and every block is in use: nothing else gets one.
    ring.wait_timeout(1, Duration::from_millis(20))?;
    assert_eq!(ring.free(), 0);
    let error = ring.fetch(&source, 0, 1).expect_err("no slot");
    assert_eq!(error.kind(), ErrorKind::NoSlot);
    drop(to);
    drop(sink);
    let peer = reader(from);
    until_free(&mut ring, 4);
    ring.submit()?;
    let got = peer.join().expect("the peer");
    // Writes to a pipe that were waiting together may come in any order, but each is whole or, at
    // a page, cut: every byte must be of its block, and none of a later lease's.
    assert_eq!(got[got.len() - 4 * 4096..].len(), 4 * 4096);
    let mut blocks: Vec<_> = got[got.len() - 4 * 4096..].chunks(4096).collect();
    let mut want: Vec<_> = content.chunks(4096).collect();
    blocks.sort_unstable();
    want.sort_unstable();
    assert_eq!(blocks, want);
    Ok(())
}

fn more_uses_than_sequence_numbers(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&pattern(10, 64))?)?;
    let (from, to) = pipe()?;
    let full = fill(&to)?;
    let sink = ring.attach(&to)?;
    let fetched = ring.fetch(&source, 0, 64)?;
    let lease = ring.wait_installed(fetched)?.expect("64 bytes");
    let mut ids = Vec::new();
    let refused = loop {
        match ring.write(&lease, ..1, &sink, STREAM) {
            Ok(id) if ids.len() < 300 => ids.push(id),
            Ok(_) => break None,
            Err(error) => break Some(error),
        }
        ring.submit()?;
    };
    let mut names = ids.clone();
    names.sort_unstable_by_key(|id| format!("{id:?}"));
    names.dedup();
    assert_eq!(names.len(), ids.len(), "two requests in flight have one name");
    if let Some(error) = refused {
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    }
    drop((to, sink));
    let peer = reader(from);
    for id in &ids {
        assert_eq!(ring.wait_used(*id)?, 1);
    }
    assert_eq!(lease.uses(), 0);
    ring.submit()?;
    assert_eq!(peer.join().expect("the peer").len(), full + ids.len());
    Ok(())
}

fn every_slot_taken(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&pattern(11, 4096))?)?;
    let leases: Vec<_> = (0..4).map(|_| ring.fetch(&source, 0, 4096)).collect::<Result<_, _>>()?;
    let error = ring.fetch(&source, 0, 1).expect_err("four slots");
    assert_eq!(error.kind(), ErrorKind::NoSlot);
    assert!(error.to_string().contains('4'), "{error}");
    let error = ring.chain_write(&source, 0, 1, &source, 0).expect_err("four slots");
    assert_eq!(error.kind(), ErrorKind::NoSlot);
    let mut installed = Vec::new();
    for lease in leases {
        installed.extend(ring.wait_installed(lease)?);
    }
    assert_eq!(installed.len(), 4);
    installed.pop();
    until_free(&mut ring, 1);
    let fetched = ring.fetch(&source, 0, 1)?;
    assert!(ring.wait_installed(fetched)?.is_some());
    Ok(())
}

fn every_file_taken(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let file = folder.source(b"content")?;
    let mut ring = rig.small().files(2).build()?;
    let one = ring.attach(&file)?;
    let two = ring.attach(&file)?;
    assert_ne!(one.index(), two.index());
    let error = ring.attach(&file).expect_err("two places");
    assert_eq!(error.kind(), ErrorKind::NoFile, "{error}");
    drop(one);
    let again = ring.attach(&file)?;
    let fetched = ring.fetch(&again, 0, 100)?;
    assert_eq!(ring.wait_installed(fetched)?.expect("7 bytes").len(), 7);
    let mut none = rig.small().files(0).build()?;
    assert_eq!(none.attach(&file).expect_err("no place").kind(), ErrorKind::NoFile);
    Ok(())
}

fn wrong_ring(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let file = folder.source(&pattern(12, 4096))?;
    let (mut here, mut there) = (rig.ring(), rig.ring());
    let (mine, other) = (here.attach(&file)?, there.attach(&file)?);
    let sink = there.attach(&folder.sink()?)?;
    let wrong = |error: uring_getbuf::Error| {
        assert_eq!(error.kind(), ErrorKind::WrongRing, "{error}");
    };
    wrong(here.fetch(&other, 0, 1).expect_err("the file"));
    wrong(here.chain_write(&mine, 0, 1, &sink, 0).expect_err("the sink"));
    wrong(here.poll_readable(&other, 0).expect_err("the file"));
    wrong(here.cancel(&other).expect_err("the file"));
    let fetched = here.fetch(&mine, 0, 4096)?;
    let lease = here.wait_installed(fetched)?.expect("a block");
    wrong(there.write(&lease, .., &sink, 0).expect_err("the lease"));
    wrong(there.writev(&lease, &[const { 0..1 }], &sink, 0).expect_err("the lease"));
    wrong(here.write(&lease, .., &sink, 0).expect_err("the sink"));
    assert_eq!(lease.uses(), 0);
    assert_eq!((here.free(), there.free()), (3, 4));
    let fetched = here.fetch(&mine, 0, 4096)?;
    wrong(there.wait_installed(fetched).expect_err("the lease"));
    until_free(&mut here, 3);
    assert_eq!(folder.sunk()?, b"");
    Ok(())
}

/// A place is not given to another file while a request names it, even where the request is linked
/// or waits.
fn detach_in_flight(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(13, 4096));
    let mut ring = rig.small().files(2).build()?;
    let source = ring.attach(&folder.source(&content)?)?;
    let (mut from, to) = pipe()?;
    let size = fill(&to)?;
    let sink = ring.attach(&to)?;
    let chain = ring.chain_write(&source, 0, 4096, &sink, STREAM)?;
    drop((source, sink));
    let other = folder.sink()?;
    // The module engine has places for what is bound.
    let spare = if rig.engine == Engine::Module { 3 } else { 0 };
    let others: Vec<_> = (0..spare).map_while(|_| ring.attach(&other).ok()).collect();
    for _ in 0..3 {
        ring.wait_timeout(1, Duration::from_millis(5))?;
        let error = ring.attach(&other).expect_err("two places are named by the chain");
        assert_eq!(error.kind(), ErrorKind::NoFile);
    }
    from.read_exact(&mut vec![0; size])?;
    assert_eq!(ring.wait_chain(chain)?.moved(), 4096);
    let one = ring.attach(&other)?;
    let two = ring.attach(&other)?;
    assert_ne!(one.index(), two.index());
    drop(others);
    let mut got = vec![0; 4096];
    from.read_exact(&mut got)?;
    assert_eq!(got, content);
    assert_eq!(folder.sunk()?, b"");
    Ok(())
}

/// A place is not given to another file while a use that waits names it: the only one of a lease, or
/// one of two.
fn detach_in_use(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(14, 4096));
    for uses in [1, 2] {
        let mut ring = rig.small().files(2).build()?;
        let source = ring.attach(&folder.source(&content)?)?;
        let (mut from, to) = pipe()?;
        let size = fill(&to)?;
        let sink = ring.attach(&to)?;
        let fetched = ring.fetch(&source, 0, 4096)?;
        let lease = ring.wait_installed(fetched)?.expect("4096 bytes");
        let uses = (0..uses).map(|_| ring.write(&lease, .., &sink, STREAM));
        let uses = uses.collect::<Result<Vec<_>, _>>()?;
        drop(sink);
        let other = folder.sink()?;
        let spare = if rig.engine == Engine::Module { 2 } else { 0 };
        let others: Vec<_> = (0..spare).map_while(|_| ring.attach(&other).ok()).collect();
        for _ in 0..3 {
            ring.wait_timeout(1, Duration::from_millis(5))?;
            let error = ring.attach(&other).expect_err("the place is named by what waits");
            assert_eq!(error.kind(), ErrorKind::NoFile);
        }
        from.read_exact(&mut vec![0; size])?;
        let mut got = vec![0; 4096];
        for request in uses {
            assert_eq!(ring.wait_used(request)?, 4096);
            from.read_exact(&mut got)?;
            assert_eq!(got, content);
        }
        drop(others);
        let _ = ring.attach(&other)?;
        assert_eq!(folder.sunk()?, b"");
    }
    Ok(())
}

/// The cancellation names a place that nothing else names any more; it must not hit the file that
/// gets the place next.
fn cancel_then_detach(rig: &Rig) -> Verdict {
    let mut ring = rig.small().files(1).build()?;
    let (from, mut to) = pipe()?;
    let first = ring.attach(&from)?;
    ring.cancel(&first)?;
    drop(first);
    let second = ring.attach(&from)?;
    let fetched = ring.fetch(&second, STREAM, 16)?;
    ring.submit()?;
    to.write_all(b"here")?;
    assert_eq!(ring.wait_installed(fetched)?.expect("4 bytes").len(), 4);
    Ok(())
}

/// A cancellation that is not sent yet keeps the place of its file: another file that took it
/// would have its requests cancelled.
fn cancel_hits_no_other_file(rig: &Rig) -> Verdict {
    let mut ring = rig.small().files(2).build()?;
    let (from, mut to) = pipe()?;
    let (other, _writer) = pipe()?;
    let source = ring.attach(&from)?;
    let fetched = ring.fetch(&source, STREAM, 16)?;
    ring.submit()?;
    let cancelled = ring.attach(&other)?;
    ring.cancel(&cancelled)?;
    drop(cancelled);
    // It would get the place that has just become free.
    let again = ring.attach(&from)?;
    ring.submit()?;
    to.write_all(b"here")?;
    assert_eq!(ring.wait_installed(fetched)?.expect("4 bytes").len(), 4);
    drop(again);
    Ok(())
}

fn cancel(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (from, to) = pipe()?;
    let source = ring.attach(&from)?;
    fill(&to)?;
    let sink = ring.attach(&to)?;
    let (empty, _writer) = pipe()?;
    let empty = ring.attach(&empty)?;
    let fetched = ring.fetch(&empty, STREAM, 4096)?;
    let full = ring.fetch(&source, STREAM, 4096)?;
    let lease = ring.wait_installed(full)?.expect("what fills the pipe");
    fill(&to)?;
    let written = ring.write(&lease, .., &sink, STREAM)?;
    ring.submit()?;
    ring.cancel(&empty)?;
    ring.cancel(&sink)?;
    let error = ring.wait_installed(fetched).expect_err("cancelled");
    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED), "{error}");
    assert_eq!(error.kind(), ErrorKind::Source);
    let error = ring.wait_used(written).expect_err("cancelled");
    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED), "{error}");
    drop(lease);
    assert!(until_free(&mut ring, 4).iter().all(is_quiet), "nothing else is told");
    Ok(())
}

fn wait_timeout(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (from, mut to) = pipe()?;
    let source = ring.attach(&from)?;
    let fetched = ring.fetch(&source, STREAM, 4096)?;
    let begin = Instant::now();
    ring.wait_timeout(1, Duration::from_millis(30))?;
    assert!(begin.elapsed() >= Duration::from_millis(30), "{:?}", begin.elapsed());
    assert_eq!(ring.next_event(), None);
    assert!(fetched.is_pending());
    to.write_all(b"ab")?;
    let begin = Instant::now();
    ring.wait_timeout(1, Duration::from_secs(20))?;
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(matches!(ring.next_event(), Some(Event::Fetched { result: Ok(2), .. })));
    ring.wait_timeout(1, Duration::ZERO)?;
    Ok(())
}

/// A wait that finds the queue of completions empty, whose last one was taken a moment ago, waits.
fn what_was_taken_does_not_count(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (from, to) = pipe()?;
    let (source, sink) = (ring.attach(&from)?, ring.attach(&to)?);
    for round in 0..3_u8 {
        ring.poll_writable(&sink, 1)?;
        ring.wait(1)?;
        assert!(matches!(ring.next_event(), Some(Event::Ready { token: 1, .. })));
        ring.poll_readable(&source, 2)?;
        let mut writer = to.try_clone()?;
        let writer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            writer.write_all(&[round]).expect("room");
        });
        ring.wait(1)?;
        assert!(matches!(ring.next_event(), Some(Event::Ready { token: 2, .. })));
        writer.join().expect("the writer");
        let fetched = ring.fetch(&source, STREAM, 1)?;
        assert_eq!(ring.wait_installed(fetched)?.map(|lease| lease.len()), Some(1));
        // Its release is a completion as well.
        until_free(&mut ring, 4);
        while ring.next_event().is_some() {}
    }
    Ok(())
}

/// The ring's descriptor in somebody else's event loop: level-triggered, as most are.
fn from_epoll(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let loop_fd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let (events_of_ring, data) = (epoll::EventFlags::IN, epoll::EventData::new_u64(7));
    // Kernels before 7.3 do not wake who polls a ring whose completions are deferred; its eventfd
    // they do.
    let told = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let deferred = rig.setup == Setup::DeferTaskrun;
    if deferred {
        ring.register_eventfd(&told)?;
        epoll::add(&loop_fd, &told, data, events_of_ring)?;
    } else {
        epoll::add(&loop_fd, &ring, data, events_of_ring)?;
    }
    let (from, mut to) = pipe()?;
    let source = ring.attach(&from)?;
    let ready = |limit_ms: i64| {
        let limit = Timespec { tv_sec: 0, tv_nsec: limit_ms * 1_000_000 };
        let mut list = [epoll::Event { flags: epoll::EventFlags::empty(), data }];
        // Work for the thread interrupts its sleep.
        match epoll::wait(&loop_fd, list.as_mut_slice(), Some(&limit)) {
            Err(rustix::io::Errno::INTR) => Ok(1),
            other => other,
        }
    };
    for round in 0..3_u8 {
        let fetched = ring.fetch(&source, STREAM, 16)?;
        ring.submit()?;
        assert_eq!(ring.next_event(), None);
        to.write_all(&[round; 5])?;
        let mut events = Vec::new();
        for _ in 0..50 {
            if ready(100)? > 0 {
                let _ = rustix::io::read(&told, &mut [0; 8]);
                ring.submit()?;
                while let Some(event) = ring.next_event() {
                    events.push(event);
                }
            }
            if !events.is_empty() {
                break;
            }
        }
        assert!(matches!(events[..], [Event::Fetched { result: Ok(5), .. }]), "{events:?}");
        let lease = fetched.installed().expect("the event said so");
        assert_eq!(lease.len(), 5);
        drop(lease);
        until_free(&mut ring, 4);
        let _ = rustix::io::read(&told, &mut [0; 8]);
        assert_eq!(ready(0)?, 0, "nothing is left to do");
    }
    // poll(2) likewise.
    let mut list = [PollFd::new(&ring, PollFlags::IN)];
    assert_eq!(poll(&mut list, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?, 0);
    Ok(())
}

fn foreign_requests(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let (from, mut to) = pipe()?;
    let mine = Nop::new().build().user_data(0x1234_5678_9abc);
    let waits = PollAdd::new(Fd(from.as_raw_fd()), libc::POLLIN as u32).build().user_data(5);
    for entry in [&mine, &waits] {
        // SAFETY: a request without memory; its descriptor stays open until the end.
        unsafe { ring.push(entry) }?;
    }
    let tagged = Nop::new().build().user_data(u64::from(DEFAULT_TAG) << 56 | 1);
    // SAFETY: as above, and it is refused.
    let error = unsafe { ring.push(&tagged) }.expect_err("the ring's own tag");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let source = ring.attach(&folder.source(b"content")?)?;
    let fetched = ring.fetch(&source, 0, 100)?;
    let lease = ring.wait_installed(fetched)?.expect("7 bytes");
    assert_eq!(lease.len(), 7);
    until(&mut ring, |event| {
        *event == Event::Foreign { user_data: 0x1234_5678_9abc, result: 0, flags: 0 }
    });
    to.write_all(b"x")?;
    until(
        &mut ring,
        |event| matches!(event, Event::Foreign { user_data: 5, result, .. } if result & 1 == 1),
    );
    assert_eq!(ring.stats().stale, 0);
    Ok(())
}

/// The blocking calls alone, in batches: what they have told is not told again, and nothing piles
/// up.
fn many_fetches_then_waits(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(14, 4 * 4096));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    for _ in 0..4 {
        let fetched: Vec<_> =
            (0..4).map(|at| ring.fetch(&source, at * 4096, 4096)).collect::<Result<_, _>>()?;
        for lease in fetched.into_iter().rev() {
            assert_eq!(ring.wait_installed(lease)?.expect("a block").len(), 4096);
        }
        let events = until_free(&mut ring, 4);
        assert!(events.iter().all(is_quiet), "wait_installed has told it: {events:?}");
    }
    Ok(())
}

fn write_all_to_a_full_pipe(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(15, 100_000));
    let mut ring = rig.small().block_size(128 << 10).build()?;
    let source = ring.attach(&folder.source(&content)?)?;
    let (from, to) = pipe()?;
    rustix::pipe::fcntl_setpipe_size(&to, 4096)?;
    rustix::io::ioctl_fionbio(&to, true)?;
    let sink = ring.attach(&to)?;
    drop(to);
    let fetched = ring.fetch(&source, 0, 128 << 10)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    let peer = reader(from);
    ring.write_all(&lease, &sink, STREAM)?;
    drop(sink);
    ring.submit()?;
    assert_eq!(peer.join().expect("the peer"), content[..lease.len() as usize]);
    Ok(())
}

fn source_that_fails(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    // Open for writing only.
    let source = ring.attach(&folder.sink()?)?;
    let fetched = ring.fetch(&source, 0, 1)?;
    let error = ring.wait_installed(fetched).expect_err("not open for reading");
    assert_eq!(error.kind(), ErrorKind::Source);
    assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{error}");
    until_free(&mut ring, 4);
    Ok(())
}

fn sink_that_fails(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(b"content")?)?;
    let fetched = ring.fetch(&source, 0, 7)?;
    let lease = ring.wait_installed(fetched)?.expect("7 bytes");
    let error = ring.write_all(&lease, &source, 0).expect_err("not open for writing");
    assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{error}");
    let full = ring.attach(&File::create("/dev/full")?)?;
    let error = ring.write_all(&lease, &full, STREAM).expect_err("no space");
    // The device has no `->write_iter`: a request on kernel memory cannot use it (EFAULT).
    let errno = error.raw_os_error();
    let lent = lease.origin() != Engine::Copy;
    assert!(errno == Some(libc::ENOSPC) || lent && errno == Some(libc::EFAULT), "{error}");
    let (from, to) = pipe()?;
    drop(from);
    let closed = ring.attach(&to)?;
    let error = ring.write_all(&lease, &closed, STREAM).expect_err("nobody reads");
    assert_eq!(error.raw_os_error(), Some(libc::EPIPE), "{error}");
    let (near, far) = tcp()?;
    drop(far);
    let closed = ring.attach(&near)?;
    // The first send may still be taken, until the peer's reset is there.
    let error = (0..100).find_map(|_| ring.send_all(&lease, &closed).err());
    let errno = error.expect("the peer has closed").raw_os_error();
    assert!(matches!(errno, Some(libc::EPIPE | libc::ECONNRESET)), "{errno:?}");
    Ok(())
}

fn direct(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(16, 2 * 4096));
    drop(folder.source(&content)?);
    let open = File::options().read(true).custom_flags(libc::O_DIRECT).open(folder.path("source"));
    let Ok(file) = open else { return skip("the file system of TMPDIR has no O_DIRECT") };
    let mut ring = rig.ring();
    let source = ring.attach(&file)?;
    let sink = ring.attach(&folder.sink()?)?;
    for block in 0..2 {
        let fetched = ring.fetch(&source, block * 4096, 4096)?;
        let lease = ring.wait_installed(fetched)?.expect("a block");
        ring.write_all(&lease, &sink, block * 4096)?;
    }
    assert_eq!(folder.sunk()?, content);
    Ok(())
}

fn do_not_wait(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&pattern(17, 4096))?)?;
    let (near, _far) = UnixStream::pair()?;
    fill(&near)?;
    let sink = ring.attach(&near)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    let sent = ring.send(&lease, .., &sink, SendFlags::DONT_WAIT)?;
    let error = ring.wait_used(sent).expect_err("the socket is full");
    assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}");
    assert_eq!(lease.uses(), 0);
    Ok(())
}

/// Where a source cannot lend its memory, the pool serves it, and the lease says so.
fn pipe_falls_back(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let (near, mut far) = UnixStream::pair()?;
    far.write_all(b"through the pool")?;
    let source = ring.attach(&near.as_fd())?;
    let fetched = ring.fetch(&source, STREAM, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("16 bytes");
    assert_eq!(lease.len(), 16);
    assert_eq!(lease.origin(), Engine::Copy);
    let sink = ring.attach(&near)?;
    ring.send_all(&lease, &sink)?;
    let mut got = [0; 16];
    far.read_exact(&mut got)?;
    assert_eq!(&got, b"through the pool");
    assert_eq!(ring.stats().fallbacks, u64::from(rig.engine != Engine::Copy));
    Ok(())
}
