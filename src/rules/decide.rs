//! Rules as a whole: read once, then asked.

use std::collections::{HashMap, HashSet};

use super::compile;
use super::explain::{AllowTrace, Explainer, Explanation, Outcome};
use super::machine::{Fault, Machine, message};
use super::parser;
use super::problem::{Place, Problems, RulesError};
use super::program::{Program, Rule};
use super::request::{Decision, Needs, Operation, Request, Why};
use crate::limits::rules as bounds;

/// Security rules, ready to decide. They do not change.
#[derive(Debug)]
pub struct Rules {
    source: String,
    digest: [u8; 32],
    program: Program,
    rules: Vec<Rule>,
    /// The rules about one collection by its name, beside those about any.
    by_collection: HashMap<Box<str>, Operations>,
    any: Operations,
    is_timed: bool,
}

/// For each operation: the rules about it, ascending, and what a decision needs.
#[derive(Debug)]
struct Operations {
    rules: [Vec<u32>; Operation::ALL.len()],
    needs: [Needs; Operation::ALL.len()],
    /// The first that is true whatever is asked.
    always: [Option<u32>; Operation::ALL.len()],
}

impl Default for Operations {
    fn default() -> Self {
        let needs = std::array::from_fn(|_| Needs::never());
        Self { rules: Default::default(), needs, always: Default::default() }
    }
}

/// An `allow` as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowInfo {
    /// Its line.
    pub line: u32,
    /// The path it is about.
    pub path: String,
    /// What it allows.
    pub operations: Vec<Operation>,
}

/// A function as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionInfo {
    /// Its line.
    pub line: u32,
    /// Its name.
    pub name: String,
}

impl Rules {
    /// Reads rules. `name` is what the text is called in messages, as its file's name.
    ///
    /// # Errors
    /// [`RulesError`] with everything that is wrong, up to 20 problems.
    ///
    /// # Cost
    /// Grows with the text and the number of its `allow`s; it is for when rules are put in place, not for each request.
    pub fn parse(name: &str, source: &str) -> Result<Self, RulesError> {
        if source.len() > bounds::SOURCE_BYTES_MAX {
            let mut problems = Problems::new("");
            let message = format!("the rules have {} bytes, more than {}", source.len(), bounds::SOURCE_BYTES_MAX);
            problems.add(0, message, "put what rules compare with into documents or tokens");
            return Err(problems.into_error(name));
        }
        let mut problems = Problems::new(source);
        let file = parser::parse(source, &mut problems);
        let (program, rules) = compile::compile(&file, source, &mut problems);
        if !problems.is_empty() {
            return Err(problems.into_error(name));
        }
        let digest = *blake3::hash(source.as_bytes()).as_bytes();
        let (by_collection, any) = index(&program, &rules);
        let is_timed = by_collection.values().chain([&any]).any(|all| all.needs.iter().any(|needs| needs.time));
        Ok(Self { source: source.to_owned(), digest, program, rules, by_collection, any, is_timed })
    }

    /// The text they were read from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The BLAKE3 digest of that text.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// What a decision about an operation in a collection may look at, whoever asks and whichever document it is.
    ///
    /// # Cost
    /// It is known since the rules were read; this copies it.
    #[must_use]
    pub fn needs(&self, operation: Operation, collection: &str) -> Needs {
        let operations = self.by_collection.get(collection).unwrap_or(&self.any);
        operations.needs[operation as usize].clone()
    }

    /// Whether any decision may look at the time.
    #[must_use]
    pub fn look_at_the_time(&self) -> bool {
        self.is_timed
    }

    /// The same of an operation in any collection, with all that a decision may look at anywhere.
    #[must_use]
    pub fn needs_anywhere(&self, operation: Operation) -> Needs {
        let mut all = Needs::never();
        let operations = self.by_collection.values().chain([&self.any]);
        operations.for_each(|operations| all.merge(&operations.needs[operation as usize]));
        all
    }

