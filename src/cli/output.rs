//! How results are shown: a table for people, JSON or CSV for programs.

use clap::ValueEnum;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    Table,
    Json,
    Csv,
}

/// Columns and rows of text.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[&str]) -> Self {
        Self { columns: columns.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    /// Columns aligned, two spaces apart.
    pub(super) fn text(&self) -> String {
        let all = || std::iter::once(&self.columns).chain(&self.rows);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        all().map(line).collect()
    }

    /// RFC 4180.
    pub(super) fn csv(&self) -> String {
        let cell = |text: &String| {
            let quoted = text.contains([',', '"', '\n', '\r']);
            if quoted { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.clone() }
        };
        let line = |row: &Vec<String>| row.iter().map(cell).collect::<Vec<_>>().join(",") + "\r\n";
        std::iter::once(&self.columns).chain(&self.rows).map(line).collect()
    }
}

/// Prints `value` as JSON, or the table made of it.
pub(super) fn print(output: Output, value: &Value, table: impl FnOnce(&Value) -> Table) {
    match output {
        Output::Json => println!("{value:#}"),
        Output::Table => print!("{}", table(value).text()),
        Output::Csv => print!("{}", table(value).csv()),
    }
}

/// A JSON value as a cell.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The answer of a query as one row a point.
pub(super) fn query_table(answer: &Value) -> Table {
    let series = answer["series"].as_array().map_or(&[][..], Vec::as_slice);
    let keys = |of: &Value| of.as_object().map(|object| object.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let dimensions = series.first().map(|one| keys(&one["dimensions"])).unwrap_or_default();
    let points = series.iter().filter_map(|one| one["points"].as_array()).flatten();
    let values = points.map(keys).next().unwrap_or_default();
    let columns = dimensions.iter().chain(&values).cloned().collect();
    let mut table = Table { columns, rows: Vec::new() };
    for one in series {
        for point in one["points"].as_array().map_or(&[][..], Vec::as_slice) {
            let left = dimensions.iter().map(|name| cell(&one["dimensions"][name]));
            let right = values.iter().map(|name| cell(&point[name]));
            table.rows.push(left.chain(right).collect());
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_is_aligned_and_csv_is_quoted() {
        let answer = json!({"series": [
            {"dimensions": {"city": "Ōita, JP"}, "points": [{"start": "t0", "count": 7}, {"start": "t1", "count": 10}]},
            {"dimensions": {"city": null}, "points": []},
        ]});
        let table = query_table(&answer);
        assert_eq!(table.text(), "city      start  count\nŌita, JP  t0     7\nŌita, JP  t1     10\n");
        assert_eq!(table.csv(), "city,start,count\r\n\"Ōita, JP\",t0,7\r\n\"Ōita, JP\",t1,10\r\n");
    }
}
