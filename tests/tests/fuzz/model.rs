// SPDX-License-Identifier: MIT OR Apache-2.0
//! The model: what is held and what is in flight, and what may come of it.

use std::collections::HashMap;
use std::fmt;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use fastrand::Rng;
use getbuf_tests::Rig;
use io_uring::opcode::Nop;
use uring_getbuf::chain::ChainOutcome;
use uring_getbuf::lease::{Fetched, Installed, Lease, NotInstalled};
use uring_getbuf::relay::Relay;
use uring_getbuf::ring::Ring;
use uring_getbuf::slots::{Event, LeaseId, UseId};
use uring_getbuf::{Engine, Errno, ErrorKind, SendFlags};

use crate::world::{SOURCES, World};

const SLOTS: usize = 8;
const BLOCK: u32 = 16 << 10;
/// A program that waits longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was done. Operations are those that had something to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    operations: u64,
    fetches: u64,
    uses: u64,
    chains: u64,
    relays: u64,
    cancelled: u64,
    bytes: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.operations += more.operations;
        self.fetches += more.fetches;
        self.uses += more.uses;
        self.chains += more.chains;
        self.relays += more.relays;
        self.cancelled += more.cancelled;
        self.bytes += more.bytes;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operations: {} fetches, {} uses, {} chains, {} relays; {} cancelled, {} bytes \
             compared",
            self.operations,
            self.fetches,
            self.uses,
            self.chains,
            self.relays,
            self.cancelled,
            self.bytes
        )
    }
}

/// A part of a source.
#[derive(Clone, Copy, Debug)]
struct Part {
    source: usize,
    offset: u64,
    len: u32,
}

/// A request in flight; `since` is when it was queued.
#[derive(Debug)]
struct Fetch {
    asked: Part,
    since: u64,
}

#[derive(Debug)]
struct Use {
    parts: Vec<Part>,
    sink: usize,
    place: u64,
    since: u64,
}

struct Held<L> {
    lease: L,
    part: Part,
}

pub(crate) struct Program {
    rig: Rig,
    rng: Rng,
    tally: Tally,
    /// Dropped before the files and the leases are.
    ring: Option<Ring>,
    world: World,
    fetched: Vec<Held<Lease<Fetched>>>,
    installed: Vec<Held<Lease<Installed>>>,
    fetches: HashMap<LeaseId, Fetch>,
    uses: HashMap<UseId, Use>,
    chains: HashMap<LeaseId, Use>,
    /// What fetches came to whose lease has not been looked at.
    results: HashMap<LeaseId, Result<u32, Errno>>,
    nops: Vec<u64>,
    forgotten: usize,
    /// Counts the operations.
    now: u64,
    /// When requests on a source, and on a sink, were last cancelled.
    cancelled: [HashMap<usize, u64>; 2],
}

type Check<T = ()> = Result<T, String>;

fn wrong(error: impl fmt::Display) -> String {
    error.to_string()
}

impl Program {
    pub(crate) fn run(rig: Rig, seed: u64, operations: u64) -> Check<Tally> {
        let rng = Rng::with_seed(seed);
        let mut builder = Ring::builder().engine(rig.engine).setup(rig.setup);
        builder = builder.slots(SLOTS as u16).block_size(BLOCK).files(16);
        let ring = builder.build().map_err(wrong)?;
        let mut program = Self {
            rig,
            rng,
            tally: Tally::default(),
            ring: Some(ring),
            world: World::new().map_err(wrong)?,
            fetched: Vec::new(),
            installed: Vec::new(),
            fetches: HashMap::new(),
            uses: HashMap::new(),
            chains: HashMap::new(),
            results: HashMap::new(),
            nops: Vec::new(),
            forgotten: 0,
            now: 0,
            cancelled: Default::default(),
        };
        for _ in 0..operations {
            program.now += 1;
            program.step()?;
        }
        program.end()?;
        Ok(program.tally)
    }

