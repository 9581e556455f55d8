// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tells dependents where the C headers are (`DEP_GETBUF_INCLUDE`).

use std::path::PathBuf;

fn main() {
    let include = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("include");
    println!("cargo::metadata=include={}", include.display());
    println!("cargo::rerun-if-changed=include");
}
