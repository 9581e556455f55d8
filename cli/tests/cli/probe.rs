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

/// Whoever builds the module for a kernel that is too old is told so, and not by the compiler.
#[test]
fn the_module_says_which_kernel_it_needs() {
    let module = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernel/module");
    let make = |target: &str, more: &[String]| {
        Command::new("make").args(["-C", module, target]).args(more).output()
    };
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("include/config");
    fs::create_dir_all(&config).unwrap();
    for (release, good) in [
        ("6.18.44", false),
        ("7.2.12-generic", false),
        ("7.3.0-rc1", true),
        ("7.3.4+deb13-amd64", true),
        ("7.10.1", true),
        ("10.0.0", true),
    ] {
        fs::write(config.join("kernel.release"), format!("{release}\n")).unwrap();
        let Ok(output) = make("supported", &[format!("KDIR={}", folder.path().display())]) else {
            println!("skipped: there is no make");
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.success(), good, "{release}: {said}");
        let told = said.contains(&format!("needs Linux 7.3 or newer; this is {release}\n"));
        assert_eq!(told, !good, "{release}: {said}");
    }
    let kernel = probe()["kernel"].as_str().unwrap().to_owned();
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    if (next(), next()) < (7, 3) {
        let output = make("modules", &[]).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(said.contains(&format!("needs Linux 7.3 or newer; this is {kernel}")), "{said}");
    } else {
        println!("skipped: this kernel is new enough");
    }
    let missing = folder.path().join("none");
    let output = make("supported", &[format!("KDIR={}", missing.display())]).unwrap();
    assert!(!output.status.success());
}
