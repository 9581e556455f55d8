// SPDX-License-Identifier: MIT OR Apache-2.0
//! How each kind of machine is started.

use std::env;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::available_parallelism;

use anyhow::{Result, bail};

use super::guest;
use crate::kernel::{Kernel, Machine};

/// The command that boots the kernel; its standard output and error are the kernel's log. `consoles`
/// take what the guest's command prints: its standard output and its standard error.
pub(super) fn command(
    kernel: &Kernel,
    image: &Path,
    job: &Path,
    consoles: [&OwnedFd; 2],
) -> Result<Command> {
    match kernel.machine {
        Machine::Um => um(kernel, image, job, consoles),
        Machine::Qemu => bail!("QEMU comes later"),
    }
}

fn um(kernel: &Kernel, image: &Path, job: &Path, consoles: [&OwnedFd; 2]) -> Result<Command> {
    let mut um = Command::new(image);
    let cpus = available_parallelism().map_or(1, usize::from).clamp(2, 4);
    um.arg("mem=2G");
    // SMP needs seccomp.
    um.arg("seccomp=on").arg(format!("ncpus={cpus}"));
    um.args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw"]);
    um.args(["con=null", "con0=null,fd:1"]);
    let names = ["/dev/tty1", "/dev/tty2"];
    for (index, console) in consoles.iter().enumerate() {
        um.arg(format!("con{}=null,fd:{}", index + 1, console.as_raw_fd()));
    }
    um.arg(format!("uml_dir={}", job.display()));
    common(&mut um, kernel, job, names)?;
    um.stdin(Stdio::null());
    Ok(um)
}

/// What every kernel is told.
fn common(command: &mut Command, kernel: &Kernel, job: &Path, consoles: [&str; 2]) -> Result<()> {
    command.args(["loglevel=7", "panic=-1", "printk.time=1"]);
    if kernel.debug {
        command.arg("kmemleak=on");
    }
    // What the kernel does not know and has a value becomes init's environment.
    let init = env::current_exe()?;
    for (name, value) in [
        ("init", init.as_path()),
        (guest::JOB, job),
        (guest::STDOUT, Path::new(consoles[0])),
        (guest::STDERR, Path::new(consoles[1])),
    ] {
        let value = value.display().to_string();
        if value.contains([' ', '"']) {
            bail!("a kernel's command line cannot have this path: {value:?}");
        }
        command.arg(format!("{name}={value}"));
    }
    Ok(())
}
