//! One line of the result: a measure against its floor, its rival and its
//! targets.

use super::plot::Curve;
use super::stats::Samples;

/// What the figures of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Microseconds,
    Kibibytes,
    /// How many times as much as something else.
    Times,
}

impl Unit {
    /// Its name in JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Microseconds => "us",
            Self::Kibibytes => "KiB",
            Self::Times => "times",
        }
    }

    /// A figure for people.
    pub(super) fn show(self, value: f64) -> String {
        let digits = match value.abs() {
            small if small < 10.0 => 2,
            middle if middle < 100.0 => 1,
            _ => 0,
        };
        match self {
            Self::Microseconds if value >= 10_000.0 => format!("{:.1} ms", value / 1000.0),
            Self::Microseconds => format!("{value:.digits$} µs"),
            Self::Kibibytes => format!("{value:.digits$} KiB"),
            Self::Times => format!("{value:.2} ×"),
        }
    }
}

/// What is asked of a measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    /// The median is no more than this.
    AtMost(f64),
    /// The median is no more than this many times the floor's.
    TimesFloor(f64),
    /// The rival's median is at least this many times ours.
    TimesQuickerThanRival(f64),
}

/// One line of the result.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) unit: Unit,
    pub(super) samples: Samples,
    pub(super) floor_p50: Option<f64>,
    pub(super) rival: Option<(&'static str, f64)>,
    pub(super) targets: Vec<Target>,
    /// The curve that it is a point of, and where.
    pub(super) point: Option<(Curve, f64)>,
}

impl Row {
    pub(super) fn new(name: impl Into<String>, unit: Unit, samples: Samples) -> Self {
        Self {
            name: name.into(),
            unit,
            samples,
            floor_p50: None,
            rival: None,
            targets: Vec::new(),
            point: None,
        }
    }

    pub(super) fn floor(mut self, floor: &Samples) -> Self {
        self.floor_p50 = Some(floor.p50());
        self
    }

    pub(super) fn rival(mut self, name: &'static str, rival: &Samples) -> Self {
        self.rival = Some((name, rival.p50()));
        self
    }

    pub(super) fn target(mut self, target: Target) -> Self {
        self.targets.push(target);
        self
    }

    pub(super) fn at(mut self, curve: Curve, x: f64) -> Self {
        self.point = Some((curve, x));
        self
    }

    pub(super) fn ratio_to_floor(&self) -> Option<f64> {
        self.floor_p50.map(|floor| self.samples.p50() / floor)
    }

    /// What is asked of it, in words; `None` if nothing is.
    pub(super) fn target_text(&self) -> Option<String> {
        let words = self.targets.iter().map(|target| match *target {
            Target::AtMost(value) => format!("≤ {}", self.unit.show(value)),
            Target::TimesFloor(times) => format!("≤ {times} × floor"),
            Target::TimesQuickerThanRival(times) => format!("rival ≥ {times} ×"),
        });
        let words: Vec<_> = words.collect();
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// Whether all of that is met; `None` if nothing is asked. What could not
    /// be compared is not met.
    pub(super) fn pass(&self) -> Option<bool> {
        let p50 = self.samples.p50();
        let met = |target: &Target| match *target {
            Target::AtMost(value) => p50 <= value,
            Target::TimesFloor(times) => self.ratio_to_floor().is_some_and(|ratio| ratio <= times),
            Target::TimesQuickerThanRival(times) => {
                self.rival.is_some_and(|(_, rival)| rival >= times * p50)
            }
        };
        (!self.targets.is_empty()).then(|| self.targets.iter().all(met))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f64) -> Row {
        let samples = [value].into_iter().collect();
        Row::new("name", Unit::Microseconds, samples)
    }

    fn one(value: f64) -> Samples {
        [value].into_iter().collect()
    }

    #[test]
    fn every_target_has_to_be_met() {
        let row = row(100.0)
            .floor(&one(90.0))
            .rival("rival", &one(900.0))
            .target(Target::AtMost(100.0))
            .target(Target::TimesFloor(1.3))
            .target(Target::TimesQuickerThanRival(8.0));
        assert_eq!(row.pass(), Some(true));
        assert_eq!(row.clone().floor(&one(50.0)).pass(), Some(false));
        assert_eq!(row.clone().rival("rival", &one(700.0)).pass(), Some(false));
        assert_eq!(row.target(Target::AtMost(99.0)).pass(), Some(false));
    }

    #[test]
    fn what_nothing_is_asked_of_neither_passes_nor_falls_short() {
        assert_eq!(row(1.0).pass(), None);
        assert_eq!(row(1.0).target_text(), None);
    }

    #[test]
    fn a_target_without_its_floor_is_not_met() {
        let row = row(1.0).target(Target::TimesFloor(2.0));
        assert_eq!(row.pass(), Some(false));
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(Unit::Microseconds.show(1.234), "1.23 µs");
        assert_eq!(Unit::Microseconds.show(147.4), "147 µs");
        assert_eq!(Unit::Microseconds.show(12_340.0), "12.3 ms");
        assert_eq!(Unit::Times.show(1.2), "1.20 ×");
        assert_eq!(Unit::Kibibytes.show(84.06), "84.1 KiB");
    }
}
