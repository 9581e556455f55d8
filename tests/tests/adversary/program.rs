// SPDX-License-Identifier: MIT OR Apache-2.0
//! One program: two rings whose leases, files and requests are mixed up, slots without a ring, and
//! files and memory that have to come through it.

use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use uring_getbuf::lease::{Fetched, Installed, Lease, NotInstalled, Released};
use uring_getbuf::provider::Provider;
use uring_getbuf::relay::Proxy;
use uring_getbuf::ring::{Attached, MAX_TOKEN, Ring, Setup};
use uring_getbuf::slots::{Event, LeaseId, UseId};
use uring_getbuf::{Engine, Errno, STREAM, SendFlags, Support};

use crate::provider::{COUNT, Fragile, Memory, wanted};
use crate::sans_io::{Sans, range};
use crate::world::{
    BLOCK, Canaries, Kind, Known, Sink, Stream, Tally, World, guarded, refusing, surviving,
    violated,
};

/// What a ring was told to attach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum What {
    Source(usize),
    Stream(usize),
    Sink(usize),
}

/// One ring, and what belongs to it.
pub(crate) struct Party {
    pub(crate) ring: Option<Ring>,
    pub(crate) files: Vec<(Attached, What)>,
    /// Counts the rings that there were: a lease of an earlier one is no lease of this one.
    life: u32,
    /// A panic has gone through it: what is waited for may never come.
    shaken: bool,
}

/// Which ring: the party, and which of its lives.
type Owner = (usize, u32);

struct Held {
    lease: Lease<Installed>,
    known: Known,
    of: Owner,
}

/// A request that has not been told to be done.
struct InFlight<I> {
    id: I,
    of: Owner,
    /// It ends whatever happens.
    surely: bool,
}

pub(crate) struct Program<'w> {
    pub(crate) rng: Rng,
    world: &'w World,
    engine: Engine,
    setup: Setup,
    pub(crate) parties: [Party; 2],
    pub(crate) sinks: Vec<Sink>,
    streams: Vec<Stream>,
    fetched: Vec<(Lease<Fetched>, Known, Owner)>,
    held: Vec<Held>,
    released: Vec<Lease<Released>>,
    uses: Vec<InFlight<UseId>>,
    chains: Vec<InFlight<LeaseId>>,
    memory: Rc<Memory>,
    fragile: Fragile,
    proxy: Option<(Proxy, Vec<Stream>)>,
    sans: Option<Sans>,
    canaries: Canaries,
    /// Some requests count as sent and never are. They keep their slots, and a ring that is dropped
    /// waits for them for a second.
    leaves_unsent: bool,
}

impl<'w> Program<'w> {
    pub(crate) fn run(
        world: &'w World,
        engine: Engine,
        setup: Setup,
        support: &Support,
        seed: u64,
    ) {
        let mut rng = Rng::with_seed(seed);
        let mut sinks = vec![Sink::file(), Sink::file()];
        let io = |result: std::io::Result<Sink>| result.expect("a sink");
        sinks.push(io(Sink::pipe()));
        sinks.push(io(if rng.u32(0..3) == 0 { Sink::tcp() } else { Sink::unix() }));
        sinks.push(io(Sink::device(if rng.bool() { "/dev/null" } else { "/dev/full" })));
        let streams = vec![Stream::pipe().expect("a pipe"), Stream::socket().expect("a socket")];
        let fragile = Fragile::default();
        let memory = Memory::new(&mut rng, fragile.clone()).expect("memory for regions");
        let sans = Sans::new(&mut rng, support, fragile.clone());
        let party = || Party { ring: None, files: Vec::new(), life: 0, shaken: false };
        let mut program = Self {
            rng,
            world,
            engine,
            setup,
            parties: [party(), party()],
            sinks,
            streams,
            fetched: Vec::new(),
            held: Vec::new(),
            released: Vec::new(),
            uses: Vec::new(),
            chains: Vec::new(),
            memory,
            fragile,
            proxy: None,
            sans,
            canaries: Canaries::default(),
            leaves_unsent: false,
        };
        program.leaves_unsent = program.rng.u32(0..40) == 0;
        program.canaries.add(4096);
        program.build(0);
        if program.rng.bool() {
            program.build(1);
        }
        for _ in 0..program.rng.usize(0..12) {
            program.attach();
        }
        for _ in 0..program.rng.usize(50..400) {
            if surviving(|| program.step()).is_none() {
                // An event may have gone with the panic.
                program.parties.iter_mut().for_each(|party| party.shaken = true);
            }
        }
        program.end();
    }

