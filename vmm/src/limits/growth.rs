//! How much private memory this process has: the kernel's running count, which
//! takes microseconds to ask for however much it is.
//!
//! Private pages of windows are among it, so a VM that forks has grown no more
//! than this has, unless something else went at the same time. On hosts with
//! many CPUs the count lags by some pages for each of them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use guestmem::PAGE_SIZE;

/// `/proc/self/statm`, kept open.
#[derive(Debug)]
pub(super) struct Growth(File);

impl Growth {
    /// `None` where there is no such file; then there are only looks.
    pub(super) fn open() -> Option<Self> {
        File::open("/proc/self/statm").ok().map(Self)
    }

    /// Bytes that are the process's own: resident, and not shared.
    pub(super) fn private_bytes(&self) -> u64 {
        let mut text = [0; 128];
        let len = self.0.read_at(&mut text, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&text[..len]);
        private_pages(&text).unwrap_or(0) * PAGE_SIZE
    }
}

/// The second number less the third: resident less shared pages.
fn private_pages(statm: &str) -> Option<u64> {
    let mut numbers = statm.split_ascii_whitespace().skip(1);
    let mut next = || numbers.next()?.parse::<u64>().ok();
    let (resident, shared) = (next()?, next()?);
    Some(resident.saturating_sub(shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_memory_is_what_is_resident_and_not_shared() {
        assert_eq!(private_pages("900 500 200 10 0 300 0\n"), Some(300));
        for text in ["", "900", "900 500", "900 x 1"] {
            assert_eq!(private_pages(text), None, "{text:?}");
        }
    }

    #[test]
    fn it_grows_with_what_the_process_writes() {
        let Some(growth) = Growth::open() else { return };
        let before = growth.private_bytes();
        let written = vec![1_u8; 64 << 20];
        assert!(growth.private_bytes() >= before + (32 << 20));
        drop(written);
    }
}
