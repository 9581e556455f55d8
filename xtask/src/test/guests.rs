// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tests in the test kernels: the same executables as on the host.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::{cargo, output, run, target_directory};
use crate::kernel::{Flavour, Kernel, Machine, has_source};
use crate::packages;
use crate::totals::{Reader, Totals};
use crate::vm;

/// A test kernel, and the engines that have to work there.
struct Guest {
    flavour: Flavour,
    debug: bool,
    /// With `getbuf.ko`.
    module: bool,
    engines: &'static [&'static str],
}

/// The debug kernel has the patches and the module, so that one is enough for both.
const GUESTS: [Guest; 4] = [
    Guest { flavour: Flavour::Stock, debug: false, module: false, engines: &["copy"] },
    Guest { flavour: Flavour::Stock, debug: false, module: true, engines: &["module"] },
    Guest { flavour: Flavour::Opcode, debug: false, module: false, engines: &["opcode", "copy"] },
    Guest { flavour: Flavour::Opcode, debug: true, module: true, engines: &["opcode", "module"] },
];

/// Executables that are run once for each engine, which they are told in `GETBUF_TEST_ENGINE`.
const PER_ENGINE: [&str; 5] = ["adversary", "c", "e2e", "fuzz", "lent"];

/// The C programs. What Valgrind and static linking tell is told on the host.
const C: &str = "c";
const C_SKIPPED: &str = " --skip ::valgrind --skip ::static";

/// The debug kernel is slow: there, only what uses kernels most, with the engines of the kernel.
const IN_DEBUG: [&str; 6] = ["adversary", "cli", "e2e", "fuzz", "hostile", "lent"];

/// And of them what uses it in different ways: the pool of a command line alone takes seconds there.
fn in_debug(name: &str, engine: &str) -> &'static str {
    match (name, engine) {
        ("adversary", _) => " ::defer",
        ("cli", _) => {
            " a_signal_ends_it_in_order files_of_every_awkward_length_are_copied \
             from_a_pipe_and_to_a_pipe sends_to_many"
        }
        // What is about files and limits and not about leases ends the same there, and takes long.
        ("e2e", "opcode") => {
            " --skip @defer --skip @sqpoll --skip ::alike:: --skip ::ends:: --skip ::limits:: --skip ::odd::"
        }
        // What is the engine's own.
        ("e2e", "module") => {
            " --skip ::alike:: --skip ::bad:: --skip ::ends:: --skip ::fan:: --skip ::limits:: --skip ::look:: \
             --skip ::odd:: --skip ::process:: --skip ::provide:: --skip ::relay:: --skip ::waits::"
        }
        _ => "",
    }
}

/// Packages with tests that say something about a kernel, and executables of theirs that do not.
const PACKAGES: [&str; 4] = ["uring-getbuf", "getbuf", "getbuf-capi", "getbuf-tests"];
const HOST_ONLY: [&str; 3] = ["headers", "misuse", "model"];

/// Tests in one kernel take at most this long.
const LIMIT: Duration = Duration::from_secs(2400);

/// Why there can be no test kernels here, after what is missing was installed.
pub(crate) fn obstacle() -> Result<Option<&'static str>> {
    let missing = packages::setup(&[packages::KERNEL, packages::GUESTS])?;
    Ok(if !cfg!(target_arch = "x86_64") {
        Some("user-mode Linux needs an x86-64 machine")
    } else if !missing.is_empty() {
        Some("packages are missing")
    } else if !has_source() {
        Some("there is no package of the kernel's source here (`cargo xtask kernel --source`)")
    } else {
        None
    })
}

pub(super) fn all(totals: &mut Totals) -> Result<()> {
    let reason = obstacle()?;
    let tests = executables()?;
    let built = c_library()?;
    for guest in &GUESTS {
        match reason {
            Some(reason) => totals.skip(&format!("tests in {guest}"), reason),
            None => match one(guest, &tests, &built) {
                Ok(more) => totals.add(more),
                Err(error) => totals.fail(&format!("tests in {guest}"), format_args!("{error:#}")),
            },
        }
    }
    Ok(())
}

impl Guest {
    fn kernel(&self) -> Kernel {
        let Self { flavour, debug, .. } = *self;
        Kernel { flavour, machine: Machine::Um, debug, up: false, source: None }
    }

