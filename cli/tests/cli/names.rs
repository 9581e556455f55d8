// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names: of files that are the same, and of files that would order a terminal about.

use super::*;

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Both ends would be waited for.
#[test]
fn a_pipe_is_not_copied_into_itself() {
    let place = Place::new(10);
    make_fifo(&place.path("fifo"));
    symlink(place.path("fifo"), place.path("link")).unwrap();
    fs::create_dir(place.path("folder")).unwrap();
    fs::hard_link(place.path("fifo"), place.path("folder/fifo")).unwrap();
    for command in [
        "cp fifo fifo",
        "cp fifo link",
        "cp ./fifo folder",
        "cp fifo .",
        "cp - fifo <>fifo",
        "cp fifo - 1<>fifo",
        "cp - - <>fifo >&0",
    ] {
        let script = format!("timeout 20 \"$getbuf\" {command}");
        let said = failure(&shell(&place, &script), 1);
        assert!(said.contains("the same file"), "{command}: {said}");
    }
    // Two of them are not the same.
    make_fifo(&place.path("other"));
    let script = "timeout 20 cat from > fifo & timeout 20 cat other > to & \
                  timeout 20 \"$getbuf\" cp fifo other; wait";
    success(&shell(&place, script));
    place.is_copied("to");
}

/// Escapes of a terminal, a line of its own, and one that turns what follows around.
#[test]
fn control_characters_of_names_are_shown() {
    let place = Place::new(10);
    for (bad, shown) in [
        ("a\x1b[2Jb", "a\\u{1b}[2Jb"),
        ("a\rgetbuf, all is well\n", "a\\rgetbuf, all is well\\n"),
        ("a\u{9b}31mb", "a\\u{9b}31mb"),
        ("a\u{202e}txt.exe", "a\\u{202e}txt.exe"),
        ("a\x07\x7f", "a\\u{7}\\u{7f}"),
    ] {
        let path = place.text(bad);
        let from = place.text("from");
        fs::create_dir(&path).unwrap();
        let missing = format!("{path}/none");
        let address = format!("{bad}:9");
        for arguments in [
            &["cp", &*missing, "to"][..],
            &["cp", &path, "to"],
            &["cp", "-", &path],
            &["cp", &from, &format!("{path}/none/to")],
            &["send", &missing, "127.0.0.1:9"],
            &["send", &from, &address, "--patience", "1"],
            &["bench", "look", "--json", &path],
            &["bench", "look", "--dir", &missing],
        ] {
            let output = run(arguments);
            let said = failure(&output, 1);
            assert!(said.contains(shown), "{arguments:?}: {said}");
            let obeyed = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
            assert!(!said.contains(obeyed), "{arguments:?}: {said:?}");
            assert!(said.ends_with('\n') && !said.contains("\ngetbuf, all is well"), "{said:?}");
        }
    }
}
