// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask mutate`: the tests that are named for deliberate faults have to fail with them.
//!
//! Each [fault](faults) is put into a copy of the checkout, which is built in a folder of its own;
//! the checkout itself is only read.

mod faults;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use self::faults::{FAULTS, Fault, Place, Test};
use crate::command::{cargo, find, output, root, run, target_directory};
use crate::kernel::cache_folder;
use crate::totals::Totals;
use crate::{packages, test};

/// Seconds that one test may take.
const LIMIT: &str = "120";

/// Tries these faults, or all of them.
pub(crate) fn run_all(names: &[&str]) -> Result<Totals> {
    for name in names {
        if !FAULTS.iter().any(|fault| fault.name == *name) {
            let known: Vec<_> = FAULTS.iter().map(|fault| fault.name).collect();
            bail!("there is no fault {name}; there are {}", known.join(", "));
        }
    }
    ensure!(find("timeout").is_some(), "`timeout` is missing (Debian: coreutils)");
    packages::setup(&[packages::C])?;
    let mut copy = Copy::new()?;
    let mut totals = Totals::default();
    let no_guests = test::no_guests()?;
    for fault in FAULTS.iter().filter(|fault| names.is_empty() || names.contains(&fault.name)) {
        if let (Place::Module | Place::Patches, Some(reason)) = (fault.test.place, no_guests) {
            totals.skip(fault.name, reason);
            continue;
        }
        totals.check(fault.name, || {
            copy.test_passes(fault)?;
            let start = Instant::now();
            let caught = copy.with(fault, |copy| copy.test_fails(fault))?;
            println!("{} {caught} ({} s)", fault.row(), start.elapsed().as_secs());
            Ok(())
        });
    }
    Ok(totals)
}

/// The copy, and where it is built.
struct Copy {
    folder: PathBuf,
    source: PathBuf,
    _lock: File,
    /// Made when it is needed first: that takes minutes.
    patched: Option<Patched>,
    /// The verdicts of tests without a fault.
    passed: HashMap<Test, Result<(), String>>,
}

impl Copy {
    fn new() -> Result<Self> {
        let folder = Path::new(&target_directory()?).join("mutate");
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let lock = File::create(folder.join("lock"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another process works in {}", folder.display());
        }
        let source = folder.join("source");
        if source.exists() {
            fs::remove_dir_all(&source).with_context(|| source.display().to_string())?;
        }
        fs::create_dir_all(&source).with_context(|| source.display().to_string())?;
        let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let listed = output(Command::new("git").args(list).current_dir(root()))?;
        // Deleted, but not yet for git.
        let there = |file: &&str| root().join(file).symlink_metadata().is_ok();
        let mut copy = Command::new("cp");
        copy.args(["--no-dereference", "--parents", "--target-directory"]).arg(&source).arg("--");
        run(copy.args(listed.split_terminator('\0').filter(there)).current_dir(root()))?;
        Ok(Self { folder, source, _lock: lock, patched: None, passed: HashMap::new() })
    }

    /// Puts the fault in, and takes it out again.
    fn with<T>(&mut self, fault: &Fault, act: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let path = self.source.join(fault.file);
        let mut text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let (mut path, mut faulty) = (path, fault.put_into(&text)?);
        if fault.test.place == Place::Patches {
            // In the kernel, where the patch has put it: so little has to be built again.
            path = self.patched()?.source_of(fault, &text)?;
            text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            faulty = fault.put_into_source(&text)?;
        }
        fs::write(&path, faulty)?;
        let done = act(self);
        fs::write(&path, text)?;
        done
    }

    /// The kernel with the patches.
    fn patched(&mut self) -> Result<&Patched> {
        if self.patched.is_none() {
            let cache = Cache::new()?;
            let mut kernel = self.xtask("kernel");
            kernel.args(["--flavour", "opcode"]).env("XDG_CACHE_HOME", &cache.0);
            let image = PathBuf::from(output(&mut kernel)?.trim_end());
            let build = image.parent().context("the kernel is in a folder")?.to_owned();
            self.patched = Some(Patched { cache, build });
        }
        self.patched.as_ref().context("it was just made")
    }

    /// A command of the copy's own xtask.
    fn xtask(&self, command: &str) -> Command {
        let mut xtask = cargo(&["run", "--quiet", "--locked", "--package=xtask", "--", command]);
        self.own_target(xtask.current_dir(&self.source));
        xtask
    }

    /// A test that fails without the fault shows nothing.
    fn test_passes(&mut self, fault: &Fault) -> Result<()> {
        if !self.passed.contains_key(&fault.test) {
            let passed = match self.test(fault, false) {
                Ok(Said { passed: true, verdict: Some(true), .. }) => Ok(()),
                Ok(Said { log, .. }) => Err(format!("it did not pass: {}", log.display())),
                Err(error) => Err(format!("{error:#}")),
            };
            self.passed.insert(fault.test, passed);
        }
        match &self.passed[&fault.test] {
            Ok(()) => Ok(()),
            Err(how) => bail!("{} without the fault: {how}", fault.test.name),
        }
    }

    /// How the test fails.
    fn test_fails(&mut self, fault: &Fault) -> Result<&'static str> {
        let said = self.test(fault, true)?;
        ensure!(!said.passed, "not caught by {}: {}", fault.test.name, said.log.display());
        Ok(match said.verdict {
            Some(true) => "caught, by the kernel's log",
            Some(false) => "caught",
            None => "caught, the test did not end",
        })
    }

