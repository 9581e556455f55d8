// SPDX-License-Identifier: MIT OR Apache-2.0
//! Building `getbuf.ko` for a test kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::build::{Log, arch};
use super::{Kernel, build, cache};
use crate::command::{root, target_directory};

/// Builds the module for the kernel, which is built if need be, and returns the file to load.
///
/// What is built is what DKMS would build: the folder that `make dkms-tree` leaves, in which
/// everything has to be. So the checkout stays clean, too.
pub(super) fn build(kernel: &Kernel) -> Result<PathBuf> {
    let built = build::build(kernel)?;
    symbols(kernel, &built)?;
    let name = built.file_name().context("a folder in the cache has a name")?;
    let folder = Path::new(&target_directory()?).join("module").join(name);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let _lock = cache::lock(&folder)?;
    let mut log = Log::new(folder.join("build.log"))?;
    let mut step = |command: &mut Command| {
        log.run(command).with_context(|| format!("getbuf.ko for {kernel} does not build"))
    };
    let mut copy = Command::new("make");
    copy.arg("-C").arg(root().join("kernel/module")).arg("dkms-tree");
    step(copy.arg(format!("DESTDIR={}", folder.display())))?;
    let mut trees = fs::read_dir(folder.join("usr/src"))?.flatten();
    let tree = trees.next().context("no source tree for DKMS")?.path();
    ensure!(trees.next().is_none(), "another version of the module is in {}", folder.display());
    let mut make = Command::new("make");
    make.arg("-C").arg(&tree).arg(format!("KDIR={}", built.display()));
    // Every warning is an error.
    make.arg(format!("ARCH={}", arch(kernel.machine))).args(["W=1e", "modules"]);
    step(&mut make)?;
    Ok(tree.join("getbuf.ko"))
}

/// What the kernel exports. A kernel that was built without modules has no list of it yet.
fn symbols(kernel: &Kernel, built: &Path) -> Result<()> {
    if built.join("Module.symvers").exists() {
        return Ok(());
    }
    let _lock = cache::lock(built)?;
    let mut make = Command::new("make");
    make.arg("-C").arg(built).arg(format!("ARCH={}", arch(kernel.machine))).arg("modules");
    Log::new(built.join("modules.log"))?.run(&mut make)
}
