//! Results that listeners of one query share, whoever they are, for as long as a view stands where it does: when rights
//! change, thousands ask for the same thing at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::hidden::Hidden;
use super::index::Part;
use super::run::{Found, Search};
use super::spec::{Asked, Shape};
use super::view::Standing;
use super::window::wanted;
use crate::error::{Error, QueryError};
use crate::feed::FeedCursor;
use crate::limits::queries;

/// What was found lately in a database's collections, before anything was left out for the sake of who asked.
#[derive(Default)]
pub(super) struct Shared(Mutex<VecDeque<Kept>>);

/// One result, and where the view stood.
struct Kept {
    at: FeedCursor,
    asked: Asked,
    found: Arc<Found>,
}

impl Shared {
    fn get(&self, at: FeedCursor, asked: &Asked) -> Option<Arc<Found>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|kept| kept.at == at && kept.asked == *asked).map(|kept| kept.found.clone())
    }

    /// Keeps a result, if it is a small one. The oldest gives way, and what of its collection is not as it was any more.
    fn keep(&self, at: FeedCursor, asked: &Asked, found: &Arc<Found>) {
        if found.documents.len() > queries::SHARED_DOCUMENTS_MAX || found.bytes > queries::SHARED_BYTES_MAX {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A position says of which collection it is.
        kept.retain(|kept| kept.at.filter != at.filter || kept.at == at && kept.asked != *asked);
        if kept.len() >= queries::SHARED_MAX {
            kept.pop_front();
        }
        kept.push_back(Kept { at, asked: asked.clone(), found: found.clone() });
    }
}

impl Standing<'_> {
    /// What a listener begins with: `shape` is what it `asked`, seen through its sieve. As [`Search::run`], which is told
    /// of indexes that would have helped in the same way.
    ///
    /// # Errors
    /// As [`Search::run`].
    ///
    /// # Cost
    /// Where the same was asked here before: a look at each document of the result. Otherwise a search.
    pub(super) fn beginning(&self, asked: &Asked, shape: &Shape, missed: &dyn Fn(Vec<Part>)) -> Result<Found, Error> {
        let own = || Search { missed, keeps_hidden: true, ..self.search(shape, wanted(shape)) }.run();
        let all = match self.shared().get(self.at(), asked) {
            Some(found) => found,
            None => {
                let open = asked.shape()?;
                let found = match (Search { missed, ..self.search(&open, wanted(&open)) }).run() {
                    Ok(found) => Arc::new(found),
                    // It may be smaller without what must not be seen.
                    Err(Error::Query(error)) if shape.sieve.is_some() && is_too_large(&error) => return own(),
                    Err(error) => return Err(error),
                };
                self.shared().keep(self.at(), asked, &found);
                found
            }
        };
        let hidden = Some(Hidden::default());
        if shape.sieve.is_none() {
            return Ok(Found { hidden, ..Found::clone(&all) });
        }
        // All that was found is looked at, so what comes behind the last one seen so far is not left out.
        let mut seen = Found { is_all: true, used: all.used.clone(), hidden, ..Found::default() };
        for (place, document) in &all.documents {
            match shape.may_see(document) {
                true => seen.put(place.clone(), document.clone()),
                false => seen.hide(place.clone(), document.clone()),
            }
        }
        seen.is_all = all.is_all;
        // Where more may follow than was looked at, what is left must be a result by itself.
        let is_enough = seen.is_all || shape.limit.is_some_and(|limit| seen.documents.len() >= limit);
        if is_enough { Ok(seen) } else { own() }
    }
}

