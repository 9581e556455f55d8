// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a kernel's log says about a test run.

/// The guest writes this when the command starts, and [`END`] when it is done.
pub(super) const BEGIN: &str = "getbuf: the command begins";
pub(super) const END: &str = "getbuf: the command has ended";

/// How the kernel says that something is wrong.
const ALARMS: [&str; 19] = [
    "BUG:",
    "WARNING:",
    "KASAN:",
    "Oops",
    "Kernel panic",
    "general protection fault",
    "UBSAN:",
    "INFO: task",
    "INFO: possible",
    "INFO: trying to register non-static key",
    "INFO: rcu",
    "rcu: INFO:",
    "possible recursive locking",
    "inconsistent lock state",
    "suspicious RCU usage",
    "refcount_t:",
    "Bad page state",
    "suspected memory leak",
    "Out of memory:",
];

/// Alarms of the kernel's own, as released, that say nothing about the tests. The list must not
/// grow.
const KNOWN: [&str; 1] = [
    // User-mode Linux with several CPUs and RCU lockdep, once.
    "Callback enqueued on offline CPU",
];

/// How many lines of the log are shown for an alarm.
const LINES: usize = 12;

/// The alarms between the two marks, each with some lines that follow it. Before the first mark the
/// kernel boots; if there is none, all of the log counts.
pub(super) fn findings(log: &str) -> Vec<String> {
    let lines: Vec<_> = log.lines().map(str::trim_end).collect();
    let mark = |mark| lines.iter().position(|line| line.ends_with(mark));
    let lines = &lines[mark(BEGIN).unwrap_or(0)..mark(END).unwrap_or(lines.len())];
    let mut findings = Vec::new();
    let mut next = 0;
    for (number, line) in lines.iter().enumerate() {
        let alarm = ALARMS.iter().any(|alarm| line.contains(alarm));
        if !alarm || number < next {
            continue;
        }
        let shown = &lines[number..lines.len().min(number + LINES)];
        next = number + LINES;
        if !shown.iter().any(|line| KNOWN.iter().any(|known| line.contains(known))) {
            findings.push(format!("the guest's log: {}", shown.join("\n      ")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_between_the_marks_count() {
        let log = "WARNING: boot\n[1] getbuf: the command begins\nall is well\nBUG: x\nat y\n\
                   [2] getbuf: the command has ended\nBUG: exit\n";
        let findings = findings(log);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains("BUG: x") && findings[0].contains("at y"));
        assert!(super::findings("no mark\nKernel panic - not syncing").len() == 1);
    }

    #[test]
    fn what_is_known_does_not_count() {
        let log = "WARNING: CPU: 0\nCallback enqueued on offline CPU 1!!\n";
        assert!(findings(log).is_empty());
    }
}
