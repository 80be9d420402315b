//! Writing down which rules allow what is written, and which of their `allow`s.
//!
//! Neither is written with every change. The text of rules is a record once for each version. Which `allow` lets in what
//! somebody writes is one when it is another than for his last write of that kind, or when that record is so far back that
//! nobody should have to look for it.

use std::collections::HashMap;

use super::{Core, Work};
use crate::engine::judge::{Ruleset, Ruling};
use crate::history::{HistoryError, Origin, project_rules};
use crate::id::{Lsn, truncated};
use crate::limits::audit as bounds;
use crate::log::record::{AllowedHeader, NameRef, Record, RefusedHeader, RulePlace, RulesHeader, WriteKind};

/// Positions between such a record and the write it is looked for, kept free for what is written between them.
const MARGIN: u64 = 64;

/// What is remembered of what was written down, and of what is to be.
pub(super) struct Allowances {
    /// From where on all of it is remembered; `None` for the beginning.
    since: Option<Lsn>,
    /// The rules whose text the log has, by their versions: the digest of the last.
    rules: HashMap<u32, [u8; 32]>,
    /// What the last record of each principal, collection and kind of write says.
    said: HashMap<Key, Said>,
}

type Key = (NameRef, NameRef, WriteKind);

struct Said {
    rules_version: u32,
    allow: Option<(u32, String)>,
    at: Lsn,
}

impl Allowances {
    /// Of a log that ends at `tail`.
    pub(super) fn after(tail: Lsn) -> Self {
        let since = Some(tail).filter(|tail| *tail > Lsn::ZERO);
        Self { since, rules: HashMap::new(), said: HashMap::new() }
    }

    /// Whether a record about this, which would be the next one, has to be written.
    fn is_due(&self, key: &Key, rules_version: u32, allow: Option<&(u32, String)>, at: Lsn) -> bool {
        let last = self.said.get(key);
        let Some(last_at) = last.map(|said| said.at).or(self.since) else { return allow.is_some() };
        let back = at.0.saturating_sub(last_at.0);
        match (last, allow) {
            // That it is not known has to be said only where another record could be taken to be about it.
            (Some(last), None) => {
                last.allow.is_some() && last.rules_version == rules_version && back <= AllowedHeader::REACH
            }
            (None, None) => back <= AllowedHeader::REACH,
            (None, Some(_)) => true,
            (Some(last), Some(allow)) => {
                (last.rules_version, last.allow.as_ref()) != (rules_version, Some(allow))
                    || back >= AllowedHeader::REACH - MARGIN
            }
        }
    }

    fn remember(&mut self, key: Key, said: Said) {
        if self.said.len() >= bounds::ALLOWANCES_REMEMBERED && !self.said.contains_key(&key) {
            self.said.clear();
            self.since = Some(said.at);
        }
        self.said.insert(key, said);
    }
}

impl Core {
    /// Writes down the text of rules, if the log does not have it.
    pub(super) fn note_ruleset(&mut self, work: &mut Work, ruleset: &Ruleset) -> Result<(), HistoryError> {
        let Ruleset { version, digest, text } = ruleset;
        let known = match self.allowances.rules.get(version) {
            Some(known) => Some(*known),
            // What cannot be read is as good as not there, and is written again; `verify` tells of it.
            None => self.reader.rules(*version).ok().flatten().map(|(_, header)| header.digest),
        };
        if self.allowances.rules.len() >= bounds::RULES_REMEMBERED {
            self.allowances.rules.clear();
        }
        self.allowances.rules.insert(*version, *digest);
        if known == Some(*digest) {
            return Ok(());
        }
        let (received_ms, text) = (work.now_ms, text.clone());
        let header = RulesHeader { version: *version, digest: *digest, received_ms, text };
        project_rules(&mut work.group.batch, self.appender.next(), &header);
        self.appender.push(&mut work.group, &Record::Rules(header));
        Ok(())
    }

