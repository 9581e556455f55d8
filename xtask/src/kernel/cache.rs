// SPDX-License-Identifier: MIT OR Apache-2.0
//! The folder that outlives the checkout.

use std::env;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};

/// How many entries of a kind are kept.
const KEPT: usize = 3;

/// Ends the name of a file beside an entry that is complete; its time is when the entry was used
/// last.
const USED: &str = ".used";

/// `$XDG_CACHE_HOME/uring-getbuf`.
pub(crate) fn folder() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|path| Path::new(path).is_absolute()) {
        Some(path) => path.into(),
        None => Path::new(&env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let folder = base.join("uring-getbuf");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// Keeps other processes from making the same thing, as long as the result lives.
pub(super) fn lock(path: &Path) -> Result<File> {
    let file = File::create(beside(path, ".lock"))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        eprintln!("another process is making {}", path.display());
        flock(&file, FlockOperation::LockExclusive)?;
    }
    Ok(file)
}

/// A name for all this.
pub(super) fn hash(parts: &[Vec<u8>]) -> Result<String> {
    let mut sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut pipe = sum.stdin.take().expect("it is a pipe");
    for part in parts {
        pipe.write_all(&(part.len() as u64).to_le_bytes())?;
        pipe.write_all(part)?;
    }
    drop(pipe);
    let output = sum.wait_with_output()?;
    ensure!(output.status.success() && output.stdout.len() > 16, "sha256sum: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout[..16]).into_owned())
}

/// The entry `KIND-NAME` in a folder of the cache; if it is not there, `make` makes it. Of each
/// kind, those that were used last are kept.
pub(super) fn entry(
    folder: &str,
    kind: &str,
    name: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let folder = self::folder()?.join(folder);
    let entry = folder.join(format!("{kind}-{name}"));
    if !used(&entry).exists() {
        fs::create_dir_all(&folder)?;
        let _lock = lock(&entry)?;
        if !used(&entry).exists() {
            remove(&entry)?;
            prune(&folder, kind, name.len())?;
            fs::create_dir_all(&entry)?;
            make(&entry)?;
            File::create(used(&entry))?;
        }
    }
    File::create(used(&entry))?;
    Ok(entry)
}

fn prune(folder: &Path, kind: &str, length: usize) -> Result<()> {
    let mut old: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(kind)?.strip_prefix('-'));
        // "um-stock" is another kind than "um-stock-debug"; and what is not complete may be in the
        // making.
        if rest.is_some_and(|rest| rest.len() == length && !rest.contains('-'))
            && let Ok(used) = used(&entry.path()).metadata()
        {
            old.push((used.modified()?, entry.path()));
        }
    }
    old.sort();
    for (_, path) in old.iter().rev().skip(KEPT - 1) {
        remove(path)?;
    }
    Ok(())
}

fn used(entry: &Path) -> PathBuf {
    beside(entry, USED)
}

/// The path with something behind its name.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(end);
    path.into()
}

/// In this order: what is half removed does not count as complete.
fn remove(entry: &Path) -> Result<()> {
    for gone in [fs::remove_file(used(entry)), fs::remove_dir_all(entry)] {
        if let Err(error) = gone
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error).with_context(|| entry.display().to_string());
        }
    }
    Ok(())
}
