// SPDX-License-Identifier: MIT OR Apache-2.0
//! Signals.

use super::*;

#[test]
fn a_signal_ends_it_in_order() {
    let place = Place::new(0);
    for name in ["-INT", "-TERM"] {
        let mut child = getbuf()
            .args(["cp", "-", &place.text("to")])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&[7; 5000]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(100);
        while fs::metadata(place.path("to")).map_or(0, |now| now.len()) < 5000 {
            assert!(Instant::now() < deadline, "nothing arrives");
            thread::sleep(Duration::from_millis(5));
        }
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let said = failure(&output, 130);
        assert!(said.contains("interrupted; 5000 bytes arrived"), "{said}");
        fs::remove_file(place.path("to")).unwrap();
    }
}
