// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections that are passed on.

use super::*;

/// A proxy that is killed if a test fails.
struct Proxy {
    child: Child,
    address: String,
    upstream: TcpListener,
}

impl Proxy {
    fn new(more: &[&str]) -> Self {
        let upstream = TcpListener::bind("127.0.0.1:0").expect("a loopback address");
        let to = upstream.local_addr().unwrap().to_string();
        Self::to(upstream, &to, more)
    }

    fn to(upstream: TcpListener, to: &str, more: &[&str]) -> Self {
        // Nobody else gets the number at once.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let child = getbuf()
            .args([&["proxy", &*address, to], more].concat())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("getbuf runs");
        let proxy = Self { child, address, upstream };
        drop(proxy.client());
        // The upstream sees that one as well, unless there is none.
        if to == proxy.upstream.local_addr().unwrap().to_string() {
            drop(proxy.upstream.accept().unwrap());
        }
        proxy
    }

    /// A client, as soon as the proxy listens.
    fn client(&self) -> TcpStream {
        for _ in 0..1000 {
            // While nobody listens there, TCP may connect a client to itself.
            if let Ok(client) = TcpStream::connect(&self.address)
                && client.local_addr().unwrap() != client.peer_addr().unwrap()
            {
                return client;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("nobody listens at {}", self.address);
    }

    fn pair(&self) -> (TcpStream, TcpStream) {
        let client = self.client();
        (client, self.upstream.accept().expect("the proxy connects").0)
    }

    fn status(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("a line");
        line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Ends it in order; what it said.
    fn end(mut self) -> String {
        signal(&self.child, "-TERM");
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).expect("text");
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}: {said}");
        said
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn raise_the_limit_of_files() -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: Some(maximum.map_or(8192, |most| most.min(8192))), maximum };
    setrlimit(Resource::Nofile, limit).is_ok() && limit.current >= Some(4096)
}

/// A thousand connections at once: every byte arrives where it belongs, memory and threads stay what
/// they were.
#[test]
fn a_proxy_of_a_thousand_connections() {
    if !raise_the_limit_of_files() {
        println!("skipped: RLIMIT_NOFILE allows too few open files");
        return;
    }
    const COUNT: usize = 1000;
    let proxy = Proxy::new(&["--block-size", "4K"]);
    let before = (proxy.status("Threads"), proxy.status("VmRSS"));
    let mut pairs: Vec<_> = (0..COUNT).map(|_| proxy.pair()).collect();
    let bytes = content(COUNT * 16 + 20_000);
    for round in 0..3 {
        for (index, (client, _)) in pairs.iter_mut().enumerate() {
            client.write_all(&bytes[index * 16 + round..][..10_000]).expect("it is read");
        }
        // Clients reach the upstream in the order in which they came.
        let mut got = vec![0; 10_000];
        for (index, (_, server)) in pairs.iter_mut().enumerate() {
            server.read_exact(&mut got).expect("bytes");
            assert!(got == bytes[index * 16 + round..][..10_000], "{index} there");
            server.write_all(&got[..5000]).expect("it is read");
        }
        for (index, (client, _)) in pairs.iter_mut().enumerate() {
            client.read_exact(&mut got[..5000]).expect("bytes");
            assert!(got[..5000] == bytes[index * 16 + round..][..5000], "{index} back");
        }
    }
    assert_eq!(proxy.status("Threads"), before.0);
    let grown = proxy.status("VmRSS").saturating_sub(before.1);
    assert!(grown < 16 << 10, "{grown} KiB more");
    for (client, mut server) in pairs {
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0]).expect("the end"), 0);
    }
    let said = proxy.end();
    assert!(said.contains("1001 connections, 0 of them failed"), "{said}");
    assert!(said.contains("30000000 bytes to the upstream, 15000000 bytes back"), "{said}");
}

/// More connections than there is room for wait for their turn.
#[test]
fn a_proxy_that_is_full_makes_clients_wait() {
    let proxy = Proxy::new(&["--connections", "2"]);
    let (one, two) = (proxy.pair(), proxy.pair());
    let mut late = proxy.client();
    late.write_all(b"late").unwrap();
    proxy.upstream.set_nonblocking(true).unwrap();
    thread::sleep(Duration::from_millis(300));
    assert!(proxy.upstream.accept().is_err(), "there is no room");
    proxy.upstream.set_nonblocking(false).unwrap();
    drop(one);
    let mut got = [0; 4];
    proxy.upstream.accept().unwrap().0.read_exact(&mut got).expect("its turn");
    assert_eq!(&got, b"late");
    drop(two);
    proxy.end();
}

#[test]
fn a_proxy_without_an_upstream_resets_its_clients() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let proxy = Proxy::to(upstream, &gone, &[]);
    let error = proxy.client().read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let said = proxy.end();
    assert!(said.contains(&gone) && said.contains("refused"), "{said}");
}