fn is_too_large(error: &QueryError) -> bool {
    matches!(error, QueryError::TooLarge { .. })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::engine::Database;
    use crate::log::MemoryStorage;
    use crate::query::document::Document;
    use crate::query::spec::Sieve;
    use crate::query::{Listener, Query, field};

    /// Passes the documents whose number is in a set, and counts how often it was asked.
    #[derive(Debug)]
    struct Numbers {
        passes: u64,
        asked: AtomicU64,
    }

    impl Numbers {
        fn of(passes: u64) -> Arc<Self> {
            Arc::new(Self { passes, asked: AtomicU64::new(0) })
        }
    }

    impl Sieve for Numbers {
        fn passes(&self, document: &Document) -> bool {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.passes >> document.value["n"].as_u64().unwrap() & 1 == 1
        }
    }

    const DOCUMENTS: u64 = 60;

    fn filled() -> Database {
        let database = Database::on(MemoryStorage::new()).open().unwrap();
        let things = database.collection("things").unwrap();
        for n in 0..DOCUMENTS {
            things.create(json!({ "n": n, "half": n % 2 })).unwrap().1.wait().unwrap();
        }
        database
    }

    fn numbers(query: &Query, sieve: Option<Arc<Numbers>>) -> Vec<u64> {
        let query = query.clone().seen_through(sieve.map(|sieve| sieve as Arc<dyn Sieve>));
        let mut listener: Listener = query.on_snapshot(crate::query::ListenOptions::default()).unwrap();
        let snapshot = listener.next_now().unwrap().unwrap();
        snapshot.docs().iter().map(|document| document.value["n"].as_u64().unwrap()).collect()
    }

    #[test]
    fn who_asks_second_has_the_documents_of_who_asked_first() {
        let database = filled();
        let query = database.collection("things").unwrap().query().filter(field("half").eq(1));
        let first = |query: &Query| {
            let mut listener = query.on_snapshot(crate::query::ListenOptions::default()).unwrap();
            listener.next_now().unwrap().unwrap().docs().to_vec()
        };
        let (one, other) = (first(&query), first(&query));
        assert_eq!(one.len(), 30);
        assert!(one.iter().zip(&other).all(|(one, other)| Arc::ptr_eq(one, other)));
        // But not once there is more to know.
        let things = database.collection("things").unwrap();
        things.create(json!({ "n": 60, "half": 1 })).unwrap().1.wait().unwrap();
        assert_eq!(first(&query).len(), 31);
        // A sieve is asked about the result alone, not about everything that was looked at for it.
        let sieve = Numbers::of(u64::MAX);
        assert_eq!(numbers(&query, Some(sieve.clone())).len(), 31);
        assert_eq!(sieve.asked.load(Ordering::Relaxed), 31);
    }

    #[test]
    fn what_is_too_large_for_all_is_no_reason_to_refuse_who_sees_little() {
        let database = filled();
        let things = database.collection("things").unwrap();
        for n in 0..=queries::LIMIT_MAX {
            things.create(json!({ "n": n % 50, "half": 7 })).unwrap().1.wait().unwrap();
        }
        let query = things.query().filter(field("half").eq(7));
        assert!(query.on_snapshot(crate::query::ListenOptions::default()).unwrap().next_now().unwrap().is_err());
        assert_eq!(numbers(&query, Some(Numbers::of(0b100))), [2; queries::LIMIT_MAX / 50]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whoever asked before, everybody is told what he may see of it, and all of that.
        #[test]
        fn everybody_is_told_what_he_may_see(
            asked in proptest::collection::vec((0_usize..4, proptest::option::of(any::<[u64; 2]>())), 1..12),
        ) {
            let database = filled();
            let things = database.collection("things").unwrap();
            for (kind, sieve) in asked {
                // Few pass: so that limits are not reached by what was found for all.
                let sieve = sieve.map(|[one, other]| one & other);
                let (limit, last) = [(None, false), (Some(5), false), (Some(20), true), (Some(40), false)][kind];
                let query = things.query().filter(field("half").eq(1)).order_by("n");
                let query = match limit {
                    Some(limit) if last => query.limit_to_last(limit),
                    Some(limit) => query.limit(limit),
                    None => query,
                };
                let sees = |n: &u64| sieve.is_none_or(|sieve| sieve >> n & 1 == 1);
                let mut expected: Vec<u64> = (0..DOCUMENTS).filter(|n| n % 2 == 1).filter(sees).collect();
                let limit = limit.unwrap_or(usize::MAX).min(expected.len());
                if last {
                    expected.drain(..expected.len() - limit);
                } else {
                    expected.truncate(limit);
                }
                prop_assert_eq!(numbers(&query, sieve.map(Numbers::of)), expected);
            }
        }
    }
}
