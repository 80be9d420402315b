//! Words and signs of a file of rules, one at a time, and CEL's literals.

use std::sync::Arc;

use super::ast::Span;
use super::value::Value;

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Name,
    Literal(Value),
    /// An integer literal whose digits are 2^63: it is one only with a minus before it.
    SmallestInt,
    Sign(&'static str),
    /// What cannot be read; the problem.
    Bad(String),
    End,
}

/// Longer ones first.
const SIGNS: [&str; 29] = [
    "**", "==", "!=", "<=", ">=", "&&", "||", "$(", "(", ")", "{", "}", "[", "]", "<", ">", "+", "-", "*", "/", "%",
    "!", "?", ":", ",", ";", ".", "=", "$",
];

#[derive(Debug)]
pub(super) struct Lexer<'s> {
    source: &'s str,
    at: usize,
}

impl<'s> Lexer<'s> {
    pub(super) fn new(source: &'s str) -> Self {
        Self { source, at: 0 }
    }

    /// Goes on from a byte of the source, which must be where a character begins.
    pub(super) fn go_to(&mut self, at: u32) {
        self.at = at as usize;
    }

    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn skip_blanks(&mut self) -> Result<(), Span> {
        loop {
            let trimmed = self.rest().trim_start();
            self.at = self.source.len() - trimmed.len();
            if trimmed.starts_with("//") {
                self.at += trimmed.find('\n').unwrap_or(trimmed.len());
            } else if trimmed.starts_with("/*") {
                match trimmed.find("*/") {
                    Some(end) => self.at += end + 2,
                    None => {
                        let start = self.at;
                        self.at = self.source.len();
                        return Err(span(start, start + 2));
                    }
                }
            } else {
                return Ok(());
            }
        }
    }

