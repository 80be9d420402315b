//! A file of rules: blocks, `allow`, functions. Expressions are in `expression.rs`.

use crate::limits::rules as bounds;

use super::ast::{Allow, Block, Expr, File, Function, Segment, SegmentKind, Span};
use super::lexer::{Lexer, Token};
use super::problem::{Problems, suggestion};
use super::request::Operation;

/// What ended the reading of something: its problem is noted, and the reader goes on behind it.
#[derive(Debug)]
pub(super) struct Noted;

pub(super) type Parsed<T> = Result<T, Noted>;

/// Reads tokens one ahead.
pub(super) struct Parser<'s, 'p> {
    pub(super) source: &'s str,
    lexer: Lexer<'s>,
    pub(super) token: Token,
    pub(super) at: Span,
    /// Where the token before ended.
    pub(super) last_end: u32,
    pub(super) depth: usize,
    pub(super) problems: &'p mut Problems<'s>,
}

/// Reads a whole file. What is wrong with it is in `problems` afterwards.
pub(super) fn parse<'s>(source: &'s str, problems: &mut Problems<'s>) -> File {
    let mut parser = Parser::new(source, problems);
    let mut root = Block::default();
    parser.file(&mut root);
    File { root }
}

/// Reads one expression alone.
#[cfg(test)]
pub(super) fn parse_expression<'s>(source: &'s str, problems: &mut Problems<'s>) -> Option<Expr> {
    let mut parser = Parser::new(source, problems);
    let expression = parser.expression().ok()?;
    parser.expect_end().ok()?;
    Some(expression)
}

impl<'s, 'p> Parser<'s, 'p> {
    fn new(source: &'s str, problems: &'p mut Problems<'s>) -> Self {
        let mut lexer = Lexer::new(source);
        let (token, at) = lexer.next();
        Self { source, lexer, token, at, last_end: 0, depth: 0, problems }
    }

    pub(super) fn advance(&mut self) {
        self.last_end = self.at.end;
        (self.token, self.at) = self.lexer.next();
    }

    /// Goes on from a byte of the source.
    pub(super) fn continue_at(&mut self, at: u32) {
        self.lexer.go_to(at);
        self.last_end = at;
        (self.token, self.at) = self.lexer.next();
    }

