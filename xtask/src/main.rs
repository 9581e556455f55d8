// SPDX-License-Identifier: MIT OR Apache-2.0
//! The project's own commands. `cargo xtask` lists them.

mod check;
mod ci;
mod command;
mod packages;
mod test;
mod totals;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::totals::Totals;

const USAGE: &str = "\
cargo xtask COMMAND

  setup             install what is missing (Debian, as root), or name it
  codegen [--check] write the generated files, or check that they are current
  check             licence lines of all source files
  test [--host]     every test, on this kernel and in the test kernels; --host: only on this one
  ci                what .ci/run runs: formatter, lints, documents, generated files, every test";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<ExitCode> {
    match args {
        ["setup"] => {
            packages::setup(packages::ALL)?;
        }
        ["codegen"] => check::codegen(false)?,
        ["codegen", "--check"] => check::codegen(true)?,
        ["check"] => check::licences()?,
        ["test"] => return Ok(verdict(&test::all()?)),
        ["test", "--host"] => return Ok(verdict(&test::host()?)),
        ["ci"] => return Ok(verdict(&ci::run_all()?)),
        [] | ["help" | "-h" | "--help"] => println!("{USAGE}"),
        _ => bail!("there is no `cargo xtask {}`\n{USAGE}", args.join(" ")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the totals, their line last.
fn verdict(totals: &Totals) -> ExitCode {
    print!("{totals}");
    if totals.good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
