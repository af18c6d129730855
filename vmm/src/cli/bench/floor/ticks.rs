//! The time-stamp counter, by which guests tell when they run.

// UNSAFETY: the instruction that reads the counter.
#![expect(unsafe_code)]

use std::time::{Duration, Instant};

/// What the counter says.
pub(in super::super) fn now() -> u64 {
    // SAFETY: every x86-64 CPU has it, and hosts let processes use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// How many ticks a microsecond has.
pub(in super::super) struct TickRate(f64);

impl TickRate {
    pub(in super::super) fn measure() -> Self {
        let (start, first) = (Instant::now(), now());
        std::thread::sleep(Duration::from_millis(50));
        let (took, last) = (start.elapsed(), now());
        Self((last - first) as f64 / (took.as_secs_f64() * 1e6))
    }

    pub(in super::super) fn micros(&self, ticks: u64) -> f64 {
        ticks as f64 / self.0
    }
}
