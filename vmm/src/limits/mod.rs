//! Memory limits: how much a VM, and a family of VMs, may have committed.
//!
//! ```text
//!   Limits, MemoryLimit, Notice   what owners say and hear        (this file)
//!   policy     who is over what, and when to look next: arithmetic only
//!   seat       one VM as the watcher has it: what it had when last looked at
//!   ledger     the seats of a family, its limits, and who is told
//!   growth     what the whole process has, to glance at between two looks
//!   watcher    the thread that looks, and stops who is over
//!   handle     what a VM's owner says and asks
//!   checks     what owners' calls ask before they run or freeze a VM
//! ```
//!
//! The kernel commits pages without asking, so a limit is kept by looking often
//! enough, and a VM may go past it by what it commits between two looks.
//! `docs/memory-accounting.md` says what counts and how far that is.

mod checks;
mod growth;
mod handle;
mod ledger;
mod policy;
mod seat;
mod watcher;

use std::fmt;

pub(crate) use checks::may_build;
pub(crate) use ledger::Ledger;
pub(crate) use seat::Seat;

/// How much may be committed: more than `soft` is a [`Notice`], more than
/// `hard` stops the VM. The default is no limit.
///
/// ```
/// use vmm::Limits;
///
/// let limits = Limits::new(Some(192 << 20), Some(256 << 20))?;
/// assert_eq!(limits.hard_bytes(), Some(256 << 20));
/// assert!(Limits::new(Some(2), Some(1)).is_err());
/// # Ok::<(), vmm::LimitsError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    soft_bytes: Option<u64>,
    hard_bytes: Option<u64>,
}

/// Limits that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the soft limit of {soft_bytes} bytes is above the hard limit of {hard_bytes} bytes")]
pub struct LimitsError {
    /// The soft limit asked for.
    pub soft_bytes: u64,
    /// The hard limit asked for.
    pub hard_bytes: u64,
}

impl Limits {
    /// No limit.
    pub const NONE: Self = Self {
        soft_bytes: None,
        hard_bytes: None,
    };

    /// Both, either or none.
    ///
    /// # Errors
    /// If the soft limit is above the hard one, and so would say nothing.
    pub fn new(soft_bytes: Option<u64>, hard_bytes: Option<u64>) -> Result<Self, LimitsError> {
        match (soft_bytes, hard_bytes) {
            (Some(soft_bytes), Some(hard_bytes)) if soft_bytes > hard_bytes => Err(LimitsError {
                soft_bytes,
                hard_bytes,
            }),
            _ => Ok(Self {
                soft_bytes,
                hard_bytes,
            }),
        }
    }

    /// A hard limit only.
    pub const fn hard(bytes: u64) -> Self {
        Self {
            soft_bytes: None,
            hard_bytes: Some(bytes),
        }
    }

    /// A soft limit only.
    pub const fn soft(bytes: u64) -> Self {
        Self {
            soft_bytes: Some(bytes),
            hard_bytes: None,
        }
    }

    /// Beyond this there is a notice.
    pub fn soft_bytes(&self) -> Option<u64> {
        self.soft_bytes
    }

    /// Beyond this the VM is stopped.
    pub fn hard_bytes(&self) -> Option<u64> {
        self.hard_bytes
    }
}

/// Whose memory a limit is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The VM's with this [number](crate::Vm::number).
    Vm(u64),
    /// All of the family's together.
    Family,
}

/// A limit that has been passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Whose memory it is on.
    pub whose: Whose,
    /// The limit.
    pub limit_bytes: u64,
    /// What was committed when it was looked at.
    pub committed_bytes: u64,
}

/// A soft limit has been passed. Nothing has been stopped. The next notice of
/// the same limit comes after usage was seen below it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice(pub MemoryLimit);

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(number) => write!(f, "VM {number}"),
            Self::Family => f.write_str("the family"),
        }
    }
}

impl MemoryLimit {
    fn write(&self, f: &mut fmt::Formatter<'_>, kind: &str) -> fmt::Result {
        write!(
            f,
            "{} has committed {} bytes, more than its {kind} memory limit of {}",
            self.whose, self.committed_bytes, self.limit_bytes
        )
    }
}

/// Of a hard limit, with what to do about it.
impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, "hard")?;
        f.write_str(match self.whose {
            Whose::Vm(_) => ": raise the limit, or reset the VM",
            Whose::Family => ": raise the limit, or reset or drop VMs of the family",
        })
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f, "soft")
    }
}
