// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks of the files in the checkout.

use std::fs;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::{cargo, output, root, run};
use crate::packages;

/// Writes the generated files, or checks that they are current.
pub(crate) fn codegen(check: bool) -> Result<()> {
    packages::setup(&[packages::CODEGEN])?;
    let mut codegen = cargo(&["run", "--quiet", "--package", "codegen", "--"]);
    run(codegen.arg(root()).args(check.then_some("--check")))
}

/// What a source file's name ends with.
const SOURCES: [&str; 9] = [".rs", ".c", ".h", ".toml", ".sh", ".py", ".yml", ".S", ".ld"];

/// Every source file starts with its licence.
pub(crate) fn licences() -> Result<()> {
    let files = output(Command::new("git").args(["ls-files", "-z"]).current_dir(root()))?;
    let mut bare = Vec::new();
    for file in files.split_terminator('\0') {
        let path = root().join(file);
        // Deleted, but not yet for git; or a link to a file that is looked at by its own name.
        let source = SOURCES.iter().any(|end| file.ends_with(end)) || file.starts_with(".ci/");
        if !source || !path.symlink_metadata().is_ok_and(|file| file.is_file()) {
            continue;
        }
        let text = fs::read(&path)?;
        let mut lines = text.split(|byte| *byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let line = if first.starts_with(b"#!") { lines.next().unwrap_or_default() } else { first };
        if !String::from_utf8_lossy(line).contains("SPDX-License-Identifier: ") {
            bare.push(file);
        }
    }
    if !bare.is_empty() {
        bail!("no SPDX-License-Identifier in the first line of {}", bare.join(", "));
    }
    Ok(())
}

/// The header that the kernel gets is the one that programs get.
pub(crate) fn header_of_the_patches() -> Result<()> {
    const IN_THE_KERNEL: &str = "+++ b/include/uapi/linux/io_uring/getbuf.h";
    let ours = fs::read_to_string(root().join("include/getbuf_uapi.h"))?;
    for entry in fs::read_dir(root().join("kernel/patches/7.3"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|end| end != "patch") {
            continue;
        }
        let patch = fs::read_to_string(&path)?;
        let Some((_, after)) = patch.split_once(IN_THE_KERNEL) else { continue };
        let lines = after.lines().skip(1).take_while(|line| !line.starts_with("diff "));
        let added: Vec<_> = lines.filter_map(|line| line.strip_prefix('+')).collect();
        if !added.iter().copied().eq(ours.lines()) {
            bail!("{} adds another header than include/getbuf_uapi.h is", path.display());
        }
        return Ok(());
    }
    bail!("no patch adds include/uapi/linux/io_uring/getbuf.h")
}
