// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line of an ordinary user who may lock little memory: one after the other, many at once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const LENGTH: usize = 300_017;

/// Users whom nobody else is: what a user may lock is counted over all of that user's processes. Each
/// test has its own.
fn user(test: u32) -> u32 {
    20_000 + (std::process::id() * 8 + test) % 40_000
}

fn content() -> Vec<u8> {
    (0..LENGTH as u32).map(|at| (at.wrapping_mul(at) >> 7) as u8).collect()
}

/// A folder for everybody, with a file in it.
fn place() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("it is ours");
    fs::write(folder.path().join("from"), content()).expect("a file");
    folder
}

/// Runs it as an ordinary user with so many KiB.
fn getbuf(folder: &Path, test: u32, kibibytes: u32, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit -l {kibibytes} && exec \"$@\"");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_getbuf")]).args(arguments);
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(user(test)).gid(user(test));
    }
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn copied(folder: &Path, name: &str, output: &Output) {
    assert!(output.status.success(), "{name}: {}", said(output));
    assert!(fs::read(folder.join(name)).expect("a copy") == content(), "{name}");
}

#[test]
fn one_after_the_other() {
    let folder = place();
    // About half of the limit, and nearly all of it.
    for depth in ["16", "31"].into_iter().cycle().take(40) {
        let arguments = ["cp", "-q", "--depth", depth, "--block-size", "256K", "from", "to"];
        let output = getbuf(folder.path(), 0, 8192, &arguments).output().expect("it runs");
        copied(folder.path(), "to", &output);
    }
}

#[test]
fn four_at_once() {
    let folder = place();
    for _ in 0..10 {
        let names = ["one", "two", "three", "four"];
        let children = names.map(|name| {
            let mut command = getbuf(folder.path(), 1, 8192, &["cp", "-q", "from", name]);
            (name, command.spawn().expect("it runs"))
        });
        for (name, child) in children {
            copied(folder.path(), name, &child.wait_with_output().expect("it ends"));
        }
    }
}

/// Some of them for as long as they like.
#[test]
fn four_that_last() {
    let folder = place();
    let mut streams: Vec<_> = (0..4)
        .map(|number| {
            let mut command = getbuf(folder.path(), 2, 8192, &["cp", "-q", "-", "-"]);
            let mut child = command.stdin(Stdio::piped()).spawn().expect("it runs");
            // It has its ring when it has moved something.
            let (input, output) = (child.stdin.as_mut(), child.stdout.as_mut());
            let mut got = [0; 5];
            std::io::Write::write_all(input.expect("a pipe"), b"first").expect("it reads");
            let read = std::io::Read::read_exact(output.expect("a pipe"), &mut got);
            if read.is_err() {
                let output = child.wait_with_output().expect("it has ended");
                panic!("{number}: {}", said(&output));
            }
            assert_eq!(&got, b"first");
            child
        })
        .collect();
    let output = getbuf(folder.path(), 2, 8192, &["cp", "-q", "from", "to"]).output();
    copied(folder.path(), "to", &output.expect("it runs"));
    for stream in &mut streams {
        drop(stream.stdin.take());
        assert!(stream.wait().expect("it ends").success());
    }
}

#[test]
fn with_little_memory() {
    let folder = place();
    for kibibytes in [64, 32, 16, 12] {
        let run = |arguments: &[&str]| {
            getbuf(folder.path(), 3, kibibytes, arguments).output().expect("it runs")
        };
        copied(folder.path(), "to", &run(&["cp", "-q", "from", "to"]));
        copied(folder.path(), "small", &run(&["cp", "-q", "--depth", "1", "from", "small"]));
        // What was asked for does not fit: the limit is what is wrong, and not io_uring.
        let output = run(&["cp", "--depth", "16", "--block-size", "256K", "from", "none"]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        for words in ["RLIMIT_MEMLOCK", "ulimit -l", &(kibibytes << 10).to_string()] {
            assert!(said(&output).contains(words), "{words}: {}", said(&output));
        }
        assert!(!said(&output).contains("does not work here"), "{}", said(&output));
        assert!(!folder.path().join("none").exists());
    }
}

/// A look that could not be had is not taken for an answer.
#[test]
fn with_none() {
    let folder = place();
    let output = getbuf(folder.path(), 4, 0, &["probe"]).output().expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("no: io_uring_setup"), "{text}");
    if text.contains("RLIMIT_MEMLOCK allows 0 bytes") {
        assert!(text.contains("SEND_ZC             unknown\n"), "{text}");
    } else {
        // The kernel does not count a ring's queues.
        assert!(text.contains("copy    yes"), "{text}");
    }
    let output = getbuf(folder.path(), 4, 0, &["cp", "from", "to"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("RLIMIT_MEMLOCK allows 0 bytes"), "{}", said(&output));
    assert!(!said(&output).contains("does not work here"), "{}", said(&output));
    assert!(!folder.path().join("to").exists());
}
