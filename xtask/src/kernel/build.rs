// SPDX-License-Identifier: MIT OR Apache-2.0
//! Configuring and building.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::source::{Tree, tree};
use super::{Kernel, Machine, cache};
use crate::command::root;

/// Changes when the way to build changes.
const RECIPE: &str = "1";

/// The file to boot, in the folder of a kernel that was built.
pub(super) const fn image(machine: Machine) -> &'static str {
    match machine {
        Machine::Um => "linux",
        Machine::Qemu => "arch/x86/boot/bzImage",
    }
}

/// What make calls the machine.
pub(super) const fn arch(machine: Machine) -> &'static str {
    match machine {
        Machine::Um => "um",
        Machine::Qemu => "x86_64",
    }
}

/// Builds the kernel, unless the cache has it, and returns the folder that it was built in.
pub(super) fn build(kernel: &Kernel) -> Result<PathBuf> {
    let tree = tree(kernel)?;
    let fragments = fragments(kernel);
    let mut parts = vec![RECIPE.into(), tree.name.clone().into_bytes()];
    for fragment in &fragments {
        parts.push(fs::read(fragment).with_context(|| fragment.display().to_string())?);
    }
    let name = cache::hash(&parts)?;
    cache::entry("build", &kernel.to_string(), &name, |folder| {
        eprintln!("building {kernel}, log in {}", folder.join("build.log").display());
        let start = Instant::now();
        make(kernel, &tree, &fragments, folder)?;
        eprintln!("built {kernel} in {} s", start.elapsed().as_secs());
        Ok(())
    })
}

/// The parts of the configuration; later ones win.
fn fragments(kernel: &Kernel) -> Vec<PathBuf> {
    let base = match kernel.machine {
        Machine::Um => "um.config",
        Machine::Qemu => "qemu.config",
    };
    let configs = root().join("kernel/configs");
    let debug: &[_] = match (kernel.debug, kernel.machine) {
        (false, _) => &[],
        (true, Machine::Um) => &["debug.config"],
        (true, Machine::Qemu) => &["debug.config", "qemu-debug.config"],
    };
    let up: &[_] = if kernel.up { &["um-up.config"] } else { &[] };
    [base].iter().chain(debug).chain(up).map(|name| configs.join(name)).collect()
}

/// Where the output of a build goes.
pub(super) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    pub(super) fn new(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path, file })
    }

    /// Runs a command that must succeed. If it does not, shows the end of what it said.
    pub(super) fn run(&mut self, command: &mut Command) -> Result<()> {
        command.stdin(Stdio::null()).stdout(self.file.try_clone()?);
        let status = command.stderr(self.file.try_clone()?).status()?;
        if !status.success() {
            let text = fs::read(&self.path)?;
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<_> = text.lines().rev().take(30).collect();
            for line in lines.iter().rev() {
                eprintln!("{line}");
            }
            bail!("see {}", self.path.display());
        }
        Ok(())
    }
}

fn make(kernel: &Kernel, tree: &Tree, fragments: &[PathBuf], folder: &Path) -> Result<()> {
    let (base, target) = match kernel.machine {
        Machine::Um => ("defconfig", "all"),
        Machine::Qemu => ("tinyconfig", "bzImage"),
    };
    let mut log = Log::new(folder.join("build.log"))?;
    let mut step = |command: &mut Command| {
        log.run(command).with_context(|| format!("{kernel} does not build"))
    };
    let make = |goal: &str| {
        let mut make = Command::new("make");
        make.arg("-C").arg(&tree.path).arg(format!("O={}", folder.display()));
        make.arg(format!("ARCH={}", arch(kernel.machine)));
        make.arg(format!("-j{}", available_parallelism().map_or(1, usize::from)));
        make.env("KBUILD_BUILD_USER", "xtask").env("KBUILD_BUILD_HOST", "localhost");
        make.arg(goal);
        make
    };
    step(&mut make(base))?;
    let mut merge = Command::new(tree.path.join("scripts/kconfig/merge_config.sh"));
    merge.args(["-m", "-O"]).arg(folder).arg(folder.join(".config")).args(fragments);
    step(merge.current_dir(folder))?;
    step(&mut make("olddefconfig"))?;
    step(&mut make(target))
}
