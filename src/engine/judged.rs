//! Changes held against what their sender may do, while they are tried.
//!
//! Three things are asked, in this order. Whose author is it: an actor belongs to whoever's change of it the document
//! has first, and nobody else may go on under its name. May its sender do this at all. And, where rules look at values,
//! may he do it to this document: each change by itself, with the document as it was before it and is after it. What
//! the log has is not judged again.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

use super::admission::{Examined, Outcome};
use super::commit::block_on;
use super::core::{By, Clash, Incoming, IncomingBody};
use super::database::Database;
use super::judge::{Deed, Denial, Judge, Look, Made, NoChange, Place, Ruling};
use super::owner::Owner;
use super::refusal::{Audit, Refusal, Refused};
use crate::document::{Change, Edit, Path, Touched, Values, View, ViewError};
use crate::error::Error;
use crate::history::Reader;
use crate::history::fold::fold_lifecycle;
use crate::id::{ActorId, ChangeHash, CollectionName, DocumentId, Lsn};
use crate::log::record::{Lifecycle, LifecycleKind, RefusedReason};
use crate::sync::Denied;

/// Documents that rows create.
#[derive(Debug, Default)]
pub(super) struct Creations {
    /// Their collections and names, as far as they were looked at.
    documents: HashMap<DocumentId, Option<(CollectionName, Option<String>)>>,
    /// Statements that wait for a change that may be made: whose first changes are all denied must leave nothing.
    held: HashMap<DocumentId, Vec<Incoming>>,
    /// Documents that may not be created.
    denied: HashSet<DocumentId>,
}

impl Creations {
    pub(super) fn contains(&self, document: DocumentId) -> bool {
        self.documents.contains_key(&document)
    }

    /// Whether the document may not be created, so that nothing of it may come.
    pub(super) fn is_denied(&self, document: DocumentId) -> bool {
        self.denied.contains(&document)
    }

    /// The statements of a document that something is to follow, which is allowed by `ruling` as they are.
    pub(super) fn take_held(
        &mut self,
        document: DocumentId,
        ruling: Option<&Ruling>,
        allowed: &mut Vec<([u8; 32], Ruling)>,
    ) -> Vec<Incoming> {
        let mut held = self.held.remove(&document).unwrap_or_default();
        if let Some(ruling) = ruling {
            for row in &mut held {
                row.origin.rules_version = ruling.version();
                if let IncomingBody::Lifecycle(bytes) = &row.body {
                    allowed.push((Lifecycle::id_of(bytes).0, ruling.clone()));
                }
            }
        }
        held
    }

    /// The statements that nothing followed, by document.
    pub(super) fn into_held(self) -> impl Iterator<Item = Incoming> {
        let mut held: Vec<_> = self.held.into_iter().collect();
        held.sort_by_key(|(document, _)| *document);
        held.into_iter().flat_map(|(_, rows)| rows)
    }
}

/// A document whose changes are judged.
pub(super) struct Judging<'a> {
    judge: &'a dyn Judge,
    reader: &'a Reader,
    document: DocumentId,
    collection: CollectionName,
    name: Option<String>,
}

const FOREIGN: &str = "its author's name belongs to somebody else";

impl Database {
    /// Takes a statement about a document's life, if its sender may make it.
    pub(super) fn take_statement(
        &self,
        mut row: Incoming,
        judge: Option<&dyn Judge>,
        created: &mut Creations,
        examined: &mut Examined,
    ) -> Result<(), Error> {
        let document = row.document;
        let Some(judge) = judge else {
            created.documents.insert(document, None);
            examined.rows.push(row);
            return Ok(());
        };
        let IncomingBody::Lifecycle(bytes) = &row.body else { return Ok(()) };
        let id = Lifecycle::id_of(bytes);
        let Ok(statement) = Lifecycle::decode(bytes) else {
            examined.fault = Some(Error::Refused { document, why: "a statement about it cannot be read".to_owned() });
            return Ok(());
        };
        let state = self.reader().document(document)?;
        if statement.kind == LifecycleKind::Created {
            // Where a document is, is settled when it is made: to move it would take it from under its rules.
            if state.is_some() {
                return Ok(());
            }
            // Rules go by names: whoever gives a document another one's would answer for it.
            let named = statement.name.as_ref().map(|name| DocumentId::named(&statement.collection, name));
            if named.is_some_and(|named| named != document) {
                let why = "a statement gives it a name that belongs to another document".to_owned();
                examined.fault = Some(Error::Refused { document, why });
                return Ok(());
            }
            if judge.may_begin(&statement.collection) {
                created.documents.insert(document, Some((statement.collection, statement.name)));
                created.held.entry(document).or_default().push(row);
            } else {
                let denial = Denial { reason: RefusedReason::NoMatch, ..Denial::default() };
                created.denied.insert(document);
                examined.denied.push(Denied { document, change: None, why: denial.told.clone() });
                examined.refused.push(Refusal {
                    document,
                    collection: Some(statement.collection),
                    name: statement.name,
                    what: Refused::Statement(statement.kind, Some(id)),
                    deed: Deed::Create,
                    principal: judge.principal().to_owned(),
                    denial,
                    via: None,
                });
            }
            return Ok(());
        }
        let Some(state) = state else {
            examined.missing.push((document, Vec::new()));
            return Ok(());
        };
        // What the log has is not judged again, and what others have overruled does nothing.
        let stands = self.reader().row(document)?;
        if stands.is_some_and(|mut stands| !fold_lifecycle(&mut stands, Lsn::ZERO, id, &statement, 0)) {
            return Ok(());
        }
        let place = Place { document, collection: &state.collection, name: state.name.as_deref() };
        match self.judge_deletion(judge, place)? {
            Ok(ruling) => {
                row.origin.rules_version = ruling.version();
                examined.allowed.push((id.0, ruling));
                examined.rows.push(row);
            }
            Err(denial) => {
                examined.denied.push(Denied { document, change: None, why: denial.told.clone() });
                let what = Refused::Statement(statement.kind, Some(id));
                examined.refused.push(refused_at(judge, place, Deed::Delete, what, denial));
            }
        }
        Ok(())
    }