    fn did(&mut self) {
        self.tally.operations += 1;
    }

    fn ring(&mut self) -> &mut Ring {
        self.ring.as_mut().expect("it is dropped at the end only")
    }

    fn step(&mut self) -> Check {
        match self.rng.u32(0..100) {
            0..22 => self.fetch(),
            22..30 => self.look(),
            30..52 => self.write(),
            52..56 => self.writev(),
            56..64 => self.release(),
            64..68 => self.drop_fetched(),
            68..78 => self.chain(),
            78..80 => self.cancel(),
            80..83 => self.detach(),
            83..88 => self.ring().submit().map_err(wrong),
            88..93 => self.wait(),
            93..95 => self.nop(),
            95..96 => self.forget(),
            96..98 => self.relay(),
            _ => self.drain(),
        }
    }

    /// What a fetch of this part finds.
    fn there(&self, part: Part) -> u32 {
        let left = self.world.sources[part.source].len.saturating_sub(part.offset);
        left.min(u64::from(part.len)) as u32
    }

    fn part(&mut self) -> Part {
        let source = self.rng.usize(0..SOURCES);
        let len = self.world.sources[source].len;
        let offset = if self.rng.u32(0..8) == 0 { len } else { self.rng.u64(0..len.max(1)) };
        // Pages, and what is not a page.
        let offset = if self.rng.bool() { offset & !4095 } else { offset };
        let len = if self.rng.bool() { self.rng.u32(1..=BLOCK) } else { BLOCK };
        Part { source, offset, len }
    }

