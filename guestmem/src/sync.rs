//! The lock of a clone tree: std's, or one that a model checker schedules
//! ([`interleaving`](crate)).

#[cfg(all(test, shuttle))]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};
#[cfg(not(all(test, shuttle)))]
pub(crate) use std::sync::{Mutex, MutexGuard};
