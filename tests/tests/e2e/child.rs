// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cases that need a process of their own: this executable, started once more.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use getbuf_tests::{Folder, Rig, Stop, Verdict, pattern, skip, tcp};
use io_uring::opcode::Nop;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uring_getbuf::chain::ChainOutcome;
use uring_getbuf::engine::Engine;
use uring_getbuf::probe::Support;
use uring_getbuf::relay::Relay;
use uring_getbuf::ring::{Ring, Setup};
use uring_getbuf::slots::Event;
use uring_getbuf::{ErrorKind, SendFlags};

use crate::Case;

/// The first argument that says that it was started by a case.
pub(crate) const FLAG: &str = "--child";

pub(crate) const CASES: &[Case] = &[
    ("memory_limit", memory_limit),
    ("steady_state_system_calls", steady_state_system_calls),
    ("four_consumers_in_two_calls", four_consumers_in_two_calls),
    ("forked_off", forked_off),
    ("no_rings_allowed", no_rings_allowed),
    ("no_descriptor_left", no_descriptor_left),
    ("no_kernel_memory", no_kernel_memory),
];

/// What the child prints before its first and after its last lease of the steady state, by asking
/// for the process group of a process that cannot be.
const MARK: libc::pid_t = 0x7eed_5eed;
/// Leases between the marks.
const LEASES: u64 = 400;

pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let [what, engine] = arguments else { return ExitCode::FAILURE };
    let Ok(engine) = engine.parse() else { return ExitCode::FAILURE };
    let done = match what.as_str() {
        "memory_limit" => under_a_memory_limit(engine),
        "forked" => crate::SETUPS
            .into_iter()
            .try_for_each(|(_, setup)| in_two_processes(&Rig { engine, setup })),
        "no_rings" => without_rings(),
        "no_descriptor" => without_descriptors(engine),
        "no_memory" => without_kernel_memory(engine),
        "steady" => steady(engine),
        "four" => crate::fan::consume_by_four(&Rig { engine, setup: Setup::Cooperative }, mark),
        "sleep" => std::io::copy(&mut std::io::stdin(), &mut std::io::sink())
            .map(|_| ())
            .map_err(Stop::from),
        what => crate::limits::child(what, engine),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Skip(reason)) => {
            println!("{reason}");
            ExitCode::from(77)
        }
        Err(Stop::Fail(how)) => {
            println!("{how}");
            ExitCode::FAILURE
        }
    }
}

/// A process that sleeps until this is dropped.
pub(crate) struct Sleeper(std::process::Child);

impl Sleeper {
    pub(crate) fn new() -> std::io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([FLAG, "sleep", Engine::Copy.name()]).stdin(Stdio::piped());
        let child = command.spawn()?;
        // It is asleep when it waits for its standard input.
        for _ in 0..500 {
            thread::sleep(Duration::from_millis(2));
            let state = std::fs::read_to_string(format!("/proc/{}/syscall", child.id()));
            if state.is_ok_and(|state| state.starts_with(&format!("{} ", libc::SYS_read))) {
                break;
            }
        }
        Ok(Self(child))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // Its standard input ends, and it with it.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

pub(crate) fn child(what: &str, rig: &Rig) -> Result<Command, Stop> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([FLAG, what, rig.engine.name()]);
    Ok(command)
}

/// What the child's status and words come to.
fn judge(status: ExitStatus, said: &[u8]) -> Verdict {
    let said = String::from_utf8_lossy(said);
    match status.code() {
        Some(0) => Ok(()),
        Some(77) => skip(said.trim()),
        _ => Err(Stop::Fail(format!("the child: {status}: {}", said.trim()))),
    }
}

pub(crate) fn run(what: &str, rig: &Rig) -> Verdict {
    let output = child(what, rig)?.stderr(Stdio::inherit()).output()?;
    judge(output.status, &output.stdout)
}

fn forked_off(rig: &Rig) -> Verdict {
    run("forked", rig)
}