#[test]
fn a_proxy_ends_with_connections_open() {
    let proxy = Proxy::new(&["--quiet"]);
    let (mut client, _server) = proxy.pair();
    client.write_all(b"hello").unwrap();
    assert_eq!(proxy.end(), "");
    let error = client.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_proxy_that_cannot_listen_says_so() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = failure(&run(&["proxy", &address, "127.0.0.1:9"]), 1);
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
    let said = failure(&run(&["proxy", "nowhere", "127.0.0.1:9"]), 2);
    assert!(said.contains("HOST:PORT"), "{said}");
}

#[test]
fn a_proxy_prints_the_port_that_it_got() {
    let upstream = listener();
    let mut child = getbuf()
        .args(["proxy", "127.0.0.1:0", &upstream.1])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    let address = line.strip_prefix("listening on ").and_then(|rest| rest.split(',').next());
    let address = address.unwrap_or_else(|| panic!("{line}"));
    assert!(!address.ends_with(":0"), "{line}");
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    upstream.0.accept().unwrap().0.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    signal(&child, "-TERM");
    assert!(child.wait().unwrap().success());
    // To connect to, there is no such port.
    let said = failure(&run(&["proxy", "127.0.0.1:0", "127.0.0.1:0"]), 2);
    assert!(said.contains("1 to 65535"), "{said}");
}

/// A client's socket, with a limit on how long it is waited for.
fn is_reset_within(mut stream: TcpStream, limit: Duration) {
    let begin = Instant::now();
    stream.set_read_timeout(Some(limit)).unwrap();
    let error = stream.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{:?}", begin.elapsed());
}

#[test]
fn a_proxy_gives_an_upstream_up_that_does_not_answer() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_full, _waiting, address) = full();
    let proxy = Proxy::to(upstream, &address, &["--connect-timeout", "0.5"]);
    is_reset_within(proxy.client(), Duration::from_secs(20));
    let said = proxy.end();
    assert!(said.contains(&address) && said.contains("no answer within 500ms"), "{said}");
}

#[test]
fn a_proxy_resets_connections_that_are_idle() {
    let proxy = Proxy::new(&["--idle-timeout", "1"]);
    let ((idle, idle_too), (mut busy, mut busy_too)) = (proxy.pair(), proxy.pair());
    let begin = Instant::now();
    // One way is enough.
    while begin.elapsed() < Duration::from_millis(2500) {
        busy.write_all(b"x").unwrap();
        busy_too.read_exact(&mut [0]).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    idle.set_nonblocking(true).unwrap();
    is_reset_within(idle, Duration::from_millis(1));
    is_reset_within(idle_too, Duration::from_secs(20));
    busy_too.write_all(b"yes").unwrap();
    busy.read_exact(&mut [0; 3]).unwrap();
    drop((busy, busy_too));
    let said = proxy.end();
    assert!(
        said.contains("nothing was moved for 1s") && said.contains("1 of them failed"),
        "{said}"
    );
}

/// Nothing is read from it any more, and nothing is sent to it.
#[test]
fn a_proxy_notices_a_client_that_resets_after_its_end() {
    let proxy = Proxy::new(&[]);
    for ends_first in [0, 1] {
        let (client, server) = proxy.pair();
        let ends = if ends_first == 0 { [client, server] } else { [server, client] };
        let [one, mut other] = ends;
        one.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
        rustix::net::sockopt::set_socket_linger(&one, Some(Duration::ZERO)).unwrap();
        drop(one);
        let deadline = Instant::now() + Duration::from_secs(20);
        let error = loop {
            match other.take_error().unwrap() {
                Some(error) => break error,
                None => assert!(Instant::now() < deadline, "the other one is not told"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        // Its own end has come already.
        let kinds = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
        assert!(kinds.contains(&error.kind()), "{error}");
    }
    let said = proxy.end();
    assert!(said.contains("2 of them failed"), "{said}");
}

#[test]
fn a_proxy_tells_of_every_address_of_its_upstream() {
    let place = Place::new(0);
    let gone = listener().1.rsplit_once(':').unwrap().1.to_owned();
    let hosts = "127.0.0.1 many.example\n127.0.0.2 many.example\n";
    let script = format!("exec \"$getbuf\" proxy 127.0.0.1:0 many.example:{gone}");
    let Some(mut command) = with_names(&place, hosts, "", &script) else { return };
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    let address = line.strip_prefix("listening on ").and_then(|rest| rest.split(',').next());
    is_reset_within(TcpStream::connect(address.unwrap()).unwrap(), Duration::from_secs(20));
    let said = lines.next().unwrap().unwrap();
    for address in ["127.0.0.1", "127.0.0.2"] {
        assert!(said.contains(&format!("{address}:{gone}: ")), "{address}: {said}");
    }
    signal(&child, "-TERM");
    assert!(child.wait().unwrap().success());
}
