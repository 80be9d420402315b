//! Security rules: how long one decision takes, alone and among a hundred rules.
//!
//! `cargo bench --bench rules`.
#![allow(clippy::unwrap_used, reason = "a measurement that fails shall stop")]

use std::time::Instant;

use criterion::Criterion;
use tidelog::rules::{Auth, Data, Documents, Operation, Request, Rules, Value};

/// A rule of the kind that the reference figures of other engines were taken with: the team's claim, the owner or one of
/// eight editors, and not locked.
const RULE: &str = "
  function signedIn() { return request.auth != null; }
  match /documents/{id} {
    allow update: if signedIn() && request.auth.token.team == resource.data.team
      && (resource.data.owner == request.auth.uid || request.auth.uid in resource.data.editors)
      && !resource.data.locked;
  }
";

fn rules(others: usize) -> Rules {
    let mut source = RULE.to_owned();
    for number in 0..others {
        source.push_str(&format!(
            "match /collection{number}/{{id}} {{ allow update: if resource.data.owner == request.auth.uid; }}\n"
        ));
    }
    Rules::parse("rules.tidelog", &source).unwrap()
}

fn main() {
    let auth = Auth::from_json("editor7", &serde_json::json!({ "team": "tides", "role": "member" }));
    let editors: Vec<String> = (0..8).map(|number| format!("editor{number}")).collect();
    let document = Value::from_json(&serde_json::json!({
        "team": "tides", "owner": "ann", "editors": editors, "locked": false, "text": "High at noon.",
    }));
    let mut criterion = Criterion::default().configure_from_args();
    for others in [0, 99] {
        let rules = rules(others);
        let before: Option<&dyn Data> = Some(&document);
        let documents: &dyn Documents = &();
        let request = Request {
            auth: Some(&auth),
            before,
            after: before,
            documents,
            ..Request::new(Operation::Update, "documents", "d1")
        };
        assert!(rules.decide(&request).allowed);
        let denied = Request { auth: None, ..request };
        assert!(!rules.decide(&denied).allowed);
        criterion.bench_function(&format!("rules/{}/allowed", others + 1), |bencher| {
            bencher.iter(|| rules.decide(std::hint::black_box(&request)));
        });
        criterion.bench_function(&format!("rules/{}/denied", others + 1), |bencher| {
            bencher.iter(|| rules.decide(std::hint::black_box(&denied)));
        });
        quantiles(&format!("rules/{}", others + 1), &rules, &request);
    }
    criterion.final_summary();
}

/// How long single decisions take, the clock's own time included.
fn quantiles(name: &str, rules: &Rules, request: &Request<'_>) {
    let mut taken: Vec<u128> = Vec::with_capacity(1_000_000);
    for _ in 0..1_000_000 {
        let began = Instant::now();
        std::hint::black_box(rules.decide(std::hint::black_box(request)));
        taken.push(began.elapsed().as_nanos());
    }
    taken.sort_unstable();
    let at = |share: f64| taken[(taken.len() as f64 * share) as usize];
    println!("{name}: p50 {} ns, p99 {} ns, p99.9 {} ns a decision", at(0.5), at(0.99), at(0.999));
}
