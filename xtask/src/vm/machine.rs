// SPDX-License-Identifier: MIT OR Apache-2.0
//! How each kind of machine is started.

use std::env;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::statvfs;

use super::{Job, guest};
use crate::kernel::{Kernel, Machine};

/// The command that boots the kernel; its standard output and error are the kernel's log. `consoles`
/// take what the guest's command prints: its standard output and its standard error.
pub(super) fn command(
    kernel: &Kernel,
    image: &Path,
    folder: &Path,
    consoles: [&OwnedFd; 2],
    job: &Job,
) -> Result<Command> {
    let cpus = job.cpus.unwrap_or_else(cpus);
    match kernel.machine {
        Machine::Um if job.exact => bail!("only QEMU counts instructions: --qemu --icount"),
        Machine::Um => um(kernel, image, folder, consoles, cpus),
        Machine::Qemu => qemu(kernel, image, folder, consoles, (!job.exact).then_some(cpus)),
    }
}

fn cpus() -> usize {
    available_parallelism().map_or(1, usize::from).clamp(2, 4)
}

/// How many MiB a guest of user-mode Linux gets: its memory is a file in /dev/shm.
fn memory() -> Result<u64> {
    let shm = statvfs("/dev/shm").context("/dev/shm")?;
    let free = ((shm.f_bavail * shm.f_frsize) >> 20).saturating_sub(64);
    ensure!(free >= 512, "/dev/shm has {free} MiB for a guest; it needs 512");
    Ok(free.min(2048))
}

fn um(
    kernel: &Kernel,
    image: &Path,
    job: &Path,
    consoles: [&OwnedFd; 2],
    cpus: usize,
) -> Result<Command> {
    let mut um = Command::new(image);
    um.arg(format!("mem={}M", memory()?));
    um.arg("seccomp=on");
    if !kernel.up {
        // Needs seccomp.
        um.arg(format!("ncpus={cpus}"));
    }
    um.args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw"]);
    um.args(["con=null", "con0=null,fd:1"]);
    let names = ["/dev/tty1", "/dev/tty2"];
    for (index, console) in consoles.iter().enumerate() {
        um.arg(format!("con{}=null,fd:{}", index + 1, console.as_raw_fd()));
    }
    um.arg(format!("uml_dir={}", job.display()));
    um.args(arguments(kernel, job, names)?);
    Ok(um)
}

/// Without KVM: where that is a nested one, it may hang. No number of processors: exact.
fn qemu(
    kernel: &Kernel,
    image: &Path,
    job: &Path,
    consoles: [&OwnedFd; 2],
    cpus: Option<usize>,
) -> Result<Command> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-m", "2G"]);
    // The kernel copies with instructions that repeat, and each repetition counts: without these
    // two it moves eight bytes with one, and not one.
    qemu.args(["-cpu", if cpus.is_none() { "max,-erms,-fsrm" } else { "max" }]);
    match cpus {
        // The guest's clock goes on by one nanosecond with each instruction.
        None => qemu.args(["-accel", "tcg", "-icount", "shift=0,align=off,sleep=off", "-smp", "1"]),
        Some(cpus) => qemu.args(["-accel", "tcg,thread=multi", "-smp", &cpus.to_string()]),
    };
    // This machine's files are the guest's root.
    qemu.args(["-fsdev", "local,id=root,path=/,security_model=none,multidevs=remap"]);
    qemu.args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
    let names = ["/dev/ttyS1", "/dev/ttyS2"];
    let [out, err] = consoles.map(AsRawFd::as_raw_fd);
    // Each port has an interrupt of its own: the first and the third would share one.
    for (index, fd, base, irq) in [(0, 1, "0x3f8", 4), (1, out, "0x2f8", 3), (2, err, "0x3e8", 5)] {
        qemu.args(["-chardev", &format!("file,id=port{index},path=/proc/self/fd/{fd}")]);
        let port = format!("isa-serial,chardev=port{index},index={index},iobase={base},irq={irq}");
        qemu.args(["-device", &port]);
    }
    let mut line = String::from(
        "console=ttyS0 tsc=reliable root=root rootfstype=9p rw \
         rootflags=trans=virtio,version=9p2000.L,msize=262144,cache=mmap",
    );
    for argument in arguments(kernel, job, names)? {
        line.push(' ');
        line.push_str(&argument);
    }
    qemu.arg("-kernel").arg(image).arg("-append").arg(line);
    Ok(qemu)
}

/// What every kernel is told.
fn arguments(kernel: &Kernel, job: &Path, consoles: [&str; 2]) -> Result<Vec<String>> {
    let mut arguments = ["loglevel=7", "panic=-1", "printk.time=1"].map(String::from).to_vec();
    if kernel.debug {
        arguments.push("kmemleak=on".into());
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
        arguments.push(format!("{name}={value}"));
    }
    Ok(arguments)
}
