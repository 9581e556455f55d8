// SPDX-License-Identifier: MIT OR Apache-2.0
//! The module engine: commands of `/dev/getbuf` on an unmodified kernel with the project's module.

use std::os::fd::AsRawFd;

use rustix::io::Errno as Os;
use uring_getbuf_sys as sys;

use super::{
    Emptied, Ending, Fetch, Found, Lent, Look, Needs, Origin, Refusal, Release, Room, Source,
    Traits, refused_by_lender,
};
use crate::error::Errno;
use crate::kernel::{Kernel, Version, open_device};
use crate::request::{
    Piece, Sqe, Target, module_bind, module_copy_out, module_fetch, module_query, module_release,
};

const DEVICE: &str = "/dev/getbuf";
/// The module copies this many bytes out of a lease with one command.
const MOST_COPIED: u32 = 4096;

pub(super) const NEEDS: Needs = Needs { slots: true, device: Some(DEVICE) };

pub(super) fn probe(kernel: &mut Kernel) -> Result<Found, String> {
    let device = match open_device(DEVICE) {
        Ok(device) => device,
        Err(Os::NOENT | Os::NXIO | Os::NODEV) if kernel.version < Version(7, 3) => {
            return Err(format!(
                "the module getbuf.ko needs Linux 7.3 or newer; this is {}",
                kernel.name
            ));
        }
        Err(Os::NOENT | Os::NXIO | Os::NODEV) => {
            return Err(format!(
                "there is no {DEVICE}: build and load this project's module (make -C \
                 kernel/module && sudo insmod kernel/module/getbuf.ko; or DKMS, see its README)"
            ));
        }
        Err(errno) => {
            let hint = match errno {
                Os::ACCESS => {
                    "; kernel/module/README.md says how to let more users than root have it"
                }
                _ => "",
            };
            let error = std::io::Error::from(errno);
            return Err(format!("{DEVICE} cannot be opened: {error}{hint}"));
        }
    };
    let mut query = sys::getbuf_query::default();
    let request = module_query(Target::Fd(device.as_raw_fd()), &raw mut query);
    match kernel.ask(request).map(Errno::check) {
        Some(Ok(_)) if query.version < sys::GETBUF_ABI_VERSION => Err(format!(
            "{DEVICE} speaks version {} of its interface and this library version {}: update \
             getbuf.ko",
            query.version,
            sys::GETBUF_ABI_VERSION
        )),
        Some(Ok(_)) if query.features & u64::from(sys::GETBUF_FEAT_BIND) == 0 => {
            Err(format!("{DEVICE} cannot bind sources, which this library needs: update getbuf.ko"))
        }
        Some(Ok(_)) => Ok(Found::default()),
        Some(Err(errno)) => Err(format!("{DEVICE} is not this project's device: {errno}")),
        None => Err("the ring used for the query failed".into()),
    }
}

pub(super) fn room(_: Found, device: Option<Target>, first: u16) -> Option<Box<dyn Room>> {
    Some(Box::new(Commands { device: device?, first }))
}

pub(super) fn attach(device: Target, source: i32) -> Option<Sqe> {
    Some(module_bind(device, source))
}

#[derive(Debug)]
struct Commands {
    device: Target,
    /// The table's index of slot 0.
    first: u16,
}

impl Room for Commands {
    fn origin(&self) -> Origin {
        Origin::Module
    }

    fn traits(&self) -> Traits {
        Traits {
            lent: true,
            emptied: Emptied::ByRequest,
            ending: Ending::Released,
            installs_empty: false,
        }
    }

    fn serves(&self, what: &Fetch) -> bool {
        // The module looks a descriptor up, and knows no registered file unless it is bound to one.
        let is_known =
            !matches!(what.source, Source { lent: Lent::Itself, file: Target::Fixed(_) });
        what.may_be_lent() && is_known
    }

    fn fetch(&self, slot: u16, what: &Fetch) -> Sqe {
        let (device, source) = match (what.source.lent, what.source.file) {
            (Lent::Bound(bound), _) => (bound, sys::GETBUF_FD_BOUND),
            (_, Target::Fd(fd)) => (self.device, fd),
            // It does not serve such a source, and the kernel would say so.
            (_, Target::Fixed(_)) => (self.device, -1),
        };
        module_fetch(device, source, what.offset, what.len, self.first + slot)
    }

    fn piece(&self, slot: u16, start: u32, len: u32) -> Piece {
        Piece { addr: start.into(), len, index: self.first + slot }
    }

    fn release(&self, slot: u16) -> Release {
        Release::Request(module_release(self.device, self.first + slot))
    }

    fn classify(&self, errno: Errno, offset: u64) -> Refusal {
        refused_by_lender(errno, offset)
    }

    fn look(&self, _: u16, _: u32, _: &mut [u8]) -> Look {
        Look::Command { most: MOST_COPIED }
    }

    fn look_command(&self, slot: u16, start: u32, len: u32, to: u64) -> Option<Sqe> {
        Some(module_copy_out(self.device, self.first + slot, start, to, len))
    }
}
