//! The check that nothing which owns frames is dropped.
//!
//! A list does not know how to free a frame, so it cannot do so when dropped.
//! Debug builds with the `std` feature panic; without it the crate cannot ask
//! whether the thread is already unwinding (a second panic would abort the
//! process and hide the first), so there, and in release builds, frames leak.

/// Panics if `frames_owned` is not zero and it is possible to say so.
#[inline]
#[cfg(all(debug_assertions, feature = "std"))]
pub(crate) fn check(frames_owned: u64, what: &str) {
    extern crate std;
    if frames_owned != 0 && !std::thread::panicking() {
        panic!("dropped {what} that still owns {frames_owned} frame(s): drain it first");
    }
}

/// Nothing can be said here: the frames leak.
#[inline]
#[cfg(not(all(debug_assertions, feature = "std")))]
pub(crate) fn check(_frames_owned: u64, _what: &str) {}
