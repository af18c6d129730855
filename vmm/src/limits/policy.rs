//! Who is over what, and when to look next: arithmetic over plain data.

use std::time::Duration;

use super::Limits;

/// Faster than guests commit memory, in bytes a millisecond: 16 GiB a second,
/// which is what several vCPUs reach with huge pages.
const FASTEST_PER_MS: u64 = 16 << 20;

/// A look closer upon the last one would cost more than it finds out.
const LEAST_INTERVAL: Duration = Duration::from_millis(1);
/// However far away the limit is; a limit may be lowered or a guess be wrong.
const MOST_INTERVAL: Duration = Duration::from_millis(100);

/// Looking takes at most this part of a core, one twenty-fifth, so that with
/// glances it is one twentieth…
const REST_FOR_LOOK: u32 = 25;
/// …or one quarter, while glances say that a limit is reached.
const LEAST_REST: u32 = 4;

/// Where an amount stands to its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Within,
    /// More than the soft limit.
    AboveSoft,
    /// More than the hard limit, and so than the soft one.
    AboveHard,
}

/// Judges an amount. Exactly the limit is within it: a limit as large as a
/// VM's RAM never stops it.
pub(crate) fn judge(committed_bytes: u64, limits: &Limits) -> Verdict {
    let above = |limit: Option<u64>| limit.is_some_and(|limit| committed_bytes > limit);
    if above(limits.hard_bytes()) {
        Verdict::AboveHard
    } else if above(limits.soft_bytes()) {
        Verdict::AboveSoft
    } else {
        Verdict::Within
    }
}

/// How much more may be committed before `judge` says something else; `None`:
/// it never will.
pub(crate) fn headroom(committed_bytes: u64, limits: &Limits) -> Option<u64> {
    let ahead = [limits.soft_bytes(), limits.hard_bytes()];
    let ahead = ahead.into_iter().flatten();
    ahead
        .filter_map(|limit| limit.checked_sub(committed_bytes))
        .min()
}

/// When to look again. A look counts every VM's pages, which takes
/// milliseconds for gigabytes; a glance only asks how much the whole process
/// has grown, which takes microseconds and misses growth where something else
/// shrinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// How often to glance.
    pub(crate) glance: Duration,
    /// A glance may bring the look forward to this.
    pub(crate) earliest: Duration,
    /// The look comes then, whatever glances say.
    pub(crate) latest: Duration,
}

/// The pace when the nearest limit is `headroom` away and the last look took
/// `cost`.
pub(crate) fn pace(headroom: Option<u64>, cost: Duration) -> Pace {
    let until_reached = match headroom {
        Some(bytes) => Duration::from_millis(bytes / FASTEST_PER_MS),
        None => MOST_INTERVAL,
    };
    let glance = until_reached.clamp(LEAST_INTERVAL, MOST_INTERVAL);
    // The part of a core comes last: it holds whatever a look costs.
    Pace {
        glance,
        earliest: glance.max(cost * LEAST_REST),
        latest: glance.max(cost * REST_FOR_LOOK),
    }
}

/// Whether a soft limit was passed just now: said once, and again after usage
/// was below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edge {
    above: bool,
}

impl Edge {
    /// Notes an amount; true if it has just gone above the soft limit.
    pub(crate) fn passes(&mut self, committed_bytes: u64, limits: &Limits) -> bool {
        let above = limits
            .soft_bytes()
            .is_some_and(|soft| committed_bytes > soft);
        let before = std::mem::replace(&mut self.above, above);
        above && !before
    }
}

/// A VM that runs, as a look has found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Runner {
    /// What it had at the last look.
    pub(crate) before_bytes: u64,
    /// What it has.
    pub(crate) now_bytes: u64,
}

