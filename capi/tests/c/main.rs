// SPDX-License-Identifier: MIT OR Apache-2.0
//! The C library as a C programmer meets it: installed into an empty prefix, found with
//! pkg-config, used by C programs. What a machine does not have (a compiler, liburing, Valgrind) is
//! named, and the trials that need it are ignored. `GETBUF_TEST_ENGINE` names the only engine to try,
//! and `GETBUF_BUILT` a folder with the libraries, as in `install.sh`.
//!
//! The trials `random` run random programs. `GETBUF_TEST_SEED` is that of their first one, as a
//! failure says it, and `GETBUF_TEST_OPERATIONS` how many operations there are in all.

use std::collections::HashMap;
use std::error::Error;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::{env, fs, thread};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tempfile::TempDir;

type Verdict = Result<Completion, Failed>;

/// What a C program exits with where it cannot run.
const SKIPPED: i32 = 77;

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-g"];

/// How a C program is linked and what watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Shared,
    /// Nothing is shared, libc neither.
    Static,
    Valgrind,
    /// Address and undefined-behaviour sanitizers.
    Sanitized,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Shared, Self::Static, Self::Valgrind, Self::Sanitized];

    fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Static => "static",
            Self::Valgrind => "valgrind",
            Self::Sanitized => "sanitized",
        }
    }
}

