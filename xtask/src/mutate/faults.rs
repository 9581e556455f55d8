// SPDX-License-Identifier: MIT OR Apache-2.0
//! The faults: what is wrong with each, and the test that has to find it.

/// A deliberate fault.
pub(super) struct Fault {
    pub(super) name: &'static str,
    /// In plain words.
    pub(super) what: &'static str,
    pub(super) file: &'static str,
    /// What is replaced, which occurs once in the file.
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) test: Test,
}

/// One test.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Test {
    pub(super) package: &'static str,
    /// How cargo is told of its executable.
    pub(super) target: &'static str,
    pub(super) place: Place,
    pub(super) name: &'static str,
}

/// Where a test runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Host,
    /// A kernel as released, with the module.
    Module,
    /// A kernel with the patches.
    Patches,
}

impl Test {
    /// Where its package is.
    pub(super) fn folder(&self) -> &'static str {
        match self.package {
            "getbuf-tests" => "tests",
            "getbuf-capi" => "capi",
            package => package,
        }
    }
}

const fn test(
    package: &'static str,
    target: &'static str,
    place: Place,
    name: &'static str,
) -> Test {
    Test { package, target, place, name }
}

const fn unit(name: &'static str) -> Test {
    test("uring-getbuf", "--lib", Place::Host, name)
}

const fn model(name: &'static str) -> Test {
    test("uring-getbuf", "--test=model", Place::Host, name)
}

const fn e2e(name: &'static str) -> Test {
    test("getbuf-tests", "--test=e2e", Place::Host, name)
}

const fn c(name: &'static str) -> Test {
    test("getbuf-capi", "--test=c", Place::Host, name)
}

const fn module(name: &'static str) -> Test {
    test("getbuf-tests", "--test=lent", Place::Module, name)
}

const fn patches(name: &'static str) -> Test {
    test("getbuf-tests", "--test=lent", Place::Patches, name)
}

