// SPDX-License-Identifier: MIT OR Apache-2.0
//! The standard streams, and whoever shares them.

use super::*;

#[test]
fn from_a_pipe_and_to_a_pipe() {
    let place = Place::new(1_000_003);
    let to = place.text("to");
    let mut child = getbuf()
        .args(["cp", "-", &to])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&place.bytes).unwrap();
    assert!(child.wait().unwrap().success());
    place.is_copied("to");
    let output = run(&["cp", &place.text("from"), "-"]);
    success(&output);
    assert!(output.stdout == place.bytes);
}

#[test]
fn a_redirected_input_is_read_from_where_it_stands() {
    let place = Place::new(10_000);
    let mut from = File::open(place.path("from")).unwrap();
    from.read_exact(&mut [0; 1234]).unwrap();
    let output = getbuf().args(["cp", "-", "-", "--quiet"]).stdin(from).output().unwrap();
    success(&output);
    assert!(output.stdout == place.bytes[1234..]);
}

#[test]
fn an_output_that_is_appended_to_keeps_what_it_has() {
    let place = Place::new(100_000);
    fs::write(place.path("to"), b"before").unwrap();
    let to = File::options().append(true).open(place.path("to")).unwrap();
    let status = getbuf().args(["cp", &place.text("from"), "-", "-q"]).stdout(to).status().unwrap();
    assert!(status.success());
    let got = fs::read(place.path("to")).unwrap();
    assert!(got == [b"before", place.bytes.as_slice()].concat());
}

