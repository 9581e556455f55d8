// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies of files: what is copied, what is left alone, and what is said.

use super::*;

#[test]
fn files_of_every_awkward_length_are_copied() {
    for len in [0, 1, 4095, 4096, 4097, 65_536, 5_000_001] {
        let place = Place::new(len);
        let said = success(&place.cp(&["--block-size", "64K", "--depth", "4"]));
        place.is_copied("to");
        let bytes = if len == 1 { "byte" } else { "bytes" };
        assert!(said.contains(&format!("{len} {bytes}")), "{said}");
        assert!(said.contains("engine "), "{said}");
    }
}

#[test]
fn a_longer_file_is_replaced_as_a_whole() {
    let place = Place::new(1000);
    fs::write(place.path("to"), content(5000)).unwrap();
    success(&place.cp(&[]));
    place.is_copied("to");
}

#[test]
fn into_a_folder_under_its_own_name_and_with_its_permissions() {
    let place = Place::new(10);
    fs::set_permissions(place.path("from"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::create_dir(place.path("folder")).unwrap();
    success(&run(&["cp", &place.text("from"), &place.text("folder")]));
    place.is_copied("folder/from");
    let mode = fs::metadata(place.path("folder/from")).unwrap().permissions().mode();
    assert_eq!(mode & 0o700, 0o700, "{mode:o}");
    assert_eq!(mode & 0o007, 0, "{mode:o}");
}

#[test]
fn quiet_is_quiet() {
    let place = Place::new(10);
    let output = place.cp(&["--quiet"]);
    assert_eq!(success(&output), "");
    assert_eq!(output.stdout, b"");
}

#[test]
fn a_file_is_never_copied_onto_itself() {
    let place = Place::new(1000);
    symlink(place.path("from"), place.path("soft")).unwrap();
    fs::hard_link(place.path("from"), place.path("hard")).unwrap();
    let folder = place.folder.path().to_str().unwrap();
    for to in [&place.text("from"), &place.text("soft"), &place.text("hard"), folder] {
        let said = failure(&run(&["cp", &place.text("from"), to]), 1);
        assert!(said.contains("same file"), "{said}");
        place.is_copied("from");
    }
}

#[test]
fn what_cannot_be_read_leaves_the_destination_alone() {
    let place = Place::new(10);
    fs::write(place.path("to"), b"precious").unwrap();
    let folder = place.folder.path().to_str().unwrap();
    for (source, cause) in [(&*place.text("none"), "No such file"), (folder, "directory")] {
        let said = failure(&run(&["cp", source, &place.text("to")]), 1);
        assert!(said.contains(source) && said.contains(cause), "{said}");
        assert_eq!(fs::read(place.path("to")).unwrap(), b"precious");
        failure(&run(&["cp", source, &place.text("new")]), 1);
        assert!(!place.path("new").exists());
    }
}

#[test]
fn an_engine_that_does_not_work_leaves_the_destination_alone() {
    let probe = probe();
    let place = Place::new(10);
    fs::write(place.path("to"), b"precious").unwrap();
    for engine in ["opcode", "module"] {
        let says = &probe["engines"][engine];
        if says["available"] == true {
            success(&place.cp(&["--engine", engine]));
            place.is_copied("to");
            fs::write(place.path("to"), b"precious").unwrap();
            continue;
        }
        let said = failure(&place.cp(&["--engine", engine]), 1);
        assert!(said.contains(says["reason"].as_str().unwrap()), "{said}");
        assert_eq!(fs::read(place.path("to")).unwrap(), b"precious");
    }
    let said = success(&place.cp(&["--engine", "copy"]));
    assert!(said.contains("engine copy (1 copy)"), "{said}");
}

#[test]
fn numbers_that_make_no_sense_are_refused_by_name() {
    let place = Place::new(10);
    for (option, value, cause) in [
        ("--block-size", "0", "at least 1 byte"),
        ("--block-size", "3", "a multiple of 4096"),
        ("--block-size", "4097", "a multiple of 4096"),
        ("--block-size", "12Q", "number of bytes"),
        ("--block-size", "5000M", "at most 1024M"),
        ("--depth", "0", "1..=16384"),
        ("--depth", "x", "invalid digit"),
        ("--engine", "warp", "opcode, module and copy"),
    ] {
        let said = failure(&place.cp(&[option, value]), 2);
        assert!(said.contains(option) && said.contains(cause), "{said}");
        assert!(!place.path("to").exists());
    }
    let said = failure(&place.cp(&["--block-size", "1M", "--depth", "4096"]), 1);
    assert!(said.contains("at most 1024 blocks"), "{said}");
    assert!(!place.path("to").exists());
}

#[test]
fn a_full_disk_names_the_file_and_how_much_arrived() {
    let place = Place::new(100_000);
    let said = failure(&run(&["cp", &place.text("from"), "/dev/full"]), 1);
    for part in ["/dev/full", "No space left", "0 bytes arrived"] {
        assert!(said.contains(part), "{said}");
    }
}
