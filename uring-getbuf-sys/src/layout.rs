// SPDX-License-Identifier: MIT OR Apache-2.0
//! The layout of the ABI, written down a second time and compared at compile time.
//!
//! bindgen asserts what *it* saw on the machine where it ran. These assertions state what the two
//! sides agreed on, so that a change of the header that nobody meant does not pass unseen.

use core::mem::offset_of;

use static_assertions::{assert_eq_align, assert_eq_size, assert_impl_all, assert_not_impl_any};

use crate::*;

assert_eq_size!(bio_vec, [u64; 2]);
assert_eq_size!(iou_get_buf_info, [u64; 4]);
assert_eq_size!(iou_buf_desc, [u64; 4]);
assert_eq_size!(getbuf_query, [u64; 8]);
assert_eq_align!(bio_vec, iou_get_buf_info, iou_buf_desc, getbuf_query, u64);

macro_rules! offsets {
    ($($type:ident: $($field:ident = $offset:literal),+;)+) => {
        $($(const _: () = assert!(
            offset_of!($type, $field) == $offset,
            concat!(stringify!($type), ".", stringify!($field), " has moved")
        );)+)+
    };
}

offsets! {
    bio_vec: bv_page = 0, bv_len = 8, bv_offset = 12;
    iou_get_buf_info: off = 0, len = 8, flags = 16, desc = 24;
    iou_buf_desc: nr_bvecs = 0, max_bvecs = 4, bvec = 8, release = 16, priv_ = 24;
    getbuf_cmd_fetch: fd = 0, slot = 4, flags = 6, version = 7, off = 8;
    getbuf_cmd_release: reserved0 = 0, slot = 4, flags = 6, version = 7, reserved1 = 8;
    getbuf_cmd_copy_out: reserved0 = 0, slot = 4, flags = 6, version = 7, off = 8;
    getbuf_cmd_query: reserved0 = 0, reserved1 = 4, flags = 6, version = 7, reserved2 = 8;
    getbuf_cmd_bind: fd = 0, reserved0 = 4, flags = 6, version = 7, reserved1 = 8;
    getbuf_query: size = 0, version = 4, features = 8, max_fetch = 16, pinned = 24,
        pinned_limit = 32, reserved = 40;
}

// The command area of a 64-byte SQE has 16 bytes, aligned to 8.
macro_rules! commands {
    ($($type:ident)+) => {
        $(assert_eq_size!($type, [u8; 16]);
        assert_eq_align!($type, u64);
        assert_impl_all!($type: Copy, Default, Send, Sync);)+
    };
}

commands! { getbuf_cmd_fetch getbuf_cmd_release getbuf_cmd_copy_out getbuf_cmd_query getbuf_cmd_bind }

// They carry pointers: whoever sends them to another thread must say why that is right.
assert_not_impl_any!(iou_get_buf_info: Send, Sync);
assert_not_impl_any!(iou_buf_desc: Send, Sync);
assert_impl_all!(bio_vec: Copy, Default);

const _: () = {
    assert!(IORING_OP_GET_BUF_RFC == 49, "the RFC's number is a historical fact");
    assert!(IORING_OP_PUT_BUF_7_3 == put_buf_after(IORING_OP_GET_BUF_7_3 as u8) as u32);
    assert!(IOU_GET_BUF_F_NOWAIT == 1);
    assert!(GETBUF_ENOTSUPP == 524);
    assert!(GETBUF_FETCH_REPLACE == IORING_GET_BUF_REPLACE);
};
