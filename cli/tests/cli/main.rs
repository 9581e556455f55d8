// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line as a person or a script meets it: real files, pipes and sockets.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

mod copy;
mod holes;
mod limits;
mod names;
mod odd;
mod probe;
mod proxy;
mod receivers;
mod send;
mod signals;
mod streams;

fn getbuf() -> Command {
    Command::new(env!("CARGO_BIN_EXE_getbuf"))
}

fn run(arguments: &[&str]) -> Output {
    getbuf().args(arguments).stdin(Stdio::null()).output().expect("getbuf runs")
}

/// Runs a script in the folder of a place. `$getbuf` is the program.
fn shell(place: &Place, script: &str) -> Output {
    shell_command(place, script).output().expect("a shell")
}

fn shell_command(place: &Place, script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).env("getbuf", env!("CARGO_BIN_EXE_getbuf"));
    shell.current_dir(place.folder.path()).stdin(Stdio::null());
    shell
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

/// A listener, and its address.
fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// A listener who accepts no more connections: they neither begin nor fail.
fn full() -> (TcpListener, Vec<TcpStream>, String) {
    let (listener, address) = listener();
    rustix::net::listen(&listener, 0).unwrap();
    let mut waiting = Vec::new();
    let (to, patience) = (listener.local_addr().unwrap(), Duration::from_millis(300));
    while let Ok(stream) = TcpStream::connect_timeout(&to, patience) {
        waiting.push(stream);
        assert!(waiting.len() < 100, "it accepts all");
    }
    (listener, waiting, address)
}

/// Runs a script in a mount namespace with these files in place of the system's.
fn with_names(place: &Place, hosts: &str, resolver: &str, script: &str) -> Option<Command> {
    let files =
        [("hosts", hosts), ("resolv.conf", resolver), ("nsswitch.conf", "hosts: files dns\n")];
    let mut whole = String::new();
    for (name, content) in files {
        fs::write(place.path(name), content).unwrap();
        whole +=
            &format!("[ -e /etc/{name} ] || exit 99; mount --bind {name} /etc/{name} || exit 99\n");
    }
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).env("getbuf", env!("CARGO_BIN_EXE_getbuf"));
        command.current_dir(place.folder.path()).stdin(Stdio::null()).stderr(Stdio::piped());
        command
    };
    if unshare(&whole).output().is_ok_and(|output| output.status.success()) {
        Some(unshare(&(whole + script)))
    } else {
        println!("skipped: no mount namespace with names of its own can be had here");
        None
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}
fn probe() -> Value {
    let output = run(&["probe", "--json"]);
    success(&output);
    serde_json::from_slice(&output.stdout).expect("JSON")
}
