// SPDX-License-Identifier: MIT OR Apache-2.0
//! What has to be installed, and for what.
//!
//! Users of the library need none of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::Result;

use crate::command::{find, run};

/// Something that a command of this program needs.
pub(crate) struct Package {
    /// The Debian package.
    name: &'static str,
    /// How to see that it is there, on any distribution.
    shows: Shows,
    /// What it is for.
    pub(crate) reason: &'static str,
}

enum Shows {
    Program(&'static str),
    /// Below an include folder.
    Header(&'static str),
    /// A shared library.
    Library(&'static str),
}
use Shows::{Header, Library, Program};

const fn package(name: &'static str, shows: Shows, reason: &'static str) -> Package {
    Package { name, shows, reason }
}

/// For the tests of the headers and the C library.
pub(crate) const C: &[Package] = &[
    package("gcc", Program("gcc"), "headers"),
    package("g++", Program("g++"), "headers in C++"),
    package("clang", Program("clang"), "headers with clang"),
    package("liburing-dev", Header("liburing.h"), "C programs that use liburing"),
];

/// For `cargo xtask codegen`.
pub(crate) const CODEGEN: &[Package] =
    &[package("libclang-dev", Library("libclang"), "generating the bindings")];

/// For building the test kernels.
pub(crate) const KERNEL: &[Package] = &[
    package("gcc", Program("gcc"), KERNELS),
    package("make", Program("make"), KERNELS),
    package("flex", Program("flex"), KERNELS),
    package("bison", Program("bison"), KERNELS),
    package("bc", Program("bc"), KERNELS),
    package("patch", Program("patch"), KERNELS),
    package("xz-utils", Program("xz"), KERNELS),
    package("cpio", Program("cpio"), KERNELS),
    package("kmod", Program("depmod"), KERNELS),
    package("libelf-dev", Header("libelf.h"), KERNELS),
    package("libssl-dev", Header("openssl/ssl.h"), KERNELS),
];
const KERNELS: &str = "test kernels";

/// For tests in the test kernels.
pub(crate) const GUESTS: &[Package] =
    &[package("e2fsprogs", Program("mkfs.ext4"), "tests on a file system of their own")];

/// For test kernels on a PC.
pub(crate) const QEMU: &[Package] =
    &[package("qemu-system-x86", Program("qemu-system-x86_64"), "test kernels in QEMU")];

/// All of it, as `cargo xtask setup` installs it.
pub(crate) const ALL: &[&[Package]] = &[C, CODEGEN, KERNEL, GUESTS, QEMU];

/// Installs what is missing, where that is possible, and says what is missing after that.
pub(crate) fn setup(groups: &[&'static [Package]]) -> Result<Vec<&'static Package>> {
    let missing = || groups.iter().flat_map(|group| *group).filter(|package| !package.is_here());
    let names: Vec<_> = missing().map(|package| package.name).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    if find("apt-get").is_some() && is_root() {
        eprintln!("installing {}", names.join(" "));
        if let Err(error) = install(&names) {
            eprintln!("{error:#}");
        }
    }
    let missing: Vec<_> = missing().collect();
    for package in &missing {
        eprintln!("missing: {} (Debian package {})", package.reason, package.name);
    }
    Ok(missing)
}

fn install(names: &[&str]) -> Result<()> {
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive");
        apt.args(["-qq", "-o=Dpkg::Use-Pty=0", "-o=DPkg::Lock::Timeout=300"]).args(args);
        apt
    };
    run(&mut apt(&["update"]))?;
    run(apt(&["install", "--yes", "--no-install-recommends"]).args(names))
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|process| process.uid() == 0)
}

impl Package {
    fn is_here(&self) -> bool {
        match self.shows {
            Program(program) => find(program).is_some(),
            Header(header) => Path::new("/usr/include").join(header).exists(),
            Library(library) => libraries().any(|folder| holds(&folder, library)),
        }
    }
}

/// Where libraries are, on the usual distributions.
fn libraries() -> impl Iterator<Item = PathBuf> {
    let named = env::var_os("LIBCLANG_PATH").map(PathBuf::from);
    let below = |folder: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    let llvm = below("/usr/lib").into_iter().map(|folder| folder.join("lib"));
    named
        .into_iter()
        .chain(["/usr/lib".into(), "/usr/lib64".into()])
        .chain(below("/usr/lib"))
        .chain(llvm)
}

/// Whether a folder has the shared library that a program can load: `libNAME.so` or
/// `libNAME-VERSION.so`, with or without a version behind it.
fn holds(folder: &Path, library: &str) -> bool {
    fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(library));
        rest.is_some_and(|rest| rest.starts_with(['.', '-']) && rest.contains(".so"))
    })
}
