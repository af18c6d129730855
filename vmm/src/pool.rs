//! Forks of a snapshot, made ahead.
//!
//! ```text
//!   builder ──► make: window, shell, memslots, vCPUs restored ──► ready
//!                                                                   │ take
//!   a fork:  clocks set again, devices, a number ◄──────────────────┘
//! ```
//!
//! All that a fork costs is done here but for what belongs to its moment:
//! clocks go on from the snapshot's when the fork is taken, not when it was
//! made.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use guestmem::SpareRam;

use crate::error::VmError;
use crate::kvm::shell::{Shell, Vcpu};

/// A fork that only has to be taken. Its fields go in this order.
#[derive(Debug)]
pub(crate) struct Warm {
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) shell: Shell,
    pub(crate) ram: SpareRam,
}

/// The warm forks of one snapshot.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    state: Mutex<PoolState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct PoolState {
    wanted: usize,
    ready: VecDeque<Warm>,
    /// One is being made.
    making: bool,
    /// Why the last one could not be made, until somebody is told.
    failed: Option<VmError>,
}

impl Pool {
    /// Sets how many to keep; those too many go.
    pub(crate) fn keep(&self, wanted: usize) {
        let mut state = self.lock();
        state.wanted = wanted;
        state.failed = None;
        let kept = wanted.min(state.ready.len());
        let surplus = state.ready.split_off(kept);
        drop(state);
        drop(surplus); // takes long, so not under the lock
        self.changed.notify_all();
    }

    /// The one made first, if there is any.
    pub(crate) fn take(&self) -> Option<Warm> {
        self.lock().ready.pop_front()
    }

    /// Whether there are fewer than wanted.
    pub(crate) fn lacks(&self) -> bool {
        self.lock().lacks()
    }

    /// Makes one, if there are fewer than wanted and `make` has one to give;
    /// whether there may be more to make.
    pub(crate) fn fill(&self, make: impl FnOnce() -> Option<Result<Warm, VmError>>) -> bool {
        let mut state = self.lock();
        if !state.lacks() || state.failed.is_some() || state.making {
            return false;
        }
        state.making = true;
        drop(state);
        let made = make();
        let mut state = self.lock();
        let more = matches!(made, Some(Ok(_)));
        let surplus = match made {
            Some(Ok(warm)) if state.lacks() => {
                state.ready.push_back(warm);
                None
            }
            Some(Err(error)) => {
                log::warn!("no fork made ahead: {error}");
                state.failed = Some(error);
                None
            }
            unwanted => unwanted,
        };
        drop(state);
        drop(surplus);
        self.lock().making = false;
        self.changed.notify_all();
        more
    }

    /// Lets all of them go, and whoever makes one.
    pub(crate) fn close(&self) {
        self.keep(0);
        let mut state = self.lock();
        while state.making {
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until as many as wanted are ready, or one cannot be made.
    pub(crate) fn wait_full(&self) -> Result<(), VmError> {
        let mut state = self.lock();
        while state.lacks() {
            if let Some(error) = state.failed.take() {
                return Err(error);
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.lock().ready.len()
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PoolState {
    fn lacks(&self) -> bool {
        self.ready.len() < self.wanted
    }
}