    fn build(&mut self, number: usize) {
        let rng = &mut self.rng;
        let other = [Setup::Cooperative, Setup::DeferTaskrun][rng.usize(0..2)];
        let mut builder = Ring::builder();
        builder = builder.setup(if number == 0 { self.setup } else { other });
        builder = builder.engine(if number == 0 { self.engine } else { Engine::Copy });
        let block = if rng.bool() { BLOCK } else { rng.u32(1..=BLOCK) };
        builder = builder.slots(rng.u16(1..12)).block_size(block).files(rng.u16(2..16));
        builder = builder.regions(rng.u16(0..5));
        if rng.bool() {
            builder = builder.entries(rng.u32(1..40));
        }
        let party = &mut self.parties[number];
        party.life += 1;
        party.shaken = false;
        party.ring = match builder.build() {
            Ok(ring) => Some(ring),
            Err(error) => violated(format_args!("no ring: {error}")),
        };
    }

    /// A ring that is there, and its number. Mostly the first one.
    fn pick(&mut self) -> Option<usize> {
        let number = usize::from(self.rng.u32(0..5) == 0);
        self.parties[number].ring.is_some().then_some(number)
    }

    fn step(&mut self) {
        match self.rng.u32(0..100) {
            0..6 => self.attach(),
            6..8 => self.detach(),
            8..22 => self.fetch(),
            22..36 => self.installed(),
            36..48 => self.consume(),
            48..53 => self.chain(),
            53..54 => self.poll(),
            54..56 => self.cancel(),
            56..65 => self.enter(),
            65..70 => self.look(),
            70..80 => self.let_go(),
            80..82 => self.prepared(),
            82..87 => self.provide(),
            87..89 => self.sans(),
            89..90 => self.transfer(),
            90..92 => self.proxy(),
            92..94 => self.wait(),
            94..97 => self.streams(),
            97..98 => self.replace_ring(),
            _ => self.small_things(),
        }
    }

    /// Mostly one that has something.
    fn which_source(&mut self) -> usize {
        let chosen = self.rng.usize(0..10);
        if chosen < self.world.sources.len() { chosen } else { chosen % 3 }
    }

    fn attach(&mut self) {
        let Some(number) = self.pick() else { return };
        let what = match self.rng.u32(0..10) {
            0..5 => What::Source(self.which_source()),
            5 => What::Stream(self.rng.usize(0..self.streams.len())),
            _ => What::Sink(self.rng.usize(0..self.sinks.len())),
        };
        let party = &mut self.parties[number];
        let Some(ring) = &mut party.ring else { return };
        let attached = match what {
            What::Source(source) => ring.attach(&self.world.sources[source].file),
            What::Stream(stream) => ring.attach(&self.streams[stream].near),
            What::Sink(sink) => match &self.sinks[sink].kind {
                Kind::File(file, _) | Kind::Device(file) => ring.attach(file),
                Kind::Stream(near, ..) => ring.attach(near),
            },
        };
        if let Ok(attached) = attached {
            party.files.push((attached, what));
        }
    }

    /// Lets go of a file, whatever names it.
    fn detach(&mut self) {
        let party = self.rng.usize(0..2);
        let files = &mut self.parties[party].files;
        if files.is_empty() {
            return;
        }
        let (file, _) = files.swap_remove(self.rng.usize(0..files.len()));
        match self.rng.u32(0..8) {
            0 => std::mem::forget(file),
            1 => self.fragile.files.borrow_mut().push(file),
            _ => drop(file),
        }
    }

    /// A file of this kind that some ring has attached, and which ring that is. Now and then any file,
    /// of any ring.
    fn file(&mut self, number: usize, wanted: fn(&What) -> bool) -> Option<(usize, usize)> {
        let number = if self.rng.u32(0..12) == 0 { 1 - number } else { number };
        let files = &self.parties[number].files;
        let fitting = |(_, (_, what)): &(usize, &(Attached, What))| wanted(what);
        let count = files.iter().enumerate().filter(fitting).count();
        let chosen = self.rng.usize(0..count.max(1));
        files.iter().enumerate().filter(fitting).nth(chosen).map(|(place, _)| (number, place))
    }