/// The library, installed.
struct Installed {
    folder: TempDir,
    /// Why a kind of program cannot be made here.
    missing: Vec<(Kind, String)>,
    /// Programs of this crate that have been built.
    programs: Mutex<HashMap<(&'static str, Kind), Arc<Program>>>,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let installed = match Installed::new() {
        Ok(installed) => Arc::new(installed),
        Err(error) => {
            eprintln!("installing libgetbuf: {error}");
            return ExitCode::FAILURE;
        }
    };
    let only = env::var("GETBUF_TEST_ENGINE").ok();
    let mut trials = Vec::new();
    let mut add = |name: String, test: Box<dyn FnOnce(&Installed) -> Verdict + Send>| {
        let installed = Arc::clone(&installed);
        trials.push(Trial::ignorable_test(name, move || test(&installed)));
    };
    add("install::soname".into(), Box::new(soname));
    add("install::symbols".into(), Box::new(symbols));
    add("install::destdir".into(), Box::new(destdir));
    add("install::pages".into(), Box::new(pages));
    add("install::versions".into(), Box::new(versions));
    for kind in Kind::ALL {
        let run = kind.name();
        add(format!("page::{run}"), Box::new(move |here| page_program(here, kind)));
        add(format!("copy::{run}"), Box::new(move |here| header_only_copy(here, kind)));
        for engine in ["opcode", "module", "copy"] {
            if only.as_deref().is_some_and(|only| only != engine) {
                continue;
            }
            add(
                format!("misuse::{engine}::{run}"),
                Box::new(move |here| misuse(here, kind, engine)),
            );
            add(
                format!("provide::{engine}::{run}"),
                Box::new(move |here| provide(here, kind, engine)),
            );
            for mode in ["row", "once", "little"] {
                add(
                    format!("limits::{engine}::{mode}::{run}"),
                    Box::new(move |here| limits(here, kind, engine, mode)),
                );
            }
            add(format!("uses::{engine}::{run}"), Box::new(move |here| uses(here, kind, engine)));
            add(
                format!("random::{engine}::{run}"),
                Box::new(move |here| random(here, kind, engine)),
            );
            for mode in ["write", "writev", "chain", "batch", "table", "early", "stream"] {
                add(
                    format!("life::{engine}::{mode}::{run}"),
                    Box::new(move |here| life(here, kind, engine, mode)),
                );
            }
            for zero_copy in [false, true] {
                let send = if zero_copy { "send_zc" } else { "send" };
                add(
                    format!("server::{engine}::{send}::{run}"),
                    Box::new(move |here| server(here, kind, engine, zero_copy)),
                );
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn capi() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a command prints; an error if it fails.
fn output(command: &mut Command) -> Result<String, Failed> {
    let Output { status, stdout, stderr } =
        command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let [stdout, stderr] = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Err(format!("{command:?}: {status}\n{stdout}{stderr}").into())
}

/// Runs a C program. That it cannot run here is no failure.
fn judge(command: &mut Command) -> Verdict {
    let told = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    verdict(command, told)
}

/// What a C program says of itself.
fn verdict(command: &Command, told: Output) -> Verdict {
    let Output { status, stdout, stderr } = told;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    match status.code() {
        Some(0) => Ok(Completion::Completed),
        Some(SKIPPED) => Ok(Completion::ignored_with(text(stdout))),
        _ => Err(format!("{command:?}: {status}\n{}\n{}", text(stdout), text(stderr)).into()),
    }
}

fn runs(program: &str, argument: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(argument).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A C program, built.
struct Program {
    folder: TempDir,
    kind: Kind,
    libraries: PathBuf,
}

impl Program {
    fn command(&self) -> Command {
        let path = self.folder.path().join("program");
        let mut command = match self.kind {
            Kind::Valgrind => {
                let mut command = Command::new("valgrind");
                command.args(["--quiet", "--error-exitcode=9", "--leak-check=full"]);
                command.arg("--errors-for-leak-kinds=definite,possible").arg(path);
                command
            }
            _ => Command::new(path),
        };
        command.env("LD_LIBRARY_PATH", &self.libraries);
        command
    }
}

impl Installed {
    fn new() -> Result<Self, Box<dyn Error>> {
        let installed =
            Self { folder: TempDir::new()?, missing: Vec::new(), programs: Mutex::default() };
        let mut install = Command::new("sh");
        install.arg(capi().join("install.sh")).env("PREFIX", installed.prefix());
        for name in ["DESTDIR", "LIBDIR", "INCLUDEDIR", "MANDIR"] {
            install.env_remove(name);
        }
        if let Some(cargo) = env::var_os("CARGO") {
            install.env("CARGO", cargo);
        }
        if !install.status()?.success() {
            return Err(format!("{install:?} fails").into());
        }
        let mut missing = Vec::new();
        for kind in Kind::ALL {
            if let Some(what) = installed.lacks(kind) {
                missing.push((kind, what));
            }
        }
        Ok(Self { missing, ..installed })
    }

    fn prefix(&self) -> PathBuf {
        self.folder.path().join("prefix")
    }

    fn libraries(&self) -> PathBuf {
        self.prefix().join("lib")
    }

    fn lacks(&self, kind: Kind) -> Option<String> {
        if !runs("cc", "--version") {
            return Some("no cc: install a C compiler (Debian: gcc)".into());
        }
        if !runs("pkg-config", "--version") {
            return Some("no pkg-config (Debian: pkg-config)".into());
        }
        if kind == Kind::Valgrind && !runs("valgrind", "--version") {
            return Some("no valgrind (Debian: valgrind)".into());
        }
        let works = self.compile("#include <liburing.h>\nint main(void) { return 0; }\n", kind);
        let error = match works {
            Ok(program) => match program.command().output() {
                Ok(output) if output.status.success() => return None,
                _ => "what it makes does not run",
            },
            Err(_) => "it does not compile",
        };
        Some(format!("a {} program with liburing: {error} (Debian: liburing-dev)", kind.name()))
    }

    /// What pkg-config says: a user needs nothing else.
    fn flags(&self, kind: Kind) -> Result<Vec<String>, Failed> {
        let mut command = Command::new("pkg-config");
        command.args(["--cflags", "--libs"]);
        if kind == Kind::Static {
            command.arg("--static");
        }
        command.arg("getbuf").env("PKG_CONFIG_PATH", self.libraries().join("pkgconfig"));
        Ok(output(&mut command)?.split_whitespace().map(str::to_owned).collect())
    }

    fn compile(&self, text: &str, kind: Kind) -> Result<Program, Failed> {
        let folder = TempDir::new()?;
        let source = folder.path().join("program.c");
        fs::write(&source, text)?;
        let mut cc = Command::new("cc");
        cc.args(WARNINGS).arg("-I").arg(capi().join("tests/c")).arg(source);
        match kind {
            Kind::Static => cc.arg("-static"),
            Kind::Sanitized => {
                cc.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
            }
            Kind::Shared | Kind::Valgrind => &mut cc,
        };
        cc.args(self.flags(kind)?).args(["-luring", "-o"]).arg(folder.path().join("program"));
        output(&mut cc)?;
        Ok(Program { folder, kind, libraries: self.libraries() })
    }

    /// A C program of this crate, built against the installed library.
    fn program(&self, source: &'static str, kind: Kind) -> Result<Arc<Program>, Failed> {
        let mut programs = self.programs.lock().map_err(|error| error.to_string())?;
        if let Some(program) = programs.get(&(source, kind)) {
            return Ok(Arc::clone(program));
        }
        let program = Arc::new(self.compile(&fs::read_to_string(capi().join(source))?, kind)?);
        programs.insert((source, kind), Arc::clone(&program));
        Ok(program)
    }

    fn why_not(&self, kind: Kind) -> Option<Completion> {
        let (_, what) = self.missing.iter().find(|(lacking, _)| *lacking == kind)?;
        Some(Completion::ignored_with(what.clone()))
    }
}

fn soname(here: &Installed) -> Verdict {
    if !runs("readelf", "--version") {
        return Ok(Completion::ignored_with("no readelf (Debian: binutils)"));
    }
    let library = here.libraries().join("libgetbuf.so");
    let told = output(Command::new("readelf").env("LC_ALL", "C").arg("-d").arg(library))?;
    assert!(told.contains("Library soname: [libgetbuf.so.0]"), "{told}");
    let link = fs::read_link(here.libraries().join("libgetbuf.so.0"))?;
    assert_eq!(link.to_str(), Some(concat!("libgetbuf.so.", env!("CARGO_PKG_VERSION"))));
    Ok(Completion::Completed)
}

/// Every function of the library, and nothing else.
fn symbols(here: &Installed) -> Verdict {
    if !runs("nm", "--version") {
        return Ok(Completion::ignored_with("no nm (Debian: binutils)"));
    }
    let library = here.libraries().join("libgetbuf.so");
    let told = output(Command::new("nm").args(["-D", "--defined-only"]).arg(library))?;
    let mut names: Vec<_> =
        told.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    names.sort_unstable();
    let wanted = fs::read_to_string(capi().join("symbols.txt"))?;
    let wanted: Vec<_> = wanted.lines().collect();
    assert_eq!(names, wanted, "left: the library, right: capi/symbols.txt");
    // In the other direction: what the header promises is there.
    let header = fs::read_to_string(here.prefix().join("include/getbuf.h"))?;
    for name in wanted {
        assert!(header.contains(&format!("{name}(")), "{name} is not in getbuf.h");
    }
    Ok(Completion::Completed)
}

/// What a packager does: everything goes below DESTDIR, and nothing in it knows of it.
fn destdir(here: &Installed) -> Verdict {
    let folder = TempDir::new()?;
    let mut install = Command::new("sh");
    install.arg(capi().join("install.sh")).env("DESTDIR", folder.path());
    install.env("GETBUF_BUILT", here.libraries()).env("PREFIX", "/usr");
    install.env("LIBDIR", "/usr/lib/somewhere");
    output(&mut install)?;
    let below = |path: &str| folder.path().join(path);
    for path in [
        "usr/lib/somewhere/libgetbuf.a",
        "usr/lib/somewhere/libgetbuf.so",
        "usr/include/getbuf.h",
        "usr/include/getbuf_prep.h",
        "usr/include/getbuf_uapi.h",
        "usr/share/man/man7/getbuf.7",
        "usr/share/man/man3/getbuf_create.3",
    ] {
        assert!(below(path).is_file(), "{path} is not installed");
    }
    let pc = fs::read_to_string(below("usr/lib/somewhere/pkgconfig/getbuf.pc"))?;
    assert!(pc.contains("\nprefix=/usr\nlibdir=/usr/lib/somewhere\n"), "{pc}");
    assert!(pc.contains(concat!("\nVersion: ", env!("CARGO_PKG_VERSION"), "\n")), "{pc}");
    Ok(Completion::Completed)
}

/// Every function has a page, and no page is malformed.
fn pages(here: &Installed) -> Verdict {
    let man = here.prefix().join("share/man");
    let functions = fs::read_to_string(capi().join("symbols.txt"))?;
    let header = fs::read_to_string(here.prefix().join("include/getbuf_prep.h"))?;
    let inline = header.split("static inline ").skip(1);
    let inline = inline.filter_map(|text| text.split_once(' ')?.1.split('(').next());
    let inline = inline.filter(|name| !name.starts_with("getbuf_prep_"));
    for name in functions.lines().chain(inline) {
        let page = man.join(format!("man3/{name}.3"));
        let text = fs::read_to_string(&page).map_err(|error| format!("{name}(3): {error}"))?;
        if let Some(target) = text.strip_prefix(".so ") {
            let text = fs::read_to_string(man.join(target.trim()))?;
            assert!(text.contains(&format!("{name}(")), "{name}(3) does not show it");
        }
    }
    if !runs("groff", "--version") {
        return Ok(Completion::ignored_with("no groff, to check the form of the pages"));
    }
    for page in fs::read_dir(capi().join("man"))? {
        let mut groff = Command::new("groff");
        groff.args(["-man", "-Tutf8", "-ww", "-z"]).arg(page?.path());
        let told = groff.output()?;
        let told = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(told.is_empty(), "{groff:?}: {told}");
    }
    Ok(Completion::Completed)
}

/// The header, the library, pkg-config and Cargo.toml say the same.
fn versions(here: &Installed) -> Verdict {
    if let Some(missing) = here.why_not(Kind::Shared) {
        return Ok(missing);
    }
    let text = "#include <getbuf.h>\n#include <stdio.h>\n\
                int main(void)\n{\n\
                \tprintf(\"%d.%d.%d\", GETBUF_VERSION_MAJOR, GETBUF_VERSION_MINOR, \
                GETBUF_VERSION_PATCH);\n\
                \treturn getbuf_version() != GETBUF_VERSION;\n}\n";
    let program = here.compile(text, Kind::Shared)?;
    assert_eq!(output(&mut program.command())?, env!("CARGO_PKG_VERSION"));
    let mut command = Command::new("pkg-config");
    command.args(["--modversion", "getbuf"]);
    command.env("PKG_CONFIG_PATH", here.libraries().join("pkgconfig"));
    assert_eq!(output(&mut command)?.trim(), env!("CARGO_PKG_VERSION"));
    Ok(Completion::Completed)
}

/// Bytes that tell their place.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(step).collect()
}

/// Runs a program that copies a file of this length, and compares.
fn copies(len: usize, command: impl FnOnce(&Path, &Path) -> Command) -> Verdict {
    let folder = TempDir::new()?;
    let (source, sink) = (folder.path().join("source"), folder.path().join("sink"));
    let content = pattern(len);
    fs::write(&source, &content)?;
    let completion = judge(&mut command(&source, &sink))?;
    if matches!(completion, Completion::Completed) {
        assert!(fs::read(sink)? == content, "the copy differs");
    }
    Ok(completion)
}

/// A large odd length; smaller where every instruction is watched.
fn length(kind: Kind) -> usize {
    if kind == Kind::Valgrind { 3_000_017 } else { 64_000_019 }
}

/// Every function with every kind of wrong argument.
fn misuse(here: &Installed, kind: Kind, engine: &str) -> Verdict {
    if let Some(missing) = here.why_not(kind) {
        return Ok(missing);
    }
    judge(here.program("tests/c/misuse.c", kind)?.command().arg(engine))
}

/// Memory of the program's own, of a provider that keeps the contract and of one that does not.
fn provide(here: &Installed, kind: Kind, engine: &str) -> Verdict {
    if let Some(missing) = here.why_not(kind) {
        return Ok(missing);
    }
    judge(here.program("tests/c/provide.c", kind)?.command().arg(engine))
}

/// An ordinary user who may lock little memory, and files that are read from where they stand.
fn limits(here: &Installed, kind: Kind, engine: &str, mode: &str) -> Verdict {
    if let Some(missing) = here.why_not(kind) {
        return Ok(missing);
    }
    let program = here.program("tests/c/limits.c", kind)?;
    // Whole chains.
    copies(4096 + 5000, |source, sink| {
        let mut command = program.command();
        command.args([engine, mode]).args([source, sink]);
        command
    })
}

/// One lease for many consumers, looks at it, and limits.
fn uses(here: &Installed, kind: Kind, engine: &str) -> Verdict {
    if let Some(missing) = here.why_not(kind) {
        return Ok(missing);
    }
    let program = here.program("tests/c/uses.c", kind)?;
    copies(4096, |source, sink| {
        let mut command = program.command();
        command.arg(engine).args([source, sink]);
        command
    })
}

/// Random programs of every function, against a model.
fn random(here: &Installed, kind: Kind, engine: &str) -> Verdict {
    if let Some(missing) = here.why_not(kind) {
        return Ok(missing);
    }
    let operations = match kind {
        Kind::Shared => "30000",
        // As the shared one: what differs is how it is linked.
        Kind::Static | Kind::Valgrind => "5000",
        Kind::Sanitized => "20000",
    };
    let given = |name, otherwise: &str| env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    let operations = given("GETBUF_TEST_OPERATIONS", operations);
    let seed = given("GETBUF_TEST_SEED", "0x5eed");
    let mut command = here.program("tests/c/random.c", kind)?.command();
    command.args([engine, &operations, &seed]);
    let told = command.output()?;
    let text = String::from_utf8_lossy(&told.stdout);
    println!("random::{engine}::{}: {}", kind.name(), text.trim());
    verdict(&command, told)
}

fn life(here: &Installed, kind: Kind, engine: &str, mode: &str) -> Verdict {
    if let Some(missing) = here.why_not(kind) {
        return Ok(missing);
    }
    let program = here.program("tests/c/life.c", kind)?;
    let length = if mode == "early" { 300_007 } else { length(kind) };
    copies(length, |source, sink| {
        let mut command = program.command();
        command.args([engine, mode]).args([source, sink]);
        command
    })
}

fn header_only_copy(here: &Installed, kind: Kind) -> Verdict {
    if let Some(missing) = here.why_not(kind) {
        return Ok(missing);
    }
    let program = here.program("examples/copy.c", kind)?;
    for length in [0, 1, length(kind)] {
        copies(length, |source, sink| {
            let mut command = program.command();
            command.args([source, sink]);
            command
        })?;
    }
    Ok(Completion::Completed)
}

/// Many connections at once, each of which gets the whole file.
fn server(here: &Installed, kind: Kind, engine: &str, zero_copy: bool) -> Verdict {
    const CONNECTIONS: usize = 24;

    if let Some(missing) = here.why_not(kind) {
        return Ok(missing);
    }
    // The server ends with an error where its engine does not work: find out what it says.
    let program = here.program("examples/send_server.c", kind)?;
    let folder = TempDir::new()?;
    let source = folder.path().join("source");
    let content = Arc::new(pattern(length(kind) / 16));
    fs::write(&source, &*content)?;
    let mut command = program.command();
    command.args(["-e", engine, "-n", &CONNECTIONS.to_string()]).args(zero_copy.then_some("-z"));
    command.arg(&source).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut server = command.spawn()?;
    let mut port = String::new();
    if let Some(stdout) = &mut server.stdout {
        BufReader::new(stdout).read_line(&mut port)?;
    }
    let Ok(port) = port.trim().parse::<u16>() else {
        let told = server.wait_with_output()?;
        let told = String::from_utf8_lossy(&told.stderr).trim().to_owned();
        return match told.strip_prefix("send_server: no such engine here: ") {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => Err(told.into()),
        };
    };
    let clients = (0..CONNECTIONS).map(|client| {
        let content = Arc::clone(&content);
        thread::spawn(move || -> Result<bool, std::io::Error> {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            if client % 8 == 7 {
                // One that goes away in the middle.
                let mut some = [0; 1000];
                stream.read_exact(&mut some)?;
                return Ok(content.starts_with(&some));
            }
            let mut got = Vec::new();
            stream.read_to_end(&mut got)?;
            Ok(got == *content)
        })
    });
    for (number, client) in clients.collect::<Vec<_>>().into_iter().enumerate() {
        let equal = client.join().map_err(|_| "a client panicked")?;
        assert!(equal.map_err(|error| format!("client {number}: {error}"))?, "client {number}");
    }
    let told = server.wait_with_output()?;
    let errors = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "the server: {}\n{errors}", told.status);
    Ok(Completion::Completed)
}

/// The program in getbuf(7) is complete: it compiles as it stands, and copies.
fn page_program(here: &Installed, kind: Kind) -> Verdict {
    if let Some(missing) = here.why_not(kind) {
        return Ok(missing);
    }
    let page = fs::read_to_string(capi().join("man/getbuf.7"))?;
    let text = page.split(".EX\n").find(|text| text.contains("int main("));
    let text = text.and_then(|text| text.split(".EE").next()).ok_or("no program in getbuf(7)")?;
    let program = here.compile(&text.replace("\\e", "\\").replace("\\-", "-"), kind)?;
    copies(length(kind), |source, sink| {
        let mut command = program.command();
        command.args::<_, &OsStr>([source.as_ref(), sink.as_ref()]);
        command
    })
}
