// SPDX-License-Identifier: MIT OR Apache-2.0
//! Receivers that are slow, silent, talkative or gone: one is treated as many are.

use std::io::ErrorKind;
use std::net::UdpSocket;

use super::*;

/// How a connection ends after these bytes.
fn end_of(mut stream: TcpStream, expected: &[u8]) -> std::io::Result<usize> {
    let mut got = vec![0; expected.len()];
    stream.read_exact(&mut got).expect("what was sent");
    assert!(got == expected);
    stream.read(&mut [0])
}

fn is_reset(stream: TcpStream, expected: &[u8], what: &str) {
    match end_of(stream, expected) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}"),
        Ok(bytes) => panic!("{what}: {bytes} bytes, and no reset"),
    }
}

/// Nobody may take what there is for the whole.
#[test]
fn a_transfer_that_ends_early_is_a_reset() {
    for count in [1, 2] {
        for (name, code) in [("-INT", Some(130)), ("-TERM", Some(143)), ("-KILL", None)] {
            let peers: Vec<_> = (0..count).map(|_| listener()).collect();
            let mut command = getbuf();
            command.args(["send", "-"]).args(peers.iter().map(|(_, address)| address));
            let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut input = child.stdin.take().unwrap();
            input.write_all(b"part").unwrap();
            let streams: Vec<_> = peers.iter().map(|(peer, _)| peer.accept().unwrap().0).collect();
            for stream in &streams {
                stream.peek(&mut [0]).unwrap();
            }
            signal(&child, name);
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), code, "{name}");
            for stream in streams {
                is_reset(stream, b"part", name);
            }
        }
    }
}

#[test]
fn a_source_that_fails_is_a_reset() {
    let (one, other) = (listener(), listener());
    for addresses in [&[&*one.1][..], &[&*one.1, &*other.1]] {
        // Nothing is at address 0 of any process.
        let said = failure(&run(&[&["send", "/proc/self/mem"], addresses].concat()), 1);
        assert!(said.contains("/proc/self/mem: ") && said.contains("Input/output"), "{said}");
        for peer in [&one, &other].iter().take(addresses.len()) {
            is_reset(peer.0.accept().unwrap().0, b"", &said);
        }
    }
}

