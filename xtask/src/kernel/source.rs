// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the kernel's source comes from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::{Flavour, Kernel, RELEASE, cache};
use crate::command::{find, output, root, run};

/// The suite of Debian that has the release.
const SUITE: &str = "trixie-backports";

/// A source tree, and what tells it from others.
pub(super) struct Tree {
    pub(super) path: PathBuf,
    pub(super) name: String,
}

/// The tree that a kernel is built from. Not written to afterwards.
pub(super) fn tree(kernel: &Kernel) -> Result<Tree> {
    let pristine = match &kernel.source {
        Some(path) => given(path)?,
        None => packaged()?,
    };
    match kernel.flavour {
        Flavour::Stock => Ok(pristine),
        Flavour::Opcode => patched(&pristine),
    }
}

/// Whether there is a source without one of the user's.
pub(crate) fn is_within_reach() -> bool {
    find("dpkg-deb").is_some()
        && (cached().is_ok_and(|package| package.is_some())
            || (find("apt-get").is_some() && archive().is_ok()))
}

/// A tree of the user's.
fn given(path: &Path) -> Result<Tree> {
    let path = path.canonicalize().with_context(|| path.display().to_string())?;
    let version = output(Command::new("make").args(["-s", "kernelversion"]).current_dir(&path))?;
    ensure!(
        version.trim().starts_with(RELEASE),
        "{} is Linux {}; the tests need {RELEASE}",
        path.display(),
        version.trim(),
    );
    // A tree may change; git knows whether it did.
    let git = |args: &[&str]| {
        output(Command::new("git").arg("-C").arg(&path).args(args).stderr(Stdio::null()))
            .unwrap_or_default()
    };
    let state = [git(&["rev-parse", "HEAD"]), git(&["diff", "HEAD"])];
    let mut parts = vec![path.as_os_str().as_encoded_bytes().to_vec()];
    parts.extend(state.map(String::into_bytes));
    Ok(Tree { name: format!("{}_{}", version.trim(), cache::hash(&parts)?), path })
}

/// The tree of Debian's source package.
fn packaged() -> Result<Tree> {
    let package = package()?;
    let name = package.file_stem().context("a package has a name")?.to_string_lossy();
    let name = name.split('_').nth(1).context("a package has a version")?;
    // make does not take every character in a path.
    let name = name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "_");
    let path = cache::entry("source", "pristine", &name, |path| {
        eprintln!("unpacking {}", package.display());
        let mut outer = Command::new("dpkg-deb");
        let mut outer = outer.arg("--fsys-tarfile").arg(&package).stdout(Stdio::piped()).spawn()?;
        let mut inner = Command::new("tar");
        inner.args(["-x", "--to-stdout", "--wildcards", "./usr/src/linux-source-*.tar.xz"]);
        let mut inner = inner
            .stdin(outer.stdout.take().expect("it is a pipe"))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut unpack = Command::new("tar");
        unpack.args(["-x", "-J", "--strip-components=1", "-C"]).arg(path);
        run(unpack.stdin(inner.stdout.take().expect("it is a pipe")))?;
        ensure!(outer.wait()?.success() && inner.wait()?.success(), "unpacking failed");
        Ok(())
    })?;
    Ok(Tree { path, name })
}

/// The source package: from the cache, or from the archive that this machine uses. apt verifies it
/// with the keys that this machine has. Nothing of the machine's own is changed.
fn package() -> Result<PathBuf> {
    let cache = cache::folder()?;
    let name = format!("linux-source-{RELEASE}");
    if let Some(package) = cached()? {
        return Ok(package);
    }
    if find("apt-get").is_none() {
        bail!(
            "there is no apt here to get {name}: give the source of Linux {RELEASE} with --source"
        );
    }
    let own = cache.join("apt");
    let _lock = cache::lock(&own)?;
    if let Some(package) = cached()? {
        return Ok(package);
    }
    eprintln!("downloading {name}");
    for folder in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(own.join(folder))?;
    }
    fs::write(own.join("debian.sources"), archive()?)?;
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.arg("-qq").current_dir(&cache);
        for (option, value) in [
            ("Dir::Etc::sourcelist", own.join("debian.sources")),
            ("Dir::Etc::sourceparts", "-".into()),
            ("Dir::State::lists", own.join("lists")),
            ("Dir::Cache", own.clone()),
            ("APT::Sandbox::User", "".into()),
        ] {
            apt.arg(format!("-o={option}={}", value.display()));
        }
        apt.args(args);
        apt
    };
    run(&mut apt(&["update"]))?;
    run(&mut apt(&["download", &name]))?;
    fs::remove_dir_all(&own)?;
    cached()?.with_context(|| format!("apt has not left {name} in {}", cache.display()))
}