    pub(super) fn next(&mut self) -> (Token, Span) {
        if let Err(at) = self.skip_blanks() {
            return (Token::Bad("this comment does not end".to_owned()), at);
        }
        let start = self.at;
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return (Token::End, span(start, start)) };
        let token = if let Some(length) = quoted_prefix(rest) {
            self.quoted(length)
        } else if first.is_ascii_alphabetic() || first == '_' {
            self.at += word(rest);
            Token::Name
        } else if first.is_ascii_digit() || (first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) {
            self.number()
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            self.at += sign.len();
            Token::Sign(sign)
        } else {
            self.at += first.len_utf8();
            Token::Bad(match first {
                '&' | '|' => format!("a single `{first}` is no operator; write `{first}{first}`"),
                _ => format!("{first:?} has no meaning here"),
            })
        };
        (token, span(start, self.at))
    }

    fn number(&mut self) -> Token {
        let rest = self.rest();
        let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if let Some(hex) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
            let length = hex.len() - hex.trim_start_matches(|c: char| c.is_ascii_hexdigit()).len();
            self.at += 2 + length;
            return self.integer(&hex[..length], 16);
        }
        let mut length = digits(rest);
        let mut is_double = false;
        if rest[length..].starts_with('.') && rest[length + 1..].starts_with(|c: char| c.is_ascii_digit()) {
            is_double = true;
            length += 1 + digits(&rest[length + 1..]);
        }
        if rest[length..].starts_with(['e', 'E']) {
            let signed = &rest[length + 1..];
            let unsigned = signed.strip_prefix(['+', '-']).unwrap_or(signed);
            if unsigned.starts_with(|c: char| c.is_ascii_digit()) {
                is_double = true;
                length += 1 + (signed.len() - unsigned.len()) + digits(unsigned);
            }
        }
        self.at += length;
        if !is_double {
            return self.integer(&rest[..length], 10);
        }
        if let Some(bad) = self.trailing() {
            return bad;
        }
        match rest[..length].parse::<f64>() {
            Ok(value) if value.is_finite() => Token::Literal(Value::Double(value)),
            _ => Token::Bad("this number is too large".to_owned()),
        }
    }

    fn integer(&mut self, digits: &str, radix: u32) -> Token {
        let is_unsigned = self.rest().starts_with(['u', 'U']);
        self.at += usize::from(is_unsigned);
        if let Some(bad) = self.trailing() {
            return bad;
        }
        match u64::from_str_radix(digits, radix) {
            Ok(value) if is_unsigned => Token::Literal(Value::Uint(value)),
            Ok(value) if value == 1 << 63 => Token::SmallestInt,
            Ok(value) => i64::try_from(value).map_or_else(
                |_| Token::Bad("this number is too large; one without a sign ends in u".to_owned()),
                |value| Token::Literal(Value::Int(value)),
            ),
            Err(_) if digits.is_empty() => Token::Bad("digits are missing after 0x".to_owned()),
            Err(_) => Token::Bad("this number is too large".to_owned()),
        }
    }

    /// A name right behind a number belongs to neither.
    fn trailing(&mut self) -> Option<Token> {
        let length = word(self.rest());
        self.at += length;
        (length > 0).then(|| Token::Bad("a number cannot go on with letters".to_owned()))
    }

    /// Text or bytes in quotes, with a prefix of so many letters.
    fn quoted(&mut self, prefix: usize) -> Token {
        let rest = self.rest();
        let letters = rest[..prefix].to_ascii_lowercase();
        let (is_raw, is_bytes) = (letters.contains('r'), letters.contains('b'));
        let body = &rest[prefix..];
        let single = &body[..1];
        let quote = if body.len() >= 3 && body[1..].starts_with(single) && body[2..].starts_with(single) {
            &body[..3]
        } else {
            single
        };
        let inner = &body[quote.len()..];
        let mut escaped = false;
        let end = inner.char_indices().find_map(|(at, c)| {
            if escaped {
                escaped = false;
                return None;
            }
            escaped = c == '\\' && !is_raw;
            (inner[at..].starts_with(quote)).then_some(Ok(at)).or((quote.len() == 1 && c == '\n').then_some(Err(at)))
        });
        let Some(Ok(end)) = end else {
            self.at += prefix + quote.len() + end.map_or(inner.len(), |line| line.unwrap_or_else(|at| at));
            return Token::Bad("this text does not end; its closing quote is missing".to_owned());
        };
        self.at += prefix + quote.len() * 2 + end;
        match (unescaped(&inner[..end], is_raw, is_bytes), is_bytes) {
            (Err(why), _) => Token::Bad(why),
            (Ok(bytes), true) => Token::Literal(Value::Bytes(bytes.into())),
            (Ok(bytes), false) => match String::from_utf8(bytes) {
                Ok(text) => Token::Literal(Value::String(Arc::from(text))),
                Err(_) => Token::Bad("this text is not Unicode".to_owned()),
            },
        }
    }
}

fn span(start: usize, end: usize) -> Span {
    // A source is far below 4 GiB.
    let narrow = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    Span { start: narrow(start), end: narrow(end) }
}

fn word(text: &str) -> usize {
    text.len() - text.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_').len()
}

/// How many letters stand before a quote, if text or bytes in quotes begin here.
fn quoted_prefix(text: &str) -> Option<usize> {
    let is_quote = |at: usize| matches!(text.as_bytes().get(at), Some(b'"' | b'\''));
    let letter = |at: usize| text.as_bytes().get(at).map(u8::to_ascii_lowercase);
    match (letter(0), letter(1)) {
        _ if is_quote(0) => Some(0),
        (Some(b'r' | b'b'), _) if is_quote(1) => Some(1),
        (Some(b'r'), Some(b'b')) | (Some(b'b'), Some(b'r')) if is_quote(2) => Some(2),
        _ => None,
    }
}