    /// Where a fetch begins, and what it finds there.
    fn bytes_of(&mut self, what: What) -> (u64, Known) {
        match what {
            What::Stream(stream) => (STREAM, Known::Stream(self.streams[stream].byte)),
            What::Source(source) => {
                let source = &self.world.sources[source];
                let mut offset = self.rng.u64(0..source.len() + 2);
                if self.rng.bool() {
                    offset &= !4095;
                }
                (offset, source.known(offset))
            }
            What::Sink(_) => unreachable!("nothing is read from a sink"),
        }
    }

    /// Mostly a file, as a fetch from a stream may keep its slot for long.
    fn source(&mut self, number: usize) -> Option<(usize, usize)> {
        if self.rng.u32(0..6) == 0 {
            return self.file(number, |what| matches!(what, What::Stream(_)));
        }
        self.file(number, |what| matches!(what, What::Source(_)))
    }

    fn sink(&mut self, number: usize) -> Option<(usize, usize)> {
        self.file(number, |what| matches!(what, What::Sink(_)))
    }

    /// How many bytes a ring is asked for.
    fn len(&mut self, number: usize) -> u32 {
        let block = self.parties[number].ring.as_ref().map_or(BLOCK, Ring::block_size);
        match self.rng.u32(0..20) {
            0 => 0,
            1 => self.rng.u32(..),
            2 => block + 1,
            3..10 => block,
            _ => self.rng.u32(1..=block),
        }
    }

    fn fetch(&mut self) {
        let Some(number) = self.pick() else { return };
        let Some((of, place)) = self.source(number) else { return };
        let (offset, known) = self.bytes_of(self.parties[of].files[place].1);
        let (len, how) = (self.len(number), self.rng.u32(0..6));
        let limit = Duration::from_micros(self.rng.u64(0..2000));
        let mut ring = self.parties[number].ring.take().expect("it was picked");
        let file = &self.parties[of].files[place].0;
        let lease = match how {
            0 => ring.fetch_copied(file, offset, len),
            1 => ring.within(limit).fetch(file, offset, len),
            _ => ring.fetch(file, offset, len),
        };
        self.parties[number].ring = Some(ring);
        if of != number && lease.is_err() {
            Tally::add("refused", 1);
        }
        if let Ok(lease) = lease {
            if of != number {
                violated("a ring has fetched from another ring's file");
            }
            self.fetched.push((lease, known, (number, self.parties[number].life)));
        }
    }

    fn installed(&mut self) {
        if self.fetched.is_empty() {
            return;
        }
        let place = self.rng.usize(0..self.fetched.len());
        let (lease, known, of) = self.fetched.swap_remove(place);
        let surely = matches!(known, Known::File(..)) && !self.parties[of.0].shaken;
        // A wait for a stream may have no end.
        if surely && self.rng.bool() {
            let number = self.pick().unwrap_or(of.0);
            let same = (number, self.parties[number].life) == of;
            if let Some(ring) = &mut self.parties[number].ring {
                match ring.wait_fetched(&lease) {
                    Ok(()) if !same => violated("a ring has waited for another ring's lease"),
                    _ => {}
                }
            }
        }
        match lease.installed() {
            Ok(lease) => {
                Tally::add("fetched", 1);
                if known.bytes(0..lease.len()).len() != lease.len() as usize {
                    violated(format_args!("{} bytes of {known:?}", lease.len()));
                }
                self.held.push(Held { lease, known, of });
            }
            Err(NotInstalled::Pending(lease)) => self.fetched.push((lease, known, of)),
            Err(_) => {}
        }
    }

    fn consume(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let held = self.rng.usize(0..self.held.len());
        let Some(number) = self.pick() else { return };
        // Requests of one lease, one behind the other.
        for _ in 0..self.rng.usize(1..4) {
            let how = if self.rng.bool() { 0 } else { self.rng.u32(0..16) };
            self.use_held(number, held, how);
        }
    }

