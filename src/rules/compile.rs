//! From what is written to what is evaluated: names are resolved, functions written out where they are called.

use std::collections::HashSet;
use std::sync::Arc;

use crate::limits::rules as bounds;

use super::ast::{Allow, Binary, Block, Expr, ExprKind, File, Function, PathPart, SegmentKind, Span};
use super::parser::short;
use super::problem::{Place, Problems, suggestion};
use super::program::{Declared, Id, Node, Pattern, Program, Root, Rule};
use super::value::{Kind, Value};

/// Types that an expression may name, to compare with `type()`.
const TYPES: [(&str, Kind); 11] = [
    ("null_type", Kind::Null),
    ("bool", Kind::Bool),
    ("int", Kind::Int),
    ("uint", Kind::Uint),
    ("double", Kind::Double),
    ("string", Kind::String),
    ("bytes", Kind::Bytes),
    ("timestamp", Kind::Timestamp),
    ("duration", Kind::Duration),
    ("list", Kind::List),
    ("map", Kind::Map),
];

/// Compiles every `allow` of a file, in its order. What is wrong is in `problems` afterwards.
pub(super) fn compile(file: &File, source: &str, problems: &mut Problems<'_>) -> (Program, Vec<Rule>) {
    let mut compiler = Compiler {
        program: Program::default(),
        source,
        problems,
        frames: Vec::new(),
        bound: Vec::new(),
        called: HashSet::new(),
        patterns: 0,
        depth: 0,
        begin: 0,
        is_full: false,
        rules: Vec::new(),
    };
    compiler.declare(&file.root);
    compiler.block(&file.root);
    (compiler.program, compiler.rules)
}

/// What a name of a function's stands for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Local {
    /// A fact or a literal, which is put in its place.
    Copy(Id),
    Slot(u32),
}

/// What can be seen where an expression stands.
#[derive(Clone)]
pub(super) struct Scope<'f> {
    /// How many of the blocks around it.
    pub(super) frames: usize,
    pub(super) locals: Vec<(&'f str, Local)>,
    /// The functions that are being written out.
    pub(super) calls: Vec<&'f Function>,
}

/// What a segment of the path binds.
#[derive(Debug, Clone, Copy)]
enum Bound {
    Fact(Root),
    /// Firestore's `{database}`.
    Default,
}

pub(super) struct Compiler<'f, 's, 'p> {
    pub(super) program: Program,
    pub(super) source: &'f str,
    problems: &'p mut Problems<'s>,
    pub(super) frames: Vec<&'f Block>,
    /// Of the present `allow`: the block, the name, what it binds.
    bound: Vec<(usize, &'f str, Bound)>,
    pub(super) called: HashSet<u32>,
    pub(super) patterns: usize,
    depth: usize,
    /// The first node of the present expression.
    begin: usize,
    is_full: bool,
    rules: Vec<Rule>,
}

impl<'f> Compiler<'f, '_, '_> {
    pub(super) fn fail<T>(&mut self, at: Span, message: impl Into<String>, remedy: impl Into<String>) -> Option<T> {
        self.problems.add(at.start, message, remedy);
        None
    }

    fn declare(&mut self, block: &'f Block) {
        for (index, function) in block.functions.iter().enumerate() {
            if block.functions[..index].iter().any(|other| other.name == function.name) {
                let message = format!("a function `{}` is in this block already", short(&function.name));
                self.problems.add(function.at.start, message, "rename one of them");
            }
            self.program.functions.push(Declared { name: function.name.clone(), at: function.at });
        }
        block.blocks.iter().for_each(|inner| self.declare(inner));
    }

    fn block(&mut self, block: &'f Block) {
        self.frames.push(block);
        // In the order of the file, whatever stands first in the tree.
        let mut allows = block.allows.iter().peekable();
        for inner in &block.blocks {
            while let Some(allow) = allows.next_if(|allow| allow.at.start < inner.at.start) {
                self.allow(allow);
            }
            self.block(inner);
        }
        allows.for_each(|allow| self.allow(allow));
        for function in &block.functions {
            if !self.called.contains(&function.at.start) {
                self.uncalled(function);
            }
        }
        self.frames.pop();
    }

