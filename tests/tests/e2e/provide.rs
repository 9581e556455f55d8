// SPDX-License-Identifier: MIT OR Apache-2.0
//! Leases of a provider's memory.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{Read, pipe};
use std::net::Shutdown;
use std::rc::Rc;

use getbuf_tests::{Folder, Rig, Verdict, fill, pattern, reader, skip, tcp, until, until_free};
use uring_getbuf::lease::{Installed, Lease};
use uring_getbuf::provider::{Buffer, MAX_PIECES, Provider, Region, Wanted};
use uring_getbuf::ring::Attached;
use uring_getbuf::slots::Event;
use uring_getbuf::{Errno, ErrorKind, Origin, Ring, STREAM, SendFlags};

use crate::Case;

/// With every ring setup.
pub(crate) const CENTRAL: &[Case] = &[
    ("write_and_send", write_and_send),
    ("cache_of_pages", cache_of_pages),
    ("released_when_the_last_is_done", released_when_the_last_is_done),
];

pub(crate) const CASES: &[Case] = &[
    ("registered_on_fetch", registered_on_fetch),
    ("many_pieces", many_pieces),
    ("beside_leases_of_files", beside_leases_of_files),
    ("lies", lies),
    ("errors_of_its_own", errors_of_its_own),
    ("no_room", no_room),
    ("ring_dropped_in_flight", ring_dropped_in_flight),
    ("ring_dropped_before_the_lease", ring_dropped_before_the_lease),
    ("forgotten", forgotten),
    ("region_gone_before_the_lease", region_gone_before_the_lease),
];

const PAGE: usize = 4096;

/// Bytes of a region, or of any memory, and how many leases of them there are.
struct Bytes {
    region: Region,
    raw: bool,
    /// Bytes in one piece of an answer.
    piece: usize,
    lent: Cell<i32>,
    released: Cell<u32>,
}

impl Bytes {
    fn new(content: &[u8], piece: usize, raw: bool) -> Rc<Self> {
        let region = Region::new(content.len()).expect("memory");
        region.write(0, content);
        let (lent, released) = (Cell::new(0), Cell::new(0));
        Rc::new(Self { region, raw, piece, lent, released })
    }
}

impl Provider for Bytes {
    fn get_buf(&self, wanted: &mut Wanted<'_>) -> Result<usize, Errno> {
        let begin = usize::try_from(wanted.offset()).unwrap_or(usize::MAX).min(self.region.len());
        let end = begin + wanted.len().min(self.region.len() - begin);
        let mut at = begin;
        while at < end && wanted.room() > 0 {
            let next = end.min(at + self.piece);
            if self.raw {
                let base = self.region.base().wrapping_add(at);
                // SAFETY: the region is the provider's, which every lease keeps.
                unsafe { wanted.add_raw(base, next - at) }?;
            } else {
                wanted.add(&self.region, at..next)?;
            }
            at = next;
        }
        wanted.set_key(begin + 7);
        self.lent.set(self.lent.get() + i32::from(at > begin));
        Ok(at - begin)
    }

    fn release(&self, buffer: Buffer<'_>) {
        let (base, _) = buffer.pieces().next().expect("a piece");
        assert_eq!(buffer.key(), base.addr() - self.region.base().addr() + 7);
        self.lent.set(self.lent.get() - 1);
        self.released.set(self.released.get() + 1);
    }
}

fn ring(rig: &Rig) -> Ring {
    rig.small().regions(4).build().expect("a small ring")
}

fn dynamic(provider: &Rc<impl Provider + 'static>) -> Rc<dyn Provider> {
    Rc::clone(provider) as _
}

