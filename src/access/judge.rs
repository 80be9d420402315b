//! What somebody writes, held against the rules.

use std::sync::Arc;

use super::facts::Extract;
use super::shared::InForce;
use super::subject::Subject;
use crate::document::Values;
use crate::engine::{Claims, Deed, Denial, Judge, Look, Made, Place, Ruling, now_ms};
use crate::error::Error;
use crate::id::CollectionName;
use crate::log::record::RefusedReason;
use crate::rules::{ChangeFacts, Data, Decision, Needs, Operation, Request, Why};

const WRITES: [Operation; 3] = [Operation::Create, Operation::Update, Operation::Delete];

fn operation_of(deed: Deed) -> Operation {
    match deed {
        Deed::Create => Operation::Create,
        Deed::Update => Operation::Update,
        Deed::Delete => Operation::Delete,
    }
}

impl Judge for Subject {
    fn principal(&self) -> &str {
        &self.0.principal
    }

    fn claims(&self) -> Option<Arc<Claims>> {
        self.0.claims.clone()
    }

    fn may_begin(&self, collection: &CollectionName) -> bool {
        self.may_ever(Operation::Create, collection)
    }

    fn must_see(&self, collection: &CollectionName) -> bool {
        let Some(rules) = self.0.access.rules() else { return false };
        let sees = |operation| {
            let needs = rules.needs(operation, collection.as_str());
            needs.before || needs.after || needs.paths
        };
        WRITES.into_iter().any(sees)
    }

    fn look(&self, deed: Deed, place: Place<'_>, before: Option<&dyn Values>) -> Result<Box<dyn Look + '_>, Error> {
        let Some(in_force) = self.0.access.in_force() else { return Ok(Box::new(Free(self))) };
        let operation = operation_of(deed);
        let needs = in_force.rules.needs(operation, place.collection.as_str());
        let taken = before.map(|before| Extract::of(before, &needs.before_fields)).transpose()?;
        Ok(Box::new(Looked {
            subject: self,
            operation,
            needs,
            in_force,
            collection: place.collection.clone(),
            id: place.name.map_or_else(|| place.document.to_string(), str::to_owned),
            before: taken,
        }))
    }
}

/// Where there are no rules, whoever came in may do it.
struct Free<'a>(&'a Subject);

impl Look for Free<'_> {
    fn judge(self: Box<Self>, _: Option<&dyn Values>, _: &dyn Made) -> Result<Result<Ruling, Denial>, Error> {
        Ok(if self.0.must_leave(now_ms()).is_some() { Err(token_over()) } else { Ok(Ruling::default()) })
    }
}

/// A document before something is done to it.
struct Looked<'a> {
    subject: &'a Subject,
    in_force: InForce,
    operation: Operation,
    needs: Needs,
    collection: CollectionName,
    id: String,
    before: Option<Extract>,
}

impl Look for Looked<'_> {
    fn judge(self: Box<Self>, after: Option<&dyn Values>, made: &dyn Made) -> Result<Result<Ruling, Denial>, Error> {
        let Self { subject, in_force, operation, needs, collection, id, before } = *self;
        let rules = &in_force.rules;
        if subject.must_leave(now_ms()).is_some() {
            return Ok(Err(Denial { ruleset: Some(in_force.ruleset.clone()), ..token_over() }));
        }
        if let Some(allowed) = needs.constant {
            subject.0.access.0.counts.note(operation, allowed);
            let request = Request::new(operation, collection.as_str(), &id);
            return Ok(match allowed {
                true => Ok(in_force.ruling(rules.always(operation, collection.as_str()))),
                false => Err(denial_of(&in_force, &request, &rules.decide(&request))),
            });
        }
        // A document that is there and not looked at is there all the same.
        let before = before.or_else(|| (operation != Operation::Create).then(Extract::default));
        let after = after.map(|after| Extract::of(after, &needs.after_fields)).transpose()?;
        let after = after.or_else(|| (operation != Operation::Delete).then(Extract::default));
        let paths: Vec<String> =
            if needs.paths { made.touched()?.places().map(str::to_owned).collect() } else { Vec::new() };
        let mut keys: Vec<String> = paths.iter().filter_map(|path| path.split('/').next()).map(str::to_owned).collect();
        keys.dedup();
        let change = ChangeFacts {
            author: Some(subject.0.principal.clone()).filter(|principal| !principal.is_empty()),
            actor: made.actor().map(ToString::to_string).unwrap_or_default(),
            paths,
            keys,
        };
        let request = Request {
            before: before.as_ref().map(|before| before as &dyn Data),
            after: after.as_ref().map(|after| after as &dyn Data),
            change: Some(&change),
            ..Request::new(operation, collection.as_str(), &id)
        };
        let (decision, _) = subject.ask(rules, request);
        if !decision.allowed {
            tracing::info!(
                principal = subject.0.principal, operation = operation.as_str(), %collection, id, why = ?decision.why,
                "a write is not allowed"
            );
        }
        Ok(match decision.allowed {
            true => Ok(in_force.ruling(decision.allow)),
            false => Err(denial_of(&in_force, &request, &decision)),
        })
    }
}

impl InForce {
    /// What the log is told of what they allow: by which `allow`, of which the number is given.
    fn ruling(&self, allow: Option<u32>) -> Ruling {
        let place = allow.and_then(|allow| self.rules.place_of(allow));
        let allow = place.map(|(line, path)| (line, path.to_owned()));
        Ruling { allow, ruleset: Some(self.ruleset.clone()) }
    }
}

fn token_over() -> Denial {
    Denial { reason: RefusedReason::TokenOver, ..Denial::default() }
}

/// What the log is told of a denial: which `allow`s were asked. The sender is told nothing of it.
fn denial_of(in_force: &InForce, request: &Request<'_>, decision: &Decision) -> Denial {
    let (reason, failed, detail) = match &decision.why {
        Why::NoMatch => (RefusedReason::NoMatch, None, String::new()),
        Why::Error { line, message } => (RefusedReason::Failed, Some(*line), message.clone()),
        Why::Budget => (RefusedReason::Budget, None, String::new()),
        _ => (RefusedReason::NoneTrue, None, String::new()),
    };
    let asked = in_force.rules.asked(request).into_iter();
    let rules = asked.filter(|(line, _)| failed.is_none_or(|failed| failed == *line)).collect();
    Denial { reason, rules, detail, ruleset: Some(in_force.ruleset.clone()), ..Denial::default() }
}
