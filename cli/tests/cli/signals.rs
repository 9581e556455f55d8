// SPDX-License-Identifier: MIT OR Apache-2.0
//! Signals.

use std::os::unix::process::ExitStatusExt;

use super::*;

/// Until a file has so many bytes.
fn wait_for_bytes(path: &Path, len: u64) {
    let deadline = Instant::now() + Duration::from_secs(100);
    while fs::metadata(path).map_or(0, |now| now.len()) < len {
        assert!(Instant::now() < deadline, "nothing arrives");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_signal_ends_it_in_order() {
    let place = Place::new(0);
    for (name, code) in [("-INT", 130), ("-TERM", 143)] {
        let mut child = getbuf()
            .args(["cp", "-", &place.text("to")])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&[7; 5000]).unwrap();
        wait_for_bytes(&place.path("to"), 5000);
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let said = failure(&output, code);
        assert!(said.contains("interrupted; 5000 bytes arrived"), "{said}");
        fs::remove_file(place.path("to")).unwrap();
    }
}

/// As `nohup` and the background of a script do it.
#[test]
fn a_signal_that_was_ignored_at_the_start_is_ignored() {
    let place = Place::new(0);
    for name in ["INT", "TERM"] {
        let script = format!("trap '' {name}; exec \"$getbuf\" cp - to");
        let mut child = shell_command(&place, &script)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&[7; 5000]).unwrap();
        wait_for_bytes(&place.path("to"), 5000);
        for _ in 0..2 {
            signal(&child, &format!("-{name}"));
            thread::sleep(Duration::from_millis(200));
        }
        input.write_all(&[8; 10]).unwrap();
        drop(input);
        success(&child.wait_with_output().unwrap());
        assert_eq!(fs::read(place.path("to")).unwrap(), [&[7; 5000][..], &[8; 10]].concat());
        fs::remove_file(place.path("to")).unwrap();
    }
}

/// The other signal still ends it.
#[test]
fn a_proxy_whose_interrupt_is_ignored_is_ended_by_the_other_signal() {
    let place = Place::new(0);
    let script = "trap '' INT; exec \"$getbuf\" proxy 127.0.0.1:0 127.0.0.1:9";
    let mut child = shell_command(&place, script).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(line.contains("listening"), "{line}");
    signal(&child, "-INT");
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it was ended");
    signal(&child, "-TERM");
    assert!(child.wait().unwrap().success());
}

/// Everything has been sent: there is nothing left to interrupt.
#[test]
fn an_interruption_after_the_last_byte_is_success() {
    let place = Place::new(1000);
    for count in [1, 2] {
        let peers: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let mut command = getbuf();
        command.args(["send", &place.text("from")]);
        command.args(peers.iter().map(|peer| peer.local_addr().unwrap().to_string()));
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        // They read everything, and keep the connection.
        let mut kept = Vec::new();
        for peer in &peers {
            let mut stream = peer.accept().unwrap().0;
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            assert!(got == place.bytes);
            kept.push(stream);
        }
        thread::sleep(Duration::from_millis(200));
        signal(&child, "-INT");
        let said = success(&child.wait_with_output().unwrap());
        assert!(said.contains("1000 bytes in"), "{said}");
    }
}

/// Until somebody reads, it waits in open(2).
#[test]
fn a_signal_ends_it_while_a_pipe_is_waited_for() {
    let place = Place::new(10);
    assert!(Command::new("mkfifo").arg(place.path("fifo")).status().unwrap().success());
    let (from, fifo) = (place.text("from"), place.text("fifo"));
    for arguments in [["cp", &*from, &*fifo], ["cp", &*fifo, "-"]] {
        let mut child = getbuf().args(arguments).stdout(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "it waits");
        signal(&child, "-TERM");
        assert_eq!(child.wait().unwrap().signal(), Some(15));
    }
}
