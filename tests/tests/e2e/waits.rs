// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sources that have nothing yet, sinks that are full, and pairs of sockets that are both.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use getbuf_tests::{Rig, Stop, Verdict, fill, is_quiet, pattern, reader, tcp, until_free, writer};
use rustix::net::sockopt::set_socket_linger;
use uring_getbuf::relay::{PairReport, Proxy, Step};
use uring_getbuf::slots::Event;
use uring_getbuf::{ErrorKind, Ring, STREAM, SendFlags};

use crate::Case;

/// With every ring setup.
pub(crate) const CENTRAL: &[Case] = &[
    ("fetch_waits", fetch_waits),
    ("fetch_times_out", fetch_times_out),
    ("sink_times_out", sink_times_out),
    ("one_of_two_is_cancelled", one_of_two_is_cancelled),
    ("pair_both_ways", pair_both_ways),
    ("pair_half_closed", pair_half_closed),
];

pub(crate) const CASES: &[Case] = &[
    ("limit_that_is_not_reached", limit_that_is_not_reached),
    ("many_limits", many_limits),
    ("pair_that_fails", pair_that_fails),
    ("pair_that_is_stuck", pair_that_is_stuck),
    ("pair_cut", pair_cut),
    ("pairs_one_after_another", pairs_one_after_another),
    ("pair_without_room", pair_without_room),
    ("pair_beside_others", pair_beside_others),
];

/// Empty sources, and who can write to them.
fn empty() -> std::io::Result<[(File, File); 3]> {
    let (tcp, unix, pipe) = (tcp()?, UnixStream::pair()?, pipe()?);
    let file = |fd: OwnedFd| File::from(fd);
    Ok([
        (file(tcp.0.into()), file(tcp.1.into())),
        (file(unix.0.into()), file(unix.1.into())),
        (file(pipe.0.into()), file(pipe.1.into())),
    ])
}

/// Kernel threads that work for this thread's rings.
fn workers() -> std::io::Result<usize> {
    let mine = format!("iou-wrk-{}", rustix::thread::gettid().as_raw_nonzero());
    let mut count = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let name = std::fs::read_to_string(task?.path().join("comm"));
        count += usize::from(name.is_ok_and(|name| name.trim() == mine));
    }
    Ok(count)
}

fn fetch_waits(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    for (source, mut other) in empty()? {
        let attached = ring.attach(&source)?;
        let fetched = ring.fetch(&attached, STREAM, 4096)?;
        let (begin, mut woken) = (Instant::now(), 0);
        while begin.elapsed() < Duration::from_millis(100) {
            ring.wait_timeout(1, Duration::from_millis(100).saturating_sub(begin.elapsed()))?;
            woken += 1;
            while let Some(event) = ring.next_event() {
                assert!(is_quiet(&event), "{event:?}");
            }
        }
        assert!(fetched.is_pending());
        assert!(woken < 10, "woken {woken} times while there was nothing");
        assert_eq!(workers()?, 0, "a thread waits");
        other.write_all(b"at last")?;
        let lease = ring.wait_installed(fetched)?.expect("seven bytes");
        let mut got = [0; 16];
        assert_eq!(ring.copy_out(&lease, 0, &mut got)?, 7);
        assert_eq!(&got[..7], b"at last");
        drop(lease);
        // The end comes while it waits, too.
        let fetched = ring.fetch(&attached, STREAM, 4096)?;
        ring.submit()?;
        drop(other);
        assert!(ring.wait_installed(fetched)?.is_none());
    }
    until_free(&mut ring, 4);
    Ok(())
}

fn fetch_times_out(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let limit = Duration::from_millis(80);
    for (source, mut other) in empty()? {
        let attached = ring.attach(&source)?;
        for _ in 0..2 {
            let begin = Instant::now();
            let fetched = ring.within(limit).fetch(&attached, STREAM, 4096)?;
            let error = ring.wait_installed(fetched).expect_err("nothing comes");
            assert_eq!(error.raw_os_error(), Some(libc::ECANCELED), "{error}");
            assert!(begin.elapsed() >= limit, "{:?}", begin.elapsed());
        }
        // Nothing was taken.
        other.write_all(b"late")?;
        let fetched = ring.within(Duration::from_secs(20)).fetch(&attached, STREAM, 4096)?;
        assert_eq!(ring.wait_installed(fetched)?.expect("four bytes").len(), 4);
    }
    until_free(&mut ring, 4);
    Ok(())
}

