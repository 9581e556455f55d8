// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test`.

mod guests;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::command::{cargo, find, output, root, run, target_directory, tee};
use crate::packages;
use crate::totals::{Reader, Totals};

pub(crate) use guests::obstacle as no_guests;

/// Every test, here and in the test kernels.
pub(crate) fn all() -> Result<Totals> {
    let mut totals = host()?;
    totals.add(guests()?);
    Ok(totals)
}

/// The tests in the test kernels.
pub(crate) fn guests() -> Result<Totals> {
    let mut totals = Totals::default();
    guests::all(&mut totals)?;
    Ok(totals)
}

/// What can be tested on the running kernel, and without one.
pub(crate) fn host() -> Result<Totals> {
    packages::setup(&[packages::C])?;
    let mut totals = Totals::default();
    println!("== tests on this kernel");
    let mut reader = Reader::new("host");
    // codegen is a program without tests, and slow to build.
    let tests = ["test", "--workspace", "--exclude", "codegen", "--no-fail-fast", "--locked"];
    let status = tee(&mut cargo(&tests), |line| reader.line(line))?;
    totals.add(reader.end(&if status.success() { Ok(()) } else { Err(status.to_string()) }));
    totals.check("the ABI crate without std", no_std);
    other_targets(&mut totals);
    oldest_rust(&mut totals);
    Ok(totals)
}

/// Links the ABI crate into a program that has no `std`: a second panic handler would not link.
fn no_std() -> Result<()> {
    let target = target_directory()?;
    let folder = Path::new(&target).join("no_std");
    fs::create_dir_all(folder.join("src"))?;
    let manifest = format!(
        "[package]\nname = \"no_std\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [lib]\ncrate-type = [\"staticlib\"]\n\
         [profile.dev]\npanic = \"abort\"\n[workspace]\n\
         [dependencies]\nuring-getbuf-sys.path = {:?}\n",
        root().join("uring-getbuf-sys"),
    );
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::write(
        folder.join("src/lib.rs"),
        "#![no_std]\npub use uring_getbuf_sys::*;\n\
         #[panic_handler]\nfn panic(_: &core::panic::PanicInfo) -> ! { loop {} }\n",
    )?;
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
    let mut build = cargo(&["build", "--quiet", "--offline", "--target-dir"]);
    run(build.arg(target).current_dir(folder))
}

/// Checks the crates for the other processors, where the toolchain has them.
fn other_targets(totals: &mut Totals) {
    let installed = rustup(&["target", "list", "--installed"]);
    for processor in ["aarch64", "riscv64gc"] {
        let name = format!("check for {processor}");
        let target = format!("{processor}-unknown-linux-gnu");
        if installed.lines().any(|line| line == target) {
            totals.check(&name, || {
                let check = ["check", "--quiet", "--locked", "--target", &target];
                run(cargo(&check).args(["-p=uring-getbuf-sys", "-p=uring-getbuf", "-p=getbuf"]))
            });
        } else {
            totals.skip(&name, format_args!("the toolchain has no target {target}"));
        }
    }
}

/// Checks the crates with the oldest Rust that they support, where it is installed.
fn oldest_rust(totals: &mut Totals) {
    let version = env!("CARGO_PKG_RUST_VERSION");
    let name = format!("check with Rust {version}");
    let starts = [format!("{version}-"), format!("{version}.")];
    let toolchains = rustup(&["toolchain", "list"]);
    let installed = toolchains
        .split_whitespace()
        .find(|toolchain| starts.iter().any(|start| toolchain.starts_with(start)));
    let Some(toolchain) = installed else {
        return totals.skip(&name, "this toolchain is not installed");
    };
    totals.check(&name, || {
        let target = Path::new(&target_directory()?).join("oldest");
        let mut check = Command::new("rustup");
        check.args(["run", toolchain, "cargo", "check", "--quiet", "--locked", "--target-dir"]);
        check.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC").env_remove("CARGO");
        run(check.arg(target).current_dir(root()))
    });
}

/// What rustup says; nothing, where Rust came without it.
fn rustup(args: &[&str]) -> String {
    find("rustup")
        .and_then(|rustup| output(Command::new(rustup).args(args)).ok())
        .unwrap_or_default()
}
