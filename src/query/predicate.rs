//! Conditions on documents: what is asked of their fields, joined by *and* and *or*.

use serde_json::Value;

use super::rows::end_of;
use super::value::{self, ValueKey};
use crate::document::Path;
use crate::error::QueryError;
use crate::limits::queries;

/// A field that conditions and orderings are about.
///
/// ```
/// use tidelog::query::field;
/// let lobby = field("room").eq("lobby").and(field("author.name").ne("bot"));
/// ```
pub fn field(path: impl Into<Path>) -> Field {
    Field(path.into())
}

/// See [`field`].
#[derive(Debug, Clone)]
#[must_use = "a field asks nothing by itself"]
pub struct Field(Path);

/// What a condition asks of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// It has the value.
    Eq,
    /// It has another value, and is not null.
    Ne,
    /// It is below the value, and of its type.
    Lt,
    /// It is the value or below it, and of its type.
    Le,
    /// It is above the value, and of its type.
    Gt,
    /// It is the value or above it, and of its type.
    Ge,
    /// It has one of the values.
    In,
    /// It has none of the values, and is not null.
    NotIn,
    /// It is a list with the value as an element.
    ArrayContains,
    /// It is a list with one of the values as an element.
    ArrayContainsAny,
    /// It is there, or is not.
    Exists,
}

impl Operator {
    const ALL: [(Self, &str, &str); 11] = [
        (Self::Eq, "==", "eq"),
        (Self::Ne, "!=", "ne"),
        (Self::Lt, "<", "lt"),
        (Self::Le, "<=", "le"),
        (Self::Gt, ">", "gt"),
        (Self::Ge, ">=", "ge"),
        (Self::In, "in", "in"),
        (Self::NotIn, "not-in", "not-in"),
        (Self::ArrayContains, "array-contains", "array-contains"),
        (Self::ArrayContainsAny, "array-contains-any", "array-contains-any"),
        (Self::Exists, "exists", "exists"),
    ];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(operator, _, _)| *operator == self).map_or("", |(_, sign, _)| sign)
    }

    /// The operator of that sign or word.
    ///
    /// # Errors
    /// [`QueryError::Malformed`] when there is none.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let found = Self::ALL.iter().find(|(_, sign, word)| *sign == text || *word == text);
        found.map(|(operator, _, _)| *operator).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|(_, sign, _)| *sign).collect();
            QueryError::malformed(
                format!("{:?} is no operator", crate::id::shortened(text)),
                format!("use one of {}", known.join(" ")),
            )
        })
    }

    fn takes_list(self) -> Option<usize> {
        match self {
            Self::In | Self::ArrayContainsAny => Some(queries::VALUES_MAX),
            Self::NotIn => Some(queries::NOT_IN_MAX),
            _ => None,
        }
    }

    pub(super) fn is_range(self) -> bool {
        matches!(self, Self::Lt | Self::Le | Self::Gt | Self::Ge)
    }
}

/// One condition on one field.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    pub(super) field: Path,
    pub(super) operator: Operator,
    pub(super) value: Value,
    /// What is compared with: one key, or one for each listed value.
    pub(super) keys: Vec<ValueKey>,
}

/// Conditions, joined by *and* and *or*.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Predicate {
    /// One condition.
    Condition(Condition),
    /// All of them hold. None: nothing is asked.
    All(Vec<Predicate>),
    /// One of them holds. None: nothing is found.
    Any(Vec<Predicate>),
}

impl Field {
    /// It has `value`.
    pub fn eq(self, value: impl Into<Value>) -> Predicate {
        self.is(Operator::Eq, value)
    }

    /// It has another value than `value`, and is not null.
    pub fn ne(self, value: impl Into<Value>) -> Predicate {
        self.is(Operator::Ne, value)
    }

    /// It is below `value`.
    pub fn lt(self, value: impl Into<Value>) -> Predicate {
        self.is(Operator::Lt, value)
    }

    /// It is `value` or below it.
    pub fn le(self, value: impl Into<Value>) -> Predicate {
        self.is(Operator::Le, value)
    }