fn sink_times_out(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let limit = Duration::from_millis(80);
    let zero = ring.attach(&getbuf_tests::Folder::new()?.source(&pattern(90, 4096))?)?;
    let fetched = ring.fetch(&zero, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    for (mut source, sink) in empty()? {
        let attached = ring.attach(&sink)?;
        let is_pipe = rustix::net::sockopt::socket_type(&sink).is_err();
        let mut full = 0;
        loop {
            full += fill(&sink)?;
            let begin = Instant::now();
            let id = match is_pipe {
                true => ring.within(limit).write(&lease, .., &attached, STREAM)?,
                false => ring.within(limit).send(&lease, .., &attached, SendFlags::WAIT_ALL)?,
            };
            match ring.wait_used(id) {
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED), "{error}");
                    assert!(begin.elapsed() >= limit, "{:?}", begin.elapsed());
                    break;
                }
                // TCP makes room a little later, when its other end has looked at what came.
                Ok(bytes) => full += bytes as usize,
            }
        }
        source.read_exact(&mut vec![0; full])?;
        let id = ring.within(Duration::from_secs(20)).write(&lease, .., &attached, STREAM)?;
        assert!(ring.wait_used(id)? > 0);
    }
    drop(lease);
    until_free(&mut ring, 4);
    Ok(())
}

/// The limit goes with the request that is done in time.
fn limit_that_is_not_reached(rig: &Rig) -> Verdict {
    let (folder, content) = (getbuf_tests::Folder::new()?, pattern(91, 4096));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let sink = ring.attach(&folder.sink()?)?;
    let limit = Duration::from_secs(20);
    let begin = Instant::now();
    for round in 0..50_u64 {
        let fetched = ring.within(limit).fetch(&source, 0, 4096)?;
        let lease = ring.wait_installed(fetched)?.expect("a block");
        let id = ring.within(limit).write(&lease, .., &sink, round * 4096)?;
        assert_eq!(ring.wait_used(id)?, 4096);
    }
    until_free(&mut ring, 4);
    assert!(begin.elapsed() < limit);
    assert!(folder.sunk()?.chunks(4096).all(|block| block == content));
    Ok(())
}

/// More than the queue has entries, so that the places of their limits come round, and each ends
/// when it should. The longest begins first, so that none can have the limit of one behind it.
fn many_limits(rig: &Rig) -> Verdict {
    let mut ring = rig.small().slots(16).entries(16).build()?;
    let (source, _other) = UnixStream::pair()?;
    let attached = ring.attach(&source)?;
    for _ in 0..3 {
        let begin = Instant::now();
        let limits = (1..=16).rev().map(|step| Duration::from_millis(step * 10));
        let mut leases = Vec::new();
        for limit in limits {
            leases.push((limit, ring.within(limit).fetch(&attached, STREAM, 10)?));
        }
        for (limit, lease) in leases.into_iter().rev() {
            ring.wait_installed(lease).expect_err("nothing comes");
            assert!(begin.elapsed() >= limit, "{limit:?}: {:?}", begin.elapsed());
        }
        assert!(begin.elapsed() < Duration::from_secs(5));
        until_free(&mut ring, 16);
    }
    Ok(())
}

fn one_of_two_is_cancelled(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    for (source, mut other) in empty()? {
        let attached = ring.attach(&source)?;
        let first = ring.fetch(&attached, STREAM, 4096)?;
        let second = ring.fetch(&attached, STREAM, 4096)?;
        // Also one that has not been sent, or that its lender has refused meanwhile.
        ring.cancel_fetch(&first)?;
        let error = ring.wait_installed(first).expect_err("it was cancelled");
        assert_eq!(error.raw_os_error(), Some(libc::ECANCELED), "{error}");
        assert!(second.is_pending());
        other.write_all(b"for the second")?;
        assert_eq!(ring.wait_installed(second)?.expect("bytes").len(), 14);
        let third = ring.fetch(&attached, STREAM, 4096)?;
        ring.wait_timeout(1, Duration::from_millis(20))?;
        ring.cancel_fetch(&third)?;
        ring.wait_installed(third).expect_err("it was cancelled");
    }
    until_free(&mut ring, 4);
    Ok(())
}

/// A client, its connection to a server, and the server, with a pair between them.
fn pair(ring: &mut Ring, proxy: &mut Proxy) -> Result<(TcpStream, TcpStream), Stop> {
    let ((client, near), (far, server)) = (tcp()?, tcp()?);
    proxy.add(ring, near, far)?;
    Ok((client, server))
}

