// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's init: sets the guest up, runs the job's command, looks at what it left behind, and
//! turns the guest off.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::system::{RebootCommand, delete_module, finit_module, reboot};
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

use super::log::{BEGIN, END};

/// In init's environment: the folder of the job.
pub(super) const JOB: &str = "GETBUF_JOB";
/// In init's environment: the consoles that take what the command prints.
pub(super) const STDOUT: &str = "GETBUF_STDOUT";
pub(super) const STDERR: &str = "GETBUF_STDERR";

/// Where the command runs: a tmpfs.
const WORK: &str = "/dev/shm/work";

const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";
/// Where the patched kernel and the module count leases.
const LEASES: [&str; 3] = [
    "/sys/kernel/debug/io_uring/leases",
    "/sys/class/misc/getbuf/stats/leases",
    "/sys/class/misc/getbuf/stats/pinned_bytes",
];

/// Whether this process is a guest's init.
pub(crate) fn is_init() -> bool {
    std::process::id() == 1 && env::var_os(JOB).is_some()
}

/// Does what init has to do. The machine is off when it returns, if it does.
pub(crate) fn init() {
    let job = PathBuf::from(env::var_os(JOB).unwrap_or_default());
    let mut findings = Vec::new();
    match serve(&job, &mut findings) {
        Ok(code) => {
            // The findings first: with a status, the job is complete.
            let _ = fs::write(job.join("findings"), findings.join("\n"));
            let _ = fs::write(job.join("status"), code.to_string());
        }
        Err(error) => {
            findings.push(format!("the guest's init: {error:#}"));
            let _ = fs::write(job.join("findings"), findings.join("\n"));
        }
    }
    rustix::fs::sync();
    let _ = reboot(RebootCommand::PowerOff);
}

fn serve(job: &Path, findings: &mut Vec<String>) -> Result<i32> {
    set_up()?;
    let debug = job.join("debug").exists();
    if debug {
        fs::write("/proc/sys/kernel/panic_on_warn", "1").context("panic_on_warn")?;
        fs::write(KMEMLEAK, "clear").context("kmemleak")?;
    }
    say(BEGIN)?;
    let module = job.join("module").exists();
    if module {
        load(job)?;
    }
    let code = command(job)?;
    leases(findings);
    if module {
        unload(findings);
    }
    if debug {
        leaks(findings)?;
    }
    say(END)?;
    Ok(code)
}

/// Writes a line to the kernel's log.
fn say(line: &str) -> Result<()> {
    Ok(fs::write("/dev/kmsg", format!("<5>{line}\n"))?)
}

/// File systems that programs expect, and the loopback interface.
fn set_up() -> Result<()> {
    for (kind, place, needed) in [
        ("proc", "/proc", true),
        ("sysfs", "/sys", true),
        ("debugfs", "/sys/kernel/debug", false),
        ("devtmpfs", "/dev", true),
        ("devpts", "/dev/pts", false),
        ("tmpfs", "/dev/shm", true),
    ] {
        // In devtmpfs; elsewhere it is there.
        let _ = fs::create_dir(place);
        let mounted = mount(kind, place, kind, MountFlags::empty(), None);
        // The kernel may have been faster.
        if needed && mounted != Err(Errno::BUSY) {
            mounted.with_context(|| format!("mounting {place}"))?;
        }
    }
    for (name, to) in
        [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        let _ = std::os::unix::fs::symlink(to, Path::new("/dev").join(name));
    }
    // IFF_UP | IFF_LOOPBACK
    fs::write("/sys/class/net/lo/flags", "0x9").context("the loopback interface")?;
    fs::create_dir(WORK).context(WORK)
}

/// What the other side has written.
fn words(job: &Path, name: &str) -> Result<Vec<OsString>> {
    let text = fs::read(job.join(name)).with_context(|| name.to_owned())?;
    let words = text.split(|byte| *byte == 0).map(|word| OsStr::from_bytes(word).to_owned());
    let mut words: Vec<_> = words.collect();
    words.pop();
    Ok(words)
}

fn load(job: &Path) -> Result<()> {
    for path in words(job, "module")? {
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        finit_module(file, c"", 0).with_context(|| format!("loading {}", path.display()))?;
    }
    // As its README has udev do it.
    Ok(fs::set_permissions("/dev/getbuf", fs::Permissions::from_mode(0o666))?)
}