/// What a process that was forked off does with its copy of an idle ring, which is to drop it, is not
/// seen by the other one, wherever that is by then.
fn in_two_processes(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(13, 4 * 4096));
    let mut ring = rig.ring();
    let source = ring.attach(&folder.source(&content)?)?;
    let sink = ring.attach(&folder.sink()?)?;
    let move_block = |ring: &mut Ring, block: u64| -> Verdict {
        let fetched = ring.fetch(&source, block * 4096, 4096)?;
        let lease = ring.wait_installed(fetched)?.expect("a block");
        Ok(ring.write_all(&lease, &sink, block * 4096)?)
    };
    for pair in [0, 2] {
        move_block(&mut ring, pair)?;
        let (from, mut to) = pipe()?;
        // SAFETY: all that the child does is to wait, to drop what it has, for which the allocator is
        // prepared, and to exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let _ = (&from).read(&mut [0]);
            drop(ring);
            // SAFETY: it ends this process, and runs nothing else in it.
            unsafe { libc::_exit(0) }
        }
        move_block(&mut ring, pair + 1)?;
        // The other one drops it now.
        to.write_all(b"!")?;
        let mut status = -1;
        // SAFETY: `status` is an integer.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!((waited, status), (child, 0));
        // Long enough for a thread of the kernel's to see what it should not.
        thread::sleep(Duration::from_millis(20));
        assert_eq!(ring.next_event(), None);
    }
    assert_eq!(folder.sunk()?, content);
    assert_eq!(ring.stats().stale, 0);
    Ok(())
}

fn memory_limit(rig: &Rig) -> Verdict {
    run("memory_limit", rig)
}

/// With little memory that may be locked, and without the privilege to go beyond.
fn under_a_memory_limit(engine: Engine) -> Verdict {
    const LIMIT: u64 = 1 << 20;
    let limit = libc::rlimit { rlim_cur: LIMIT, rlim_max: LIMIT };
    // SAFETY: the limits are read from a structure that lives until the call returns.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } != 0 {
        return skip("RLIMIT_MEMLOCK cannot be set");
    }
    crate::limits::be_an_ordinary_user()?;
    let build = |slots, size| Ring::builder().engine(engine).slots(slots).block_size(size).build();
    let Err(error) = build(32, 64 << 10) else {
        return Err(Stop::Fail("2 MiB were pinned under a limit of 1 MiB".into()));
    };
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::MemoryLimit, "{text}");
    assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{text}");
    assert!(text.contains("RLIMIT_MEMLOCK") && text.contains("1048576"), "{text}");
    let number = text.split("at most ").nth(1).and_then(|rest| rest.split(' ').next());
    let number: u16 = number.and_then(|number| number.parse().ok()).expect("a number");
    // All of the limit is for the pool, but what some kernels count for the ring itself.
    assert!((12..=16).contains(&number), "{text}");
    // The number that it names fits, once the kernel has put the ring that failed away.
    let mut again = Vec::new();
    let ring = loop {
        match build(number, 64 << 10) {
            Ok(ring) => break ring,
            Err(error) if again.len() > 100 => return Err(error.into()),
            Err(error) => again.push(error),
        }
        thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(ring.capacity(), usize::from(number));
    Ok(())
}

/// Where the system lets nobody make a ring, everything says why, and nothing panics.
fn no_rings_allowed(rig: &Rig) -> Verdict {
    run("no_rings", rig)
}

fn without_rings() -> Verdict {
    // Every io_uring_setup(2) is EPERM from here on, as in many containers.
    let filter = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let deny = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut program = [
        // The number of the call.
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, deny),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: takes numbers only.
    let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the kernel copies the program, which lives until the call returns.
    let set =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if (privileges, set) != (0, 0) {
        return skip("this kernel has no seccomp filters");
    }
    let support = Support::detect();
    for engine in Engine::ALL {
        let reason = support.engine(engine).expect_err("there is no ring");
        assert!(reason.contains("forbidden") || reason.contains("switched off"), "{reason}");
    }
    assert_eq!(support.best().expect_err("none").kind(), ErrorKind::Unavailable);
    assert_eq!(Ring::new().expect_err("none").kind(), ErrorKind::Unavailable);
    Ok(())
}

