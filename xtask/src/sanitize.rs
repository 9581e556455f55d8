// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask sanitize`: Miri, AddressSanitizer with LeakSanitizer, and ThreadSanitizer. They need
//! a nightly Rust, and some of its parts; what is missing is named.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::command::{find, output, root, target_directory, tee};
use crate::totals::{Reader, Totals};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// These trace themselves, and LeakSanitizer cannot look at who is traced.
const TRACED: [&str; 2] = ["steady_state_system_calls", "four_consumers_in_two_calls"];

pub(crate) fn run_all() -> Result<Totals> {
    let mut totals = Totals::default();
    let Some(rustup) = find("rustup") else {
        totals.skip("sanitizers", "they need rustup, and with it a nightly Rust");
        return Ok(totals);
    };
    let ask = |args: &[&str]| output(Command::new(&rustup).args(args)).unwrap_or_default();
    let toolchains = ask(&["toolchain", "list"]);
    let Some(nightly) = toolchains.split_whitespace().find(|name| name.starts_with("nightly"))
    else {
        totals.skip("sanitizers", "rustup toolchain install nightly");
        return Ok(totals);
    };
    let parts = ask(&["component", "list", "--installed", "--toolchain", nightly]);
    let has = |part: &str| parts.lines().any(|line| line.starts_with(part));
    let target = Path::new(&target_directory()?).join("sanitize");
    let test = |kind: &str, words: &[&str]| {
        let mut test = Command::new("rustup");
        test.args(["run", nightly, "cargo"]).args(words).arg("--locked").current_dir(root());
        test.arg("--target-dir").arg(target.join(kind));
        test.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC").env_remove("CARGO");
        test
    };
    let missing = |part| format!("rustup component add {part} --toolchain {nightly}");

    if has("miri") {
        let slots = ["miri", "test", "--no-fail-fast", "-p=uring-getbuf", "--lib", "--test=model"];
        run(&mut totals, "Miri", test("miri", &slots).env("MIRIFLAGS", MIRI))?;
    } else {
        totals.skip("Miri", missing("miri"));
    }
    if !cfg!(all(target_arch = "x86_64", target_env = "gnu")) {
        totals.skip("AddressSanitizer, ThreadSanitizer", format_args!("they are for {TARGET}"));
        return Ok(totals);
    }
    // Documents and macros are built by a compiler that is not instrumented.
    let packages = ["test", "--target", TARGET, "--no-fail-fast", "-p=getbuf-tests"];
    let safe = ["-p=uring-getbuf", "--lib", "--bins", "--test=*"];
    let mut address = test("address", &packages);
    address
        .arg("-p=getbuf")
        .args(safe)
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .env("LSAN_OPTIONS", leaks());
    skip(&mut address);
    run(&mut totals, "AddressSanitizer", &mut address)?;
    if has("rust-src") {
        let mut thread = test("thread", &packages);
        thread.args(safe).arg("-Zbuild-std").env("RUSTFLAGS", "-Zsanitizer=thread");
        skip(&mut thread);
        run(&mut totals, "ThreadSanitizer", &mut thread)?;
    } else {
        totals.skip("ThreadSanitizer", missing("rust-src"));
    }
    Ok(totals)
}

/// Addresses that only a kernel follows have no provenance.
const MIRI: &str = "-Zmiri-disable-isolation -Zmiri-permissive-provenance";

/// What std leaves behind in a child.
fn leaks() -> String {
    format!("suppressions={}", root().join("xtask/src/sanitize/leaks.txt").display())
}

fn skip(test: &mut Command) {
    test.arg("--");
    for name in TRACED.iter().chain(&["misuse_does_not_compile"]) {
        test.args(["--skip", name]);
    }
}

fn run(totals: &mut Totals, name: &str, test: &mut Command) -> Result<()> {
    println!("== {name}");
    let mut reader = Reader::new(name);
    let status = tee(test, |line| reader.line(line))?;
    totals.add(reader.end(&if status.success() { Ok(()) } else { Err(status.to_string()) }));
    Ok(())
}
