// SPDX-License-Identifier: MIT OR Apache-2.0
//! What moves whole files and streams, between the other requests of a ring.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use fastrand::Rng;
use uring_getbuf::relay::{Canceller, FanOut, PairId, Proxy, Relay, Verdict};
use uring_getbuf::ring::Ring;

use crate::world::{
    BLOCK, PEER, Source, Stream, Tally, memory_file, on_purpose, surviving, violated,
};

/// A file has only bytes of a source, at their places.
fn check(file: &File, source: &Source, from: u64, what: &str) {
    let mut got = vec![0; source.bytes.len() + BLOCK as usize];
    let mut len = 0;
    while let Ok(bytes @ 1..) = file.read_at(&mut got[len..], len as u64) {
        len += bytes;
    }
    Tally::add("moved", len);
    let want = &source.bytes[(from.min(source.len())) as usize..];
    let wrong = got[..len]
        .iter()
        .enumerate()
        .position(|(place, byte)| *byte != 0 && want.get(place).is_none_or(|want| want != byte));
    if let Some(place) = wrong {
        violated(format_args!("{what}: byte {place} of {len} is not that of its source"));
    }
}

pub(crate) fn relay(rng: &mut Rng, ring: &mut Ring, source: &Source) {
    let (to, other) = (memory_file(), memory_file());
    let canceller = Canceller::new();
    let from = if rng.bool() { 0 } else { rng.u64(0..=source.len()) };
    let mut relay = Relay::new(&source.file, &to).source_offset(from).sink_offset(0);
    relay = relay.depth(rng.usize(0..6)).on_this_thread(rng.bool()).canceller(&canceller);
    if rng.bool() {
        relay = relay.block_size(rng.u32(0..=BLOCK)).limit(rng.u64(0..80_000));
    }
    relay = relay.zero_copy_send(rng.bool());
    let (panics, cancels) = (rng.u32(0..10) == 0, rng.u32(0..10) == 0);
    relay = relay.on_progress(|_| {
        if panics {
            on_purpose();
        }
        if cancels {
            canceller.cancel();
        }
    });
    let mut skipped = 0;
    let (mut redirected, mut unknown) = (false, false);
    if rng.bool() {
        let bytes = rng.u32(0..=BLOCK + 1);
        let (how, skip) = (rng.u32(0..6), rng.u32(0..3000));
        let other = other.try_clone().expect("a descriptor");
        let bytes_there = &source.bytes[from as usize..];
        let (skipped, redirected, unknown) = (&mut skipped, &mut redirected, &mut unknown);
        relay = relay.inspect(bytes, move |seen| {
            if !bytes_there.starts_with(seen) {
                violated("an inspector has seen other bytes than the source's");
            }
            match how {
                0 => Verdict::refuse("nothing of this"),
                1 => {
                    *redirected = true;
                    Verdict::redirect(other)
                }
                2 => {
                    *skipped = u64::from(skip);
                    *unknown = skip as usize > seen.len();
                    Verdict::Trim { skip, limit: 5000 }
                }
                3 => on_purpose(),
                _ => Verdict::Pass,
            }
        });
    }
    surviving(|| drop(relay.run(ring).map_err(|failure| failure.to_string())));
    let from = from + if unknown { 0 } else { skipped };
    check(if redirected { &other } else { &to }, source, from, "a relay");
}

pub(crate) fn fan(rng: &mut Rng, ring: &mut Ring, source: &Source) {
    let files = [memory_file(), memory_file(), memory_file()];
    let from = if rng.bool() { 0 } else { rng.u64(0..=source.len()) };
    let full = File::options().write(true).open("/dev/full").expect("/dev/full");
    let canceller = Canceller::new();
    let mut fan = FanOut::new(&source.file).source_offset(from).canceller(&canceller);
    let count = rng.usize(0..=files.len());
    for file in &files[..count] {
        fan = fan.sink_at(file, 0);
    }
    if rng.bool() {
        fan = fan.sink(&full);
    }
    fan = fan.depth(rng.usize(0..6)).zero_copy_send(rng.bool());
    if rng.bool() {
        fan = fan.lag(rng.usize(0..4)).patience(Duration::from_millis(rng.u64(0..20)));
    }
    if rng.bool() {
        fan = fan.block_size(rng.u32(0..=BLOCK)).limit(rng.u64(0..80_000));
    }
    let (panics, cancels) = (rng.u32(0..10) == 0, rng.u32(0..10) == 0);
    fan = fan.on_progress(|_| {
        if cancels {
            canceller.cancel();
        }
    });
    fan = fan.on_done(|_, _| {
        if panics {
            on_purpose();
        }
    });
    surviving(|| drop(fan.run(ring).map_err(|failure| failure.to_string())));
    for file in &files {
        check(file, source, from, "a fan-out");
    }
}

/// Adds and cuts pairs, and looks at what comes out of them.
pub(crate) fn proxy(rng: &mut Rng, ring: &mut Ring, proxy: &mut Proxy, peers: &mut Vec<Stream>) {
    match rng.u32(0..6) {
        0..3 => {
            let (mut one, mut other) = (peer(0), peer(1));
            one.feed(rng.usize(1..5000));
            other.feed(rng.usize(1..5000));
            let ends = [&one, &other].map(|peer| peer.near.try_clone().expect("a descriptor"));
            let [first, second] = ends;
            let _: Option<PairId> = proxy.add(ring, first, second).ok();
            peers.extend([one, other]);
        }
        3 => drop(proxy.cut_all(ring)),
        4 => {
            peers.clear();
        }
        _ => {
            let _ = (proxy.len(), proxy.is_empty());
        }
    }
    for (number, peer) in peers.iter_mut().enumerate() {
        // What one end sends comes out of the other one.
        let want = (PEER + (number as u8 + 1) % 2) << 4 | 15;
        peer.take(|byte| {
            if byte != want {
                violated(format_args!("a byte {byte:#x} came out of a pair, and not {want:#x}"));
            }
        });
    }
}

fn peer(number: u8) -> Stream {
    let mut stream = Stream::socket().expect("a socket");
    stream.byte = (PEER + number) << 4 | 15;
    stream
}