    pub(super) fn text(&self, at: Span) -> &'s str {
        self.source.get(at.start as usize..at.end as usize).unwrap_or_default()
    }

    pub(super) fn is_sign(&self, sign: &str) -> bool {
        matches!(self.token, Token::Sign(own) if own == sign)
    }

    pub(super) fn is_word(&self, word: &str) -> bool {
        self.token == Token::Name && self.text(self.at) == word
    }

    pub(super) fn take_sign(&mut self, sign: &str) -> bool {
        let is_it = self.is_sign(sign);
        if is_it {
            self.advance();
        }
        is_it
    }

    /// Notes a problem.
    pub(super) fn fail<T>(&mut self, at: Span, message: impl Into<String>, remedy: impl Into<String>) -> Parsed<T> {
        self.problems.add(at.start, message, remedy);
        Err(Noted)
    }

    /// Says that something else should stand here.
    pub(super) fn unexpected<T>(&mut self, wanted: &str) -> Parsed<T> {
        let at = self.at;
        match self.token.clone() {
            Token::Bad(why) => self.fail(at, why, ""),
            Token::End => self.fail(at, format!("the file ends where {wanted} should be"), ""),
            _ => {
                let found: String = self.text(at).chars().take(40).collect();
                self.fail(at, format!("`{found}` stands where {wanted} should be"), "")
            }
        }
    }

    pub(super) fn expect_sign(&mut self, sign: &str) -> Parsed<()> {
        if self.take_sign(sign) { Ok(()) } else { self.unexpected(&format!("`{sign}`")) }
    }

    #[cfg(test)]
    fn expect_end(&mut self) -> Parsed<()> {
        if self.token == Token::End { Ok(()) } else { self.unexpected("the end") }
    }

    pub(super) fn name(&mut self, what: &str) -> Parsed<String> {
        if self.token != Token::Name {
            return self.unexpected(what);
        }
        let name = self.text(self.at).to_owned();
        self.advance();
        Ok(name)
    }

    fn file(&mut self, root: &mut Block) {
        while self.token != Token::End && !self.problems.is_full() {
            let result = if self.is_word("rules_version") {
                self.version()
            } else if self.is_word("service") {
                self.service(root)
            } else {
                self.item(root, 0)
            };
            if result.is_err() {
                self.recover();
                // A brace too many.
                if self.is_sign("}") {
                    self.advance();
                }
            }
        }
    }

    fn version(&mut self) -> Parsed<()> {
        self.advance();
        self.expect_sign("=")?;
        let at = self.at;
        match &self.token {
            Token::Literal(value) if *value == super::value::Value::text("2") => {}
            _ => return self.fail(at, "this version of the rules is not known", "write rules_version = '2';"),
        }
        self.advance();
        self.take_sign(";");
        Ok(())
    }

    /// `service NAME { .. }`: its content stands for itself.
    fn service(&mut self, root: &mut Block) -> Parsed<()> {
        self.advance();
        self.name("the name of the service, as `tidelog`")?;
        while self.take_sign(".") {
            self.name("the rest of the service's name")?;
        }
        self.expect_sign("{")?;
        self.body(root, 0)
    }

    /// What stands in braces, up to the closing one.
    fn body(&mut self, block: &mut Block, depth: usize) -> Parsed<()> {
        loop {
            if self.take_sign("}") {
                return Ok(());
            }
            if self.token == Token::End {
                return self.unexpected("`}`");
            }
            if self.problems.is_full() {
                return Err(Noted);
            }
            if self.item(block, depth).is_err() {
                self.recover();
            }
        }
    }

    fn item(&mut self, block: &mut Block, depth: usize) -> Parsed<()> {
        let at = self.at;
        match (self.token == Token::Name).then(|| self.text(at)) {
            Some("match") => {
                let inner = self.block(depth)?;
                block.blocks.push(inner);
                Ok(())
            }
            Some("allow") if depth > 0 => {
                let allow = self.allow()?;
                block.allows.push(allow);
                Ok(())
            }
            Some("allow") => {
                self.fail(at, "an allow stands outside of every match", "put it into a `match /collection/{id} { .. }`")
            }
            Some("function") => {
                let function = self.function()?;
                block.functions.push(function);
                Ok(())
            }
            Some(word) => {
                let remedy = suggestion(word, &["match", "allow", "function", "service", "rules_version"]);
                self.fail(at, format!("`{}` begins nothing that can stand here", short(word)), remedy)
            }
            None => self.unexpected("match, allow or function"),
        }
    }

    fn block(&mut self, depth: usize) -> Parsed<Block> {
        let at = self.at;
        if depth >= bounds::MATCH_DEPTH_MAX {
            let message = format!("match is nested more than {} deep", bounds::MATCH_DEPTH_MAX);
            return self.fail(at, message, "write the path in one match: `match /collection/{id}`");
        }
        let mut block = Block { at, ..Block::default() };
        self.match_path(at.end)?;
        let (segments, end) = self.match_segments()?;
        block.segments = segments;
        self.continue_at(end);
        drop_database(&mut block);
        self.expect_sign("{")?;
        self.body(&mut block, depth + 1)?;
        Ok(block)
    }

    /// Stands before the path of a match afterwards.
    fn match_path(&mut self, end: u32) -> Parsed<()> {
        self.continue_at(end);
        if self.is_sign("/") { Ok(()) } else { self.unexpected("a path, as `/messages/{id}`,") }
    }

    /// The segments of a path, which is read letter by letter; and where it ends.
    fn match_segments(&mut self) -> Parsed<(Vec<Segment>, u32)> {
        let mut segments = Vec::new();
        let mut at = self.at.start;
        loop {
            let rest = self.source.get(at as usize..).unwrap_or_default();
            let Some(segment) = rest.strip_prefix('/') else { return Ok((segments, at)) };
            let start = at + 1;
            let ends = |c: char| c == '/' || c.is_whitespace() || c == ';';
            let (length, kind) = if segment.starts_with('{') {
                let Some(close) = segment.find('}') else {
                    return self.fail(
                        Span { start, end: start + 1 },
                        "this `{` is not closed",
                        "write {name} or {name=**}",
                    );
                };
                let inner = segment[1..close].trim();
                let (name, is_rest) = match inner.split_once('=') {
                    Some((name, "**")) => (name.trim(), true),
                    Some((name, pattern)) if pattern.trim() == "**" => (name.trim(), true),
                    Some((name, pattern)) if pattern.trim() == "*" => (name.trim(), false),
                    _ => (inner, false),
                };
                let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                    && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                if !is_name {
                    let message = format!("`{}` is no name of a segment", short(inner));
                    return self.fail(
                        Span { start, end: start + 1 },
                        message,
                        "write {name} for one, {name=**} for the rest",
                    );
                }
                let name = name.to_owned();
                (close + 1, if is_rest { SegmentKind::Rest(name) } else { SegmentKind::One(name) })
            } else {
                let length = segment.find(|c: char| ends(c) || matches!(c, '{' | '}')).unwrap_or(segment.len());
                (length, SegmentKind::Literal(segment[..length].to_owned()))
            };
            let end = start + u32::try_from(length).unwrap_or(u32::MAX);
            if length == 0 {
                return self.fail(Span { start, end }, "a segment of this path is empty", "write a name, or {name}");
            }
            segments.push(Segment { at: Span { start, end }, kind });
            at = end;
        }
    }

    fn allow(&mut self) -> Parsed<Allow> {
        let at = self.at;
        self.advance();
        let mut operations = Vec::new();
        loop {
            let word_at = self.at;
            let word = self.name("an operation, as read or write,")?;
            match word.as_str() {
                "read" => operations.extend([Operation::Get, Operation::List]),
                "write" => operations.extend([Operation::Create, Operation::Update, Operation::Delete]),
                word => match word.parse() {
                    Ok(operation) => operations.push(operation),
                    Err(_) => {
                        let names = ["read", "write", "get", "list", "create", "update", "delete", "presence"];
                        let message = format!("`{}` is no operation", short(word));
                        return self.fail(word_at, message, suggestion(word, &names));
                    }
                },
            }
            if !self.take_sign(",") {
                break;
            }
        }
        operations.sort_by_key(|operation| *operation as u8);
        operations.dedup();
        let mut condition = None;
        if self.take_sign(":") {
            if !self.is_word("if") {
                return self.unexpected("`if`");
            }
            self.advance();
            condition = Some(self.expression()?);
        }
        let end = self.last_end;
        self.expect_sign(";")?;
        Ok(Allow { at: Span { start: at.start, end }, operations, condition })
    }

    fn function(&mut self) -> Parsed<Function> {
        let at = self.at;
        self.advance();
        let name = self.name("the function's name")?;
        self.expect_sign("(")?;
        let mut parameters: Vec<String> = Vec::new();
        while !self.is_sign(")") {
            let parameter_at = self.at;
            let parameter = self.name("a parameter's name")?;
            if parameters.contains(&parameter) {
                return self.fail(parameter_at, format!("two parameters are called `{parameter}`"), "rename one");
            }
            parameters.push(parameter);
            if !self.take_sign(",") {
                break;
            }
        }
        self.expect_sign(")")?;
        self.expect_sign("{")?;
        let body = self.function_body();
        let (lets, result) = match body {
            Ok(body) => body,
            Err(Noted) => {
                // The rest of the body is left out, so that what follows the function is still read.
                self.leave_braces();
                return Err(Noted);
            }
        };
        Ok(Function { at, name, parameters, lets, result })
    }

    fn function_body(&mut self) -> Parsed<(Vec<(String, Span, Expr)>, Expr)> {
        let mut lets: Vec<(String, Span, Expr)> = Vec::new();
        while self.is_word("let") {
            self.advance();
            let at = self.at;
            let name = self.name("a name")?;
            self.expect_sign("=")?;
            let value = self.expression()?;
            self.expect_sign(";")?;
            lets.push((name, at, value));
        }
        if !self.is_word("return") {
            return self.unexpected("`let` or `return`");
        }
        self.advance();
        let result = self.expression()?;
        self.take_sign(";");
        if !self.is_sign("}") {
            return self.unexpected("`}`");
        }
        self.advance();
        Ok((lets, result))
    }

    /// Skips to where the next statement can begin.
    fn recover(&mut self) {
        let mut open = 0_usize;
        loop {
            match &self.token {
                Token::End => return,
                Token::Sign("{") => open += 1,
                Token::Sign("}") if open == 0 => return,
                Token::Sign("}") => {
                    open -= 1;
                    if open == 0 {
                        return self.advance();
                    }
                }
                Token::Sign(";") if open == 0 => return self.advance(),
                // Where it failed, it would fail again.
                Token::Name
                    if open == 0
                        && ["match", "allow", "function"].contains(&self.text(self.at))
                        && self.problems.last_at() < self.at.start =>
                {
                    return;
                }
                _ => {}
            }
            self.advance();
        }
    }

    /// Skips behind the brace that closes a function whose body could not be read.
    fn leave_braces(&mut self) {
        let mut open = 1_usize;
        while open > 0 && self.token != Token::End {
            match self.token {
                Token::Sign("{") => open += 1,
                Token::Sign("}") => open -= 1,
                _ => {}
            }
            if open > 0 {
                self.advance();
            }
        }
        // The brace itself is left: `recover` would stop before it.
        if self.is_sign("}") {
            self.token = Token::Sign(";");
        }
    }
}

/// Firestore's files have every path below `/databases/{database}/documents`.
fn drop_database(block: &mut Block) {
    let [databases, database, documents, ..] = block.segments.as_slice() else { return };
    let is_literal = |segment: &Segment, text: &str| matches!(&segment.kind, SegmentKind::Literal(own) if own == text);
    if !is_literal(databases, "databases") || !is_literal(documents, "documents") {
        return;
    }
    match &database.kind {
        SegmentKind::One(name) => block.databases.push(name.clone()),
        SegmentKind::Literal(_) => {}
        SegmentKind::Rest(_) => return,
    }
    block.segments.drain(..3);
}

/// A word of the source for a message.
pub(super) fn short(word: &str) -> String {
    word.chars().take(40).collect()
}
