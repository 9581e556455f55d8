// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files of FUSE, which say the wrong thing about themselves, or fail in the middle.

use std::fs::File;
use std::io::{Read, Seek, pipe};
use std::time::{Duration, Instant};

use getbuf_tests::fuse::{Fuse, Odd};
use getbuf_tests::{Folder, Rig, Verdict, is_quiet, pattern, reader, until_free};
use rustix::fs::{OFlags, fcntl_getfl};
use uring_getbuf::relay::{Canceller, FanOut, Relay, Verdict as Says};
use uring_getbuf::{ErrorKind, Ring, STREAM};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("sizes_told_wrongly", sizes_told_wrongly),
    ("fuse_sinks", fuse_sinks),
    ("fuse_limits", fuse_limits),
    ("fuse_fails", fuse_fails),
    ("fuse_does_not_answer", fuse_does_not_answer),
];

/// What was written to a pipe meanwhile.
fn through_pipe(
    run: impl FnOnce(&std::io::PipeWriter) -> Result<u64, getbuf_tests::Stop>,
) -> Result<Vec<u8>, getbuf_tests::Stop> {
    let (from, to) = pipe()?;
    let peer = reader(from);
    let bytes = run(&to)?;
    drop(to);
    let got = peer.join().expect("the peer");
    assert_eq!(bytes, got.len() as u64);
    Ok(got)
}

fn quiet(ring: &mut Ring) {
    let free = ring.capacity();
    let events = until_free(ring, free);
    assert!(events.iter().all(is_quiet), "{events:?}");
}

/// With `direct_io` a file has the bytes that `read(2)` gives, whatever size it says.
fn sizes_told_wrongly(rig: &Rig) -> Verdict {
    let content = pattern(60, 300_000);
    let short = Odd { answer: 1000, ..Odd::sized(&content, 300_000) };
    let files = [
        Odd::sized(&content, 0),
        Odd::sized(&content, 10),
        Odd::sized(&content, 300_000),
        Odd::sized(&content, 1 << 20),
        Odd { says: 1 << 20, ..short.clone() },
        Odd { says: 10, ..short.clone() },
        short,
        Odd::new(&content),
        Odd::sized(b"", 1 << 20),
    ];
    let (fuse, folder) = (Fuse::mount(&files)?, Folder::new()?);
    for block in [4096, 128 << 10] {
        let mut ring = rig.small().block_size(block).slots(8).build()?;
        for (index, file) in files.iter().enumerate() {
            for flags in [0, libc::O_DIRECT] {
                let what = format!("says {} answers {} {flags:x}", file.says, file.answer);
                let mut want = Vec::new();
                fuse.open(index)?.read_to_end(&mut want)?;
                assert!(want[..] == file.content[..], "{what}: read(2)");
                let source = fuse.open_with(index, flags)?;
                let report = Relay::new(&source, &folder.sink()?).run(&mut ring)?;
                assert_eq!(report.bytes, want.len() as u64, "{what}");
                assert!(folder.sunk()? == want, "{what}: to a file");
                let got = through_pipe(|to| Ok(Relay::new(&source, to).run(&mut ring)?.bytes))?;
                assert!(got == want, "{what}: to a pipe");
                let got = through_pipe(|to| {
                    Ok(FanOut::new(&source).sink(to).run(&mut ring)?.sinks[0].bytes)
                })?;
                assert!(got == want, "{what}: fanned out");
                quiet(&mut ring);
            }
        }
    }
    Ok(())
}

/// Everything arrives, however little of each write the server takes.
fn fuse_sinks(rig: &Rig) -> Verdict {
    let content = pattern(64, 300_000);
    let files = [
        Odd::sized(b"", 0),
        Odd { answer: 1000, ..Odd::sized(b"", 0) },
        Odd { answer: 1000, ..Odd::sized(b"", 1 << 20) },
        Odd::sized(b"", 1 << 20),
        Odd::new(&[0; 300_000]),
    ];
    let (fuse, folder) = (Fuse::mount(&files)?, Folder::new()?);
    let source = folder.source(&content)?;
    for block in [4096, 128 << 10] {
        let mut ring = rig.small().block_size(block).slots(8).build()?;
        for (index, file) in files.iter().enumerate() {
            for flags in [0, libc::O_DIRECT] {
                let what = format!("says {} takes {} {flags:x} {block}", file.says, file.answer);
                for offset in [0, STREAM] {
                    let sink = fuse.sink(index, flags)?;
                    let report = Relay::new(&source, &sink).sink_offset(offset).run(&mut ring)?;
                    assert_eq!(report.bytes, 300_000, "{what}");
                    assert_eq!(fcntl_getfl(&sink)?.contains(OFlags::DIRECT), flags != 0, "{what}");
                    sink.sync_all()?;
                    assert!(fuse.written() == content, "{what} {offset}");
                }
                let sink = fuse.sink(index, flags)?;
                let report = FanOut::new(&source).sink(&sink).run(&mut ring)?;
                assert_eq!(report.sinks[0].bytes, 300_000, "{what}");
                sink.sync_all()?;
                assert!(fuse.written() == content, "{what} fanned out");
                quiet(&mut ring);
            }
        }
    }
    Ok(())
}