fn write_and_send(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(70, 5 * PAGE + 17));
    let mut ring = ring(rig);
    let bytes = Bytes::new(&content, usize::MAX >> 1, false);
    ring.register_region(&bytes.region)?;
    let provider = dynamic(&bytes);
    let sink = ring.attach(&folder.sink()?)?;
    let (near, far) = tcp()?;
    let socket = ring.attach(&near)?;
    let got = reader(far);
    let mut offset = 0;
    while let Some(lease) = ring.fetch_provided(&provider, offset, PAGE as u32)? {
        assert_eq!((lease.origin(), bytes.lent.get()), (Origin::Provided, 1));
        ring.write_all(&lease, &sink, offset)?;
        ring.send_all(&lease, &socket)?;
        let mut head = [0; 9];
        assert_eq!(ring.copy_out(&lease, 3, &mut head)?, 9);
        assert!(head == content[offset as usize + 3..][..9]);
        let half = lease.len() / 2;
        let ranges = [half..lease.len(), 0..half];
        let vectored = ring.writev(&lease, &ranges, &sink, 1 << 20)?;
        assert_eq!(ring.wait_used(vectored)?, lease.len());
        offset += u64::from(lease.len());
    }
    assert_eq!((bytes.lent.get(), bytes.released.get()), (0, 6));
    assert!(folder.sunk()?[..content.len()] == content);
    near.shutdown(Shutdown::Write)?;
    drop(socket);
    assert!(got.join().expect("a reader") == content);
    assert_eq!(ring.free(), 4);
    Ok(())
}

/// Memory that the ring does not know is registered for the lease, and unregistered after it.
fn registered_on_fetch(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(71, 3 * PAGE + 5));
    let mut ring = ring(rig);
    for raw in [true, false] {
        let bytes = Bytes::new(&content, 1500, raw);
        let provider = dynamic(&bytes);
        let sink = ring.attach(&folder.sink()?)?;
        let mut offset = 0;
        // Each of them has three pieces, and there is room for four.
        while let Some(lease) = ring.fetch_provided(&provider, offset, PAGE as u32)? {
            ring.write_all(&lease, &sink, offset)?;
            offset += u64::from(lease.len());
            drop(lease);
            assert_eq!(bytes.lent.get(), 0);
        }
        assert!(folder.sunk()? == content);
        let lease = ring.fetch_provided(&provider, 0, PAGE as u32)?.expect("a block");
        let error = ring.fetch_provided(&provider, 0, PAGE as u32).expect_err("no room");
        assert_eq!(error.kind(), ErrorKind::NoRegion, "{error}");
        assert_eq!(bytes.lent.get(), 1, "what could not be registered was given back");
        drop(lease);
        drop(ring.fetch_provided(&provider, 0, PAGE as u32)?.expect("there is room again"));
        assert_eq!((bytes.lent.get(), ring.free()), (0, 4));
    }
    Ok(())
}

fn many_pieces(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(72, PAGE));
    let mut ring = ring(rig);
    let bytes = Bytes::new(&content, 300, false);
    ring.register_region(&bytes.region)?;
    let provider = dynamic(&bytes);
    let lease = ring.fetch_provided(&provider, 0, PAGE as u32)?.expect("a block");
    assert_eq!(lease.len() as usize, PAGE.min(300 * MAX_PIECES));
    let sink = ring.attach(&folder.sink()?)?;
    // A request takes what is in one piece.
    let written = ring.write(&lease, 250..1000, &sink, 0)?;
    assert_eq!(ring.wait_used(written)?, 50);
    ring.write_all(&lease, &sink, 0)?;
    assert!(folder.sunk()? == content);
    let mut all = vec![0; PAGE];
    assert_eq!(ring.copy_out(&lease, 0, &mut all)?, PAGE);
    assert!(all == content);
    let (near, far) = tcp()?;
    let socket = ring.attach(&near)?;
    let got = reader(far);
    ring.send_all(&lease, &socket)?;
    drop((near, socket));
    ring.submit()?;
    assert!(got.join().expect("a reader") == content);
    let written = ring.writev(&lease, &[0..300, 650..700], &sink, 0)?;
    assert_eq!(ring.wait_used(written)?, 350);
    let error = ring.writev(&lease, &[0..9, 0..301], &sink, 0).expect_err("two pieces");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    drop(lease);
    assert_eq!((bytes.lent.get(), ring.free()), (0, 4));
    Ok(())
}