/// Where RLIMIT_NOFILE is reached, a ring is not made, or is the one that it would be otherwise; and
/// a ring that is there goes on.
fn no_descriptor_left(rig: &Rig) -> Verdict {
    run("no_descriptor", rig)
}

/// Takes every descriptor that there may be.
fn take_all(taken: &mut Vec<OwnedFd>) {
    while let Ok(one) = rustix::io::dup(std::io::stdin()) {
        taken.push(one);
    }
}

fn limit_descriptors(most: u64) -> Verdict {
    let limit = Rlimit { current: Some(most), maximum: getrlimit(Resource::Nofile).maximum };
    Ok(setrlimit(Resource::Nofile, limit)?)
}

fn no_descriptor(error: &uring_getbuf::Error) {
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Ring, "{text}");
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{text}");
}

fn without_descriptors(engine: Engine) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(2, 3 * 4096));
    let (file, out) = (folder.source(&content)?, folder.sink()?);
    let best = Support::detect().best()?;
    let build = |engine: Option<Engine>| {
        let builder = Ring::builder().slots(4).block_size(4096).files(8);
        engine.into_iter().fold(builder, uring_getbuf::ring::Builder::engine).build()
    };
    limit_descriptors(64)?;
    let mut taken = Vec::new();
    // Without a wish, it is not another engine that needs less.
    for (wanted, engine, lefts) in [(Some(engine), engine, 0..=3), (None, best, 2..=3)] {
        for left in lefts {
            take_all(&mut taken);
            taken.truncate(taken.len() - left);
            match build(wanted) {
                Ok(ring) => assert_eq!((ring.engine(), left), (engine, 3)),
                Err(error) => {
                    no_descriptor(&error);
                    assert!(left < 3 && error.to_string().contains("ulimit -n"), "{left}: {error}");
                }
            }
        }
    }
    take_all(&mut taken);
    let support = Support::detect();
    for engine in Engine::ALL {
        let reason = support.engine(engine).expect_err("nothing to look with");
        assert!(reason.contains("ulimit -n"), "{reason}");
        no_descriptor(&support.require(engine).expect_err("likewise"));
    }
    taken.clear();
    let mut ring = build(Some(engine))?;
    take_all(&mut taken);
    let (source, sink) = (ring.attach(&file)?, ring.attach(&out)?);
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    ring.write_all(&lease, &sink, 0)?;
    let mut bytes = [0; 64];
    match ring.copy_out(&lease, 0, &mut bytes) {
        Ok(_) => assert_eq!(bytes[..], content[..64]),
        // It takes a pipe.
        Err(error) => {
            no_descriptor(&error);
            assert_eq!(lease.origin(), Engine::Opcode, "{error}");
        }
    }
    let lent = lease.origin();
    drop((lease, source, sink));
    ring.submit()?;
    let report = Relay::new(&file, &out).run(&mut ring)?;
    assert_eq!(report.bytes, content.len() as u64);
    // And as ever, when there are descriptors again.
    taken.clear();
    assert!(folder.sunk()? == content);
    let source = ring.attach(&file)?;
    let fetched = ring.fetch(&source, 4096, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    assert!(lent == lease.origin() || engine == Engine::Module, "{lent}");
    ring.copy_out(&lease, 0, &mut bytes)?;
    assert_eq!(bytes[..], content[4096..4096 + 64]);
    drop((lease, source));
    drop(ring);

    // No more files can be registered than might be open.
    limit_descriptors(32)?;
    let error = Ring::builder().engine(engine).files(64).build().expect_err("64 files");
    no_descriptor(&error);
    assert!(error.to_string().contains("ulimit -n"), "{error}");
    Ok(())
}