    fn use_held(&mut self, number: usize, held: usize, how: u32) {
        let Some((of, place)) = self.sink(number) else { return };
        let What::Sink(sink) = self.parties[of].files[place].1 else { return };
        let Held { lease, known, of: owner } = &self.held[held];
        let some = range(&mut self.rng, lease.len());
        let mut ranges = vec![some.clone()];
        if how < 3 {
            ranges =
                (0..self.rng.usize(0..10)).map(|_| range(&mut self.rng, lease.len())).collect();
        }
        let mut bytes = Vec::new();
        for range in &ranges {
            if range.start < range.end && range.end <= lease.len() {
                bytes.extend(known.bytes(range.clone()));
            }
        }
        let offset = self.sinks[sink].expect(&bytes);
        let flags = if self.rng.bool() { SendFlags::NONE } else { SendFlags::DONT_WAIT };
        let limit = Duration::from_micros(self.rng.u64(0..2000));
        let mut ring = self.parties[number].ring.take().expect("it was picked");
        let file = &self.parties[of].files[place].0;
        let request = match how {
            0..3 => ring.writev(lease, &ranges, file, offset),
            3 => ring.send(lease, some, file, flags),
            4 => ring.send_zc(lease, some, file, flags),
            5 => ring.within(limit).write(lease, some, file, offset),
            6 => ring.within(limit).send(lease, some, file, flags),
            7 => ring.within(limit).send_zc(lease, some, file, flags),
            8..10 => ring.send(lease, some, file, SendFlags::NONE),
            _ => ring.write(lease, some, file, offset),
        };
        let this = (number, self.parties[number].life);
        self.parties[number].ring = Some(ring);
        if let Ok(id) = request {
            if of != number || *owner != this {
                violated("a ring has used a lease or a file of another ring");
            }
            if ranges.iter().any(|range| range.start >= range.end || range.end > lease.len()) {
                violated(format_args!("{ranges:?} of {} bytes", lease.len()));
            }
            let surely = self.sinks[sink].is_file();
            self.uses.push(InFlight { id, of: this, surely });
        }
    }

    fn chain(&mut self) {
        let Some(number) = self.pick() else { return };
        let Some((of, source)) = self.source(number) else { return };
        let Some((to, sink)) = self.sink(number) else { return };
        let what = self.parties[of].files[source].1;
        let (offset, known) = self.bytes_of(what);
        let What::Sink(which) = self.parties[to].files[sink].1 else { return };
        let len = self.len(number);
        let place = self.sinks[which].expect(&known.bytes(0..len.min(BLOCK)));
        let how = self.rng.u32(0..6);
        let mut ring = self.parties[number].ring.take().expect("it was picked");
        let (from, file) = (&self.parties[of].files[source].0, &self.parties[to].files[sink].0);
        let chain = match how {
            0 => ring.chain_send(from, offset, len, file, SendFlags::NONE),
            1 => ring.chain_send_zc(from, offset, len, file, SendFlags::NONE),
            _ => ring.chain_write(from, offset, len, file, place),
        };
        let this = (number, self.parties[number].life);
        self.parties[number].ring = Some(ring);
        if let Ok(id) = chain {
            if of != number || to != number {
                violated("a chain of another ring's files");
            }
            let surely = self.sinks[which].is_file() && matches!(what, What::Source(_));
            self.chains.push(InFlight { id, of: this, surely });
        }
    }

    fn poll(&mut self) {
        let Some(number) = self.pick() else { return };
        let Some((of, place)) = self.file(number, |_| true) else { return };
        let token = if self.rng.u32(0..6) == 0 { u32::MAX } else { self.rng.u32(..) };
        let readable = self.rng.bool();
        let mut ring = self.parties[number].ring.take().expect("it was picked");
        let file = &self.parties[of].files[place].0;
        let poll = match readable {
            true => ring.poll_readable(file, token),
            false => ring.poll_writable(file, token),
        };
        self.parties[number].ring = Some(ring);
        if poll.is_ok() && (of != number || token > MAX_TOKEN) {
            violated("a poll of another ring's file, or with the ring's own token");
        }
    }

    fn cancel(&mut self) {
        let Some(number) = self.pick() else { return };
        let how = self.rng.u32(0..3);
        let chosen = self.file(number, |_| true);
        let fetched = self.rng.usize(0..self.fetched.len().max(1));
        let used = self.rng.usize(0..self.uses.len().max(1));
        let mut ring = self.parties[number].ring.take().expect("it was picked");
        match how {
            0 => {
                if let Some((of, place)) = chosen {
                    let _ = ring.cancel(&self.parties[of].files[place].0);
                }
            }
            1 => {
                if let Some((lease, ..)) = self.fetched.get(fetched) {
                    let _ = ring.cancel_fetch(lease);
                }
            }
            _ => {
                if let Some(used) = self.uses.get(used) {
                    let _ = ring.cancel_use(used.id);
                }
            }
        }
        self.parties[number].ring = Some(ring);
    }