fn released_when_the_last_is_done(rig: &Rig) -> Verdict {
    let content = pattern(73, PAGE);
    let mut ring = ring(rig);
    let bytes = Bytes::new(&content, PAGE, false);
    ring.register_region(&bytes.region)?;
    let provider = dynamic(&bytes);
    let (mut reads, writes) = pipe()?;
    let full = fill(&writes)?;
    let blocked = ring.attach(&writes)?;
    for cancel in [true, false] {
        let lease = ring.fetch_provided(&provider, 0, PAGE as u32)?.expect("a block");
        let stuck = ring.write(&lease, .., &blocked, STREAM)?;
        ring.submit()?;
        drop(lease);
        assert_eq!(bytes.lent.get(), 1, "it is in use");
        if cancel {
            ring.cancel_use(stuck)?;
            let error = ring.wait_used(stuck).expect_err("cancelled");
            assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
        } else {
            reads.read_exact(&mut vec![0; full])?;
            assert_eq!(ring.wait_used(stuck)?, PAGE as u32);
        }
        assert_eq!(bytes.lent.get(), 0);
    }
    let mut got = vec![0; PAGE];
    reads.read_exact(&mut got)?;
    assert!(got == content);
    assert_eq!(bytes.released.get(), 2);
    Ok(())
}

fn beside_leases_of_files(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(74, 2 * PAGE));
    let mut ring = ring(rig);
    let bytes = Bytes::new(&content[PAGE..], PAGE, false);
    ring.register_region(&bytes.region)?;
    let provider = dynamic(&bytes);
    let source = ring.attach(&folder.source(&content)?)?;
    let sink = ring.attach(&folder.sink()?)?;
    for round in 0..20_u64 {
        let fetched = ring.fetch(&source, 0, PAGE as u32)?;
        let mine = ring.fetch_provided(&provider, 0, PAGE as u32)?.expect("a block");
        let theirs = ring.wait_installed(fetched)?.expect("a block");
        let offset = round * 2 * PAGE as u64;
        let uses = [
            ring.write(&mine, .., &sink, offset + PAGE as u64)?,
            ring.write(&theirs, .., &sink, offset)?,
        ];
        // Slots change hands between the two.
        drop(if round % 2 == 0 { (mine, theirs) } else { (theirs, mine) });
        for id in uses {
            assert_eq!(ring.wait_used(id)?, PAGE as u32);
        }
    }
    until_free(&mut ring, 4);
    assert_eq!(bytes.lent.get(), 0);
    assert!(folder.sunk()?.chunks(2 * PAGE).all(|block| block == content));
    Ok(())
}

/// One that answers what it is told to.
struct Liar {
    region: Region,
    pieces: Cell<usize>,
    answer: Cell<Result<usize, Errno>>,
    released: Cell<u32>,
}

impl Provider for Liar {
    fn get_buf(&self, wanted: &mut Wanted<'_>) -> Result<usize, Errno> {
        for _ in 0..self.pieces.get() {
            wanted.add(&self.region, 0..100)?;
        }
        self.answer.get()
    }

    fn release(&self, buffer: Buffer<'_>) {
        assert_eq!(buffer.pieces().len(), self.pieces.get().min(MAX_PIECES));
        self.released.set(self.released.get() + 1);
    }
}

fn lies(rig: &Rig) -> Verdict {
    let mut ring = ring(rig);
    let liar = Rc::new(Liar {
        region: Region::new(PAGE)?,
        pieces: Cell::new(0),
        answer: Cell::new(Ok(0)),
        released: Cell::new(0),
    });
    ring.register_region(&liar.region)?;
    let provider = dynamic(&liar);
    for (pieces, answer, kind) in [
        (0, Ok(1), ErrorKind::Provider),
        (1, Ok(101), ErrorKind::Provider),
        (3, Ok(301), ErrorKind::Provider),
        (3, Ok(257), ErrorKind::Provider),
        (1, Ok(usize::MAX), ErrorKind::Provider),
        (2, Err(Errno::new(libc::EIO)), ErrorKind::Source),
        (MAX_PIECES + 1, Ok(1), ErrorKind::Source),
    ] {
        liar.pieces.set(pieces);
        liar.answer.set(answer);
        let before = liar.released.get();
        let error = ring.fetch_provided(&provider, 0, 256).expect_err("a lie");
        assert_eq!(error.kind(), kind, "{pieces} {answer:?}: {error}");
        assert_eq!(liar.released.get() - before, u32::from(pieces > 0), "{pieces} {answer:?}");
        assert_eq!(ring.free(), 4);
    }
    // Nothing, in a piece: that is the end.
    liar.pieces.set(1);
    liar.answer.set(Ok(0));
    let before = liar.released.get();
    assert!(ring.fetch_provided(&provider, 0, 256)?.is_none());
    assert_eq!(liar.released.get() - before, 1);
    // Less than its pieces hold is no lie.
    liar.pieces.set(3);
    liar.answer.set(Ok(150));
    assert_eq!(ring.fetch_provided(&provider, 0, 256)?.expect("bytes").len(), 150);
    Ok(())
}

