//! The memory of snapshots that are forked again and again is flattened, in the
//! background.
//!
//! Each time the forks of a snapshot have doubled, guestmem is asked whether
//! they have paid more for the pieces that its layer is in than it costs to
//! make those few ([`guestmem::Flattener`]). So a snapshot that is forked once
//! is never flattened, and one that is forked a thousand times has been looked
//! at nine times.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use guestmem::{Flattened, Flattener, Layer, PAGE_SIZE};

use crate::background;
use crate::machine::Family;

/// Forks below which nobody knows that there will be more.
const SEVERAL: u64 = 2;
/// Between two slices, at least: forks of others get the tree's lock first.
const PAUSE: Duration = Duration::from_micros(100);

/// How often a snapshot was forked.
#[derive(Debug, Default)]
pub(crate) struct Forks {
    so_far: AtomicU64,
    /// Somebody is at it.
    busy: Arc<AtomicBool>,
}

impl Forks {
    /// One more fork of the snapshot with this layer is made.
    pub(crate) fn one_more(&self, layer: &Layer, family: &Arc<Family>) {
        let forks = self.so_far.fetch_add(1, Ordering::Relaxed) + 1;
        let doubled = forks >= SEVERAL && forks.is_power_of_two();
        if doubled && !self.busy.swap(true, Ordering::AcqRel) {
            let job = Job {
                flattener: layer.flattener(forks),
                family: Arc::downgrade(family),
                busy: Arc::clone(&self.busy),
                begun: false,
            };
            background::flatten(job_steps(job));
        }
    }
}

/// A layer on its way. Whatever becomes of it, another may begin afterwards.
struct Job {
    flattener: Flattener,
    family: Weak<Family>,
    busy: Arc<AtomicBool>,
    begun: bool,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.busy.store(false, Ordering::Release);
    }
}

fn job_steps(mut job: Job) -> impl FnMut() -> Option<Duration> + Send + 'static {
    move || {
        let started = Instant::now();
        let more = job.step();
        more.then(|| started.elapsed().max(PAUSE))
    }
}

impl Job {
    /// Whether there is more to do.
    fn step(&mut self) -> bool {
        match self.flattener.step() {
            Ok(Flattened::Partly) => {}
            Ok(Flattened::Done | Flattened::LeftAlone) => return false,
            Err(error) => {
                log::debug!("a layer stays in pieces: {error}");
                return false;
            }
        }
        let begins = !std::mem::replace(&mut self.begun, true);
        if !begins {
            return true;
        }
        let Some(family) = self.family.upgrade() else {
            return false;
        };
        let refused = family.may_commit(self.flattener.nr_frames() * PAGE_SIZE);
        if let Err(error) = &refused {
            log::debug!("a layer stays in pieces: {error}");
        }
        refused.is_ok()
    }
}
