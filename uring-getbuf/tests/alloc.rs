// SPDX-License-Identifier: MIT OR Apache-2.0
//! The steady state allocates nothing on the heap: twice as many leases cost no allocation more.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use uring_getbuf::chain::ChainOutcome;
use uring_getbuf::relay::Relay;
use uring_getbuf::ring::{Attached, Ring, Setup};
use uring_getbuf::{STREAM, SendFlags};

type Outcome = Result<(), Box<dyn Error>>;

thread_local! {
    /// Of this thread, so that peers and the test harness do not count.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: everything is the system's allocator's; counting touches a cell of the thread that needs
// no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BLOCK: u32 = 4096;
const BLOCKS: u64 = 200;

/// Runs something for so many blocks, for twice as many, and compares what it allocated.
fn compare(what: &str, mut run: impl FnMut(u64) -> Outcome) -> Outcome {
    let mut counted = |blocks| -> Result<u64, Box<dyn Error>> {
        let before = ALLOCATIONS.get();
        run(blocks)?;
        Ok(ALLOCATIONS.get() - before)
    };
    // What is made once is there afterwards.
    counted(BLOCKS)?;
    let (once, twice) = (counted(BLOCKS)?, counted(2 * BLOCKS)?);
    assert_eq!(
        once, twice,
        "{what}: {once} allocations for {BLOCKS} leases, {twice} for twice as many"
    );
    println!("{what}: {once} allocations for {BLOCKS} leases and for {}", 2 * BLOCKS);
    Ok(())
}

fn files() -> Result<(tempfile::TempDir, File, File), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut source = File::create(folder.path().join("source"))?;
    source.write_all(&vec![7; (2 * BLOCKS * u64::from(BLOCK)) as usize])?;
    let source = File::open(folder.path().join("source"))?;
    let sink = File::create(folder.path().join("sink"))?;
    Ok((folder, source, sink))
}

/// A connection whose other end is read from until it ends.
fn socket() -> Result<(TcpStream, JoinHandle<()>), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let mut far = listener.accept()?.0;
    let drain = thread::spawn(move || {
        let mut room = [0; 1 << 16];
        while far.read(&mut room).is_ok_and(|bytes| bytes > 0) {}
    });
    Ok((near, drain))
}

fn rings() -> impl Iterator<Item = (Setup, Ring)> {
    [Setup::Cooperative, Setup::DeferTaskrun].into_iter().filter_map(|setup| {
        let ring = Ring::builder().setup(setup).slots(8).block_size(BLOCK).build();
        match ring {
            Ok(ring) => Some((setup, ring)),
            Err(error) if setup == Setup::DeferTaskrun => {
                println!("skipped {setup:?}: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    })
}

fn offset_of(block: u64) -> u64 {
    block * u64::from(BLOCK)
}

#[test]
fn step_by_step() -> Outcome {
    let (_folder, source, sink) = files()?;
    for (setup, mut ring) in rings() {
        let (source, sink) = (ring.attach(&source)?, ring.attach(&sink)?);
        let (stream, drain) = socket()?;
        let near = ring.attach(&stream)?;
        // The ring has it: it ends when it is detached.
        drop(stream);
        compare(&format!("step by step, {setup:?}"), |blocks| {
            steps(&mut ring, &source, &sink, &near, blocks)
        })?;
        drop(near);
        ring.submit()?;
        drain.join().expect("the peer");
    }
    Ok(())
}

fn steps(
    ring: &mut Ring,
    source: &Attached,
    sink: &Attached,
    near: &Attached,
    blocks: u64,
) -> Outcome {
    for batch in 0..blocks / 4 {
        let mut fetched = [const { None }; 4];
        for (index, place) in (0..).zip(&mut fetched) {
            *place = Some(ring.fetch(source, offset_of(batch * 4 + index), BLOCK)?);
        }
        for (index, lease) in (0..).zip(fetched.into_iter().flatten()) {
            let lease = ring.wait_installed(lease)?.ok_or("the source is too short")?;
            let offset = offset_of(batch * 4 + index);
            let id = match index {
                0 => ring.write(&lease, .., sink, offset)?,
                1 => ring.writev(&lease, &[0..100, 200..4096], sink, offset)?,
                2 => ring.send(&lease, .., near, SendFlags::WAIT_ALL)?,
                _ if !ring.support().features().send_zc => continue,
                _ => ring.send_zc(&lease, .., near, SendFlags::WAIT_ALL)?,
            };
            ring.wait_used(id)?;
        }
        while ring.free() < ring.capacity() {
            ring.wait(1)?;
            while ring.next_event().is_some() {}
        }
    }
    Ok(())
}

#[test]
fn chains() -> Outcome {
    let (_folder, source, sink) = files()?;
    for (setup, mut ring) in rings() {
        let (source, sink) = (ring.attach(&source)?, ring.attach(&sink)?);
        let null = ring.attach(&File::create("/dev/null")?)?;
        compare(&format!("chains, {setup:?}"), |blocks| {
            for batch in 0..blocks / 4 {
                let offset = |index| offset_of(batch * 4 + index);
                let chains = [
                    ring.chain_write(&source, offset(0), BLOCK, &sink, offset(0))?,
                    ring.chain_write(&source, offset(1), BLOCK, &null, STREAM)?,
                    ring.chain_write(&source, offset(2), BLOCK, &sink, offset(2))?,
                    ring.chain_write(&source, offset(3), BLOCK, &null, STREAM)?,
                ];
                for chain in chains {
                    assert_eq!(ring.wait_chain(chain)?, ChainOutcome::Done(BLOCK));
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn relay_to_a_file() -> Outcome {
    let (_folder, source, sink) = files()?;
    for (setup, mut ring) in rings() {
        compare(&format!("relay to a file, {setup:?}"), |blocks| {
            let report = Relay::new(&source, &sink).limit(offset_of(blocks)).run(&mut ring)?;
            assert_eq!(report.bytes, offset_of(blocks));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn relay_to_a_socket() -> Outcome {
    let (_folder, source, _sink) = files()?;
    for (setup, mut ring) in rings() {
        for zero_copy in [false, true] {
            let (near, drain) = socket()?;
            compare(&format!("relay to a socket, {setup:?}, SEND_ZC {zero_copy}"), |blocks| {
                let relay = Relay::new(&source, &near).limit(offset_of(blocks));
                let report = relay.zero_copy_send(zero_copy).run(&mut ring)?;
                assert_eq!(report.bytes, offset_of(blocks));
                Ok(())
            })?;
            drop(near);
            drain.join().expect("the peer");
        }
    }
    Ok(())
}
