// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that fail, or do not say the truth about themselves.

use std::ops::Range;
use std::os::fd::AsRawFd;

use getbuf_tests::Stop;
use getbuf_tests::fuse::{Fuse, Odd};

use super::*;

/// Such files, and where they are. This thread's children find them there.
fn mount(files: &[Odd]) -> Option<(Fuse, Vec<String>)> {
    let fuse = match Fuse::mount(files) {
        Ok(fuse) => fuse,
        Err(Stop::Skip(reason)) => {
            println!("skipped: {reason}");
            return None;
        }
        Err(Stop::Fail(reason)) => panic!("{reason}"),
    };
    let path = |index| {
        let file = fuse.open(index).unwrap();
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let paths = (0..files.len()).map(path).collect();
    Some((fuse, paths))
}

/// How many bytes a message says that arrived.
fn arrived(said: &str) -> usize {
    let before = said.split(" bytes arrived").next().unwrap();
    before.rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{said}"))
}

/// An early block fails after later ones were copied.
#[test]
fn a_copy_that_failed_is_cut_to_what_is_right() {
    let place = Place::new(2_000_000);
    let fails = |fails: Range<u64>, direct_io| Odd {
        fails,
        fails_after: Duration::from_millis(500),
        direct_io,
        ..Odd::new(&place.bytes)
    };
    let files = [
        fails(0..1, false),
        fails(0..1, true),
        fails(600_000..600_001, false),
        fails(600_000..600_001, true),
    ];
    let Some((_fuse, paths)) = mount(&files) else { return };
    for (path, file) in paths.iter().zip(&files) {
        fs::write(place.path("to"), content(3_000_000)).unwrap();
        let output = run(&["cp", path, &place.text("to"), "--block-size", "64K"]);
        let said = failure(&output, 1);
        assert!(said.contains(path) && said.contains("Input/output error"), "{said}");
        let got = fs::read(place.path("to")).unwrap();
        assert!(got.len() as u64 <= file.fails.start, "{} bytes, {file:?}", got.len());
        assert!(got == place.bytes[..got.len()], "{} bytes that are not the file's", got.len());
        assert_eq!(arrived(&said), got.len(), "{said}");

        // And whoever writes behind it does so where it ends.
        let script = format!("{{ echo begin; \"$getbuf\" cp {path} -; echo end; }} > log");
        let said = String::from_utf8(shell(&place, &script).stderr).unwrap();
        let log = fs::read(place.path("log")).unwrap();
        let got = log.strip_prefix(b"begin\n").unwrap().strip_suffix(b"end\n").unwrap();
        assert!(got == &place.bytes[..got.len()]);
        assert_eq!(arrived(&said), got.len(), "{said}");
    }
}

/// The last of the whole blocks does not fit: the sink is at fault.
#[test]
fn a_copy_that_has_no_room_is_cut_to_what_is_right() {
    let place = Place::new(2_000_000);
    let script = "ulimit -f 2000; exec \"$getbuf\" cp from to --block-size 64K";
    let output = shell(&place, script);
    let said = failure(&output, 1);
    let got = fs::read(place.path("to")).unwrap();
    assert!(got.len() <= 2000 * 512 && got.len() > 500_000, "{said}");
    assert!(got == place.bytes[..got.len()]);
    assert_eq!(arrived(&said), got.len(), "{said}");
}

/// The end of a file is where nothing more is read, and not its size.
#[test]
fn files_that_do_not_know_their_size_are_copied() {
    let place = Place::new(300_000);
    let says = |says| Odd::sized(&place.bytes, says);
    let short = Odd { answer: 1000, ..says(300_000) };
    let files = [says(0), says(10), says(300_000), says(1 << 20), short];
    let Some((_fuse, paths)) = mount(&files) else { return };
    for (path, file) in paths.iter().zip(&files) {
        success(&run(&["cp", path, &place.text("to")]));
        place.is_copied("to");
        let input = File::open(path).unwrap();
        let output = getbuf().args(["cp", "-", "-"]).stdin(input).output().unwrap();
        success(&output);
        assert!(output.stdout == place.bytes, "{} bytes, {file:?}", output.stdout.len());
        let (address, receive) = receiver("127.0.0.1:0");
        success(&run(&["send", path, &address]));
        assert!(receive.join().unwrap() == place.bytes, "{file:?}");
    }
}