    /// A function that nobody calls is read too, so that its mistakes are told now.
    fn uncalled(&mut self, function: &'f Function) {
        self.begin = self.program.nodes.len();
        let (slots, bound) = (self.program.slots.len(), std::mem::take(&mut self.bound));
        for (frame, block) in self.frames.iter().enumerate() {
            let names = block.segments.iter().filter_map(|segment| match &segment.kind {
                SegmentKind::One(name) | SegmentKind::Rest(name) => Some(name),
                SegmentKind::Literal(_) => None,
            });
            let names = names.chain(&block.databases);
            self.bound.extend(names.map(|name| (frame, name.as_str(), Bound::Fact(Root::WholePath))));
        }
        if let Some(nothing) = self.push(Node::Literal(Value::Null), function.at) {
            let mut scope = Scope { frames: self.frames.len(), locals: Vec::new(), calls: vec![function] };
            for parameter in &function.parameters {
                let slot = self.slot(nothing);
                scope.locals.push((parameter, slot));
            }
            self.body(function, scope);
        }
        self.program.nodes.truncate(self.begin);
        self.program.spans.truncate(self.begin);
        self.program.slots.truncate(slots);
        self.bound = bound;
        self.is_full = false;
    }

    fn allow(&mut self, allow: &'f Allow) {
        self.bound.clear();
        let Some(pattern) = self.pattern(allow.at) else { return };
        let first_slot = self.program.slots.len();
        self.begin = self.program.nodes.len();
        self.is_full = false;
        let scope = Scope { frames: self.frames.len(), locals: Vec::new(), calls: Vec::new() };
        let condition = match &allow.condition {
            None => None,
            Some(condition) => match self.value(condition, &scope) {
                None => return,
                some => some,
            },
        };
        let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        self.rules.push(Rule {
            line: Place::of(self.source, allow.at.start).line,
            operations: allow.operations.clone(),
            pattern,
            condition,
            slots: (narrow(first_slot), narrow(self.program.slots.len() - first_slot)),
        });
    }

    /// Which documents the present blocks are about, and what their segments bind.
    fn pattern(&mut self, at: Span) -> Option<Pattern> {
        let frames = self.frames.clone();
        let segments: Vec<_> = frames
            .iter()
            .enumerate()
            .flat_map(|(frame, block)| block.segments.iter().map(move |s| (frame, s)))
            .collect();
        for (frame, block) in frames.iter().enumerate() {
            self.bound.extend(block.databases.iter().map(|name| (frame, name.as_str(), Bound::Default)));
        }
        let roots: &[Root] = match segments.as_slice() {
            [(_, only)] if matches!(only.kind, SegmentKind::Rest(_)) => &[Root::WholePath],
            [_, _] => &[Root::Collection, Root::DocumentId],
            [] | [_] => {
                let remedy = "the path of a document is /collection/{id}, or {any=**} for all";
                return self.fail(at, "this allow is about no document, its path has too few segments", remedy);
            }
            [_, _, (_, third), ..] => {
                let at = third.at;
                let remedy = "a document's path is /collection/id; what Firestore keeps in collections below documents \
                              is in collections of its own here";
                return self.fail(at, "this path is longer than any document's", remedy);
            }
        };
        let mut pattern = Pattern { collection: None, id: None, text: String::new() };
        for ((frame, segment), root) in segments.iter().zip(roots) {
            let name = match &segment.kind {
                SegmentKind::Literal(text) => {
                    let text: Box<str> = text.as_str().into();
                    pattern.text.push_str(&format!("/{text}"));
                    if *root == Root::Collection {
                        pattern.collection = Some(text)
                    } else {
                        pattern.id = Some(text)
                    }
                    continue;
                }
                SegmentKind::One(name) => {
                    pattern.text.push_str(&format!("/{{{name}}}"));
                    name
                }
                SegmentKind::Rest(name) => {
                    pattern.text.push_str(&format!("/{{{name}=**}}"));
                    name
                }
            };
            if self.bound.iter().any(|(_, other, _)| other == name) {
                return self.fail(segment.at, format!("two segments of this path are called `{name}`"), "rename one");
            }
            self.bound.push((*frame, name, Bound::Fact(*root)));
        }
        Some(pattern)
    }