    /// It is above `value`.
    pub fn gt(self, value: impl Into<Value>) -> Predicate {
        self.is(Operator::Gt, value)
    }

    /// It is `value` or above it.
    pub fn ge(self, value: impl Into<Value>) -> Predicate {
        self.is(Operator::Ge, value)
    }

    /// It has one of `values`, 30 at most.
    pub fn is_in<V: Into<Value>>(self, values: impl IntoIterator<Item = V>) -> Predicate {
        self.is(Operator::In, list(values))
    }

    /// It has none of `values`, 10 at most, and is not null.
    pub fn not_in<V: Into<Value>>(self, values: impl IntoIterator<Item = V>) -> Predicate {
        self.is(Operator::NotIn, list(values))
    }

    /// It is a list that contains `value`.
    pub fn array_contains(self, value: impl Into<Value>) -> Predicate {
        self.is(Operator::ArrayContains, value)
    }

    /// It is a list that contains one of `values`, 30 at most.
    pub fn array_contains_any<V: Into<Value>>(self, values: impl IntoIterator<Item = V>) -> Predicate {
        self.is(Operator::ArrayContainsAny, list(values))
    }

    /// Whether it is there is as `exists` says.
    pub fn exists(self, exists: bool) -> Predicate {
        self.is(Operator::Exists, exists)
    }

    /// The condition with an operator that is known only when the program runs.
    pub fn is(self, operator: Operator, value: impl Into<Value>) -> Predicate {
        Predicate::Condition(Condition::new(self.0, operator, value.into()))
    }
}

fn list<V: Into<Value>>(values: impl IntoIterator<Item = V>) -> Value {
    Value::Array(values.into_iter().map(Into::into).collect())
}

impl Predicate {
    /// Both hold.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match self {
            Self::All(mut parts) => {
                parts.push(other);
                Self::All(parts)
            }
            first => Self::All(vec![first, other]),
        }
    }

    /// One of the two holds.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match self {
            Self::Any(mut parts) => {
                parts.push(other);
                Self::Any(parts)
            }
            first => Self::Any(vec![first, other]),
        }
    }

    /// Whether it holds of a document's value.
    #[must_use]
    pub fn holds(&self, document: &Value) -> bool {
        match self {
            Self::Condition(condition) => condition.holds(document),
            Self::All(parts) => parts.iter().all(|part| part.holds(document)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(document)),
        }
    }

    /// Holds it against the bounds of a query.
    ///
    /// # Errors
    /// [`QueryError::Malformed`].
    pub(super) fn check(&self) -> Result<(), QueryError> {
        let mut count = 0;
        let mut bytes = 0;
        self.check_part(0, &mut count, &mut bytes)
    }

    fn check_part(&self, depth: usize, count: &mut usize, bytes: &mut usize) -> Result<(), QueryError> {
        if depth > queries::DEPTH_MAX {
            let why = format!("conditions are nested more than {} deep", queries::DEPTH_MAX);
            return Err(QueryError::malformed(why, "write them flatter"));
        }
        match self {
            Self::All(parts) | Self::Any(parts) => {
                parts.iter().try_for_each(|part| part.check_part(depth + 1, count, bytes))
            }
            Self::Condition(condition) => {
                *count += 1;
                *bytes += condition.value.to_string().len();
                if *count > queries::CONDITIONS_MAX {
                    let why = format!("there are more than {} conditions", queries::CONDITIONS_MAX);
                    return Err(QueryError::malformed(why, "ask for less at a time"));
                }
                if *bytes > queries::VALUE_BYTES_MAX {
                    let why = format!("the values take more than {} bytes", queries::VALUE_BYTES_MAX);
                    return Err(QueryError::malformed(why, "ask for less at a time"));
                }
                condition.check()
            }
        }
    }

    /// The conditions written as alternatives, each of which asks all of its conditions.
    ///
    /// # Errors
    /// [`QueryError::Malformed`] when there are too many.
    pub(super) fn alternatives(&self) -> Result<Vec<Vec<Condition>>, QueryError> {
        let too_many = || {
            let why = format!("written out, there are more than {} alternatives", queries::ALTERNATIVES_MAX);
            QueryError::malformed(why, "use `in` for values of one field, or ask twice")
        };
        match self {
            Self::Condition(condition) => Ok(vec![vec![condition.clone()]]),
            Self::Any(parts) => {
                let mut all = Vec::new();
                for part in parts {
                    all.extend(part.alternatives()?);
                    if all.len() > queries::ALTERNATIVES_MAX {
                        return Err(too_many());
                    }
                }
                Ok(all)
            }
            Self::All(parts) => {
                let mut all: Vec<Vec<Condition>> = vec![vec![]];
                for part in parts {
                    let more = part.alternatives()?;
                    if all.len() * more.len() > queries::ALTERNATIVES_MAX {
                        return Err(too_many());
                    }
                    all = all.iter().flat_map(|one| more.iter().map(|other| [&one[..], other].concat())).collect();
                }
                Ok(all)
            }
        }
    }

    /// Every condition in it.
    pub(super) fn conditions(&self) -> Vec<&Condition> {
        match self {
            Self::Condition(condition) => vec![condition],
            Self::All(parts) | Self::Any(parts) => parts.iter().flat_map(Self::conditions).collect(),
        }
    }
}