/// Where the kernel has no memory for requests, or for completions that their queue has no room for.
fn no_kernel_memory(rig: &Rig) -> Verdict {
    run("no_memory", rig)
}

/// How failslab was set before. It is so again when this is dropped.
struct Failslab(Vec<(PathBuf, String)>);

impl Failslab {
    fn set(settings: [(&str, &str); 6]) -> std::io::Result<Self> {
        let mut before = Self(Vec::new());
        for (name, value) in settings {
            let path = Path::new("/sys/kernel/debug/failslab").join(name);
            before.0.push((path.clone(), std::fs::read_to_string(&path)?));
            std::fs::write(path, value)?;
        }
        Ok(before)
    }
}

impl Drop for Failslab {
    fn drop(&mut self) {
        for (path, value) in self.0.iter().rev() {
            let _ = std::fs::write(path, value.trim());
        }
    }
}

/// Runs something while every allocation fails that the kernel makes for this thread, of those that
/// can.
fn starved<T>(switch: &File, during: impl FnOnce() -> T) -> Result<T, Stop> {
    switch.write_at(b"1", 0)?;
    let done = during();
    switch.write_at(b"0", 0)?;
    Ok(done)
}

fn without_kernel_memory(engine: Engine) -> Verdict {
    let switch = File::options().write(true).open("/proc/thread-self/make-it-fail");
    let Ok(switch) = switch else { return skip("this kernel cannot make allocations fail") };
    let settings = [
        // Only for threads that ask for it: others may run beside this one.
        ("task-filter", "Y"),
        ("ignore-gfp-wait", "N"),
        ("interval", "1"),
        ("times", "-1"),
        ("verbose", "0"),
        ("probability", "100"),
    ];
    let Ok(_before) = Failslab::set(settings) else {
        return skip("making allocations fail takes privileges");
    };
    let folder = Folder::new()?;
    let mut ring = Ring::builder().engine(engine).slots(4).block_size(4096).build()?;
    // The queue of submissions holds 16 then, that of completions 64.
    let push = |ring: &mut Ring, numbers: std::ops::Range<u64>| -> Verdict {
        for number in numbers {
            // SAFETY: the request names nothing.
            unsafe { ring.push(&Nop::new().build().user_data(number)) }?;
        }
        Ok(())
    };
    let take = |ring: &mut Ring| {
        let told = std::iter::from_fn(|| ring.next_event()).map(|event| match event {
            Event::Foreign { user_data, result: 0, .. } => user_data,
            event => panic!("{event:?}"),
        });
        told.collect::<Vec<_>>()
    };
    // No request can be made of what is queued: it stays there.
    push(&mut ring, 0..8)?;
    let error = starved(&switch, || ring.submit())?.expect_err("no memory for requests");
    assert_eq!(error.kind(), ErrorKind::Ring, "{error}");
    assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}");
    assert_eq!(take(&mut ring), []);
    ring.submit()?;
    assert_eq!(take(&mut ring), (0..8).collect::<Vec<_>>(), "nothing is lost");

    // The kernel keeps what it made requests of; what it has no room for, it drops.
    push(&mut ring, 0..64)?;
    ring.submit()?;
    push(&mut ring, 64..68)?;
    starved(&switch, || ring.submit())??;
    assert_eq!(take(&mut ring), (0..64).collect::<Vec<_>>());
    let error = ring.wait(1).expect_err("completions are lost");
    assert_eq!(error.kind(), ErrorKind::Ring, "{error}");
    assert_eq!(error.raw_os_error(), Some(libc::EBADR), "{error}");
    assert!(error.to_string().contains("lost"), "{error}");
    // It is told once, and the ring goes on.
    push(&mut ring, 68..70)?;
    ring.wait(2)?;
    assert_eq!(take(&mut ring), [68, 69]);
    let source = ring.attach(&folder.source(&pattern(3, 4096))?)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    assert_eq!(ring.wait_installed(fetched)?.expect("a block").len(), 4096);
    Ok(())
}

