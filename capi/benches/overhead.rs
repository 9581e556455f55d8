// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a C program pays for each lease, beside the same program in Rust: `overhead.c` with liburing
//! and libgetbuf, and the functions below with `Ring`. Both fetch, write to /dev/null and release.
//!
//! ```text
//! cargo bench -p getbuf-capi                  user-space instructions, counted by callgrind
//! cargo bench -p getbuf-capi -- --check       the same; fails where C pays too much
//! cargo bench -p getbuf-capi -- PROGRAM       leaves the C program there, linked statically
//! ```
//!
//! Each prints nanoseconds for a lease when it is run by itself (`MODE DEPTH LEASES SOURCE ENGINE`).
//! Below `cargo xtask vm --qemu --icount` these are instructions, the kernel's included.

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use uring_getbuf::Engine;
use uring_getbuf::chain::ChainOutcome;
use uring_getbuf::lease::{Fetched, Installed, Lease};
use uring_getbuf::ring::{Attached, Ring};
use uring_getbuf::slots::Event;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const BLOCK: u32 = 4096;
const DEPTH_MAX: usize = 64;
const LEASES: usize = 6400;
/// How many instructions more C may pay for a lease: a tenth of what a chain takes in whole, with many
/// in flight, which is the least. See docs/performance.md.
const MORE: f64 = 230.0;

fn main() -> Outcome {
    let args: Vec<_> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match args[..] {
        [] => compare(false),
        ["--check"] => compare(true),
        [program] => c_program(Path::new(program), true),
        [mode, depth, leases, source, engine] => {
            run(mode, depth.parse()?, leases.parse()?, source, engine.parse()?)
        }
        _ => Err("no argument, or --check, or a path, or MODE DEPTH LEASES SOURCE ENGINE".into()),
    }
}

/// Installs the library, and builds the C program against it.
fn c_program(program: &Path, is_static: bool) -> Outcome {
    let capi = Path::new(env!("CARGO_MANIFEST_DIR"));
    let prefix = program.with_extension("prefix");
    done(Command::new("sh").arg(capi.join("install.sh")).env("PREFIX", &prefix))?;
    let mut flags = Command::new("pkg-config");
    flags.args(["--cflags", "--libs"]).args(is_static.then_some("--static")).arg("getbuf");
    let flags = flags.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")).output()?;
    let flags = String::from_utf8(flags.stdout)?;
    let mut cc = Command::new("cc");
    cc.arg("-O2").args(is_static.then_some("-static")).arg(capi.join("benches/overhead.c"));
    cc.args(flags.split_whitespace()).args(["-luring", "-o"]).arg(program);
    done(&mut cc)
}

fn done(command: &mut Command) -> Outcome {
    let status = command.status().map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

fn compare(check: bool) -> Outcome {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("overhead");
    c_program(&program, false)?;
    let libraries = folder.path().join("overhead.prefix/lib");
    println!("user-space instructions per lease, copy engine, /dev/zero to /dev/null");
    println!("{:8}{:>6}{:>10}{:>10}{:>8}", "mode", "depth", "C", "Rust", "more");
    let mut most = f64::MIN;
    for mode in ["steps", "chain"] {
        for depth in [1, 32] {
            let count = |program: &Path| per_lease(program, &libraries, mode, depth, folder.path());
            let (c, rust) = (count(&program)?, count(&env::current_exe()?)?);
            println!("{mode:8}{depth:6}{c:10.1}{rust:10.1}{:+8.1}", c - rust);
            most = most.max(c - rust);
        }
    }
    if check && most > MORE {
        let what = format!("C pays {most:.1} instructions more for a lease: {MORE} is the most");
        return Err(what.into());
    }
    Ok(())
}

/// So many leases and twice as many: what is done once cancels out.
fn per_lease(
    program: &Path,
    libraries: &Path,
    mode: &str,
    depth: usize,
    folder: &Path,
) -> Outcome<f64> {
    let file: PathBuf = folder.join("callgrind");
    let count = |leases: usize| -> Outcome<f64> {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--quiet"]);
        valgrind.arg(format!("--callgrind-out-file={}", file.display())).arg(program);
        valgrind.args([mode, &depth.to_string(), &leases.to_string(), "/dev/zero", "copy"]);
        let told = valgrind.env("LD_LIBRARY_PATH", libraries).output()?;
        if !told.status.success() {
            return Err(format!("{valgrind:?}: {}", String::from_utf8_lossy(&told.stderr)).into());
        }
        let text = fs::read_to_string(&file)?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        Ok(total.ok_or("callgrind has counted nothing")?.parse()?)
    };
    Ok((count(2 * LEASES)? - count(LEASES)?) / LEASES as f64)
}

/// What `overhead.c` does.
fn run(mode: &str, depth: usize, leases: usize, source: &str, engine: Engine) -> Outcome {
    if !(1..=DEPTH_MAX).contains(&depth) {
        return Err(format!("a depth is 1 to {DEPTH_MAX}").into());
    }
    // What is released comes back with the next submission.
    let slots = 2 * depth as u16;
    let mut ring = Ring::builder().slots(slots).block_size(BLOCK).engine(engine).build()?;
    let source = ring.attach(&File::open(source)?)?;
    let sink = ring.attach(&File::create("/dev/null")?)?;
    let (mut fetched, mut installed) = (Vec::with_capacity(depth), Vec::with_capacity(depth));
    let begin = Instant::now();
    let mut done = 0;
    while done < leases {
        match mode {
            "chain" => chains(&mut ring, depth, &source, &sink)?,
            _ => steps(&mut ring, depth, &source, &sink, (&mut fetched, &mut installed))?,
        }
        done += depth;
    }
    println!("{:.1}", begin.elapsed().as_nanos() as f64 / done as f64);
    Ok(())
}

fn steps(
    ring: &mut Ring,
    depth: usize,
    source: &Attached,
    sink: &Attached,
    (fetched, installed): (&mut Vec<Lease<Fetched>>, &mut Vec<Lease<Installed>>),
) -> Outcome {
    for _ in 0..depth {
        fetched.push(ring.fetch(source, 0, BLOCK)?);
    }
    wait_for(ring, depth, |event| matches!(event, Event::Fetched { result: Ok(_), .. }))?;
    for lease in fetched.drain(..) {
        let lease = lease.installed()?;
        ring.write(&lease, .., sink, 0)?;
        installed.push(lease);
    }
    wait_for(ring, depth, |event| matches!(event, Event::Used { result: Ok(_), .. }))?;
    for lease in installed.drain(..) {
        ring.release(lease);
    }
    Ok(())
}

fn chains(ring: &mut Ring, depth: usize, source: &Attached, sink: &Attached) -> Outcome {
    for _ in 0..depth {
        ring.chain_write(source, 0, BLOCK, sink, 0)?;
    }
    let is_done =
        |event: &Event| matches!(event, Event::Chained { outcome: ChainOutcome::Done(_), .. });
    wait_for(ring, depth, is_done)
}

fn wait_for(ring: &mut Ring, count: usize, wanted: impl Fn(&Event) -> bool) -> Outcome {
    let mut there = 0;
    while there < count {
        ring.wait(count - there)?;
        while let Some(event) = ring.next_event() {
            there += usize::from(wanted(&event));
        }
    }
    Ok(())
}
