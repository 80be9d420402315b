//! Rules as they are evaluated: names resolved, functions written out, every node in one table.

use std::sync::Arc;

use regex::Regex;

use super::ast::{Binary, Span, TypeTest};
use super::functions::Builtin;
use super::request::Operation;
use super::value::Value;

/// A node's place in the table.
pub(super) type Id = u32;

/// Where the facts of a request are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    /// `request` itself, which is no value: what it is followed by decides.
    Request,
    Auth,
    Method,
    Time,
    Path,
    Before,
    After,
    Change,
    /// The collection, as a segment of the path bound it.
    Collection,
    /// The id, likewise.
    DocumentId,
    /// Both, as `{x=**}` bound them.
    WholePath,
}

#[derive(Debug)]
pub(super) enum Node {
    Literal(Value),
    /// A fact of the request and a path of names in it, looked up at once.
    Fact(Root, Box<[Arc<str>]>),
    /// Whether such a place is there; the path is not empty.
    HasFact(Root, Box<[Arc<str>]>),
    /// Whether nobody, no document or no change is there; or, negated, whether one is.
    IsNull(Root, bool),
    /// What a name stands for, evaluated when it is first used.
    Slot(u32),
    /// A function's body; `Program::functions` has its name.
    Scope(u32, Id),
    Field(Id, Arc<str>),
    Has(Id, Arc<str>),
    Index(Id, Id),
    Not(Id),
    Negate(Id),
    Binary(Binary, Id, Id),
    And(Box<[Id]>),
    Or(Box<[Id]>),
    If([Id; 3]),
    List(Box<[Id]>),
    Map(Box<[(Id, Id)]>),
    Is(Id, TypeTest),
    Call(Builtin, Box<[Id]>),
    Matches(Id, Arc<Regex>),
    /// A path of a collection and an id, each a text.
    Path(Id, Id),
    Get(Id),
    Exists(Id),
}

/// A function as it was declared.
#[derive(Debug)]
pub(super) struct Declared {
    pub(super) name: String,
    pub(super) at: Span,
}

#[derive(Debug, Default)]
pub(super) struct Program {
    pub(super) nodes: Vec<Node>,
    /// Of each node, where it is in the source.
    pub(super) spans: Vec<Span>,
    /// What each slot stands for.
    pub(super) slots: Vec<Id>,
    pub(super) functions: Vec<Declared>,
}

impl Program {
    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// The nodes that one looks at, in the order of the source.
    pub(super) fn children(&self, id: Id) -> Vec<Id> {
        match self.node(id) {
            Node::Literal(_) | Node::Fact(..) | Node::HasFact(..) | Node::IsNull(..) => Vec::new(),
            Node::Slot(slot) => vec![self.slots[*slot as usize]],
            Node::Scope(_, inner)
            | Node::Field(inner, _)
            | Node::Has(inner, _)
            | Node::Not(inner)
            | Node::Negate(inner)
            | Node::Is(inner, _)
            | Node::Matches(inner, _)
            | Node::Get(inner)
            | Node::Exists(inner) => vec![*inner],
            Node::Index(a, b) | Node::Binary(_, a, b) | Node::Path(a, b) => vec![*a, *b],
            Node::And(inner) | Node::Or(inner) | Node::List(inner) | Node::Call(_, inner) => inner.to_vec(),
            Node::If(inner) => inner.to_vec(),
            Node::Map(entries) => entries.iter().flat_map(|(key, value)| [*key, *value]).collect(),
        }
    }
}

/// Which documents an `allow` is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    /// `None`: any.
    pub(super) collection: Option<Box<str>>,
    pub(super) id: Option<Box<str>>,
    /// As it is written.
    pub(super) text: String,
}

/// An `allow`, ready to be evaluated.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) line: u32,
    pub(super) operations: Vec<Operation>,
    pub(super) pattern: Pattern,
    /// `None`: always true.
    pub(super) condition: Option<Id>,
    /// Its slots: the first, and how many.
    pub(super) slots: (u32, u32),
}
