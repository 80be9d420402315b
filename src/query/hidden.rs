//! Matches that whoever listens may not see. A listener knows of them so that nothing has to be searched for when rights
//! change: it asks about what it knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::document::Document;

/// Bytes of documents that one listener knows of, and that may not be seen by whoever listens: of their JSON, and so many
/// more for each. Beyond it they are not known, and the listener begins anew when rights change.
const BYTES_MAX: usize = 256 << 10;
/// The same of all listeners of one database.
const BYTES_IN_ALL: usize = 64 << 20;
/// What each such document counts beside its JSON.
const DOCUMENT_BYTES: usize = 512;

/// Matches that may not be seen, by place.
#[derive(Debug, Default, Clone)]
pub(super) struct Hidden {
    documents: BTreeMap<Vec<u8>, Arc<Document>>,
    bytes: usize,
}

impl Hidden {
    pub(super) fn put(&mut self, place: Vec<u8>, document: Arc<Document>) {
        self.bytes += bytes_of(&document);
        if let Some(twice) = self.documents.insert(place, document) {
            self.bytes -= bytes_of(&twice);
        }
    }

    pub(super) fn remove(&mut self, place: &[u8]) -> Option<Arc<Document>> {
        let document = self.documents.remove(place)?;
        self.bytes -= bytes_of(&document);
        Some(document)
    }

    /// Forgets what is behind a place.
    pub(super) fn cut(&mut self, bound: &[u8]) {
        while let Some(last) = self.documents.last_entry().filter(|last| last.key().as_slice() > bound) {
            self.bytes -= bytes_of(&last.remove());
        }
    }

    /// The places of those that pass.
    #[cfg(feature = "web")]
    pub(super) fn places(&self, passes: impl Fn(&Document) -> bool) -> Vec<Vec<u8>> {
        let passing = self.documents.iter().filter(|(_, document)| passes(document));
        passing.map(|(place, _)| place.clone()).collect()
    }

    pub(super) fn extend(&mut self, more: Self) {
        more.documents.into_iter().for_each(|(place, document)| self.put(place, document));
    }

    /// More than one listener may know of.
    pub(super) fn is_too_much(&self) -> bool {
        self.bytes > BYTES_MAX
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn bytes_of(document: &Document) -> usize {
    document.bytes + DOCUMENT_BYTES
}

/// Room for what the listeners of one database know of and may not tell.
#[derive(Debug, Default)]
pub(super) struct Room(AtomicUsize);

/// What one listener takes of it, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    room: Arc<Room>,
    bytes: usize,
}

impl Taken {
    pub(super) fn nothing_of(room: Arc<Room>) -> Self {
        Self { room, bytes: 0 }
    }