    fn enter(&mut self) {
        let Some(number) = self.pick() else { return };
        let how = self.rng.u32(0..8);
        let time = Duration::from_micros(self.rng.u64(0..1500));
        let count = self.rng.usize(0..3);
        let ring = self.parties[number].ring.as_mut().expect("it was picked");
        let _ = match how {
            0..3 => ring.submit(),
            3..6 => ring.wait_timeout(count, time),
            6 => ring.wait(0),
            _ => Ok(()),
        };
        if how > 1 {
            let most = self.rng.usize(0..20);
            self.take(number, most);
        }
    }

    /// Takes events.
    fn take(&mut self, number: usize, most: usize) {
        for _ in 0..most {
            let Some(ring) = &mut self.parties[number].ring else { return };
            let Some(event) = ring.next_event() else { return };
            self.told(number, event);
        }
    }

    fn told(&mut self, number: usize, event: Event) {
        let of = (number, self.parties[number].life);
        match event {
            Event::Fetched { result: Err(errno), .. } if errno == Errno::new(125) => {
                Tally::add("cancelled", 1);
            }
            Event::Used { id, result, .. } => {
                Tally::add("cancelled", usize::from(result == Err(Errno::new(125))));
                self.uses.retain(|used| used.id != id || used.of != of);
            }
            Event::Chained { id, outcome } => {
                Tally::add("chained", outcome.moved() as usize);
                self.chains.retain(|used| used.id != id || used.of != of);
            }
            event => {
                let _ = format!("{event:?}");
            }
        }
        if let Some((proxy, _)) = &mut self.proxy {
            // Now and then it is told another ring's events.
            let number = if self.rng.u32(0..30) == 0 { 1 } else { number };
            let party = &mut self.parties[number];
            if let Some(ring) = &mut party.ring {
                let taken = proxy.take(ring, event);
                if number == 1 && taken.is_ok() {
                    violated("a proxy has taken the event of another ring");
                }
            }
        }
    }

    /// Waits that block, where what is waited for comes.
    fn wait(&mut self) {
        let Some(number) = self.pick().filter(|number| !self.parties[*number].shaken) else {
            return;
        };
        let of = (number, self.parties[number].life);
        match self.rng.u32(0..5) {
            0 => {
                let used = self.uses.iter().position(|used| used.surely && used.of == of);
                if let Some(used) = used {
                    let used = self.uses.swap_remove(used);
                    let ring = self.parties[number].ring.as_mut().expect("it was picked");
                    let _ = ring.wait_used(used.id);
                }
            }
            1 => {
                let chain = self.chains.iter().position(|used| used.surely && used.of == of);
                if let Some(chain) = chain {
                    let chain = self.chains.swap_remove(chain);
                    let ring = self.parties[number].ring.as_mut().expect("it was picked");
                    let _ = ring.wait_chain(chain.id);
                }
            }
            2 => {
                let fetched = |(_, known, owner): &(_, Known, Owner)| {
                    *owner == of && matches!(known, Known::File(..))
                };
                if let Some(place) = self.fetched.iter().position(fetched) {
                    let (lease, known, _) = self.fetched.swap_remove(place);
                    let ring = self.parties[number].ring.as_mut().expect("it was picked");
                    if let Ok(Some(lease)) = ring.wait_installed(lease) {
                        self.held.push(Held { lease, known, of });
                    }
                }
            }
            how => self.whole(number, how == 3),
        }
    }

    /// A whole lease, to a file or to a socket that has room.
    fn whole(&mut self, number: usize, send: bool) {
        let files = &self.parties[number].files;
        let to = files.iter().position(|(_, what)| match what {
            What::Sink(3) => send,
            What::Sink(0 | 1) => !send,
            _ => false,
        });
        let Some(to) = to else { return };
        let What::Sink(sink) = self.parties[number].files[to].1 else { return };
        if self.held.is_empty() {
            return;
        }
        let Held { lease, known, .. } = &self.held[self.rng.usize(0..self.held.len())];
        let place = self.sinks[sink].expect(&known.bytes(0..lease.len()));
        self.sinks[sink].drain();
        let party = &mut self.parties[number];
        let ring = party.ring.as_mut().expect("it was picked");
        let _ = match send {
            true => ring.send_all(lease, &party.files[to].0),
            false => ring.write_all(lease, &party.files[to].0, place),
        };
    }

