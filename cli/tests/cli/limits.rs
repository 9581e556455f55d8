// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the system gives little.

use super::*;

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

/// A user of its own: threads are counted for each user, and the tests run at the same time.
fn user() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(54_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Runs the program with so many threads for its user: an own one where we are root, who has no
/// limit, or else the one we are, who has more of them already.
fn with_threads(place: &Place, count: u32, arguments: &[&str]) -> Output {
    // Where others may run it.
    let program = place.path("getbuf");
    if !program.exists() {
        // By another process: a child that another test starts meanwhile would have the file that is
        // written to, and what is open for writing cannot be run.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_getbuf")).arg(&program).status();
        assert!(copied.expect("cp").success());
    }
    let mut command = Command::new("prlimit");
    command.arg(format!("--nproc={count}")).arg(program).args(arguments);
    command.current_dir(place.folder.path()).stdin(Stdio::null());
    if rustix::process::geteuid().is_root() {
        let user = user();
        for path in [place.folder.path(), &place.path("from")] {
            std::os::unix::fs::chown(path, Some(user), None).expect("root gives files away");
        }
        command.uid(user).gid(user);
    }
    command.output().expect("prlimit, of util-linux")
}

fn no_threads(place: &Place, count: u32, arguments: &[&str]) {
    let said = failure(&with_threads(place, count, arguments), 1);
    assert!(said.contains("RLIMIT_NPROC") && said.contains("ulimit -u"), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// One thread takes signals, and the kernel has one for what has to be waited for.
#[test]
fn without_a_thread_to_be_had_nothing_is_touched() {
    let place = Place::new(100_000);
    fs::write(place.path("keep"), b"precious").unwrap();
    fs::set_permissions(place.path("keep"), fs::Permissions::from_mode(0o666)).unwrap();
    for count in [1, 2] {
        no_threads(&place, count, &["cp", "from", "to"]);
        assert!(!place.path("to").exists());
        no_threads(&place, count, &["cp", "from", "keep"]);
        assert_eq!(fs::read(place.path("keep")).unwrap(), b"precious");
    }
    if rustix::process::geteuid().is_root() {
        success(&with_threads(&place, 3, &["cp", "from", "to"]));
        place.is_copied("to");
    } else {
        println!("skipped: with three threads, which takes a user without others");
    }
}

#[test]
fn without_a_thread_to_be_had_nobody_is_connected_to() {
    let place = Place::new(10);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for count in [1, 2] {
        no_threads(&place, count, &["send", "from", &address]);
        no_threads(&place, count, &["send", "from", &address, &address]);
    }
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    no_threads(&place, 1, &["proxy", "127.0.0.1:0", "127.0.0.1:9"]);
    no_threads(&place, 1, &["bench", "rfc"]);
}

/// It has threads of its own, more of them in some ways than in others.
#[test]
fn a_measurement_with_few_threads_says_so() {
    let place = Place::new(10);
    for count in 2..6 {
        let arguments = ["bench", "pipe-tcp", "--requests", "8", "--repeats", "1", "--dir", "."];
        let output = with_threads(&place, count, &arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(0 | 1)), "{count}: {said}");
        assert!(!said.contains("panicked"), "{count}: {said}");
        let told = said + &String::from_utf8_lossy(&output.stdout);
        assert!(count > 2 || told.contains("RLIMIT_NPROC"), "{told}");
    }
}
