//! Expressions as they are written: CEL's grammar without macros and messages, with Firestore's `is` and paths.

use crate::limits::rules as bounds;

use super::ast::{Binary, Expr, ExprKind, PathPart, Span, TypeTest};
use super::lexer::Token;
use super::parser::{Parsed, Parser, short};
use super::problem::suggestion;
use super::value::Value;

/// Words that CEL keeps, and cannot be names of values.
const RESERVED: [&str; 18] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
    "match",
];

/// How tightly a binary operator binds.
fn precedence(token: &Token, word: &str) -> Option<(u8, Operator)> {
    use Binary as B;
    Some(match token {
        Token::Sign(sign) => match *sign {
            "||" => (1, Operator::Or),
            "&&" => (2, Operator::And),
            "==" => (3, Operator::Binary(B::Equal)),
            "!=" => (3, Operator::Binary(B::NotEqual)),
            "<" => (3, Operator::Binary(B::Less)),
            "<=" => (3, Operator::Binary(B::LessOrEqual)),
            ">" => (3, Operator::Binary(B::Greater)),
            ">=" => (3, Operator::Binary(B::GreaterOrEqual)),
            "+" => (4, Operator::Binary(B::Add)),
            "-" => (4, Operator::Binary(B::Subtract)),
            "*" => (5, Operator::Binary(B::Multiply)),
            "/" => (5, Operator::Binary(B::Divide)),
            "%" => (5, Operator::Binary(B::Remainder)),
            _ => return None,
        },
        Token::Name if word == "in" => (3, Operator::Binary(B::In)),
        Token::Name if word == "is" => (3, Operator::Is),
        _ => return None,
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Operator {
    Or,
    And,
    Is,
    Binary(Binary),
}

impl Parser<'_, '_> {
    /// Reads an expression, as far as it goes.
    pub(super) fn expression(&mut self) -> Parsed<Expr> {
        self.deeper(|parser| {
            let start = parser.at.start;
            let condition = parser.binary(1)?;
            if !parser.take_sign("?") {
                return Ok(condition);
            }
            let yes = parser.binary(1)?;
            parser.expect_sign(":")?;
            let no = parser.expression()?;
            let height = condition.height.max(yes.height).max(no.height);
            parser.node(start, ExprKind::If(Box::new([condition, yes, no])), height)
        })
    }

    /// Holds the nesting to its bound, so that neither reading nor evaluating can use up the stack.
    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= bounds::EXPRESSION_DEPTH_MAX {
            return self.too_deep(self.at);
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn too_deep<T>(&mut self, at: Span) -> Parsed<T> {
        let message = format!("this expression is nested more than {} deep", bounds::EXPRESSION_DEPTH_MAX);
        self.fail(at, message, "put parts of it into functions, or under names with `let`")
    }

    /// A node above others that are at most so high. It ends where the last token did.
    fn node(&mut self, start: u32, kind: ExprKind, height: u16) -> Parsed<Expr> {
        let at = Span { start, end: self.last_end };
        if usize::from(height) >= bounds::EXPRESSION_DEPTH_MAX * 2 {
            return self.too_deep(at);
        }
        Ok(Expr { kind, at, height: height + 1 })
    }

    fn binary(&mut self, weakest: u8) -> Parsed<Expr> {
        let start = self.at.start;
        let mut left = self.unary()?;
        while let Some((strength, operator)) = precedence(&self.token, self.text(self.at)) {
            if strength < weakest {
                break;
            }
            left = match operator {
                Operator::Is => {
                    self.advance();
                    let test = self.type_name()?;
                    let height = left.height;
                    self.node(start, ExprKind::Is(Box::new(left), test), height)?
                }
                Operator::And | Operator::Or => self.chain(start, left, strength, operator)?,
                Operator::Binary(operator) => {
                    self.advance();
                    let right = self.binary(strength + 1)?;
                    let height = left.height.max(right.height);
                    self.node(start, ExprKind::Binary(operator, Box::new(left), Box::new(right)), height)?
                }
            };
        }
        Ok(left)
    }

    /// `a && b && c` is one node, so that long ones are not deep.
    fn chain(&mut self, start: u32, first: Expr, strength: u8, operator: Operator) -> Parsed<Expr> {
        let mut height = first.height;
        let mut terms = vec![first];
        while precedence(&self.token, self.text(self.at)).is_some_and(|(_, own)| own == operator) {
            self.advance();
            let term = self.binary(strength + 1)?;
            height = height.max(term.height);
            terms.push(term);
        }
        let kind = if operator == Operator::And { ExprKind::And(terms) } else { ExprKind::Or(terms) };
        self.node(start, kind, height)
    }

    fn type_name(&mut self) -> Parsed<TypeTest> {
        let at = self.at;
        let name = self.name("the name of a type")?;
        match TypeTest::named(&name) {
            Some(test) => Ok(test),
            None => {
                let remedy = suggestion(&name, &TypeTest::NAMES);
                self.fail(at, format!("`{}` is no type that `is` knows", short(&name)), remedy)
            }
        }
    }

    fn unary(&mut self) -> Parsed<Expr> {
        let start = self.at.start;
        if self.take_sign("!") {
            let inner = self.deeper(Self::unary)?;
            let height = inner.height;
            return self.node(start, ExprKind::Not(Box::new(inner)), height);
        }
        if self.take_sign("-") {
            let literal = match self.token {
                Token::SmallestInt => Some(Value::Int(i64::MIN)),
                Token::Literal(Value::Int(value)) => Some(Value::Int(-value)),
                Token::Literal(Value::Double(value)) => Some(Value::Double(-value)),
                _ => None,
            };
            if let Some(value) = literal {
                self.advance();
                let node = self.node(start, ExprKind::Literal(value), 0)?;
                return self.members(start, node);
            }
            let inner = self.deeper(Self::unary)?;
            let height = inner.height;
            return self.node(start, ExprKind::Negate(Box::new(inner)), height);
        }
        let primary = self.primary()?;
        self.members(start, primary)
    }

    fn members(&mut self, start: u32, mut left: Expr) -> Parsed<Expr> {
        loop {
            if self.take_sign(".") {
                let name_at = self.at;
                if self.is_sign("?") {
                    return self.fail(
                        name_at,
                        "`.?` is not part of the rules",
                        "use has(a.b), or map.get(key, otherwise)",
                    );
                }
                let name = self.name("a name")?;
                if self.take_sign("(") {
                    let arguments = self.list_of(")", Self::expression)?;
                    let height = arguments.iter().map(|argument| argument.height).fold(left.height, u16::max);
                    let target = Some(Box::new(left));
                    left = self.node(start, ExprKind::Call { target, name, name_at, arguments }, height)?;
                } else {
                    let height = left.height;
                    left = self.node(start, ExprKind::Member(Box::new(left), name), height)?;
                }
            } else if self.take_sign("[") {
                let index = self.expression()?;
                if self.is_sign(":") {
                    return self.fail(
                        self.at,
                        "ranges of lists are not part of the rules",
                        "look at single elements: list[0]",
                    );
                }
                self.expect_sign("]")?;
                let height = left.height.max(index.height);
                left = self.node(start, ExprKind::Index(Box::new(left), Box::new(index)), height)?;
            } else {
                return Ok(left);
            }
        }
    }

    /// What stands between commas, up to and with the closing sign. One comma may stand at the end of a list or map.
    fn list_of<T>(&mut self, close: &str, mut read: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_sign(close) {
            items.push(read(self)?);
            if !self.take_sign(",") {
                break;
            }
            if close == ")" && self.is_sign(close) {
                return self.unexpected("an argument");
            }
        }
        self.expect_sign(close)?;
        Ok(items)
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let at = self.at;
        let start = at.start;
        match self.token.clone() {
            Token::Literal(value) => {
                self.advance();
                self.node(start, ExprKind::Literal(value), 0)
            }
            Token::SmallestInt => self.fail(at, "this number is too large", "one without a sign ends in u"),
            Token::Name => self.named(at),
            Token::Sign("(") => {
                self.advance();
                let mut inner = self.expression()?;
                self.expect_sign(")")?;
                // Its text includes the parentheses.
                inner.at = Span { start, end: self.last_end };
                Ok(inner)
            }
            Token::Sign("[") => {
                self.advance();
                let items = self.list_of("]", Self::expression)?;
                let height = items.iter().map(|item| item.height).fold(0, u16::max);
                self.node(start, ExprKind::List(items), height)
            }
            Token::Sign("{") => {
                self.advance();
                let entries = self.list_of("}", |parser| {
                    let key = parser.expression()?;
                    parser.expect_sign(":")?;
                    Ok((key, parser.expression()?))
                })?;
                let height = entries.iter().map(|(key, value)| key.height.max(value.height)).fold(0, u16::max);
                self.node(start, ExprKind::Map(entries), height)
            }
            Token::Sign("/") => self.path(),
            _ => self.unexpected("a value"),
        }
    }

    fn named(&mut self, at: Span) -> Parsed<Expr> {
        let name = self.text(at).to_owned();
        let literal = match name.as_str() {
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            "null" => Some(Value::Null),
            _ => None,
        };
        if literal.is_none() && (name == "in" || RESERVED.contains(&name.as_str())) {
            return self.fail(at, format!("`{name}` is a word of the language and stands where a value should be"), "");
        }
        self.advance();
        if let Some(value) = literal {
            return self.node(at.start, ExprKind::Literal(value), 0);
        }
        if self.take_sign("(") {
            let arguments = self.list_of(")", Self::expression)?;
            let height = arguments.iter().map(|argument| argument.height).fold(0, u16::max);
            return self.node(at.start, ExprKind::Call { target: None, name, name_at: at, arguments }, height);
        }
        self.node(at.start, ExprKind::Name(name), 0)
    }

    /// A path, `/users/$(request.auth.uid)`: its texts are read letter by letter.
    fn path(&mut self) -> Parsed<Expr> {
        let start = self.at.start;
        let mut at = start;
        let mut parts = Vec::new();
        let mut height = 0;
        while let Some(segment) = self.source.get(at as usize..).and_then(|rest| rest.strip_prefix('/')) {
            let begin = at + 1;
            if segment.starts_with("$(") {
                self.continue_at(begin + 2);
                let computed = self.expression()?;
                height = height.max(computed.height);
                if !self.is_sign(")") {
                    return self.unexpected("`)`");
                }
                at = self.at.end;
                parts.push(PathPart::Computed(computed));
                continue;
            }
            let is_text = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '~');
            let length = match segment.strip_prefix("(default)") {
                Some(_) => "(default)".len(),
                None => segment.find(|c: char| !is_text(c)).unwrap_or(segment.len()),
            };
            let end = begin + u32::try_from(length).unwrap_or(u32::MAX);
            if length == 0 {
                let remedy = "write a path as /users/$(request.auth.uid); a division has a value on its left";
                return self.fail(Span { start: at, end: begin }, "a segment of this path is empty", remedy);
            }
            parts.push(PathPart::Text(segment[..length].to_owned()));
            at = end;
        }
        self.continue_at(at);
        // Firestore's prefix.
        let is_text = |part: Option<&PathPart>, text: &str| matches!(part, Some(PathPart::Text(own)) if own == text);
        if is_text(parts.first(), "databases") && is_text(parts.get(2), "documents") {
            parts.drain(..3);
        }
        if parts.len() != 2 {
            let remedy = "a document's path is /collection/id";
            return self.fail(Span { start, end: at }, "this path does not lead to a document", remedy);
        }
        self.node(start, ExprKind::Path(parts), height)
    }
}

#[cfg(test)]
mod tests {
    use super::super::parser::parse_expression;
    use super::super::problem::Problems;

    /// What is wrong with an expression, with its column.
    fn wrong(source: &str) -> String {
        let mut problems = Problems::new(source);
        parse_expression(source, &mut problems);
        if problems.is_empty() {
            return String::new();
        }
        let error = problems.into_error("");
        let problem = &error.problems[0];
        format!("{}: {}", problem.column, problem.message)
    }

    #[test]
    fn expressions_are_read() {
        for right in [
            "a.b.c == 1 && !(d || e) ? [1, 2,] : {'a': b,}",
            "x is string && -y.z < - 1 && -9223372036854775808 < 0",
            "exists(/databases/$(database)/documents/users/$(request.auth.uid))",
            "get(/users/a-b).data.admin",
            "a / b / c",
            "x in [1] in [true]",
            "a ? b : c ? d : e",
        ] {
            assert_eq!(wrong(right), "", "{right}");
        }
    }

    #[test]
    fn what_is_no_expression_is_told_with_its_place() {
        assert_eq!(wrong("a +"), "4: the file ends where a value should be");
        assert_eq!(wrong("a is strng"), "6: `strng` is no type that `is` knows");
        assert_eq!(wrong("(a"), "3: the file ends where `)` should be");
        assert_eq!(wrong("f(a,)"), "5: `)` stands where an argument should be");
        assert_eq!(wrong("let"), "1: `let` is a word of the language and stands where a value should be");
        assert_eq!(wrong("/a"), "1: this path does not lead to a document");
        assert_eq!(wrong("//a"), "4: the file ends where a value should be");
        assert_eq!(wrong("a & b"), "3: a single `&` is no operator; write `&&`");
        assert_eq!(wrong("a.?b"), "3: `.?` is not part of the rules");
    }

    #[test]
    fn deep_nesting_is_refused_before_it_uses_up_the_stack() {
        for (open, close) in [("(", ")"), ("[", "]"), ("!", ""), ("-", ""), ("a ? b : ", ""), ("f(", ")"), ("a[", "]")]
        {
            let source = format!("{}1{}", open.repeat(50_000), close.repeat(50_000));
            assert!(wrong(&source).contains("nested more than"), "{open}: {}", wrong(&source));
        }
        for tail in [".a", "[1]", " + 1", ".f()", " == 1", " is int"] {
            let source = format!("a{}", tail.repeat(50_000));
            assert!(wrong(&source).contains("nested more than"), "{tail}: {}", wrong(&source));
        }
        assert_eq!(wrong(&format!("a{}", " && a".repeat(3000))), "");
    }
}
