// SPDX-License-Identifier: MIT OR Apache-2.0
//! The C headers: each compiles alone, in every language and by every compiler that we promise;
//! and the C compiler sees the layout that Rust sees.

use std::error::Error;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::mem::{align_of, offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tempfile::TempDir;
use uring_getbuf_sys as sys;

/// Compilers, and what they are asked to read.
const COMPILERS: [(&str, &[&str]); 4] = [
    ("gcc", &["c99", "c11", "c17"]),
    ("clang", &["c99", "c11", "c17"]),
    ("g++", &["c++17", "c++20"]),
    ("clang++", &["c++17", "c++20"]),
];

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

fn main() -> ExitCode {
    let mut trials = vec![Trial::test("layout::c_and_rust", || Ok(layout()?))];
    for header in headers() {
        let name = header.file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned();
        for (compiler, standards) in COMPILERS {
            for standard in standards {
                let header = header.clone();
                let trial = format!("{name}::{compiler}::{standard}");
                trials.push(Trial::ignorable_test(trial, move || {
                    compiles(&header, compiler, standard)
                }));
            }
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn include() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("include")
}

fn headers() -> Vec<PathBuf> {
    let files = fs::read_dir(include()).expect("include/").flatten().map(|entry| entry.path());
    files.filter(|file| file.extension().is_some_and(|end| end == "h")).collect()
}

/// Includes the header twice and nothing else.
fn compiles(header: &Path, compiler: &str, standard: &str) -> Result<Completion, Failed> {
    let folder = TempDir::new()?;
    let language = if standard.starts_with("c++") { "c++" } else { "c" };
    let compile = |text: &str| {
        let source = folder.path().join("source");
        fs::write(&source, text)?;
        let mut command = Command::new(compiler);
        command.args(WARNINGS).args(["-fsyntax-only", "-x", language]);
        command.arg(format!("-std={standard}")).arg("-I").arg(include());
        command.env("LC_ALL", "C").arg(source).output()
    };
    if !compile("int main(void);\n").is_ok_and(|output| output.status.success()) {
        return Ok(Completion::ignored_with(format!("no {compiler} for {standard}")));
    }
    let line = format!("#include \"{}\"\n", header.display());
    let output = compile(&line.repeat(2))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(Completion::Completed)
}

/// Names the structures of the header with their fields, and gives a C program that prints their
/// layout together with what it should print. A field that is forgotten does not compile.
macro_rules! layouts {
    ($($name:ident { $($field:ident),+ })+) => {{
        let mut names = Vec::new();
        let mut program = String::new();
        let mut expected = String::new();
        $(
            let _ = |whole: sys::$name| {
                let sys::$name { $($field: _),+ } = whole;
            };
            names.push(stringify!($name));
            let c = concat!("struct ", stringify!($name));
            writeln!(program, "\tP(\"{c}\", sizeof({c}));\n\tP(\"align\", A({c}));")?;
            writeln!(expected, "{c} {}\nalign {}", size_of::<sys::$name>(), align_of::<sys::$name>())?;
            $(
                // What is a keyword in Rust has an underscore behind it.
                let field = stringify!($field).trim_end_matches('_');
                writeln!(program, "\tP(\".{field}\", offsetof({c}, {field}));")?;
                writeln!(expected, ".{field} {}", offset_of!(sys::$name, $field))?;
            )+
        )+
        (names, program, expected)
    }};
}

fn layout() -> Result<(), Box<dyn Error>> {
    let (names, lines, expected) = layouts! {
        bio_vec { bv_page, bv_len, bv_offset }
        iou_get_buf_info { off, len, flags, desc }
        iou_buf_desc { nr_bvecs, max_bvecs, bvec, release, priv_ }
        getbuf_cmd_fetch { fd, slot, flags, version, off }
        getbuf_cmd_release { reserved0, slot, flags, version, reserved1 }
        getbuf_cmd_copy_out { reserved0, slot, flags, version, off }
        getbuf_cmd_query { reserved0, reserved1, flags, version, reserved2 }
        getbuf_cmd_bind { fd, reserved0, flags, version, reserved1 }
        getbuf_query { size, version, features, max_fetch, pinned, pinned_limit, reserved }
    };
    let header = fs::read_to_string(include().join("getbuf_uapi.h"))?;
    let mut defined: Vec<_> = header
        .lines()
        .filter_map(|line| line.strip_prefix("struct ")?.strip_suffix(" {"))
        .collect();
    let mut named = names;
    defined.sort_unstable();
    named.sort_unstable();
    assert_eq!(defined, named, "the structures of the header, and those compared here");

    let folder = TempDir::new()?;
    let (source, program) = (folder.path().join("layout.c"), folder.path().join("layout"));
    let text = format!(
        "#include <getbuf_uapi.h>\n#include <stddef.h>\n#include <stdio.h>\n\
         #define P(what, number) printf(\"%s %zu\\n\", what, (size_t)(number))\n\
         #define A(type) offsetof(struct {{ char c; type t; }}, t)\n\
         int main(void)\n{{\n{lines}\treturn 0;\n}}\n"
    );
    fs::write(&source, text)?;
    // The compiler that build scripts would take: it honours CC and CFLAGS.
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = cc::Build::new();
    build.cargo_metadata(false).opt_level(0).host(&host).target(&host).include(include());
    let status =
        build.try_get_compiler()?.to_command().arg(&source).arg("-o").arg(&program).status()?;
    assert!(status.success(), "the C compiler: {status}");
    let printed = String::from_utf8(Command::new(&program).output()?.stdout)?;
    assert_eq!(printed, expected, "left: what C sees, right: what Rust sees");
    Ok(())
}