    /// Whether a request is allowed: whether one `allow` about its path and operation is true.
    ///
    /// The same request has the same answer; nothing is asked but what the request has.
    ///
    /// # Cost
    /// At most 10,000 steps and 10 other documents, however the rules are written.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        let mut machine = Machine::new(&self.program, request);
        let mut is_matched = false;
        let mut failed: Option<(&Rule, Fault)> = None;
        for (number, rule) in self.candidates(request) {
            is_matched = true;
            match machine.allows(rule) {
                Ok(true) => {
                    return Decision { allowed: true, rule: Some(rule.line), allow: Some(number), why: Why::Allowed };
                }
                Ok(false) => {}
                Err(fault) if fault.kind.is_final() => {
                    return Decision { allowed: false, rule: None, allow: None, why: Why::Budget };
                }
                Err(fault) => failed = failed.or(Some((rule, fault))),
            }
        }
        let why = match failed {
            Some((rule, fault)) => Why::Error { line: rule.line, message: message(fault, &self.program, &self.source) },
            None if is_matched => Why::NoneTrue,
            None => Why::NoMatch,
        };
        Decision { allowed: false, rule: None, allow: None, why }
    }

    /// Which `allow` allows an operation in a collection whoever asks and whatever it is, where [`Self::needs`] says that
    /// one does: the first of those, in the order of the file, from 0.
    #[must_use]
    pub fn always(&self, operation: Operation, collection: &str) -> Option<u32> {
        self.by_collection.get(collection).unwrap_or(&self.any).always[operation as usize]
    }

    /// The line and the path of an `allow`, by its number in the order of the file, from 0.
    #[must_use]
    pub fn place_of(&self, allow: u32) -> Option<(u32, &str)> {
        self.rules.get(allow as usize).map(|rule| (rule.line, rule.pattern.text.as_str()))
    }

    /// The same decision, with every `allow` that is about the request and what each part of it came to; also of those
    /// after the one that decided, each with a budget of its own.
    #[must_use]
    pub fn explain(&self, request: &Request<'_>) -> Explanation {
        let mut allows = Vec::new();
        let mut steps = 0_u32;
        for (_, rule) in self.candidates(request) {
            let mut machine = Machine::traced(&self.program, request);
            let outcome = match machine.allows(rule) {
                Ok(value) => Outcome::of_bool(value),
                Err(fault) => Outcome::Error(message(fault, &self.program, &self.source)),
            };
            steps = steps.saturating_add(machine.used());
            let trace = machine.into_trace();
            let mut explainer =
                Explainer { program: &self.program, source: &self.source, trace: &trace, shown: HashSet::new() };
            let tree = rule.condition.map(|condition| explainer.tree(condition));
            allows.push(AllowTrace { line: rule.line, path: rule.pattern.text.clone(), outcome, tree });
        }
        Explanation { decision: self.decide(request), allows, steps }
    }

    /// The line and the path of each `allow` that is about a request, in the order of the file.
    #[must_use]
    pub fn asked(&self, request: &Request<'_>) -> Vec<(u32, String)> {
        self.candidates(request).map(|(_, rule)| (rule.line, rule.pattern.text.clone())).collect()
    }

    /// Every `allow`, in the order of the file.
    #[must_use]
    pub fn allows(&self) -> Vec<AllowInfo> {
        let info = |rule: &Rule| AllowInfo {
            line: rule.line,
            path: rule.pattern.text.clone(),
            operations: rule.operations.clone(),
        };
        self.rules.iter().map(info).collect()
    }

    /// Every function, in the order of the blocks.
    #[must_use]
    pub fn functions(&self) -> Vec<FunctionInfo> {
        let functions = self.program.functions.iter();
        functions
            .map(|function| FunctionInfo {
                line: Place::of(&self.source, function.at.start).line,
                name: function.name.clone(),
            })
            .collect()
    }

    /// The rules about a request with their numbers, in the order of the file: those about its collection and those about
    /// any, merged.
    fn candidates<'a>(&'a self, request: &'a Request<'_>) -> impl Iterator<Item = (u32, &'a Rule)> {
        let operation = request.operation as usize;
        let named = self.by_collection.get(request.collection).map_or(&[][..], |own| &own.rules[operation]);
        let any = &self.any.rules[operation][..];
        let (mut named, mut any) = (named.iter().peekable(), any.iter().peekable());
        let merged = std::iter::from_fn(move || match (named.peek(), any.peek()) {
            (Some(a), Some(b)) if a < b => named.next(),
            (Some(_), None) => named.next(),
            _ => any.next(),
        });
        let rules = merged.filter_map(|index| self.rules.get(*index as usize).map(|rule| (*index, rule)));
        rules.filter(|(_, rule)| rule.pattern.id.as_deref().is_none_or(|id| id == request.id))
    }
}

fn index(program: &Program, rules: &[Rule]) -> (HashMap<Box<str>, Operations>, Operations) {
    let mut by_collection: HashMap<Box<str>, Operations> = HashMap::new();
    let mut any = Operations::default();
    for (number, rule) in (0..).zip(rules) {
        let own = match &rule.pattern.collection {
            Some(collection) => by_collection.entry(collection.clone()).or_default(),
            None => &mut any,
        };
        let needs = Needs::of(program, rule);
        for operation in &rule.operations {
            own.rules[*operation as usize].push(number);
            own.needs[*operation as usize].merge(&needs);
            if needs.constant == Some(true) {
                own.always[*operation as usize].get_or_insert(number);
            }
        }
    }
    for own in by_collection.values_mut() {
        for (needs, any) in own.needs.iter_mut().zip(&any.needs) {
            needs.merge(any);
        }
        for (always, any) in own.always.iter_mut().zip(&any.always) {
            *always = always.iter().chain(any).min().copied();
        }
    }
    for own in by_collection.values_mut().chain([&mut any]) {
        for needs in &mut own.needs {
            *needs = std::mem::replace(needs, Needs::never()).settled();
        }
    }
    (by_collection, any)
}
