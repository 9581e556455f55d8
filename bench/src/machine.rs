// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where it was measured.

use std::fs;
use std::path::Path;
use std::thread::available_parallelism;

use rustix::fs::statfs;
use rustix::system::uname;

/// What figures depend on.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) architecture: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory: u64,
    pub(crate) is_virtual: bool,
    /// What the files are on.
    pub(crate) file_system: String,
}

impl Machine {
    pub(crate) fn look(folder: &Path) -> Self {
        let name = uname();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |text: &str, wanted: &str| {
            text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                (name.trim() == wanted).then(|| value.trim().to_owned())
            })
        };
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = field(&meminfo, "MemTotal").unwrap_or_default();
        let kib: u64 = kib.trim_end_matches(" kB").parse().unwrap_or(0);
        let flags = field(&cpuinfo, "flags").unwrap_or_default();
        let model = field(&cpuinfo, "model name").or_else(|| field(&cpuinfo, "host"));
        Self {
            kernel: name.release().to_string_lossy().into_owned(),
            architecture: name.machine().to_string_lossy().into_owned(),
            processor: model.unwrap_or_else(|| "unknown processor".into()),
            processors: available_parallelism().map_or(1, usize::from),
            memory: kib << 10,
            is_virtual: flags.split(' ').any(|flag| flag == "hypervisor"),
            file_system: statfs(folder).map_or_else(|_| "unknown".into(), |fs| kind(fs.f_type)),
        }
    }
}

/// The name of a file system, from `linux/magic.h`.
fn kind(magic: impl Into<i64>) -> String {
    match magic.into() as u32 {
        0x0102_1994 => "tmpfs".into(),
        0xef53 => "ext4".into(),
        0x5846_5342 => "xfs".into(),
        0x9123_683e => "btrfs".into(),
        0x794c_7630 => "overlayfs".into(),
        0x00c0_ffee => "hostfs".into(),
        0x0102_1997 => "9p".into(),
        0x6969 => "nfs".into(),
        0xf2f5_2010 => "f2fs".into(),
        0x2fc1_2fc1 => "zfs".into(),
        other => format!("file system {other:#x}"),
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Linux {} {}, {} x {}{}, {} MiB, files on {}",
            self.kernel,
            self.architecture,
            self.processors,
            self.processor,
            if self.is_virtual { " (virtual machine)" } else { "" },
            self.memory >> 20,
            self.file_system,
        )
    }
}
