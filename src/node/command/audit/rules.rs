//! By which rule something was decided, and the rules that the log has.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::super::{CommandError, Exit, Output};
use super::attributed_to;
use crate::engine::Database;
use crate::id::{Lsn, encode_hex};
use crate::limits::audit as bounds;
use crate::log::record::{AllowedHeader, Lifecycle, LifecycleKind, NameRef, Record, RulePlace, RulesHeader, WriteKind};

/// What is looked up by.
type Key = (NameRef, NameRef, WriteKind);

/// A write that rules allowed.
struct Asked {
    key: Key,
    version: u32,
    /// Where it entered; 0 here.
    origin: NameRef,
}

/// Finds which `allow` let writes in, of one after the other in the order of the log: each record is read once.
pub(super) struct Finder<'a> {
    db: &'a Database,
    upto: Lsn,
    said: HashMap<Key, (Lsn, AllowedHeader)>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(db: &'a Database) -> Self {
        Self { db, upto: Lsn::ZERO, said: HashMap::new() }
    }

    /// Puts the rule that allowed the write in the record at `lsn` into its row, as `rule`; null when it is not known.
    /// Rows of what was refused, or what nobody was asked about, stay as they are.
    pub(super) fn complete(&mut self, row: &mut Value, lsn: Lsn, record: &Record) -> Result<(), CommandError> {
        if let Some(asked) = asked(self.db, lsn, record)? {
            row["rule"] = self.rule_of(lsn, &asked)?.map_or(Value::Null, |rule| place(&rule));
        }
        Ok(())
    }

    fn rule_of(&mut self, lsn: Lsn, asked: &Asked) -> Result<Option<RulePlace>, CommandError> {
        let from = Lsn(lsn.0.saturating_sub(AllowedHeader::REACH + 1));
        if from > self.upto || self.upto >= lsn {
            self.said.clear();
            self.upto = from;
        }
        // The last that may speak of it lies right before it.
        while self.upto.next() < lsn {
            let count = usize::try_from(lsn.0 - self.upto.0 - 1).unwrap_or(usize::MAX).min(bounds::RECORDS_PER_READ);
            let records = self.db.reader().read_records(self.upto, bounds::BYTES_PER_READ, count)?;
            let Some((last, _)) = records.last() else { break };
            // Where positions were left out, more is read than what lies before it.
            let reached = *last;
            self.upto = reached.min(Lsn(lsn.0 - 1));
            for (at, record) in records.into_iter().filter(|(at, _)| *at < lsn) {
                if let Record::Allowed(header) = record {
                    self.said.insert((header.principal, header.collection, header.operation), (at, header));
                }
            }
            if reached >= lsn {
                break;
            }
        }
        let said = self
            .said
            .get(&asked.key)
            .filter(|(at, header)| lsn.0 - at.0 <= AllowedHeader::REACH && header.rules_version == asked.version);
        Ok(said.and_then(|(_, header)| header.rule.clone()))
    }
}

/// Who wrote what, where rules were asked.
fn asked(db: &Database, lsn: Lsn, record: &Record) -> Result<Option<Asked>, CommandError> {
    let (key, version, origin) = match record {
        Record::Change(header, _) => {
            let is_first = header.deps.is_empty() && header.heads_before.is_none();
            let operation = if is_first { WriteKind::Create } else { WriteKind::Update };
            ((header.principal, header.collection, operation), header.rules_version, header.origin)
        }
        Record::Lifecycle(header, bytes) => {
            let Ok(said) = Lifecycle::decode(bytes) else { return Ok(None) };
            let operation = if said.kind == LifecycleKind::Created { WriteKind::Create } else { WriteKind::Delete };
            let (principal, version) = attributed_to(db, lsn)?;
            ((principal, header.collection, operation), version, header.origin)
        }
        _ => return Ok(None),
    };
    Ok((version != 0).then_some(Asked { key, version, origin }))
}

fn place(rule: &RulePlace) -> Value {
    json!({ "line": rule.line, "path": rule.path })
}

/// Adds what the log has of the rules that decided about a write: the lines of each `allow` as they are written, where
/// the whole is, and why it is not known which of them it was.
pub(super) fn explain(db: &Database, row: &mut Value, lsn: Lsn, record: &Record) -> Result<(), CommandError> {
    let version = match record {
        Record::Refused(header) => header.rules_version,
        _ => match asked(db, lsn, record)? {
            Some(asked) => {
                if row["rule"].is_null() {
                    row["rule_unknown"] = json!(match asked.origin {
                        0 =>
                            "it is not on record: written before tidelog kept it, salvaged, or brought back by another node",
                        _ => "another node asked its rules: the log there tells",
                    });
                }
                asked.version
            }
            None => 0,
        },
    };
    if version == 0 {
        return Ok(());
    }
    let found = db.reader().rules(version)?;
    row["rules_record"] = json!(found.as_ref().map(|(at, _)| at.0));
    let Some((_, header)) = found else { return Ok(()) };
    let add = |rule: &mut Value| {
        let line = rule["line"].as_u64().and_then(|line| usize::try_from(line).ok()).unwrap_or(0);
        rule["text"] = json!(written_at(&header.text, line));
    };
    row.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten().for_each(add);
    row.get_mut("rule").filter(|rule| rule.is_object()).into_iter().for_each(add);
    Ok(())
}

/// Lines of a rule that are shown.
const LINES_MAX: usize = 16;

/// What is written from a line on, to the end of the line that ends the `allow`.
fn written_at(text: &str, line: usize) -> String {
    let mut shown: Vec<&str> = Vec::new();
    for line in text.lines().skip(line.saturating_sub(1)).take(LINES_MAX) {
        shown.push(line.trim());
        if line.contains(';') {
            break;
        }
    }
    shown.join(" ")
}

/// The rules that the log has, one row each; with digits of a version or digest, those alone, with their text.
pub(in super::super) fn rules(
    db: &Database,
    wanted: Option<&str>,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let reader = db.reader();
    let mut found = false;
    for version in reader.rules_versions()? {
        let Some((lsn, header)) = reader.rules(version)? else { continue };
        let RulesHeader { digest, received_ms, text, .. } = header;
        let digest = encode_hex(&digest);
        if wanted.is_some_and(|wanted| wanted.is_empty() || !digest.starts_with(&wanted.to_ascii_lowercase())) {
            continue;
        }
        found = true;
        let mut row = json!({
            "rules_version": RulesHeader::version_text(version),
            "lsn": lsn.0,
            "time": received_ms / 1000,
            "bytes": text.len(),
            "digest": digest,
        });
        if wanted.is_some() {
            row["text"] = json!(text);
        }
        output.row(row)?;
    }
    match wanted {
        Some(wanted) if !found => {
            let why = format!("the log has no rules of version {wanted}");
            Err(CommandError::new("E0223", Exit::NotFound, why).fix("`tidelog audit rules` lists those that it has"))
        }
        _ => Ok(Value::Null),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allow_is_shown_from_its_line_to_its_end() {
        let text = "a;\n  allow read: if x\n    && y;\n  allow write;\n";
        assert_eq!(written_at(text, 2), "allow read: if x && y;");
        assert_eq!(written_at(text, 4), "allow write;");
        assert_eq!(written_at(text, 0), "a;");
        assert_eq!(written_at(text, 9), "");
        assert_eq!(written_at(&"x\n".repeat(100), 1).split(' ').count(), LINES_MAX);
    }
}
