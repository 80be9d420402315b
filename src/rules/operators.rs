//! Operators on values: CEL's, which never convert silently.

use super::ast::Binary;
use super::machine::{Fault, FaultKind, Outcome};
use super::program::Id;
use super::value::Value;

/// The bytes that a text or bytes have.
pub(super) fn length(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        _ => 0,
    }
}

/// The steps that copying a value takes.
pub(super) fn cost(value: &Value) -> usize {
    match value {
        Value::List(items) => items.len(),
        other => length(other) / crate::limits::rules::BYTES_PER_STEP,
    }
}

pub(super) fn compare(at: Id, operator: Binary, a: &Value, b: &Value) -> Outcome {
    let order = match a.order(b) {
        Ok(order) => order,
        Err((a, b)) => return Err(Fault { at, kind: FaultKind::Types("is not ordered with", a, b) }),
    };
    // With NaN everything is false.
    Ok(Value::Bool(order.is_some_and(|order| match operator {
        Binary::Less => order.is_lt(),
        Binary::LessOrEqual => order.is_le(),
        Binary::Greater => order.is_gt(),
        _ => order.is_ge(),
    })))
}

pub(super) fn negate(at: Id, value: &Value) -> Outcome {
    match value {
        Value::Int(value) => value.checked_neg().map(Value::Int).ok_or(Fault { at, kind: FaultKind::Overflow }),
        Value::Double(value) => Ok(Value::Double(-value)),
        other => Err(Fault { at, kind: FaultKind::Type("has no negative", other.kind()) }),
    }
}

pub(super) fn arithmetic(at: Id, operator: Binary, a: &Value, b: &Value) -> Outcome {
    let overflow = Fault { at, kind: FaultKind::Overflow };
    let is_division = matches!(operator, Binary::Divide | Binary::Remainder);
    if is_division && matches!((a, b), (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0))) {
        return Err(Fault { at, kind: FaultKind::DivisionByZero });
    }
    let result = match (a, b) {
        (Value::Int(a), Value::Int(b)) => match operator {
            Binary::Add => a.checked_add(*b),
            Binary::Subtract => a.checked_sub(*b),
            Binary::Multiply => a.checked_mul(*b),
            Binary::Divide => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Int),
        (Value::Uint(a), Value::Uint(b)) => match operator {
            Binary::Add => a.checked_add(*b),
            Binary::Subtract => a.checked_sub(*b),
            Binary::Multiply => a.checked_mul(*b),
            Binary::Divide => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Uint),
        (Value::Double(a), Value::Double(b)) if operator != Binary::Remainder => Some(Value::Double(match operator {
            Binary::Add => a + b,
            Binary::Subtract => a - b,
            Binary::Multiply => a * b,
            _ => a / b,
        })),
        (Value::String(a), Value::String(b)) if operator == Binary::Add => {
            Some(Value::String(format!("{a}{b}").into()))
        }
        (Value::Bytes(a), Value::Bytes(b)) if operator == Binary::Add => {
            Some(Value::Bytes([&**a, &**b].concat().into()))
        }
        (Value::List(a), Value::List(b)) if operator == Binary::Add => Some(Value::List([&**a, &**b].concat().into())),
        (Value::Timestamp(a), Value::Duration(b)) if operator == Binary::Add => a.checked_add(*b).map(Value::Timestamp),
        (Value::Duration(a), Value::Timestamp(b)) if operator == Binary::Add => a.checked_add(*b).map(Value::Timestamp),
        (Value::Duration(a), Value::Duration(b)) if operator == Binary::Add => a.checked_add(*b).map(Value::Duration),
        (Value::Timestamp(a), Value::Duration(b)) if operator == Binary::Subtract => {
            a.checked_sub(*b).map(Value::Timestamp)
        }
        (Value::Timestamp(a), Value::Timestamp(b)) | (Value::Duration(a), Value::Duration(b))
            if operator == Binary::Subtract =>
        {
            a.checked_sub(*b).map(Value::Duration)
        }
        (a, b) => {
            let what = match operator {
                Binary::Add => "is not added to",
                Binary::Subtract => "is not reduced by",
                Binary::Multiply => "is not multiplied with",
                _ => "is not divided by",
            };
            return Err(Fault { at, kind: FaultKind::Types(what, a.kind(), b.kind()) });
        }
    };
    result.ok_or(overflow)
}

pub(super) fn index(at: Id, base: &Value, index: &Value) -> Outcome {
    let found = match (base, index) {
        (Value::List(items), Value::Int(index)) => usize::try_from(*index).ok().and_then(|index| items.get(index)),
        (Value::List(items), Value::Uint(index)) => usize::try_from(*index).ok().and_then(|index| items.get(index)),
        (Value::Map(map), Value::String(key)) => {
            return map.get(key).cloned().ok_or(Fault { at, kind: FaultKind::Absent });
        }
        (base, index) => {
            return Err(Fault { at, kind: FaultKind::Types("has no elements by", base.kind(), index.kind()) });
        }
    };
    found.cloned().ok_or(Fault { at, kind: FaultKind::OutOfRange })
}