    /// Writes down what allows a write that a record is about to tell of, if the last such record says something else or
    /// is too far back. Returns the version of the rules for that record.
    pub(super) fn note_allowed(
        &mut self,
        work: &mut Work,
        ruling: Option<&Ruling>,
        origin: &Origin,
        collection: NameRef,
        operation: WriteKind,
    ) -> Result<u32, HistoryError> {
        let rules_version = ruling.map_or(origin.rules_version, Ruling::version);
        if rules_version == 0 {
            return Ok(0);
        }
        if let Some(ruleset) = ruling.and_then(|ruling| ruling.ruleset.as_ref()) {
            self.note_ruleset(work, ruleset)?;
        }
        // What another node decided has none here.
        let allow = ruling.and_then(|ruling| ruling.allow.clone());
        let principal = self.principal(work, &origin.principal)?;
        let (key, at) = ((principal, collection, operation), self.appender.next());
        if !self.allowances.is_due(&key, rules_version, allow.as_ref(), at) {
            return Ok(rules_version);
        }
        let place = |(line, path): &(u32, String)| RulePlace {
            line: *line,
            path: truncated(path, RefusedHeader::PATH_BYTES_MAX).to_owned(),
        };
        let rule = allow.as_ref().map(place);
        self.allowances.remember(key, Said { rules_version, allow, at });
        let header = AllowedHeader { principal, collection, operation, rules_version, rule };
        self.appender.push(&mut work.group, &Record::Allowed(header));
        Ok(rules_version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = (1, 2, WriteKind::Update);
    const REACH: u64 = AllowedHeader::REACH;

    fn allow(line: u32) -> Option<(u32, String)> {
        Some((line, "/notes/{id}".to_owned()))
    }

    fn after(tail: u64, said: Option<(u32, Option<(u32, String)>, u64)>) -> Allowances {
        let mut allowances = Allowances::after(Lsn(tail));
        if let Some((rules_version, allow, at)) = said {
            allowances.remember(KEY, Said { rules_version, allow, at: Lsn(at) });
        }
        allowances
    }

    #[test]
    fn it_is_said_again_when_it_changes_and_before_it_is_out_of_reach() {
        let due = |allowances: &Allowances, version, line, at| {
            allowances.is_due(&KEY, version, allow(line).as_ref(), Lsn(at))
        };
        assert!(due(&after(0, None), 7, 3, 1) && due(&after(9, None), 7, 3, 100_000), "the first one");
        let said = after(0, Some((7, allow(3), 10)));
        assert!(!due(&said, 7, 3, 11) && !due(&said, 7, 3, 10 + REACH - MARGIN - 1));
        assert!(
            due(&said, 7, 3, 10 + REACH - MARGIN),
            "so that what comes before the write does not put it out of reach"
        );
        assert!(due(&said, 7, 4, 11) && due(&said, 8, 3, 11));
        assert!(said.is_due(&(1, 2, WriteKind::Create), 7, allow(3).as_ref(), Lsn(11)));
    }

    #[test]
    fn that_it_is_not_known_is_said_where_another_record_could_be_taken_to_be_about_it() {
        let due = |allowances: &Allowances, at| allowances.is_due(&KEY, 7, None, Lsn(at));
        assert!(!due(&after(0, None), 1), "there is none");
        assert!(due(&after(9, None), 9 + REACH) && !due(&after(9, None), 10 + REACH), "one may lie before the start");
        let said = after(0, Some((7, allow(3), 10)));
        assert!(due(&said, 10 + REACH) && !due(&said, 11 + REACH));
        assert!(!due(&after(0, Some((8, allow(3), 10))), 11), "of other rules");
        assert!(!due(&after(0, Some((7, None, 10))), 11), "it was said");
        let mut full = after(0, None);
        for n in 0..=bounds::ALLOWANCES_REMEMBERED {
            let said = Said { rules_version: 7, allow: allow(3), at: Lsn(n as u64 + 1) };
            full.remember((n as u32, 2, WriteKind::Update), said);
        }
        assert!(full.said.len() <= bounds::ALLOWANCES_REMEMBERED);
        assert!(due(&full, bounds::ALLOWANCES_REMEMBERED as u64 + 2), "what was forgotten may lie in reach");
    }
}
