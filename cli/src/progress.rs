// SPDX-License-Identifier: MIT OR Apache-2.0
//! The progress bar: on a terminal only, and cheap.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use uring_getbuf::relay::Progress;

use crate::args::Options;

/// Most redraws in a second.
const REDRAWS: u8 = 10;

/// A bar, once it is known how long; until then, a counter.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
    total: Option<u64>,
}

impl Bar {
    pub(crate) fn new(options: &Options) -> Self {
        if options.quiet || !std::io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden(), total: None };
        }
        let target = ProgressDrawTarget::stderr_with_hz(REDRAWS);
        let bar = ProgressBar::with_draw_target(None, target)
            .with_style(style("{bytes:>12} {binary_bytes_per_sec} {elapsed}"));
        Self { bar, total: None }
    }

    pub(crate) fn show(&mut self, progress: Progress) {
        if self.bar.is_hidden() {
            return;
        }
        if let Some(total) = progress.total
            && self.total != Some(total)
        {
            if self.total.is_none() {
                self.bar.set_style(style(
                    "{percent:>3}% [{wide_bar}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}",
                ));
            }
            // Also later: a file may grow or shrink meanwhile.
            self.total = Some(total);
            self.bar.set_length(total);
        }
        self.bar.set_position(progress.bytes);
    }

    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a valid template")
}
