//! Values that expressions work on.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::time;

/// A value of an expression: of a document, of a token, or computed. A cheap clone.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer with a sign.
    Int(i64),
    /// An integer without one.
    Uint(u64),
    /// A number with a fraction.
    Double(f64),
    /// Text.
    String(Arc<str>),
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// A moment, in milliseconds since 1970.
    Timestamp(i64),
    /// A span of time, in milliseconds.
    Duration(i64),
    /// A list.
    List(Arc<[Value]>),
    /// A map from names to values.
    Map(Arc<BTreeMap<Arc<str>, Value>>),
}

/// What a value is, for messages, `type()` and `is`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List,
    Map,
}

impl Kind {
    /// The name that `type()` gives, as CEL writes it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Timestamp => "timestamp",
            Self::Duration => "duration",
            Self::List => "list",
            Self::Map => "map",
        }
    }
}

impl Value {
    /// Text.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::String(Arc::from(text))
    }

    /// A list.
    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(Arc::from(items))
    }

    /// A map of a few named values.
    pub(super) fn map<const N: usize>(entries: [(&str, Self); N]) -> Self {
        Self::Map(Arc::new(entries.into_iter().map(|(key, value)| (Arc::from(key), value)).collect()))
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Null => Kind::Null,
            Self::Bool(_) => Kind::Bool,
            Self::Int(_) => Kind::Int,
            Self::Uint(_) => Kind::Uint,
            Self::Double(_) => Kind::Double,
            Self::String(_) => Kind::String,
            Self::Bytes(_) => Kind::Bytes,
            Self::Timestamp(_) => Kind::Timestamp,
            Self::Duration(_) => Kind::Duration,
            Self::List(_) => Kind::List,
            Self::Map(_) => Kind::Map,
        }
    }

    /// What lies at the end of a path of names, if every step is a map that has the next.
    pub(super) fn at<'a, S: AsRef<str>>(&'a self, path: &[S]) -> Option<&'a Self> {
        path.iter().try_fold(self, |value, name| match value {
            Self::Map(map) => map.get(name.as_ref()),
            _ => None,
        })
    }

    /// How two values are ordered, if they are: numbers with numbers, otherwise like with like. `None` with NaN too.
    pub(super) fn order(&self, other: &Self) -> Result<Option<Ordering>, (Kind, Kind)> {
        Ok(match (self, other) {
            (Self::Int(_) | Self::Uint(_) | Self::Double(_), Self::Int(_) | Self::Uint(_) | Self::Double(_)) => {
                order_numbers(self, other)
            }
            (Self::String(a), Self::String(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) | (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            _ => return Err((self.kind(), other.kind())),
        })
    }
}

/// Numbers by what they are worth, whatever their types; exact, also where a `f64` cannot tell integers apart.
pub(super) fn order_numbers(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Double(a), integer) => order_mixed(integer, *a).map(Ordering::reverse),
        (integer, Value::Double(b)) => order_mixed(integer, *b),
        (a, b) => Some(wide(a)?.cmp(&wide(b)?)),
    }
}

fn wide(integer: &Value) -> Option<i128> {
    match integer {
        Value::Int(value) => Some(i128::from(*value)),
        Value::Uint(value) => Some(i128::from(*value)),
        _ => None,
    }
}

fn order_mixed(integer: &Value, double: f64) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    // Beyond 2^65 every double is beyond every integer here; below, its whole part fits.
    let bound = 36_893_488_147_419_103_232.0;
    if double.abs() >= bound {
        return Some(if double > 0.0 { Ordering::Less } else { Ordering::Greater });
    }
    let whole = double.trunc();
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and below 2^65")]
    let order = wide(integer)?.cmp(&(whole as i128));
    Some(order.then_with(|| 0.0_f64.partial_cmp(&(double - whole)).unwrap_or(Ordering::Equal)))
}

impl fmt::Display for Value {
    /// As it is written in an expression, where it can be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Uint(value) => write!(f, "{value}u"),
            Self::Double(value) => write!(f, "{value:?}"),
            Self::String(text) => write!(f, "{text:?}"),
            Self::Bytes(bytes) => {
                f.write_str("b\"")?;
                bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
                f.write_str("\"")
            }
            Self::Timestamp(ms) => write!(f, "timestamp({:?})", time::format(*ms)),
            Self::Duration(ms) => write!(f, "duration({:?})", time::format_duration(*ms)),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Map(map) => {
                f.write_str("{")?;
                for (index, (key, value)) in map.iter().enumerate() {
                    write!(f, "{}{key:?}: {value}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str("}")
            }
        }
    }
}