    /// Whether a document may be deleted, and what allows it.
    ///
    /// # Errors
    /// [`Error`] when it cannot be read.
    pub(crate) fn judge_deletion(&self, judge: &dyn Judge, place: Place<'_>) -> Result<Result<Ruling, Denial>, Error> {
        let look = if judge.must_see(place.collection) {
            self.consult(place.document, |view| judge.look(Deed::Delete, place, Some(view)))?
        } else {
            judge.look(Deed::Delete, place, None)?
        };
        look.judge(None, &NoChange)
    }

    /// Writes down an edit or a statement that somebody may not make here, and waits for the disk.
    ///
    /// # Errors
    /// As [`Database::admit`]. Then it is not on record.
    pub(super) fn note_refusal(&self, judge: &dyn Judge, refusal: Refusal) -> Result<(), Error> {
        let audit = Audit { claims: judge.claims(), refused: vec![refusal], ..Audit::default() };
        block_on(self.admit_audited(Clash::KeepFirst, Vec::new(), None, None, audit)).map(|_| ())
    }

    /// Runs `use_view` on a document as the log has it, without edits that are on their way there. Not on the view that
    /// is read and edited, so whoever holds that may ask for any other document.
    ///
    /// # Errors
    /// Whatever `use_view` returns; [`Error::NotFound`]; [`Error::View`] when the document cannot be built.
    ///
    /// # Cost
    /// The first use loads the document; later ones take in what changed since.
    pub(crate) fn consult<R>(
        &self,
        document: DocumentId,
        use_view: impl FnOnce(&View) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let row = self.reader().row(document)?.ok_or(Error::NotFound(document))?;
        let views = self.trials().consulted();
        views.note_changes(&[(document, Lsn(row.last_lsn))]);
        let tell = |void| self.tell_void(void);
        views.with_view(&views.cell(document), self.reader(), &tell, |view, _| use_view(view))
    }

    /// What it takes to judge changes of a document; `None` when nobody knows where it is.
    pub(super) fn judging<'a>(
        &'a self,
        judge: &'a dyn Judge,
        document: DocumentId,
        created: &Creations,
    ) -> Result<Option<Judging<'a>>, Error> {
        let reader = self.reader();
        let place = match reader.document(document)? {
            Some(state) => Some((state.collection, state.name)),
            None => created.documents.get(&document).cloned().flatten(),
        };
        Ok(place.map(|(collection, name)| Judging { judge, reader, document, collection, name }))
    }
}

