//! The result as a table for people and as JSON for programs.

use serde::Serialize;

use super::row::{Row, Unit};

/// The one object that `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    measures: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    unit: &'static str,
    n: usize,
    min: f64,
    p50: f64,
    p99: f64,
    floor_p50: Option<f64>,
    ratio_to_floor: Option<f64>,
    rival_p50: Option<f64>,
    rival: Option<&'static str>,
    target: Option<String>,
    pass: Option<bool>,
}

impl<'a> From<&'a Row> for Entry<'a> {
    fn from(row: &'a Row) -> Self {
        Self {
            name: &row.name,
            unit: row.unit.name(),
            n: row.samples.len(),
            min: row.samples.min(),
            p50: row.samples.p50(),
            p99: row.samples.p99(),
            floor_p50: row.floor_p50,
            ratio_to_floor: row.ratio_to_floor(),
            rival_p50: row.rival.map(|(_, p50)| p50),
            rival: row.rival.map(|(name, _)| name),
            target: row.target_text(),
            pass: row.pass(),
        }
    }
}

/// One JSON object with every row.
pub(super) fn json(rows: &[Row]) -> serde_json::Result<String> {
    let measures = rows.iter().map(Entry::from).collect();
    serde_json::to_string_pretty(&Document { measures })
}

const HEADINGS: [&str; 10] = [
    "measure",
    "n",
    "min",
    "p50",
    "p99",
    "floor",
    "p50/floor",
    "rival",
    "target",
    "",
];

/// A table with a line for every row.
pub(super) fn table(rows: &[Row]) -> String {
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    lines.extend(rows.iter().map(line));
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; HEADINGS.len()] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(widths).enumerate();
        let cells: Vec<_> = cells
            .map(|(column, (cell, width))| match column {
                1..=6 => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn line(row: &Row) -> [String; HEADINGS.len()] {
    let show = |value| row.unit.show(value);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
    [
        row.name.clone(),
        row.samples.len().to_string(),
        show(row.samples.min()),
        show(row.samples.p50()),
        show(row.samples.p99()),
        or_dash(row.floor_p50.map(show)),
        or_dash(row.ratio_to_floor().map(|ratio| Unit::Times.show(ratio))),
        or_dash(
            row.rival
                .map(|(name, p50)| format!("{} ({name})", show(p50))),
        ),
        or_dash(row.target_text()),
        match row.pass() {
            Some(true) => "PASS",
            Some(false) => "SHORT",
            None => "",
        }
        .into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::row::Target;
    use crate::cli::bench::stats::Samples;

    fn rows() -> [Row; 2] {
        let samples: Samples = [100.0, 200.0, 300.0].into_iter().collect();
        let floor: Samples = [100.0].into_iter().collect();
        [
            Row::new("plain", Unit::Kibibytes, samples.clone()),
            Row::new("full", Unit::Microseconds, samples)
                .floor(&floor)
                .rival("somebody", &floor)
                .target(Target::TimesFloor(1.3)),
        ]
    }

    #[test]
    fn json_has_every_field_and_null_where_there_is_nothing() {
        let json: serde_json::Value = serde_json::from_str(&json(&rows()).unwrap()).unwrap();
        let expected = serde_json::json!({"measures": [
            {
                "name": "plain", "unit": "KiB", "n": 3, "min": 100.0, "p50": 200.0, "p99": 300.0,
                "floor_p50": null, "ratio_to_floor": null, "rival_p50": null, "rival": null,
                "target": null, "pass": null,
            },
            {
                "name": "full", "unit": "us", "n": 3, "min": 100.0, "p50": 200.0, "p99": 300.0,
                "floor_p50": 100.0, "ratio_to_floor": 2.0, "rival_p50": 100.0,
                "rival": "somebody", "target": "≤ 1.3 × floor", "pass": false,
            },
        ]});
        assert_eq!(json, expected);
    }

    #[test]
    fn the_table_is_in_columns() {
        let table = table(&rows());
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        let at = |line: &str, word: &str| line.find(word).map(|at| line[..at].chars().count());
        assert_eq!(at(lines[0], "target"), at(lines[2], "≤ 1.3"));
        assert!(lines[2].ends_with("SHORT"), "{table}");
    }
}
