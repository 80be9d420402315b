//! How the store is.

use serde_json::{Value, json};

use super::peers::peer_rows;
use super::{Cancel, CommandError, Context, Output, Progress};
use crate::engine::Database;
use crate::log::Durability;

pub(super) fn status(context: &Context, output: &mut dyn Output) -> Result<Value, CommandError> {
    let status = context.database.status();
    let running = context.listening.is_some();
    let state = match (&status.failure, status.disk_full, running) {
        (Some(_), ..) => "read-only",
        (None, true, _) => "disk full",
        (None, false, true) => "ready",
        (None, false, false) => "no node runs",
    };
    let peers = peer_rows(context);
    let connected = peers.iter().filter(|peer| peer["connected"] == json!(true)).count();
    output.row(json!({
        "node": status.node.to_string(),
        "state": state,
        "running": running,
        "listening": context.listening.map(|address| address.to_string()),
        "uptime_s": running.then(|| context.started.elapsed().as_secs()),
        "log": status.tail.log_id.to_string(),
        "storage": status.storage_id.to_string(),
        "tail": status.tail.lsn.0,
        "collections": context.database.collections()?.len(),
        "durability": match status.durability {
            Durability::Synced => "synced",
            Durability::Buffered => "buffered",
        },
        "disk_full": status.disk_full,
        "failure": status.failure,
        "materialized": status.materialized,
        "materialized_bytes": status.materialized_bytes,
        "materializations": status.materializations,
        "degraded": status.degraded,
        "quarantined": status.quarantined,
        "peers_connected": connected,
        "peers": peers,
    }))?;
    Ok(Value::Null)
}

pub(super) fn verify(
    db: &Database,
    deep: bool,
    cancel: &Cancel,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let found = db.verify(deep, &mut |phase, done| output.progress(Progress::new(phase, done, None)))?;
    cancel.check()?;
    for fault in &found.faults {
        output.row(json!({ "fault": fault.why, "place": fault.place }))?;
    }
    for void in &found.voids {
        let place = format!("record {} of {}", void.record, void.document);
        output.row(json!({ "void": void.why, "place": place, "on_record": void.is_on_record }))?;
    }
    Ok(json!({
        "records": found.records,
        "groups": found.groups,
        "documents": found.documents,
        "rebuilt": found.rebuilt,
        "snapshots": found.snapshots,
        "faults": found.faults.len() as u64 + found.more_faults,
        "voids": found.voids.len() as u64 + found.more_voids,
    }))
}