/// At once, not when the others have everything.
#[test]
fn one_that_is_given_up_is_reset_while_others_go_on() {
    let (sleeps, reads) = (listener(), listener());
    let mut child = getbuf()
        .args(["send", "-", &sleeps.1, &reads.1, "--patience", "1"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let sleeper = sleeps.0.accept().unwrap().0;
    let mut reader = reads.0.accept().unwrap().0;
    let bytes = content(30_000_000);
    let write = bytes.clone();
    let feed = thread::spawn(move || {
        input.write_all(&write).unwrap();
        input
    });
    let mut got = vec![0; bytes.len()];
    reader.read_exact(&mut got).unwrap();
    assert!(got == bytes);
    let input = feed.join().unwrap();
    // The source is open still, and so is the other connection.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match sleeper.take_error().unwrap() {
            Some(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                break;
            }
            None => assert!(Instant::now() < deadline, "it is not reset"),
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert!(child.try_wait().unwrap().is_none());
    drop(input);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    drop(reader);
    let said = failure(&child.wait_with_output().unwrap(), 1);
    assert!(said.contains("taken nothing for 1s"), "{said}");
    assert!(said.contains("to 1 of 2 receivers"), "{said}");
}

#[test]
fn patience_is_honoured_with_one_receiver() {
    let place = Place::new(30_000_000);
    let (sleeps, address) = listener();
    let begin = Instant::now();
    let said =
        failure(&run(&["send", &place.text("from"), &address, "--patience", "1", "--lag", "3"]), 1);
    assert!(said.contains(&address) && said.contains("taken nothing for 1s"), "{said}");
    assert!(said.contains("bytes arrived"), "{said}");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let mut late = sleeps.accept().unwrap().0;
    let error = late.read_to_end(&mut Vec::new()).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// A receiver that answers as it receives, and reads on only when its answer is taken.
#[test]
fn one_that_talks_back_is_read() {
    let place = Place::new(30_000_000);
    for count in [1, 2] {
        let peers: Vec<_> = (0..count).map(|_| listener()).collect();
        let addresses: Vec<_> = peers.iter().map(|(_, address)| address.clone()).collect();
        let echoes: Vec<_> = peers
            .into_iter()
            .map(|(peer, _)| {
                thread::spawn(move || {
                    let mut stream = peer.accept().unwrap().0;
                    let (mut all, mut block) = (Vec::new(), vec![0; 65_536]);
                    loop {
                        let got = stream.read(&mut block).unwrap();
                        if got == 0 {
                            return all;
                        }
                        all.extend_from_slice(&block[..got]);
                        stream.write_all(&block[..got]).unwrap();
                    }
                })
            })
            .collect();
        let mut command = getbuf();
        // It is to fail, and not to hang, where nobody reads.
        command.args(["send", &place.text("from"), "--patience", "5"]).args(addresses);
        success(&command.output().unwrap());
        for echo in echoes {
            assert!(echo.join().unwrap() == place.bytes);
        }
    }
}

#[test]
fn connecting_can_be_interrupted() {
    let place = Place::new(10);
    let (_full, _waiting, address) = full();
    for more in [&[][..], &[listener().1]] {
        let mut command = getbuf();
        command.args(["send", &place.text("from"), &address]).args(more);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        thread::sleep(Duration::from_millis(500));
        signal(&child, "-INT");
        let begin = Instant::now();
        let said = failure(&child.wait_with_output().unwrap(), 130);
        assert!(said.contains("interrupted"), "{said}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }
}

/// All of them at once: patience is not needed for each in turn.
#[test]
fn patience_covers_connecting() {
    let place = Place::new(10);
    let all: Vec<_> = (0..4).map(|_| full()).collect();
    let from = place.text("from");
    let said = failure(&run(&["send", &from, &all[0].2, "--patience", "0.5"]), 1);
    assert!(said.contains(&all[0].2) && said.contains("no answer within 500ms"), "{said}");
    let (address, receive) = receiver("127.0.0.1:0");
    let mut command = getbuf();
    command.args(["send", &from, &address, "--patience", "2"]);
    command.args(all.iter().map(|(.., address)| address));
    let begin = Instant::now();
    let said = failure(&command.output().unwrap(), 1);
    let time = begin.elapsed();
    for (.., address) in &all {
        assert!(said.contains(address), "{said}");
    }
    assert!(said.contains("to 1 of 5 receivers"), "{said}");
    assert!(receive.join().unwrap() == place.bytes);
    assert!(time < Duration::from_secs(7), "{time:?}, not much more than 2 s");
}

/// The name server never answers.
#[test]
fn looking_up_a_name_is_covered_too() {
    let place = Place::new(10);
    let Ok(silent) = UdpSocket::bind("127.0.0.1:53") else {
        println!("skipped: port 53 is not to be had");
        return;
    };
    let resolver = "nameserver 127.0.0.1\noptions timeout:30\n";
    let send = "exec \"$getbuf\" send from slow.example:9";
    let script = format!("{send} --patience 1");
    let Some(mut command) = with_names(&place, "127.0.0.1 localhost\n", resolver, &script) else {
        return;
    };
    let begin = Instant::now();
    let said = failure(&command.output().unwrap(), 1);
    assert!(said.contains("slow.example:9: looking up the host") && said.contains("1s"), "{said}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(silent.recv(&mut [0; 512]).unwrap() > 0, "it was asked");

    let mut command = with_names(&place, "127.0.0.1 localhost\n", resolver, send).unwrap();
    // What the first one has asked.
    silent.set_nonblocking(true).unwrap();
    while silent.recv(&mut [0; 512]).is_ok() {}
    silent.set_nonblocking(false).unwrap();
    let child = command.spawn().unwrap();
    silent.recv(&mut [0; 512]).unwrap();
    let begin = Instant::now();
    signal(&child, "-INT");
    failure(&child.wait_with_output().unwrap(), 130);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn every_address_of_a_name_is_told_of() {
    let place = Place::new(10);
    let port = listener().1.rsplit_once(':').unwrap().1.to_owned();
    let hosts = "127.0.0.1 many.example\n127.0.0.2 many.example\n127.0.0.3 many.example\n";
    let script = format!("exec \"$getbuf\" send from many.example:{port}");
    let Some(mut command) = with_names(&place, hosts, "", &script) else { return };
    let said = failure(&command.output().unwrap(), 1);
    for address in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
        assert!(said.contains(&format!("{address}:{port}: ")), "{address}: {said}");
    }
    // The next one is tried.
    let there = TcpListener::bind("127.0.0.2:0").unwrap();
    let port = there.local_addr().unwrap().port();
    let script = format!("exec \"$getbuf\" send from many.example:{port} --patience 5");
    let child = with_names(&place, hosts, "", &script).unwrap().spawn().unwrap();
    let mut got = Vec::new();
    there.accept().unwrap().0.read_to_end(&mut got).unwrap();
    success(&child.wait_with_output().unwrap());
    assert!(got == place.bytes);
}
