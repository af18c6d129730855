//! What can go wrong with guest memory.

use std::io;

use crate::layout::PAGE_SIZE;

/// Why an operation on guest memory was refused or failed. The tree, its
/// layers and every VM are as they were before the call.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The system refused; `ENOMEM` and `ENOSPC` mean the host is out of memory.
    #[error("cannot {op} ({} bytes): {source}", nr_pages * PAGE_SIZE)]
    Os {
        /// What was tried.
        op: &'static str,
        /// How many pages it was about; 0 when that says nothing.
        nr_pages: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// RAM larger than a clone tree can number.
    #[error(
        "{wanted_bytes} bytes of RAM are more than the {most_bytes} that a clone tree can number"
    )]
    TooMuchRam {
        /// Bytes asked for.
        wanted_bytes: u64,
        /// Most there may be.
        most_bytes: u64,
    },
    /// RAM larger than the window it was made with.
    #[error(
        "{wanted_bytes} bytes are more than the {most_bytes} this RAM was made with: fork it into a larger one"
    )]
    BeyondWindow {
        /// Bytes asked for.
        wanted_bytes: u64,
        /// Bytes it was made with.
        most_bytes: u64,
    },
    /// No frame numbers left in the tree.
    #[error("no room for {wanted} more frames in this clone tree: drop a VM or a snapshot of it")]
    OutOfFrames {
        /// Frames wanted, in a row.
        wanted: u64,
    },
    /// The allocator refused what grows with pages and their owners: a node of a
    /// page list, a plan, an account.
    #[error("out of memory for what is known of the pages of a VM or layer")]
    Bookkeeping,
    /// A layer of another clone tree was given.
    #[error("the snapshot belongs to another clone tree than this VM")]
    ForeignLayer,
    /// Root RAM was to be frozen without a window to go on in.
    #[error("root RAM in a memfd moves when it is frozen: stage a window for it first")]
    NotStaged,
    /// A range that is not whole pages of RAM.
    #[error("{len_bytes} bytes at {start_gpa:#x} are not whole pages of one RAM region")]
    NotRam {
        /// First guest-physical address.
        start_gpa: u64,
        /// Length given.
        len_bytes: u64,
    },
}

impl MemoryError {
    pub(crate) fn os(op: &'static str, nr_pages: u64, source: impl Into<io::Error>) -> Self {
        Self::Os {
            op,
            nr_pages,
            source: source.into(),
        }
    }
}