/// Drives the ring until this many pairs are over.
fn drive(ring: &mut Ring, proxy: &mut Proxy, count: usize) -> Result<Vec<PairReport>, Stop> {
    let mut over = Vec::new();
    let begin = Instant::now();
    while over.len() < count {
        assert!(begin.elapsed() < Duration::from_secs(30), "{} of {count}", over.len());
        ring.wait_timeout(1, Duration::from_millis(100))?;
        while let Some(event) = ring.next_event() {
            match proxy.take(ring, event)? {
                Step::Over(pair) => over.push(pair),
                Step::Other(event) => assert!(is_quiet(&event), "{event:?}"),
                _ => {}
            }
        }
    }
    Ok(over)
}

fn pair_both_ways(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let mut proxy = Proxy::new(&ring);
    let (there, back) = (pattern(92, 1_000_003), pattern(93, 700_001));
    let (client, server) = pair(&mut ring, &mut proxy)?;
    let ends = [(client, there.clone()), (server, back.clone())].map(|(end, content)| {
        let other = end.try_clone().expect("a descriptor");
        let write = thread::spawn(move || {
            writer(end.try_clone().expect("a descriptor"), content).join().expect("a writer");
            end.shutdown(Shutdown::Write).expect("it is open");
        });
        (write, reader(other))
    });
    let over = drive(&mut ring, &mut proxy, 1)?;
    assert!(over[0].error.is_none(), "{over:?}");
    assert_eq!(over[0].bytes, [there.len() as u64, back.len() as u64]);
    let [(wrote_there, got_back), (wrote_back, got_there)] = ends;
    wrote_there.join().expect("a writer");
    wrote_back.join().expect("a writer");
    assert!(got_back.join().expect("a reader") == back);
    assert!(got_there.join().expect("a reader") == there);
    assert!(proxy.is_empty());
    until_free(&mut ring, 4);
    Ok(())
}

/// The server sees the end of what the client sends, and answers only then.
fn pair_half_closed(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let mut proxy = Proxy::new(&ring);
    let (mut client, mut server) = pair(&mut ring, &mut proxy)?;
    let server = thread::spawn(move || {
        let mut asked = Vec::new();
        server.read_to_end(&mut asked)?;
        asked.reverse();
        server.write_all(&asked)
    });
    client.write_all(b"question")?;
    client.shutdown(Shutdown::Write)?;
    let got = reader(client);
    let over = drive(&mut ring, &mut proxy, 1)?;
    server.join().expect("a server")?;
    assert!(over[0].error.is_none(), "{over:?}");
    assert_eq!(over[0].bytes, [8, 8]);
    assert_eq!(got.join().expect("a reader"), b"noitseuq");
    until_free(&mut ring, 4);
    Ok(())
}

/// One is reset. Its other end is reset as well, and another pair does not notice.
fn pair_that_fails(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let mut proxy = Proxy::new(&ring);
    let (client, mut server) = pair(&mut ring, &mut proxy)?;
    let (mut other_client, mut other_server) = pair(&mut ring, &mut proxy)?;
    ring.submit()?;
    set_socket_linger(&client, Some(Duration::ZERO))?;
    drop(client);
    let over = drive(&mut ring, &mut proxy, 1)?;
    let error = over[0].error.as_ref().expect("it was reset");
    assert_eq!(error.kind(), ErrorKind::Source, "{error}");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
    let error = server.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let ask = thread::spawn(move || {
        other_client.write_all(b"hello")?;
        other_client.shutdown(Shutdown::Write)?;
        let mut got = Vec::new();
        other_client.read_to_end(&mut got).map(|_| got)
    });
    let answer = thread::spawn(move || {
        let mut got = Vec::new();
        other_server.read_to_end(&mut got)?;
        other_server.write_all(b"and goodbye").map(|()| got)
    });
    let over = drive(&mut ring, &mut proxy, 1)?;
    assert!(over[0].error.is_none(), "{over:?}");
    assert_eq!(ask.join().expect("a client")?, b"and goodbye");
    assert_eq!(answer.join().expect("a server")?, b"hello");
    until_free(&mut ring, 4);
    Ok(())
}

/// One whose receiver does not read keeps what is its own, and no more.
fn pair_that_is_stuck(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let mut proxy = Proxy::new(&ring);
    let (stuck_client, stuck_server) = pair(&mut ring, &mut proxy)?;
    let feeder = writer(stuck_client, pattern(94, 60 << 20));
    let (client, server) = pair(&mut ring, &mut proxy)?;
    let content = pattern(95, 3_000_000);
    writer(client, content.clone());
    let answer = thread::spawn(move || {
        let got = reader(server.try_clone()?).join().expect("a reader");
        server.shutdown(Shutdown::Write).map(|()| got)
    });
    let over = drive(&mut ring, &mut proxy, 1)?;
    assert_eq!(over[0].bytes, [3_000_000, 0]);
    assert!(answer.join().expect("a server")? == content);
    assert_eq!(proxy.len(), 1);
    drop(stuck_server);
    let over = drive(&mut ring, &mut proxy, 1)?;
    assert!(over[0].error.is_some(), "{over:?}");
    feeder.join().expect("the feeder ends");
    until_free(&mut ring, 4);
    Ok(())
}