    pub(super) fn push(&mut self, node: Node, at: Span) -> Option<Id> {
        let own = self.program.nodes.len() - self.begin;
        if own >= bounds::EXPRESSION_NODES_MAX || self.program.nodes.len() >= bounds::NODES_MAX {
            if !self.is_full {
                self.is_full = true;
                let (what, most) = match own >= bounds::EXPRESSION_NODES_MAX {
                    true => ("this expression", bounds::EXPRESSION_NODES_MAX),
                    false => ("all expressions together", bounds::NODES_MAX),
                };
                let message = format!("{what}, with functions written out, have more than {most} parts");
                self.problems.add(at.start, message, "call functions less often: put results under names with `let`");
            }
            return None;
        }
        let id = Id::try_from(self.program.nodes.len()).ok()?;
        self.program.nodes.push(node);
        self.program.spans.push(at);
        Some(id)
    }

    pub(super) fn slot(&mut self, value: Id) -> Local {
        self.program.slots.push(value);
        Local::Slot(u32::try_from(self.program.slots.len() - 1).unwrap_or(u32::MAX))
    }

    /// An expression as a value: `request` itself is none.
    pub(super) fn value(&mut self, expr: &'f Expr, scope: &Scope<'f>) -> Option<Id> {
        let id = self.raw(expr, scope)?;
        if self.fact(id).is_some_and(|(root, _)| root == Root::Request) {
            return self.fail(expr.at, "request is no value by itself", REQUEST_HAS);
        }
        Some(id)
    }

    pub(super) fn values(&mut self, exprs: &'f [Expr], scope: &Scope<'f>) -> Option<Box<[Id]>> {
        // All of them, so that the mistakes of each are told.
        let ids: Vec<_> = exprs.iter().map(|expr| self.value(expr, scope)).collect();
        ids.into_iter().collect()
    }

    fn pair(&mut self, a: &'f Expr, b: &'f Expr, scope: &Scope<'f>) -> Option<(Id, Id)> {
        let (a, b) = (self.value(a, scope), self.value(b, scope));
        Some((a?, b?))
    }

    pub(super) fn raw(&mut self, expr: &'f Expr, scope: &Scope<'f>) -> Option<Id> {
        if self.is_full {
            return None;
        }
        if self.depth >= bounds::EVALUATION_DEPTH_MAX {
            let most = bounds::EVALUATION_DEPTH_MAX;
            let message = format!("with functions written out, this is nested more than {most} deep");
            return self.fail(expr.at, message, "put parts of it under names with `let`");
        }
        self.depth += 1;
        let id = self.raw_kind(expr, scope);
        self.depth -= 1;
        id
    }

    fn raw_kind(&mut self, expr: &'f Expr, scope: &Scope<'f>) -> Option<Id> {
        let at = expr.at;
        let node = match &expr.kind {
            ExprKind::Literal(value) => Node::Literal(value.clone()),
            ExprKind::Name(name) => return self.named(name, at, scope),
            ExprKind::Member(base, name) => {
                let base = self.raw(base, scope)?;
                return self.member(base, name, at);
            }
            ExprKind::Index(base, index) => return self.index(base, index, at, scope),
            ExprKind::Call { target, name, name_at, arguments } => {
                return self.call(target.as_deref(), name, *name_at, arguments, at, scope);
            }
            ExprKind::Not(inner) => Node::Not(self.value(inner, scope)?),
            ExprKind::Negate(inner) => Node::Negate(self.value(inner, scope)?),
            ExprKind::Binary(Binary::In, a, b) => return self.within(a, b, at, scope),
            ExprKind::Binary(operator, a, b) => {
                let (a, b) = self.pair(a, b, scope)?;
                self.null_test(*operator, a, b).unwrap_or(Node::Binary(*operator, a, b))
            }
            ExprKind::And(terms) => Node::And(self.values(terms, scope)?),
            ExprKind::Or(terms) => Node::Or(self.values(terms, scope)?),
            ExprKind::If(parts) => {
                let parts = self.values(&parts[..], scope)?;
                Node::If([parts[0], parts[1], parts[2]])
            }
            ExprKind::List(items) => return self.list(items, at, scope),
            ExprKind::Map(entries) => {
                let ids: Vec<_> = entries.iter().map(|(key, value)| self.pair(key, value, scope)).collect();
                Node::Map(ids.into_iter().collect::<Option<_>>()?)
            }
            ExprKind::Is(inner, test) => Node::Is(self.value(inner, scope)?, *test),
            ExprKind::Path(parts) => {
                let ids: Vec<_> = parts.iter().map(|part| self.path_part(part, at, scope)).collect();
                let ids = ids.into_iter().collect::<Option<Vec<_>>>()?;
                Node::Path(*ids.first()?, *ids.get(1)?)
            }
        };
        self.push(node, at)
    }

