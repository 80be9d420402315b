//! What a decision may look at, read off the compiled expressions once.

use std::collections::HashSet;
use std::sync::Arc;

use super::machine::Machine;
use super::program::{Id, Node, Program, Root, Rule};
use super::request::{Fields, Needs, Operation, Request};
use super::value::Value;

/// Above so many different paths of fields, all of them are meant.
const PATHS_MAX: usize = 64;

impl Fields {
    fn add(&mut self, path: Vec<String>) {
        if path.is_empty() {
            *self = Self::All;
        }
        let paths = match self {
            Self::All => return,
            Self::None => &mut Vec::new(),
            Self::Some(paths) => paths,
        };
        if paths.iter().any(|known| path.starts_with(known)) {
            return;
        }
        paths.retain(|known| !known.starts_with(&path));
        paths.push(path);
        paths.sort();
        let paths = std::mem::take(paths);
        *self = if paths.len() > PATHS_MAX { Self::All } else { Self::Some(paths) };
    }

    fn merge(&mut self, other: &Self) {
        match other {
            Self::None => {}
            Self::All => *self = Self::All,
            Self::Some(paths) => paths.iter().for_each(|path| self.add(path.clone())),
        }
    }
}

impl Needs {
    /// Of one `allow` alone.
    pub(super) fn of(program: &Program, rule: &Rule) -> Self {
        let mut needs = Self::NOTHING;
        let Some(condition) = rule.condition else {
            needs.constant = rule.pattern.id.is_none().then_some(true);
            return needs;
        };
        let mut seen = HashSet::new();
        let mut open = vec![condition];
        let mut looks = false;
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                looks |= needs.look(program, id);
                open.extend(program.children(id));
            }
        }
        if !looks {
            // Nothing of the request is in it, so it is the same for every request.
            let request = Request::new(Operation::Get, "", "");
            let is_true = Machine::new(program, &request).allows(rule).unwrap_or(false);
            needs.constant = if is_true { rule.pattern.id.is_none().then_some(true) } else { Some(false) };
        }
        needs
    }

    /// Takes in one node; returns whether it looks at the request.
    fn look(&mut self, program: &Program, id: Id) -> bool {
        let (root, path, is_has) = match program.node(id) {
            Node::Fact(root, path) => (*root, path, false),
            Node::HasFact(root, path) => (*root, path, true),
            Node::IsNull(root, _) => {
                self.before |= *root == Root::Before;
                self.after |= *root == Root::After;
                self.author |= *root == Root::Change;
                return true;
            }
            Node::Get(path) | Node::Exists(path) => {
                self.documents = true;
                match (&mut self.collections, collection_of(program, *path)) {
                    (Some(collections), Some(name)) => drop(collections.insert(name)),
                    (collections, _) => *collections = None,
                }
                return true;
            }
            _ => return false,
        };
        match root {
            Root::Before => {
                self.before = true;
                self.before_fields.look(path, is_has);
            }
            Root::After => {
                self.after = true;
                self.after_fields.look(path, is_has);
            }
            Root::Change => match path.first().map(|name| &**name) {
                Some("author" | "actor") => self.author = true,
                Some(_) => self.paths = true,
                None => {
                    self.author = true;
                    self.paths = true;
                }
            },
            Root::Time => self.time = true,
            Root::Auth if path.first().is_none_or(|name| &**name == "token") => {
                self.claims = true;
                self.claim_fields.add(path.iter().skip(1).map(|name| name.to_string()).collect());
            }
            _ => {}
        }
        true
    }

    /// Of several `allow`s of which one suffices.
    pub(super) fn merge(&mut self, other: &Self) {
        self.constant = match (self.constant, other.constant) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (Some(false), Some(false)) => Some(false),
            _ => None,
        };
        self.before |= other.before;
        self.after |= other.after;
        self.paths |= other.paths;
        self.author |= other.author;
        self.documents |= other.documents;
        self.time |= other.time;
        self.claims |= other.claims;
        self.before_fields.merge(&other.before_fields);
        self.after_fields.merge(&other.after_fields);
        self.claim_fields.merge(&other.claim_fields);
        match (&mut self.collections, &other.collections) {
            (Some(collections), Some(more)) => collections.extend(more.iter().cloned()),
            (collections, _) => *collections = None,
        }
    }

    /// Of no `allow`: never.
    pub(super) fn never() -> Self {
        Self { constant: Some(false), ..Self::NOTHING }
    }

    /// When nobody needs to look, nothing is needed.
    pub(super) fn settled(self) -> Self {
        match self.constant {
            Some(constant) => Self { constant: Some(constant), ..Self::NOTHING },
            None => self,
        }
    }
}

impl Fields {
    fn look(&mut self, path: &[Arc<str>], is_has: bool) {
        let names = |path: &[Arc<str>]| path.iter().map(|name| name.to_string()).collect();
        match path {
            [first, rest @ ..] if &**first == "data" => match rest {
                // Whether a field is there is seen in what it lies in.
                [parent @ .., _] if is_has && !parent.is_empty() => self.add(names(parent)),
                [] if is_has => {}
                rest => self.add(names(rest)),
            },
            // The whole as a value has all of them.
            [] => self.add(Vec::new()),
            _ => {}
        }
    }
}

/// The collection that a path is in; `None` where only the request says which.
fn collection_of(program: &Program, path: Id) -> Option<String> {
    match program.node(path) {
        Node::Path(collection, _) => match program.node(*collection) {
            Node::Literal(Value::String(name)) => Some(name.to_string()),
            _ => None,
        },
        Node::Scope(_, inner) => collection_of(program, *inner),
        Node::Slot(slot) => collection_of(program, *program.slots.get(*slot as usize)?),
        _ => None,
    }
}