    /// A refusal because all slots are taken, and they are.
    fn is_full<T>(&mut self, result: uring_getbuf::Result<T>) -> Check<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == ErrorKind::NoSlot && self.ring().free() == 0 => Ok(None),
            Err(error) => Err(wrong(error)),
        }
    }

    fn source(&mut self, number: usize) -> Check<bool> {
        let ring = self.ring.as_mut().expect("it is dropped at the end only");
        attached(self.world.attach_source(ring, number))
    }

    fn sink(&mut self, number: usize) -> Check<bool> {
        let ring = self.ring.as_mut().expect("it is dropped at the end only");
        attached(self.world.attach_sink(ring, number))
    }

    fn fetch(&mut self) -> Check {
        let part = self.part();
        if !self.source(part.source)? {
            return Ok(());
        }
        let copied = self.rng.u32(0..10) == 0;
        let ring = self.ring.as_mut().expect("it is dropped at the end only");
        let source = self.world.sources[part.source].attached.as_ref().expect("just now");
        let lease = if copied {
            ring.fetch_copied(source, part.offset, part.len)
        } else {
            ring.fetch(source, part.offset, part.len)
        };
        if let Some(lease) = self.is_full(lease)? {
            self.did();
            self.tally.fetches += 1;
            self.fetches.insert(lease.id(), Fetch { asked: part, since: self.now });
            self.fetched.push(Held { lease, part });
        }
        Ok(())
    }

    /// Asks a fetched lease for its next state.
    fn look(&mut self) -> Check {
        if self.fetched.is_empty() {
            return Ok(());
        }
        let place = self.rng.usize(0..self.fetched.len());
        self.did();
        let Held { lease, part } = self.fetched.swap_remove(place);
        let id = lease.id();
        match lease.installed() {
            Ok(lease) => {
                // The completion is looked at where events are: it may not have been told yet.
                let told = self.results.remove(&id);
                if told.is_some_and(|told| told != Ok(lease.len())) {
                    return Err(format!("a lease of {} bytes, told {told:?}", lease.len()));
                }
                if lease.len() > self.there(part) {
                    return Err(format!("a lease of {} bytes of {part:?}", lease.len()));
                }
                if lease.origin() != self.rig.engine && lease.origin() != Engine::Copy {
                    return Err(format!("a lease by {}", lease.origin()));
                }
                let part = Part { len: lease.len(), ..part };
                self.installed.push(Held { lease, part });
                Ok(())
            }
            Err(NotInstalled::Pending(lease)) => {
                self.fetched.push(Held { lease, part });
                if self.fetches.contains_key(&id) { Ok(()) } else { Err("a fetch is lost".into()) }
            }
            Err(NotInstalled::EndOfFile) => {
                self.results.remove(&id);
                if self.there(part) == 0 { Ok(()) } else { Err(format!("no bytes of {part:?}")) }
            }
            Err(NotInstalled::Failed(errno)) => {
                let told = self.results.remove(&id);
                if told.is_none_or(|told| told == Err(errno)) {
                    return Ok(());
                }
                Err(format!("a fetch failed with {errno:?}, told {told:?}"))
            }
        }
    }

    /// A sink that can take something now, and one of the installed leases.
    fn pair(&mut self) -> Check<Option<(usize, usize)>> {
        if self.installed.is_empty() {
            return Ok(None);
        }
        let (sink, place) =
            (self.rng.usize(0..self.world.sinks.len()), self.rng.usize(0..self.installed.len()));
        let chosen = &self.world.sinks[sink];
        if chosen.is_stream() && chosen.busy > 0 || !self.sink(sink)? {
            return Ok(None);
        }
        Ok(Some((sink, place)))
    }

    fn write(&mut self) -> Check {
        let Some((number, lease)) = self.pair()? else { return Ok(()) };
        let Held { lease, part } = &self.installed[lease];
        let start = self.rng.u32(0..part.len);
        let end = self.rng.u32(start + 1..=part.len);
        let ring = self.ring.as_mut().expect("it is dropped at the end only");
        let sink = &mut self.world.sinks[number];
        let place = sink.place(end - start).map_err(wrong)?;
        let to = sink.attached.as_ref().expect("just now");
        let request = if sink.is_socket() && self.rng.bool() {
            ring.send(lease, start..end, to, SendFlags::NONE)
        } else {
            ring.write(lease, start..end, to, place)
        };
        let request = request.map_err(wrong)?;
        sink.busy += 1;
        let part =
            Part { offset: part.offset + u64::from(start), len: end - start, source: part.source };
        self.did();
        self.tally.uses += 1;
        let parts = vec![part];
        self.uses.insert(request, Use { parts, sink: number, place, since: self.now });
        Ok(())
    }

    fn writev(&mut self) -> Check {
        let Some((number, lease)) = self.pair()? else { return Ok(()) };
        let Held { lease, part } = &self.installed[lease];
        let mut ranges = Vec::new();
        let mut parts = Vec::new();
        for _ in 0..self.rng.usize(1..=8) {
            let start = self.rng.u32(0..part.len);
            let end = self.rng.u32(start + 1..=part.len.min(start + 2000));
            ranges.push(start..end);
            let offset = part.offset + u64::from(start);
            parts.push(Part { offset, len: end - start, source: part.source });
        }
        let len = parts.iter().map(|part| part.len).sum();
        let ring = self.ring.as_mut().expect("it is dropped at the end only");
        let sink = &mut self.world.sinks[number];
        let place = sink.place(len).map_err(wrong)?;
        let to = sink.attached.as_ref().expect("just now");
        match ring.writev(lease, &ranges, to, place) {
            Ok(request) => {
                sink.busy += 1;
                self.did();
                self.tally.uses += 1;
                self.uses.insert(request, Use { parts, sink: number, place, since: self.now });
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Busy && lease.uses() > 0 => Ok(()),
            Err(error) => Err(wrong(error)),
        }
    }

    fn release(&mut self) -> Check {
        if !self.installed.is_empty() {
            let place = self.rng.usize(0..self.installed.len());
            let Held { lease, .. } = self.installed.swap_remove(place);
            self.did();
            if self.rng.bool() {
                drop(lease);
            } else {
                self.ring().release(lease);
            }
        }
        Ok(())
    }

    fn drop_fetched(&mut self) -> Check {
        if !self.fetched.is_empty() {
            let place = self.rng.usize(0..self.fetched.len());
            let Held { lease, .. } = self.fetched.swap_remove(place);
            self.results.remove(&lease.id());
            self.did();
        }
        Ok(())
    }

    fn forget(&mut self) -> Check {
        if self.forgotten < SLOTS / 4 && !self.installed.is_empty() {
            let place = self.rng.usize(0..self.installed.len());
            getbuf_tests::forget(self.installed.swap_remove(place).lease);
            self.forgotten += 1;
            self.did();
        }
        Ok(())
    }

    fn chain(&mut self) -> Check {
        let part = self.part();
        let number = self.rng.usize(0..self.world.sinks.len());
        let sink = &self.world.sinks[number];
        if sink.is_stream() && sink.busy > 0 || !self.source(part.source)? || !self.sink(number)? {
            return Ok(());
        }
        let ring = self.ring.as_mut().expect("it is dropped at the end only");
        let source = self.world.sources[part.source].attached.as_ref().expect("just now");
        let sink = &mut self.world.sinks[number];
        let place = sink.place(part.len).map_err(wrong)?;
        let to = sink.attached.as_ref().expect("just now");
        let chain = if sink.is_socket() && self.rng.bool() {
            ring.chain_send(source, part.offset, part.len, to, SendFlags::NONE)
        } else {
            ring.chain_write(source, part.offset, part.len, to, place)
        };
        if let Some(chain) = self.is_full(chain)? {
            self.world.sinks[number].busy += 1;
            self.did();
            self.tally.chains += 1;
            let parts = vec![part];
            self.chains.insert(chain, Use { parts, sink: number, place, since: self.now });
        }
        Ok(())
    }

    fn cancel(&mut self) -> Check {
        let sinks = self.rng.bool();
        let count = if sinks { self.world.sinks.len() } else { SOURCES };
        let number = self.rng.usize(0..count);
        let ring = self.ring.as_mut().expect("it is dropped at the end only");
        let file = if sinks {
            &self.world.sinks[number].attached
        } else {
            &self.world.sources[number].attached
        };
        if let Some(file) = file {
            ring.cancel(file).map_err(wrong)?;
            self.cancelled[usize::from(sinks)].insert(number, self.now);
            self.did();
        }
        Ok(())
    }

    /// Requests in flight keep their file.
    fn detach(&mut self) -> Check {
        if self.rng.bool() {
            let number = self.rng.usize(0..SOURCES);
            self.world.sources[number].attached = None;
        } else {
            let number = self.rng.usize(0..self.world.sinks.len());
            self.world.sinks[number].attached = None;
        }
        Ok(())
    }

    fn nop(&mut self) -> Check {
        let name = self.now;
        // SAFETY: a request that names nothing.
        unsafe { self.ring().push(&Nop::new().build().user_data(name)) }.map_err(wrong)?;
        self.nops.push(name);
        self.did();
        Ok(())
    }

    fn wait(&mut self) -> Check {
        let in_flight = self.fetches.len() + self.uses.len() + self.chains.len();
        let count = self.rng.usize(0..=in_flight.min(3));
        self.ring().wait_timeout(count, Duration::from_millis(2)).map_err(wrong)?;
        self.did();
        self.take()
    }

    /// A file from end to end, among everything else that goes on.
    fn relay(&mut self) -> Check {
        let ring = self.ring.as_mut().expect("it is dropped at the end only");
        if ring.free() == 0 {
            return Ok(());
        }
        let number = self.rng.usize(0..SOURCES);
        let (from, to) = self.world.relay_ends(number).map_err(wrong)?;
        let limit = self.rng.u64(0..100_000);
        let report = match Relay::new(from, &to).limit(limit).run(ring) {
            Ok(report) => report,
            // Slots that are held, and places of files that requests still name.
            Err(failure) if failure.error.kind() == ErrorKind::NoFile => return Ok(()),
            Err(failure) => return Err(wrong(failure)),
        };
        let len = self.world.sources[number].len.min(limit);
        if report.bytes != len {
            return Err(format!("a relay of {} bytes, not {len}", report.bytes));
        }
        self.did();
        self.tally.relays += 1;
        self.world.check_file(&to, number, len as u32)?;
        self.tally.bytes += len;
        self.take()
    }

    /// Everything in flight comes to its end, and every slot is accounted for.
    fn drain(&mut self) -> Check {
        let begin = Instant::now();
        let held =
            |program: &Self| program.fetched.len() + program.installed.len() + program.forgotten;
        loop {
            self.take()?;
            let idle = self.fetches.is_empty() && self.uses.is_empty() && self.chains.is_empty();
            let held = held(self);
            let free = self.ring().free();
            if free + held > SLOTS {
                return Err(format!("{free} slots are free, and {held} leases are held"));
            }
            // A lease of nothing, and one that failed, holds its slot until it is looked at.
            if idle && self.nops.is_empty() && free + held == SLOTS {
                self.did();
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!(
                    "it hangs: {:?} {:?} {:?} {:?}, {free} free, {held} held",
                    self.fetches, self.uses, self.chains, self.nops
                ));
            }
            self.ring().wait_timeout(1, Duration::from_millis(2)).map_err(wrong)?;
        }
    }

    fn take(&mut self) -> Check {
        while let Some(event) = self.ring().next_event() {
            self.event(event)?;
        }
        Ok(())
    }

    fn event(&mut self, event: Event) -> Check {
        match event {
            Event::Fetched { lease, result } => {
                let fetch = self.fetches.remove(&lease).ok_or("a fetch that was not")?;
                self.check_fetch(&fetch, result)?;
                if self.fetched.iter().any(|held| held.lease.id() == lease) {
                    self.results.insert(lease, result);
                }
                Ok(())
            }
            Event::Used { id, result, more } => {
                let used = self.uses.remove(&id).ok_or("a use that was not")?;
                self.world.sinks[used.sink].busy -= 1;
                if more {
                    return Err("a notification of no zero-copy send".into());
                }
                self.check_use(&used, result)
            }
            Event::Chained { id, outcome } => {
                let chain = self.chains.remove(&id).ok_or("a chain that was not")?;
                self.world.sinks[chain.sink].busy -= 1;
                self.check_chain(&chain, outcome)
            }
            Event::Foreign { user_data, result, .. } => {
                let place = self.nops.iter().position(|name| *name == user_data);
                self.nops.swap_remove(place.ok_or("a request that was not")?);
                if result == 0 { Ok(()) } else { Err(format!("a no-op: {result}")) }
            }
            Event::Released { .. } | Event::Pending => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }

    fn may_be_cancelled(&mut self, source: usize, sink: Option<usize>, since: u64) -> bool {
        let after =
            |times: &HashMap<usize, u64>, file| times.get(&file).is_some_and(|time| *time >= since);
        let cancelled = after(&self.cancelled[0], source)
            || sink.is_some_and(|sink| after(&self.cancelled[1], sink));
        self.tally.cancelled += u64::from(cancelled);
        cancelled
    }

    fn check_fetch(&mut self, fetch: &Fetch, result: Result<u32, Errno>) -> Check {
        let there = self.there(fetch.asked);
        match result {
            Ok(len) if len == there => Ok(()),
            // What is lent may be less than what is there.
            Ok(len) if self.rig.engine != Engine::Copy && (1..there).contains(&len) => Ok(()),
            Err(errno) if is_cancelled(errno) => {
                if self.may_be_cancelled(fetch.asked.source, None, fetch.since) {
                    return Ok(());
                }
                Err(format!("{fetch:?} was cancelled by nobody"))
            }
            result => Err(format!("{fetch:?}: {result:?}, and {there} bytes are there")),
        }
    }

    fn check_use(&mut self, used: &Use, result: Result<u32, Errno>) -> Check {
        let sink = &mut self.world.sinks[used.sink];
        let asked = used.parts.iter().map(|part| part.len).sum();
        match (result, sink.fails()) {
            (Ok(bytes), false)
                if bytes == asked || sink.is_stream() && (1..asked).contains(&bytes) =>
            {
                self.arrived(used, bytes)
            }
            (Err(errno), true) if sink.fails_with(errno.raw()) => Ok(()),
            (Err(errno), _) if is_cancelled(errno) => {
                sink.drain().map_err(wrong)?;
                if self.may_be_cancelled(used.parts[0].source, Some(used.sink), used.since) {
                    return Ok(());
                }
                Err(format!("{used:?} was cancelled by nobody"))
            }
            (result, _) => Err(format!("{used:?}: {result:?}")),
        }
    }

    /// So many bytes of the parts are where they belong.
    fn arrived(&mut self, used: &Use, bytes: u32) -> Check {
        let (mut left, mut place) = (bytes, used.place);
        for part in &used.parts {
            let len = part.len.min(left);
            if len == 0 {
                break;
            }
            let sink = &mut self.world.sinks[used.sink];
            sink.check(place, part.source, part.offset, len)?;
            self.tally.bytes += u64::from(len);
            left -= len;
            place = place.saturating_add(u64::from(len));
        }
        Ok(())
    }

    fn check_chain(&mut self, chain: &Use, outcome: ChainOutcome) -> Check {
        let part = chain.parts[0];
        let there = self.there(part);
        let sink = &mut self.world.sinks[chain.sink];
        match (outcome, sink.fails()) {
            (ChainOutcome::Done(bytes), false) if bytes == part.len && bytes == there => {
                self.arrived(chain, bytes)
            }
            (ChainOutcome::ShortUse(bytes), false) if sink.is_stream() && bytes < there => {
                self.arrived(chain, bytes)
            }
            (ChainOutcome::ShortFetch(bytes), _) if bytes == there && bytes < part.len => Ok(()),
            (ChainOutcome::ShortFetch(bytes), _)
                if self.rig.engine != Engine::Copy && (1..there).contains(&bytes) =>
            {
                Ok(())
            }
            (ChainOutcome::UseFailed(errno), true)
                if sink.fails_with(errno.raw()) && there == part.len =>
            {
                Ok(())
            }
            (ChainOutcome::FetchFailed(errno) | ChainOutcome::UseFailed(errno), _)
                if is_cancelled(errno) =>
            {
                sink.drain().map_err(wrong)?;
                if self.may_be_cancelled(part.source, Some(chain.sink), chain.since) {
                    return Ok(());
                }
                Err(format!("{chain:?} was cancelled by nobody"))
            }
            (outcome, _) => Err(format!("{chain:?}: {outcome:?}, and {there} bytes are there")),
        }
    }

    /// Half of the programs come to a quiet end; the others drop their ring as it is.
    fn end(&mut self) -> Check {
        if self.rng.bool() {
            self.drain()?;
        }
        let stats = self.ring().stats();
        if stats.stale > 0 {
            return Err(format!("{} completions answered nothing", stats.stale));
        }
        drop(self.ring.take());
        self.fetched.clear();
        self.installed.clear();
        self.world.check_sources()
    }
}

/// A file that has a place now. There is none while requests still name files that were detached.
fn attached(result: uring_getbuf::Result<()>) -> Check<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NoFile => Ok(false),
        Err(error) => Err(wrong(error)),
    }
}

/// As a request says that was cancelled, before it ran or while it waited.
fn is_cancelled(errno: Errno) -> bool {
    matches!(errno.raw(), libc::ECANCELED | libc::EINTR)
}
