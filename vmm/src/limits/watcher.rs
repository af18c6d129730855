//! The thread that looks at what a family has committed, and stops who is over
//! a hard limit. It starts with the first limit and ends with the family.
//!
//! It waits for nobody: what is being worked on (a VM whose RAM or gate
//! somebody holds) is looked at the next time, soon.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::growth::Growth;
use super::ledger::{Due, Ledger};
use super::policy::{culprits, headroom};
use super::seat::Seat;
use super::{Limits, MemoryLimit};

pub(super) fn spawn(ledger: Arc<Ledger>) -> io::Result<()> {
    let thread = std::thread::Builder::new().name("memory-limits".into());
    thread.spawn(move || watch(&ledger)).map(drop)
}

fn watch(ledger: &Ledger) {
    let process = Growth::open();
    let held_bytes = || ledger.file_bytes() + process.as_ref().map_or(0, Growth::private_bytes);
    let mut held_at_look = held_bytes();
    loop {
        match ledger.wait() {
            Due::Nothing => return,
            Due::Glance(headroom) if held_bytes() <= held_at_look.saturating_add(headroom) => {}
            Due::Glance(_) | Due::Look => {
                ledger.begin_look();
                held_at_look = held_bytes();
                let before = used_time();
                let again = look(ledger);
                // Time on a core, not on the clock: a busy host must not make
                // looks rare.
                ledger.looked(used_time().saturating_sub(before), again);
            }
        }
    }
}

/// Time that this thread has spent on a core.
fn used_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// One look. The least headroom of whoever runs; `None` if nobody does, so
/// that nothing changes until somebody is let run.
fn look(ledger: &Ledger) -> Option<Option<u64>> {
    let (seats, family) = ledger.seats();
    let is_limited = |seat: &&Arc<Seat>| family != Limits::NONE || seat.limits() != Limits::NONE;
    let mut least = None;
    let mut runners = Vec::new();
    for seat in seats.iter().filter(is_limited) {
        if !seat.may_have_changed() {
            continue;
        }
        let room = match seat.look() {
            Some(found) => {
                if let Some(notice) = found.notice {
                    ledger.tell(notice);
                }
                let stopped = found.over.is_none_or(|limit| stop(seat, limit));
                runners.push((seat, found.runner));
                if stopped { found.headroom } else { Some(0) }
            }
            None => Some(0),
        };
        least = nearest(least, room);
    }
    let anybody_runs = seats
        .iter()
        .filter(is_limited)
        .any(|seat| seat.may_have_changed());
    if family != Limits::NONE {
        let room = look_at_family(ledger, &family, &runners);
        least = nearest(least, room);
    }
    anybody_runs.then_some(least)
}

/// The family's part of a look; its headroom.
fn look_at_family(
    ledger: &Ledger,
    limits: &Limits,
    runners: &[(&Arc<Seat>, super::policy::Runner)],
) -> Option<u64> {
    let over = ledger.family_over(0);
    let bytes = ledger.family_bytes();
    let grew = ledger.family_grew(bytes);
    let Some(limit) = over else {
        return headroom(bytes, limits);
    };
    let growth: Vec<_> = runners.iter().map(|(_, runner)| *runner).collect();
    for culprit in culprits(&growth, grew) {
        stop(runners[culprit].0, limit);
    }
    // Whoever still runs may grow any moment.
    Some(0)
}

fn stop(seat: &Seat, limit: MemoryLimit) -> bool {
    let stopped = seat.stop(limit);
    log::debug!("{limit} ({})", if stopped { "stopped" } else { "busy" });
    stopped
}

/// The smaller headroom; none is endless.
fn nearest(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