    fn look(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let Held { lease, known, of } = &self.held[self.rng.usize(0..self.held.len())];
        let offset = if self.rng.bool() { 0 } else { self.rng.u32(0..lease.len() + 2) };
        let room = if self.rng.bool() { BLOCK as usize } else { self.rng.usize(0..5000) };
        let number = if self.rng.u32(0..6) == 0 { 1 - of.0 } else { of.0 };
        let this = (number, self.parties[number].life);
        if self.rng.bool() {
            if let Ok(seen) = guarded(room, |into| lease.copy_out(offset, into)) {
                known.check(offset, &seen, "Lease::copy_out");
            }
        } else if let Some(ring) = &mut self.parties[number].ring
            && let Ok(seen) = guarded(room, |into| ring.copy_out(lease, offset, into))
        {
            if this != *of {
                violated("a ring has looked at another ring's lease");
            }
            known.check(offset, &seen, "Ring::copy_out");
        }
    }

    fn let_go(&mut self) {
        if self.rng.u32(0..3) == 0 && !self.fetched.is_empty() {
            let (lease, ..) = self.fetched.swap_remove(self.rng.usize(0..self.fetched.len()));
            match self.rng.u32(0..30) {
                0 => std::mem::forget(lease),
                _ => drop(lease),
            }
        }
        if self.held.is_empty() {
            return;
        }
        let Held { lease, of, .. } = self.held.swap_remove(self.rng.usize(0..self.held.len()));
        match self.rng.u32(0..20) {
            0 => std::mem::forget(lease),
            9..20 => drop(lease),
            1..7 => self.released.push(lease.release()),
            7 => self.fragile.leases.borrow_mut().push(lease),
            how => {
                let number = if how == 8 { 1 - of.0 } else { of.0 };
                if let Some(ring) = &mut self.parties[number].ring {
                    ring.release(lease);
                }
            }
        }
    }

    /// Requests of a ring's lease that are made without the ring, and never sent.
    fn prepared(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let number = self.rng.usize(0..2);
        let Some((of, place)) = self.file(number, |_| true) else { return };
        let Held { lease, .. } = &self.held[self.rng.usize(0..self.held.len())];
        let file = &self.parties[of].files[place].0;
        let _ = file.index();
        let some = range(&mut self.rng, lease.len());
        let request = match self.rng.u32(0..3) {
            0 => lease.send(some, file, SendFlags::NONE),
            1 => lease.writev(&[some.clone(), some], file, 0),
            _ => lease.write(some, file, STREAM),
        };
        if let Ok(mut request) = request {
            if self.rng.bool() {
                request = request.token(self.rng.u16(..));
            }
            match self.rng.u32(0..8) {
                0 if self.leaves_unsent => std::mem::forget(request),
                1 if self.leaves_unsent => drop(request.into_entry()),
                _ => drop(request),
            }
        }
    }

    fn provide(&mut self) {
        let Some(number) = self.pick() else { return };
        let of = (number, self.parties[number].life);
        let region = self.memory.regions[self.rng.usize(0..COUNT)].clone();
        let (offset, len) = wanted(&mut self.rng);
        let how = self.rng.u32(0..8);
        let (place, room) = (self.rng.usize(..), self.rng.usize(0..100));
        let provider: Rc<dyn Provider> = Rc::clone(&self.memory) as _;
        let ring = self.parties[number].ring.as_mut().expect("it was picked");
        let lease = match how {
            0 => {
                let _ = ring.register_region(&region);
                return;
            }
            1 => {
                let mut memory = vec![0; room];
                let _ = refusing(|| region.read(place, &mut memory));
                let _ = refusing(|| region.write(place, &memory));
                return;
            }
            2 => ring.fetch_provided_waiting(&provider, offset, len),
            _ => ring.fetch_provided(&provider, offset, len),
        };
        if let Ok(Some(lease)) = lease {
            let known = self.memory.known();
            Tally::add("provided", 1);
            if known.bytes(0..lease.len()).len() != lease.len() as usize {
                violated(format_args!("a lease of {} bytes of {known:?}", lease.len()));
            }
            self.held.push(Held { lease, known, of });
        }
    }

