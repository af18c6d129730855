//! Samples and what is said of them.

/// Measured values of one thing, in one unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn min(&self) -> f64 {
        self.percentile(0.0)
    }

    pub(super) fn p50(&self) -> f64 {
        self.percentile(50.0)
    }

    pub(super) fn p99(&self) -> f64 {
        self.percentile(99.0)
    }

    /// The smallest value that at least `percent` of all do not exceed; not a
    /// number if there are none.
    fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or(f64::NAN)
    }

    /// These divided by `others`, pair by pair: what was measured in the same
    /// round met the same noise.
    pub(super) fn over(&self, others: &Self) -> Self {
        self.0.iter().zip(&others.0).map(|(a, b)| a / b).collect()
    }

    /// The first `count` of them.
    pub(super) fn first(&self, count: usize) -> Self {
        self.0.iter().copied().take(count).collect()
    }

    /// The last `count` of them.
    pub(super) fn last(&self, count: usize) -> Self {
        let skipped = self.0.len().saturating_sub(count);
        self.0.iter().copied().skip(skipped).collect()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        Self(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: impl IntoIterator<Item = u32>) -> Samples {
        values.into_iter().map(f64::from).collect()
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred = samples((1..=100).rev());
        assert_eq!(hundred.min(), 1.0);
        assert_eq!(hundred.p50(), 50.0);
        assert_eq!(hundred.p99(), 99.0);
        let three = samples([30, 10, 20]);
        assert_eq!((three.min(), three.p50(), three.p99()), (10.0, 20.0, 30.0));
        assert_eq!(samples([7]).p99(), 7.0);
    }

    #[test]
    fn nothing_measured_is_no_number() {
        assert!(Samples::default().p50().is_nan());
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let ratios = samples([10, 40, 90]).over(&samples([10, 20, 30]));
        assert_eq!(ratios, samples([1, 2, 3]));
    }

    #[test]
    fn both_ends_of_a_row_of_samples() {
        let five = samples(1..=5);
        assert_eq!(five.first(2), samples([1, 2]));
        assert_eq!(five.last(2), samples([4, 5]));
        assert_eq!(samples([1]).last(10), samples([1]));
    }
}
