// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask api`: everything public of the libraries, as text that is checked in.
//!
//! rustdoc writes the interface as JSON, and the crate `public-api` turns that into signatures. Both
//! are made for nightly compilers; a stable one does it too when `RUSTC_BOOTSTRAP` is set.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::{cargo, find, output, root, run, target_directory};

/// The libraries whose interface is checked in.
const LIBRARIES: [&str; 2] = ["uring-getbuf", "uring-getbuf-sys"];

/// The versions of rustdoc's JSON that `public-api` reads, and makes the same text of.
const FORMATS: RangeInclusive<u64> = 57..=59;

/// What rustdoc needs to be told to write JSON.
const JSON: [&str; 3] = ["-Zunstable-options", "--output-format=json", "--document-hidden-items"];

/// A compiler whose rustdoc writes what can be read.
#[derive(Debug)]
pub(crate) enum Toolchain {
    /// The one that builds this program.
    Own,
    /// A nightly one of rustup's.
    Nightly(String),
}

impl Toolchain {
    /// The first that can, or why none can.
    pub(crate) fn find() -> Result<Self, String> {
        let mut why = Vec::new();
        for toolchain in [Some(Self::Own), Self::nightly()].into_iter().flatten() {
            match toolchain.try_out() {
                Ok(format) if FORMATS.contains(&format) => return Ok(toolchain),
                Ok(format) => why.push(format!(
                    "{} writes format {format}, and {FORMATS:?} can be read",
                    toolchain.name()
                )),
                Err(error) => why.push(format!("{}: {error:#}", toolchain.name())),
            }
        }
        Err(format!("no rustdoc here writes JSON that can be read: {}", why.join("; ")))
    }

    fn nightly() -> Option<Self> {
        let toolchains = output(Command::new(find("rustup")?).args(["toolchain", "list"])).ok()?;
        let name = toolchains.split_whitespace().find(|name| name.starts_with("nightly"))?;
        Some(Self::Nightly(name.to_owned()))
    }

    fn name(&self) -> &str {
        match self {
            Self::Own => "rustdoc",
            Self::Nightly(name) => name,
        }
    }

    fn program(&self, program: &str) -> Command {
        let mut command = match self {
            Self::Own if program == "cargo" => cargo(&[]),
            Self::Own => Command::new(program),
            Self::Nightly(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, program]).current_dir(root());
                command.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC").env_remove("CARGO");
                command
            }
        };
        if let Self::Own = self {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    /// The version of what rustdoc writes, of a crate of nothing.
    fn try_out(&self) -> Result<u64> {
        let folder = folder()?;
        fs::create_dir_all(&folder)?;
        let source = folder.join("nothing.rs");
        fs::write(&source, "")?;
        let mut rustdoc = self.program("rustdoc");
        let result = rustdoc.args(JSON).arg("--out-dir").arg(&folder).arg(&source);
        let result = result.stdin(Stdio::null()).output().context("running rustdoc")?;
        if !result.status.success() {
            let said = String::from_utf8_lossy(&result.stderr);
            bail!("{}", said.lines().next().unwrap_or("it fails"));
        }
        let written = read(&folder.join("nothing.json"))?;
        written["format_version"].as_u64().context("its JSON has no version")
    }

    /// Where the JSON of a library is, after it was written.
    fn document(&self, library: &str) -> Result<PathBuf> {
        let mut doc = self.program("cargo");
        doc.args(["rustdoc", "--quiet", "--lib", "--locked", "--package", library]);
        // What builds with this environment is built anew by what builds without it.
        doc.arg("--target-dir").arg(folder()?);
        // Links are the business of the documents that people read.
        run(doc.arg("--").args(JSON).arg("--cap-lints=allow"))?;
        Ok(folder()?.join("doc").join(library.replace('-', "_")).with_extension("json"))
    }
}

