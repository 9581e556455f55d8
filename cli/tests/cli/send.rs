// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files over TCP, to one receiver and to many.

use super::*;

#[test]
fn sends_over_ipv4_and_by_name() {
    for len in [0, 1, 3_000_001] {
        let place = Place::new(len);
        let (address, receive) = receiver("127.0.0.1:0");
        let address = address.replace("127.0.0.1", "localhost");
        success(&run(&["send", &place.text("from"), &address, "--block-size", "64K"]));
        assert!(receive.join().unwrap() == place.bytes);
    }
}

#[test]
fn sends_over_ipv6() {
    if TcpListener::bind("[::1]:0").is_err() {
        println!("skipped: this machine has no IPv6 loopback");
        return;
    }
    let place = Place::new(10_001);
    let (address, receive) = receiver("[::1]:0");
    success(&run(&["send", &place.text("from"), &address]));
    assert!(receive.join().unwrap() == place.bytes);
}

#[test]
fn sends_its_standard_input() {
    let (address, receive) = receiver("127.0.0.1:0");
    let mut child =
        getbuf().args(["send", "-", &address, "-q"]).stdin(Stdio::piped()).spawn().unwrap();
    let bytes = content(300_007);
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(receive.join().unwrap() == bytes);
}

#[test]
fn addresses_that_do_not_work_are_named() {
    let place = Place::new(10);
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for (address, cause, code) in
        [(&*gone, "refused", 1), ("nowhere", "HOST:PORT", 2), ("127.0.0.1:x", "HOST:PORT", 2)]
    {
        let said = failure(&run(&["send", &place.text("from"), address]), code);
        assert!(said.contains(address) && said.contains(cause), "{said}");
    }
}

#[test]
fn a_receiver_that_leaves_is_told_with_what_it_got() {
    let place = Place::new(30_000_000);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let leave = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.read_exact(&mut [0; 1000]).unwrap();
    });
    let said = failure(&run(&["send", &place.text("from"), &address]), 1);
    leave.join().unwrap();
    assert!(said.contains(&address) && said.contains("bytes arrived"), "{said}");
    assert!(!said.contains("30000000 bytes"), "{said}");
}

#[test]
fn sends_to_many() {
    let place = Place::new(3_000_001);
    let receivers: Vec<_> = (0..5).map(|_| receiver("127.0.0.1:0")).collect();
    let from = place.text("from");
    let mut arguments = vec!["send", &from];
    arguments.extend(receivers.iter().map(|(address, _)| &**address));
    let said = success(&run(&arguments));
    assert!(said.contains("to 5 of 5 receivers"), "{said}");
    for (address, receive) in receivers {
        assert!(said.contains(&format!("{address}: 3000001 bytes")), "{said}");
        assert!(receive.join().unwrap() == place.bytes, "{address}");
    }
}

/// One that cannot be reached, one that leaves and one that never reads do the others no harm.
#[test]
fn of_many_receivers_those_that_fail_are_named() {
    let place = Place::new(30_000_000);
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (leaves, sleeps) = (TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0"));
    let (leaves, sleeps) = (leaves.unwrap(), sleeps.unwrap());
    let names = [&leaves, &sleeps].map(|peer| peer.local_addr().unwrap().to_string());
    let leave = thread::spawn(move || {
        leaves.accept().unwrap().0.read_exact(&mut [0; 1000]).unwrap();
    });
    let sleep = thread::spawn(move || sleeps.accept().unwrap().0);
    let (one, other) = (receiver("127.0.0.1:0"), receiver("127.0.0.1:0"));
    let from = place.text("from");
    // Long enough that nobody who does read is taken for one who does not, on a busy machine.
    let output =
        run(&["send", &from, &one.0, &gone, &names[0], &names[1], &other.0, "--patience", "5"]);
    let said = failure(&output, 1);
    assert!(said.contains(&gone) && said.contains("refused"), "{said}");
    assert!(said.contains(&format!("getbuf: {}: ", names[0])), "{said}");
    assert!(said.contains(&format!("{}: the sink has taken nothing for 5s", names[1])), "{said}");
    assert!(said.contains("to 2 of 5 receivers") && said.contains("3 of 5 receivers"), "{said}");
    assert!(one.1.join().unwrap() == place.bytes && other.1.join().unwrap() == place.bytes);
    leave.join().unwrap();
    // It must not take what it has for the whole.
    let mut late = sleep.join().unwrap();
    let error = late.read_to_end(&mut Vec::new()).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// The last bytes are with the sending kernel only when the transfer ends: that is no success yet.
#[test]
fn a_receiver_that_leaves_at_the_end_is_told() {
    let place = Place::new(1000);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let leave = thread::spawn(move || {
        let stream = listener.accept().unwrap().0;
        // Something is there, and is never read.
        stream.peek(&mut [0]).unwrap();
    });
    let said = failure(&run(&["send", &place.text("from"), &address]), 1);
    leave.join().unwrap();
    assert!(said.contains(&address) && said.contains("left before"), "{said}");
}

/// Whenever it leaves: a reset that comes before the connection is ended for writing is a reset.
#[test]
fn a_receiver_that_leaves_in_between_is_told() {
    let place = Place::new(100_000);
    for _ in 0..20 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // It never has room for all of it.
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 4096).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let leave = thread::spawn(move || {
            listener.accept().unwrap().0.peek(&mut [0]).unwrap();
        });
        let said = failure(&run(&["send", &place.text("from"), &address]), 1);
        leave.join().unwrap();
        assert!(said.contains(&address), "{said}");
    }
}

#[test]
fn what_a_receiver_answers_does_no_harm() {
    let place = Place::new(100_000);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let receive = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(&[7; 10_000]).unwrap();
        got
    });
    success(&run(&["send", &place.text("from"), &address]));
    assert!(receive.join().unwrap() == place.bytes);
}

/// Before anybody is connected to.
#[test]
fn a_source_that_cannot_be_sent_is_named() {
    let place = Place::new(10);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let folder = place.folder.path().to_str().unwrap();
    let said = failure(&run(&["send", folder, &address]), 1);
    assert!(said.contains(folder) && said.contains("directory"), "{said}");
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}
