//! Any bytes at all, read as operations on two lists, against the model.
//!
//! ```text
//! cargo +nightly fuzz run ops        (in pagelist/)
//! ```

#![no_main]

#[path = "../../tests/model/driver.rs"]
mod driver;

use driver::{Op, World};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    World::run(Op::from_bytes(bytes).take(200));
});
