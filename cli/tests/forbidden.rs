// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line where it may have no ring: it says so, says what would help, and touches nothing.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

const DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";
const GROUP: &str = "/proc/sys/kernel/io_uring_group";
/// One test changes the system for all of them.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
const NOBODY: u32 = 65_534;

/// Two files, for everybody: `from`, and `to`, which is to be left alone.
fn place() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in [("from", "content"), ("to", "precious"), ("", "")] {
        let path = folder.path().join(name);
        if !name.is_empty() {
            fs::write(&path, content).expect("a file");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("it is ours");
    }
    folder
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Both commands, each as `change` leaves it. Every one of `words` has to be in what they say.
fn is_told(change: &dyn Fn(&mut Command), words: &[&str]) {
    let folder = place();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_getbuf"));
        command.args(arguments).current_dir(folder.path()).stdin(Stdio::null());
        change(&mut command);
        command.output().expect("getbuf runs")
    };
    let output = run(&["cp", "from", "to"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    for word in words {
        assert!(said(&output).contains(word), "{word}: {}", said(&output));
    }
    assert_eq!(fs::read(folder.path().join("to")).expect("it is there"), b"precious");

    let output = run(&["probe", "--json"]);
    assert!(output.status.success(), "{}", said(&output));
    let probe: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(probe["best"].is_null());
    // What could not be asked is not known.
    assert!(probe["features"]["send_zc"].is_null(), "{probe:#}");
    for engine in ["opcode", "module", "copy"] {
        let reason = probe["engines"][engine]["reason"].as_str().expect("a reason");
        for word in words {
            assert!(reason.contains(word), "{engine}: {word}: {reason}");
        }
    }
    let output = run(&["probe"]);
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    assert!(text.contains("SEND_ZC             unknown\n"), "{text}");
}

/// Makes every io_uring_setup(2) of this process fail with `EPERM`, as in many containers.
fn forbid_rings() -> io::Result<()> {
    let filter = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let deny = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut program = [
        // The number of the call.
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, deny),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: takes numbers only.
    let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the kernel copies the program, which lives until the call returns.
    let set =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if (privileges, set) == (0, 0) { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn a_sandbox_without_rings_is_told_of() {
    let _alone = ONE_AT_A_TIME.lock();
    let confine = |command: &mut Command| {
        // SAFETY: between fork and exec there are two system calls, and no allocation.
        unsafe { command.pre_exec(forbid_rings) };
    };
    is_told(&confine, &["forbidden", "seccomp", "io_uring_setup"]);
}

#[test]
fn a_limit_of_open_files_is_told_of() {
    let _alone = ONE_AT_A_TIME.lock();
    let folder = place();
    let mut refused = 0;
    // From so few that it cannot begin to enough for all that it opens.
    for limit in (5..20).chain([40, 60, 80, 100]) {
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_getbuf"), "cp", "from", "to"])
            .current_dir(folder.path())
            .output()
            .expect("a shell");
        let to = fs::read(folder.path().join("to")).expect("it is there");
        if output.status.success() {
            assert_eq!(to, b"content");
            continue;
        }
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{limit}: {said}");
        assert!(said.contains("Too many open files"), "{limit}: {said}");
        assert_eq!(to, b"precious", "{limit}");
        refused += u32::from(said.contains("ulimit -n"));
    }
    assert!(refused > 0, "a ring that cannot be made says what to do");
    assert_eq!(fs::read(folder.path().join("to")).expect("it is there"), b"content");
}

/// The setting is the whole system's: it is only changed in a test kernel, whose first process is
/// the project's own.
#[test]
fn a_system_without_rings_is_told_of() {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if !line.contains("GETBUF_JOB=") {
        println!("skipped: this is no test kernel, and others may use io_uring here");
        return;
    }
    struct Before([(&'static str, String); 2]);
    impl Drop for Before {
        fn drop(&mut self) {
            for (path, value) in &self.0 {
                fs::write(path, value).expect("it is as it was");
            }
        }
    }
    let _alone = ONE_AT_A_TIME.lock();
    let setting = |path| (path, fs::read_to_string(path).expect("a setting, since Linux 6.6"));
    let _before = Before([DISABLED, GROUP].map(setting));
    let as_nobody = |command: &mut Command| {
        command.uid(NOBODY).gid(NOBODY);
    };
    fs::write(DISABLED, "2").expect("root sets it");
    is_told(&|_| {}, &["kernel.io_uring_disabled is 2", "set it to 0"]);
    fs::write(DISABLED, "1").expect("root sets it");
    let advice = ["kernel.io_uring_disabled is 1", "set it to 0", "kernel.io_uring_group"];
    is_told(&as_nobody, &advice);
    // Root may, and so may the group.
    let folder = place();
    let copies = |change: &dyn Fn(&mut Command)| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_getbuf"));
        change(command.args(["cp", "from", "-"]).current_dir(folder.path()));
        let output = command.output().expect("getbuf runs");
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(output.stdout, b"content");
    };
    copies(&|_| {});
    fs::write(GROUP, NOBODY.to_string()).expect("root sets it");
    copies(&as_nobody);
}
