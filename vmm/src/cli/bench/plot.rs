//! Curves as SVG pictures: both axes logarithmic, a line for each series.

use std::fmt::Write;

use super::row::Row;

/// What the rows of a curve have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Curve {
    /// Name of the picture's file, without its ending.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) x_label: &'static str,
}

/// Whose figures a line shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Ours,
    Floor,
}

/// A line of a plot.
struct Series<'a> {
    line: Line,
    label: &'a str,
    /// Ascending in the first coordinate; all are above zero.
    points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
/// Room for labels left of and below the plot, and above and right of it.
const LEFT: f64 = 90.0;
const BELOW: f64 = 60.0;
const ABOVE: f64 = 44.0;
const RIGHT: f64 = 24.0;

const COLORS: [&str; 4] = ["#0b62a4", "#b5541a", "#3a7d34", "#7a3b8f"];

/// The pictures of all curves that `rows` hold: name and content.
pub(super) fn pictures(rows: &[Row]) -> Vec<(&'static str, String)> {
    let mut curves: Vec<Curve> = Vec::new();
    for (curve, _) in rows.iter().filter_map(|row| row.point) {
        if !curves.contains(&curve) {
            curves.push(curve);
        }
    }
    let picture = |curve: &Curve| (curve.name, picture(curve, &series_of(curve, rows)));
    curves.iter().map(picture).collect()
}

/// A line for every name that the rows of `curve` have before their last `/`,
/// and one for the floor of each that has one.
fn series_of<'a>(curve: &Curve, rows: &'a [Row]) -> Vec<Series<'a>> {
    let mut series: Vec<Series<'a>> = Vec::new();
    for row in rows {
        let Some((_, x)) = row.point.filter(|(of, _)| of == curve) else {
            continue;
        };
        let label = row
            .name
            .rsplit_once('/')
            .map_or(&*row.name, |(name, _)| name);
        let ours = (Line::Ours, row.samples.p50());
        let floor = row.floor_p50.map(|p50| (Line::Floor, p50));
        for (line, y) in std::iter::once(ours).chain(floor) {
            let known = series
                .iter_mut()
                .find(|known| known.line == line && known.label == label);
            match known {
                Some(known) => known.points.push((x, y)),
                None => series.push(Series {
                    line,
                    label,
                    points: vec![(x, y)],
                }),
            }
        }
    }
    series
}

/// A logarithmic axis over whole powers of ten.
struct Axis {
    low: i32,
    high: i32,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(0.0, f64::max);
        let low = least.log10().floor() as i32;
        let high = most.log10().ceil() as i32;
        Self {
            low,
            high: high.max(low + 1),
        }
    }

    /// Where a value lies, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        (value.log10() - f64::from(self.low)) / f64::from(self.high - self.low)
    }

    fn powers(&self) -> impl Iterator<Item = f64> {
        (self.low..=self.high).map(|power| 10_f64.powi(power))
    }
}

fn picture(curve: &Curve, series: &[Series<'_>]) -> String {
    let all = || series.iter().flat_map(|series| series.points.iter());
    let x_axis = Axis::over(all().map(|point| point.0));
    let y_axis = Axis::over(all().map(|point| point.1));
    let x = |value| LEFT + x_axis.share(value) * (WIDTH - LEFT - RIGHT);
    let y = |value| HEIGHT - BELOW - y_axis.share(value) * (HEIGHT - BELOW - ABOVE);

    let mut body = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(body, "{text}");
    };
    line(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">"#
    ));
    line(format_args!(
        r##"<rect width="100%" height="100%" fill="#fff"/>"##
    ));
    line(format_args!(
        r#"<text x="{LEFT}" y="24" font-size="16">{}</text>"#,
        curve.title
    ));
    for power in x_axis.powers() {
        let (at, top, bottom) = (x(power), ABOVE, HEIGHT - BELOW);
        line(format_args!(
            r##"<path d="M{at:.1} {top}V{bottom}" stroke="#ddd"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"##,
            bottom + 18.0,
            short(power)
        ));
    }
    for power in y_axis.powers() {
        let (at, right) = (y(power), WIDTH - RIGHT);
        line(format_args!(
            r##"<path d="M{LEFT} {at:.1}H{right}" stroke="#ddd"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"##,
            LEFT - 8.0,
            at + 4.0,
            time(power)
        ));
    }
    line(format_args!(
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 16.0,
        curve.x_label
    ));
    for (index, series) in series.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        let label = match series.line {
            Line::Ours => series.label.to_owned(),
            Line::Floor => format!("{} floor", series.label),
        };
        let points = series.points.iter();
        let places: Vec<_> = points.map(|point| (x(point.0), y(point.1))).collect();
        let path = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}"));
        let path = path.collect::<Vec<_>>().join(" ");
        line(format_args!(
            r#"<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>"#
        ));
        for (x, y) in places {
            line(format_args!(
                r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{color}"/>"#
            ));
        }
        line(format_args!(
            r#"<text x="{:.1}" y="{:.1}" fill="{color}">{label}</text>"#,
            LEFT + 12.0,
            ABOVE + 18.0 + 18.0 * index as f64
        ));
    }
    body.push_str("</svg>\n");
    body
}

/// A power of ten in few letters.
fn short(value: f64) -> String {
    match value {
        small if small < 1.0 => format!("{small}"),
        middle if middle < 1000.0 => format!("{middle:.0}"),
        thousands if thousands < 1e6 => format!("{:.0} k", thousands / 1e3),
        millions => format!("{:.0} M", millions / 1e6),
    }
}

/// A time in microseconds, in its own unit.
fn time(micros: f64) -> String {
    match micros {
        small if small < 1000.0 => format!("{small} µs"),
        middle if middle < 1e6 => format!("{} ms", middle / 1e3),
        seconds => format!("{} s", seconds / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::row::Unit;
    use crate::cli::bench::stats::Samples;

    const CURVE: Curve = Curve {
        name: "ram",
        title: "Cost of a fork",
        x_label: "RAM in MiB",
    };

    fn one(value: f64) -> Samples {
        [value].into_iter().collect()
    }

    fn row(x: f64, value: f64) -> Row {
        let row = Row::new(format!("fork/{x}"), Unit::Microseconds, one(value));
        row.floor(&one(value / 2.0)).at(CURVE, x)
    }

    #[test]
    fn a_curve_has_a_line_for_us_and_one_for_the_floor() {
        let rows = [row(1.0, 10.0), row(10.0, 20.0), row(100.0, 40.0)];
        let [(name, picture)] = &pictures(&rows)[..] else {
            panic!("one picture");
        };
        assert_eq!(*name, "ram");
        assert_eq!(picture.matches("<polyline").count(), 2);
        assert_eq!(picture.matches("<circle").count(), 6);
        assert!(picture.contains("Cost of a fork") && picture.contains("RAM in MiB"));
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    }

    #[test]
    fn rows_that_are_on_no_curve_make_no_picture() {
        let row = Row::new("fork", Unit::Microseconds, one(1.0));
        assert!(pictures(&[row]).is_empty());
    }

    #[test]
    fn an_axis_goes_from_power_to_power() {
        let axis = Axis::over([20.0, 700.0].into_iter());
        assert_eq!(axis.powers().collect::<Vec<_>>(), [10.0, 100.0, 1000.0]);
        assert_eq!(axis.share(100.0), 0.5);
    }

    #[test]
    fn labels_have_units() {
        assert_eq!(time(100.0), "100 µs");
        assert_eq!(time(10_000.0), "10 ms");
        assert_eq!(short(100_000.0), "100 k");
    }
}
