// SPDX-License-Identifier: MIT OR Apache-2.0
//! The binary interface of uring-getbuf, and nothing else.
//!
//! Everything at the top level is what `bindgen` made of `include/getbuf_uapi.h`; that header is
//! the one source of truth and its comments are the documentation. It has three parts:
//!
//! * the io_uring requests `GET_BUF` and `PUT_BUF` of a kernel that has them. **The number of an
//!   opcode belongs to the kernel tree**: 49 in the RFC of April 2023, but `READ_MULTISHOT` on
//!   mainline since 6.7, and 65 where this project's patches are applied to Linux 7.3. Take the
//!   number from a detection by behaviour (`uring_getbuf::Support`), never from a constant;
//! * [`iou_get_buf_info`] and [`iou_buf_desc`], the contract between the caller of a fetch and a
//!   provider of buffers;
//! * the commands of `/dev/getbuf`, [`GETBUF_CMD_FETCH`] and its siblings.
//!
//! The crate is `no_std`, needs no C compiler and no libclang, and builds for x86_64, aarch64 and
//! riscv64 Linux. The layout of every structure is asserted when the crate is compiled, for the
//! target that it is compiled for.
//!
//! A build script of a crate that depends on this one finds the folder of the C headers in the
//! environment variable `DEP_GETBUF_INCLUDE`.
#![no_std]

#[cfg(not(all(
    any(target_os = "linux", target_os = "android"),
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"),
    target_endian = "little",
    target_pointer_width = "64",
)))]
compile_error!(
    "uring-getbuf-sys supports 64-bit Linux on x86_64, aarch64 and riscv64: the layout of its \
     structures is verified for these targets only"
);

#[expect(
    missing_docs,
    non_camel_case_types,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    clippy::allow_attributes,
    reason = "checked in as bindgen wrote it"
)]
mod bindings;
mod layout;

pub use bindings::*;

/// The number of `PUT_BUF` on a kernel tree whose `GET_BUF` is `get_buf`, where that tree has one.
/// The RFC's has not.
#[must_use]
pub const fn put_buf_after(get_buf: u8) -> u8 {
    get_buf + 1
}
