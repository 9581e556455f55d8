// SPDX-License-Identifier: MIT OR Apache-2.0
//! A ring and slots, driven by hand.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};

use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::{IoUring, opcode as ops};
use libtest_mimic::Failed;
use uring_getbuf::lease::{Installed, Lease};
use uring_getbuf::request::{GetBuf, PutBuf};
use uring_getbuf::slots::{Builder, Event, Outgoing, Slots};
use uring_getbuf::{Engine, STREAM, Support};
use uring_getbuf_sys as sys;

use crate::SLOTS;

pub(crate) enum Lender {
    Opcode { get_buf: u8, put_buf: u8 },
    Module { device: File },
}

impl Lender {
    pub(crate) fn lend(&self, builder: Builder) -> Builder {
        match self {
            Self::Opcode { get_buf, put_buf } => builder.opcode(*get_buf, Some(*put_buf), 0, SLOTS),
            Self::Module { device } => builder.module(Fd(device.as_raw_fd()), 0, SLOTS),
        }
    }
}

/// The first word of a payload.
pub(crate) const fn header(first: i32, slot: u16, flags: u8, version: u8) -> u64 {
    first as u32 as u64 | (slot as u64) << 32 | (flags as u64) << 48 | (version as u64) << 56
}

/// A command of `/dev/getbuf`, all fields free.
pub(crate) fn command(device: RawFd, op: u32, addr: u64, len: u32, payload: [u64; 2]) -> Entry {
    let mut bytes = [0_u8; 64];
    bytes[0] = ops::UringCmd16::CODE;
    bytes[4..8].copy_from_slice(&device.to_ne_bytes());
    bytes[8..12].copy_from_slice(&op.to_ne_bytes());
    bytes[16..24].copy_from_slice(&addr.to_ne_bytes());
    bytes[24..28].copy_from_slice(&len.to_ne_bytes());
    bytes[48..56].copy_from_slice(&payload[0].to_ne_bytes());
    bytes[56..64].copy_from_slice(&payload[1].to_ne_bytes());
    from_bytes(bytes)
}

pub(crate) fn from_bytes(bytes: [u8; 64]) -> Entry {
    // SAFETY: an `Entry` is 64 bytes of plain data.
    unsafe { std::mem::transmute::<[u8; 64], Entry>(bytes) }
}

pub(crate) fn to_bytes(entry: Entry) -> [u8; 64] {
    // SAFETY: likewise.
    unsafe { std::mem::transmute::<Entry, [u8; 64]>(entry) }
}

pub(crate) fn fetch(device: RawFd, source: RawFd, offset: u64, len: u32, slot: u16) -> Entry {
    command(device, sys::GETBUF_CMD_FETCH, 0, len, [header(source, slot, 0, 1), offset])
}

/// Rings of the kinds that submit and complete differently.
pub(crate) fn ring_kinds() -> [io_uring::Builder; 3] {
    let plain = IoUring::builder();
    let (mut defer, mut polled) = (plain.clone(), plain.clone());
    defer.setup_single_issuer().setup_defer_taskrun();
    polled.setup_sqpoll(50);
    [plain, defer, polled]
}

pub(crate) struct Raw {
    pub(crate) uring: IoUring,
    pub(crate) slots: Slots,
    pub(crate) lender: Lender,
}

impl Raw {
    pub(crate) fn new(engine: Engine) -> Result<Self, Failed> {
        Self::with(engine, &IoUring::builder(), Lender::lend)
    }

    pub(crate) fn with(
        engine: Engine,
        ring: &io_uring::Builder,
        build: impl FnOnce(&Lender, Builder) -> Builder,
    ) -> Result<Self, Failed> {
        let support = Support::detect();
        let lender = if engine == Engine::Module {
            let device = OpenOptions::new().read(true).write(true).open("/dev/getbuf")?;
            Lender::Module { device }
        } else {
            Lender::Opcode {
                get_buf: support.get_buf_opcode().ok_or("no GET_BUF")?,
                put_buf: support.put_buf_opcode().ok_or("no PUT_BUF")?,
            }
        };
        let uring = ring.clone().setup_submit_all().build(64)?;
        uring.submitter().register_buffers_sparse(u32::from(SLOTS))?;
        let slots = build(&lender, Slots::builder(&support)).build()?;
        Ok(Self { uring, slots, lender })
    }

    /// The device of the module.
    pub(crate) fn device(&self) -> RawFd {
        match &self.lender {
            Lender::Module { device } => device.as_raw_fd(),
            Lender::Opcode { .. } => panic!("only the module has one"),
        }
    }

