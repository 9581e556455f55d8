// SPDX-License-Identifier: MIT OR Apache-2.0
//! Holes of sparse files.

use std::os::unix::fs::{FileExt, MetadataExt};

use super::*;

const MIB: u64 = 1 << 20;

/// A file of this length with data at these places.
fn sparse(place: &Place, name: &str, len: u64, data: &[(u64, usize)]) -> Vec<u8> {
    let file = File::create(place.path(name)).unwrap();
    file.set_len(len).unwrap();
    let mut whole = vec![0; len as usize];
    for &(at, count) in data {
        let bytes = content(count);
        file.write_all_at(&bytes, at).unwrap();
        whole[at as usize..][..count].copy_from_slice(&bytes);
    }
    whole
}

/// Bytes that a file takes on the disk.
fn taken(place: &Place, name: &str) -> u64 {
    fs::metadata(place.path(name)).unwrap().blocks() * 512
}

#[test]
fn holes_are_kept() {
    let place = Place::new(0);
    let cases: [(u64, &[(u64, usize)]); 7] = [
        (16 * MIB, &[]),
        (16 * MIB, &[(0, 5000)]),
        (16 * MIB, &[(8 * MIB, 5000)]),
        (16 * MIB, &[(16 * MIB - 5000, 5000)]),
        (16 * MIB + 1, &[(0, 70_000), (5 * MIB + 3, 300_000), (12 * MIB, 1)]),
        (1, &[(0, 1)]),
        (16 * MIB, &[(0, 16 << 20)]),
    ];
    for (len, data) in cases {
        let whole = sparse(&place, "sparse", len, data);
        let before = taken(&place, "sparse");
        if data.is_empty() && before > 0 {
            println!("skipped: this file system has no holes");
            return;
        }
        // In place of what is there as well.
        for _ in 0..2 {
            let said = success(&run(&["cp", &place.text("sparse"), &place.text("to")]));
            assert!(fs::read(place.path("to")).unwrap() == whole, "{data:?}: {said}");
            let after = taken(&place, "to");
            assert!(after <= before + MIB, "{data:?}: {after} for {before} bytes: {said}");
            assert_eq!(said.contains("of holes"), before < len / 2, "{said}");
        }
        success(&run(&["cp", &place.text("sparse"), &place.text("to"), "--no-holes", "-q"]));
        assert!(fs::read(place.path("to")).unwrap() == whole);
        assert!(taken(&place, "to") >= len / 2, "{data:?}");
        // Where others may have written, holes are zeros.
        let output = run(&["cp", &place.text("sparse"), "-"]);
        success(&output);
        assert!(output.stdout == whole, "{data:?}");
    }
}

/// What is interrupted behind a hole keeps it.
#[test]
fn a_copy_with_holes_that_is_interrupted_is_cut_to_what_is_right() {
    let place = Place::new(0);
    let whole = sparse(&place, "sparse", 9 * MIB, &[(0, 5000), (8 * MIB, 1 << 20)]);
    // A signal comes when it comes. Here the limit of a file's size ends it.
    let limit = 8 * MIB / 512 + 1000;
    let script = format!("ulimit -f {limit}; exec \"$getbuf\" cp sparse to --block-size 64K");
    let said = failure(&shell(&place, &script), 1);
    let got = fs::read(place.path("to")).unwrap();
    assert!(got.len() as u64 > 8 * MIB, "{said}");
    assert!(got == whole[..got.len()], "{said}");
    assert!(said.contains(&format!("{} bytes arrived", got.len())), "{said}");
    assert!(taken(&place, "to") < 2 * MIB, "{said}");
}

#[test]
fn help_says_what_becomes_of_holes() {
    let help = String::from_utf8(run(&["cp", "--help"]).stdout).unwrap();
    assert!(help.contains("--no-holes") && help.contains("Holes"), "{help}");
}
