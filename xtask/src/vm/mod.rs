// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask vm`: runs a command in a test kernel.
//!
//! The guest's root is this machine's root, so whatever is installed here is there. This program is
//! the guest's init too ([`guest`]). The two sides share a folder, the *job*: it has what is to be
//! run, and after that how it ended. What the command prints comes through consoles of its own, the
//! kernel's log through another one.

pub(crate) mod guest;
mod log;
mod machine;

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::kernel::{Kernel, Machine, cache_folder};

/// How long a guest may take to boot and to end, besides the command.
const MARGIN: Duration = Duration::from_secs(120);

/// A command for a guest.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) command: Vec<OsString>,
    /// How long the command may take.
    pub(crate) limit: Duration,
    /// QEMU only: one CPU, on which every instruction takes a nanosecond.
    pub(crate) exact: bool,
    /// How many processors the guest has, unless it is one to be exact.
    pub(crate) cpus: Option<usize>,
    /// QEMU only: a plugin, with what it is told.
    pub(crate) plugin: Option<OsString>,
    /// A module to load before, and to unload after.
    pub(crate) module: Option<PathBuf>,
}

/// How a guest ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The command's exit status, as a shell would give it; none if the command did not end.
    pub(crate) code: Option<i32>,
    /// What is wrong with the guest.
    pub(crate) findings: Vec<String>,
    /// The kernel's log, if there are findings.
    pub(crate) log: Option<PathBuf>,
}

/// Boots a kernel and runs the command in it. Gives what the command prints to `print`, as it comes;
/// its standard error goes to this process's.
pub(crate) fn run(
    kernel: &Kernel,
    image: &Path,
    job: &Job,
    mut print: impl FnMut(&[u8]) -> Result<()>,
) -> Result<Outcome> {
    let folder = Folder::new(job, kernel)?;
    let (log, log_guest) = console()?;
    let (out, out_guest) = console()?;
    let (err, err_guest) = console()?;
    let mut command = machine::command(kernel, image, &folder.0, [&out_guest, &err_guest], job)?;
    if let Some(plugin) = &job.plugin {
        command.arg("-plugin").arg(plugin);
    }
    command.stdin(Stdio::null()).stdout(log_guest.try_clone()?).stderr(log_guest);
    // SAFETY: between fork and exec there is one system call, and no allocation.
    unsafe {
        // No guest outlives this program, however it ends.
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let mut child = command.spawn().with_context(|| image.display().to_string())?;
    // The consoles end with the guest, when nobody else has them.
    drop((command, out_guest, err_guest));

    let path = folder.0.join("log");
    let mut file = File::create(&path)?;
    let log = copy(log, move |bytes| file.write_all(bytes).is_ok());
    let err = copy(err, |bytes| std::io::stderr().write_all(bytes).is_ok());
    let (send, receive) = channel();
    let out = copy(out, move |bytes| send.send(bytes.to_vec()).is_ok());
    let end = Instant::now() + job.limit + MARGIN;
    let late = loop {
        match receive.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(bytes) => print(&bytes)?,
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    // What the kernel of a killed guest says at its end means nothing.
    let said = late.then(|| fs::read(&path));
    if late {
        child.kill()?;
    }
    let status = child.wait()?;
    let _ = (out.join(), err.join(), log.join());
    let said = said.unwrap_or_else(|| fs::read(&path))?;
    let said = String::from_utf8_lossy(&said);

    let mut findings = log::findings(&said);
    findings.extend(folder.findings());
    let code = folder.status();
    if late {
        findings.insert(0, format!("the guest did not end in {:?}", job.limit + MARGIN));
    } else if code.is_none() {
        findings.insert(0, format!("the guest ended before the command did: {status}"));
    }
    let mut log = None;
    if !findings.is_empty() {
        let kept = cache_folder()?.join(format!("{kernel}.log"));
        fs::copy(&path, &kept)?;
        log = Some(kept);
    }
    Ok(Outcome { code, findings, log })
}

/// A pipe whose writing end the guest inherits.
fn console() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfd(&write, FdFlags::empty())?;
    Ok((read, write))
}

fn copy(
    from: OwnedFd,
    mut to: impl FnMut(&[u8]) -> bool + Send + 'static,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut from = File::from(from);
        let mut buffer = [0; 16384];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if !to(&buffer[..n]) {
                break;
            }
        }
    })
}

/// The job's folder, seen from both sides. Gone with this value.
struct Folder(PathBuf);

impl Folder {
    fn new(job: &Job, kernel: &Kernel) -> Result<Self> {
        let cache = cache_folder()?;
        // What a killed process has left.
        for entry in fs::read_dir(&cache)?.flatten() {
            let name = entry.file_name();
            let process = name.to_str().and_then(|name| name.strip_prefix("job-"));
            if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let folder = cache.join(format!("job-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let folder = Self(folder);
        let mut command = job.command.clone();
        let Some(program) = command.first_mut() else { bail!("there is no command to run") };
        if program.as_bytes().contains(&b'/') {
            // The guest has another current directory.
            let path = fs::canonicalize(&program).with_context(|| format!("{program:?}"))?;
            *program = path.into();
        }
        let env = env::vars_os().map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        });
        folder.write("command", command)?;
        folder.write("env", env)?;
        folder.write("limit", [job.limit.as_secs().to_string().into()])?;
        if kernel.debug {
            folder.write("debug", [])?;
        }
        if let Some(module) = &job.module {
            folder.write("module", [module.into()])?;
            // User-mode Linux with KASAN cannot load a module twice: the red zones of the first are
            // still there.
            if !(kernel.debug && kernel.machine == Machine::Um) {
                folder.write("reload", [])?;
            }
        }
        Ok(folder)
    }

    /// A list of words, each with a zero byte behind it.
    fn write(&self, name: &str, words: impl IntoIterator<Item = OsString>) -> Result<()> {
        let mut text = Vec::new();
        for word in words {
            text.extend(word.into_vec());
            text.push(0);
        }
        Ok(fs::write(self.0.join(name), text)?)
    }

    fn status(&self) -> Option<i32> {
        fs::read_to_string(self.0.join("status")).ok()?.trim().parse().ok()
    }

    fn findings(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("findings")).unwrap_or_default();
        text.lines().map(Into::into).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