    fn sans(&mut self) {
        if let Some(sans) = &mut self.sans {
            sans.burst(&mut self.rng);
        }
    }

    fn transfer(&mut self) {
        let Some(number) = self.pick() else { return };
        let source = &self.world.sources[self.which_source()];
        let ring = self.parties[number].ring.as_mut().expect("it was picked");
        if self.rng.bool() {
            crate::moves::relay(&mut self.rng, ring, source);
        } else {
            crate::moves::fan(&mut self.rng, ring, source);
        }
    }

    fn proxy(&mut self) {
        let party = &mut self.parties[0];
        let Some(ring) = &mut party.ring else { return };
        match &mut self.proxy {
            None => self.proxy = Some((Proxy::new(ring), Vec::new())),
            Some((proxy, peers)) => {
                let rng = &mut self.rng;
                crate::moves::proxy(rng, ring, proxy, peers);
                if self.rng.u32(0..8) == 0 {
                    self.proxy = None;
                }
            }
        }
    }

    fn streams(&mut self) {
        let bytes = self.rng.usize(1..20_000);
        let stream = self.rng.usize(0..self.streams.len());
        self.streams[stream].feed(bytes);
        self.sinks.iter_mut().for_each(Sink::drain);
    }

    /// A ring goes, with all that is in flight; or is forgotten.
    fn replace_ring(&mut self) {
        let number = self.rng.usize(0..2);
        let forget = self.rng.u32(0..20) == 0;
        let ring = self.parties[number].ring.take();
        self.uses.retain(|used| used.of.0 != number);
        self.chains.retain(|used| used.of.0 != number);
        if forget {
            std::mem::forget(ring);
        } else {
            surviving(|| drop(ring));
        }
        // What it has given back is somebody else's now.
        self.canaries.add(2 * BLOCK as usize);
        self.canaries.add(8 * BLOCK as usize);
        if self.rng.bool() {
            self.parties[number].files.clear();
        }
        self.build(number);
    }

    fn small_things(&mut self) {
        let Some(number) = self.pick() else { return };
        let how = self.rng.u32(0..6);
        let ring = self.parties[number].ring.as_mut().expect("it was picked");
        match how {
            0 => drop(ring.submit()),
            1 => {
                let _ = (ring.support(), ring.engine(), ring.stats(), ring.block_size());
                if ring.free() > ring.capacity() {
                    violated("more slots are free than there are");
                }
            }
            2 => self.released.retain(|lease| !lease.is_over()),
            3 => {
                for Held { lease, .. } in &self.held {
                    let _ = (lease.id(), lease.uses(), lease.origin(), format!("{lease:?}"));
                }
            }
            4 if self.parties[1].ring.is_none() => self.build(1),
            _ => self.world.check(),
        }
    }

    /// Everything goes, in an order of the program's own; then everything is looked at.
    fn end(mut self) {
        let first = self.rng.u32(0..4);
        if first == 0 {
            self.drop_leases();
        }
        if first == 1 {
            surviving(|| self.proxy = None);
        }
        for party in [0, 1] {
            let ring = self.parties[party].ring.take();
            surviving(|| drop(ring));
        }
        // Leases of rings that are gone.
        for _ in 0..10 {
            surviving(|| self.look());
            surviving(|| self.prepared());
            surviving(|| self.installed());
        }
        surviving(|| self.proxy = None);
        self.drop_leases();
        surviving(|| self.fragile.files.borrow_mut().clear());
        if let Some(sans) = self.sans.take() {
            sans.end(&mut self.rng);
        }
        self.memory.check();
        self.canaries.check();
        self.sinks.iter_mut().for_each(Sink::check);
        self.world.check();
    }

    fn drop_leases(&mut self) {
        // One by one: the first that panics would take the others along.
        while let Some(held) = self.held.pop() {
            surviving(|| drop(held));
        }
        loop {
            let lease = self.fragile.leases.borrow_mut().pop();
            let Some(lease) = lease else { break };
            surviving(|| drop(lease));
        }
        surviving(|| self.fetched.clear());
        self.released.clear();
    }
}
