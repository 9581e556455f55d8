// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random requests: most of them are right but for what chance has spoilt, so that they get far.

use std::os::fd::RawFd;

use fastrand::Rng;
use io_uring::opcode as ops;
use uring_getbuf_sys as sys;

/// Slots for leases; the one behind them is memory of the program's own.
pub(crate) const SLOTS: u32 = 16;
/// What the kernel may write to.
pub(crate) const SCRATCH: usize = 1 << 16;

/// A request as the kernel reads it.
pub(crate) type Sqe = [u64; 8];

const FIXED_FILE: u64 = 1;
const LINK: u64 = 1 << 2;
const HARDLINK: u64 = 1 << 3;

/// Places among the files of a target: those that can lend most of what is asked of them,
const LENDERS: &[usize] = &[0, 1, 2, 3];
/// those that can be written to,
const SINKS: &[usize] = &[2, 4, 8, 10, 11, 12, 13, 15];
/// and sockets.
const SOCKETS: &[usize] = &[10, 11, 12, 13];

/// What requests name.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) get_buf: Option<u8>,
    pub(crate) put_buf: Option<u8>,
    pub(crate) files: Vec<RawFd>,
    /// `/dev/getbuf`, and what it has bound to files.
    pub(crate) device: Option<RawFd>,
    pub(crate) bound: Vec<RawFd>,
    /// A connection, of whose ends rings have the first one among their files.
    pub(crate) connection: [RawFd; 2],
}

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Fetch,
    Release,
    CopyOut,
    Query,
    /// Something with this number, to or from a slot.
    Use(u8),
    /// Something else.
    Other(u8),
}

/// Where in a chain it stands: all of a chain name one slot.
#[derive(Clone, Copy)]
struct Step {
    slot: u32,
    /// The flag that links it to the next one, or none.
    link: u64,
    /// Whether a fetch hands its buffer to the next one, without a slot.
    hands_over: bool,
}

impl Target {
    /// One request.
    pub(crate) fn request(&self, rng: &mut Rng, scratch: u64) -> Sqe {
        let does = match rng.u32(0..100) {
            0..32 => Does::Fetch,
            32..44 => Does::Release,
            44..48 => Does::CopyOut,
            48..49 => Does::Query,
            49..64 => Does::Use(ops::WriteFixed::CODE),
            64..72 => Does::Use(ops::ReadFixed::CODE),
            72..78 => Does::Use(ops::Send::CODE),
            78..86 => Does::Use(ops::SendZc::CODE),
            86..89 => Does::Other(ops::Nop::CODE),
            89..92 => Does::Other(ops::PollAdd::CODE),
            92..97 => Does::Other(ops::AsyncCancel::CODE),
            97..99 => Does::Other(ops::Splice::CODE),
            // A program that closes its rings' descriptors attacks itself.
            _ => {
                Does::Other(Some(rng.u8(..)).filter(|code| *code != ops::Close::CODE).unwrap_or(0))
            }
        };
        self.make(does, None, rng, scratch)
    }

    /// Requests that belong together: fetch, use and release, or the first two of them.
    pub(crate) fn chain(&self, rng: &mut Rng, scratch: u64) -> Vec<Sqe> {
        let slot = rng.u32(0..SLOTS);
        let consumer = *rng
            .choice(&[ops::WriteFixed::CODE, ops::Send::CODE, ops::SendZc::CODE])
            .unwrap_or(&ops::WriteFixed::CODE);
        let hands_over = rng.bool();
        let mut steps = vec![Does::Fetch, Does::Use(consumer), Does::Release];
        if rng.u32(0..4) == 0 {
            // A second one; or none that releases.
            steps.insert(2, Does::Use(ops::WriteFixed::CODE));
        }
        if rng.u32(0..4) == 0 || (hands_over && rng.u32(0..4) > 0) {
            steps.pop();
        }
        let link = if rng.bool() { LINK } else { HARDLINK };
        let last = steps.len() - 1;
        let step = |(place, does): (usize, &Does)| {
            let link = if place < last { link } else { 0 };
            self.make(*does, Some(Step { slot, link, hands_over }), rng, scratch)
        };
        steps.iter().enumerate().map(step).collect()
    }

