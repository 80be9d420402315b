//! Why a decision went as it did: every expression as a tree, each node with its text and what it came to.

use std::collections::HashSet;
use std::fmt;

use serde_json::{Value as Json, json};

use crate::limits::rules as bounds;

use super::machine::{Trace, message, text_of};
use super::problem::Place;
use super::program::{Id, Node, Program};
use super::request::Decision;

/// A decision with its reasons.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// What was decided.
    pub decision: Decision,
    /// Every `allow` that is about the path and the operation, in the order of the file.
    pub allows: Vec<AllowTrace>,
    /// Steps that all of them took.
    pub steps: u32,
}

/// What one `allow` came to.
#[derive(Debug, Clone)]
pub struct AllowTrace {
    /// Its line.
    pub line: u32,
    /// The path it is about.
    pub path: String,
    /// Whether it is true, or why it is neither true nor false.
    pub outcome: Outcome,
    /// Its expression; `None` when it has none and so is always true.
    pub tree: Option<TraceNode>,
}

/// A part of an expression.
#[derive(Debug, Clone)]
pub struct TraceNode {
    /// As it is written.
    pub text: String,
    /// On which line.
    pub line: u32,
    /// What it came to.
    pub outcome: Outcome,
    /// The function it calls, if it calls one that the rules declare.
    pub function: Option<String>,
    /// What it is made of.
    pub children: Vec<TraceNode>,
}

/// What a part of an expression came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// True.
    True,
    /// False.
    False,
    /// Another value, as it is written in an expression, shortened.
    Value(String),
    /// No value; why.
    Error(String),
    /// Nobody looked.
    Skipped,
}

impl Outcome {
    pub(super) fn of_bool(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::True => f.write_str("true"),
            Self::False => f.write_str("false"),
            Self::Value(text) => f.write_str(text),
            Self::Error(why) => write!(f, "error: {why}"),
            Self::Skipped => f.write_str("not looked at"),
        }
    }
}

/// Makes trees from what was kept while a rule was evaluated.
pub(super) struct Explainer<'r> {
    pub(super) program: &'r Program,
    pub(super) source: &'r str,
    pub(super) trace: &'r Trace,
    /// Names whose value was shown already.
    pub(super) shown: HashSet<u32>,
}

impl Explainer<'_> {
    pub(super) fn tree(&mut self, id: Id) -> TraceNode {
        let span = self.program.spans.get(id as usize).copied().unwrap_or_default();
        let outcome = match self.trace.get(&id) {
            None => Outcome::Skipped,
            Some(Ok(super::value::Value::Bool(value))) => Outcome::of_bool(*value),
            Some(Ok(value)) => Outcome::Value(shortened(&value.to_string())),
            Some(Err(fault)) => Outcome::Error(message(*fault, self.program, self.source)),
        };
        let is_known = match self.program.node(id) {
            Node::Slot(slot) => !self.shown.insert(*slot),
            _ => false,
        };
        let function = match self.program.node(id) {
            Node::Scope(number, _) => self.program.functions.get(*number as usize).map(|f| f.name.clone()),
            _ => None,
        };
        let children = match outcome {
            Outcome::Skipped => Vec::new(),
            _ if is_known => Vec::new(),
            _ => {
                let mut children = self.program.children(id);
                children.retain(|child| !self.is_plain(*child));
                children.into_iter().map(|child| self.tree(child)).collect()
            }
        };
        let line = Place::of(self.source, span.start).line;
        TraceNode { text: shortened(text_of(self.source, span)), line, outcome, function, children }
    }

    /// What says nothing that is not in the text already.
    fn is_plain(&self, id: Id) -> bool {
        matches!(self.program.node(id), Node::Literal(_))
    }
}

/// Text on one line, and not too much of it.
pub(super) fn shortened(text: &str) -> String {
    let mut short = String::new();
    for (count, c) in text.split_whitespace().flat_map(|word| word.chars().chain([' '])).enumerate() {
        if count >= bounds::SHOWN_CHARACTERS_MAX {
            return format!("{}…", short.trim_end());
        }
        short.push(if c.is_control() { '\u{fffd}' } else { c });
    }
    short.truncate(short.trim_end().len());
    short
}

impl Explanation {
    /// The same as JSON.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let allows: Vec<Json> = self
            .allows
            .iter()
            .map(|allow| {
                json!({
                    "line": allow.line,
                    "path": allow.path,
                    "outcome": allow.outcome.to_string(),
                    "tree": allow.tree.as_ref().map(TraceNode::to_json),
                })
            })
            .collect();
        json!({
            "allowed": self.decision.allowed,
            "rule": self.decision.rule,
            "why": self.decision.why.to_string(),
            "steps": self.steps,
            "allows": allows,
        })
    }
}

impl TraceNode {
    fn to_json(&self) -> Json {
        json!({
            "text": self.text,
            "line": self.line,
            "outcome": self.outcome.to_string(),
            "function": self.function,
            "children": self.children.iter().map(Self::to_json).collect::<Vec<_>>(),
        })
    }

    /// Calls `each` with every node.
    pub fn visit(&self, each: &mut impl FnMut(&Self)) {
        each(self);
        self.children.iter().for_each(|child| child.visit(each));
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        write!(f, "\n{:depth$}{}  =>  {}", "", self.text, self.outcome)?;
        self.children.iter().try_for_each(|child| child.write(f, depth + 2))
    }
}

impl fmt::Display for Explanation {
    /// One line for the decision, one for each `allow`, and below it its expression as an indented tree.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.decision.allowed { "allowed" } else { "denied" }, self.decision.why)?;
        for allow in &self.allows {
            write!(f, "\n  line {}, {}: {}", allow.line, allow.path, allow.outcome)?;
            if let Some(tree) = &allow.tree {
                tree.write(f, 4)?;
            }
        }
        Ok(())
    }
}
