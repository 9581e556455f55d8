// SPDX-License-Identifier: MIT OR Apache-2.0
//! `docs/architecture.md` against the code: every step of a walk is a function that is there and that
//! a step before it calls, and the way to a request is short.
//!
//! A walk is a section whose heading begins with `## From`. Its steps are the first cells of tables,
//! written as `` `path/to/file.rs: function` ``. The part whose heading is [`TO_THE_SQE`] is counted.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command::root;

const DOCUMENT: &str = "docs/architecture.md";
/// The part of each walk whose length is limited.
const TO_THE_SQE: &str = "### From the slots to the SQE";
const MOST_FUNCTIONS: usize = 8;
const MOST_FILES: usize = 4;
/// Most files that each of these adds on the way down to the slots.
const ABOVE: [(&str, usize); 3] =
    [("cli/", 2), ("uring-getbuf/src/relay/", 3), ("uring-getbuf/src/ring/", 1)];
/// Nobody calls these by name.
const CALLED_BY_NOBODY: [&str; 2] = ["drop", "main"];

/// A step: where it is written, and what it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Step<'d> {
    line: usize,
    file: &'d str,
    function: &'d str,
}

/// A walk, and its parts by their headings.
#[derive(Debug)]
struct Walk<'d> {
    heading: &'d str,
    parts: Vec<(&'d str, Vec<Step<'d>>)>,
}

/// Compares the document with the code.
pub(crate) fn check() -> Result<()> {
    let text = fs::read_to_string(root().join(DOCUMENT)).context(DOCUMENT)?;
    let wrong = findings(&text, root());
    if !wrong.is_empty() {
        bail!("{DOCUMENT} and the code do not agree:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

/// What does not hold.
fn findings(text: &str, root: &Path) -> Vec<String> {
    let walks = walks(text);
    let mut wrong = Vec::new();
    if walks.len() < 3 {
        wrong.push(format!("{} walks (headings \"## From ...\"), and not three", walks.len()));
    }
    let mut sources = HashMap::new();
    for walk in &walks {
        let mut before: Vec<String> = Vec::new();
        for (heading, steps) in &walk.parts {
            for (place, step) in steps.iter().enumerate() {
                let Step { line, file, function } = *step;
                let source =
                    sources.entry(file).or_insert_with(|| fs::read_to_string(root.join(file)).ok());
                let Some(source) = source else {
                    wrong.push(format!("line {line}: there is no file {file}"));
                    continue;
                };
                let bodies = bodies(source, file, function);
                if bodies.is_empty() {
                    wrong.push(format!("line {line}: {file} has no function {function}"));
                }
                let is_first = place == 0 && *heading != TO_THE_SQE;
                if !is_first
                    && !CALLED_BY_NOBODY.contains(&function)
                    && !before.iter().any(|body| calls(body, function))
                {
                    wrong.push(format!("line {line}: no step before it calls {function}"));
                }
                before.extend(bodies);
            }
        }
        wrong.extend(too_long(walk));
    }
    wrong
}

/// What is longer than it may be.
fn too_long(walk: &Walk<'_>) -> Vec<String> {
    let heading = walk.heading;
    let Some(part) = walk.parts.iter().position(|(heading, _)| *heading == TO_THE_SQE) else {
        return vec![format!("{heading}: there is no part \"{TO_THE_SQE}\"")];
    };
    let mut wrong = Vec::new();
    let steps = &walk.parts[part].1;
    let functions: BTreeSet<_> = steps.iter().map(|step| (step.file, step.function)).collect();
    let files: BTreeSet<_> = steps.iter().map(|step| step.file).collect();
    for (what, count, most) in
        [("functions", functions.len(), MOST_FUNCTIONS), ("files", files.len(), MOST_FILES)]
    {
        if count > most {
            wrong.push(format!("{heading}: {count} {what} to the SQE, and {most} at most"));
        }
    }
    if !steps.first().is_some_and(|step| step.file.starts_with("uring-getbuf/src/slots/")) {
        wrong.push(format!("{heading}: the way to the SQE does not begin in the slots"));
    }
    for (room, most) in ABOVE {
        let above = walk.parts[..part].iter().flat_map(|(_, steps)| steps);
        let files: BTreeSet<_> =
            above.map(|step| step.file).filter(|file| file.starts_with(room)).collect();
        if files.len() > most {
            wrong.push(format!("{heading}: {} files of {room}, and {most} at most", files.len()));
        }
    }
    wrong
}

fn walks(text: &str) -> Vec<Walk<'_>> {
    let mut walks: Vec<Walk<'_>> = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("## ") {
            inside = line.starts_with("## From ");
            if inside {
                walks.push(Walk { heading: line, parts: vec![(line, Vec::new())] });
            }
        }
        let Some(walk) = walks.last_mut().filter(|_| inside) else { continue };
        if line.starts_with("### ") {
            walk.parts.push((line, Vec::new()));
        }
        if let Some((file, function)) = step(line)
            && let Some((_, steps)) = walk.parts.last_mut()
        {
            steps.push(Step { line: number + 1, file, function });
        }
    }
    walks
}

/// The step of a row.
fn step(line: &str) -> Option<(&str, &str)> {
    let cell = line.strip_prefix("| `")?.split_once('`')?.0;
    cell.split_once(": ")
}

