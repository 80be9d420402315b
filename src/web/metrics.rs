//! Numbers for those who watch a node, in the text format of Prometheus.

use std::fmt::Write as _;

use super::socket::Shared;
use crate::access::Access;
use crate::quota::Ledger;

/// All numbers, each with its type and one line on what it is.
pub(super) fn render(shared: &Shared, access: &Access, ledger: &Ledger) -> String {
    let status = shared.database.status();
    let mut text = String::with_capacity(2048);
    let mut family = |name: &str, kind: &str, help: &str, values: &[(&str, u64)]| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP tidelog_{name} {help}\n# TYPE tidelog_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(text, "tidelog_{name}{labels} {value}");
        }
    };
    let views = r#"{purpose="view"}"#;
    let trials = r#"{purpose="trial"}"#;
    family("log_lsn", "gauge", "Position of the last durable footer.", &[("", status.tail.lsn.0)]);
    family(
        "documents_materialized_total",
        "counter",
        "Documents built from the log: to be read or edited here, or to try what untrusted clients send.",
        &[(views, status.materializations), (trials, status.trial_materializations)],
    );
    family(
        "documents_materialized",
        "gauge",
        "Documents in memory now.",
        &[(views, status.materialized as u64), (trials, status.trials as u64)],
    );
    family(
        "documents_materialized_bytes",
        "gauge",
        "About how many bytes they take.",
        &[(views, status.materialized_bytes as u64), (trials, status.trials_bytes as u64)],
    );
    let awaited = "Documents saved because a client that had nothing of them waited.";
    family("snapshots_awaited_total", "counter", awaited, &[("", status.awaited_snapshots)]);
    let quarantined = "Changes of untrusted peers that were refused because they cannot be applied.";
    family("changes_quarantined_total", "counter", quarantined, &[("", status.quarantined)]);
    let [unsigned, forged] = status.unproven_origins;
    let unproven = [(r#"{reason="unsigned"}"#, unsigned), (r#"{reason="forged"}"#, forged)];
    let help = "Authors that a node said were another node's, which did not sign it: that node's own word.";
    family("origins_unproven_total", "counter", help, &unproven);
    family("repo_sockets", "gauge", "WebSockets open.", &[("", shared.switchboard.sockets() as u64)]);
    let [proven, anonymous, refused] = access.counts().arrivals();
    let arrivals =
        [(r#"{result="proven"}"#, proven), (r#"{result="anonymous"}"#, anonymous), (r#"{result="refused"}"#, refused)];
    family("auth_total", "counter", "Requests and sockets, by what came of their token.", &arrivals);
    let decisions: Vec<(String, u64)> = access
        .counts()
        .decisions()
        .flat_map(|(operation, [allowed, denied])| {
            let labels = |result| format!("{{operation=\"{}\",result=\"{result}\"}}", operation.as_str());
            [(labels("allowed"), allowed), (labels("denied"), denied)]
        })
        .collect();
    let decisions: Vec<(&str, u64)> = decisions.iter().map(|(labels, count)| (labels.as_str(), *count)).collect();
    family("rules_decisions_total", "counter", "What rules decided; not those that were known already.", &decisions);
    let (mut turned_away, mut held_back) = (Vec::new(), Vec::new());
    let labels: Vec<String> = ledger.counts().all().map(|(kind, ..)| format!("{{kind=\"{}\"}}", kind.name())).collect();
    for ((kind, refused, delayed), labels) in ledger.counts().all().zip(&labels) {
        turned_away.push((labels.as_str(), refused));
        if kind.is_waited_for() {
            held_back.push((labels.as_str(), delayed));
        }
    }
    let help = "What was turned away or dropped because an address or a user had enough.";
    family("quota_refused_total", "counter", help, &turned_away);
    family("quota_delayed_total", "counter", "How often a socket or link was read later for that reason.", &held_back);
    let [addresses, users] = ledger.accounts();
    let accounts = [(r#"{of="address"}"#, addresses as u64), (r#"{of="user"}"#, users as u64)];
    family("quota_accounts", "gauge", "Addresses and users that are counted now.", &accounts);
    family("writer_failed", "gauge", "1 when nothing more is written.", &[("", u64::from(status.failure.is_some()))]);
    family("disk_full", "gauge", "1 when writes are refused for want of room.", &[("", u64::from(status.disk_full))]);
    text
}
