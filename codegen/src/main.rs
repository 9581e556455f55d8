// SPDX-License-Identifier: MIT OR Apache-2.0
//! Generates `uring-getbuf-sys/src/bindings.rs` from `include/getbuf_uapi.h`.
//!
//! `codegen ROOT` writes the file, `codegen ROOT --check` fails if the file is not what would be
//! written. A crate of its own because bindgen needs libclang when it runs and is slow to build;
//! `cargo xtask codegen` calls it, and nobody else has to.

use std::path::Path;
use std::process::ExitCode;

const BINDINGS: &str = "uring-getbuf-sys/src/bindings.rs";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(root), check) = (args.next(), args.next().as_deref() == Some("--check")) else {
        eprintln!("usage: codegen ROOT [--check]");
        return ExitCode::from(2);
    };
    let path = Path::new(&root).join(BINDINGS);
    let text = match bindings(Path::new(&root)) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("bindgen: {error}");
            return ExitCode::FAILURE;
        }
    };
    if check {
        if std::fs::read_to_string(&path).is_ok_and(|now| now == text) {
            return ExitCode::SUCCESS;
        }
        eprintln!("{BINDINGS} is not what bindgen writes; run `cargo xtask codegen`");
        return ExitCode::FAILURE;
    }
    match std::fs::write(&path, text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{BINDINGS}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bindings(root: &Path) -> Result<String, bindgen::BindgenError> {
    bindgen::Builder::default()
        .header(root.join("include/getbuf_uapi.h").display().to_string())
        // A fixed target: the output must not depend on the machine that runs it. The layout is
        // the same on every target that the crate accepts, and asserted there.
        .clang_arg("--target=x86_64-unknown-linux-gnu")
        .raw_line("// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT")
        .allowlist_file(".*getbuf_uapi\\.h")
        .use_core()
        .ctypes_prefix("libc")
        .merge_extern_blocks(true)
        .derive_default(true)
        .generate_comments(true)
        .layout_tests(true)
        .rust_target(bindgen::RustTarget::stable(88, 0).ok().unwrap_or_default())
        .generate()
        .map(|bindings| bindings.to_string())
}