const TABLE: &str = "uring-getbuf/src/slots/table.rs";
const MACHINE: &str = "uring-getbuf/src/slots/machine.rs";
const LEASE: &str = "uring-getbuf/src/slots/lease.rs";
const ENGINE: &str = "uring-getbuf/src/engine/mod.rs";
const DRIVE: &str = "uring-getbuf/src/ring/drive.rs";
const LEASES: &str = "capi/src/leases.rs";

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "use-not-counted",
        what: "a request that uses a lease is not counted",
        file: MACHINE,
        from: "uses: uses + 1 }",
        to: "uses }",
        test: model("a_release_waits_for_nobody_and_a_slot_for_everybody"),
    },
    Fault {
        name: "use-ends-with-result",
        what: "a `SEND_ZC` ends with its result and not with its notification",
        file: TABLE,
        from: "Kind::Use | Kind::UseRanges if more =>",
        to: "Kind::Use | Kind::UseRanges if false =>",
        test: model("a_notification_that_nobody_announced_ends_nothing"),
    },
    Fault {
        name: "use-name-twice",
        what: "the name of a use that is in flight is given to another one",
        file: TABLE,
        from: "if self.is_in_use(free)",
        to: "if self.is_in_use(free) && false",
        test: model("a_use_that_stays_in_flight_keeps_its_name"),
    },
    Fault {
        name: "stale-completion",
        what: "the next lease of a slot has the name of the last one",
        file: TABLE,
        from: "slot.life.get().wrapping_add(1)",
        to: "slot.life.get()",
        test: model("generations_come_round"),
    },
    Fault {
        name: "cancelled-release",
        what: "a release that was cancelled is not sent again",
        file: MACHINE,
        from: "if Errno::check(result) == Err(Errno::CANCELED)",
        to: "if false",
        test: model("the_table_does_what_the_model_says"),
    },
    Fault {
        name: "empty-not-released",
        what: "an empty buffer, from the end of a file, is not released",
        file: MACHINE,
        from: "let filled = result.is_ok_and(|len| len > 0 || traits.installs_empty)",
        to: "let filled = result.is_ok_and(|len| len > 0)",
        test: model("an_empty_buffer_is_released_too"),
    },
    Fault {
        name: "failed-chain-not-released",
        what: "what a chain without a release has fetched stays where its consumer fails",
        file: MACHINE,
        from: "Ending::Left => fetched.",
        to: "Ending::Left => self.used.is_none() && fetched.",
        test: model("the_table_does_what_the_model_says"),
    },
    Fault {
        name: "short-fetch-length",
        what: "a short fetch has the length that was asked for",
        file: MACHINE,
        from: "State::Full { len, uses: 0 }",
        to: "State::Full { len: asked.max(len), uses: 0 }",
        test: e2e("copy::lease::short_fetch_and_end_of_file"),
    },
    Fault {
        name: "hard-link",
        what: "a chain of the copy engine goes on after a short fetch",
        file: TABLE,
        from: "else { Flags::IO_LINK }",
        to: "else { Flags::IO_HARDLINK }",
        test: e2e("copy::chain::no_stale_bytes"),
    },
    Fault {
        name: "ranges-shared",
        what: "two vectored writes of a lease share an array",
        file: TABLE,
        from: "ranging.set(true)",
        to: "ranging.set(false)",
        test: e2e("copy::lease::writev"),
    },
    Fault {
        name: "provider-too-early",
        what: "a provider has its memory back while a request uses it",
        file: MACHINE,
        from: "(0, Emptied::WhenUnused) =>",
        to: "(_, Emptied::WhenUnused) =>",
        test: e2e("copy::provide::released_when_the_last_is_done"),
    },
    Fault {
        name: "range-too-long",
        what: "a range may end one byte behind its lease",
        file: LEASE,
        from: "if start < end && end <= len =>",
        to: "if start < end && end <= len + 1 =>",
        test: e2e("copy::lease::ranges_outside"),
    },
    Fault {
        name: "drop-keeps",
        what: "a lease that is dropped keeps its slot",
        file: LEASE,
        from: "self.core().let_go(self.id());",
        to: "let _ = self.id();",
        test: model("the_table_does_what_the_model_says"),
    },
    Fault {
        name: "end-of-file-installed",
        what: "a fetch at the end of a file becomes a lease of nothing",
        file: LEASE,
        from: "Some(Ok(1..)) =>",
        to: "Some(Ok(0..)) =>",
        test: e2e("copy::lease::short_fetch_and_end_of_file"),
    },
    Fault {
        name: "look-too-far",
        what: "a look at a lease goes on behind its end",
        file: TABLE,
        from: "unwrap_or(u32::MAX).min(left)",
        to: "unwrap_or(left)",
        test: e2e("copy::look::copy_out"),
    },
    Fault {
        name: "request-not-sent-again",
        what: "a request that the slots need sent is forgotten where the queue is full",
        file: "uring-getbuf/src/slots/prepared.rs",
        from: "retract(self.id(), self.again)",
        to: "retract(self.id(), false)",
        test: model("the_table_does_what_the_model_says"),
    },
    Fault {
        name: "entry-not-returned",
        what: "what a provider's memory took of the ring's table is not given back",
        file: "uring-getbuf/src/engine/provided.rs",
        from: "lent.own & 1 << index != 0",
        to: "lent.own & 1 << index != 0 && index == 0",
        test: e2e("copy::provide::registered_on_fetch"),
    },
    Fault {
        name: "blocks-overlap",
        what: "the blocks of the pool overlap",
        file: "uring-getbuf/src/engine/copy.rs",
        from: "usize::from(block) * self.stride as usize",
        to: "usize::from(block) * (self.stride - ALIGN) as usize",
        test: unit("engine::copy::tests::blocks_are_whole_pages"),
    },
    Fault {
        name: "file-place-too-early",
        what: "a detached file's place is given away while a fetch names it",
        file: DRIVE,
        from: "        self.files.begin(source);\n",
        to: "",
        test: e2e("copy::lease::detach_in_flight"),
    },
    Fault {
        name: "file-place-of-a-use",
        what: "a detached file's place is given away while a use names it",
        file: "uring-getbuf/src/ring/requests.rs",
        from: "self.files.begin(place);\n        Ok(UseId::of(",
        to: "Ok(UseId::of(",
        test: e2e("copy::lease::detach_in_use"),
    },
    Fault {
        name: "taken-counts-as-there",
        what: "a wait counts a completion that was taken before it",
        file: "uring-getbuf/src/ring/wait.rs",
        from: "self.kept.len() + self.taken.len()",
        to: "self.kept.len() + self.taken.len() + 1",
        test: e2e("copy::lease::what_was_taken_does_not_count"),
    },
    Fault {
        name: "fork-moves-the-queue",
        what: "a process that was forked off ends its copy of the ring as if it were its own",
        file: DRIVE,
        from: "if std::process::id() == self.process",
        to: "if self.process != 0",
        test: e2e("copy::process::forked_off"),
    },
    Fault {
        name: "file-place-lost",
        what: "a cancellation keeps its file's place for ever",
        file: DRIVE,
        from: "            Some((CANCEL_FILE, value)) => {\n                self.files.done(value as u16);",
        to: "            Some((CANCEL_FILE, _)) => {",
        test: e2e("copy::lease::cancel_then_detach"),
    },
    Fault {
        name: "pool-freed-in-use",
        what: "a ring that is dropped does not wait for what names its memory",
        file: DRIVE,
        from: "        if self.slots.in_flight() == 0 {\n            return;\n        }\n        // Requests on",
        to: "        if self.slots.in_flight() != 0 {\n            return;\n        }\n        // Requests on",
        test: e2e("copy::life::ring_dropped_but_not_its_descriptor"),
    },
    Fault {
        name: "times-shared",
        what: "requests that wait to be sent share one time limit",
        file: "uring-getbuf/src/ring/within.rs",
        from: "        limits.next = (limits.next + 1) % entries;\n",
        to: "",
        test: e2e("copy::waits::many_limits"),
    },
    Fault {
        name: "short-write-restarts",
        what: "a relay begins its block again after a short write",
        file: "uring-getbuf/src/relay/out.rs",
        from: "(offset, taken..taken + fits);",
        to: "(offset, 0..fits);",
        test: e2e("copy::relay::short_writes"),
    },
    Fault {
        name: "short-block-lost",
        what: "a relay loses what came of a block that is cut off",
        file: "uring-getbuf/src/relay/blocks.rs",
        from: "                self.again.push(Block { span: Span { len, ..block.span }, ..block });\n",
        to: "",
        test: e2e("copy::relay::source_truncated"),
    },
    Fault {
        name: "fan-short-write-restarts",
        what: "a fan-out begins its block again after a short write",
        file: "uring-getbuf/src/relay/out.rs",
        from: "(offset, taken..taken + fits);",
        to: "(offset, 0..fits);",
        test: e2e("copy::fan::short_writes"),
    },
    Fault {
        name: "fan-block-too-early",
        what: "a fan-out lets a block go that only its fastest sink has",
        file: "uring-getbuf/src/relay/mover.rs",
        from: "live.map(|out| out.piece).min();",
        to: "live.map(|out| out.piece).max();",
        test: e2e("copy::fan::slow_one_is_waited_for"),
    },
    Fault {
        name: "c-stale-lease",
        what: "C: the next lease of a slot has the value of the last one",
        file: LEASES,
        from: "last.value.wrapping_add(LIFE)",
        to: "last.value",
        test: c("misuse::copy::shared"),
    },
    Fault {
        name: "c-request-left",
        what: "C: a function that fails leaves its SQE as it was",
        file: "capi/src/sqe.rs",
        from: "            self.waste(tag);",
        to: "            let _ = tag;",
        test: c("misuse::copy::shared"),
    },
    Fault {
        name: "c-batch-not-told",
        what: "C: what is not the slots' is taken for theirs in a batch",
        file: "capi/src/complete.rs",
        from: "            foreign += 1;\n",
        to: "",
        test: c("life::copy::batch::shared"),
    },
    Fault {
        name: "c-batch-in-place",
        what: "C: each fetch of a batch begins where the first one does",
        file: "capi/src/batch.rs",
        from: "getbuf.fetch(source, at, len, data)",
        to: "getbuf.fetch(source, offset, len, data)",
        test: c("life::copy::batch::shared"),
    },
    Fault {
        name: "unsent-queued-twice",
        what: "a slot that waits to be sent is put into the list of those a second time",
        file: MACHINE,
        from: "(Input::Unsent, _) if state.waits() == Some(false)",
        to: "(Input::Unsent, _) if state.waits().is_some()",
        test: unit("slots::machine::tests::what_fits_no_state_is_stale"),
    },
    Fault {
        name: "waiting-chain-freed",
        what: "a chain that waits to be sent is freed where it is",
        file: MACHINE,
        from: "(Input::Withdrawn, State::Chained { waits: false, .. })",
        to: "(Input::Withdrawn, State::Chained { .. })",
        test: unit("slots::tests::a_chain_that_waits_is_not_taken_back"),
    },
    Fault {
        name: "retracted-of-another-life",
        what: "a request that was never sent ends the next lease of its slot",
        file: TABLE,
        from: "if self.id(id.slot()) != id {\n            return;",
        to: "if self.id(id.slot()).slot() != id.slot() {\n            return;",
        test: unit("slots::tests::what_is_taken_back_ends_no_other_lease"),
    },
    Fault {
        name: "stream-not-read",
        what: "what a lender refuses of a file as a stream is not read into the pool",
        file: ENGINE,
        from: "Errno::INVAL if offset > i64::MAX as u64",
        to: "Errno::INVAL if offset == 0",
        test: unit("engine::tests::what_a_lender_refuses_another_engine_may_serve"),
    },
    Fault {
        name: "lent-at-refused-offset",
        what: "a file is asked to lend at an offset that `read(2)` refuses",
        file: ENGINE,
        from: "Lent::Never && !is_refused",
        to: "Lent::Never && (!is_refused || true)",
        test: unit("engine::tests::what_read_refuses_is_not_asked_of_a_lender"),
    },
    Fault {
        name: "memory-unchecked",
        what: "a look reaches behind the end of a region",
        file: "uring-getbuf/src/memory.rs",
        from: "assert!(self.has(offset, len)",
        to: "assert!(self.has(0, len.min(offset))",
        test: unit("memory::tests::what_is_outside_of_it_is_not_reached"),
    },
    Fault {
        name: "file-place-of-a-sink",
        what: "a chain keeps the place of its sink for ever",
        file: DRIVE,
        from: "source.into_iter().chain(sink)",
        to: "source.into_iter().chain(sink.filter(|_| false))",
        test: e2e("copy::lease::detach_in_flight"),
    },
    Fault {
        name: "file-place-of-a-result",
        what: "a `SEND_ZC` counts its file off twice, with its result and with its notification",
        file: DRIVE,
        from: "Event::Used { id, more: false, .. }",
        to: "Event::Used { id, .. }",
        test: e2e("copy::lease::send_zc"),
    },
    Fault {
        name: "c-released-lease-found",
        what: "C: a lease that was released is found",
        file: LEASES,
        from: "None | Some(Held::Nothing) =>",
        to: "Some(Held::Nothing) => Ok(slot),\n            None =>",
        test: c("misuse::copy::shared"),
    },
    Fault {
        name: "module-charge-kept",
        what: "a fetch into a taken slot stays charged and counted",
        file: "kernel/module/lease.c",
        from: "\tif (unlikely(ret))\n\t\tlease_uncharge(lease->user, lease->mm, lease->client,\n\t\t\t       lease->pages);\n\treturn ret;",
        to: "\treturn ret;",
        test: module("module::lent::slots_that_cannot_be_filled"),
    },
    Fault {
        name: "module-direction",
        what: "a lease can be written to",
        file: "kernel/module/lease.c",
        from: "lease_release, lease, 1 << ITER_SOURCE,",
        to: "lease_release, lease, 1 << ITER_SOURCE | 1 << ITER_DEST,",
        test: module("module::lent::a_lease_cannot_be_written_to"),
    },
    Fault {
        name: "module-limit",
        what: "`RLIMIT_MEMLOCK` is looked at without what is asked for",
        file: "kernel/module/lease.c",
        from: "\t\t\tif (have + pages > limit)",
        to: "\t\t\tif (have > limit)",
        test: module("module::lent::nobody"),
    },
    Fault {
        name: "module-pages-kept",
        what: "a page of a lease that is over is not given back",
        file: "kernel/module/pagecache.c",
        from: "\tif (likely(!is_zero_page(page)))\n\t\tput_page(page);",
        to: "\tif (unlikely(is_zero_page(page)))\n\t\tput_page(page);",
        test: module("module::lent::pages_come_back"),
    },
    Fault {
        name: "module-end-of-file",
        what: "the last byte of a file is not lent",
        file: "kernel/module/pagecache.c",
        from: "\tlen = min_t(u64, len, isize - pos);",
        to: "\tlen = min_t(u64, len, isize - pos - 1);",
        test: module("module::lent::nothing_past_the_end_of_the_file"),
    },
    Fault {
        name: "module-nothing-lent",
        what: "at the end of a file a page is taken for a lease of nothing",
        file: "kernel/module/pagecache.c",
        from: "\tif (unlikely(pos >= isize))",
        to: "\tif (unlikely(pos > isize))",
        test: test(
            "getbuf-tests",
            "--test=e2e",
            Place::Module,
            "module::lease::short_fetch_and_end_of_file",
        ),
    },
    Fault {
        name: "module-lock-kept",
        what: "the lock of a block device is not given back",
        file: "kernel/module/pagecache.c",
        from: "\tif (kind == GETBUF_CACHED_LOCKED)\n\t\tinode_unlock_shared(inode);",
        to: "",
        test: module("module::lent::a_block_device"),
    },
    Fault {
        name: "module-short-fetch",
        what: "a short fetch does not break a link",
        file: "kernel/module/dev.c",
        from: "\tif (unlikely(ret != asked))\n\t\tmark_short(cmd);\n\treturn ret;",
        to: "\treturn ret;",
        test: module("module::lent::a_short_fetch_breaks_a_soft_link"),
    },
    Fault {
        name: "module-write-only",
        what: "a file that is not open for reading is lent",
        file: "kernel/module/pagecache.c",
        from: "\tif (!(file->f_mode & FMODE_READ))\n\t\treturn -EBADF;\n",
        to: "",
        test: module("module::lent::files_that_cannot_lend"),
    },
    Fault {
        name: "patches-direction",
        what: "a lease can be written to",
        file: "kernel/patches/7.3/0004-io_uring-add-IORING_OP_GET_BUF-and-IORING_OP_PUT_BUF.patch",
        from: "+\timu->dir = IO_BUF_SOURCE;",
        to: "+\timu->dir = IO_BUF_SOURCE | IO_BUF_DEST;",
        test: patches("opcode::lent::a_lease_cannot_be_written_to"),
    },
    Fault {
        name: "patches-pages-kept",
        what: "the pages of a lease that is over are not given back",
        file: "kernel/patches/7.3/0007-mm-filemap-add-generic_iou_get_buf.patch",
        from: "+\t\tif (likely(!is_zero_folio(folio)))\n+\t\t\tfolio_put(folio);",
        to: "+\t\tif (unlikely(is_zero_folio(folio)))\n+\t\t\tfolio_put(folio);",
        test: patches("opcode::lent::pages_come_back"),
    },
    Fault {
        name: "patches-charge-kept",
        what: "a lease that is over stays charged to its user",
        file: "kernel/patches/7.3/0003-io_uring-rsrc-registered-buffers-that-a-file-has-len.patch",
        from: "+\tif (imu->lease_pages)",
        to: "+\tif (!imu->lease_pages)",
        test: patches("opcode::lent::charged_while_it_lives"),
    },
    Fault {
        name: "patches-short-fetch",
        what: "a short fetch does not break a link",
        file: "kernel/patches/7.3/0012-io_uring-let-GET_BUF-hand-its-buffer-to-the-next-req.patch",
        from: "+\tif (ret != gb->len || ret < 0) {",
        to: "+\tif (ret < 0) {",
        test: patches("opcode::lent::a_short_fetch_breaks_a_soft_link"),
    },
    Fault {
        name: "patches-end-of-file",
        what: "the last byte of a file of tmpfs is not lent",
        file: "kernel/patches/7.3/0008-shmem-implement-iou_get_buf.patch",
        from: "+\tlen = min_t(u64, len, isize - pos);",
        to: "+\tlen = min_t(u64, len, isize - pos - 1);",
        test: patches("opcode::lent::nothing_past_the_end_of_the_file"),
    },
    Fault {
        name: "patches-linked-hard",
        what: "a hard link goes on to a consumer that was handed nothing",
        file: "kernel/patches/7.3/0012-io_uring-let-GET_BUF-hand-its-buffer-to-the-next-req.patch",
        from: "+\t\tgb->hard = true;\n+\t\treq->flags &= ~REQ_F_HARDLINK;",
        to: "+\t\tgb->hard = true;\n+\t\treq->flags &= ~0ULL;",
        test: patches("opcode::lent::linked::an_error_breaks_the_link"),
    },
    Fault {
        name: "patches-linked-short",
        what: "a short fetch that breaks its link is lost",
        file: "kernel/patches/7.3/0012-io_uring-let-GET_BUF-hand-its-buffer-to-the-next-req.patch",
        from: "+\tif (heir && (likely(ret == gb->len) || gb->hard))",
        to: "+\tif (heir && (likely(ret == gb->len) || true))",
        test: patches("opcode::lent::linked::a_short_fetch_stays_in_the_slot"),
    },
    Fault {
        name: "patches-early-turn",
        what: "a fetch in a link is done before what comes before it",
        file: "kernel/patches/7.3/0013-io_uring-fetch-as-the-SQE-is-taken-from-the-queue.patch",
        from: "+\tif (ctx->submit_state.link.head)\n+\t\treturn false;",
        to: "+\tif (false)\n+\t\treturn false;",
        test: patches("opcode::lent::early::in_its_turn"),
    },
    Fault {
        name: "patches-early-stream",
        what: "what a stream gave to a fetch that is short is lost",
        file: "kernel/patches/7.3/0013-io_uring-fetch-as-the-SQE-is-taken-from-the-queue.patch",
        from: "+\t\t     (file->f_mode & (FMODE_READ | FMODE_STREAM)) != FMODE_READ",
        to: "+\t\t     (file->f_mode & (FMODE_READ)) != FMODE_READ",
        test: patches("opcode::lent::early::streams_lose_nothing"),
    },
    Fault {
        name: "patches-early-refused",
        what: "what was fetched for a request that is refused is lost",
        file: "kernel/patches/7.3/0013-io_uring-fetch-as-the-SQE-is-taken-from-the-queue.patch",
        from: "+\t\tio_put_rsrc_node(ctx, lease);\n+\t\treturn ret;",
        to: "+\t\t(void)lease;\n+\t\treturn ret;",
        test: patches("opcode::lent::early::its_consumer_is_refused"),
    },
    Fault {
        name: "patches-early-restricted",
        what: "a fetch does not ask whether the ring may",
        file: "kernel/patches/7.3/0013-io_uring-fetch-as-the-SQE-is-taken-from-the-queue.patch",
        from: "+\t\t     ctx->int_flags & (IO_RING_F_OP_RESTRICTED |",
        to: "+\t\t     ctx->int_flags & (0 |",
        test: patches("opcode::lent::early::what_it_cannot_do_is_told"),
    },
];
