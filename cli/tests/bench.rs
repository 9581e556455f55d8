// SPDX-License-Identifier: MIT OR Apache-2.0
//! `getbuf bench`: every way moves the right bytes, or says why it does not run.

use std::fs;
use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Command {
    let mut getbuf = Command::new(env!("CARGO_BIN_EXE_getbuf"));
    getbuf.arg("bench").args(arguments).stdin(Stdio::null());
    getbuf
}

fn run(arguments: &[&str]) -> Output {
    bench(arguments).output().expect("getbuf runs")
}

fn list<'a>(value: &'a Value, name: &str) -> &'a Vec<Value> {
    value[name].as_array().unwrap_or_else(|| panic!("no {name} in {value}"))
}

/// Runs a few requests of a case. Each way checks its bytes before it is measured.
fn every_way(case: &str) {
    let output = run(&[case, "--requests", "32", "--repeats", "1", "--json", "-"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let results: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let missing = results["missing_engines"].as_object().expect("engines");
    let cases = list(&results, "cases");
    assert_eq!(cases.len(), 1);
    let mut measured = 0;
    for point in list(&cases[0], "points") {
        for way in list(point, "ways") {
            let name = way["name"].as_str().expect("a name");
            let Some(reason) = way["not_run"].as_str() else {
                let sample = &list(way, "samples")[0];
                assert!(sample["requests"].as_u64() >= Some(1), "{name}");
                assert!(sample["wall_ns"].as_u64() >= Some(1), "{name}");
                measured += 1;
                continue;
            };
            let no_engine = missing.keys().any(|engine| reason.contains(engine.as_str()));
            // sendfile(2) wants a source with offsets; zero-copy sends want Linux 6.0; and a user
            // may have only so much of files, pipes and pinned memory.
            let known = [
                "Invalid argument",
                "SEND_ZC",
                "Too many open files",
                "a pipe with room",
                "RLIMIT_MEMLOCK",
            ];
            let known = known.iter().any(|known| reason.contains(known));
            assert!(no_engine || known, "{case}, {name}: {reason}");
        }
    }
    assert!(measured > 0, "{case}: nothing was measured");
}

#[test]
fn a_page_to_nowhere() {
    every_way("rfc");
}

#[test]
fn a_look_at_a_lease() {
    every_way("look");
}

#[test]
fn a_file_to_a_file() {
    every_way("file-file");
}

#[test]
fn a_file_to_tcp() {
    every_way("file-tcp");
}

#[test]
fn a_file_to_a_unix_socket() {
    every_way("file-unix");
}

#[test]
fn a_pipe_to_tcp() {
    every_way("pipe-tcp");
}

#[test]
fn many_flows() {
    every_way("flows");
}

#[test]
fn many_sinks() {
    every_way("fan-out");
}

#[test]
fn the_table_fits_and_the_report_needs_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report.html");
    let report = report.to_str().expect("ASCII");
    let output = run(&["rfc", "--requests", "32", "--repeats", "2", "--report", report]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).expect("text");
    assert!(table.contains("splice(2)") && table.contains("requests/s"), "{table}");
    for line in table.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let page = fs::read_to_string(report).expect("a report");
    let release = rustix::system::uname();
    assert!(page.contains(&*release.release().to_string_lossy()), "the kernel is named");
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert!(page.matches("<svg").count() >= 3);
    // Nothing is fetched from anywhere: an address stands only in the name of SVG.
    assert!(!page.replace("http://www.w3.org/2000/svg", "").contains("http"), "a link");
    assert!(!page.contains("<script"), "a script");
}

#[test]
fn an_interrupted_run_tells_what_it_had_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("ASCII");
    let child = bench(&["rfc", "--time", "3600", "--dir", path])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("getbuf runs");
    thread::sleep(Duration::from_secs(2));
    let begin = Instant::now();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("Interrupted"), "{table}");
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (arguments, says) in [
        (&["nothing"][..], "fan-out"),
        (&["--time", "0"], "--time"),
        (&["--dir", "/nowhere", "rfc"], "/nowhere"),
        (&["--repeats", "many"], "--repeats"),
    ] {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(says), "{said}");
    }
}

#[test]
fn what_cannot_be_written_is_told_before_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let inside = |name: &str| folder.path().join(name).to_str().expect("ASCII").to_owned();
    fs::write(inside("file"), "precious").expect("a file");
    let begin = Instant::now();
    for option in ["--json", "--report"] {
        for (path, why) in [
            (inside("none/x"), "No such file"),
            (inside(""), "directory"),
            (inside("file/x"), "Not a directory"),
        ] {
            let output = run(&["rfc", "--time", "3600", option, &path]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains(&*path) && said.contains(why), "{said}");
            assert!(output.stdout.is_empty());
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    // What is there stays until there is something in its place, and nothing new is left behind.
    let output =
        run(&["--dir", "/nowhere", "look", "--json", &inside("file"), "--report", &inside("new")]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read(inside("file")).expect("it is there"), b"precious");
    assert!(!folder.path().join("new").exists());
}

#[test]
fn what_was_there_is_replaced_as_a_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("results.json");
    fs::write(&path, vec![b'x'; 1 << 20]).expect("a file");
    let json = path.to_str().expect("ASCII");
    let output = run(&["look", "--requests", "8", "--repeats", "1", "--json", json]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&fs::read(&path).expect("it is there")).expect("JSON");
}

#[test]
fn a_way_that_is_not_there_is_an_error_with_those_that_are() {
    for arguments in [&["--only", "nonesuch"][..], &["look", "--only", "sendfile"]] {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("pread(2)") && said.contains(arguments.last().unwrap()), "{said}");
        assert!(output.stdout.is_empty());
    }
}

/// All was measured, and is being written.
#[test]
fn an_interruption_after_the_last_sample_is_success() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fifo");
    let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo");
    assert!(made.success());
    let child = bench(&["look", "--requests", "1", "--repeats", "200", "--json"])
        .arg(&path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("getbuf runs");
    let mut json = fs::File::open(&path).expect("a pipe");
    let mut got = vec![0];
    json.read_exact(&mut got).expect("the first byte");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    thread::sleep(Duration::from_millis(300));
    json.read_to_end(&mut got).expect("the others");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(got.len() > 1 << 16, "{} bytes fit a pipe", got.len());
    let results: Value = serde_json::from_slice(&got).expect("JSON");
    assert_eq!(results["interrupted"], false);
}