/// One that would have to wait.
struct Slow(Cell<u32>);

impl Provider for Slow {
    fn get_buf(&self, wanted: &mut Wanted<'_>) -> Result<usize, Errno> {
        self.0.set(self.0.get() + 1);
        Err(Errno::new(if wanted.nowait() { libc::EAGAIN } else { libc::EIO }))
    }

    fn release(&self, _: Buffer<'_>) {
        unreachable!("it has never lent anything");
    }
}

fn errors_of_its_own(rig: &Rig) -> Verdict {
    let mut ring = ring(rig);
    let slow = Rc::new(Slow(Cell::new(0)));
    let provider = dynamic(&slow);
    let error = ring.fetch_provided(&provider, 0, 1).expect_err("not now");
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Source, Some(libc::EAGAIN)));
    let error = ring.fetch_provided_waiting(&provider, 0, 1).expect_err("never");
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Source, Some(libc::EIO)));
    for (offset, len) in [(0, 0), (u64::MAX, 1)] {
        let error = ring.fetch_provided(&provider, offset, len).expect_err("nonsense");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert_eq!(slow.0.get(), 2);
    let mut none = rig.ring();
    let error = none.fetch_provided(&provider, 0, 1).expect_err("no room at all");
    assert_eq!(error.kind(), ErrorKind::NoRegion, "{error}");
    Ok(())
}

fn no_room(rig: &Rig) -> Verdict {
    let mut ring = ring(rig);
    let bytes = Bytes::new(&pattern(75, PAGE), PAGE, false);
    ring.register_region(&bytes.region)?;
    let provider = dynamic(&bytes);
    let fetch = |ring: &mut Ring| ring.fetch_provided(&provider, 0, 1);
    let all: Vec<_> = (0..4).map(|_| fetch(&mut ring)).collect::<Result<_, _>>()?;
    let error = fetch(&mut ring).expect_err("every slot is taken");
    assert_eq!((error.kind(), bytes.lent.get()), (ErrorKind::NoSlot, 4));
    drop(all);
    assert_eq!((ring.free(), bytes.lent.get()), (4, 0));
    for _ in 0..3 {
        ring.register_region(&Region::new(1)?)?;
    }
    let error = ring.register_region(&Region::new(1)?).expect_err("four are there");
    assert_eq!(error.kind(), ErrorKind::NoRegion, "{error}");
    for bytes in [0, (1 << 30) + 1] {
        assert_eq!(Region::new(bytes).expect_err("nonsense").kind(), ErrorKind::InvalidInput);
    }
    Ok(())
}

/// The ring goes with a request in flight, which is cancelled, and then the buffer comes back.
fn ring_dropped_in_flight(rig: &Rig) -> Verdict {
    let mut ring = ring(rig);
    let bytes = Bytes::new(&pattern(76, PAGE), PAGE, false);
    ring.register_region(&bytes.region)?;
    let (reads, writes) = pipe()?;
    fill(&writes)?;
    let blocked = ring.attach(&writes)?;
    let lease = ring.fetch_provided(&dynamic(&bytes), 0, PAGE as u32)?.expect("a block");
    ring.write(&lease, .., &blocked, STREAM)?;
    ring.submit()?;
    drop(lease);
    assert_eq!(bytes.lent.get(), 1);
    drop(ring);
    assert_eq!((bytes.lent.get(), bytes.released.get()), (0, 1));
    drop(reads);
    Ok(())
}