/// The source package in the cache.
fn cached() -> Result<Option<PathBuf>> {
    let start = format!("linux-source-{RELEASE}_");
    let files = fs::read_dir(cache::folder()?)?.flatten().map(|entry| entry.path());
    let ours = |file: &PathBuf| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&start) && name.ends_with(".deb")
    };
    Ok(files.filter(ours).max())
}

/// This machine's own archive, with the suite that we want in the place of its own.
fn archive() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release")?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("this is no release of Debian: give the kernel's source with --source")?;
    let text = fs::read_to_string("/etc/apt/sources.list.d/debian.sources").unwrap_or_default();
    let stanzas = text.split("\n\n").filter_map(|stanza| redirect(stanza, suite));
    let sources: Vec<_> = stanzas.collect();
    if !sources.is_empty() {
        return Ok(sources.join("\n"));
    }
    let text = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let line = text
        .lines()
        .find(|line| line.starts_with("deb ") && line.split_whitespace().any(|word| word == suite));
    let line = line.with_context(|| format!("apt has no source for {suite} here"))?;
    stanza(line, suite).with_context(|| format!("this line of apt's cannot be understood: {line}"))
}

/// A stanza of deb822 for our suite, if it is for the machine's own one.
fn redirect(stanza: &str, suite: &str) -> Option<String> {
    let mut ours = false;
    let mut lines = Vec::new();
    for line in stanza.lines().filter(|line| !line.starts_with('#')) {
        if let Some(suites) = line.strip_prefix("Suites:") {
            ours = suites.split_whitespace().any(|word| word == suite);
            lines.push(format!("Suites: {SUITE}"));
        } else if line.starts_with("Components:") {
            lines.push("Components: main".into());
        } else if line.starts_with("Types:") {
            lines.push("Types: deb".into());
        } else {
            lines.push(line.into());
        }
    }
    ours.then(|| lines.join("\n") + "\n")
}

/// Makes a stanza of a line `deb [options] URI SUITE COMPONENT...` that is about `suite`.
fn stanza(line: &str, suite: &str) -> Option<String> {
    let words: Vec<_> = line.split_whitespace().collect();
    let uri = words.iter().position(|word| *word == suite)?.checked_sub(1)?;
    let signed =
        words.iter().find_map(|word| word.trim_matches(['[', ']']).strip_prefix("signed-by="));
    let signed = signed.map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
    Some(format!("Types: deb\nURIs: {}\nSuites: {SUITE}\nComponents: main\n{signed}", words[uri]))
}

/// The project's patches.
fn patches() -> Result<Vec<PathBuf>> {
    let folder = root().join("kernel/patches").join(RELEASE);
    let files = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<_> = files.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "patch"));
    files.sort();
    ensure!(!files.is_empty(), "there are no patches in {}", folder.display());
    Ok(files)
}

/// A tree with the patches. It shares the files that they do not touch.
fn patched(pristine: &Tree) -> Result<Tree> {
    let patches = patches()?;
    let mut parts = vec![pristine.name.clone().into_bytes()];
    for patch in &patches {
        parts.push(fs::read(patch)?);
    }
    let name = cache::hash(&parts)?;
    let path = cache::entry("source", "patched", &name, |path| {
        let copy = |link: &[&str]| {
            let mut copy = Command::new("cp");
            copy.arg("-a").args(link).arg(pristine.path.join(".")).arg(path);
            copy
        };
        if !copy(&["-l"]).stderr(Stdio::null()).status()?.success() {
            run(&mut copy(&[]))?;
        }
        for file in &patches {
            // patch replaces a file, and does not write into it: the pristine tree stays so.
            let mut patch = Command::new("patch");
            patch.args(["-p1", "--silent", "--forward", "--no-backup-if-mismatch", "-i"]);
            run(patch.arg(file).current_dir(path))?;
        }
        Ok(())
    })?;
    Ok(Tree { path, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_machines_own_suite_is_redirected() {
        let stanza = "# a comment\nTypes: deb deb-src\nURIs: u\nSuites: s s-updates\nSigned-By: k";
        let want = "Types: deb\nURIs: u\nSuites: trixie-backports\nSigned-By: k\n";
        assert_eq!(redirect(stanza, "s").as_deref(), Some(want));
        assert_eq!(redirect("Types: deb\nURIs: u\nSuites: s-security", "s"), None);
    }

    #[test]
    fn a_line_becomes_a_stanza() {
        let want = "Types: deb\nURIs: u\nSuites: trixie-backports\nComponents: main\n";
        assert_eq!(stanza("deb u s main", "s").as_deref(), Some(want));
        let signed = stanza("deb [arch=amd64 signed-by=/k] u s main", "s");
        assert_eq!(signed, Some(format!("{want}Signed-By: /k\n")));
    }
}