impl Judging<'_> {
    /// Sets aside what was tried before and is not in the log: somebody else may send it, or it may yet be refused. It is
    /// asked for again.
    pub(super) fn set_aside_unlogged(&self, outcome: &mut Outcome) -> Result<(), Error> {
        let graph = self.reader.graph(self.document)?;
        let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        let tried = outcome.passed.len();
        outcome.passed.retain(|change| graph.contains(&change.hash()));
        if outcome.passed.len() < tried {
            outcome.missing.get_or_insert_default();
        }
        Ok(())
    }

    /// Keeps the changes that may be made, each on top of what it depends on. Where values count, they are applied to
    /// `view`, the last of the denied included.
    pub(super) fn judge(
        &self,
        view: &mut View,
        fresh: Vec<Change>,
        outcome: &mut Outcome,
    ) -> Result<Vec<Change>, Error> {
        let must_see = self.judge.must_see(&self.collection);
        let (mut allowed, mut met) = (Vec::with_capacity(fresh.len()), HashSet::new());
        let mut denied: HashSet<ChangeHash> = HashSet::new();
        for change in fresh {
            let stands_on = change.deps().iter().find(|dep| denied.contains(dep));
            let deed = if allowed.is_empty() && view.change_count() == 0 { Deed::Create } else { Deed::Update };
            let verdict = match stands_on {
                Some(dep) => Err(Denial {
                    detail: format!("change {dep}"),
                    ..Denial::beside_rules(RefusedReason::Behind, Denied::BEHIND)
                }),
                // What was denied is in the view, and this does not stand on it: it comes again.
                None if must_see && !denied.is_empty() => {
                    outcome.missing.get_or_insert_default();
                    continue;
                }
                None => match self.owner(&change, met.contains(change.actor()))? {
                    None => {
                        outcome.missing.get_or_insert_default();
                        continue;
                    }
                    Some(true) => match self.judge_one(view, &change, must_see, deed) {
                        // Nobody can say what it would do. What came before it stays.
                        Err(Error::View(error)) if view.is_broken() => {
                            outcome.could_not_apply(change.hash(), &error);
                            break;
                        }
                        verdict => verdict?,
                    },
                    Some(false) => Err(Denial::beside_rules(RefusedReason::Foreign, FOREIGN)),
                },
            };
            match verdict {
                Ok(ruling) => {
                    outcome.rules_version = ruling.version();
                    outcome.allowed.push((change.hash().0, ruling));
                    met.insert(change.actor().clone());
                    allowed.push(change);
                }
                Err(denial) => {
                    denied.insert(change.hash());
                    outcome.denied.push(((change.hash(), change.deps().to_vec()), denial.told.clone()));
                    let what = Refused::Change(Box::new(change));
                    outcome.refused.push(refused_at(self.judge, self.place(), deed, what, denial));
                }
            }
        }
        Ok(allowed)
    }

    fn place(&self) -> Place<'_> {
        Place { document: self.document, collection: &self.collection, name: self.name.as_deref() }
    }

    fn judge_one(
        &self,
        view: &mut View,
        change: &Change,
        must_see: bool,
        deed: Deed,
    ) -> Result<Result<Ruling, Denial>, Error> {
        let place = self.place();
        if !must_see {
            let made = Applied { view: None, change };
            return self.judge.look(deed, place, None)?.judge(None, &made);
        }
        let look = self.judge.look(deed, place, (deed == Deed::Update).then_some(&*view))?;
        view.apply_proven(std::slice::from_ref(change), true)?;
        look.judge(Some(&*view), &Applied { view: Some(view), change })
    }

    /// Whether the sender may write as this change's author; `None` when that is not known yet.
    fn owner(&self, change: &Change, is_met: bool) -> Result<Option<bool>, Error> {
        if is_met || mutant!(CarrierJudged) {
            return Ok(Some(true));
        }
        Ok(match Owner::of(self.reader, self.document, change.actor())? {
            Some(owner) => Some(owner.lets(self.judge.principal())),
            None if change.seq() == 1 => Some(true),
            // Its first one is on its way to the log, by whomever.
            None => None,
        })
    }
}

/// A change that was applied, or need not be.
struct Applied<'a> {
    view: Option<&'a View>,
    change: &'a Change,
}

impl Made for Applied<'_> {
    fn actor(&self) -> Option<&ActorId> {
        Some(self.change.actor())
    }

    fn touched(&self) -> Result<Touched, ViewError> {
        self.view.map_or_else(|| Ok(Touched::everything()), |view| view.touched(self.change))
    }
}

/// An edit made here on behalf of somebody, from before it is made.
pub(super) struct Edited<'a> {
    judge: &'a dyn Judge,
    look: Box<dyn Look + 'a>,
    must_see: bool,
}

impl<'a> Edited<'a> {
    /// Looks at the document before the edit.
    pub(super) fn before(
        judge: &'a dyn Judge,
        deed: Deed,
        place: Place<'_>,
        view: Option<&View>,
    ) -> Result<Self, Error> {
        let must_see = judge.must_see(place.collection);
        let before = view.filter(|_| must_see && deed == Deed::Update);
        let look = judge.look(deed, place, before.map(|view| view as &dyn Values))?;
        Ok(Self { judge, look, must_see })
    }

    /// Decides, at the end of the edit. Why it may not be made is left in `denied` as well.
    pub(super) fn judge(self, edit: &Edit<'_>, denied: &mut Option<Denial>) -> Result<By, Error> {
        let after = self.must_see.then_some(edit as &dyn Values);
        match self.look.judge(after, &Editing(edit))? {
            Ok(ruling) => Ok(by(self.judge, ruling)),
            Err(denial) => Err(Error::Denied(denied.insert(denial).told.clone())),
        }
    }
}

/// On whose behalf something is written that was allowed.
pub(super) fn by(judge: &dyn Judge, ruling: Ruling) -> By {
    By { principal: judge.principal().to_owned(), ruling, claims: judge.claims() }
}

/// What somebody may not do to a document that is there, or that he creates.
pub(super) fn refused_at(judge: &dyn Judge, place: Place<'_>, deed: Deed, what: Refused, denial: Denial) -> Refusal {
    Refusal {
        document: place.document,
        collection: Some(place.collection.clone()),
        name: place.name.map(str::to_owned),
        what,
        deed,
        principal: judge.principal().to_owned(),
        denial,
        via: None,
    }
}

/// What an edit under way does.
struct Editing<'a, 'b>(&'a Edit<'b>);

impl Made for Editing<'_, '_> {
    fn actor(&self) -> Option<&ActorId> {
        None
    }

    fn touched(&self) -> Result<Touched, ViewError> {
        Ok(Touched::between(&self.0.json_before()?, &self.0.json(Path::root())?.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests;
