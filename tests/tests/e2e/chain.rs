// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fetch, consume and release as one: every outcome, and that no stale byte gets out.

use std::fs::File;
use std::io::{Read, pipe};
use std::os::unix::net::UnixStream;

use getbuf_tests::{Folder, Rig, Verdict, pattern, reader, skip, tcp, until_free};
use uring_getbuf::chain::ChainOutcome;
use uring_getbuf::ring::Ring;
use uring_getbuf::slots::Event;
use uring_getbuf::{STREAM, SendFlags};

use crate::Case;

pub(crate) const CENTRAL: &[Case] = &[
    ("done", done),
    ("short_fetch", short_fetch),
    ("fetch_failed", fetch_failed),
    ("short_use", short_use),
    ("use_failed", use_failed),
    ("no_stale_bytes", no_stale_bytes),
    ("many", many),
];

fn zero_copy(ring: &Ring) -> bool {
    ring.support().features().send_zc
}

/// Nothing is held any more, and nothing else is told.
fn over(ring: &mut Ring) {
    assert_eq!(ring.free(), ring.capacity(), "the slot is free when the outcome is there");
    ring.submit().expect("submitting");
    while let Some(event) = ring.next_event() {
        assert_eq!(event, Event::Pending, "nothing else is told");
    }
    assert_eq!(ring.stats().stale, 0);
}

fn done(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(1, 4096));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let sink = ring.attach(&folder.sink()?)?;
    let chain = ring.chain_write(&source, 96, 4000, &sink, 10)?;
    assert_eq!(ring.free(), 3);
    assert_eq!(ring.wait_chain(chain)?, ChainOutcome::Done(4000));
    over(&mut ring);
    assert_eq!(folder.sunk()?[10..], content[96..]);
    let (near, far) = tcp()?;
    let sink = ring.attach(&near)?;
    drop(near);
    let peer = reader(far);
    let chain = ring.chain_send(&source, 0, 4096, &sink, SendFlags::NONE)?;
    assert_eq!(ring.wait_chain(chain)?, ChainOutcome::Done(4096));
    over(&mut ring);
    let mut want = content.clone();
    if zero_copy(&ring) {
        let chain = ring.chain_send_zc(&source, 1, 4095, &sink, SendFlags::NONE)?;
        assert_eq!(ring.wait_chain(chain)?, ChainOutcome::Done(4095));
        over(&mut ring);
        want.extend(&content[1..]);
    }
    drop(sink);
    ring.submit()?;
    assert_eq!(peer.join().expect("the peer"), want);
    Ok(())
}

/// A chain of each kind to a sink of its own: the outcome of each, and what arrived.
fn each(rig: &Rig, source: &File, len: u32, want: impl Fn(ChainOutcome) -> bool) -> Verdict {
    let folder = Folder::new()?;
    let mut ring = rig.ring();
    let source = ring.attach(source)?;
    let sink = ring.attach(&folder.sink()?)?;
    let (near, far) = tcp()?;
    let socket = ring.attach(&near)?;
    drop(near);
    let peer = reader(far);
    for round in 0..3 {
        let chain = match round {
            0 => ring.chain_write(&source, 0, len, &sink, 0)?,
            1 => ring.chain_send(&source, 0, len, &socket, SendFlags::NONE)?,
            _ if !zero_copy(&ring) => continue,
            _ => ring.chain_send_zc(&source, 0, len, &socket, SendFlags::NONE)?,
        };
        let outcome = ring.wait_chain(chain)?;
        assert!(want(outcome), "{outcome:?} in round {round}");
        over(&mut ring);
    }
    drop(socket);
    ring.submit()?;
    assert_eq!(folder.sunk()?, b"");
    assert_eq!(peer.join().expect("the peer"), b"");
    Ok(())
}

fn short_fetch(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    let file = folder.source(&pattern(2, 100))?;
    each(rig, &file, 4096, |outcome| outcome == ChainOutcome::ShortFetch(100))?;
    each(rig, &file, 101, |outcome| outcome == ChainOutcome::ShortFetch(100))?;
    let empty = folder.source(b"")?;
    each(rig, &empty, 1, |outcome| outcome == ChainOutcome::ShortFetch(0))
}

fn fetch_failed(rig: &Rig) -> Verdict {
    let folder = Folder::new()?;
    // Open for writing only.
    let file = File::create(folder.path("unreadable"))?;
    each(
        rig,
        &file,
        10,
        |outcome| matches!(outcome, ChainOutcome::FetchFailed(errno) if errno.raw() == libc::EBADF),
    )
}

fn short_use(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(3, 8192));
    let mut ring = rig.small().block_size(8192).build()?;
    let source = ring.attach(&folder.source(&content)?)?;
    let (mut from, to) = pipe()?;
    if rustix::pipe::fcntl_setpipe_size(&to, 4096)? != 4096 {
        return skip("a pipe cannot be made as small as one page of 4096 bytes");
    }
    rustix::io::ioctl_fionbio(&to, true)?;
    let sink = ring.attach(&to)?;
    let chain = ring.chain_write(&source, 0, 8192, &sink, STREAM)?;
    assert_eq!(ring.wait_chain(chain)?, ChainOutcome::ShortUse(4096));
    over(&mut ring);
    let mut got = vec![0; 4096];
    from.read_exact(&mut got)?;
    assert_eq!(got, content[..4096]);
    Ok(())
}