    /// Whether it says something new here. Each engine has one kernel for the C programs, which are
    /// slow to build and to run.
    fn has_use_of(&self, name: &str, engine: &str) -> bool {
        match name {
            "lent" => engine != "copy",
            "bench" => self.engines != ["copy"],
            C => self.engines.first() == Some(&engine),
            _ => true,
        }
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kernel().fmt(f)?;
        f.write_str(if self.module { "+module" } else { "" })
    }
}

/// Runs the tests in one kernel.
fn one(guest: &Guest, tests: &[(String, PathBuf)], built: &Path) -> Result<Totals> {
    println!("== tests in {guest}");
    let kernel = guest.kernel();
    let image = kernel.build()?;
    let module = if guest.module { Some(kernel.build_module()?) } else { None };
    let mut script = format!("status=0\nexport GETBUF_BUILT='{}'\n", built.display());
    for (name, path) in tests {
        let path = path.to_str().context("the target folder has a name that is not text")?;
        ensure!(!path.contains('\''), "a quote in the name of the target folder");
        let per_engine = PER_ENGINE.contains(&name.as_str());
        if kernel.debug && !IN_DEBUG.contains(&name.as_str()) {
            continue;
        }
        for engine in if per_engine { guest.engines } else { &[""] } {
            let mut set =
                if per_engine { format!("GETBUF_TEST_ENGINE={engine} ") } else { String::new() };
            if kernel.debug {
                set.push_str("GETBUF_ADVERSARY=20 ");
            }
            if !guest.has_use_of(name, engine) {
                continue;
            }
            let mut arguments = String::new();
            if kernel.debug {
                arguments.push_str(in_debug(name, engine));
            }
            if name == C {
                // The tests that are named after the engine: the others are about no kernel.
                write!(arguments, " ::{engine}::{C_SKIPPED}")?;
            }
            writeln!(script, "echo '-- {name} {engine}'\n{set}'{path}'{arguments} || status=1")?;
        }
    }
    script.push_str("exit $status\n");
    let job = vm::Job {
        command: ["sh", "-c", &script].map(Into::into).to_vec(),
        limit: LIMIT,
        exact: false,
        cpus: None,
        plugin: None,
        module,
    };
    let start = Instant::now();
    let mut reader = Reader::new(&guest.to_string());
    let mut line = Vec::new();
    let outcome = vm::run(&kernel, &image, &job, |bytes| {
        std::io::stdout().write_all(bytes)?;
        for byte in bytes {
            if *byte == b'\n' {
                reader.line(&String::from_utf8_lossy(&line));
                line.clear();
            } else {
                line.push(*byte);
            }
        }
        Ok(())
    })?;
    let mut totals = reader.end(&match outcome.code {
        Some(0) => Ok(()),
        Some(code) => Err(format!("exit status {code}")),
        None => Err("the tests did not end".into()),
    });
    let name = format!("{guest}: the guest");
    for finding in &outcome.findings {
        totals.fail(&name, finding);
    }
    if let Some(log) = &outcome.log {
        println!("the guest's log is {}", log.display());
    }
    println!("tests in {guest} took {} s", start.elapsed().as_secs());
    Ok(totals)
}

/// Builds the C library, and says where it is: the guests have no toolchain of their own.
fn c_library() -> Result<PathBuf> {
    run(&mut cargo(&["build", "--quiet", "--locked", "--profile=capi", "--package=getbuf-capi"]))?;
    Ok(Path::new(&target_directory()?).join("capi"))
}

/// The test executables, by name.
fn executables() -> Result<Vec<(String, PathBuf)>> {
    let mut build = cargo(&["test", "--quiet", "--no-run", "--locked", "--message-format=json"]);
    for package in PACKAGES {
        build.args(["--package", package]);
    }
    let messages = output(&mut build)?;
    let mut found = Vec::new();
    for message in messages.lines() {
        let message: Value = serde_json::from_str(message)?;
        let name = message["target"]["name"].as_str().unwrap_or_default();
        let Some(path) = message["executable"].as_str() else { continue };
        if message["profile"]["test"] == true && !HOST_ONLY.contains(&name) {
            found.push((name.to_owned(), Path::new(path).to_owned()));
        }
    }
    found.sort();
    ensure!(!found.is_empty(), "cargo has built no tests");
    Ok(found)
}