/// Which of `runners` to stop when their family is over its hard limit: those
/// that have grown. If none has and the family has, it was the file: any of
/// them may have read its holes, so all are stopped.
pub(crate) fn culprits(runners: &[Runner], family_grew: bool) -> impl Iterator<Item = usize> {
    let grew = |runner: &Runner| runner.now_bytes > runner.before_bytes;
    let anyone = family_grew && !runners.iter().any(grew);
    let stop = move |(at, runner): (usize, &Runner)| (anyone || grew(runner)).then_some(at);
    runners.iter().enumerate().filter_map(stop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn both(soft: u64, hard: u64) -> Limits {
        Limits::new(Some(soft), Some(hard)).unwrap()
    }

    #[test]
    fn what_equals_a_limit_is_within_it() {
        let limits = both(10, 20);
        assert_eq!(judge(10, &limits), Verdict::Within);
        assert_eq!(judge(11, &limits), Verdict::AboveSoft);
        assert_eq!(judge(20, &limits), Verdict::AboveSoft);
        assert_eq!(judge(21, &limits), Verdict::AboveHard);
        assert_eq!(judge(u64::MAX, &Limits::NONE), Verdict::Within);
        assert_eq!(judge(21, &Limits::hard(20)), Verdict::AboveHard);
        assert_eq!(judge(21, &Limits::soft(20)), Verdict::AboveSoft);
    }

    #[test]
    fn a_soft_limit_above_the_hard_one_is_refused_with_both() {
        let error = Limits::new(Some(21), Some(20)).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("21") && said.contains("20"), "{said}");
        assert!(Limits::new(Some(20), Some(20)).is_ok());
    }

    #[test]
    fn headroom_is_to_the_next_limit_ahead() {
        let limits = both(10, 20);
        assert_eq!(headroom(0, &limits), Some(10));
        assert_eq!(headroom(10, &limits), Some(0));
        assert_eq!(headroom(11, &limits), Some(9));
        assert_eq!(headroom(21, &limits), None);
        assert_eq!(headroom(0, &Limits::NONE), None);
    }

    #[test]
    fn the_nearer_the_limit_the_sooner_the_next_look() {
        let free = Duration::ZERO;
        let next = |headroom| pace(headroom, free).latest;
        assert_eq!(next(Some(0)), LEAST_INTERVAL);
        let ten = Duration::from_millis(10);
        assert_eq!(next(Some(10 * FASTEST_PER_MS)), ten);
        assert_eq!(next(Some(u64::MAX)), MOST_INTERVAL);
        assert_eq!(next(None), MOST_INTERVAL);
    }

    #[test]
    fn a_guest_that_commits_as_fast_as_any_is_looked_at_before_it_is_over() {
        let mut committed = 0;
        let limits = Limits::hard(1 << 30);
        while let Some(room @ FASTEST_PER_MS..) = headroom(committed, &limits) {
            let wait = pace(Some(room), Duration::ZERO).latest;
            committed += FASTEST_PER_MS * wait.as_millis() as u64;
            assert!(committed <= 1 << 30);
        }
    }

    #[test]
    fn looking_takes_a_twentieth_of_a_core_unless_a_glance_says_more() {
        let cost = Duration::from_millis(30);
        for headroom in [Some(0), None] {
            assert_eq!(pace(headroom, cost).latest, 25 * cost);
            assert_eq!(pace(headroom, cost).earliest, (4 * cost).max(MOST_INTERVAL));
        }
        // Glances go on meanwhile, as often as the limit is near.
        assert_eq!(pace(Some(0), cost).glance, LEAST_INTERVAL);
    }

    #[test]
    fn a_soft_limit_is_said_once_until_usage_was_below_it() {
        let (mut edge, limits) = (Edge::default(), Limits::soft(10));
        let passes = [5, 11, 12, 10, 11, 11, 0, 10].map(|bytes| edge.passes(bytes, &limits));
        assert_eq!(
            passes,
            [false, true, false, false, true, false, false, false]
        );
        // Lifted and set again, it says so again.
        assert!(edge.passes(11, &limits));
        assert!(!edge.passes(11, &Limits::NONE));
        assert!(edge.passes(11, &limits));
    }

    #[test]
    fn who_has_grown_is_stopped_and_all_only_if_nobody_says_who() {
        let runner = |before_bytes, now_bytes| Runner {
            before_bytes,
            now_bytes,
        };
        let stopped = |runners: &[Runner], grew| culprits(runners, grew).collect::<Vec<_>>();
        let mixed = [runner(5, 5), runner(5, 6), runner(7, 3)];
        assert_eq!(stopped(&mixed, true), [1]);
        assert_eq!(stopped(&mixed, false), [1]);
        let still = [runner(5, 5), runner(7, 3)];
        assert_eq!(stopped(&still, true), [0, 1]);
        assert!(stopped(&still, false).is_empty());
    }
}