/// Nothing that the command has left behind may keep the module.
fn unload(findings: &mut Vec<String>) {
    for _ in 0..100 {
        // Not: wait until it can be unloaded.
        match delete_module(c"getbuf", OFlags::NONBLOCK.bits() as i32) {
            Ok(()) => return,
            // As above, and files are closed a little later.
            Err(Errno::WOULDBLOCK | Errno::BUSY) => thread::sleep(Duration::from_millis(100)),
            Err(errno) => return findings.push(format!("unloading the module: {errno}")),
        }
    }
    let references = fs::read_to_string("/sys/module/getbuf/refcnt").unwrap_or_default();
    findings.push(format!("the module cannot be unloaded: {} references", references.trim()));
}

/// Runs the command, and gives its exit status as a shell would.
fn command(job: &Path) -> Result<i32> {
    let argv = words(job, "command")?;
    let limit = words(job, "limit")?.first().and_then(|limit| limit.to_str()?.parse().ok());
    let limit = Duration::from_secs(limit.context("limit")?);
    let (program, args) = argv.split_first().context("command")?;
    let mut command = Command::new(program);
    command.args(args).env_clear();
    for word in words(job, "env")? {
        let bytes = word.as_bytes();
        let name = bytes.iter().position(|byte| *byte == b'=').context("env")?;
        command.env(OsStr::from_bytes(&bytes[..name]), OsStr::from_bytes(&bytes[name + 1..]));
    }
    command.current_dir(WORK).env("PWD", WORK).env("TMPDIR", WORK);
    if job.join("reload").exists()
        && let Some(path) = words(job, "module")?.last()
    {
        // For tests that unload it.
        command.env("GETBUF_MODULE", path);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (out, err) = (console(STDOUT)?, console(STDERR)?);
    let mut child = match command.process_group(0).spawn() {
        Ok(child) => child,
        Err(error) => {
            writeln!(&err, "{}: {error}", program.display())?;
            tcdrain(&err)?;
            return Ok(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 });
        }
    };
    let out = copy(child.stdout.take().context("stdout")?, out);
    let err = copy(child.stderr.take().context("stderr")?, err);
    let code = wait(&mut child, limit)?;
    // What it has left running may have the pipes open.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    let patience = Instant::now() + Duration::from_secs(10);
    for thread in [out, err] {
        while !thread.is_finished() && Instant::now() < patience {
            thread::sleep(Duration::from_millis(5));
        }
        if thread.is_finished() {
            thread.join().ok().context("a console")??;
        }
    }
    Ok(code)
}

fn wait(child: &mut Child, limit: Duration) -> Result<i32> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(255));
        }
        if Instant::now() > end {
            say(&format!("getbuf: BUG: the command did not end in {limit:?}"))?;
            // Who hangs where.
            let _ = fs::write("/proc/sysrq-trigger", "w");
            child.kill()?;
            child.wait()?;
            return Ok(124);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A console, set so that bytes go through it as they are.
fn console(name: &str) -> Result<File> {
    let path = env::var_os(name).with_context(|| name.to_owned())?;
    let file = File::options().write(true).open(&path).context(format!("{path:?}"))?;
    let mut settings = tcgetattr(&file)?;
    settings.make_raw();
    tcsetattr(&file, OptionalActions::Now, &settings)?;
    Ok(file)
}

fn copy(mut from: impl Read + Send + 'static, to: File) -> thread::JoinHandle<Result<()>> {
    thread::spawn(move || {
        io::copy(&mut from, &mut &to)?;
        tcdrain(&to)?;
        Ok(())
    })
}

/// No lease outlives the programs, where the kernel counts them.
fn leases(findings: &mut Vec<String>) {
    let mut count = String::new();
    // Rings are taken apart by a worker after their last user is gone.
    for _ in 0..100 {
        count = LEASES.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
        if count.split_whitespace().filter(|word| word.parse::<i64>().is_ok()).all(|n| n == "0") {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    findings.push(format!("leases are left: {}", count.replace('\n', " ")));
}

/// Asks kmemleak for memory that nothing points to any more.
fn leaks(findings: &mut Vec<String>) -> Result<()> {
    // It does not look at what is younger than five seconds.
    thread::sleep(Duration::from_secs(6));
    for _ in 0..2 {
        fs::write(KMEMLEAK, "scan").context("kmemleak")?;
        thread::sleep(Duration::from_secs(1));
    }
    let text = fs::read_to_string(KMEMLEAK).context("kmemleak")?;
    findings.extend(text.lines().take(40).map(|line| format!("kmemleak: {line}")));
    Ok(())
}
