// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can this kernel do?

#![expect(non_camel_case_types, reason = "the names that C sees")]

use std::ffi::{CString, c_char, c_int};

use uring_getbuf::{Engine, Origin, Support};

use crate::abi::{
    GETBUF_ENGINE_ANY, GETBUF_ENGINE_COPY, GETBUF_ENGINE_MODULE, GETBUF_ENGINE_OPCODE,
    GETBUF_ENGINE_PROVIDER,
};
use crate::errors::{KeptErrno, Outcome, Told, number};
use crate::live::Live;

/// What the running kernel offers.
#[derive(Debug)]
pub struct getbuf_probe {
    pub(crate) support: Support,
    /// In the order of `Engine::ALL`; empty where the engine works.
    reasons: [CString; Engine::ALL.len()],
    text: CString,
}

static LIVE: Live = Live::new();

/// The numbers that C has for them.
const NUMBERS: [(u32, Origin); 4] = [
    (GETBUF_ENGINE_OPCODE, Origin::Opcode),
    (GETBUF_ENGINE_MODULE, Origin::Module),
    (GETBUF_ENGINE_COPY, Origin::Copy),
    (GETBUF_ENGINE_PROVIDER, Origin::Provided),
];

pub(crate) fn engine(number: u32) -> Option<Engine> {
    Engine::ALL.into_iter().find(|engine| engine_number(*engine) == number)
}

pub(crate) fn engine_number(engine: Engine) -> u32 {
    origin_number(engine.into())
}

pub(crate) fn origin_number(origin: Origin) -> u32 {
    let number = NUMBERS.iter().find(|(_, other)| *other == origin).map(|(number, _)| *number);
    number.unwrap_or(GETBUF_ENGINE_ANY)
}

/// Finds out what the running kernel offers, by a few harmless requests on a ring of its own. 0,
/// and what was found in *probe, to be freed by getbuf_probe_free().
///
/// -EINVAL: probe is NULL. What the kernel does not offer is no error.
///
/// # Safety
///
/// `probe` is null or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_probe(probe: *mut *mut getbuf_probe) -> c_int {
    if probe.is_null() {
        return -libc::EINVAL;
    }
    let _errno = KeptErrno::new();
    let support = Support::detect();
    // None of the texts has a NUL in it.
    let text = |text: &str| CString::new(text).unwrap_or_default();
    let found = getbuf_probe {
        reasons: Engine::ALL.map(|engine| text(support.engine(engine).err().unwrap_or_default())),
        text: text(&support.to_string()),
        support,
    };
    // SAFETY: the caller's promise.
    unsafe { *probe = LIVE.give(found) };
    0
}

/// Frees it. 0; -EINVAL if it is none or has been freed. NULL is fine.
///
/// # Safety
///
/// Nobody uses it at the same time or afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_probe_free(probe: *mut getbuf_probe) -> c_int {
    if probe.is_null() {
        return 0;
    }
    LIVE.take(probe).map(drop).told()
}

/// Whether an engine (GETBUF_ENGINE_*) works here: 0, or -EOPNOTSUPP and getbuf_probe_reason()
/// says why. GETBUF_ENGINE_ANY: the number of the best one, which is positive.
///
/// -EINVAL: probe is NULL, or there is no such engine. -ENOMEM, -EMFILE, -ENFILE: it is not known,
/// there was no memory (RLIMIT_MEMLOCK) or no descriptor to look with.
///
/// # Safety
///
/// `probe` is null or what [`getbuf_probe()`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_probe_engine(probe: *const getbuf_probe, engine: u32) -> c_int {
    // SAFETY: the caller's promise.
    let Some(probe) = (unsafe { probe.as_ref() }) else { return -libc::EINVAL };
    works(&probe.support, engine).told()
}

fn works(support: &Support, number_of: u32) -> Outcome<c_int> {
    if number_of == GETBUF_ENGINE_ANY {
        return support.best().map(|engine| engine_number(engine) as c_int).map_err(number);
    }
    let engine = engine(number_of).ok_or(libc::EINVAL)?;
    support.require(engine).map(|()| 0).map_err(number)
}

/// Why an engine does not work here and what to do about it, for a person to read; "" if it works.
/// NULL if probe is NULL or there is no such engine. Valid as long as probe.
///
/// # Safety
///
/// `probe` is null or what [`getbuf_probe()`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_probe_reason(
    probe: *const getbuf_probe,
    engine: u32,
) -> *const c_char {
    // SAFETY: the caller's promise.
    let Some(probe) = (unsafe { probe.as_ref() }) else { return std::ptr::null() };
    let place = Engine::ALL.into_iter().position(|known| engine_number(known) == engine);
    let reason = place.and_then(|place| probe.reasons.get(place));
    reason.map_or(std::ptr::null(), |reason| reason.as_ptr())
}

/// All of it in a few lines, for a person to read. NULL if probe is NULL. Valid as long as probe.
///
/// # Safety
///
/// `probe` is null or what [`getbuf_probe()`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_probe_text(probe: *const getbuf_probe) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { probe.as_ref() }.map_or(std::ptr::null(), |probe| probe.text.as_ptr())
}

/// The number that this kernel gives to GET_BUF, for getbuf_prep.h; -EOPNOTSUPP if it has none,
/// -EINVAL if probe is NULL.
///
/// # Safety
///
/// `probe` is null or what [`getbuf_probe()`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_probe_get_buf(probe: *const getbuf_probe) -> c_int {
    // SAFETY: the caller's promise.
    let Some(probe) = (unsafe { probe.as_ref() }) else { return -libc::EINVAL };
    probe.support.get_buf_opcode().map_or(-libc::EOPNOTSUPP, c_int::from)
}

/// The number that this kernel gives to PUT_BUF, for getbuf_prep.h; -EOPNOTSUPP if it has none,
/// -EINVAL if probe is NULL.
///
/// # Safety
///
/// `probe` is null or what [`getbuf_probe()`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_probe_put_buf(probe: *const getbuf_probe) -> c_int {
    // SAFETY: the caller's promise.
    let Some(probe) = (unsafe { probe.as_ref() }) else { return -libc::EINVAL };
    probe.support.put_buf_opcode().map_or(-libc::EOPNOTSUPP, c_int::from)
}