    fn make(&self, does: Does, step: Option<Step>, rng: &mut Rng, scratch: u64) -> Sqe {
        // FIXED_FILE, DRAIN, LINK, HARDLINK, ASYNC and CQE_SKIP_SUCCESS.
        let odds = match step {
            None => [(0, 2), (1, 40), (2, 8), (3, 10), (4, 12), (6, 4)],
            Some(_) => [(0, 2), (1, 200), (2, 200), (3, 200), (4, 24), (6, 2)],
        };
        let mut flags = step.map_or(0, |step| step.link);
        for (bit, odds) in odds {
            flags |= u64::from(rng.u32(0..odds) == 0) << bit;
        }
        let slot = match step {
            Some(step) => step.slot,
            None if rng.u32(0..24) == 0 => rng.u32(0..1 << 16),
            None => rng.u32(0..=SLOTS),
        };
        let fetches = does == Does::Fetch;
        let right = match does {
            Does::Use(ops::Send::CODE | ops::SendZc::CODE) => SOCKETS,
            Does::Use(ops::WriteFixed::CODE) => SINKS,
            _ => LENDERS,
        };
        let mut file = self.file(rng, right, flags & FIXED_FILE != 0);
        let mut sqe = [0; 8];
        let code = match (does, self.get_buf, self.put_buf) {
            // Where there are both, a third goes to the device.
            (Does::Fetch, Some(code), _) if self.device.is_none() || rng.u32(0..3) > 0 => {
                sqe[1] = offset(rng);
                let linked = step.is_some_and(|step| step.link != 0 && step.hands_over);
                let ways = if linked {
                    u64::from(sys::IORING_GET_BUF_LINKED)
                } else if rng.u32(0..16) == 0 {
                    rng.u64(0..4)
                } else {
                    rng.u64(0..=u64::from(sys::IORING_GET_BUF_REPLACE))
                };
                sqe[3] = u64::from(length(rng)) | ways << 32;
                sqe[5] = u64::from(slot);
                code
            }
            (Does::Release, _, Some(code)) if self.device.is_none() || rng.u32(0..3) > 0 => {
                sqe[5] = u64::from(slot);
                code
            }
            (Does::Fetch | Does::Release | Does::CopyOut | Does::Query, ..) => {
                if let Some(device) = self.device
                    && rng.u32(0..32) > 0
                {
                    (file, flags) = (device, flags & !FIXED_FILE);
                }
                self.command(does, slot, &mut file, &mut sqe, rng, scratch);
                ops::UringCmd16::CODE
            }
            (Does::Use(code), ..) => {
                // What is in a slot counts from 0. Most of what is asked for is there.
                let (start, len) = if rng.u32(0..4) > 0 {
                    (rng.u64(0..64), rng.u32(0..1024))
                } else {
                    (rng.u64(0..8192), length(rng))
                };
                sqe[2] = if slot == SLOTS { scratch + start } else { start };
                sqe[3] = u64::from(len);
                sqe[5] = u64::from(slot);
                if code == ops::Send::CODE || code == ops::SendZc::CODE {
                    // With IORING_RECVSEND_FIXED_BUF and MSG_DONTWAIT | MSG_NOSIGNAL.
                    sqe[0] |= 4 << 16;
                    sqe[3] |= 0x4040 << 32;
                } else {
                    // Or where a stream stands.
                    sqe[1] = if rng.bool() { u64::MAX } else { offset(rng) };
                }
                code
            }
            (Does::Other(code), ..) => {
                match code {
                    ops::AsyncCancel::CODE => sqe[2] = rng.u64(0..32),
                    ops::PollAdd::CODE => sqe[3] = 1 << 32,
                    ops::Nop::CODE => {}
                    ops::Splice::CODE => {
                        (sqe[1], sqe[2]) = (offset(rng), u64::MAX);
                        sqe[3] = u64::from(length(rng));
                        sqe[5] = u64::from(slot);
                    }
                    // Whatever it is, it names no memory.
                    _ => sqe[3] = u64::from(rng.u32(0..3)),
                }
                code
            }
        };
        // One of the fields that must be zero.
        let spoilt = if step.is_some() { 200 } else { 40 };
        match rng.u32(0..spoilt) {
            0 => sqe[rng.usize(5..8)] ^= rng.u64(..) & !0xffff,
            1 => sqe[3] ^= u64::from(rng.u32(..)) << 32,
            2 if fetches || does == Does::Release => {
                sqe[rng.usize(1..4)] ^= rng.u64(..) >> rng.u32(0..64);
            }
            _ => {}
        }
        sqe[0] |= u64::from(code) | flags << 8 | u64::from(file as u32) << 32;
        // A name that a cancellation may mean.
        sqe[4] = rng.u64(0..32);
        sqe
    }