fn ring_dropped_before_the_lease(rig: &Rig) -> Verdict {
    let mut ring = ring(rig);
    let bytes = Bytes::new(&pattern(77, PAGE), PAGE, false);
    let lease = ring.fetch_provided(&dynamic(&bytes), 0, PAGE as u32)?.expect("a block");
    drop(ring);
    assert_eq!(bytes.lent.get(), 1);
    drop(lease);
    assert_eq!((bytes.lent.get(), bytes.released.get()), (0, 1));
    Ok(())
}

fn forgotten(rig: &Rig) -> Verdict {
    let mut ring = ring(rig);
    let bytes = Bytes::new(&pattern(78, PAGE), PAGE, false);
    getbuf_tests::forget(ring.fetch_provided(&dynamic(&bytes), 0, PAGE as u32)?);
    drop(ring);
    assert_eq!((bytes.lent.get(), bytes.released.get()), (1, 0));
    Ok(())
}

/// A provider that lets its memory go while it is lent.
struct Careless(RefCell<Option<Region>>);

impl Provider for Careless {
    fn get_buf(&self, wanted: &mut Wanted<'_>) -> Result<usize, Errno> {
        let region = self.0.take().ok_or(Errno::new(libc::EIO))?;
        wanted.add(&region, 0..PAGE)?;
        Ok(PAGE)
    }

    fn release(&self, _: Buffer<'_>) {}
}

fn region_gone_before_the_lease(rig: &Rig) -> Verdict {
    let (folder, content) = (Folder::new()?, pattern(79, PAGE));
    let mut ring = ring(rig);
    let region = Region::new(PAGE)?;
    region.write(0, &content);
    let provider = Rc::new(Careless(RefCell::new(Some(region))));
    let lease = ring.fetch_provided(&dynamic(&provider), 0, PAGE as u32)?.expect("a block");
    let mut all = vec![0; PAGE];
    assert_eq!(ring.copy_out(&lease, 0, &mut all)?, PAGE);
    assert!(all == content);
    let sink = ring.attach(&folder.sink()?)?;
    ring.write_all(&lease, &sink, 0)?;
    assert!(folder.sunk()? == content);
    Ok(())
}

/// Pages of a cache: leases of a page are counted, and a page that nobody has is poisoned and filled
/// anew.
struct Cache {
    memory: Region,
    pages: RefCell<Vec<Page>>,
    /// Leases that came back, over all.
    released: Cell<u64>,
}

#[derive(Clone, Copy, Default)]
struct Page {
    leases: u32,
    /// Which content it has.
    seed: u64,
    /// Given up by the cache while it was lent: it is filled anew when the last lease is back.
    dirty: bool,
}

const PAGES: usize = 8;
const POISON: u8 = 0xdb;

impl Cache {
    fn fill(&self, index: usize, seed: u64) {
        self.memory.write(index * PAGE, &pattern(seed, PAGE));
        self.pages.borrow_mut()[index] = Page { seed, ..Page::default() };
    }

    /// Wants other bytes in a page: at once if it is not lent, otherwise when it is not any more.
    fn invalidate(&self, index: usize) {
        let page = self.pages.borrow()[index];
        if page.leases == 0 {
            self.fill(index, page.seed + PAGES as u64);
        } else {
            self.pages.borrow_mut()[index].dirty = true;
        }
    }
}

impl Provider for Cache {
    fn get_buf(&self, wanted: &mut Wanted<'_>) -> Result<usize, Errno> {
        let index = wanted.offset() as usize / PAGE;
        let page = &mut self.pages.borrow_mut()[index];
        if page.dirty {
            // Nobody else gets what is out of date.
            return Err(Errno::new(libc::EAGAIN));
        }
        let len = wanted.len().min(PAGE);
        wanted.add(&self.memory, index * PAGE..index * PAGE + len)?;
        wanted.set_key(index);
        page.leases += 1;
        Ok(len)
    }