fn be_traced() -> std::io::Result<()> {
    // SAFETY: takes numbers only.
    match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn mark() {
    // SAFETY: takes a number only, and finds no such process.
    unsafe { libc::getpgid(MARK) };
}

/// In the steady state there is no system call but `io_uring_enter`, and fewer of them than leases:
/// in chains, step by step in batches, and in relays of both kinds.
fn steady_state_system_calls(rig: &Rig) -> Verdict {
    let sections = traced("steady", rig)?;
    assert_eq!(sections.len(), 4, "four sections");
    for (what, section) in
        ["chains", "step by step", "relay to a file", "relay to a socket"].iter().zip(sections)
    {
        println!("{what}: {} io_uring_enter for {LEASES} leases", section.enters);
        assert_eq!(section.others, [], "{what}: other system calls, by number");
        assert!(section.enters > 0, "{what}: none was seen at all");
        assert!(section.enters < LEASES, "{what}: {} enters", section.enters);
    }
    Ok(())
}

/// One fetch, four consumers and a release: two system calls.
fn four_consumers_in_two_calls(rig: &Rig) -> Verdict {
    let sections = traced("four", rig)?;
    assert_eq!(sections.len(), 1, "one section");
    assert_eq!(sections[0].others, [], "other system calls, by number");
    assert_eq!(sections[0].enters, 2);
    Ok(())
}

/// Runs a child to its end; the system calls that it made between its marks.
fn traced(what: &str, rig: &Rig) -> Result<Vec<Section>, Stop> {
    let mut command = child(what, rig)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // SAFETY: between fork and exec the child only asks to be traced, which allocates nothing.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, be_traced) };
    let Ok(child) = command.spawn() else { return skip("a child cannot be traced here") };
    let counted = trace(child.id() as libc::pid_t);
    let output = child.wait_with_output();
    let (status, sections) = counted?;
    if let Ok(output) = output {
        judge(status, &output.stdout)?;
    } else {
        judge(status, b"")?;
    }
    Ok(sections)
}

#[derive(Debug, Default)]
struct Section {
    enters: u64,
    others: Vec<u64>,
}

/// Lets a traced child run to its end, and counts its system calls between marks.
fn trace(pid: libc::pid_t) -> Result<(ExitStatus, Vec<Section>), Stop> {
    let (mut sections, mut inside, mut first) = (Vec::new(), false, true);
    loop {
        let mut status = 0;
        // SAFETY: the status is written to a variable that lives until the call returns.
        if unsafe { libc::waitpid(pid, &raw mut status, 0) } != pid {
            return Err(std::io::Error::last_os_error().into());
        }
        if !libc::WIFSTOPPED(status) {
            return Ok((ExitStatus::from_raw(status), sections));
        }
        let mut signal = libc::WSTOPSIG(status);
        if mem::take(&mut first) {
            // The stop after exec. From here on, stops at system calls are told from signals.
            let options = libc::PTRACE_O_TRACESYSGOOD;
            // SAFETY: the child is stopped; takes numbers only.
            unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options) };
            signal = 0;
        } else if signal == libc::SIGTRAP | 0x80 {
            signal = 0;
            // SAFETY: all zeroes is plain data.
            let mut call: libc::ptrace_syscall_info = unsafe { mem::zeroed() };
            let size = size_of_val(&call);
            // SAFETY: the child is stopped, and the kernel writes at most `size` bytes.
            let got =
                unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size, &raw mut call) };
            if got <= 0 {
                // SAFETY: takes numbers only; it is our own child.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                return skip("this kernel does not tell a tracer about system calls");
            }
            if call.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                // SAFETY: at an entry the kernel has filled this member.
                let entry = unsafe { call.u.entry };
                let (number, argument) = (entry.nr, entry.args[0]);
                if number == libc::SYS_getpgid as u64 && argument == MARK as u64 {
                    inside = !inside;
                    if inside {
                        sections.push(Section::default());
                    }
                } else if let (true, Some(section)) = (inside, sections.last_mut()) {
                    match number == libc::SYS_io_uring_enter as u64 {
                        true => section.enters += 1,
                        false => section.others.push(number),
                    }
                }
            }
        }
        // SAFETY: the child is stopped; takes numbers only.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, 0, signal) };
    }
}

