//! A problem in a definition, with its place.

use std::{fmt, ops::Range};

/// One problem in a definition. Displays as `file:line:column: message (help)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
    /// Bytes of the file's text that are meant.
    pub span: Range<usize>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostic {}

impl miette::Diagnostic for Diagnostic {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = miette::LabeledSpan> + '_>> {
        let label = miette::LabeledSpan::underline(self.span.clone());
        Some(Box::new(std::iter::once(label)))
    }
}

/// What is wrong and what would be right, before its place is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Problem {
    pub(crate) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: Some(help.into()) }
    }

    pub(crate) fn plain(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }
}

/// Collects the problems of one file.
pub(crate) struct Problems<'a> {
    file: &'a str,
    text: &'a str,
    found: Vec<Diagnostic>,
}

impl<'a> Problems<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, found: Vec::new() }
    }

    pub(crate) fn add(&mut self, span: Range<usize>, problem: Problem) {
        let (line, column) = position(self.text, span.start);
        let Problem { message, help } = problem;
        self.found.push(Diagnostic { file: self.file.to_owned(), line, column, message, help, span });
    }

    pub(crate) fn count(&self) -> usize {
        self.found.len()
    }

    /// `file:line` of a place, to point at from elsewhere.
    pub(crate) fn place(&self, span: &Range<usize>) -> String {
        format!("{}:{}", self.file, position(self.text, span.start).0)
    }

    /// The byte `at` of a text that stands here in quotes, if it is written as it reads; else the whole text.
    pub(crate) fn within(&self, span: &Range<usize>, text: &str, at: usize) -> Range<usize> {
        let written = self.text.get(span.clone()).unwrap_or_default();
        let quotes = written.find(text).filter(|before| written.len() - text.len() == 2 * before);
        let start = quotes.map(|before| span.start + before + at).filter(|start| *start < span.end);
        start.map_or_else(|| span.clone(), |start| start..span.end)
    }

    /// All found, in the order of the text.
    pub(crate) fn into_found(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|problem| problem.span.start);
        self.found
    }
}

fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The known name nearest to `name`, if one is near enough to have been meant.
pub(crate) fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let wanted = name.to_lowercase();
    let distances = known.into_iter().map(|known| (distance(&wanted, &known.to_lowercase()), known));
    distances.filter(|(distance, _)| *distance <= 1 + wanted.chars().count() / 4).min().map(|(_, known)| known)
}

/// Edits (insert, delete, replace) between two texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// "a, b or c".
pub(crate) fn or_list<S: AsRef<str>>(names: &[S]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [one] => one.as_ref().to_owned(),
        [head @ .., last] => {
            let head: Vec<&str> = head.iter().map(AsRef::as_ref).collect();
            format!("{} or {}", head.join(", "), last.as_ref())
        }
    }
}
