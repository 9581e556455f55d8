// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask kernel`: the test kernels.
//!
//! Sources and builds are kept in the user's cache folder, by a hash of all that they are made of,
//! so that a new checkout pays for a kernel once per machine.

mod build;
mod cache;
mod module;
mod source;

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;

pub(crate) use cache::folder as cache_folder;
pub(crate) use source::is_within_reach as has_source;

/// The release that the patches are for.
const RELEASE: &str = "7.3";

/// What the kernel is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// As released.
    Stock,
    /// With `kernel/patches`.
    Opcode,
}

/// What the kernel runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// User-mode Linux: the kernel is a process.
    Um,
    /// An x86-64 PC of QEMU.
    Qemu,
}

/// A test kernel.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) flavour: Flavour,
    pub(crate) machine: Machine,
    /// With the checks of memory and locks.
    pub(crate) debug: bool,
    /// For one processor, in user-mode Linux: there, a kernel for several makes a system call
    /// wherever it masks interrupts, which with the checks is most of its time.
    pub(crate) up: bool,
    /// The tree to build; without it, the distribution's source package.
    pub(crate) source: Option<PathBuf>,
}

impl Kernel {
    /// Builds the kernel, unless there is one, and returns the file to boot.
    pub(crate) fn build(&self) -> Result<PathBuf> {
        Ok(build::build(self)?.join(build::image(self.machine)))
    }

    /// Builds the module `getbuf.ko` for the kernel, and returns the file to load.
    pub(crate) fn build_module(&self) -> Result<PathBuf> {
        module::build(self)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.machine {
            Machine::Um => "um",
            Machine::Qemu => "qemu",
        })?;
        f.write_str(match self.flavour {
            Flavour::Stock => "-stock",
            Flavour::Opcode => "-opcode",
        })?;
        f.write_str(if self.debug { "-debug" } else { "" })?;
        f.write_str(if self.up { "-up" } else { "" })
    }
}