    fn release(&self, buffer: Buffer<'_>) {
        let index = buffer.key();
        let mut pages = self.pages.borrow_mut();
        assert!(pages[index].leases > 0, "page {index} is released once too often");
        pages[index].leases -= 1;
        let page = pages[index];
        drop(pages);
        self.released.set(self.released.get() + 1);
        if page.leases == 0 && page.dirty {
            // If it were still in flight, this is what would arrive.
            self.memory.write(index * PAGE, &[POISON; PAGE]);
            self.fill(index, page.seed + PAGES as u64);
        }
    }
}

/// Sends random pages of the cache over TCP, with `SEND_ZC`, and invalidates pages at random.
fn cache_of_pages(rig: &Rig) -> Verdict {
    let mut ring = rig.small().slots(16).regions(1).build()?;
    if !ring.support().features().send_zc {
        return skip("this kernel has no SEND_ZC");
    }
    let cache = Rc::new(Cache {
        memory: Region::new(PAGES * PAGE)?,
        pages: RefCell::new(vec![Page::default(); PAGES]),
        released: Cell::new(0),
    });
    for index in 0..PAGES {
        cache.fill(index, index as u64);
    }
    ring.register_region(&cache.memory)?;
    let provider = dynamic(&cache);
    let (near, far) = tcp()?;
    let socket = ring.attach(&near)?;
    let got = reader(far);
    let mut random = pattern(80, 9000).into_iter();
    let mut want = Vec::new();
    let mut flow = Flow::default();
    let mut fetched = 0;
    while let (Some(page), Some(action)) = (random.next(), random.next()) {
        let index = usize::from(page) % PAGES;
        if action % 4 == 0 {
            cache.invalidate(index);
            continue;
        }
        let lease = match ring.fetch_provided(&provider, (index * PAGE) as u64, PAGE as u32) {
            Ok(lease) => lease.expect("a page"),
            Err(error) => {
                // What is in use comes back, and makes room or a page that can be had again.
                let again = error.raw_os_error() == Some(libc::EAGAIN);
                assert!(again || error.kind() == ErrorKind::NoSlot, "{error}");
                flow.step(&mut ring, &socket)?;
                continue;
            }
        };
        fetched += 1;
        want.extend_from_slice(&pattern(cache.pages.borrow()[index].seed, PAGE));
        flow.waiting.push_back((lease, 0));
        flow.start(&mut ring, &socket)?;
    }
    while !flow.waiting.is_empty() {
        flow.step(&mut ring, &socket)?;
    }
    near.shutdown(Shutdown::Write)?;
    let got = got.join().expect("a reader");
    assert_eq!(got.len(), want.len());
    assert!(got == want, "other bytes than were in the pages arrived");
    until_free(&mut ring, 16);
    assert_eq!(cache.released.get(), fetched);
    assert!(cache.pages.borrow().iter().all(|page| page.leases == 0));
    assert!(fetched > 1000, "{fetched}");
    println!("{fetched} leases, {} of {} sends with a notification", flow.zero_copy, flow.sends);
    Ok(())
}

/// What is to be sent, in order. One request at a time, but what the network has not returned
/// overlaps.
#[derive(Default)]
struct Flow {
    waiting: VecDeque<(Lease<Installed>, u32)>,
    busy: bool,
    sends: u32,
    zero_copy: u32,
}

impl Flow {
    fn start(&mut self, ring: &mut Ring, socket: &Attached) -> Verdict {
        if let (Some((lease, done)), false) = (self.waiting.front(), self.busy) {
            ring.send_zc(lease, *done.., socket, SendFlags::WAIT_ALL)?;
            self.busy = true;
            self.sends += 1;
        }
        Ok(())
    }

    fn step(&mut self, ring: &mut Ring, socket: &Attached) -> Verdict {
        let event =
            until(ring, |event| matches!(event, Event::Used { .. } | Event::Returned { .. }));
        if let Event::Used { result, more, .. } = event {
            self.zero_copy += u32::from(more);
            let bytes = result?;
            let (lease, done) = self.waiting.front_mut().expect("it was sent");
            *done += bytes;
            if *done == lease.len() {
                self.waiting.pop_front();
            }
            self.busy = false;
            self.start(ring, socket)?;
        }
        Ok(())
    }
}
