//! Calls: of functions that the rules declare, which are written out in their place, and of those that are there anyway.

use std::sync::Arc;

use regex::RegexBuilder;

use crate::limits::rules as bounds;

use super::ast::{Expr, ExprKind, Function, Span};
use super::compile::{Compiler, Local, Scope};
use super::functions::Builtin;
use super::parser::short;
use super::problem::nearest;
use super::program::{Id, Node};
use super::value::Value;

const MACROS: [&str; 7] = ["all", "exists_one", "map", "filter", "existsOne", "transformList", "transformMap"];

impl<'f> Compiler<'f, '_, '_> {
    pub(super) fn function(&self, name: &str, scope: &Scope<'f>) -> Option<(usize, &'f Function)> {
        let visible = self.frames[..scope.frames].iter().enumerate().rev();
        visible.flat_map(|(frame, block)| block.functions.iter().map(move |f| (frame, f))).find(|(_, f)| f.name == name)
    }

    pub(super) fn call(
        &mut self,
        target: Option<&'f Expr>,
        name: &'f str,
        name_at: Span,
        arguments: &'f [Expr],
        at: Span,
        scope: &Scope<'f>,
    ) -> Option<Id> {
        if target.is_none()
            && let Some((frame, function)) = self.function(name, scope)
        {
            return self.inline(frame, function, arguments, at, scope);
        }
        if target.is_some() && (MACROS.contains(&name) || (name == "exists" && arguments.len() > 1)) {
            let message = format!("`{name}` walks over a list, which rules do not do");
            return self.fail(name_at, message, "use hasAny, hasAll, hasOnly, in, or within(prefixes)");
        }
        match (target, name, arguments) {
            (None, "has", [argument]) => self.has(argument, at, scope),
            (None, "has", _) => self.fail(name_at, "has takes one place, as has(resource.data.room)", ""),
            (None, "get" | "exists", [path]) => {
                let path = self.value(path, scope)?;
                self.push(if name == "get" { Node::Get(path) } else { Node::Exists(path) }, at)
            }
            (None, "get" | "exists", _) => {
                let example = format!("write {name}(/users/$(request.auth.uid))");
                self.fail(name_at, format!("{name} takes the path of one document"), example)
            }
            (Some(target), "matches", [pattern]) => self.matches(target, pattern, at, scope),
            (Some(target), "matches", _) => self.fail(target.at, "matches takes one regular expression", ""),
            _ => self.builtin(target, name, name_at, arguments, at, scope),
        }
    }

    fn builtin(
        &mut self,
        target: Option<&'f Expr>,
        name: &'f str,
        name_at: Span,
        arguments: &'f [Expr],
        at: Span,
        scope: &Scope<'f>,
    ) -> Option<Id> {
        let given = arguments.len() + usize::from(target.is_some());
        let (builtin, takes) = match Builtin::find(name, target.is_some()) {
            Some(found) => found,
            None => {
                let mut known = Builtin::names(target.is_some());
                if target.is_none() {
                    known.extend(["get", "exists", "has"]);
                    known.extend(
                        self.frames[..scope.frames].iter().flat_map(|b| b.functions.iter().map(|f| f.name.as_str())),
                    );
                }
                let remedy = match (nearest(name, known), Builtin::find(name, target.is_none())) {
                    (Some(near), _) => format!("did you mean `{near}`?"),
                    (None, Some(_)) if target.is_some() => format!("write {name}(..), with nothing before it"),
                    (None, Some(_)) => format!("write value.{name}(..)"),
                    (None, None) => "docs/rules.md lists what there is".to_owned(),
                };
                let what = if target.is_some() { "no value has a function" } else { "there is no function" };
                return self.fail(name_at, format!("{what} `{}`", short(name)), remedy);
            }
        };
        if !takes.contains(&given) {
            let own = usize::from(target.is_some());
            let message = format!("`{name}` takes {} arguments, {} are given", takes.start() - own, arguments.len());
            return self.fail(name_at, message, "");
        }
        let target = target.map(|target| self.value(target, scope));
        let arguments = self.values(arguments, scope);
        let mut ids = Vec::with_capacity(given);
        if let Some(target) = target {
            ids.push(target?);
        }
        ids.extend(arguments?);
        self.push(Node::Call(builtin, ids.into()), at)
    }

