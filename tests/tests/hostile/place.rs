// SPDX-License-Identifier: MIT OR Apache-2.0
//! The files of the attackers, and what happens to them meanwhile.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::ptr;

use fastrand::Rng;
use getbuf_tests::{Folder, pattern};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use uring_getbuf::Support;

use crate::{ATTACK, Outcome, SACRED, Way, said};

const PAGE: u64 = 4096;

/// The files of the attackers. Two of them move: one beside the sacred one, and one on a file system
/// of its own, which can be remounted, and whose pages can be reclaimed.
pub(crate) struct Place {
    folder: Folder,
    sacred: Vec<u8>,
    /// GET_BUF and PUT_BUF, where the kernel has them.
    opcodes: [Option<u8>; 2],
}

impl Place {
    pub(crate) fn new() -> Outcome<Self> {
        let folder = Folder::new().map_err(said)?;
        fs::create_dir(folder.path("disk")).map_err(said)?;
        mount(&folder)?;
        let support = Support::detect();
        let opcodes = [support.get_buf_opcode(), support.put_buf_opcode()];
        let place = Self { folder, sacred: pattern(7, SACRED), opcodes };
        fs::write(place.folder.path("sacred"), &place.sacred).map_err(said)?;
        for path in place.moving() {
            fs::write(path, vec![1; 1 << 20]).map_err(said)?;
        }
        Ok(place)
    }

    fn moving(&self) -> [PathBuf; 2] {
        ["moving", "disk/moving"].map(|name| self.folder.path(name))
    }

    pub(crate) fn check(&self) -> Outcome {
        let is = fs::read(self.folder.path("sacred")).map_err(said)?;
        if is == self.sacred { Ok(()) } else { Err("a file was changed through a lease".into()) }
    }

    pub(crate) fn attacker(&self, seed: u64, requests: u64, way: Way) -> Outcome<Child> {
        let executable = std::env::current_exe().map_err(said)?;
        let folder = self.folder.path("");
        let failing = if way == Way::Failing { "failing" } else { "" };
        let [get_buf, put_buf] =
            self.opcodes.map(|code| code.map(|code| code.to_string()).unwrap_or_default());
        let mut command = Command::new(executable);
        command.arg(ATTACK).arg(folder).args([&seed.to_string(), &requests.to_string()]);
        command.args([&get_buf, &put_buf, failing]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(said)
    }

    /// Changes a file that attackers lease, in every way that a file can change.
    pub(crate) fn change(&self, rng: &mut Rng) -> std::io::Result<()> {
        let [here, disk] = self.moving();
        match rng.u32(0..40) {
            0 => {
                // Another file takes its name.
                let next = self.folder.path("next");
                fs::write(&next, vec![2; rng.usize(0..1 << 20)])?;
                return fs::rename(next, here);
            }
            1 => {
                // Nobody has a file there open for writing.
                let disk = self.folder.path("disk");
                mount_remount(&disk, MountFlags::RDONLY, c"")?;
                return Ok(mount_remount(&disk, MountFlags::empty(), c"")?);
            }
            2 => {
                File::open(&disk)?.sync_all()?;
                fs::write("/proc/sys/vm/drop_caches", "3")?;
            }
            _ => {}
        }
        let path = if rng.bool() { here } else { disk };
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        match rng.u32(0..5) {
            0 => file.set_len(rng.u64(0..1 << 21)),
            1 => {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                // Not every file system can.
                let _ = fallocate(&file, punch, rng.u64(0..1 << 20), rng.u64(1..1 << 18));
                Ok(())
            }
            2 => file.write_all_at(&vec![3; rng.usize(1..1 << 16)], rng.u64(0..1 << 20)),
            3 => write_mapped(&file, rng),
            _ => file.sync_all(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = unmount(self.folder.path("disk"), UnmountFlags::DETACH);
    }
}

/// A file system of its own.
fn mount(folder: &Folder) -> Outcome {
    let (image, disk) = (folder.path("image"), folder.path("disk"));
    File::create(&image).and_then(|file| file.set_len(16 << 20)).map_err(said)?;
    succeed(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
    succeed(Command::new("mount").args(["-o", "loop"]).args([&image, &disk]))
}

fn succeed(command: &mut Command) -> Outcome {
    let status = command.status().map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}")) }
}

/// Writes to a page of the file through a mapping.
fn write_mapped(file: &File, rng: &mut Rng) -> std::io::Result<()> {
    let pages = file.metadata()?.len() / PAGE;
    if pages == 0 {
        return Ok(());
    }
    let (both, at) = (ProtFlags::READ | ProtFlags::WRITE, rng.u64(0..pages) * PAGE);
    // Attackers can fill the file system, and a mapping has no other way to say so than a signal.
    fallocate(file, FallocateFlags::empty(), at, PAGE)?;
    let nowhere = ptr::null_mut();
    // SAFETY: a new mapping, of which nothing else knows.
    let page = unsafe { mmap(nowhere, PAGE as usize, both, MapFlags::SHARED, file, at) }?;
    // SAFETY: nobody but this thread cuts the file, so its page is there.
    unsafe { ptr::write_bytes(page.cast::<u8>(), 4, PAGE as usize) };
    // SAFETY: the mapping made above, which nothing refers to.
    Ok(unsafe { munmap(page, PAGE as usize) }?)
}