/// Marks where a relay is in its steady state: not its first blocks, not its last.
fn relay_marked(ring: &mut Ring, relay: Relay<'_>, bytes: u64) -> Verdict {
    let (begin, end) = (bytes / 10, bytes / 10 + LEASES * 4096);
    let mut marks = 0;
    let relay = relay.on_progress(|progress| {
        if (marks == 0 && progress.bytes >= begin) || (marks == 1 && progress.bytes >= end) {
            marks += 1;
            mark();
        }
    });
    relay.run(ring)?;
    if marks == 2 { Ok(()) } else { Err(Stop::Fail("the relay was over too soon".into())) }
}

fn steady(engine: Engine) -> Verdict {
    let blocks = LEASES * 2;
    let (folder, content) = (Folder::new()?, pattern(1, blocks as usize * 4096));
    let mut ring = Ring::builder()
        .engine(engine)
        .setup(Setup::Cooperative)
        .slots(16)
        .block_size(4096)
        .build()?;
    let file = folder.source(&content)?;
    let sink_file = folder.sink()?;
    let null = File::create("/dev/null")?;
    let (near, far) = tcp()?;
    let drain = getbuf_tests::reader(far);
    let source = ring.attach(&file)?;
    let sink = ring.attach(&sink_file)?;
    let socket = ring.attach(&near)?;
    let nowhere = ring.attach(&null)?;

    // Once through everything, so that what is allocated once is there.
    let chains = |ring: &mut Ring, count: u64| -> Verdict {
        let mut done = 0;
        while done < count {
            for index in 0..16 {
                let offset = (done + index) % blocks * 4096;
                ring.chain_write(&source, offset, 4096, &sink, offset)?;
            }
            while ring.free() < 16 {
                // One of these calls serves many.
                ring.wait((16 - ring.free()).div_ceil(2))?;
                while let Some(event) = ring.next_event() {
                    if let Event::Chained { outcome, .. } = event {
                        assert_eq!(outcome, ChainOutcome::Done(4096));
                        done += 1;
                    }
                }
            }
        }
        Ok(())
    };
    chains(&mut ring, 32)?;
    mark();
    chains(&mut ring, LEASES)?;
    mark();

    let mut leases = Vec::with_capacity(16);
    let mut uses = Vec::with_capacity(16);
    let mut steps = |ring: &mut Ring, count: u64| -> Verdict {
        for round in 0..count / 8 {
            let mut fetched = [const { None }; 8];
            for (index, place) in fetched.iter_mut().enumerate() {
                let offset = (round * 8 + index as u64) % blocks * 4096;
                *place = Some(ring.fetch(&source, offset, 4096)?);
            }
            for lease in fetched.into_iter().flatten() {
                leases.extend(ring.wait_installed(lease)?);
            }
            for (index, lease) in leases.iter().enumerate() {
                uses.push(match index % 2 {
                    0 => ring.write(lease, .., &nowhere, uring_getbuf::STREAM)?,
                    _ => ring.send(lease, ..64, &socket, SendFlags::NONE)?,
                });
            }
            for id in uses.drain(..) {
                ring.wait_used(id)?;
            }
            leases.clear();
        }
        Ok(())
    };
    steps(&mut ring, 32)?;
    mark();
    steps(&mut ring, LEASES)?;
    mark();

    drop((source, sink, socket, nowhere));
    ring.submit()?;
    relay_marked(&mut ring, Relay::new(&file, &sink_file), content.len() as u64)?;
    relay_marked(&mut ring, Relay::new(&file, &near), content.len() as u64)?;
    drop((ring, near));
    let _ = drain.join();
    Ok(())
}