    /// Takes so much, instead of what it had; `false`, and nothing at all, when there is no room.
    pub(super) fn resize(&mut self, bytes: usize) -> bool {
        if bytes <= self.bytes {
            self.room.0.fetch_sub(self.bytes - bytes, Ordering::AcqRel);
            self.bytes = bytes;
            return true;
        }
        let more = bytes - self.bytes;
        let fits = |taken: usize| taken.checked_add(more).filter(|taken| *taken <= BYTES_IN_ALL);
        let is_taken = self.room.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok();
        if is_taken {
            self.bytes = bytes;
        } else {
            self.resize(0);
        }
        is_taken
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::engine::{Collection, Database, block_on};
    use crate::id::DocumentId;
    use crate::log::MemoryStorage;
    use crate::query::spec::Sieve;
    use crate::query::{ListenOptions, Listener, Query, QuerySnapshot, field};

    #[test]
    fn what_all_listeners_know_of_is_bounded_and_given_back() {
        let room = Arc::new(Room::default());
        let (mut one, mut other) = (Taken::nothing_of(room.clone()), Taken::nothing_of(room.clone()));
        assert!(one.resize(BYTES_IN_ALL - 10) && other.resize(10));
        // Who wants too much has nothing, and the others what they had.
        assert!(!other.resize(11));
        assert_eq!((one.bytes, other.bytes), (BYTES_IN_ALL - 10, 0));
        assert!(!other.resize(usize::MAX));
        assert!(one.resize(5) && other.resize(BYTES_IN_ALL - 5));
        drop((one, other));
        assert_eq!(room.0.load(Ordering::Acquire), 0);
    }

    /// Passes the documents whose number is in a set, which may become another.
    #[derive(Debug, Default)]
    struct Rights(AtomicU64);

    impl Rights {
        fn of(mask: u64) -> Arc<Self> {
            Arc::new(Self(AtomicU64::new(mask)))
        }

        fn set(&self, mask: u64) {
            self.0.store(mask, Ordering::Release);
        }

        fn may_see(&self, n: u64) -> bool {
            self.0.load(Ordering::Acquire) >> (n % 64) & 1 == 1
        }
    }

    impl Sieve for Rights {
        fn passes(&self, document: &Document) -> bool {
            self.may_see(number(document))
        }
    }

    fn number(document: &Document) -> u64 {
        document.value["n"].as_u64().unwrap()
    }

    /// A listener, and what whoever follows it has.
    struct Heard {
        listener: Listener,
        rights: Arc<Rights>,
        has: Vec<(DocumentId, u64)>,
    }

    impl Heard {
        fn new(query: &Query, rights: &Arc<Rights>) -> Self {
            let query = query.clone().seen_through(Some(rights.clone() as Arc<dyn Sieve>));
            let listener = query.on_snapshot(ListenOptions::default()).unwrap();
            let mut heard = Self { listener, rights: rights.clone(), has: Vec::new() };
            heard.hear();
            heard
        }

        /// Has everything asked about anew; whether that was enough.
        fn sift(&mut self) -> bool {
            let before = self.listener.number();
            self.listener.sift(Some(self.rights.clone() as Arc<dyn Sieve>)).unwrap();
            self.listener.number() == before
        }

        /// Takes in all that there is to be told.
        fn hear(&mut self) {
            block_on(self.listener.ready()).unwrap();
            while let Some(snapshot) = self.listener.try_next().unwrap() {
                self.take(&snapshot);
            }
        }

        fn take(&mut self, snapshot: &QuerySnapshot) {
            for change in snapshot.doc_changes() {
                let id = change.document.id;
                if let Some(at) = change.old_index {
                    assert_eq!(self.has.remove(at).0, id);
                }
                if let Some(at) = change.new_index {
                    self.has.insert(at, (id, number(&change.document)));
                }
            }
            let told: Vec<DocumentId> = snapshot.docs().iter().map(|document| document.id).collect();
            assert_eq!(self.ids(), told);
        }

        fn ids(&self) -> Vec<DocumentId> {
            self.has.iter().map(|(id, _)| *id).collect()
        }

        fn numbers(&self) -> Vec<u64> {
            self.has.iter().map(|(_, n)| *n).collect()
        }
    }

    fn things(count: u64) -> Collection {
        let things = Database::on(MemoryStorage::new()).open().unwrap().collection("things").unwrap();
        for n in 0..count {
            create(&things, n);
        }
        things
    }

    fn create(things: &Collection, n: u64) {
        things.create(json!({ "n": n, "half": n % 2 })).unwrap().1.wait().unwrap();
    }

    #[test]
    fn when_rights_change_nothing_is_searched_for_and_no_answer_of_before_counts() {
        let things = things(20);
        let rights = Rights::of(0b1111);
        let mut heard = Heard::new(&things.query().order_by("n"), &rights);
        assert_eq!(heard.numbers(), [0, 1, 2, 3]);
        rights.set(0b110);
        assert!(heard.sift());
        heard.hear();
        assert_eq!(heard.numbers(), [1, 2]);
        // What was taken away can be granted again, and so can what was never told, or did not match when this began.
        create(&things, 20);
        rights.set(1 << 20 | 1 << 19 | 1);
        assert!(heard.sift());
        heard.hear();
        assert_eq!(heard.numbers(), [0, 19, 20]);
        // A document that is changed while it may not be seen is told as it is.
        let hidden = things.query().filter(field("n").eq(5)).get_now().unwrap().docs()[0].id;
        things.find(hidden).unwrap().change(|edit| Ok(edit.put("n", 6)?)).unwrap().wait().unwrap();
        rights.set(1 << 5 | 1 << 6);
        assert!(heard.sift());
        heard.hear();
        assert_eq!(heard.numbers(), [6, 6]);
        // One that is gone is not told at all.
        things.find(hidden).unwrap().delete().unwrap().wait().unwrap();
        rights.set(0);
        assert!(heard.sift());
        heard.hear();
        rights.set(1 << 6);
        assert!(heard.sift());
        heard.hear();
        assert_eq!(heard.numbers(), [6]);
    }

    #[test]
    fn who_would_know_of_too_much_begins_anew_and_misses_nothing() {
        let most = (BYTES_MAX / DOCUMENT_BYTES) as u64 + 64;
        let things = things(most);
        let (few, rights) = (Rights::of(1), Rights::of(u64::MAX));
        let (all, some) = (things.query().order_by("n"), things.query().order_by("n").limit(3));
        let (mut heard, mut limited) = (Heard::new(&all, &few), Heard::new(&some, &rights));
        let expected = |bit: u64, count: usize| (0..most).filter(|n| n % 64 == bit).take(count).collect::<Vec<_>>();
        assert_eq!(heard.numbers(), expected(0, usize::MAX));
        few.set(2);
        assert!(!heard.sift());
        // Nor is it lost when he is to begin anew twice.
        assert!(heard.sift() && heard.listener.is_new());
        heard.hear();
        assert_eq!(heard.numbers(), expected(1, usize::MAX));
        // Of those far behind a limit nothing is known.
        assert_eq!(limited.numbers(), [0, 1, 2]);
        rights.set(0b11_1110);
        assert!(limited.sift());
        limited.hear();
        assert_eq!(limited.numbers(), [1, 2, 3]);
        rights.set(1 << 40);
        assert!(!limited.sift());
        limited.hear();
        assert_eq!(limited.numbers(), expected(40, 3));
    }

    #[test]
    fn what_lies_behind_the_last_that_is_known_is_no_part_of_the_result() {
        let things = things(200);
        // Too few of the first, so that all are looked at, and twenty are known.
        let rights = Rights::of(0b11 | u64::MAX << 30 & !(1 << 60));
        let mut heard = Heard::new(&things.query().order_by("n").limit(3), &rights);
        assert_eq!(heard.numbers(), [0, 1, 30]);
        // One of these is left, and of what is behind them those do not count alone that might not be seen before.
        rights.set(1 | 1 << 50 | 1 << 60);
        heard.sift();
        heard.hear();
        assert_eq!(heard.numbers(), [0, 50, 60]);
    }

    /// What is done to documents and rights; numbers are of documents.
    #[derive(Debug, Clone)]
    enum Step {
        Rights(u64),
        Create(u64),
        Change(usize, u64),
        Delete(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => [any::<u64>(), any::<u64>()].prop_map(|[one, other]| Step::Rights(one & other)),
            1 => any::<u64>().prop_map(Step::Rights),
            2 => [any::<u64>(), any::<u64>()].prop_map(|[one, other]| Step::Rights(one | other)),
            2 => (0_u64..64).prop_map(Step::Create),
            3 => (any::<usize>(), 0_u64..64).prop_map(|(which, n)| Step::Change(which, n)),
            1 => any::<usize>().prop_map(Step::Delete),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever changes and whenever it is heard: after rights changed nothing is told that may not be seen, changes
        /// lead from one result to the next, and in the end everybody has what he may see of what there is.
        #[test]
        fn everybody_has_what_he_may_see_whenever_that_changes(
            steps in proptest::collection::vec((step(), any::<bool>()), 1..40),
        ) {
            let things = things(60);
            let odd = things.query().filter(field("half").eq(1)).order_by("n");
            let queries = [
                odd.clone(),
                odd.clone().limit(5),
                odd.clone().limit_to_last(4),
                things.query().order_by_desc("n").limit(30),
                things.query().filter(field("n").lt(20).or(field("half").eq(1))).order_by("n"),
            ];
            let rights = Rights::of(u64::MAX);
            let mut all: Vec<Heard> = queries.iter().map(|query| Heard::new(query, &rights)).collect();
            let mut there: Vec<DocumentId> = things.query().get_now().unwrap().docs().iter().map(|one| one.id).collect();
            for (step, is_heard) in steps {
                match step {
                    Step::Rights(mask) => {
                        rights.set(mask);
                        for heard in &mut all {
                            heard.sift();
                            if heard.listener.is_new() {
                                block_on(heard.listener.ready()).unwrap();
                            }
                            // From here on, and not only once everything was taken in.
                            if let Some(snapshot) = heard.listener.try_next().unwrap() {
                                prop_assert!(snapshot.docs().iter().all(|one| rights.may_see(number(one))));
                                heard.take(&snapshot);
                            }
                        }
                    }
                    Step::Create(n) => {
                        let (handle, commit) = things.create(json!({ "n": n, "half": n % 2 })).unwrap();
                        there.push(handle.id());
                        commit.wait().unwrap();
                    }
                    Step::Change(which, n) => {
                        let id = there[which % there.len()];
                        let edit = |edit: &mut crate::document::Edit<'_>| {
                            edit.put("n", n)?;
                            Ok(edit.put("half", n % 2)?)
                        };
                        things.find(id).unwrap().change(edit).unwrap().wait().unwrap();
                    }
                    Step::Delete(which) if there.len() > 1 => {
                        let id = there.swap_remove(which % there.len());
                        things.find(id).unwrap().delete().unwrap().wait().unwrap();
                    }
                    Step::Delete(_) => {}
                }
                if is_heard {
                    all.iter_mut().for_each(Heard::hear);
                }
            }
            for (heard, query) in all.iter_mut().zip(&queries) {
                heard.hear();
                let query = query.clone().seen_through(Some(rights.clone() as Arc<dyn Sieve>));
                let expected: Vec<DocumentId> = query.get_now().unwrap().docs().iter().map(|one| one.id).collect();
                prop_assert_eq!(heard.ids(), expected);
            }
        }
    }
}
