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
const COMPLETE: &str = "uring-getbuf/src/slots/complete.rs";
const SLOT: &str = "uring-getbuf/src/slots/slot.rs";
const USES: &str = "uring-getbuf/src/slots/uses.rs";
const LEASE: &str = "uring-getbuf/src/lease.rs";

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "use-not-counted",
        what: "a request that uses a lease is not counted",
        file: USES,
        from: "self.state.set(self.state.get() + (state::REQUEST + state::AWAITED));",
        to: "self.mark(state::AWAITED);",
        test: model("a_release_waits_for_nobody_and_a_slot_for_everybody"),
    },
    Fault {
        name: "use-ends-with-result",
        what: "a `SEND_ZC` ends with its result and not with its notification",
        file: COMPLETE,
        from: "        let more = io_uring::cqueue::more(flags);\n        if !more {",
        to: "        let more = io_uring::cqueue::more(flags);\n        {",
        test: model("a_notification_that_nobody_announced_ends_nothing"),
    },
    Fault {
        name: "use-name-twice",
        what: "the name of a use that is in flight is given to another one",
        file: SLOT,
        from: "        if self.requests() > 0 {\n            self.expect_no_use();\n        }\n",
        to: "",
        test: model("a_use_that_stays_in_flight_keeps_its_name"),
    },
    Fault {
        name: "stale-completion",
        what: "the next lease of a slot has the name of the last one",
        file: SLOT,
        from: "        self.name.set((self.name.get() + ONE) & !CARRY);\n",
        to: "",
        test: model("generations_come_round"),
    },
    Fault {
        name: "cancelled-release",
        what: "a release that was cancelled is not sent again",
        file: COMPLETE,
        from: "let again = Errno::check(result) == Err(Errno::CANCELED);",
        to: "let again = false;",
        test: model("the_table_does_what_the_model_says"),
    },
    Fault {
        name: "empty-not-released",
        what: "an empty buffer, from the end of a file, is not released",
        file: COMPLETE,
        from: "if len != 0 || lending.lender.installs_empty() {",
        to: "if len != 0 {",
        test: model("an_empty_buffer_is_released_too"),
    },
    Fault {
        name: "failed-chain-not-released",
        what: "what a chain without a release has fetched stays where its consumer fails",
        file: COMPLETE,
        from: "self.filled(lending.filter(|_| ending == Some(Ending::Left)), fetched);",
        to: "self.filled(lending.filter(|_| ending == Some(Ending::Left) && progress.used.is_none()), fetched);",
        test: model("the_table_does_what_the_model_says"),
    },
    Fault {
        name: "short-fetch-length",
        what: "a short fetch has the length that was asked for",
        file: COMPLETE,
        from: "                self.len.set(*len);\n",
        to: "",
        test: e2e("copy::lease::short_fetch_and_end_of_file"),
    },
    Fault {
        name: "hard-link",
        what: "a chain of the copy engine goes on after a short fetch",
        file: TABLE,
        from: "            None => (read_request(self.slot, source, offset, len), Flags::IO_LINK),",
        to: "            None => (read_request(self.slot, source, offset, len), Flags::IO_HARDLINK),",
        test: e2e("copy::chain::no_stale_bytes"),
    },
    Fault {
        name: "ranges-shared",
        what: "two vectored writes of a lease share an array",
        file: USES,
        from: "        self.mark(state::RANGING);\n",
        to: "",
        test: e2e("copy::lease::writev"),
    },
    Fault {
        name: "provider-too-early",
        what: "a provider has its memory back while a request uses it",
        file: SLOT,
        from: "        if self.requests() > 0 {\n            return;\n        }\n",
        to: "",
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
        from: "            self.0.let_go();",
        to: "            let _ = self.0.id();",
        test: model("the_table_does_what_the_model_says"),
    },
    Fault {
        name: "end-of-file-installed",
        what: "a fetch at the end of a file becomes a lease of nothing",
        file: COMPLETE,
        from: "                if *len == 0 {\n",
        to: "                if false {\n",
        test: e2e("copy::lease::short_fetch_and_end_of_file"),
    },
    Fault {
        name: "look-too-far",
        what: "a look at a lease goes on behind its end",
        file: USES,
        from: "Ok(offset..offset + u32::try_from(len).unwrap_or(u32::MAX).min(left))",
        to: "Ok(offset..offset + u32::try_from(len).unwrap_or(left))",
        test: e2e("copy::look::copy_out"),
    },
    Fault {
        name: "request-not-sent-again",
        what: "a request that the slots need sent is forgotten where the queue is full",
        file: "uring-getbuf/src/slots/prepared.rs",
        from: "        self.slot.retract(self.sqe.user_data, self.requeue);",
        to: "        self.slot.retract(self.sqe.user_data, false);",
        test: model("the_table_does_what_the_model_says"),
    },
    Fault {
        name: "entry-not-returned",
        what: "what a provider's memory took of the ring's table is not given back",
        file: "uring-getbuf/src/slots/provided.rs",
        from: "            if place.own & 1 << index != 0 {",
        to: "            if place.own & 1 << index != 0 && index == 0 {",
        test: e2e("copy::provide::registered_on_fetch"),
    },
    Fault {
        name: "blocks-overlap",
        what: "the blocks of the pool overlap",
        file: "uring-getbuf/src/pool.rs",
        from: "self.base.as_ptr().wrapping_add(self.stride as usize * index as usize)",
        to: "self.base.as_ptr().wrapping_add((self.stride - ALIGN) as usize * index as usize)",
        test: unit("pool::tests::blocks_are_whole_pages"),
    },
    Fault {
        name: "file-place-too-early",
        what: "a detached file's place is given away while a fetch names it",
        file: "uring-getbuf/src/ring/files.rs",
        from: "            place.names.set(names(index));",
        to: "            place.names.set(names(index).saturating_sub(1));",
        test: e2e("copy::lease::detach_in_flight"),
    },
    Fault {
        name: "file-place-of-a-use",
        what: "a detached file's place is given away while a use names it",
        file: SLOT,
        from: "(0..=u8::MAX).filter(has).count() as u32",
        to: "(0..=u8::MAX).filter(has).count().min(0) as u32",
        test: e2e("copy::lease::detach_in_use"),
    },
    Fault {
        name: "ring-kept-by-its-thread",
        what: "a thread keeps the ring that it has registered",
        file: "uring-getbuf/src/ring/queues.rs",
        from: "        let _ = self.submitter.unregister_ring_fd();\n",
        to: "",
        test: e2e("copy::life::more_rings_than_a_thread_can_register"),
    },
    Fault {
        name: "taken-counts-as-there",
        what: "the kernel is entered without being shown which completions were taken",
        file: "uring-getbuf/src/ring/queues.rs",
        from: "        self.shown = self.submission.len();\n        self.completion.sync();",
        to: "        self.shown = self.submission.len();",
        test: e2e("copy::lease::what_was_taken_does_not_count"),
    },
    Fault {
        name: "fork-moves-the-queue",
        what: "a process that was forked off says where its copy of the queue stands",
        file: "uring-getbuf/src/ring/queues.rs",
        from: "        let _ = self.submitter.unregister_ring_fd();\n",
        to: "        let _ = self.submitter.unregister_ring_fd();\n        // SAFETY: a fault.\n        unsafe { ManuallyDrop::drop(&mut self.submission) };\n",
        test: e2e("copy::process::forked_off"),
    },
    Fault {
        name: "file-place-lost",
        what: "a cancellation keeps its file's place for ever",
        file: "uring-getbuf/src/ring/drive.rs",
        from: "            Some((CANCEL_FILE, value)) => {\n                self.files.done(value as u16);",
        to: "            Some((CANCEL_FILE, _)) => {",
        test: e2e("copy::lease::cancel_then_detach"),
    },
    Fault {
        name: "pool-freed-in-use",
        what: "a ring that is dropped does not wait for what names its memory",
        file: "uring-getbuf/src/ring/drive.rs",
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
        file: "uring-getbuf/src/slots/values.rs",
        from: "self.value.get().wrapping_add(LIFE)",
        to: "self.value.get()",
        test: c("misuse::copy::shared"),
    },
    Fault {
        name: "c-request-left",
        what: "C: a function that fails leaves its SQE as it was",
        file: "capi/src/fetch.rs",
        from: "    unsafe { waste(sqe, tag) };",
        to: "    let _ = (sqe, tag);",
        test: c("misuse::copy::shared"),
    },
    Fault {
        name: "c-batch-not-told",
        what: "C: what is not the slots' is taken for theirs in a batch",
        file: "capi/src/complete.rs",
        from: "                foreign += 1;\n",
        to: "",
        test: c("life::copy::batch::shared"),
    },
    Fault {
        name: "c-batch-in-place",
        what: "C: each fetch of a batch begins where the first one does",
        file: "uring-getbuf/src/slots/values.rs",
        from: "            at = at.wrapping_add(step);",
        to: "            at = at.wrapping_add(step * 0);",
        test: c("life::copy::batch::shared"),
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
