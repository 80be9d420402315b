//! A file of rules as it is written.

use super::request::Operation;
use super::value::{Kind, Value};

/// A part of the source, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

/// A whole file: the outermost block, which matches nothing by itself.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) root: Block,
}

/// A `match`, or what stands around all of them.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) at: Span,
    pub(super) segments: Vec<Segment>,
    /// Names that Firestore's prefix binds, `/databases/{database}/documents`.
    pub(super) databases: Vec<String>,
    pub(super) functions: Vec<Function>,
    pub(super) allows: Vec<Allow>,
    pub(super) blocks: Vec<Block>,
}

/// One segment of the path of a `match`.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) at: Span,
    pub(super) kind: SegmentKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SegmentKind {
    Literal(String),
    /// `{name}`: one segment.
    One(String),
    /// `{name=**}`: one or more.
    Rest(String),
}

#[derive(Debug)]
pub(super) struct Allow {
    pub(super) at: Span,
    pub(super) operations: Vec<Operation>,
    /// `None`: always.
    pub(super) condition: Option<Expr>,
}

#[derive(Debug)]
pub(super) struct Function {
    pub(super) at: Span,
    pub(super) name: String,
    pub(super) parameters: Vec<String>,
    pub(super) lets: Vec<(String, Span, Expr)>,
    pub(super) result: Expr,
}

#[derive(Debug)]
pub(super) struct Expr {
    pub(super) kind: ExprKind,
    pub(super) at: Span,
    /// How many nodes lie below each other in it, itself included.
    pub(super) height: u16,
}

#[derive(Debug)]
pub(super) enum ExprKind {
    Literal(Value),
    Name(String),
    Member(Box<Expr>, String),
    Index(Box<Expr>, Box<Expr>),
    Call { target: Option<Box<Expr>>, name: String, name_at: Span, arguments: Vec<Expr> },
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    If(Box<[Expr; 3]>),
    List(Vec<Expr>),
    Map(Vec<(Expr, Expr)>),
    Is(Box<Expr>, TypeTest),
    Path(Vec<PathPart>),
}

/// A segment of a path that stands in an expression, `/users/$(request.auth.uid)`.
#[derive(Debug)]
pub(super) enum PathPart {
    Text(String),
    Computed(Expr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
}

/// What `is` may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TypeTest {
    One(Kind),
    /// An integer, with a sign or without.
    Integer,
    /// Any number.
    Number,
}

impl TypeTest {
    pub(super) const NAMES: [&'static str; 12] =
        ["string", "int", "float", "double", "number", "bool", "list", "map", "timestamp", "duration", "null", "bytes"];

    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "string" => Self::One(Kind::String),
            "int" => Self::Integer,
            "float" | "double" => Self::One(Kind::Double),
            "number" => Self::Number,
            "bool" => Self::One(Kind::Bool),
            "list" => Self::One(Kind::List),
            "map" => Self::One(Kind::Map),
            "timestamp" => Self::One(Kind::Timestamp),
            "duration" => Self::One(Kind::Duration),
            "null" => Self::One(Kind::Null),
            "bytes" => Self::One(Kind::Bytes),
            _ => return None,
        })
    }

    pub(super) fn holds(self, kind: Kind) -> bool {
        match self {
            Self::One(own) => own == kind,
            Self::Integer => matches!(kind, Kind::Int | Kind::Uint),
            Self::Number => matches!(kind, Kind::Int | Kind::Uint | Kind::Double),
        }
    }
}