    /// Builds the test, and runs it and no other.
    fn test(&mut self, fault: &Fault, faulty: bool) -> Result<Said> {
        let Test { package, target, place, name } = fault.test;
        let kind = if faulty { fault.name } else { "without" };
        let log = self.folder.join(format!("{kind}.log"));
        let program = self.build(&["-p", package, target], &log)?;
        let test = [name, "--exact"];
        let mut command = match place {
            Place::Host => {
                let mut command = Command::new("timeout");
                command.arg(LIMIT).arg(&program).args(test);
                self.own_target(&mut command);
                // As cargo would.
                command.current_dir(self.source.join(fault.test.folder()));
                command
            }
            Place::Module | Place::Patches => {
                let mut command = self.xtask("vm");
                let (flavour, engine) = match place {
                    Place::Module => (&["--flavour", "stock", "--module"][..], "module"),
                    _ => (&["--flavour", "opcode"][..], "opcode"),
                };
                command.args(["--limit", LIMIT]).args(flavour).arg("--").arg(&program).args(test);
                command.env("GETBUF_TEST_ENGINE", engine);
                command
            }
        };
        if place == Place::Patches {
            let patched = self.patched()?;
            patched.make(&log)?;
            command.env("XDG_CACHE_HOME", &patched.cache.0);
        }
        let file = File::create(&log)?;
        let status = command.stdout(file.try_clone()?).stderr(file).status()?;
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        ensure!(text.contains("running 1 test\n"), "it was not run: {}", log.display());
        Ok(Said { passed: status.success(), verdict: verdict(&text, name), log })
    }

    /// Builds the executable of a test.
    fn build(&self, what: &[&str], log: &Path) -> Result<PathBuf> {
        let mut build = cargo(&["test", "--no-run", "--locked", "--message-format=json"]);
        build.args(what).current_dir(&self.source).stderr(File::create(log)?);
        self.own_target(&mut build);
        let built = output(&mut build);
        let Ok(messages) = built else {
            bail!("it does not build, and that catches nothing: {}", log.display())
        };
        for message in messages.lines() {
            let message: Value = serde_json::from_str(message)?;
            if let Some(path) = message["executable"].as_str()
                && message["profile"]["test"] == true
            {
                return Ok(path.into());
            }
        }
        bail!("cargo has built no test")
    }

    fn own_target(&self, command: &mut Command) {
        command.env("CARGO_TARGET_DIR", self.folder.join("target"));
    }
}

/// What came of a test that was run.
struct Said {
    /// The whole of it: the kernel has nothing to say either.
    passed: bool,
    /// Of the test itself, if it came to its end.
    verdict: Option<bool>,
    log: PathBuf,
}

/// What the runner says of the test.
fn verdict(log: &str, name: &str) -> Option<bool> {
    log.lines().find_map(|line| {
        let (told, verdict) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
        (told.trim_end() == name).then(|| verdict.starts_with("ok"))
    })
}

