// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the system gives little.

use super::*;

/// The usual limit of memory that may be locked is 8 MiB.
#[test]
fn what_is_not_asked_for_is_fitted_to_the_limit() {
    let place = Place::new(100_000);
    let (from, to) = (place.text("from"), place.text("to"));
    for option in [["--block-size", "4M"], ["--depth", "1024"]] {
        let command = [&["cp", &*from, &*to][..], &option].concat();
        // Root may lock any amount, unless that is taken from it.
        let limit = "ulimit -l 8192; [ $(id -u) != 0 ] || set -- \
                     setpriv --bounding-set=-ipc_lock -- \"$@\"; exec \"$@\"";
        let limited = Command::new("sh")
            .args(["-c", limit, "sh", env!("CARGO_BIN_EXE_getbuf")])
            .args(command)
            .output()
            .unwrap();
        success(&limited);
        place.is_copied("to");
    }
}
