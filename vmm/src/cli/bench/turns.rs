//! Taking turns: the machine is noisy, so whoever is compared is measured in
//! the same rounds, and each round begins with another one.

use std::time::Instant;

use super::stats::Samples;
use crate::cli::exit::Failure;

/// One measured step; what it returns is its figure, or its figures.
pub(super) type Turn<'a, T = f64> = Box<dyn FnMut() -> Result<T, Failure> + 'a>;

/// Lets all `turns` have `rounds` rounds, after one that does not count.
pub(super) fn take(rounds: usize, turns: &mut [Turn<'_>]) -> Result<Vec<Samples>, Failure> {
    let taken = take_each(rounds, turns)?;
    let samples = taken.into_iter().map(|each| each.into_iter().collect());
    Ok(samples.collect())
}

/// The same for steps with any kind of figures.
pub(super) fn take_each<T>(
    rounds: usize,
    turns: &mut [Turn<'_, T>],
) -> Result<Vec<Vec<T>>, Failure> {
    let count = turns.len();
    let mut samples: Vec<_> = turns.iter().map(|_| Vec::with_capacity(rounds)).collect();
    for round in 0..=rounds {
        for step in 0..count {
            let who = (round + step) % count;
            let figure = turns[who]()?;
            if round > 0 {
                samples[who].push(figure);
            }
        }
    }
    Ok(samples)
}

/// Microseconds since `start`.
pub(super) fn micros_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn everybody_has_as_many_rounds_and_goes_first_in_turn() {
        let log = RefCell::new(Vec::new());
        let turn = |who: usize| -> Turn<'_> {
            let log = &log;
            Box::new(move || {
                log.borrow_mut().push(who);
                Ok(who as f64)
            })
        };
        let samples = take(2, &mut [turn(0), turn(1)]).expect("no turn fails");
        assert_eq!(*log.borrow(), [0, 1, 1, 0, 0, 1]);
        assert_eq!(samples[1], [1.0, 1.0].into_iter().collect());
    }
}