impl Condition {
    pub(super) fn new(field: Path, operator: Operator, value: Value) -> Self {
        let keys = match (&value, operator.takes_list()) {
            (Value::Array(values), Some(_)) => values.iter().map(ValueKey::of).collect(),
            (value, _) => vec![ValueKey::of(value)],
        };
        Self { field, operator, value, keys }
    }

    fn check(&self) -> Result<(), QueryError> {
        let place = format!("{} {}", self.field, self.operator.as_str());
        if let Some(max) = self.operator.takes_list() {
            let Value::Array(values) = &self.value else {
                return Err(QueryError::malformed(format!("{place}: needs a list of values"), "give a list"));
            };
            if values.is_empty() || values.len() > max {
                let why = format!("{place}: has {} values", values.len());
                return Err(QueryError::malformed(why, format!("give 1 to {max} values")));
            }
        }
        if self.operator == Operator::Exists && !self.value.is_boolean() {
            return Err(QueryError::malformed(format!("{place}: needs true or false"), "give one of them"));
        }
        Ok(())
    }

    pub(super) fn holds(&self, document: &Value) -> bool {
        let found = value::at(document, self.field.steps());
        let Some(found) = found else { return self.operator == Operator::Exists && self.value == Value::Bool(false) };
        match self.operator {
            Operator::Exists => self.value == Value::Bool(true),
            Operator::ArrayContains | Operator::ArrayContainsAny => {
                value::elements(found).iter().any(|element| self.keys.contains(&ValueKey::of(element)))
            }
            _ => self.holds_of(&ValueKey::of(found)),
        }
    }

    fn holds_of(&self, found: &ValueKey) -> bool {
        let Some(key) = self.keys.first() else { return false };
        let in_type = || found.is_of_type_of(key);
        match self.operator {
            Operator::Eq | Operator::In => self.keys.contains(found),
            Operator::Ne | Operator::NotIn => !found.is_null() && !self.keys.contains(found),
            Operator::Lt => found < key && in_type(),
            Operator::Le => found <= key && in_type(),
            Operator::Gt => found > key && in_type(),
            Operator::Ge => found >= key && in_type(),
            Operator::ArrayContains | Operator::ArrayContainsAny | Operator::Exists => false,
        }
    }

    /// The keys that it may hold of, if it is a range.
    pub(super) fn span(&self) -> Option<Span> {
        let key = self.keys.first().filter(|_| self.operator.is_range())?;
        let (first, end) = key.bounds_of_type();
        let exact = key.as_bytes().to_vec();
        Some(match self.operator {
            Operator::Lt => Span { lower: (first, true), upper: (exact, false) },
            Operator::Le => Span { lower: (first, true), upper: (exact, true) },
            Operator::Gt => Span { lower: (exact, false), upper: (end, false) },
            _ => Span { lower: (exact, true), upper: (end, false) },
        })
    }
}

/// A range of keys. Each end is the beginning of keys, and whether those that begin so are in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) lower: (Vec<u8>, bool),
    pub(super) upper: (Vec<u8>, bool),
}

