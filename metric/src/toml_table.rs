//! Reads one TOML table key by key, noting everything that is wrong instead of stopping at the first.
//!
//! # Invariants
//! - Every value carries the place where it stands.
//! - A key that nobody asked for is a problem.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    diagnostic::{Problem, Problems, nearest, or_list},
    time::Length,
};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Range<usize>,
}

impl<T> At<T> {
    pub(crate) fn new(value: T, span: Range<usize>) -> Self {
        Self { value, span }
    }

    pub(crate) fn try_map<U>(self, convert: impl FnOnce(T) -> Option<U>) -> Option<At<U>> {
        let span = self.span;
        convert(self.value).map(|value| At { value, span })
    }
}

/// A table being read.
pub(crate) struct Table<'a, 'i> {
    /// How people call it: `source.edits`.
    pub(crate) name: String,
    pub(crate) span: Range<usize>,
    entries: &'a DeTable<'i>,
    asked: Vec<&'static str>,
}

impl<'a, 'i> Table<'a, 'i> {
    pub(crate) fn new(name: String, span: Range<usize>, entries: &'a DeTable<'i>) -> Self {
        Self { name, span, entries, asked: Vec::new() }
    }

    fn ask(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.asked.push(key);
        self.entries.get(key)
    }

    pub(crate) fn text(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<At<String>> {
        let value = self.ask(key)?;
        text_of(key, value, problems)
    }

    /// A text that must be there.
    pub(crate) fn required(
        &mut self,
        key: &'static str,
        help: &str,
        problems: &mut Problems<'_>,
    ) -> Option<At<String>> {
        if !self.entries.contains_key(key) {
            self.asked.push(key);
            problems.add(self.span.clone(), Problem::new(format!("{} has no `{key}`", self.name), help));
            return None;
        }
        self.text(key, problems)
    }

    pub(crate) fn flag(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<At<bool>> {
        let value = self.ask(key)?;
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(At::new(*flag, value.span())),
            other => {
                wrong_type(key, "true or false", other, value.span(), problems);
                None
            }
        }
    }

    pub(crate) fn number(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<At<u32>> {
        let value = self.ask(key)?;
        let number = value.get_ref().as_integer().and_then(|n| u32::from_str_radix(n.as_str(), n.radix()).ok());
        match number {
            Some(number) if number > 0 => Some(At::new(number, value.span())),
            _ => {
                wrong_type(key, "a whole number above 0", value.get_ref(), value.span(), problems);
                None
            }
        }
    }

    pub(crate) fn length(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<At<Length>> {
        let text = self.text(key, problems)?;
        length_of(text, problems)
    }

    pub(crate) fn list(
        &mut self,
        key: &'static str,
        problems: &mut Problems<'_>,
    ) -> Option<Vec<&'a Spanned<DeValue<'i>>>> {
        let value = self.ask(key)?;
        match value.get_ref() {
            DeValue::Array(items) => Some(items.iter().collect()),
            other => {
                wrong_type(key, "a list, as in [\"a\", \"b\"]", other, value.span(), problems);
                None
            }
        }
    }

    /// Tables that each begin with `[[name.key]]`.
    pub(crate) fn tables(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Vec<Table<'a, 'i>> {
        let Some(value) = self.ask(key) else { return Vec::new() };
        let name = format!("{}.{key}", self.name);
        let mut wrong = |item: &Spanned<DeValue<'_>>| {
            wrong_type(key, &format!("a list of tables: [[{name}]]"), item.get_ref(), item.span(), problems);
        };
        let DeValue::Array(items) = value.get_ref() else {
            wrong(value);
            return Vec::new();
        };
        let table = |item: &'a Spanned<DeValue<'i>>| match item.get_ref() {
            DeValue::Table(entries) => Some(Table::new(name.clone(), item.span(), entries)),
            _ => {
                wrong(item);
                None
            }
        };
        items.iter().filter_map(table).collect()
    }

    pub(crate) fn texts(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<Vec<At<String>>> {
        let items = self.list(key, problems)?;
        Some(items.into_iter().filter_map(|item| text_of(key, item, problems)).collect())
    }

    /// A table of texts in the order in which it was written: key, value.
    pub(crate) fn entries(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Vec<(At<String>, At<String>)> {
        let Some(value) = self.ask(key) else { return Vec::new() };
        let DeValue::Table(table) = value.get_ref() else {
            wrong_type(key, "a table", value.get_ref(), value.span(), problems);
            return Vec::new();
        };
        let mut entries: Vec<_> = table
            .iter()
            .filter_map(|(name, value)| {
                let name = At::new(name.get_ref().to_string(), name.span());
                let value = entry_text(&name, value, problems)?;
                Some((name, value))
            })
            .collect();
        entries.sort_by_key(|(name, _)| name.span.start);
        entries
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Where a key stands.
    pub(crate) fn span_of(&self, key: &str) -> Option<Range<usize>> {
        self.entries.get_key_value(key).map(|(key, _)| key.span())
    }

    /// Notes the keys that nobody asked for.
    pub(crate) fn finish(self, problems: &mut Problems<'_>) {
        for (key, _) in self.entries {
            if self.asked.contains(&key.get_ref().as_ref()) {
                continue;
            }
            let help = match nearest(key.get_ref(), self.asked.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known are {}", or_list(&self.asked).replace(" or ", " and ")),
            };
            problems
                .add(key.span(), Problem::new(format!("{} has an unknown key `{}`", self.name, key.get_ref()), help));
        }
    }
}

/// A text in the table of fields or derived columns. A dotted key that is not quoted is a table to TOML.
fn entry_text(name: &At<String>, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<At<String>> {
    if let DeValue::Table(inner) = value.get_ref() {
        let full = match inner.keys().next() {
            Some(key) => format!("{}.{}", name.value, key.get_ref()),
            None => name.value.clone(),
        };
        let help = format!("quote a name that holds a dot: \"{full}\" = ...");
        problems.add(name.span.clone(), Problem::new(format!("`{}` is a table, not a text", name.value), help));
        return None;
    }
    text_of(&name.value, value, problems)
}

pub(crate) fn text_of(key: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<At<String>> {
    match value.get_ref() {
        DeValue::String(text) if !text.trim().is_empty() => Some(At::new(text.to_string(), value.span())),
        DeValue::String(_) => {
            problems.add(value.span(), Problem::new(format!("`{key}` is empty"), "write a text, or leave the key out"));
            None
        }
        other => {
            wrong_type(key, "a text in quotes", other, value.span(), problems);
            None
        }
    }
}

pub(crate) fn length_of(text: At<String>, problems: &mut Problems<'_>) -> Option<At<Length>> {
    match Length::parse(&text.value) {
        Ok(length) => Some(At::new(length, text.span)),
        Err(why) => {
            problems.add(text.span, Problem::new(why, "write a whole number and s, m, h, d, w or y, as in 10s"));
            None
        }
    }
}

fn wrong_type(key: &str, wanted: &str, got: &DeValue<'_>, span: Range<usize>, problems: &mut Problems<'_>) {
    let message = match got {
        DeValue::Integer(number) => format!("`{key}` is the number {number}"),
        other => format!("`{key}` is of type {}", other.type_str()),
    };
    problems.add(span, Problem::new(message, format!("it must be {wanted}")));
}