fn use_failed(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(4, 4096));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let chain = ring.chain_write(&source, 0, 4096, &source, 0)?;
    let failed = |outcome, errno| {
        assert!(
            matches!(outcome, ChainOutcome::UseFailed(got) if got.raw() == errno),
            "{outcome:?}, not {errno}"
        );
    };
    failed(ring.wait_chain(chain)?, libc::EBADF);
    over(&mut ring);
    let (near, far) = UnixStream::pair()?;
    let socket = ring.attach(&near)?;
    if zero_copy(&ring) {
        let chain = ring.chain_send_zc(&source, 0, 4096, &socket, SendFlags::NONE)?;
        failed(ring.wait_chain(chain)?, libc::EOPNOTSUPP);
        over(&mut ring);
    }
    drop(far);
    let chain = ring.chain_send(&source, 0, 4096, &socket, SendFlags::NONE)?;
    failed(ring.wait_chain(chain)?, libc::EPIPE);
    over(&mut ring);
    assert_eq!(std::fs::read(folder.path("source"))?, content);
    Ok(())
}

/// After a short fetch, what an earlier lease left in the block reaches no sink, by no way.
fn no_stale_bytes(rig: &Rig) -> Verdict {
    let (folder, poison) = (Folder::new()?, vec![0xee; 4096]);
    let mut ring = rig.ring();
    let poisoned = ring.attach(&folder.source(&poison)?)?;
    let mut leases = Vec::new();
    for _ in 0..4 {
        let fetched = ring.fetch(&poisoned, 0, 4096)?;
        leases.extend(ring.wait_installed(fetched)?);
    }
    assert_eq!(leases.len(), 4);
    drop(leases);
    until_free(&mut ring, 4);
    std::fs::write(
        folder.path("short"),
        pattern(5, 100).iter().map(|b| b & 0x7f).collect::<Vec<_>>(),
    )?;
    let short = ring.attach(&File::open(folder.path("short"))?)?;
    let sink = ring.attach(&folder.sink()?)?;
    let (mut from, to) = pipe()?;
    let stream = ring.attach(&to)?;
    drop(to);
    let (near, far) = tcp()?;
    let socket = ring.attach(&near)?;
    drop(near);
    let peer = reader(far);
    for _ in 0..8 {
        let chains = [
            ring.chain_write(&short, 0, 4096, &sink, 0)?,
            ring.chain_write(&short, 0, 4096, &stream, STREAM)?,
            ring.chain_send(&short, 0, 4096, &socket, SendFlags::NONE)?,
        ];
        for chain in chains {
            assert_eq!(ring.wait_chain(chain)?, ChainOutcome::ShortFetch(100));
        }
        if zero_copy(&ring) {
            let chain = ring.chain_send_zc(&short, 0, 4096, &socket, SendFlags::NONE)?;
            assert_eq!(ring.wait_chain(chain)?, ChainOutcome::ShortFetch(100));
        }
        let fetched = ring.fetch(&short, 0, 4096)?;
        let lease = ring.wait_installed(fetched)?.expect("100 bytes");
        assert_eq!(lease.len(), 100);
        ring.write_all(&lease, &sink, 0)?;
        ring.write_all(&lease, &stream, STREAM)?;
        ring.send_all(&lease, &socket)?;
        drop(lease);
        until_free(&mut ring, 4);
    }
    drop((sink, stream, socket));
    ring.submit()?;
    let mut piped = Vec::new();
    from.read_to_end(&mut piped)?;
    for (what, got, len) in [
        ("file", folder.sunk()?, 100),
        ("pipe", piped, 800),
        ("socket", peer.join().expect("the peer"), 800),
    ] {
        assert_eq!(got.len(), len, "{what}");
        assert!(!got.contains(&0xee), "another lease's bytes reached the {what}");
    }
    Ok(())
}

fn many(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(6, 64 * 4096 - 5));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let sink = ring.attach(&folder.sink()?)?;
    let mut running = Vec::new();
    for block in 0..64 {
        if running.len() == 4 {
            let chain = running.remove(0);
            assert_eq!(ring.wait_chain(chain)?, ChainOutcome::Done(4096));
        }
        let len = if block == 63 { 4091 } else { 4096 };
        running.push(ring.chain_write(&source, block * 4096, len, &sink, block * 4096)?);
    }
    for chain in running {
        assert!(matches!(ring.wait_chain(chain)?, ChainOutcome::Done(_)));
    }
    over(&mut ring);
    assert_eq!(folder.sunk()?, content);
    assert_eq!(ring.stats().fetches, 64);
    Ok(())
}
