// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line as a person or a script meets it: real files, pipes and sockets.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

fn getbuf() -> Command {
    Command::new(env!("CARGO_BIN_EXE_getbuf"))
}

fn run(arguments: &[&str]) -> Output {
    getbuf().args(arguments).stdin(Stdio::null()).output().expect("getbuf runs")
}

/// What it said of its failure, after a check that it was one with this exit code.
fn failure(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

fn success(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// Bytes that differ from position to position.
fn content(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// A folder with a file `from`.
struct Place {
    folder: TempDir,
    bytes: Vec<u8>,
}

impl Place {
    fn new(len: usize) -> Self {
        let place = Self { folder: tempfile::tempdir().expect("a folder"), bytes: content(len) };
        fs::write(place.path("from"), &place.bytes).expect("the source");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a path of ASCII").to_owned()
    }

    fn cp(&self, more: &[&str]) -> Output {
        let (from, to) = (self.text("from"), self.text("to"));
        run(&[&["cp", from.as_str(), to.as_str()], more].concat())
    }

    fn is_copied(&self, name: &str) {
        let copied = fs::read(self.path(name)).expect("the copy");
        assert!(copied == self.bytes, "{name}: {} bytes that are not the file's", copied.len());
    }
}

/// A receiver of everything that one connection brings.
fn receiver(address: &str) -> (String, thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind(address).expect("a loopback address");
    let address = listener.local_addr().expect("its address").to_string();
    let receive = thread::spawn(move || {
        let mut got = Vec::new();
        listener.accept().expect("a connection").0.read_to_end(&mut got).expect("bytes");
        got
    });
    (address, receive)
}

#[test]
fn files_of_every_awkward_length_are_copied() {
    for len in [0, 1, 4095, 4096, 4097, 65_536, 5_000_001] {
        let place = Place::new(len);
        let said = success(&place.cp(&["--block-size", "64K", "--depth", "4"]));
        place.is_copied("to");
        let bytes = if len == 1 { "byte" } else { "bytes" };
        assert!(said.contains(&format!("{len} {bytes}")), "{said}");
        assert!(said.contains("engine "), "{said}");
    }
}

#[test]
fn a_longer_file_is_replaced_as_a_whole() {
    let place = Place::new(1000);
    fs::write(place.path("to"), content(5000)).unwrap();
    success(&place.cp(&[]));
    place.is_copied("to");
}

#[test]
fn into_a_folder_under_its_own_name_and_with_its_permissions() {
    let place = Place::new(10);
    fs::set_permissions(place.path("from"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::create_dir(place.path("folder")).unwrap();
    success(&run(&["cp", &place.text("from"), &place.text("folder")]));
    place.is_copied("folder/from");
    let mode = fs::metadata(place.path("folder/from")).unwrap().permissions().mode();
    assert_eq!(mode & 0o700, 0o700, "{mode:o}");
    assert_eq!(mode & 0o007, 0, "{mode:o}");
}

#[test]
fn quiet_is_quiet() {
    let place = Place::new(10);
    let output = place.cp(&["--quiet"]);
    assert_eq!(success(&output), "");
    assert_eq!(output.stdout, b"");
}

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
fn a_file_is_never_copied_onto_itself() {
    let place = Place::new(1000);
    symlink(place.path("from"), place.path("soft")).unwrap();
    fs::hard_link(place.path("from"), place.path("hard")).unwrap();
    let folder = place.folder.path().to_str().unwrap();
    for to in [&place.text("from"), &place.text("soft"), &place.text("hard"), folder] {
        let said = failure(&run(&["cp", &place.text("from"), to]), 1);
        assert!(said.contains("same file"), "{said}");
        place.is_copied("from");
    }
}

#[test]
fn what_cannot_be_read_leaves_the_destination_alone() {
    let place = Place::new(10);
    fs::write(place.path("to"), b"precious").unwrap();
    let folder = place.folder.path().to_str().unwrap();
    for (source, cause) in [(&*place.text("none"), "No such file"), (folder, "directory")] {
        let said = failure(&run(&["cp", source, &place.text("to")]), 1);
        assert!(said.contains(source) && said.contains(cause), "{said}");
        assert_eq!(fs::read(place.path("to")).unwrap(), b"precious");
        failure(&run(&["cp", source, &place.text("new")]), 1);
        assert!(!place.path("new").exists());
    }
}

#[test]
fn an_engine_that_does_not_work_leaves_the_destination_alone() {
    let probe = probe();
    let place = Place::new(10);
    fs::write(place.path("to"), b"precious").unwrap();
    for engine in ["opcode", "module"] {
        let says = &probe["engines"][engine];
        if says["available"] == true {
            success(&place.cp(&["--engine", engine]));
            place.is_copied("to");
            fs::write(place.path("to"), b"precious").unwrap();
            continue;
        }
        let said = failure(&place.cp(&["--engine", engine]), 1);
        assert!(said.contains(says["reason"].as_str().unwrap()), "{said}");
        assert_eq!(fs::read(place.path("to")).unwrap(), b"precious");
    }
    let said = success(&place.cp(&["--engine", "copy"]));
    assert!(said.contains("engine copy (1 copy)"), "{said}");
}

#[test]
fn numbers_that_make_no_sense_are_refused_by_name() {
    let place = Place::new(10);
    for (option, value, cause) in [
        ("--block-size", "0", "at least 1 byte"),
        ("--block-size", "12Q", "number of bytes"),
        ("--block-size", "5000M", "at most 1024M"),
        ("--depth", "0", "1..=16384"),
        ("--depth", "x", "invalid digit"),
        ("--engine", "warp", "opcode, module and copy"),
    ] {
        let said = failure(&place.cp(&[option, value]), 2);
        assert!(said.contains(option) && said.contains(cause), "{said}");
        assert!(!place.path("to").exists());
    }
    let said = failure(&place.cp(&["--block-size", "1M", "--depth", "4096"]), 1);
    assert!(said.contains("at most 1024 blocks"), "{said}");
    assert!(!place.path("to").exists());
}

#[test]
fn a_full_disk_names_the_file_and_how_much_arrived() {
    let place = Place::new(100_000);
    let said = failure(&run(&["cp", &place.text("from"), "/dev/full"]), 1);
    for part in ["/dev/full", "No space left", "0 bytes arrived"] {
        assert!(said.contains(part), "{said}");
    }
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

/// The usual limit of memory that may be locked is 8 MiB.
#[test]
fn what_is_not_asked_for_is_fitted_to_the_limit() {
    let place = Place::new(100_000);
    let (from, to) = (place.text("from"), place.text("to"));
    for option in [["--block-size", "4M"], ["--depth", "1024"]] {
        let command = [&["cp", &*from, &*to][..], &option].concat();
        // Root may lock any amount, unless that is taken from it.
        let limit = "ulimit -l 8192; [ $(id -u) != 0 ] || set -- \
                     setpriv --bounding-set=-ipc_lock -- \"$@\"; exec \"$@\"";
        let limited = Command::new("sh")
            .args(["-c", limit, "sh", env!("CARGO_BIN_EXE_getbuf")])
            .args(command)
            .output()
            .unwrap();
        success(&limited);
        place.is_copied("to");
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_signal_ends_it_in_order() {
    let place = Place::new(0);
    for name in ["-INT", "-TERM"] {
        let mut child = getbuf()
            .args(["cp", "-", &place.text("to")])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&[7; 5000]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(100);
        while fs::metadata(place.path("to")).map_or(0, |now| now.len()) < 5000 {
            assert!(Instant::now() < deadline, "nothing arrives");
            thread::sleep(Duration::from_millis(5));
        }
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let said = failure(&output, 130);
        assert!(said.contains("interrupted; 5000 bytes arrived"), "{said}");
        fs::remove_file(place.path("to")).unwrap();
    }
}

fn probe() -> Value {
    let output = run(&["probe", "--json"]);
    success(&output);
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn the_probe_gives_a_reason_for_everything_that_does_not_work() {
    let probe = probe();
    assert!(probe["kernel"].as_str().is_some_and(|kernel| !kernel.is_empty()));
    for engine in ["opcode", "module", "copy"] {
        let says = &probe["engines"][engine];
        let reason = says["reason"].as_str();
        assert_eq!(says["available"] == false, reason.is_some_and(|reason| reason.len() > 20));
    }
    assert_eq!(probe["engines"]["copy"]["available"], true);
    let opcode = &probe["engines"]["opcode"];
    assert_eq!(opcode["available"] == true, probe["get_buf_opcode"].is_u64());
    // On mainline since 6.7 the kernel's own probe claims the RFC's number.
    if opcode["available"] == false && probe["claimed_opcodes"].as_u64() > Some(49) {
        assert!(opcode["reason"].as_str().unwrap().contains("READ_MULTISHOT"), "{opcode}");
    }
    let output = run(&["probe"]);
    success(&output);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(probe["kernel"].as_str().unwrap()) && text.contains("RLIMIT_MEMLOCK"));
}

#[test]
fn help_has_examples_and_the_version_is_there() {
    for command in ["probe", "cp", "send"] {
        let output = run(&[command, "--help"]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("Example"), "{command}");
    }
    let output = run(&["--version"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains(env!("CARGO_PKG_VERSION")));
    assert!(!Path::new("--version").exists());
    failure(&run(&[]), 2);
    failure(&run(&["cp", "only-one"]), 2);
}

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
