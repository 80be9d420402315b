//! Evaluating one `allow` after the other, within the budget of one decision.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::limits::rules as bounds;

use super::ast::{Binary, Span};
use super::functions;
use super::operators;
use super::program::{Id, Node, Program, Root, Rule};
use super::request::{Data, Request};
use super::value::{Kind, Value};

/// Why a node has no value, and which node that was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fault {
    pub(super) at: Id,
    pub(super) kind: FaultKind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum FaultKind {
    /// A field or key is not there.
    Absent,
    /// Nobody, no document or no change has no fields.
    Nothing(&'static str),
    /// What is done needs other types.
    Type(&'static str, Kind),
    /// As above, of two values.
    Types(&'static str, Kind, Kind),
    NotBool(Kind),
    Overflow,
    DivisionByZero,
    OutOfRange,
    RepeatedKey,
    NoPath,
    /// A value cannot be turned into this.
    Conversion(&'static str),
    TooDeep,
    Steps,
    Reads,
}

impl FaultKind {
    /// Whether the whole decision ends with it.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::TooDeep | Self::Steps | Self::Reads)
    }
}

pub(super) type Outcome = Result<Value, Fault>;

/// What each node came to, for an explanation.
pub(super) type Trace = HashMap<Id, Outcome>;

pub(super) struct Machine<'r, 'q> {
    program: &'r Program,
    request: &'r Request<'q>,
    steps: u32,
    depth: usize,
    /// Documents that were fetched: paths, and what is there.
    reads: Vec<(String, Value)>,
    first_slot: u32,
    slots: Vec<Option<Outcome>>,
    trace: Option<Trace>,
}

impl<'r, 'q> Machine<'r, 'q> {
    pub(super) fn new(program: &'r Program, request: &'r Request<'q>) -> Self {
        Self {
            program,
            request,
            steps: bounds::STEPS_MAX,
            depth: 0,
            reads: Vec::new(),
            first_slot: 0,
            slots: Vec::new(),
            trace: None,
        }
    }

    /// The same, and what each node came to is kept.
    pub(super) fn traced(program: &'r Program, request: &'r Request<'q>) -> Self {
        Self { trace: Some(Trace::new()), ..Self::new(program, request) }
    }

    pub(super) fn into_trace(self) -> Trace {
        self.trace.unwrap_or_default()
    }

    /// Steps that were used.
    pub(super) fn used(&self) -> u32 {
        bounds::STEPS_MAX - self.steps
    }

    /// Whether an `allow` is true.
    pub(super) fn allows(&mut self, rule: &Rule) -> Result<bool, Fault> {
        let Some(condition) = rule.condition else { return Ok(true) };
        let (first, count) = rule.slots;
        self.first_slot = first;
        self.slots.clear();
        self.slots.resize(count as usize, None);
        match self.eval(condition)? {
            Value::Bool(value) => Ok(value),
            other => Err(Fault { at: condition, kind: FaultKind::NotBool(other.kind()) }),
        }
    }

    /// Takes steps from what is left.
    pub(super) fn spend(&mut self, at: Id, steps: usize) -> Result<(), Fault> {
        let left = u32::try_from(steps).ok().and_then(|steps| self.steps.checked_sub(steps));
        match left {
            Some(left) => {
                self.steps = left;
                Ok(())
            }
            None => {
                self.steps = 0;
                Err(Fault { at, kind: FaultKind::Steps })
            }
        }
    }

    /// As above, for looking at so many bytes.
    pub(super) fn spend_bytes(&mut self, at: Id, bytes: usize) -> Result<(), Fault> {
        self.spend(at, bytes / bounds::BYTES_PER_STEP)
    }

    pub(super) fn eval(&mut self, id: Id) -> Outcome {
        let outcome = self.bounded(id);
        if let Some(trace) = &mut self.trace {
            trace.insert(id, outcome.clone());
        }
        outcome
    }

    fn bounded(&mut self, id: Id) -> Outcome {
        self.spend(id, 1)?;
        if self.depth >= bounds::EVALUATION_DEPTH_MAX {
            return Err(Fault { at: id, kind: FaultKind::TooDeep });
        }
        self.depth += 1;
        let outcome = self.node(id);
        self.depth -= 1;
        outcome
    }

    fn node(&mut self, id: Id) -> Outcome {
        let program = self.program;
        match program.node(id) {
            Node::Literal(value) => Ok(value.clone()),
            Node::Fact(root, path) => self.fact(id, *root, path),
            Node::HasFact(root, path) => self.has_fact(id, *root, path),
            Node::IsNull(root, negated) => {
                let is_there = match root {
                    Root::Auth => self.request.auth.is_some(),
                    Root::Before => self.request.before.is_some(),
                    Root::After => self.request.after.is_some(),
                    _ => self.request.change.is_some(),
                };
                Ok(Value::Bool(is_there == *negated))
            }
            Node::Slot(slot) => self.slot(*slot),
            Node::Scope(_, inner) => self.eval(*inner),
            Node::Field(inner, name) => match self.eval(*inner)? {
                Value::Map(map) => map.get(name).cloned().ok_or(Fault { at: id, kind: FaultKind::Absent }),
                other => Err(Fault { at: id, kind: FaultKind::Type("has no fields", other.kind()) }),
            },
            Node::Has(inner, name) => match self.eval(*inner)? {
                Value::Map(map) => Ok(Value::Bool(map.contains_key(name))),
                other => Err(Fault { at: id, kind: FaultKind::Type("has no fields", other.kind()) }),
            },
            Node::Index(base, index) => {
                let (base, index) = (self.eval(*base)?, self.eval(*index)?);
                operators::index(id, &base, &index)
            }
            Node::Not(inner) => Ok(Value::Bool(!self.truth(*inner)?)),
            Node::Negate(inner) => {
                let inner = self.eval(*inner)?;
                operators::negate(id, &inner)
            }
            Node::Binary(operator, a, b) => self.binary(id, *operator, *a, *b),
            Node::And(terms) => self.chain(terms, false),
            Node::Or(terms) => self.chain(terms, true),
            Node::If([condition, yes, no]) => {
                let chosen = if self.truth(*condition)? { *yes } else { *no };
                self.eval(chosen)
            }
            Node::List(items) => {
                let items: Result<Vec<Value>, Fault> = items.iter().map(|item| self.eval(*item)).collect();
                Ok(Value::list(items?))
            }
            Node::Map(entries) => self.map(id, entries),
            Node::Is(inner, test) => Ok(Value::Bool(test.holds(self.eval(*inner)?.kind()))),
            Node::Call(builtin, arguments) => {
                let mut values = [Value::Null, Value::Null, Value::Null];
                for (value, argument) in values.iter_mut().zip(arguments) {
                    *value = self.eval(*argument)?;
                }
                functions::call(self, id, *builtin, &values, arguments.len())
            }
            Node::Matches(inner, regex) => match self.eval(*inner)? {
                Value::String(text) => {
                    self.spend(id, text.len() / bounds::MATCHED_BYTES_PER_STEP)?;
                    Ok(Value::Bool(regex.is_match(&text)))
                }
                other => Err(Fault { at: id, kind: FaultKind::Type("is not matched", other.kind()) }),
            },
            Node::Path(collection, document) => {
                let (collection, document) = (self.eval(*collection)?, self.eval(*document)?);
                match (&collection, &document) {
                    (Value::String(collection), Value::String(document)) => {
                        self.spend_bytes(id, collection.len() + document.len())?;
                        Ok(Value::String(format!("/{collection}/{document}").into()))
                    }
                    (Value::String(_), other) | (other, _) => {
                        Err(Fault { at: id, kind: FaultKind::Type("is no segment of a path", other.kind()) })
                    }
                }
            }
            Node::Get(path) => self.read(id, *path),
            Node::Exists(path) => Ok(Value::Bool(self.read(id, *path)? != Value::Null)),
        }
    }

    fn truth(&mut self, id: Id) -> Result<bool, Fault> {
        match self.eval(id)? {
            Value::Bool(value) => Ok(value),
            other => Err(Fault { at: id, kind: FaultKind::NotBool(other.kind()) }),
        }
    }

    /// `&&` and `||`, in which one term that decides makes up for another that failed. `decides` is what decides.
    fn chain(&mut self, terms: &[Id], decides: bool) -> Outcome {
        let mut failed = None;
        for term in terms {
            match self.truth(*term) {
                Ok(value) if value == decides => return Ok(Value::Bool(decides)),
                Ok(_) => {}
                Err(fault) if fault.kind.is_final() => return Err(fault),
                Err(fault) => failed = failed.or(Some(fault)),
            }
        }
        failed.map_or(Ok(Value::Bool(!decides)), Err)
    }

    fn binary(&mut self, id: Id, operator: Binary, a: Id, b: Id) -> Outcome {
        let (a, b) = (self.eval(a)?, self.eval(b)?);
        match operator {
            Binary::Equal => Ok(Value::Bool(self.equal(id, &a, &b)?)),
            Binary::NotEqual => Ok(Value::Bool(!self.equal(id, &a, &b)?)),
            Binary::In => self.contains(id, &a, &b),
            Binary::Less | Binary::LessOrEqual | Binary::Greater | Binary::GreaterOrEqual => {
                self.spend_bytes(id, operators::length(&a).min(operators::length(&b)))?;
                operators::compare(id, operator, &a, &b)
            }
            _ => {
                self.spend(id, operators::cost(&a) + operators::cost(&b))?;
                operators::arithmetic(id, operator, &a, &b)
            }
        }
    }

    fn contains(&mut self, id: Id, item: &Value, whole: &Value) -> Outcome {
        match (item, whole) {
            (item, Value::List(items)) => {
                for other in items.iter() {
                    if self.equal(id, item, other)? {
                        return Ok(Value::Bool(true));
                    }
                }
                Ok(Value::Bool(false))
            }
            (Value::String(key), Value::Map(map)) => Ok(Value::Bool(map.contains_key(key))),
            (_, Value::Map(_)) => Ok(Value::Bool(false)),
            (item, whole) => Err(Fault { at: id, kind: FaultKind::Types("cannot be in", item.kind(), whole.kind()) }),
        }
    }

    /// Whether two values are equal; numbers by what they are worth, other types only with their like.
    pub(super) fn equal(&mut self, id: Id, a: &Value, b: &Value) -> Result<bool, Fault> {
        self.equal_at(id, a, b, 0)
    }

    fn equal_at(&mut self, id: Id, a: &Value, b: &Value, depth: usize) -> Result<bool, Fault> {
        if depth > bounds::VALUE_DEPTH_MAX {
            return Err(Fault { at: id, kind: FaultKind::TooDeep });
        }
        Ok(match (a, b) {
            (Value::List(a), Value::List(b)) => {
                self.spend(id, 1)?;
                if a.len() != b.len() {
                    return Ok(false);
                }
                for (a, b) in a.iter().zip(b.iter()) {
                    self.spend(id, 1)?;
                    if !self.equal_at(id, a, b, depth + 1)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Map(a), Value::Map(b)) => {
                self.spend(id, 1)?;
                if a.len() != b.len() {
                    return Ok(false);
                }
                for ((key, a), (other, b)) in a.iter().zip(b.iter()) {
                    self.spend(id, 1)?;
                    self.spend_bytes(id, key.len())?;
                    if key != other || !self.equal_at(id, a, b, depth + 1)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::String(a), Value::String(b)) => {
                self.spend(id, 1)?;
                self.spend_bytes(id, a.len().min(b.len()))?;
                a == b
            }
            (a, b) => {
                self.spend(id, 1)?;
                self.spend_bytes(id, operators::length(a).min(operators::length(b)))?;
                a.order(b).ok().flatten().map_or(matches!((a, b), (Value::Null, Value::Null)), |order| order.is_eq())
            }
        })
    }

    fn map(&mut self, id: Id, entries: &[(Id, Id)]) -> Outcome {
        let mut map: BTreeMap<Arc<str>, Value> = BTreeMap::new();
        for (key, value) in entries {
            let key = match self.eval(*key)? {
                Value::String(key) => key,
                other => return Err(Fault { at: *key, kind: FaultKind::Type("is no key of a map", other.kind()) }),
            };
            let value = self.eval(*value)?;
            if map.insert(key, value).is_some() {
                return Err(Fault { at: id, kind: FaultKind::RepeatedKey });
            }
        }
        Ok(Value::Map(Arc::new(map)))
    }

    /// A name's value, evaluated once; also its fault is remembered.
    fn slot(&mut self, slot: u32) -> Outcome {
        let own = (slot - self.first_slot) as usize;
        if let Some(Some(outcome)) = self.slots.get(own) {
            return outcome.clone();
        }
        let outcome = self.eval(self.program.slots[slot as usize]);
        if let Some(kept) = self.slots.get_mut(own) {
            *kept = Some(outcome.clone());
        }
        outcome
    }

    fn fact(&mut self, id: Id, root: Root, path: &[Arc<str>]) -> Outcome {
        self.spend(id, path.len() / 4)?;
        let request = self.request;
        let absent = Fault { at: id, kind: FaultKind::Absent };
        Ok(match root {
            // The compiler lets no such node through.
            Root::Request => return Err(absent),
            Root::Auth => match (request.auth, path) {
                (None, []) => Value::Null,
                (None, _) => return Err(Fault { at: id, kind: FaultKind::Nothing("nobody is signed in") }),
                (Some(auth), []) => Value::map([("token", auth.token.clone()), ("uid", Value::text(&auth.uid))]),
                (Some(auth), [first, rest @ ..]) => match &**first {
                    "uid" => Value::text(&auth.uid),
                    _ => auth.token.at(rest).cloned().ok_or(absent)?,
                },
            },
            Root::Method => Value::text(request.operation.as_str()),
            Root::Time => Value::Timestamp(request.time_ms),
            Root::Path => Value::String(format!("/{}/{}", request.collection, request.id).into()),
            Root::Collection => Value::text(request.collection),
            Root::DocumentId => Value::text(request.id),
            Root::WholePath => Value::String(format!("{}/{}", request.collection, request.id).into()),
            Root::Before => self.document(id, request.before, path, "the document is not there")?,
            Root::After => self.document(id, request.after, path, "nothing is written")?,
            Root::Change => self.change(id, path)?,
        })
    }

    fn document(&self, id: Id, data: Option<&dyn Data>, path: &[Arc<str>], why: &'static str) -> Outcome {
        let own = Value::text(self.request.id);
        match (data, path) {
            (None, []) => Ok(Value::Null),
            (None, _) => Err(Fault { at: id, kind: FaultKind::Nothing(why) }),
            (Some(data), []) => {
                let whole = data.get(&[]).ok_or(Fault { at: id, kind: FaultKind::Absent })?;
                Ok(Value::map([("data", whole), ("id", own)]))
            }
            (Some(data), [first, rest @ ..]) if &**first == "data" => {
                look_up(data, rest).ok_or(Fault { at: id, kind: FaultKind::Absent })
            }
            (Some(_), _) => Ok(own),
        }
    }

    fn change(&self, id: Id, path: &[Arc<str>]) -> Outcome {
        let Some(change) = self.request.change else {
            return match path {
                [] => Ok(Value::Null),
                _ => Err(Fault { at: id, kind: FaultKind::Nothing("there is no change") }),
            };
        };
        let texts = |texts: &[String]| Value::list(texts.iter().map(|text| Value::text(text)).collect());
        let author = || change.author.as_deref().map_or(Value::Null, Value::text);
        Ok(match path.first().map(|name| &**name) {
            Some("author") => author(),
            Some("actor") => Value::text(&change.actor),
            Some("paths") => texts(&change.paths),
            Some(_) => texts(&change.keys),
            None => Value::map([
                ("author", author()),
                ("actor", Value::text(&change.actor)),
                ("paths", texts(&change.paths)),
                ("keys", texts(&change.keys)),
            ]),
        })
    }

    /// Whether a field is there; that it could be there, since what it lies in is a map, is a condition.
    fn has_fact(&mut self, id: Id, root: Root, path: &[Arc<str>]) -> Outcome {
        let data = match root {
            Root::Before => Some(self.request.before),
            Root::After => Some(self.request.after),
            _ => None,
        };
        if let (Some(Some(data)), [first, rest @ ..]) = (data, path)
            && &**first == "data"
        {
            self.spend(id, path.len() / 4)?;
            if rest.is_empty() || look_up(data, rest).is_some() {
                return Ok(Value::Bool(true));
            }
            if rest.len() == 1 {
                return Ok(Value::Bool(false));
            }
        }
        let Some((last, parent)) = path.split_last() else { return Ok(Value::Bool(true)) };
        match self.fact(id, root, parent)? {
            Value::Map(map) => Ok(Value::Bool(map.contains_key(last))),
            Value::Null => Err(Fault { at: id, kind: FaultKind::Nothing("what it should lie in is null") }),
            other => Err(Fault { at: id, kind: FaultKind::Type("has no fields", other.kind()) }),
        }
    }

    /// Another document: `{data, id}`, or null when it is not there.
    fn read(&mut self, id: Id, path: Id) -> Outcome {
        let path = match self.eval(path)? {
            Value::String(path) => path,
            other => return Err(Fault { at: id, kind: FaultKind::Type("is no path", other.kind()) }),
        };
        let segments = path.strip_prefix('/').unwrap_or(&path);
        let segments = match segments.strip_prefix("databases/").and_then(|rest| rest.split_once("/documents/")) {
            Some((database, rest)) if !database.contains('/') => rest,
            _ => segments,
        };
        let found = segments
            .split_once('/')
            .filter(|(collection, document)| !collection.is_empty() && !document.is_empty() && !document.contains('/'));
        let Some((collection, document)) = found else { return Err(Fault { at: id, kind: FaultKind::NoPath }) };
        if let Some((_, value)) = self.reads.iter().find(|(known, _)| known == segments) {
            return Ok(value.clone());
        }
        if self.reads.len() >= bounds::READS_MAX {
            return Err(Fault { at: id, kind: FaultKind::Reads });
        }
        let value = match self.request.documents.get(collection, document) {
            Some(data) => Value::map([("data", data), ("id", Value::text(document))]),
            None => Value::Null,
        };
        self.reads.push((segments.to_owned(), value.clone()));
        Ok(value)
    }
}

fn look_up(data: &dyn Data, path: &[Arc<str>]) -> Option<Value> {
    match path {
        [] => data.get(&[]),
        [a] => data.get(&[a]),
        [a, b] => data.get(&[a, b]),
        [a, b, c] => data.get(&[a, b, c]),
        _ => data.get(&path.iter().map(|name| &**name).collect::<Vec<_>>()),
    }
}

/// What a fault says to people: the source of the node, and what is wrong with it.
pub(super) fn message(fault: Fault, program: &Program, source: &str) -> String {
    let span = program.spans.get(fault.at as usize).copied().unwrap_or_default();
    let text = super::explain::shortened(text_of(source, span));
    match fault.kind {
        FaultKind::Absent => format!("`{text}` is not there"),
        FaultKind::Nothing(why) => format!("`{text}`: {why}"),
        FaultKind::Type(what, kind) => format!("`{text}`: {} {what}", article(kind)),
        FaultKind::Types(what, a, b) => format!("`{text}`: {} {what} {}", article(a), article(b)),
        FaultKind::NotBool(kind) => format!("`{text}` is {}, where true or false should be", article(kind)),
        FaultKind::Overflow => format!("`{text}`: the result is too large"),
        FaultKind::DivisionByZero => format!("`{text}`: a division by zero"),
        FaultKind::OutOfRange => format!("`{text}`: the list has no such element"),
        FaultKind::RepeatedKey => format!("`{text}`: a key stands there twice"),
        FaultKind::NoPath => format!("`{text}`: a document's path is /collection/id"),
        FaultKind::Conversion(to) => format!("`{text}`: this is no {to}"),
        FaultKind::TooDeep => format!("`{text}` is nested too deep"),
        FaultKind::Steps => format!("`{text}`: the decision takes more than {} steps", bounds::STEPS_MAX),
        FaultKind::Reads => format!("`{text}`: the decision takes more than {} other documents", bounds::READS_MAX),
    }
}

pub(super) fn text_of(source: &str, span: Span) -> &str {
    source.get(span.start as usize..span.end as usize).unwrap_or_default()
}

fn article(kind: Kind) -> String {
    match kind {
        Kind::Null => "null".to_owned(),
        Kind::Int => "an int".to_owned(),
        Kind::Uint => "a uint".to_owned(),
        Kind::Bytes => "bytes".to_owned(),
        kind => format!("a {}", kind.name()),
    }
}
