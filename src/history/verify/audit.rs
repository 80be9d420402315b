//! Checking what the log tells of who was allowed what, and what is kept of refused changes.

use std::ops::ControlFlow;

use super::Verification;
use crate::document::Change;
use crate::history::rules::{rules_named, version_in};
use crate::history::{HistoryError, Reader};
use crate::id::{ChangeHash, Lsn, encode_hex};
use crate::log::Keyspace;
use crate::log::record::{Claims, NameKind, NameRef, Record, RefusedWhat, RulesHeader};
use crate::log::rows::{RefusedOrderRow, RefusedRow, SignatureRow, decode_row};

/// What a record of kinds 9 to 11, 16 and 17 refers to is there, and rules are those that their version names.
pub(super) fn check_record(
    reader: &Reader,
    report: &mut Verification,
    lsn: Lsn,
    record: &Record,
) -> Result<(), HistoryError> {
    let place = || format!("record {lsn}");
    let principal = match record {
        Record::Refused(header) => header.principal,
        Record::Subject(header) => {
            if let Claims::As(back) = header.claims {
                let at = Lsn(lsn.0.saturating_sub(back));
                let said = reader.record(at)?;
                let is_his = matches!(&said, Some(Record::Subject(said))
                    if said.principal == header.principal && matches!(said.claims, Claims::Known(_)));
                if !is_his {
                    report.fault(place(), format!("it refers to the claims in record {at}, which has none of his"));
                }
            }
            header.principal
        }
        Record::Attributed(header) => {
            let at = Lsn(lsn.0.saturating_sub(header.statement));
            if !matches!(reader.record(at)?, Some(Record::Lifecycle(..))) {
                report.fault(place(), format!("it is about record {at}, which is no statement"));
            }
            header.principal
        }
        Record::Rules(header) => {
            check_rules(reader, report, lsn, header)?;
            0
        }
        Record::Allowed(header) => {
            match reader.names().name(header.collection) {
                Ok(row) if row.kind == NameKind::Collection => {}
                Ok(_) => report.fault(place(), format!("name {} is no collection", header.collection)),
                Err(error) => report.fault(place(), error),
            }
            // Which it is can be known only of rules that came before it.
            if header.rule.is_some() && !matches!(reader.rules_row(header.rules_version), Ok(Some(_))) {
                report.fault(
                    place(),
                    format!("the {} that it speaks of are not there", rules_named(header.rules_version)),
                );
            }
            header.principal
        }
        _ => 0,
    };
    check_principal(reader, report, lsn, principal);
    Ok(())
}

