// SPDX-License-Identifier: MIT OR Apache-2.0
//! The project's own commands. `cargo xtask` lists them.

mod api;
mod args;
mod bench;
mod check;
mod ci;
mod command;
mod kernel;
mod mutate;
mod packages;
mod sanitize;
mod test;
mod totals;
mod vm;
mod walk;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Error, Result, bail, ensure};

use crate::args::Options;
use crate::totals::Totals;

const USAGE: &str = "\
cargo xtask COMMAND

  setup             install what is missing (Debian, as root), or name it
  codegen [--check] write the generated files, or check that they are current
  api [--check]     write what is public in the libraries to docs/api, or compare it with that
  check             licence lines of all source files, that the patches have our header, and that
                    docs/architecture.md names functions that are there
  test [--host|--guests]
                    every test, on this kernel and in the test kernels; or one of the two
  sanitize          tests under Miri, AddressSanitizer and ThreadSanitizer; needs a nightly Rust
  mutate [NAME...]  deliberate faults, in a copy: the test that is named for each has to fail
  ci                what .ci/run runs: formatter, lints, documents, generated files, every test
  kernel [KERNEL] [--module]
                    build a test kernel, unless the cache has it, and print where it is;
                    --module: build getbuf.ko for it, and print where that is
  vm [KERNEL] [--module] [--limit SECONDS] [--cpus N] [--icount] -- COMMAND...
                    run a command in a test kernel: the file system is this machine's, the current
                    folder an empty tmpfs; output and exit status are the command's.
                    --module: with getbuf.ko, which is built and loaded
                    --icount (QEMU): a nanosecond of the guest's time is one instruction
  bench --exact [CASE...]
                    count the instructions of every way of `getbuf bench`, in QEMU; write docs/bench
  bench --exact --check
                    count some of them, and fail if they are more than 3 % more than in docs/bench

KERNEL:
  --flavour opcode|stock    with the project's patches (default), or as released
  --debug                   with KASAN, lockdep and kmemleak
  --up                      for one processor: user-mode Linux is some times faster with --debug
  --qemu                    for a PC of QEMU instead of user-mode Linux
  --source DIR              the tree of Linux 7.3 to build; default: the distribution's package";

fn main() -> ExitCode {
    if vm::guest::is_init() {
        vm::guest::init();
        return ExitCode::FAILURE;
    }
    match run(std::env::args_os().skip(1).collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: Vec<OsString>) -> Result<ExitCode> {
    let words: Vec<_> = args.iter().map(|arg| arg.to_str().unwrap_or_default()).collect();
    // What follows is another program's.
    let ours = words.split(|word| *word == "--").next().unwrap_or_default();
    if ours.iter().any(|word| matches!(*word, "-h" | "--help")) {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    }
    match words[..] {
        ["setup"] => {
            packages::setup(packages::ALL)?;
        }
        ["codegen"] => check::codegen(false)?,
        ["codegen", "--check"] => check::codegen(true)?,
        ["api"] => api::write(&api::Toolchain::find().map_err(Error::msg)?)?,
        ["api", "--check"] => api::check(&api::Toolchain::find().map_err(Error::msg)?)?,
        ["check"] => {
            check::licences()?;
            check::header_of_the_patches()?;
            walk::check()?;
        }
        ["test"] => return Ok(verdict(&test::all()?)),
        ["test", "--host"] => return Ok(verdict(&test::host()?)),
        ["test", "--guests"] => return Ok(verdict(&test::guests()?)),
        ["sanitize"] => return Ok(verdict(&sanitize::run_all()?)),
        ["mutate", ref names @ ..] => return Ok(verdict(&mutate::run_all(names)?)),
        ["ci"] => return Ok(verdict(&ci::run_all()?)),
        ["kernel", ..] => {
            let options = Options::parse(args.drain(1..))?;
            ensure!(options.command.is_empty(), "`kernel` runs nothing; `vm` does");
            packages::setup(&[packages::KERNEL])?;
            let built = if options.module {
                options.kernel.build_module()?
            } else {
                options.kernel.build()?
            };
            println!("{}", built.display());
        }
        ["bench", "--exact", "--check"] => bench::check()?,
        ["bench", "--exact", ref cases @ ..] => bench::write(cases)?,
        ["vm", ..] => return guest(&Options::parse(args.drain(1..))?),
        [] | ["help"] => println!("{USAGE}"),
        _ => bail!("there is no `cargo xtask {}`\n{USAGE}", words.join(" ")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the totals, their line last.
fn verdict(totals: &Totals) -> ExitCode {
    print!("{totals}");
    if totals.good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a command in a guest. Its exit status is the result, unless it succeeds in a guest that does
/// not.
fn guest(options: &Options) -> Result<ExitCode> {
    let qemu = options.kernel.machine == kernel::Machine::Qemu;
    packages::setup(&[packages::KERNEL, packages::QEMU][..1 + usize::from(qemu)])?;
    let image = options.kernel.build()?;
    let module = if options.module { Some(options.kernel.build_module()?) } else { None };
    let job = vm::Job {
        command: options.command.clone(),
        limit: options.limit,
        exact: options.exact,
        cpus: options.cpus,
        plugin: None,
        module,
    };
    let outcome = vm::run(&options.kernel, &image, &job, |bytes| {
        let mut out = std::io::stdout();
        out.write_all(bytes)?;
        Ok(out.flush()?)
    })?;
    for finding in &outcome.findings {
        eprintln!("xtask: {finding}");
    }
    if let Some(log) = &outcome.log {
        eprintln!("xtask: the guest's log is {}", log.display());
    }
    Ok(match outcome.code.map(u8::try_from) {
        Some(Ok(0)) if !outcome.findings.is_empty() => ExitCode::FAILURE,
        Some(Ok(code)) => ExitCode::from(code),
        _ => ExitCode::FAILURE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_help_for_every_command() {
        let run = |args: &[&str]| run(args.iter().map(Into::into).collect());
        for args in [
            &["--help"][..],
            &["vm", "--help"],
            &["vm", "--flavour", "stock", "-h"],
            &["kernel", "--help"],
            &["bench", "--exact", "--help"],
            &["test", "--help"],
            &["mutate", "-h"],
        ] {
            assert!(run(args).is_ok(), "{args:?}");
        }
        // It is not for this program.
        assert!(run(&["nonesuch", "--", "--help"]).is_err());
    }
}