    fn path_part(&mut self, part: &'f PathPart, at: Span, scope: &Scope<'f>) -> Option<Id> {
        match part {
            PathPart::Text(text) => self.push(Node::Literal(Value::text(text)), at),
            PathPart::Computed(expr) => self.value(expr, scope),
        }
    }

    /// A list of literals is a literal.
    fn list(&mut self, items: &'f [Expr], at: Span, scope: &Scope<'f>) -> Option<Id> {
        let literals: Option<Vec<Value>> = items.iter().map(literal_of).collect();
        let node = match literals {
            Some(values) => Node::Literal(Value::list(values)),
            None => Node::List(self.values(items, scope)?),
        };
        self.push(node, at)
    }

    fn index(&mut self, base: &'f Expr, index: &'f Expr, at: Span, scope: &Scope<'f>) -> Option<Id> {
        if let ExprKind::Literal(Value::String(name)) = &index.kind {
            let base = self.raw(base, scope)?;
            return self.member(base, name, at);
        }
        let (base, index) = self.pair(base, index, scope)?;
        self.push(Node::Index(base, index), at)
    }

    /// `"name" in resource.data` is a look at one field.
    fn within(&mut self, a: &'f Expr, b: &'f Expr, at: Span, scope: &Scope<'f>) -> Option<Id> {
        let (item, whole) = self.pair(a, b, scope)?;
        let name = match self.program.node(item) {
            Node::Literal(Value::String(name)) => Some(name.clone()),
            _ => None,
        };
        let node = match (name, self.fact(whole)) {
            (Some(name), Some((root, path))) if is_data(root, path) => {
                Node::HasFact(root, path.iter().cloned().chain([name]).collect())
            }
            _ => Node::Binary(Binary::In, item, whole),
        };
        self.push(node, at)
    }

    /// A comparison with null looks at nothing but whether something is there.
    fn null_test(&self, operator: Binary, a: Id, b: Id) -> Option<Node> {
        let negated = match operator {
            Binary::Equal => false,
            Binary::NotEqual => true,
            _ => return None,
        };
        let is_null = |id: Id| matches!(self.program.node(id), Node::Literal(Value::Null));
        // What a function gives keeps its node, so that an explanation shows it.
        let whole = |id: Id| match self.program.node(id) {
            Node::Fact(root @ (Root::Auth | Root::Before | Root::After | Root::Change), path) if path.is_empty() => {
                Some(*root)
            }
            _ => None,
        };
        let root = if is_null(b) {
            whole(a)
        } else if is_null(a) {
            whole(b)
        } else {
            None
        };
        root.map(|root| Node::IsNull(root, negated))
    }

    /// The fact that a node is, also as the result of a function.
    pub(super) fn fact(&self, id: Id) -> Option<(Root, &[Arc<str>])> {
        match self.program.node(id) {
            Node::Fact(root, path) => Some((*root, path)),
            Node::Scope(_, inner) => self.fact(*inner),
            _ => None,
        }
    }

