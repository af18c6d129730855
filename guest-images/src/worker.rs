//! The mailbox of the guest `worker`, shared with it: the guest compiles this
//! file too.

/// What the host asks for.
pub mod command {
    /// Fill `args[1]` pages from address `args[0]` with a pattern of `args[2]`.
    pub const FILL: u64 = 1;
    /// Fill `args[1]` pages from address `args[0]` with zeros.
    pub const ZERO: u64 = 2;
    /// The checksum of `args[1]` pages from address `args[0]`.
    pub const CHECKSUM: u64 = 3;
    /// Write the word `args[1]` to address `args[0]`.
    pub const WRITE: u64 = 4;
    /// The word at address `args[0]`.
    pub const READ: u64 = 5;
    /// Report `args[1]` bytes from address `args[0]` free; pages dropped.
    pub const FREE: u64 = 6;
    /// Ask to be forked; what the call returned.
    pub const FORK: u64 = 7;
    /// The generation register.
    pub const GENERATION: u64 = 8;
    /// Random bytes.
    pub const SEED: u64 = 9;
    /// End with code `args[0]`.
    pub const EXIT: u64 = 10;
    /// Write one word to each of `args[1]` pages from address `args[0]`.
    pub const TOUCH: u64 = 11;
    /// Read one word of each of `args[1]` pages from address `args[0]`.
    pub const LOOK: u64 = 12;
    /// Be ready over and over; in between only note the time-stamp counter as
    /// the result. A fork made then notes when it came to its first
    /// instructions, and has its first exit a few later.
    pub const AGAIN: u64 = 13;
    /// For ever write to `args[1]` pages from address `args[0]` in turn, and
    /// keep an eye on the time, in a [`Watch`](super::Watch) at `args[2]`.
    pub const SPIN: u64 = 14;
}

/// The mailbox, at the guest's first free page. The host writes `command` and
/// `args` while the guest is ready, resumes it, and finds `result` when it is
/// ready again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mailbox {
    /// One of [`command`].
    pub command: u64,
    /// Its arguments.
    pub args: [u64; 3],
    /// What came of it.
    pub result: u64,
}

/// What a guest that spins knows of the time it did not run. The host asks for
/// another look by writing `asked` while the guest runs; what is under way when
/// `answered` is still another number is not part of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Number of the look that the host wants.
    pub asked: u64,
    /// Number of the look that the guest is at.
    pub answered: u64,
    /// Most ticks of the time-stamp counter between two of its steps, since.
    pub longest: u64,
    /// Steps, ever.
    pub steps: u64,
}
