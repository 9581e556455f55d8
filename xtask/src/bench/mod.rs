// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench --exact`: how many instructions a request takes, in every way that
//! `getbuf bench` knows, user and kernel apart.
//!
//! `getbuf bench` runs in a guest of QEMU whose clock counts instructions, so that nothing depends
//! on how busy this machine is. The guest has the patches and the module: every engine in one run. It marks where its samples begin and end with an instruction that
//! does nothing; a plugin of QEMU's ([`marks.c`](../../src/bench/marks.c)) counts, and writes the
//! numbers at each mark. The guest runs twice; the figures are from the first run, and how far the
//! second one is from it stands beside them. Of the samples of a run, the cheapest one counts.

mod figures;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::command::{cargo, output, root, run};
use crate::kernel::{Flavour, Kernel, Machine, cache_folder, has_source};
use crate::packages;
use crate::vm;
use figures::Figures;

/// Requests in a sample.
const REQUESTS: &str = "8192";
const REPEATS: &str = "3";
/// What is measured to see whether anything has become worse.
const SHORT: [&str; 1] = ["rfc"];
/// Two runs are to be as close as this.
const CLOSE: f64 = 0.001;
/// What differs by more from one run to the next is not compared with what it was.
const STEADY: f64 = 0.01;
/// So much more is a regression.
const WORSE: f64 = 0.03;
/// How long a guest may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// The versions of QEMU whose plugins are as ours.
const QEMU: [&str; 2] = ["7", "8"];

/// Measures these cases, or all there are, and writes them down.
pub(crate) fn write(cases: &[&str]) -> Result<()> {
    let guest = Guest::new()?;
    let mut figures = guest.measure(cases)?;
    figures.compare_runs(&guest.measure(cases)?);
    let folder = root().join("docs/bench");
    fs::create_dir_all(&folder)?;
    if let Ok(text) = fs::read_to_string(folder.join("exact.json")) {
        let before = Figures::parse(&text)?;
        for line in before.changes(&figures, WORSE) {
            println!("{line}");
        }
        if !cases.is_empty() {
            figures = before.with(figures);
        }
    }
    fs::write(folder.join("exact.json"), figures.json())?;
    fs::write(folder.join("exact.md"), figures.markdown())?;
    let (all, apart) = (figures.all.len(), figures.apart(CLOSE).count());
    println!(
        "{all} figures are in {}; of {apart}, a second run was further away than {} %",
        folder.display(),
        CLOSE * 100.0
    );
    Ok(())
}

/// Why nothing can be measured here, if so.
pub(crate) fn obstacle() -> Option<&'static str> {
    let here = packages::setup(&[packages::KERNEL, packages::QEMU]);
    if !cfg!(target_arch = "x86_64") {
        Some("the guest is an x86-64 machine, and so are its programs")
    } else if !here.is_ok_and(|missing| missing.is_empty()) {
        Some("packages are missing")
    } else if !has_source() {
        Some("there is no package of the kernel's source here (`cargo xtask kernel --source`)")
    } else {
        None
    }
}

/// Measures some of it, and compares.
pub(crate) fn check() -> Result<()> {
    let path = root().join("docs/bench/exact.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let before = Figures::parse(&text)?;
    let now = Guest::new()?.measure(&SHORT)?;
    let worse = before.worse(&now, STEADY, WORSE)?;
    if worse.is_empty() {
        return Ok(());
    }
    for line in &worse {
        eprintln!("{line}");
    }
    bail!(
        "{} figures are more than {} % worse than in {}; if that is meant, write it anew with \
         `cargo xtask bench --exact`",
        worse.len(),
        WORSE * 100.0,
        path.display()
    );
}

/// A kernel and what runs in it.
struct Guest {
    kernel: Kernel,
    image: PathBuf,
    module: PathBuf,
    getbuf: PathBuf,
    plugin: PathBuf,
    qemu: String,
}

impl Guest {
    fn new() -> Result<Self> {
        if let Some(reason) = obstacle() {
            bail!("{reason}");
        }
        let version = output(Command::new("qemu-system-x86_64").arg("--version"))?;
        let qemu = version.split_whitespace().nth(3).unwrap_or_default().to_owned();
        let major = qemu.split('.').next().unwrap_or_default();
        ensure!(
            QEMU.contains(&major),
            "this is QEMU {qemu}, and the plugin that counts is for QEMU {}",
            QEMU.join(" and ")
        );
        let kernel = Kernel {
            flavour: Flavour::Opcode,
            machine: Machine::Qemu,
            debug: false,
            up: false,
            source: None,
        };
        let image = kernel.build()?;
        let module = kernel.build_module()?;
        Ok(Self { kernel, image, module, getbuf: getbuf()?, plugin: plugin()?, qemu })
    }

    fn measure(&self, cases: &[&str]) -> Result<Figures> {
        let folder = Folder::new()?;
        let (json, marks) = (folder.0.join("json"), folder.0.join("marks"));
        let mut command: Vec<OsString> = vec![self.getbuf.clone().into(), "bench".into()];
        command.extend(cases.iter().map(Into::into));
        command.extend(["--requests", REQUESTS, "--repeats", REPEATS].map(Into::into));
        command.extend(["--json".into(), json.clone().into()]);
        let mut plugin = self.plugin.clone().into_os_string();
        plugin.push(",out=");
        plugin.push(&marks);
        let job = vm::Job {
            command,
            limit: LIMIT,
            exact: true,
            cpus: None,
            plugin: Some(plugin),
            module: Some(self.module.clone()),
        };
        let outcome = vm::run(&self.kernel, &self.image, &job, |_| Ok(()))?;
        for finding in &outcome.findings {
            eprintln!("xtask: {finding}");
        }
        ensure!(
            outcome.code == Some(0) && outcome.findings.is_empty(),
            "the guest ended with {:?}; its log is {:?}",
            outcome.code,
            outcome.log
        );
        let results = serde_json::from_str(&fs::read_to_string(&json)?)?;
        Figures::read(&results, &fs::read_to_string(&marks)?, &self.qemu)
    }
}

/// A folder in the cache. Gone with this value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let cache = cache_folder()?;
        // What a killed process has left.
        for entry in fs::read_dir(&cache)?.flatten() {
            let name = entry.file_name();
            let process = name.to_str().and_then(|name| name.strip_prefix("bench-"));
            if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let path = cache.join(format!("bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The command line, as it is released.
fn getbuf() -> Result<PathBuf> {
    let mut build = cargo(&["build", "--quiet", "--release", "--locked", "--package", "getbuf"]);
    let messages = output(build.arg("--message-format=json"))?;
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    });
    executable.context("cargo has built no getbuf")
}

/// Builds the plugin, beside the test kernels.
fn plugin() -> Result<PathBuf> {
    let source = root().join("xtask/src/bench/marks.c");
    let plugin = cache_folder()?.join("marks.so");
    let newer = |one: &Path, other: &Path| -> Option<bool> {
        Some(one.metadata().ok()?.modified().ok()? > other.metadata().ok()?.modified().ok()?)
    };
    if newer(&plugin, &source) != Some(true) {
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]);
        run(gcc.arg(&plugin).arg(&source))?;
    }
    Ok(plugin)
}
