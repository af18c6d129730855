//! Making system calls fail on purpose, in this crate's own tests: every call
//! asks here first.

#[cfg(test)]
use std::cell::Cell;
use std::io;

#[cfg(test)]
thread_local! {
    /// Calls of this thread that still succeed before one fails.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Fails the call that is about to be made, if a test wants that.
#[inline]
pub(crate) fn injected() -> io::Result<()> {
    #[cfg(test)]
    if let Some(left) = LEFT.get() {
        LEFT.set(left.checked_sub(1));
        if left == 0 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
    }
    Ok(())
}

/// Lets `calls` more calls of this thread succeed, and fails the one after.
#[cfg(test)]
pub(crate) fn fail_after(calls: u64) {
    LEFT.set(Some(calls));
}

/// Fails none any more; whether the one to fail was reached.
#[cfg(test)]
pub(crate) fn stop() -> bool {
    LEFT.take().is_none()
}
