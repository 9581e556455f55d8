// SPDX-License-Identifier: MIT OR Apache-2.0
//! The options of the commands that take a kernel.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::kernel::{Flavour, Kernel, Machine};

/// What follows `kernel` and `vm`.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) kernel: Kernel,
    pub(crate) limit: Duration,
    pub(crate) exact: bool,
    pub(crate) cpus: Option<usize>,
    /// With `getbuf.ko` loaded.
    pub(crate) module: bool,
    /// What follows `--`.
    pub(crate) command: Vec<OsString>,
}

impl Options {
    pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Self> {
        let mut options = Self {
            kernel: Kernel {
                flavour: Flavour::Opcode,
                machine: Machine::Um,
                debug: false,
                up: false,
                source: None,
            },
            limit: Duration::from_secs(600),
            exact: false,
            cpus: None,
            module: false,
            command: Vec::new(),
        };
        let mut args = args;
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg:?} needs a value"));
            match arg.to_str() {
                Some("--flavour") => {
                    options.kernel.flavour = match value()?.to_str() {
                        Some("opcode") => Flavour::Opcode,
                        Some("stock") => Flavour::Stock,
                        _ => bail!("there are the flavours opcode and stock"),
                    }
                }
                Some("--debug") => options.kernel.debug = true,
                Some("--up") => options.kernel.up = true,
                Some("--qemu") => options.kernel.machine = Machine::Qemu,
                Some("--module") => options.module = true,
                Some("--icount") => options.exact = true,
                Some("--cpus") => {
                    let cpus = value()?.to_str().and_then(|value| value.parse().ok());
                    let cpus = cpus.filter(|cpus| (1..=8).contains(cpus));
                    options.cpus = Some(cpus.context("--cpus takes a number from 1 to 8")?);
                }
                Some("--source") => options.kernel.source = Some(value()?.into()),
                Some("--limit") => {
                    let seconds = value()?.to_str().and_then(|value| value.parse().ok());
                    options.limit = Duration::from_secs(seconds.context("--limit SECONDS")?);
                }
                Some("--") => {
                    options.command = args.collect();
                    break;
                }
                _ => bail!("{} is no option here", arg.display()),
            }
        }
        ensure!(
            !options.kernel.up || options.kernel.machine == Machine::Um,
            "--up is for user-mode Linux; a guest of QEMU takes --cpus 1"
        );
        ensure!(
            !options.kernel.up || options.cpus.is_none_or(|cpus| cpus == 1),
            "a kernel for one processor (--up) has no more: leave --cpus out"
        );
        ensure!(options.limit.as_secs() > 0, "--limit is at least one second");
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options> {
        Options::parse(args.iter().map(Into::into))
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let args = ["--flavour", "stock", "--debug", "--", "ls", "--module"];
        let options = parse(&args).unwrap();
        assert_eq!(options.kernel.to_string(), "um-stock-debug");
        assert_eq!(options.command, ["ls", "--module"]);
        assert!(!options.module);
        assert!(parse(&["--module", "--", "ls"]).unwrap().module);
        assert_eq!(parse(&["--debug", "--up"]).unwrap().kernel.to_string(), "um-opcode-debug-up");
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse(&["--flavour", "mint"]).is_err());
        assert!(parse(&["--limit"]).is_err());
        assert!(parse(&["--cpus", "0"]).is_err());
        assert!(parse(&["--up", "--qemu"]).is_err());
        assert!(parse(&["--up", "--cpus", "2"]).is_err());
        assert!(parse(&["ls"]).is_err());
    }
}
