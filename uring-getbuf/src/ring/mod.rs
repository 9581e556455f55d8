// SPDX-License-Identifier: MIT OR Apache-2.0
//! The safe driver: owns the io_uring, the slots and the attached files.
//!
//! Every request is *queued* by a method and sent by [`submit`](Ring::submit) or
//! [`wait`](Ring::wait); what came of it is told by [`next_event`](Ring::next_event). The methods
//! whose names begin with `wait_`, and [`write_all`](Ring::write_all) and
//! [`send_all`](Ring::send_all), do all of that for one request and block.
//!
//! # In another event loop
//!
//! The ring is an [`AsFd`](std::os::fd::AsFd): its descriptor polls readable when there is something
//! to do. Then call [`submit`](Ring::submit), which never blocks, and take events until there are none. See
//! [`Setup::DeferTaskrun`] for what that takes with older kernels.
//!
//! # How to wait
//!
//! | for | call |
//! |---|---|
//! | nothing: send, and go on | [`submit`](Ring::submit) |
//! | any events | [`wait`](Ring::wait), [`wait_timeout`](Ring::wait_timeout), then [`next_event`](Ring::next_event) |
//! | one fetch | [`wait_installed`](Ring::wait_installed) |
//! | one consumer | [`wait_used`](Ring::wait_used) |
//! | one chain | [`wait_chain`](Ring::wait_chain) |
//!
//! # Together with other requests
//!
//! [`push`](Ring::push) queues any other request; its completion is an
//! [`Event::Foreign`](crate::slots::Event::Foreign).
//!
//! # What happens when
//!
//! | | |
//! |---|---|
//! | a lease is dropped | its slot is emptied with the next submission, also while requests use it |
//! | a lease is forgotten | its slot is lost until the ring is dropped |
//! | an attached file is dropped | it is detached when its last request has completed |
//! | the ring is dropped | its requests are cancelled; leases that are left name nothing |
//! | a source has nothing yet, a sink is full | the request waits in the kernel, without a thread, until it can go on, is cancelled, or its [time](Ring::within) is over |
//! | a request is cancelled | it completes with `ECANCELED`; its slot comes back as ever |
//! | somebody unregisters the ring's buffers | requests fail with `EFAULT`; nothing else |

mod builder;
mod copy_out;
mod drive;
mod files;
mod provide;
mod requests;
mod wait;
mod within;

pub use builder::{Builder, Setup};
pub(crate) use drive::OWN_TOKENS;
pub use drive::{MAX_TOKEN, Ring};
pub use files::Attached;
pub(crate) use files::RingId;
pub(crate) use requests::Use;
pub use within::Within;