fn pair_cut(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let mut proxy = Proxy::new(&ring);
    let (mut client, _server) = pair(&mut ring, &mut proxy)?;
    let (_other, other_server) = pair(&mut ring, &mut proxy)?;
    fill(&other_server)?;
    for _ in 0..20 {
        ring.wait_timeout(1, Duration::from_millis(5))?;
        while let Some(event) = ring.next_event() {
            proxy.take(&mut ring, event)?;
        }
    }
    proxy.cut_all(&mut ring)?;
    let over = drive(&mut ring, &mut proxy, 2)?;
    for pair in &over {
        assert_eq!(pair.error.as_ref().expect("cut").kind(), ErrorKind::Cancelled);
    }
    let error = client.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(proxy.is_empty());
    until_free(&mut ring, 4);
    Ok(())
}

/// What one pair has used, the next one gets.
fn pairs_one_after_another(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let mut proxy = Proxy::new(&ring);
    for round in 0..100_u32 {
        let (mut client, mut server) = pair(&mut ring, &mut proxy)?;
        client.write_all(&round.to_ne_bytes())?;
        server.write_all(&(!round).to_ne_bytes())?;
        client.shutdown(Shutdown::Write)?;
        server.shutdown(Shutdown::Write)?;
        let over = drive(&mut ring, &mut proxy, 1)?;
        assert_eq!((over[0].bytes, over[0].error.is_none()), ([4, 4], true));
        let mut got = [0; 4];
        client.read_exact(&mut got)?;
        assert_eq!(got, (!round).to_ne_bytes());
        server.read_exact(&mut got)?;
        assert_eq!(got, round.to_ne_bytes());
    }
    until_free(&mut ring, 4);
    Ok(())
}

fn pair_without_room(rig: &Rig) -> Verdict {
    let mut ring = rig.ring();
    let mut proxy = Proxy::new(&ring);
    let _one = pair(&mut ring, &mut proxy)?;
    let _two = pair(&mut ring, &mut proxy)?;
    let (near, far) = (tcp()?, tcp()?);
    let error = proxy.add(&mut ring, near.0, far.0).expect_err("two slots for each");
    assert_eq!(error.kind(), ErrorKind::NoSlot, "{error}");
    assert_eq!(proxy.len(), 2);
    let (reads, _writes) = pipe()?;
    proxy.cut_all(&mut ring)?;
    drive(&mut ring, &mut proxy, 2)?;
    let error = proxy.add(&mut ring, reads, near.1).expect_err("a pipe");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    Ok(())
}

/// The caller's own leases and requests are told apart from the pairs'.
fn pair_beside_others(rig: &Rig) -> Verdict {
    let mut ring = rig.small().slots(8).build()?;
    let mut proxy = Proxy::new(&ring);
    let (source, mut other) = UnixStream::pair()?;
    let attached = ring.attach(&source)?;
    let mine = ring.fetch(&attached, STREAM, 100)?;
    let (mut client, server) = pair(&mut ring, &mut proxy)?;
    other.write_all(b"mine")?;
    client.write_all(b"theirs")?;
    client.shutdown(Shutdown::Write)?;
    server.shutdown(Shutdown::Write)?;
    let (mut told, mut over) = (0, 0);
    let begin = Instant::now();
    while (told, over) != (1, 1) {
        assert!(begin.elapsed() < Duration::from_secs(10), "{told} {over}");
        ring.wait_timeout(1, Duration::from_millis(50))?;
        while let Some(event) = ring.next_event() {
            match proxy.take(&mut ring, event)? {
                Step::Over(_) => over += 1,
                Step::Other(Event::Fetched { lease, result }) => {
                    assert_eq!((lease, result), (mine.id(), Ok(4)));
                    told += 1;
                }
                Step::Other(event) => assert!(is_quiet(&event), "{event:?}"),
                _ => {}
            }
        }
    }
    assert_eq!(ring.wait_installed(mine)?.expect("bytes").len(), 4);
    until_free(&mut ring, 8);
    Ok(())
}
