//! Conditions as somebody types them: `room == "lobby" && (at > 5 || pinned exists true)`.

use serde_json::Value;

use super::predicate::{Condition, Operator, Predicate};
use crate::document::Path;
use crate::error::QueryError;
use crate::limits::queries;

impl Predicate {
    /// Reads conditions as they are typed on the command line: a field, an operator and a value as JSON, joined by `&&` and
    /// `||` (which binds less) and parentheses. A field with other characters than letters, digits and `_ - . / $` is put
    /// in double quotes.
    ///
    /// ```
    /// use tidelog::query::{Predicate, field};
    /// let typed = Predicate::parse(r#"room == "lobby" && (at > 5 || tags array-contains "urgent")"#)?;
    /// let built = field("room").eq("lobby").and(field("at").gt(5).or(field("tags").array_contains("urgent")));
    /// assert_eq!(typed, built);
    /// # Ok::<(), tidelog::error::QueryError>(())
    /// ```
    ///
    /// # Errors
    /// [`QueryError::Malformed`], which says where.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let mut parser = Parser { text, at: 0 };
        let predicate = parser.any(0)?;
        parser.skip_space();
        if parser.at < text.len() {
            return Err(parser.wrong("the end, `&&` or `||`"));
        }
        Ok(predicate)
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn takes(&mut self, sign: &str) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(sign);
        if found {
            self.at += sign.len();
        }
        found
    }

    fn wrong(&self, expected: &str) -> QueryError {
        let found = match self.rest().trim() {
            "" => "the end".to_owned(),
            rest => format!("`{}`", crate::id::shortened(rest)),
        };
        let column = self.text[..self.at].chars().count() + 1;
        QueryError::malformed(
            format!("condition, character {column}: expected {expected}, found {found}"),
            r#"write conditions as room == "lobby" && at > 5"#,
        )
    }

    fn any(&mut self, depth: usize) -> Result<Predicate, QueryError> {
        if depth > queries::DEPTH_MAX {
            return Err(self.wrong("fewer parentheses in each other"));
        }
        let mut parts = vec![self.all(depth)?];
        while self.takes("||") {
            parts.push(self.all(depth)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Predicate::Any(parts) })
    }

    fn all(&mut self, depth: usize) -> Result<Predicate, QueryError> {
        let mut parts = vec![self.unit(depth)?];
        while self.takes("&&") {
            parts.push(self.unit(depth)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Predicate::All(parts) })
    }

    fn unit(&mut self, depth: usize) -> Result<Predicate, QueryError> {
        if self.takes("(") {
            let inner = self.any(depth + 1)?;
            return if self.takes(")") { Ok(inner) } else { Err(self.wrong("`)`")) };
        }
        let field = self.field()?;
        let operator = self.operator()?;
        let value = self.value()?;
        Ok(Predicate::Condition(Condition::new(field, operator, value)))
    }

    fn value(&mut self) -> Result<Value, QueryError> {
        self.skip_space();
        let rest = self.rest();
        // A number or a word ends where a sign of ours begins; anything else says itself where it ends.
        let is_behind = |character: char| character.is_whitespace() || "&|)".contains(character);
        let text = match rest.starts_with(['"', '[', '{']) {
            true => rest,
            false => &rest[..rest.find(is_behind).unwrap_or(rest.len())],
        };
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        let Some(Ok(value)) = values.next() else {
            return Err(self.wrong(r#"a value as JSON: "text" in double quotes, 5, true, ["a", "b"]"#));
        };
        self.at += values.byte_offset();
        Ok(value)
    }

    fn field(&mut self) -> Result<Path, QueryError> {
        self.skip_space();
        if self.rest().starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(self.rest()).into_iter::<String>();
            let Some(Ok(name)) = values.next() else { return Err(self.wrong("a field")) };
            self.at += values.byte_offset();
            return Ok(Path::from(name));
        }
        let is_plain = |character: char| character.is_alphanumeric() || "_-./$".contains(character);
        let length = self.rest().find(|character| !is_plain(character)).unwrap_or(self.rest().len());
        if length == 0 {
            return Err(self.wrong("a field"));
        }
        let name = &self.rest()[..length];
        self.at += length;
        Ok(Path::from(name))
    }

    fn operator(&mut self) -> Result<Operator, QueryError> {
        self.skip_space();
        let is_sign = |character: char| "=!<>~".contains(character);
        let is_word = |character: char| character.is_ascii_lowercase() || character == '-';
        let rest = self.rest();
        let is_one: &dyn Fn(char) -> bool = if rest.starts_with(is_sign) { &is_sign } else { &is_word };
        let length = rest.find(|character| !is_one(character)).unwrap_or(rest.len());
        if length == 0 {
            return Err(self.wrong("an operator"));
        }
        let operator = Operator::parse(&rest[..length])?;
        self.at += length;
        Ok(operator)
    }
}

#[cfg(test)]
mod tests {
    use super::super::predicate::field;
    use super::*;

    #[test]
    fn what_is_typed_is_what_is_built() {
        for (text, built) in [
            ("a==1", field("a").eq(1)),
            (r#" "odd field" != "x" "#, field("odd field").ne("x")),
            ("a.b in [1, 2] || c exists false", field("a.b").is_in([1, 2]).or(field("c").exists(false))),
            ("a>1&&a<=2&&b ge 3", field("a").gt(1).and(field("a").le(2)).and(field("b").ge(3))),
            ("(((a eq null)))", field("a").eq(Value::Null)),
        ] {
            assert_eq!(Predicate::parse(text).unwrap(), built, "{text}");
        }
    }

    #[test]
    fn slips_are_told_with_their_place() {
        for (text, why) in [
            ("", "character 1: expected a field, found the end"),
            ("room = 1", "\"=\" is no operator"),
            ("room == lobby", "character 9: expected a value as JSON"),
            ("room == \"a\" and b == 1", "character 13: expected the end, `&&` or `||`, found `and b == 1`"),
            ("(room == 1", "character 11: expected `)`, found the end"),
            ("room", "character 5: expected an operator"),
            ("((((((((((a == 1))))))))))", "fewer parentheses"),
            ("a == 1x", "expected a value as JSON"),
            ("a == [1, x]", "expected a value as JSON"),
        ] {
            let error = Predicate::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