/// A kernel with the patches, which faults are put into. Only what they change is built again.
struct Patched {
    cache: Cache,
    build: PathBuf,
}

impl Patched {
    /// The file of the kernel that the patch has put the fault's text into.
    fn source_of(&self, fault: &Fault, patch: &str) -> Result<PathBuf> {
        let before = patch.split(fault.from).next().unwrap_or_default();
        let file = before.lines().rev().find_map(|line| line.strip_prefix("+++ b/"));
        Ok(self.build.join("source").join(file.context("a patch names its files")?))
    }

    fn make(&self, log: &Path) -> Result<()> {
        let mut make = Command::new("make");
        make.arg("-C").arg(&self.build).arg("ARCH=um");
        make.arg(format!("-j{}", available_parallelism().map_or(1, usize::from)));
        let file = File::create(log)?;
        let status = make.stdout(file.try_clone()?).stderr(file).status()?;
        ensure!(status.success(), "it does not build, and that catches nothing: {}", log.display());
        Ok(())
    }
}

/// A cache for a kernel that nobody wants to keep, with the sources of the real one. It is in that
/// one, as trees share files.
struct Cache(PathBuf);

impl Cache {
    fn new() -> Result<Self> {
        let real = cache_folder()?;
        let cache = Self(real.join("mutate"));
        cache.remove();
        let own = cache.0.join("uring-getbuf");
        fs::create_dir_all(own.join("source"))?;
        for (from, to, start) in [
            (real.clone(), own.clone(), "linux-source-"),
            (real.join("source"), own.join("source"), "pristine-"),
        ] {
            for entry in fs::read_dir(&from).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(start) {
                    symlink(entry.path(), to.join(entry.file_name()))?;
                }
            }
        }
        Ok(cache)
    }

    fn remove(&self) {
        // What is linked to stays.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Fault {
    /// The text of its file, with it.
    fn put_into(&self, text: &str) -> Result<String> {
        self.replace(text, self.from, self.to)
    }

    /// The text of a file of the kernel, with what the patch would have done to it.
    fn put_into_source(&self, text: &str) -> Result<String> {
        let added = |lines: &str| {
            let lines = lines.lines().map(|line| line.strip_prefix('+').unwrap_or(line));
            lines.collect::<Vec<_>>().join("\n")
        };
        self.replace(text, &added(self.from), &added(self.to))
    }

    fn replace(&self, text: &str, from: &str, to: &str) -> Result<String> {
        let Self { name, file, .. } = self;
        let count = text.matches(from).count();
        ensure!(
            count == 1,
            "the fault {name} replaces a text that must occur once in {file}, or where that is \
             applied, and occurs {count} times there: change it in xtask/src/mutate/faults.rs\n\
             {from}"
        );
        Ok(text.replace(from, to))
    }

    /// A line of the table in docs/reliability.md.
    fn row(&self) -> String {
        let Self { name, what, file, test, .. } = self;
        format!("| `{name}` | {what} | `{file}` | `{}` |", test.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_fit_the_files() {
        for fault in FAULTS {
            let text = fs::read_to_string(root().join(fault.file)).expect(fault.file);
            let faulty = fault.put_into(&text).unwrap_or_else(|error| panic!("{error}"));
            assert_ne!(faulty, text, "{}", fault.name);
            if fault.test.place == Place::Patches {
                let added = |text: &str| text.lines().all(|line| line.starts_with('+'));
                assert!(added(fault.from) && added(fault.to), "{}: not added", fault.name);
            }
            assert_eq!(FAULTS.iter().filter(|other| other.name == fault.name).count(), 1);
        }
    }

    #[test]
    fn faults_are_in_the_document() {
        let path = root().join("docs/reliability.md");
        let document = fs::read_to_string(path).expect("the document");
        for fault in FAULTS {
            assert!(document.lines().any(|line| line == fault.row()), "missing: {}", fault.row());
        }
    }

    #[test]
    fn only_the_test_itself_is_listened_to() {
        let log = "running 1 test\ntest a::b   ... FAILED\ntest c ... ok\n";
        assert_eq!(verdict(log, "a::b"), Some(false));
        assert_eq!(verdict(log, "c"), Some(true));
        assert_eq!(verdict(log, "b"), None);
    }
}
