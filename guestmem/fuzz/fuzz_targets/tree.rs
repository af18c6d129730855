//! Any bytes at all, read as operations on a clone tree, against the model.
//! The policy modules are compiled alone here: they need no memory.
//!
//! ```text
//! cargo +nightly fuzz run tree        (in guestmem/)
//! ```

#![no_main]
#![allow(dead_code, unused_imports, reason = "the mechanism uses the rest")]

use libfuzzer_sys::fuzz_target;

#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/layout.rs"]
mod layout;
#[path = "../../src/ordered.rs"]
mod ordered;
#[path = "../../src/pages.rs"]
mod pages;
#[path = "../../src/room.rs"]
mod room;
#[path = "../../src/tree/mod.rs"]
mod tree;

#[path = "../../src/frame/images.rs"]
mod images;
#[path = "../../src/frame/numbers.rs"]
mod numbers;

mod frame {
    pub(crate) use crate::images::*;
    pub(crate) use crate::numbers::*;
}

use tree::model::{Op, World};

fuzz_target!(|bytes: &[u8]| {
    if let Some((first, ops)) = bytes.split_first() {
        World::run(first % 2 == 0, Op::from_bytes(ops).take(200));
    }
});