/// Offsets, limits, positions and inspectors are as with any file.
fn fuse_limits(rig: &Rig) -> Verdict {
    let content = pattern(61, 300_000);
    let (fuse, folder) = (Fuse::mount(&[Odd::sized(&content, 10)])?, Folder::new()?);
    let mut ring = rig.ring();
    let mut source = fuse.open(0)?;
    let relay_sink = folder.sink()?;
    let relay = Relay::new(&source, &relay_sink).source_offset(1000).limit(70_000);
    assert_eq!(relay.sink_offset(5).run(&mut ring)?.bytes, 70_000);
    assert!(folder.sunk()?[5..] == content[1000..71_000]);
    assert_eq!(source.stream_position()?, 0);

    source.seek(std::io::SeekFrom::Start(500))?;
    let got = through_pipe(|to| {
        let relay = Relay::new(&source, to).source_offset(STREAM).limit(200_000);
        Ok(relay.run(&mut ring)?.bytes)
    })?;
    assert!(got == content[500..200_500]);
    assert_eq!(source.stream_position()?, 200_500, "and no further");

    let sink = folder.sink()?;
    let relay = Relay::new(&source, &sink).inspect(5000, |head| {
        assert!(*head == content[..5000]);
        Says::Trim { skip: 100, limit: 10_000 }
    });
    assert_eq!(relay.run(&mut ring)?.bytes, 10_000);
    assert!(folder.sunk()? == content[100..10_100]);
    quiet(&mut ring);
    Ok(())
}

/// What is before the error is moved, and the error is the source's.
fn fuse_fails(rig: &Rig) -> Verdict {
    let content = pattern(62, 600_000);
    // Late: later blocks could be there long before.
    let after = Duration::from_millis(200);
    let late = Odd { fails: 0..4096, fails_after: after, ..Odd::new(&content) };
    let middle = Odd { fails: 150_000..160_000, ..Odd::sized(&content, 600_000) };
    let (fuse, folder) = (Fuse::mount(&[late, middle])?, Folder::new()?);
    let mut ring = rig.small().slots(16).build()?;
    for index in 0..2 {
        let source = fuse.open(index)?;
        let failure = Relay::new(&source, &folder.sink()?).run(&mut ring).expect_err("EIO");
        assert_eq!(failure.error.kind(), ErrorKind::Source, "{failure}");
        assert_eq!(failure.error.raw_os_error(), Some(libc::EIO), "{failure}");
        let got = folder.sunk()?;
        assert_eq!(got.len() as u64, failure.report.bytes);
        assert!(content.starts_with(&got), "{} bytes", got.len());
        let sink = folder.sink()?;
        let failure = FanOut::new(&source).sink(&sink).run(&mut ring).expect_err("EIO");
        assert_eq!(failure.error.raw_os_error(), Some(libc::EIO), "{failure}");
        let got = folder.sunk()?;
        assert_eq!(got.len() as u64, failure.report.sinks[0].bytes);
        assert!(content.starts_with(&got), "{} bytes", got.len());
        quiet(&mut ring);
    }
    Ok(())
}

/// A read that is not answered does not keep a relay from being cancelled.
fn fuse_does_not_answer(rig: &Rig) -> Verdict {
    let content = pattern(63, 600_000);
    let never = Odd {
        fails: 0..4096,
        fails_after: Duration::from_secs(30),
        ..Odd::sized(&content, 600_000)
    };
    let fuse = Fuse::mount(&[never])?;
    let mut ring = rig.ring();
    let (canceller, begin) = (Canceller::new(), Instant::now());
    let other = canceller.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        other.cancel();
    });
    let (source, null) = (fuse.open(0)?, File::create("/dev/null")?);
    let failure = Relay::new(&source, &null).canceller(&canceller).run(&mut ring);
    thread.join().expect("the canceller");
    assert_eq!(failure.expect_err("cancelled").error.kind(), ErrorKind::Cancelled);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    quiet(&mut ring);
    Ok(())
}