    fn has(&mut self, argument: &'f Expr, at: Span, scope: &Scope<'f>) -> Option<Id> {
        let (base, name): (&Expr, &str) = match &argument.kind {
            ExprKind::Member(base, name) => (base, name),
            ExprKind::Index(base, index) if let ExprKind::Literal(Value::String(name)) = &index.kind => (base, name),
            _ => return self.fail(argument.at, "has takes a place with a dot in it, as has(resource.data.room)", ""),
        };
        let base = self.raw(base, scope)?;
        let Some((root, path)) = self.fact(base) else {
            return self.push(Node::Has(base, Arc::from(name)), at);
        };
        let path = path.to_vec();
        let (root, path) = self.extended(root, &path, name, argument.at)?;
        if path.is_empty() {
            let remedy = format!("compare it with null: {} != null", short(self.text(argument.at)));
            return self.fail(argument.at, "this is always there, and may be null", remedy);
        }
        self.push(Node::HasFact(root, path), at)
    }

    fn text(&self, at: Span) -> &'f str {
        self.source.get(at.start as usize..at.end as usize).unwrap_or_default()
    }

    fn matches(&mut self, target: &'f Expr, pattern: &'f Expr, at: Span, scope: &Scope<'f>) -> Option<Id> {
        let text = self.value(target, scope)?;
        let literal = self.value(pattern, scope)?;
        let Node::Literal(Value::String(source)) = self.program.node(literal) else {
            let remedy = "write it as a literal: name.matches('[a-z]+')";
            return self.fail(pattern.at, "a regular expression must stand in the rules as it is", remedy);
        };
        let source = source.clone();
        if source.len() > bounds::PATTERN_BYTES_MAX || self.patterns >= bounds::PATTERNS_MAX {
            let message = format!(
                "a regular expression has at most {} bytes, and a file {} of them",
                bounds::PATTERN_BYTES_MAX,
                bounds::PATTERNS_MAX
            );
            return self.fail(pattern.at, message, "");
        }
        self.patterns += 1;
        let build = |source: &str| {
            RegexBuilder::new(source)
                .size_limit(bounds::PATTERN_COMPILED_MAX)
                .dfa_size_limit(bounds::PATTERN_CACHE_MAX)
                .build()
        };
        // As it is first: what closes a group that it did not open must not get out of ours.
        match build(&source).and_then(|_| build(&format!(r"\A(?:{source})\z"))) {
            Ok(regex) => self.push(Node::Matches(text, Arc::new(regex)), at),
            Err(regex::Error::CompiledTooBig(_)) => {
                self.fail(pattern.at, "this regular expression is too large", "use smaller counts in braces")
            }
            Err(error) => {
                let why = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
                self.fail(pattern.at, format!("this is no regular expression: {why}"), "")
            }
        }
    }

    /// Writes a function out in place of its call.
    fn inline(
        &mut self,
        frame: usize,
        function: &'f Function,
        arguments: &'f [Expr],
        at: Span,
        scope: &Scope<'f>,
    ) -> Option<Id> {
        self.called.insert(function.at.start);
        let name = &function.name;
        if function.parameters.len() != arguments.len() {
            let message =
                format!("`{name}` takes {} arguments, {} are given", function.parameters.len(), arguments.len());
            return self.fail(at, message, "");
        }
        if scope.calls.iter().any(|other| std::ptr::eq(*other, function)) {
            let names: Vec<&str> = scope.calls.iter().map(|f| f.name.as_str()).chain([name.as_str()]).collect();
            let message = format!("functions call themselves: {}", names.join(" -> "));
            return self.fail(at, message, "rules have no recursion");
        }
        if scope.calls.len() >= bounds::CALL_DEPTH_MAX {
            let message = format!("functions call each other more than {} deep", bounds::CALL_DEPTH_MAX);
            return self.fail(at, message, "write some of them in one");
        }
        let mut inner = Scope { frames: frame + 1, locals: Vec::new(), calls: scope.calls.clone() };
        inner.calls.push(function);
        for (parameter, argument) in function.parameters.iter().zip(arguments) {
            // `request` itself may be handed on.
            let id = self.raw(argument, scope)?;
            let local = self.local(id);
            inner.locals.push((parameter, local));
        }
        let body = self.body(function, inner)?;
        let number = self.program.functions.iter().position(|declared| declared.at == function.at)?;
        self.push(Node::Scope(u32::try_from(number).ok()?, body), at)
    }

    pub(super) fn body(&mut self, function: &'f Function, mut scope: Scope<'f>) -> Option<Id> {
        for (name, at, value) in &function.lets {
            if scope.locals.iter().any(|(own, _)| own == name) {
                return self.fail(
                    *at,
                    format!("`{}` has a meaning in this function already", short(name)),
                    "rename it",
                );
            }
            let id = self.raw(value, &scope)?;
            let local = self.local(id);
            scope.locals.push((name, local));
        }
        self.raw(&function.result, &scope)
    }

    pub(super) fn local(&mut self, id: Id) -> Local {
        let is_copied = self.fact(id).is_some() || matches!(self.program.node(id), Node::Literal(_));
        if is_copied { Local::Copy(id) } else { self.slot(id) }
    }
}
