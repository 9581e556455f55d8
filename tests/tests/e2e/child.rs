// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cases that need a process of their own: this executable, started once more.

use std::process::ExitCode;
pub(crate) const FLAG: &str = "--child";
pub(crate) const CASES: &[crate::Case] = &[];
pub(crate) fn main(_: &[String]) -> ExitCode {
    ExitCode::FAILURE
}