fn check_rules(reader: &Reader, report: &mut Verification, lsn: Lsn, header: &RulesHeader) -> Result<(), HistoryError> {
    let place = || format!("record {lsn}");
    if *blake3::hash(header.text.as_bytes()).as_bytes() != header.digest {
        report.fault(place(), "the digest of its rules does not match");
    }
    if RulesHeader::version_of(header.digest) != header.version {
        report.fault(place(), format!("its text is not that of {}", rules_named(header.version)));
    }
    match reader.rules_row(header.version) {
        // Of two texts with one version, the row has the last.
        Ok(Some(row)) if row.lsn > lsn.0 || (row.lsn, row.digest) == (lsn.0, header.digest) => {}
        Ok(_) => report.fault(rules_named(header.version), format!("record {lsn} is missing")),
        Err(HistoryError::Row { place, error }) => report.fault(place, error),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// The rows that say where rules are: each leads to a record that has them.
pub(super) fn check_rules_rows(reader: &Reader, report: &mut Verification) -> Result<(), HistoryError> {
    let mut versions = Vec::new();
    reader.storage().scan(Keyspace::State, b"r", b"s", false, &mut |key, _| {
        versions.push((key.to_vec(), version_in(key)));
        ControlFlow::Continue(())
    })?;
    for (key, version) in versions {
        let Some(version) = version else {
            report.fault(format!("row {} of state", encode_hex(&key)), "its key is no version of rules");
            continue;
        };
        match reader.rules(version) {
            Ok(Some(_)) => {}
            Ok(None) => report.fault(rules_named(version), "its row leads to no such record"),
            Err(error) => report.fault(rules_named(version), error),
        }
    }
    Ok(())
}

fn check_principal(reader: &Reader, report: &mut Verification, lsn: Lsn, principal: NameRef) {
    if principal == 0 {
        return;
    }
    match reader.names().name(principal) {
        Ok(row) if row.kind == NameKind::Principal => {}
        Ok(_) => report.fault(format!("record {lsn}"), format!("name {principal} is no principal")),
        Err(error) => report.fault(format!("record {lsn}"), error),
    }
}

/// The bytes of refused changes: each is what its key says, has its place in the order, and a record that tells of it.
/// They come and go while it is looked at: what is missing is looked for from both ends.
pub(super) fn check_refused(reader: &Reader, report: &mut Verification) -> Result<(), HistoryError> {
    let storage = reader.storage();
    let mut orders = Vec::new();
    storage.scan(Keyspace::Held, b"R", b"S", false, &mut |key, bytes| {
        match decode_row::<RefusedOrderRow>(Keyspace::Held, key, bytes) {
            Ok(row) => orders.push((key.to_vec(), row.hash)),
            Err(error) => report.fault("order of refused changes", error),
        }
        ControlFlow::Continue(())
    })?;
    for (order, hash) in orders {
        let key = [b"r", &hash[..]].concat();
        if storage.get(Keyspace::Held, &key)?.is_none() && storage.get(Keyspace::Held, &order)?.is_some() {
            report.fault(format!("refused change {}", ChangeHash(hash)), "its bytes are missing");
        }
    }
    let mut keys = Vec::new();
    storage.scan(Keyspace::Held, b"r", b"s", false, &mut |key, _| {
        keys.push(key.to_vec());
        ControlFlow::Continue(())
    })?;
    for key in keys {
        if let Some(bytes) = storage.get(Keyspace::Held, &key)? {
            check_kept(reader, report, &key, &bytes)?;
        }
    }
    Ok(())
}

/// The signatures of whose authors are can be read. Whether they hold, who is told them finds out.
pub(super) fn check_signatures(reader: &Reader, report: &mut Verification) -> Result<(), HistoryError> {
    reader.storage().scan(Keyspace::Held, b"s", b"t", false, &mut |key, bytes| {
        if let Err(error) = decode_row::<SignatureRow>(Keyspace::Held, key, bytes) {
            report.fault(format!("signature {}", encode_hex(key.get(1..).unwrap_or_default())), error);
        }
        ControlFlow::Continue(())
    })?;
    Ok(())
}

fn check_kept(reader: &Reader, report: &mut Verification, key: &[u8], bytes: &[u8]) -> Result<(), HistoryError> {
    let place = || format!("refused change {}", encode_hex(key.get(1..).unwrap_or_default()));
    let row = match decode_row::<RefusedRow>(Keyspace::Held, key, bytes) {
        Ok(row) => row,
        Err(error) => {
            report.fault(place(), error);
            return Ok(());
        }
    };
    let storage = reader.storage();
    let order = [b"R", &row.number.to_be_bytes()[..]].concat();
    if storage.get(Keyspace::Held, &order)?.is_none() && storage.get(Keyspace::Held, key)?.as_deref() == Some(bytes) {
        report.fault(place(), "it has no place in the order of refused changes");
    }
    let hash: Option<[u8; 32]> = key.get(1..).and_then(|hash| hash.try_into().ok());
    match Change::parse(row.chunk) {
        Ok(change) if Some(change.hash().0) == hash => {}
        Ok(change) => report.fault(place(), format!("its row holds change {}", change.hash())),
        Err(error) => report.fault(place(), error),
    }
    match reader.record(Lsn(row.lsn))? {
        Some(Record::Refused(header)) if matches!(header.what, RefusedWhat::Change { hash: said, .. } if Some(said) == hash) =>
            {}
        _ => report.fault(place(), format!("record {} does not tell of it", row.lsn)),
    }
    Ok(())
}
