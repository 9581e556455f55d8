// SPDX-License-Identifier: MIT OR Apache-2.0
//! Gives the shared library its SONAME. Its number changes with the ABI, not with the version.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libgetbuf.so.0");
    println!("cargo::rerun-if-changed=build.rs");
}