fn is_of_a_name(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// The text of each function of this name, from its own line to its last.
fn bodies(source: &str, file: &str, function: &str) -> Vec<String> {
    let is_rust = Path::new(file).extension().is_some_and(|end| end == "rs");
    let lines: Vec<_> = source.lines().collect();
    let begins = |line: &str| {
        let line = line.trim_end();
        if line.trim_start().starts_with("//") {
            return false;
        }
        let head = if is_rust { format!("fn {function}") } else { format!("{function}(") };
        let Some(at) = line.find(&head) else { return false };
        let (before, after) = (&line[..at], &line[at + head.len()..]);
        if is_rust {
            !before.ends_with(is_of_a_name) && !after.starts_with(is_of_a_name)
        } else {
            // A definition begins in the first column, and is no declaration.
            !before.ends_with(is_of_a_name)
                && line.starts_with(is_of_a_name)
                && !line.ends_with(';')
        }
    };
    let starts = (0..lines.len()).filter(|place| begins(lines[*place]));
    starts
        .map(|start| {
            let first = lines[start];
            let end = format!("{}}}", &first[..first.len() - first.trim_start().len()]);
            let on_one_line = first.ends_with('}') || first.ends_with(';');
            let len = match lines[start..].iter().position(|line| line.trim_end() == end) {
                Some(last) if !on_one_line => last + 1,
                _ => 1,
            };
            lines[start..start + len].join("\n")
        })
        .collect()
}

/// Whether a function is called there. Its own head is no call.
fn calls(body: &str, function: &str) -> bool {
    body.match_indices(function).any(|(at, _)| {
        let (before, after) = (&body[..at], &body[at + function.len()..]);
        let called = after.starts_with('(') || after.starts_with("::<");
        called && !before.ends_with(is_of_a_name) && !before.ends_with("fn ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "\
impl Slots {
    /// As fn third(); a comment is no function.
    pub fn first(&self) {
        self.second(1);
    }

    fn second(&self, _: u32) {}
}
";

    fn document(steps: &[&str]) -> String {
        let mut text = String::new();
        for walk in ["a", "b", "c"] {
            text.push_str(&format!("## From {walk}\n\n| `cli/a.rs: main` | it begins |\n"));
            text.push_str(&format!("\n{TO_THE_SQE}\n\n| function | what |\n|---|---|\n"));
            for step in steps {
                text.push_str(&format!("| `uring-getbuf/src/slots/{step}` | does it |\n"));
            }
        }
        text
    }

    /// The first finding.
    fn finding(steps: &[&str]) -> Option<String> {
        let folder = std::env::temp_dir().join(format!(
            "getbuf-walk-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let slots = folder.join("uring-getbuf/src/slots");
        fs::create_dir_all(&slots).unwrap();
        fs::create_dir_all(folder.join("cli")).unwrap();
        fs::write(folder.join("cli/a.rs"), "fn main() {\n    slots.first();\n}\n").unwrap();
        for name in ["a.rs", "b.rs", "c.rs", "d.rs", "e.rs"] {
            fs::write(slots.join(name), CODE).unwrap();
        }
        let found = findings(&document(steps), &folder).into_iter().next();
        fs::remove_dir_all(&folder).unwrap();
        found
    }

    #[test]
    fn steps_are_functions_that_are_called() {
        assert_eq!(finding(&["a.rs: first", "a.rs: second"]), None);
        let third = finding(&["a.rs: first", "a.rs: third"]).unwrap();
        assert!(third.contains("a.rs has no function third"), "{third}");
        let file = finding(&["z.rs: first"]).unwrap();
        assert!(file.contains("no file uring-getbuf/src/slots/z.rs"), "{file}");
        let part = finding(&["a.rs: secon"]).unwrap();
        assert!(part.contains("no function secon"), "{part}");
        let order = finding(&["a.rs: second"]).unwrap();
        assert!(order.contains("no step before it calls second"), "{order}");
    }

    #[test]
    fn the_way_to_a_request_is_short() {
        let files = ["a.rs: first", "b.rs: second", "c.rs: second", "d.rs: second"];
        assert_eq!(finding(&files), None);
        let five = finding(&[&files[..], &["e.rs: second"]].concat()).unwrap();
        assert!(five.contains("5 files to the SQE, and 4 at most"), "{five}");
        let functions = ["a.rs", "b.rs", "c.rs", "d.rs"]
            .map(|file| [format!("{file}: first"), format!("{file}: second")]);
        let mut steps: Vec<_> = functions.iter().flatten().map(String::as_str).collect();
        assert_eq!(finding(&steps), None);
        steps.push("a.rs: main");
        let nine = finding(&steps).unwrap();
        assert!(nine.contains("no function main"), "{nine}");
        let walks = walks(&document(&steps)).iter().flat_map(too_long).next();
        assert_eq!(walks.unwrap(), "## From a: 9 functions to the SQE, and 8 at most");
    }

    #[test]
    fn walks_are_there() {
        assert!(findings("# Nothing\n", root())[0].contains("0 walks"));
        let text = "## From a\n\n| `xtask/src/walk.rs: walks` | |\n";
        let wrong = findings(text, root());
        assert!(wrong.iter().any(|line| line.contains("there is no part")), "{wrong:?}");
    }

    #[test]
    fn a_definition_in_c_is_no_call() {
        let source = "int other(void);\nstatic int one(int a)\n{\n\tother();\n\treturn a;\n}\n";
        assert_eq!(bodies(source, "a.c", "one").len(), 1);
        assert!(bodies(source, "a.c", "other").is_empty());
        assert!(calls(&bodies(source, "a.c", "one")[0], "other"));
    }
}