    /// A file, by number: one of these most of the time, any, or none.
    fn file(&self, rng: &mut Rng, right: &[usize], fixed: bool) -> i32 {
        let any = rng.usize(0..self.files.len());
        let right = *rng.choice(right).unwrap_or(&any);
        match rng.u32(0..48) {
            0 => -1,
            1 => rng.i32(..),
            2..36 if fixed => right as i32,
            2..36 => self.files[right],
            _ if fixed => any as i32,
            _ => self.files[any],
        }
    }

    /// A command of `/dev/getbuf`, or of one of its descriptors that a file is bound to.
    fn command(
        &self,
        does: Does,
        slot: u32,
        file: &mut i32,
        sqe: &mut Sqe,
        rng: &mut Rng,
        scratch: u64,
    ) {
        let version =
            if rng.u32(0..40) == 0 { rng.u64(0..256) } else { u64::from(sys::GETBUF_ABI_VERSION) };
        let (mut first, mut flags) = (0_u32, 0_u64);
        let code = match does {
            Does::Fetch => {
                sqe[3] = u64::from(length(rng));
                sqe[7] = offset(rng);
                first = self.file(rng, LENDERS, false) as u32;
                if rng.bool()
                    && let Some(bound) = rng.choice(&self.bound)
                {
                    (*file, first) = (*bound, sys::GETBUF_FD_BOUND as u32);
                }
                // GETBUF_FETCH_REPLACE, which no module has.
                flags = u64::from(rng.u32(0..16) == 0);
                sys::GETBUF_CMD_FETCH
            }
            Does::CopyOut => {
                sqe[2] = if rng.u32(0..8) == 0 { 1 } else { scratch };
                // With IORING_URING_CMD_FIXED, which is 1.
                sqe[3] = rng.u64(0..SCRATCH as u64) | 1 << 32;
                sqe[5] = u64::from(slot);
                sqe[7] = rng.u64(0..5000);
                sys::GETBUF_CMD_COPY_OUT
            }
            Does::Query => {
                (sqe[2], sqe[3]) = (scratch, rng.u64(0..128));
                sys::GETBUF_CMD_QUERY
            }
            _ => sys::GETBUF_CMD_RELEASE,
        };
        let code = if rng.u32(0..64) == 0 { rng.u32(..) } else { code };
        sqe[1] = u64::from(code);
        sqe[6] = u64::from(first) | u64::from(slot) << 32 | flags << 48 | version << 56;
    }
}

/// Where in a file.
fn offset(rng: &mut Rng) -> u64 {
    match rng.u32(0..32) {
        0 => u64::MAX,
        1 => i64::MAX as u64 - rng.u64(0..8192),
        2 => rng.u64(..),
        3..18 => rng.u64(0..64) * 4096,
        _ => rng.u64(0..1 << 18),
    }
}

fn length(rng: &mut Rng) -> u32 {
    match rng.u32(0..32) {
        0 => 0,
        1 => u32::MAX - rng.u32(0..2),
        2 => rng.u32(..),
        3..20 => 4096,
        _ => rng.u32(1..1 << 17),
    }
}
