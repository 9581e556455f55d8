// SPDX-License-Identifier: MIT OR Apache-2.0
//! Providers in C: a structure of function pointers, under the contract of `getbuf_uapi.h`.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

use uring_getbuf::Errno;
use uring_getbuf::provider::{Buffer, Provider, Region, Wanted};

use crate::abi::{GETBUF_PROVIDE_NOWAIT, getbuf_lease, getbuf_provider, iou_get_buf_info};
use crate::create::read_sized;
use crate::errors::{KeptErrno, Outcome, Told, number};
use crate::slots::getbuf;

type GetBuf = unsafe extern "C" fn(*mut c_void, *mut iou_get_buf_info) -> i64;

/// A provider in C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foreign {
    get_buf: GetBuf,
    context: *mut c_void,
}

impl Foreign {
    fn is(&self, other: &Self) -> bool {
        self.get_buf as usize == other.get_buf as usize && self.context == other.context
    }
}

impl Provider for Foreign {
    fn get_buf(&self, wanted: &mut Wanted<'_>) -> Result<usize, Errno> {
        let info = wanted.as_raw();
        // SAFETY: who gave us the function has promised that it keeps the contract.
        let bytes = unsafe { (self.get_buf)(self.context, info.cast::<iou_get_buf_info>()) };
        // SAFETY: the answer is where it was before the call.
        let desc = unsafe { (*info).desc };
        // SAFETY: as above.
        let desc = unsafe { &*desc };
        match usize::try_from(bytes) {
            Ok(_) if desc.nr_bvecs != 0 && desc.release.is_none() => Err(Errno::new(libc::EPROTO)),
            Ok(bytes) => Ok(bytes),
            // Every error number is small.
            Err(_) => Err(Errno::new((-bytes.max(-4095)) as c_int)),
        }
    }

    fn release(&self, mut buffer: Buffer<'_>) {
        let desc = buffer.as_raw();
        // SAFETY: it is the answer, which lives until this returns.
        if let Some(release) = unsafe { (*desc).release } {
            // SAFETY: the contract, as above.
            unsafe { release(desc) };
        }
    }
}

const NONE: getbuf_provider = getbuf_provider {
    size: 0,
    reserved0: 0,
    get_buf: None,
    context: std::ptr::null_mut(),
    reserved1: [0; 2],
};

/// Registers len bytes from base on with the ring, and keeps them pinned: leases of this memory
/// (getbuf_provide()) cost no system call. It must stay allocated until getbuf_destroy(). 0.
///
/// -EINVAL: NULL or a len of 0. -ENOSPC: getbuf_params.regions of them are taken. -ENOMEM: so much
/// cannot be pinned (RLIMIT_MEMLOCK). Others: as io_uring_register(2).
///
/// # Safety
///
/// `getbuf` is null or live, and used by nobody else now; the memory stays allocated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_add_region(
    getbuf: *mut getbuf,
    base: *mut c_void,
    len: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let Some(getbuf) = (unsafe { getbuf.as_mut() }) else { return -libc::EINVAL };
    let Some(base) = NonNull::new(base.cast::<u8>()).filter(|_| len > 0) else {
        return -libc::EINVAL;
    };
    let _errno = KeptErrno::new();
    if let Err(errno) = getbuf.clear_vacated() {
        return -errno;
    }
    // SAFETY: the caller's promise.
    let region = unsafe { Region::from_raw(base, len) };
    let ring = getbuf.ring;
    let added = getbuf.slots.add_region(&region, |entry, base, len| {
        ring.set(entry.into(), base, len).map_err(io::Error::from_raw_os_error)
    });
    added.map_err(number).told()
}

