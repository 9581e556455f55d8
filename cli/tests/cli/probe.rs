// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the program says of the kernel and of itself.

use super::*;

#[test]
fn the_probe_gives_a_reason_for_everything_that_does_not_work() {
    let probe = probe();
    assert!(probe["kernel"].as_str().is_some_and(|kernel| !kernel.is_empty()));
    for engine in ["opcode", "module", "copy"] {
        let says = &probe["engines"][engine];
        let reason = says["reason"].as_str();
        assert_eq!(says["available"] == false, reason.is_some_and(|reason| reason.len() > 20));
    }
    assert_eq!(probe["engines"]["copy"]["available"], true);
    let opcode = &probe["engines"]["opcode"];
    assert_eq!(opcode["available"] == true, probe["get_buf_opcode"].is_u64());
    // On mainline since 6.7 the kernel's own probe claims the RFC's number.
    if opcode["available"] == false && probe["claimed_opcodes"].as_u64() > Some(49) {
        assert!(opcode["reason"].as_str().unwrap().contains("READ_MULTISHOT"), "{opcode}");
    }
    let output = run(&["probe"]);
    success(&output);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(probe["kernel"].as_str().unwrap()) && text.contains("RLIMIT_MEMLOCK"));
}

#[test]
fn help_has_examples_and_the_version_is_there() {
    for command in ["probe", "cp", "send"] {
        let output = run(&[command, "--help"]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("Example"), "{command}");
    }
    let output = run(&["--version"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains(env!("CARGO_PKG_VERSION")));
    assert!(!Path::new("--version").exists());
    failure(&run(&[]), 2);
    failure(&run(&["cp", "only-one"]), 2);
}
