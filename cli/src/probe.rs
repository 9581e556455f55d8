// SPDX-License-Identifier: MIT OR Apache-2.0
//! `getbuf probe`

use serde_json::{Map, Value, json};
use uring_getbuf::slots::MAX_SLOTS;
use uring_getbuf::{Engine, Support};

use crate::end::End;
use crate::stdio::Output;

pub(crate) fn run(as_json: bool) -> Result<(), End> {
    let output = Output::open()?;
    let support = Support::detect();
    output.print(&if as_json { machine(&support) } else { human(&support) })
}

fn machine(support: &Support) -> String {
    let engines: Map<String, Value> = Engine::ALL
        .into_iter()
        .map(|engine| {
            let says = match support.engine(engine) {
                Ok(()) => json!({ "available": true, "copies": engine.copies() }),
                Err(reason) => json!({ "available": false, "reason": reason }),
            };
            (engine.name().to_string(), says)
        })
        .collect();
    let features = support.features();
    let known = |has| is_known(support, has).then_some(has);
    let opcodes = Some(support.claimed_opcodes()).filter(|opcodes| *opcodes > 0);
    let all = json!({
        "kernel": support.kernel(),
        "engines": engines,
        "best": support.best().ok().map(Engine::name),
        "get_buf_opcode": support.get_buf_opcode(),
        "put_buf_opcode": support.put_buf_opcode(),
        "claimed_opcodes": opcodes,
        "features": {
            "send_zc": known(features.send_zc),
            "writev_fixed": known(features.writev_fixed),
            "fixed_send": known(features.fixed_send),
            "linked_fetch": known(features.linked_fetch),
        },
        "limits": {
            "memlock_bytes": support.memlock_limit(),
            "slots": MAX_SLOTS,
        },
    });
    format!("{all:#}\n")
}

/// Whether something was found out: it is there, or the kernel could be asked. One that has rings and
/// claims no request was not.
fn is_known(support: &Support, has: bool) -> bool {
    has || support.is_known() && support.claimed_opcodes() > 0
}

fn human(support: &Support) -> String {
    let mut text = format!("{support}\n\n");
    let features = support.features();
    for (name, has, since) in [
        ("SEND_ZC", features.send_zc, "Linux 6.0"),
        ("WRITEV_FIXED", features.writev_fixed, "Linux 6.15"),
        ("SEND, fixed buffer", features.fixed_send, "Linux 7.2"),
        ("GET_BUF, linked", features.linked_fetch, "kernel/patches"),
    ] {
        let has = match (is_known(support, has), has) {
            // Nothing could be asked.
            (false, _) => "unknown".into(),
            (true, true) => "yes".into(),
            (true, false) => format!("no ({since})"),
        };
        text += &format!("{name:20}{has}\n");
    }
    let memlock = match support.memlock_limit() {
        Some(bytes) => format!("{} KiB", bytes >> 10),
        None => "unlimited".into(),
    };
    text += &format!("{:20}{memlock}\n", "RLIMIT_MEMLOCK");
    text
}