/// Asks a provider for up to len bytes at offset of it. How many there are, and the lease of them in
/// *lease, which can be used at once and is released as any other; 0: the provider has nothing
/// there, and there is no lease. data comes back in every event of the lease.
///
/// provider->get_buf is called now, and does what getbuf_uapi.h says of ->iou_get_buf: it fills
/// info->desc. desc->release is called once, with a descriptor that holds the same, when nobody uses
/// the bytes any more: in getbuf_complete(), getbuf_release() or getbuf_destroy(). Neither may call
/// functions of this library with the same struct getbuf. *provider is not needed after the call;
/// its context is, until the release.
///
/// Memory that is in no region is registered now, and unregistered after its release,
/// by getbuf_pending() or the next getbuf_provide(). A request takes bytes from one of the answer's vectors: one that
/// would go beyond it takes only the rest of it, as a short write does.
///
/// flags: GETBUF_PROVIDE_NOWAIT or 0.
///
/// -EINVAL: NULL, an unknown flag, a len of 0. -E2BIG: a provider of a newer version. -ENOBUFS: every
/// slot is taken. -ENOSPC: getbuf_params.regions are too few. -EPROTO: the answer contradicts itself:
/// more bytes than were wanted or than its vectors hold, more vectors than there was room for, no
/// release. Others: what the provider answered, and as io_uring_register(2).
///
/// # Safety
///
/// `getbuf` is null or live, and used by nobody else now; `provider` is null or points to as many
/// bytes as its `size` says, and its functions keep the contract; `lease` is null or can be written
/// to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_provide(
    getbuf: *mut getbuf,
    provider: *const getbuf_provider,
    offset: u64,
    len: u32,
    flags: u32,
    data: *mut c_void,
    lease: *mut getbuf_lease,
) -> c_int {
    // SAFETY: the caller's promise.
    let Some(getbuf) = (unsafe { getbuf.as_mut() }) else { return -libc::EINVAL };
    if provider.is_null() || lease.is_null() || flags & !GETBUF_PROVIDE_NOWAIT != 0 {
        return -libc::EINVAL;
    }
    let _errno = KeptErrno::new();
    // SAFETY: not null, and the caller's promise.
    let read = unsafe { read_sized(provider, size_of::<getbuf_provider>(), NONE) };
    let provided = read.and_then(|provider| {
        let (value, bytes) = getbuf.provide(&provider, offset, len, flags, data)?;
        // SAFETY: not null, and the caller's promise.
        unsafe { *lease = value };
        Ok(bytes)
    });
    provided.told()
}

impl getbuf {
    fn provide(
        &mut self,
        provider: &getbuf_provider,
        offset: u64,
        len: u32,
        flags: u32,
        data: *mut c_void,
    ) -> Outcome<(getbuf_lease, c_int)> {
        if (provider.reserved0, provider.reserved1) != (0, [0; 2]) {
            return Err(libc::EINVAL);
        }
        let get_buf = provider.get_buf.ok_or(libc::EINVAL)?;
        self.clear_vacated()?;
        let provider = self.provider(Foreign { get_buf, context: provider.context });
        let (ring, nowait) = (self.ring, flags & GETBUF_PROVIDE_NOWAIT != 0);
        let register = |entry: u16, base, len| {
            ring.set(entry.into(), base, len).map_err(io::Error::from_raw_os_error)
        };
        let provided = self.slots.fetch_provided(&provider, offset, len, nowait, register);
        Ok(match provided.map_err(number)? {
            None => (getbuf_lease::default(), 0),
            Some(lease) => {
                let bytes = lease.len() as c_int;
                (self.leases.provided(lease, data), bytes)
            }
        })
    }

    /// What earlier leases have left in the table makes room.
    fn clear_vacated(&self) -> Outcome {
        while let Some(clear) = self.slots.next_vacated() {
            match self.ring.clear(u32::from(clear.index()), 1) {
                // Somebody has unregistered the whole table: then the entry is empty.
                Ok(()) | Err(libc::ENXIO) => clear.done(),
                Err(errno) => return Err(errno),
            };
        }
        Ok(())
    }

    /// The one that was used last is not made anew.
    fn provider(&mut self, foreign: Foreign) -> Rc<dyn Provider> {
        match &self.provider {
            Some((last, provider)) if last.is(&foreign) => Rc::clone(provider),
            _ => {
                let provider: Rc<dyn Provider> = Rc::new(foreign);
                self.provider = Some((foreign, Rc::clone(&provider)));
                provider
            }
        }
    }
}