    fn named(&mut self, name: &'f str, at: Span, scope: &Scope<'f>) -> Option<Id> {
        if let Some((_, local)) = scope.locals.iter().rev().find(|(own, _)| *own == name) {
            let node = match *local {
                Local::Slot(slot) => Node::Slot(slot),
                Local::Copy(id) => match self.program.node(id) {
                    Node::Literal(value) => Node::Literal(value.clone()),
                    _ => {
                        let (root, path) = self.fact(id)?;
                        Node::Fact(root, path.into())
                    }
                },
            };
            return self.push(node, at);
        }
        let seen = |(frame, own, _): &&(usize, &str, Bound)| *frame < scope.frames && *own == name;
        let node = if let Some((_, _, bound)) = self.bound.iter().rev().find(seen) {
            match *bound {
                Bound::Fact(root) => Node::Fact(root, [].into()),
                Bound::Default => Node::Literal(Value::text("(default)")),
            }
        } else if name == "request" {
            Node::Fact(Root::Request, [].into())
        } else if name == "resource" {
            Node::Fact(Root::Before, [].into())
        } else if let Some((_, kind)) = TYPES.iter().find(|(own, _)| *own == name) {
            Node::Literal(Value::text(kind.name()))
        } else {
            let locals = scope.locals.iter().map(|(own, _)| *own);
            let variables = self.bound.iter().filter(|(frame, ..)| *frame < scope.frames).map(|(_, own, _)| *own);
            let known: Vec<&str> = locals.chain(variables).chain(["request", "resource"]).collect();
            let remedy = match self.function(name, scope) {
                Some(_) => format!("`{name}` is a function: write {name}(..)"),
                None => suggestion(name, &known),
            };
            return self.fail(at, format!("nothing here is called `{}`", short(name)), remedy);
        };
        self.push(node, at)
    }

    fn member(&mut self, base: Id, name: &str, at: Span) -> Option<Id> {
        let node = match self.program.node(base) {
            Node::Fact(root, path) => {
                let (root, path) = (*root, path.clone());
                let (root, path) = self.extended(root, &path, name, at)?;
                // The shorter chain is nobody's any more.
                if base as usize + 1 == self.program.nodes.len() {
                    self.program.nodes.pop();
                    self.program.spans.pop();
                }
                Node::Fact(root, path)
            }
            Node::Scope(function, inner) if self.fact(*inner).is_some() => {
                let (function, inner) = (*function, *inner);
                let inner = self.member(inner, name, at)?;
                Node::Scope(function, inner)
            }
            _ => Node::Field(base, Arc::from(name)),
        };
        self.push(node, at)
    }

    /// A fact's path with one name more, if there can be such a place.
    pub(super) fn extended(
        &mut self,
        root: Root,
        path: &[Arc<str>],
        name: &str,
        at: Span,
    ) -> Option<(Root, Box<[Arc<str>]>)> {
        let (what, names): (&str, &[&str]) = match (root, path.len()) {
            (Root::Request, _) => {
                let root = match name {
                    "auth" => Root::Auth,
                    "method" => Root::Method,
                    "time" => Root::Time,
                    "path" => Root::Path,
                    "resource" => Root::After,
                    "change" => Root::Change,
                    _ => {
                        let remedy = suggestion(name, &["auth", "method", "time", "path", "resource", "change"]);
                        return self.fail(at, format!("request has no `{}`", short(name)), remedy);
                    }
                };
                return Some((root, [].into()));
            }
            (Root::Auth, 0) => ("request.auth", &["uid", "token"]),
            (Root::Before, 0) => ("resource", &["data", "id"]),
            (Root::After, 0) => ("request.resource", &["data", "id"]),
            (Root::Change, 0) => ("request.change", &["author", "actor", "paths", "keys"]),
            (Root::Auth, _) if &*path[0] == "token" => ("", &[]),
            (Root::Before | Root::After, _) if &*path[0] == "data" => ("", &[]),
            _ => return self.fail(at, format!("`{}` is looked for in what has no fields", short(name)), ""),
        };
        if !names.is_empty() && !names.contains(&name) {
            return self.fail(at, format!("{what} has no `{}`", short(name)), suggestion(name, names));
        }
        Some((root, path.iter().cloned().chain([Arc::from(name)]).collect()))
    }
}

const REQUEST_HAS: &str = "it has auth, method, time, path, resource and change";

/// Whether a path leads to the whole of a document.
fn is_data(root: Root, path: &[Arc<str>]) -> bool {
    matches!(root, Root::Before | Root::After) && path.len() == 1 && &*path[0] == "data"
}

fn literal_of(expr: &Expr) -> Option<Value> {
    match &expr.kind {
        ExprKind::Literal(value) => Some(value.clone()),
        ExprKind::List(items) => items.iter().map(literal_of).collect::<Option<Vec<_>>>().map(Value::list),
        _ => None,
    }
}