impl Span {
    /// What is in both.
    pub(super) fn within(self, other: Self) -> Self {
        let from = |(bytes, included): &(Vec<u8>, bool)| if *included { bytes.clone() } else { end_of(bytes) };
        let to = |(bytes, included): &(Vec<u8>, bool)| if *included { end_of(bytes) } else { bytes.clone() };
        let lower = if from(&other.lower) > from(&self.lower) { other.lower } else { self.lower };
        let upper = if to(&other.upper) < to(&self.upper) { other.upper } else { self.upper };
        Self { lower, upper }
    }

    /// The first bytes in it, and the first behind it, as they stand in an index.
    pub(super) fn bounds(&self, descending: bool) -> (Vec<u8>, Vec<u8>) {
        let turned = |bytes: &[u8]| bytes.iter().map(|byte| !byte).collect::<Vec<u8>>();
        let from = |bytes: Vec<u8>, included: bool| if included { bytes } else { end_of(&bytes) };
        let to = |bytes: Vec<u8>, included: bool| if included { end_of(&bytes) } else { bytes };
        let Self { lower, upper } = self;
        if descending {
            (from(turned(&upper.0), upper.1), to(turned(&lower.0), lower.1))
        } else {
            (from(lower.0.clone(), lower.1), to(upper.0.clone(), upper.1))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operators_hold_as_documented() {
        let document = json!({"n": 5, "none": null, "text": "b", "tags": ["a", 1], "deep": {"x": true}});
        for (predicate, holds) in [
            (field("n").eq(5.0), true),
            (field("n").eq("5"), false),
            (field("n").ne(4), true),
            (field("none").ne(4), false),
            (field("absent").ne(4), false),
            (field("none").eq(Value::Null), true),
            (field("n").lt(6), true),
            (field("n").lt("a"), false),
            (field("text").gt(7), false),
            (field("text").gt("a"), true),
            (field("n").le(5), true),
            (field("n").gt(5), false),
            (field("n").ge(5), true),
            (field("n").is_in([1, 5]), true),
            (field("n").not_in([1, 5]), false),
            (field("none").not_in([1]), false),
            (field("text").not_in([1]), true),
            (field("tags").array_contains(1), true),
            (field("tags").array_contains("b"), false),
            (field("n").array_contains(5), false),
            (field("tags").array_contains_any(["x", "a"]), true),
            (field("deep.x").exists(true), true),
            (field("deep.y").exists(true), false),
            (field("deep.y").exists(false), true),
            (field("n").eq(1).or(field("text").eq("b")), true),
            (field("n").eq(5).and(field("text").eq("c")), false),
            (Predicate::All(vec![]), true),
            (Predicate::Any(vec![]), false),
        ] {
            assert_eq!(predicate.holds(&document), holds, "{predicate:?}");
            let any = predicate.alternatives().unwrap();
            let alike = any.iter().any(|all| all.iter().all(|condition| condition.holds(&document)));
            assert_eq!(alike, holds, "{predicate:?}");
        }
    }

    #[test]
    fn bounds_are_told_with_what_to_do() {
        let many = |count: usize| Predicate::All((0..count).map(|n| field("a").ne(n)).collect());
        assert!(many(100).check().is_ok() && many(101).check().is_err());
        assert!(field("a").is_in([0; 0]).check().is_err() && field("a").is_in(0..31).check().is_err());
        assert!(field("a").not_in(0..11).check().is_err() && field("a").is(Operator::In, 1).check().is_err());
        assert!(field("a").is(Operator::Exists, 1).check().is_err());
        assert!(field("a").eq("x".repeat(70_000)).check().is_err());
        let deep = (0..9).fold(field("a").eq(1), |inner, _| Predicate::All(vec![inner]));
        assert!(deep.check().is_err());
        let wide = Predicate::All(vec![Predicate::Any((0..6).map(|n| field("a").eq(n)).collect()); 2]);
        assert!(wide.alternatives().is_err());
        let error = Operator::parse("~=").unwrap_err();
        assert_eq!(error.to_string(), "\"~=\" is no operator");
    }
}