/// The bytes that a literal stands for. In bytes, `\x` and octal escapes are bytes; in text they are code points.
fn unescaped(text: &str, is_raw: bool, is_bytes: bool) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c != '\\' || is_raw {
            push(&mut out, c);
            continue;
        }
        let Some(kind) = rest.chars().next() else { return Err("a backslash stands at the end".to_owned()) };
        rest = &rest[kind.len_utf8()..];
        let (digits, radix) = match kind {
            'x' | 'X' => (2, 16),
            'u' => (4, 16),
            'U' => (8, 16),
            '0'..='3' => {
                rest = &text[text.len() - rest.len() - 1..];
                (3, 8)
            }
            _ => {
                push(&mut out, simple_escape(kind)?);
                continue;
            }
        };
        let number = rest.get(..digits).filter(|number| number.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let code = number.and_then(|number| u32::from_str_radix(number, radix).ok());
        let Some(code) = code else { return Err(format!("`\\{kind}` needs {digits} digits")) };
        rest = &rest[digits..];
        match (is_bytes && !matches!(kind, 'u' | 'U'), u8::try_from(code), char::from_u32(code)) {
            (true, Ok(byte), _) => out.push(byte),
            (false, _, Some(c)) => push(&mut out, c),
            _ => return Err(format!("`\\{kind}` with that number is no character")),
        }
    }
    Ok(out)
}

fn simple_escape(kind: char) -> Result<char, String> {
    Ok(match kind {
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        '\\' | '?' | '"' | '\'' | '`' => kind,
        _ => return Err(format!("`\\{kind}` is no escape; a backslash itself is `\\\\`")),
    })
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(source: &str) -> Token {
        let mut lexer = Lexer::new(source);
        let (token, _) = lexer.next();
        let (end, _) = lexer.next();
        if matches!(token, Token::Bad(_)) || end == Token::End { token } else { Token::Bad(format!("then {end:?}")) }
    }

    #[test]
    fn numbers_are_cel_s() {
        let value = |source: &str| match only(source) {
            Token::Literal(value) => value,
            other => panic!("{source}: {other:?}"),
        };
        assert_eq!(value("0"), Value::Int(0));
        assert_eq!(value("0x1F"), Value::Int(31));
        assert_eq!(value("18446744073709551615u"), Value::Uint(u64::MAX));
        assert_eq!(value(".5"), Value::Double(0.5));
        assert_eq!(value("1.5e-3"), Value::Double(0.0015));
        assert_eq!(value("1e3"), Value::Double(1000.0));
        assert_eq!(only("9223372036854775808"), Token::SmallestInt);
        for wrong in ["9223372036854775809", "1a", "0x", "1e999", "1.5u", "0xg"] {
            assert!(matches!(only(wrong), Token::Bad(_)), "{wrong}");
        }
    }

    #[test]
    fn texts_are_cel_s() {
        let text = |source: &str| match only(source) {
            Token::Literal(Value::String(text)) => text.to_string(),
            other => panic!("{source}: {other:?}"),
        };
        assert_eq!(text("'a\"b'"), "a\"b");
        assert_eq!(text(r#""\n\x41\u00e9\U0001F600\101\\\'""#), "\nAé😀A\\'");
        assert_eq!(text(r"r'\n'"), "\\n");
        assert_eq!(text("'''a'\nb'''"), "a'\nb");
        assert_eq!(text("''"), "");
        assert_eq!(only(r"b'\xff\101'"), Token::Literal(Value::Bytes([255, 65].into())));
        for wrong in ["'", "'a", "'a\n'", r"'\q'", r"'\x1'", r"'\ud800'", r"'\'", "'''a''", r"'\400'", "'\\xé'"] {
            assert!(matches!(only(wrong), Token::Bad(_)), "{wrong}");
        }
    }

    #[test]
    fn comments_are_left_out() {
        assert_eq!(only("// a\n/* b \n */ 1 // c"), Token::Literal(Value::Int(1)));
        assert!(matches!(only("/* a"), Token::Bad(_)));
        assert!(matches!(only("&"), Token::Bad(_)));
        assert!(matches!(only("é"), Token::Bad(_)));
    }
}
