//! An answer as CSV after RFC 4180: dimensions, `start`, aggregates; null is an empty field, an empty text is `""`.
//!
//! Spreadsheets take a text that begins with `=`, `+`, `-`, `@`, a tab or a line break for a formula. What events call their
//! dimensions is nobody's code, so such a text gets an apostrophe in front, as spreadsheets write it themselves.

use lamina_metric::{Answer, DimensionValue, Numbers};

use crate::{instant, query::encode::Body};

pub(crate) fn csv(body: &Body<'_>) -> Vec<u8> {
    let mut out = String::new();
    let names = body.columns().iter().map(|column| &column.name);
    let start = "start".to_owned();
    for (at, name) in body.group_by().iter().chain([&start]).chain(names).enumerate() {
        separate(&mut out, at);
        text(&mut out, name);
    }
    out.push_str("\r\n");
    for row in body.rows {
        let mut series = String::new();
        for (at, value) in row.values.iter().enumerate() {
            separate(&mut series, at);
            match value {
                DimensionValue::Null => {}
                DimensionValue::Str(value) => text(&mut series, value),
                other => series.push_str(&other.to_json().to_string()),
            }
        }
        for point in &row.points {
            out.push_str(&series);
            separate(&mut out, row.values.len());
            out.push_str(&instant::format(point.start));
            for answer in &point.answers {
                out.push(',');
                field(&mut out, answer);
            }
            out.push_str("\r\n");
        }
    }
    out.into_bytes()
}

fn separate(out: &mut String, at: usize) {
    if at > 0 {
        out.push(',');
    }
}

fn field(out: &mut String, answer: &Answer) {
    match answer {
        Answer::Null => {}
        Answer::Str(value) => text(out, value),
        // It begins with a bracket.
        Answer::Top(_) => quoted(out, "", &answer.to_json(Numbers::Number).to_string()),
        // Digits are never quoted, whatever `numbers` says: CSV has no types.
        other => match other.to_json(Numbers::Number) {
            serde_json::Value::String(plain) => out.push_str(&plain),
            number => out.push_str(&number.to_string()),
        },
    }
}

fn text(out: &mut String, value: &str) {
    let formula = value.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']);
    if formula || value.is_empty() || value.contains([',', '"', '\r', '\n']) || value.trim() != value {
        quoted(out, if formula { "'" } else { "" }, value);
    } else {
        out.push_str(value);
    }
}

fn quoted(out: &mut String, before: &str, value: &str) {
    out.push('"');
    out.push_str(before);
    out.push_str(&value.replace('"', "\"\""));
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_where_needed_and_never_formulas() {
        let written = |value: &str| {
            let mut out = String::new();
            text(&mut out, value);
            out
        };
        for (value, expected) in [
            ("plain", "plain"),
            ("", "\"\""),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("two\nlines", "\"two\nlines\""),
            (" space", "\" space\""),
            ("=1+1", "\"'=1+1\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("-2", "\"'-2\""),
            ("\t=1", "\"'\t=1\""),
            ("#de", "#de"),
        ] {
            assert_eq!(written(value), expected);
        }
        let mut out = String::new();
        field(&mut out, &Answer::Decimal { value: -1230, scale: 2 });
        assert_eq!(out, "-12.30", "a number is a number");
    }
}