    /// Sends requests, and gives the results of those that post one, in their order.
    pub(crate) fn results(&mut self, entries: &[Entry], wait: usize) -> Vec<(u64, i32)> {
        let named = entries.iter().enumerate();
        let named: Vec<_> =
            named.map(|(index, entry)| entry.clone().user_data(index as u64)).collect();
        // All at once: a thread that polls the queue must not see half of a link.
        // SAFETY: the files and the memory that a test's request names live as long as it.
        unsafe { self.uring.submission().push_multiple(&named) }.expect("the queue has room");
        let mut results = Vec::new();
        loop {
            self.uring.submit_and_wait(wait.saturating_sub(results.len())).expect("io_uring_enter");
            let results_of = |entry: io_uring::cqueue::Entry| (entry.user_data(), entry.result());
            results.extend(self.uring.completion().map(results_of));
            // An IOPOLL ring does not wait for workers.
            if results.len() >= wait {
                break results;
            }
        }
    }

    pub(crate) fn result(&mut self, entry: &Entry) -> i32 {
        self.results(std::slice::from_ref(entry), 1)[0].1
    }

    /// A fetch of the file's first bytes.
    pub(crate) fn get(&self, file: &(impl AsRawFd + ?Sized), len: u32, slot: u16) -> Entry {
        self.get_at(file, 0, len, slot)
    }

    pub(crate) fn get_at(
        &self,
        file: &(impl AsRawFd + ?Sized),
        offset: u64,
        len: u32,
        slot: u16,
    ) -> Entry {
        match self.lender {
            Lender::Opcode { .. } => self.get_buf(file, len, slot).offset(offset).build(),
            Lender::Module { .. } => fetch(self.device(), file.as_raw_fd(), offset, len, slot),
        }
    }

    /// The opcode's own request.
    pub(crate) fn get_buf(&self, file: &(impl AsRawFd + ?Sized), len: u32, slot: u16) -> GetBuf {
        let Lender::Opcode { get_buf, .. } = self.lender else { panic!("only the opcode has it") };
        GetBuf::new(get_buf, Fd(file.as_raw_fd()), len, slot)
    }

    pub(crate) fn put(&self, slot: u16) -> Entry {
        match self.lender {
            Lender::Opcode { put_buf, .. } => PutBuf::new(put_buf, slot).build(),
            Lender::Module { .. } => {
                let payload = [header(0, slot, 0, 1), 0];
                command(self.device(), sys::GETBUF_CMD_RELEASE, 0, 0, payload)
            }
        }
    }

    pub(crate) fn write(&self, file: &impl AsRawFd, from: u64, len: u32, slot: u16) -> Entry {
        ops::WriteFixed::new(Fd(file.as_raw_fd()), from as *const u8, len, slot)
            .offset(STREAM)
            .build()
    }

    pub(crate) fn read(&self, file: &impl AsRawFd, to: u64, len: u32, slot: u16) -> Entry {
        ops::ReadFixed::new(Fd(file.as_raw_fd()), to as *mut u8, len, slot).build()
    }

    /// Sends what the slots want sent, and takes events until none is left.
    pub(crate) fn events(&mut self, wait: usize) -> Vec<Event> {
        while let Some(outgoing) = self.slots.next_request() {
            if let Outgoing::Clear(clear) = outgoing {
                let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
                let index = u32::from(clear.index());
                // SAFETY: a null vector names no memory.
                unsafe { self.uring.submitter().register_buffers_update(index, &[none], None) }
                    .expect("updating the table");
                clear.done();
                continue;
            }
            // SAFETY: the slots are those of this ring, and get every completion.
            unsafe { outgoing.push(&mut self.uring.submission()) }.expect("the queue has room");
        }
        self.uring.submit_and_wait(wait).expect("io_uring_enter");
        let slots = &self.slots;
        self.uring
            .completion()
            .filter_map(|entry| slots.complete(entry.user_data(), entry.result(), entry.flags()))
            .collect()
    }

    pub(crate) fn fetch(&mut self, file: &impl AsRawFd, offset: u64, len: u32) -> Lease<Installed> {
        let (lease, request) =
            self.slots.fetch(Fd(file.as_raw_fd()), offset, len).expect("a free slot");
        // SAFETY: the file outlives the fetch, which is waited for.
        unsafe { request.push(&mut self.uring.submission()) }.expect("the queue has room");
        self.events(1);
        lease.installed().expect("the file can lend")
    }
}
