// SPDX-License-Identifier: MIT OR Apache-2.0
//! What has to hold before a change is taken: each step runs, whatever the others came to.

use anyhow::Result;

use crate::api::Toolchain;
use crate::command::{cargo, find, run};
use crate::totals::Totals;
use crate::{api, bench, check, test, walk};

pub(crate) fn run_all() -> Result<Totals> {
    let mut totals = Totals::default();
    totals.check("format", || run(&mut cargo(&["fmt", "--all", "--check"])));
    totals.check("lints", || {
        let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--locked"];
        run(cargo(&clippy).args(["--", "--deny", "warnings"]))
    });
    totals.check("documents", || {
        let mut doc = cargo(&["doc", "--quiet", "--no-deps", "--workspace", "--locked"]);
        run(doc.env("RUSTDOCFLAGS", "--deny warnings"))
    });
    totals.check("generated files", || check::codegen(true));
    match Toolchain::find() {
        Ok(toolchain) => totals.check("public interface", || api::check(&toolchain)),
        Err(reason) => totals.skip("public interface", reason),
    }
    totals.check("licences", check::licences);
    totals.check("the patches' header", check::header_of_the_patches);
    totals.check("docs/architecture.md", walk::check);
    totals.add(test::all()?);
    match find("valgrind") {
        None => totals.skip("instructions of the safe layer", "valgrind is not installed"),
        Some(_) => totals.check("instructions of the safe layer", || {
            let overhead = ["bench", "--quiet", "--locked", "-p=uring-getbuf", "--bench=overhead"];
            run(cargo(&overhead).args(["--", "--check"]))
        }),
    }
    match ["valgrind", "pkg-config", "cc"].into_iter().find(|tool| find(tool).is_none()) {
        Some(tool) => totals.skip("what C pays", format!("{tool} is not installed")),
        None => totals.check("what C pays", || {
            let bench = ["bench", "--quiet", "--locked", "-p=getbuf-capi", "--bench=overhead"];
            run(cargo(&bench).args(["--", "--check"]))
        }),
    }
    match bench::obstacle() {
        Some(reason) => totals.skip("instructions per request", reason),
        None => totals.check("instructions per request", bench::check),
    }
    Ok(totals)
}