fn folder() -> Result<PathBuf> {
    Ok(Path::new(&target_directory()?).join("api"))
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn snapshot(library: &str) -> PathBuf {
    root().join("docs/api").join(library).with_extension("txt")
}

/// Writes the snapshots.
pub(crate) fn write(toolchain: &Toolchain) -> Result<()> {
    for library in LIBRARIES {
        let path = snapshot(library);
        fs::create_dir_all(path.parent().context("it is in a folder")?)?;
        fs::write(path, text(library, &toolchain.document(library)?)?)?;
    }
    Ok(())
}

/// Compares the snapshots with what is there now, and prints where they differ.
pub(crate) fn check(toolchain: &Toolchain) -> Result<()> {
    let mut differ = Vec::new();
    for library in LIBRARIES {
        let path = snapshot(library);
        let then = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let now = text(library, &toolchain.document(library)?)?;
        if then != now {
            print!("{}", difference(&then, &now));
            differ.push(library);
        }
    }
    if !differ.is_empty() {
        bail!(
            "the public interface of {} is not the one in docs/api: look at each line of the \
             difference, then write it with `cargo xtask api`",
            differ.join(" and ")
        );
    }
    Ok(())
}

/// Lines that are gone, and lines that are new.
fn difference(then: &str, now: &str) -> String {
    let lines = |text: &'_ str| text.lines().map(str::to_owned).collect::<HashSet<_>>();
    let (before, after) = (lines(then), lines(now));
    let mut difference = String::new();
    let gone = then.lines().filter(|line| !after.contains(*line)).map(|line| ('-', line));
    let new = now.lines().filter(|line| !before.contains(*line)).map(|line| ('+', line));
    for (sign, line) in gone.chain(new) {
        let _ = writeln!(difference, "{sign} {line}");
    }
    if difference.is_empty() {
        difference.push_str("  other empty lines, or another order\n");
    }
    difference
}

/// The interface in the JSON as text.
fn text(library: &str, json: &Path) -> Result<String> {
    let api = public_api::Builder::from_rustdoc_json(json).omit_blanket_impls(true);
    let api = api.build().with_context(|| format!("reading {}", json.display()))?;
    let crate_ = Crate(read(json)?);
    let hidden = crate_.hidden();
    let parents: HashMap<_, _> =
        api.items().filter_map(|item| Some((item.id().0, item.parent_id()?.0))).collect();
    let is_hidden = |item: u32| {
        let outside = |id: &u32| parents.get(id).copied().or_else(|| crate_.of_impl(*id));
        // A type that is inside of itself is a mistake of the JSON, not a reason to hang.
        std::iter::successors(Some(item), outside).take(64).any(|id| hidden.contains(&id))
    };
    let mut text = format!(
        "# Everything that is public in {library}, written by `cargo xtask api`.\n\
         # What is behind a line marks it: `hidden` from the documents, `unsafe` to use.\n"
    );
    let mut told = HashSet::new();
    for item in
        api.items().filter(|item| crate_.tells(item.id().0, item.parent_id().map(|id| id.0)))
    {
        let line = marked(item.to_string(), is_hidden(item.id().0));
        // What is in two places is told in the first one.
        if !told.contains(&line) {
            text.push_str(&line);
            text.push('\n');
            told.insert(line);
        }
    }
    Ok(text)
}

/// A line, and behind it what has to be known of the item.
fn marked(mut line: String, hidden: bool) -> String {
    // The types of arguments come later, which may be unsafe functions.
    let declared = line.split(['(', '<', ':']).next().unwrap_or_default();
    let is_unsafe = declared.split_whitespace().any(|word| word == "unsafe");
    let marks = [(hidden, "hidden"), (is_unsafe, "unsafe")];
    let marks: Vec<_> = marks.iter().filter(|mark| mark.0).map(|mark| mark.1).collect();
    if !marks.is_empty() {
        line.push_str("  # ");
        line.push_str(&marks.join(" "));
    }
    line
}

/// What rustdoc wrote of a crate, for what `public-api` does not tell.
struct Crate(Value);

impl Crate {
    fn item(&self, id: u32) -> &Value {
        &self.0["index"][id.to_string()]
    }

    /// The items that are marked as hidden, and those that are public only where they are hidden.
    fn hidden(&self) -> HashSet<u32> {
        let items = self.0["index"].as_object().into_iter().flatten();
        items
            .filter(|(_, item)| is_marked_hidden(item))
            .flat_map(|(id, item)| [id.parse().ok(), number(&item["inner"]["use"]["id"])])
            .flatten()
            .collect()
    }

    /// The type that an implementation is for.
    fn of_impl(&self, id: u32) -> Option<u32> {
        number(&self.item(id)["inner"]["impl"]["for"]["resolved_path"]["id"])
    }

    /// Whether an item is worth a line: what follows from another line, and what a compiler adds of
    /// its own, is not.
    fn tells(&self, id: u32, parent: Option<u32>) -> bool {
        let parent = parent.map(|parent| self.item(parent));
        if parent.is_some_and(|parent| parent["inner"]["impl"]["trait"].is_object()) {
            // A function of a trait that is implemented.
            return false;
        }
        let item = self.item(id);
        let implements = &item["inner"]["impl"];
        let name = implements["trait"]["path"].as_str().unwrap_or_default();
        let automatic = implements["is_synthetic"] == Value::Bool(true);
        let internal =
            name == "StructuralPartialEq" || implements.is_object() && is_marked_hidden(item);
        !internal && (!automatic || ["Send", "Sync"].contains(&name))
    }
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| number.try_into().ok())
}

fn is_marked_hidden(item: &Value) -> bool {
    let attributes = item["attrs"].as_array().into_iter().flatten();
    attributes.filter_map(|attribute| attribute["other"].as_str()).any(|text| {
        text.strip_prefix("#[doc(").is_some_and(|text| text.trim_end_matches(")]") == "hidden")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_names_what_is_gone_and_what_is_new() {
        let (then, now) = ("pub fn a()\npub fn b()\n", "pub fn b()\npub unsafe fn a()  # unsafe\n");
        assert_eq!(difference(then, now), "- pub fn a()\n+ pub unsafe fn a()  # unsafe\n");
        assert!(!difference("a\nb\n", "b\na\n").is_empty());
    }

    #[test]
    fn items_are_marked() {
        let line = |text: &str, hidden| marked(text.to_owned(), hidden);
        assert_eq!(line("pub unsafe fn a::b()", true), "pub unsafe fn a::b()  # hidden unsafe");
        assert_eq!(line("pub fn a::b(unsafe fn())", false), "pub fn a::b(unsafe fn())");
        assert_eq!(line("pub fn a::b()", true), "pub fn a::b()  # hidden");
        assert!(is_marked_hidden(&json!({ "attrs": [{ "other": "#[doc(hidden)]" }] })));
        assert!(!is_marked_hidden(
            &json!({ "attrs": [{ "other": "#[inline]" }, "non_exhaustive"] })
        ));
    }
}
