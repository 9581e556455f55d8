// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ways to move bytes.

mod calls;
mod hand;
mod leases;
mod lent;
mod looks;
mod op_splice;
mod raw;
mod relayed;

use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use uring_getbuf::ring::Setup;
use uring_getbuf::{Engine, Ring, Support};

use crate::cases::{Axis, Case, Sink, Source};
use crate::ground::Ground;

/// A way that is set up on a ground.
pub(crate) trait Way {
    /// Moves so many blocks in each lane of its ground.
    fn run(&mut self, blocks: u64) -> Result<()>;
}

/// How leases are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Fetch, use and release are told one by one.
    Steps,
    /// As one chain.
    Chain,
}

/// How memory that a raw `GET_BUF` has fetched is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By `PUT_BUF`.
    Put,
    /// By the next fetch into its slot.
    Replaced,
    /// It was handed to its consumer, and goes with that.
    Linked,
}

/// What takes the bytes on a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Write,
    Send,
    SendZc,
}

/// A system call, or a pair of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Sendfile,
    Splice,
    CopyFileRange,
    ReadWrite,
}

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Lease {
        engine: Engine,
        form: Form,
        by: Use,
    },
    Relay(Engine),
    /// The copy engine's, with what is in the page cache copied by the calling thread.
    RelayHere,
    /// Requests by hand: `READ_FIXED` and what takes the bytes.
    Raw {
        form: Form,
        by: Use,
    },
    /// Requests by hand: `GET_BUF`, `WRITE_FIXED`, and what gives the memory back.
    RawGetBuf(End),
    OpSplice,
    Call(Call),
    /// `copy_out` from a lease.
    Look(Engine),
    /// `pread` from the file.
    Read,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Lease { engine, form, by } => {
                f.write_str(match form {
                    Form::Steps => "steps",
                    Form::Chain => "chain",
                })?;
                f.write_str(if by == Use::SendZc { " ZC, " } else { ", " })?;
                f.write_str(engine.name())
            }
            Self::Relay(engine) => write!(f, "relay, {engine}"),
            Self::RelayHere => f.write_str("relay on this thread, copy"),
            Self::Raw { by, .. } => f.write_str(match by {
                Use::Write => "raw READ+WRITE_FIXED",
                Use::Send => "raw READ_FIXED+SEND",
                Use::SendZc => "raw READ_FIXED+SEND_ZC",
            }),
            Self::RawGetBuf(end) => f.write_str(match end {
                End::Put => "raw GET_BUF, PUT_BUF",
                End::Replaced => "raw GET_BUF, replace",
                End::Linked => "raw GET_BUF, linked",
            }),
            Self::OpSplice => f.write_str("OP_SPLICE"),
            Self::Call(call) => f.write_str(match call {
                Call::Sendfile => "sendfile(2)",
                Call::Splice => "splice(2)",
                Call::CopyFileRange => "copy_file_range(2)",
                Call::ReadWrite => "read(2)+write(2)",
            }),
            Self::Look(engine) => write!(f, "copy_out, {engine}"),
            Self::Read => f.write_str("pread(2)"),
        }
    }
}

impl Kind {
    /// Every way that a point can be served, the library's own first.
    pub(crate) fn of(case: &Case) -> Vec<Self> {
        if case.sink == Sink::Memory {
            return Engine::ALL.into_iter().map(Self::Look).chain([Self::Read]).collect();
        }
        let chains = case.source == Source::File && case.axis != Axis::Sinks;
        let relay = matches!(case.axis, Axis::Block | Axis::Sinks);
        let by = if case.sink.is_socket() { Use::Send } else { Use::Write };
        let mut kinds = Vec::new();
        for engine in Engine::ALL {
            let lease = |form, by| Self::Lease { engine, form, by };
            kinds.push(lease(Form::Steps, by));
            if chains {
                kinds.push(lease(Form::Chain, by));
            }
            if case.sink == Sink::Tcp {
                let form = if chains { Form::Chain } else { Form::Steps };
                kinds.push(lease(form, Use::SendZc));
            }
            if relay {
                kinds.push(Self::Relay(engine));
                if engine == Engine::Copy && case.source == Source::File && case.sink == Sink::File
                {
                    kinds.push(Self::RelayHere);
                }
            }
        }
        let form = if chains { Form::Chain } else { Form::Steps };
        kinds.push(Self::Raw { form, by });
        if case.sink == Sink::Tcp {
            kinds.push(Self::Raw { form, by: Use::SendZc });
        }
        if chains && by == Use::Write {
            kinds.extend([End::Put, End::Replaced, End::Linked].map(Self::RawGetBuf));
        }
        if case.axis != Axis::Sinks {
            kinds.push(Self::OpSplice);
        }
        kinds.push(Self::Call(Call::Splice));
        kinds.push(Self::Call(Call::Sendfile));
        if case.source == Source::File && case.sink == Sink::File {
            kinds.push(Self::Call(Call::CopyFileRange));
        }
        kinds.push(Self::Call(Call::ReadWrite));
        kinds
    }

    /// The engine that it cannot do without.
    pub(crate) fn engine(self) -> Option<Engine> {
        match self {
            Self::Lease { engine, .. } | Self::Relay(engine) | Self::Look(engine) => Some(engine),
            Self::RawGetBuf(_) => Some(Engine::Opcode),
            Self::Raw { .. } | Self::RelayHere => Some(Engine::Copy),
            Self::OpSplice | Self::Call(_) | Self::Read => None,
        }
    }

    /// Sets it up.
    pub(crate) fn build(self, ground: &Arc<Ground>, support: &Support) -> Result<Box<dyn Way>> {
        let ground = Arc::clone(ground);
        Ok(match self {
            Self::Lease { engine, form, by } => {
                Box::new(leases::Leases::new(ground, engine, form, by)?)
            }
            Self::Relay(engine) => Box::new(relayed::Relayed::new(ground, engine, false)?),
            Self::RelayHere => Box::new(relayed::Relayed::new(ground, Engine::Copy, true)?),
            Self::Raw { form, by } => Box::new(raw::Raw::new(ground, form, by)?),
            Self::RawGetBuf(end) => Box::new(lent::Lent::new(ground, support, end)?),
            Self::OpSplice => Box::new(op_splice::OpSplice::new(ground)?),
            Self::Call(call) => Box::new(calls::Calls::new(ground, call)?),
            Self::Look(engine) => Box::new(looks::Looks::new(ground, engine)?),
            Self::Read => Box::new(looks::Reads::new(ground)),
        })
    }
}

/// Half of what is in flight: a way on a ring waits for so many completions at once.
const fn half(running: usize) -> usize {
    running.div_ceil(2)
}

/// The library's ring with the setup that costs least: `DEFER_TASKRUN`, since Linux 6.1.
fn ring(engine: Engine, slots: u16, block: u32, files: usize) -> Result<Ring> {
    let builder = Ring::builder().engine(engine).slots(slots).block_size(block);
    let builder = builder.files(u16::try_from(files)?);
    Ok(match builder.clone().setup(Setup::DeferTaskrun).build() {
        Ok(ring) => ring,
        Err(_) => builder.build()?,
    })
}
