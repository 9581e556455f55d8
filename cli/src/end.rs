// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a command ends when it does not succeed, and what it says to the person in front of it.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

/// A shell says that a program was ended by a signal by the signal's number above this.
const SIGNALLED: i32 = 128;

/// Why a command ended, in words, and the exit code that says so.
#[derive(Debug)]
pub(crate) struct End {
    message: Option<String>,
    code: u8,
}

impl End {
    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self { message: Some(message.to_string()), code: 1 }
    }

    /// By this signal.
    pub(crate) fn interrupted(signal: i32, message: impl fmt::Display) -> Self {
        let code = u8::try_from(SIGNALLED + signal).unwrap_or(1);
        Self { message: Some(message.to_string()), code }
    }

    /// Whoever reads the output has gone: nobody is left to tell.
    pub(crate) fn quietly() -> Self {
        Self { message: None, code: 1 }
    }

    pub(crate) fn report(self) -> ExitCode {
        self.say();
        ExitCode::from(self.code)
    }

    /// Tells the person of it, where the command goes on.
    pub(crate) fn say(&self) {
        if let Some(message) = &self.message {
            say(format_args!("getbuf: {message}"));
        }
    }
}

/// A line for the person, whose control characters are shown and not obeyed: names of files and hosts
/// have any. Nothing is lost but the line where nobody takes it; `eprintln!` would
/// panic, and turn a copy that succeeded into a failure.
pub(crate) fn say(line: impl fmt::Display) {
    let line = escaped(&line.to_string());
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn escaped(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    for c in line.chars() {
        if is_obeyed(c) { text.extend(c.escape_default()) } else { text.push(c) }
    }
    text
}

/// Whether a terminal does something else than to show it. Some order what is beside them anew.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        for plain in ["plain", "Ünï ©ode", "", "\\ is itself"] {
            assert_eq!(escaped(plain), plain);
        }
        assert_eq!(escaped("a\x1b[2Jb\n\r\t\x7f"), "a\\u{1b}[2Jb\\n\\r\\t\\u{7f}");
        assert_eq!(escaped("\u{9b}1m\u{202e}txt"), "\\u{9b}1m\\u{202e}txt");
    }
}