#[test]
fn a_reader_that_leaves_ends_it_without_a_word() {
    let place = Place::new(3_000_000);
    let mut child = getbuf()
        .args(["cp", &place.text("from"), "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 10]).unwrap();
    assert_eq!(failure(&child.wait_with_output().unwrap(), 1), "");
}

/// The next one who writes to it, or reads from it, goes on where we ended.
#[test]
fn shared_files_stand_behind_what_was_moved() {
    let place = Place::new(10_000);
    let mut to = File::create(place.path("to")).unwrap();
    let mut from = File::open(place.path("from")).unwrap();
    to.write_all(b"before ").unwrap();
    from.read_exact(&mut [0; 10]).unwrap();
    let status = getbuf()
        .args(["cp", "--quiet", "-", "-"])
        .stdin(from.try_clone().unwrap())
        .stdout(to.try_clone().unwrap())
        .status();
    assert!(status.unwrap().success());
    to.write_all(b" after").unwrap();
    let whole = [b"before ", &place.bytes[10..], b" after"].concat();
    assert!(fs::read(place.path("to")).unwrap() == whole);
    assert_eq!(from.read(&mut [0; 10]).unwrap(), 0);
}

#[test]
fn nobody_to_talk_to_is_no_failure() {
    let place = Place::new(10);
    let (gone, broken) = std::io::pipe().unwrap();
    drop(gone);
    let (from, to) = (place.text("from"), place.text("to"));
    let status = getbuf().args(["cp", &from, &to]).stderr(broken).status().unwrap();
    assert!(status.success(), "{status}");
    place.is_copied("to");
}

#[test]
fn a_probe_that_nobody_gets_is_a_failure() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = getbuf().arg("probe").stdout(full).stderr(Stdio::piped()).output().unwrap();
    let said = failure(&output, 1);
    assert!(said.contains("standard output") && said.contains("No space"), "{said}");
}

/// A shell closes them with `<&-` and `>&-`.
#[test]
fn a_closed_stream_is_an_error_and_nothing_is_touched() {
    let place = Place::new(10);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    fs::write(place.path("keep"), b"precious").unwrap();
    for (command, stream) in [
        ("cp - keep <&-", "input"),
        ("cp - new <&-", "input"),
        ("cp - - <&-", "input"),
        ("cp - new <&- >&- 2>said; code=$?; cat said >&2; exit $code", "input"),
        ("cp from - >&-", "output"),
        (&format!("send - {address} <&-"), "input"),
        (&format!("send - {address} {address} <&-"), "input"),
        ("probe >&-", "output"),
        ("probe --json >&-", "output"),
        ("bench rfc >&-", "output"),
        ("bench rfc --json - >&-", "output"),
    ] {
        let said = failure(&shell(&place, &format!("\"$getbuf\" {command}")), 1);
        let wanted = format!("standard {stream}: Bad file descriptor");
        assert!(said.contains(&wanted), "{command}: {said}");
        assert_eq!(fs::read(place.path("keep")).unwrap(), b"precious", "{command}");
        assert!(!place.path("new").exists(), "{command}");
    }
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_stream_that_is_open_the_other_way_is_an_error_and_nothing_is_touched() {
    let place = Place::new(10);
    fs::write(place.path("keep"), b"precious").unwrap();
    for (command, stream) in [
        ("cp - keep 0>other", "input"),
        ("cp - new 0>>other", "input"),
        ("cp from - 1<from", "output"),
        ("probe 1<from", "output"),
        ("bench rfc --time 1 1<from", "output"),
    ] {
        let said = failure(&shell(&place, &format!("\"$getbuf\" {command}")), 1);
        let wanted = format!("standard {stream}: Bad file descriptor");
        assert!(said.contains(&wanted), "{command}: {said}");
        assert_eq!(fs::read(place.path("keep")).unwrap(), b"precious", "{command}");
        assert!(!place.path("new").exists(), "{command}");
    }
}

/// What is not used may be closed, and what is opened does not take its number.
#[test]
fn streams_that_are_not_used_may_be_closed() {
    let place = Place::new(100_000);
    let streams = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"];
    for streams in streams {
        success(&shell(&place, &format!("\"$getbuf\" cp from to {streams}")));
        place.is_copied("to");
    }
    // Nothing of what it says is in the file.
    success(&shell(&place, "\"$getbuf\" cp - to <from >&- 2>&-"));
    place.is_copied("to");
    let output = shell(&place, "\"$getbuf\" cp from - <&- 2>&-");
    success(&output);
    assert!(output.stdout == place.bytes);
    let output = shell(&place, "\"$getbuf\" cp - - < /dev/null");
    success(&output);
    assert_eq!(output.stdout, b"");
    // That somebody gives the null device, also both ways, is no closed stream.
    success(&shell(&place, "\"$getbuf\" cp - null <>/dev/null 1<>/dev/null"));
    success(&shell(&place, "\"$getbuf\" probe 1<>/dev/null"));
    assert_eq!(fs::read(place.path("null")).unwrap(), b"");
}

/// Bytes go where the shared position stands when they are written.
#[test]
fn an_output_that_others_write_to_as_well_keeps_everything() {
    let place = Place::new(0);
    for open in [">", ">>"] {
        fs::write(place.path("log"), "").unwrap();
        let script = format!(
            "{{ {{ echo one; sleep .6; echo two; }} | \"$getbuf\" cp -q - - & \
             sleep .3; echo other; wait; }} {open} log"
        );
        success(&shell(&place, &script));
        assert_eq!(fs::read_to_string(place.path("log")).unwrap(), "one\nother\ntwo\n", "{open}");
    }
}

/// They come from where the shared position stands when they are read.
#[test]
fn an_input_that_others_move_is_read_from_where_it_stands() {
    let place = Place::new(8_000_000);
    let mut from = File::open(place.path("from")).unwrap();
    let mut child = getbuf()
        .args(["cp", "-", "-", "-q", "--block-size", "4K", "--depth", "2"])
        .stdin(from.try_clone().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut got = vec![0];
    output.read_exact(&mut got).unwrap();
    // The pipe is full by now.
    thread::sleep(Duration::from_millis(500));
    from.seek(SeekFrom::End(-1000)).unwrap();
    output.read_to_end(&mut got).unwrap();
    assert!(child.wait().unwrap().success());
    let (before, after) = got.split_at(got.len() - 1000);
    assert!(before == &place.bytes[..before.len()], "{} bytes", got.len());
    assert!(after == &place.bytes[place.bytes.len() - 1000..]);
    assert!(got.len() < 2_000_000, "{} bytes", got.len());
}

/// Several commands of a group, one after the other, also with one that leaves early.
#[test]
fn a_group_of_commands_shares_its_streams() {
    let place = Place::new(3_000_000);
    let script = "{ head -c 1000; \"$getbuf\" cp -q - -; echo end; } < from > to";
    success(&shell(&place, script));
    // head reads more than it prints, and a file's position is put back by it.
    let got = fs::read(place.path("to")).unwrap();
    assert!(got == [&place.bytes[..], b"end\n"].concat(), "{} bytes", got.len());
    let (address, receive) = receiver("127.0.0.1:0");
    let script =
        format!("{{ head -c 1000 >/dev/null; \"$getbuf\" send -q - {address}; cat; }} < from");
    let output = shell(&place, &script);
    success(&output);
    assert_eq!(output.stdout, b"");
    assert!(receive.join().unwrap() == place.bytes[1000..]);
}

/// No file is longer than 2^63 - 1 bytes: the rest has not arrived.
#[test]
fn an_output_that_is_full_by_its_own_limit_is_an_error() {
    let place = Place::new(100_000);
    // Only file systems in memory allow for such files everywhere.
    let shared = tempfile::tempfile_in("/dev/shm");
    let own = File::create(place.path("to"));
    let begin = i64::MAX as u64 - 10;
    let stands = |file: &mut File| file.seek(SeekFrom::Start(begin)).is_ok();
    let mut files = [own, shared].into_iter().flatten();
    let Some(mut file) = files.find_map(|mut file| stands(&mut file).then_some(file)) else {
        println!("skipped: no file system here has files as long as that");
        return;
    };
    let mut getbuf = getbuf();
    getbuf.args(["cp", &place.text("from"), "-"]).stdout(file.try_clone().unwrap());
    let said = failure(&getbuf.stderr(Stdio::piped()).output().unwrap(), 1);
    assert!(said.contains("standard output") && said.contains("10 bytes arrived"), "{said}");
    assert_eq!(file.stream_position().unwrap(), begin + 10);
    file.set_len(0).unwrap();
}
