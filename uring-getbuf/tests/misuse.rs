// SPDX-License-Identifier: MIT OR Apache-2.0
//! Misuse does not compile, and the compiler's message leads to the mistake.

#[test]
fn misuse_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
