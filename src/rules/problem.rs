//! What is wrong with a file of rules, told with the place and what to do.

use std::collections::HashSet;
use std::fmt;

use crate::limits::rules as bounds;

/// One thing that is wrong with a file of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1.
    pub line: u32,
    /// The column, in characters from 1.
    pub column: u32,
    /// The line's text.
    pub text: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it; empty when the message says it.
    pub remedy: String,
}

/// Why a text is not rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulesError {
    /// The name of the text, as its file's.
    pub name: String,
    /// What is wrong with it, in its order; not empty.
    pub problems: Vec<Problem>,
}

impl RulesError {
    /// Its fixed code, whatever the problems.
    pub const CODE: &'static str = "E0210";

    /// Its fixed code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        Self::CODE
    }
}

impl std::error::Error for RulesError {}

impl fmt::Display for RulesError {
    /// Each problem with its line and a caret below its column.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the rules cannot be read")?;
        for problem in &self.problems {
            // A tab is shown as wide as one character, so that the caret stands below its place.
            let text: String = problem.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let width = problem.line.to_string().len();
            write!(f, "\n{}:{}:{}: {}", self.name, problem.line, problem.column, problem.message)?;
            write!(f, "\n {} | {}", problem.line, text.trim_end())?;
            write!(f, "\n {:width$} | {:>column$}", "", "^", column = problem.column as usize)?;
            if !problem.remedy.is_empty() {
                write!(f, "\n {:width$} = {}", "", problem.remedy)?;
            }
        }
        Ok(())
    }
}

/// The problems found so far: each once, and no more than are told.
#[derive(Debug)]
pub(super) struct Problems<'s> {
    source: &'s str,
    found: Vec<(u32, String, String)>,
    told: HashSet<(u32, String)>,
}

impl<'s> Problems<'s> {
    pub(super) fn new(source: &'s str) -> Self {
        Self { source, found: Vec::new(), told: HashSet::new() }
    }

    /// Notes a problem at a byte of the source.
    pub(super) fn add(&mut self, at: u32, message: impl Into<String>, remedy: impl Into<String>) {
        let message = message.into();
        if !self.is_full() && self.told.insert((at, message.clone())) {
            self.found.push((at, message, remedy.into()));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Where the latest one is.
    pub(super) fn last_at(&self) -> u32 {
        self.found.last().map_or(0, |(at, ..)| *at)
    }

    pub(super) fn is_full(&self) -> bool {
        self.found.len() >= bounds::PROBLEMS_MAX
    }

    pub(super) fn into_error(mut self, name: &str) -> RulesError {
        self.found.sort_by_key(|(at, ..)| *at);
        let source = self.source;
        let problem = |(at, message, remedy): (u32, String, String)| {
            let place = Place::of(source, at);
            // A line may be as long as the whole file.
            let text: String = place.text.chars().take(240).collect();
            let column = place.column.min(241);
            Problem { line: place.line, column, text, message, remedy }
        };
        RulesError { name: name.to_owned(), problems: self.found.into_iter().map(problem).collect() }
    }
}

/// Where a byte of the source is.
pub(super) struct Place<'s> {
    pub(super) line: u32,
    pub(super) column: u32,
    text: &'s str,
}

impl<'s> Place<'s> {
    pub(super) fn of(source: &'s str, at: u32) -> Self {
        let mut at = (at as usize).min(source.len());
        while !source.is_char_boundary(at) {
            at -= 1;
        }
        let before = &source[..at];
        let begin = before.rfind('\n').map_or(0, |newline| newline + 1);
        let end = source[at..].find('\n').map_or(source.len(), |newline| at + newline);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            line: count(before.matches('\n').count() + 1),
            column: count(before[begin..].chars().count() + 1),
            text: &source[begin..end],
        }
    }
}

/// The one of `names` that is most like `word`, if one is like it.
#[must_use]
pub fn nearest<'n>(word: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let allowed = (word.chars().count() / 3).max(1);
    let close = names.into_iter().map(|name| (distance(word, name, allowed), name));
    close.filter(|(distance, _)| *distance <= allowed).min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// `did you mean ..?`, or what there is.
pub(super) fn suggestion(word: &str, names: &[&str]) -> String {
    match nearest(word, names.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None if names.is_empty() => String::new(),
        None => format!("there is {}", names.join(", ")),
    }
}

/// How many letters must be put in, left out, replaced or exchanged with the next, as far as that is at most `bound`.
fn distance(a: &str, b: &str, bound: usize) -> usize {
    let lower = |text: &str| text.chars().map(|c| c.to_ascii_lowercase()).collect::<Vec<char>>();
    let (a, b) = (lower(a), lower(b));
    if a.len().abs_diff(b.len()) > bound {
        return bound + 1;
    }
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(row[j - 1] + 1).min(last[j] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before_last[j - 2] + 1);
            }
            row.push(least);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_near_what_was_meant() {
        assert_eq!(nearest("atuh", ["auth", "path"]), Some("auth"));
        assert_eq!(nearest("resouce", ["request", "resource"]), Some("resource"));
        assert_eq!(nearest("xyz", ["auth"]), None);
        assert_eq!(nearest("", ["a"]), Some("a"));
    }

    #[test]
    fn a_caret_stands_below_its_place() {
        let mut problems = Problems::new("one\n\tté x;\n");
        problems.add(8, "what is x", "leave it out");
        problems.add(8, "what is x", "once is enough");
        let text = problems.into_error("rules.tidelog").to_string();
        assert_eq!(
            text,
            "the rules cannot be read\nrules.tidelog:2:4: what is x\n 2 |  té x;\n   |    ^\n   = leave it out"
        );
    }
}
