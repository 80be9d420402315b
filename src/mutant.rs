//! Faults planted on purpose, and randomness that repeats: what a simulation needs from inside the crate.
//!
//! Without the feature `sim` nothing of it exists: `mutant!(..)` is the constant `false`, and randomness is the
//! operating system's. With it, both are switched for one thread at a time, so that simulations in other threads do
//! not notice.

/// Whether a fault is planted in this thread; never without the feature `sim`.
#[cfg(feature = "sim")]
macro_rules! mutant {
    ($name:ident) => {
        $crate::mutant::is_planted($crate::mutant::Mutant::$name)
    };
}

#[cfg(not(feature = "sim"))]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
}

#[cfg(feature = "sim")]
pub use switched::{Mutant, plant, seed_randomness, set_wall_clock, wait_for_writer};
#[cfg(feature = "sim")]
pub(crate) use switched::{is_planted, random, waits_for_writer, wall_clock};

#[cfg(feature = "sim")]
mod switched {
    use std::cell::{Cell, RefCell};

    /// A fault that a simulation must find.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub enum Mutant {
        /// A commit group is acknowledged before the disk has it.
        AckBeforeSync,
        /// A change is logged although what it was made on top of is not here.
        DependencyUnchecked,
        /// The cursor on a peer's log moves although documents before it are not here yet.
        CursorBeforeRows,
        /// A batch is acknowledged to the peer before it is logged.
        AckBeforeLogged,
        /// The last row of a batch is left out.
        LastRowDropped,
        /// The chain of digests does not take in a record.
        ChainNotAdvanced,
        /// Skipped positions are not said so by a record.
        GapRecordOmitted,
        /// A document is built from its snapshot alone.
        SnapshotTrusted,
        /// Rows that any peer brought are left out, as if this one had.
        EchoWrong,
        /// A source does not look at its log when a link is made.
        WakeupLost,
        /// One of the documents that a page shows to differ is not asked for.
        WantForgotten,
        /// The statement that decides whether a document is visible is not sent with it.
        WinnerLeftOut,
        /// A change is judged by who carries it, whoever its author belongs to.
        CarrierJudged,
        /// What may be read is not asked before each message.
        RightsUnasked,
        /// A link that stands does not hear that rights have changed.
        RevocationUnheard,
        /// What stood on a refused edit is taken back with it, and not made anew.
        NothingMadeAnew,
        /// A refused edit that is taken back is not kept.
        RefusedForgotten,
    }

    impl Mutant {
        /// All of them.
        pub const ALL: [Self; 17] = [
            Self::AckBeforeSync,
            Self::DependencyUnchecked,
            Self::CursorBeforeRows,
            Self::AckBeforeLogged,
            Self::LastRowDropped,
            Self::ChainNotAdvanced,
            Self::GapRecordOmitted,
            Self::SnapshotTrusted,
            Self::EchoWrong,
            Self::WakeupLost,
            Self::WantForgotten,
            Self::WinnerLeftOut,
            Self::CarrierJudged,
            Self::RightsUnasked,
            Self::RevocationUnheard,
            Self::NothingMadeAnew,
            Self::RefusedForgotten,
        ];

        /// Whether only a cluster with users can show it.
        #[must_use]
        pub fn is_about_users(self) -> bool {
            matches!(
                self,
                Self::CarrierJudged
                    | Self::RightsUnasked
                    | Self::RevocationUnheard
                    | Self::NothingMadeAnew
                    | Self::RefusedForgotten
            )
        }
    }

    thread_local! {
        static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
        static CLOCK: Cell<Option<u64>> = const { Cell::new(None) };
        static WAITS: Cell<bool> = const { Cell::new(false) };
        static RANDOMNESS: RefCell<Option<blake3::OutputReader>> = const { RefCell::new(None) };
    }

    /// Whether this thread stands still until the writer has answered. A runtime whose time goes on while nothing is to do
    /// would run away from the writer otherwise.
    pub fn wait_for_writer(waits: bool) {
        WAITS.set(waits);
    }

    pub(crate) fn waits_for_writer() -> bool {
        WAITS.get()
    }

    /// Sets the wall clock of edits made in this thread, in ms since 1970, or gives it back to the operating system.
    pub fn set_wall_clock(now_ms: Option<u64>) {
        CLOCK.set(now_ms);
    }

    pub(crate) fn wall_clock() -> Option<u64> {
        CLOCK.get()
    }

    /// Plants one fault in this thread, or none.
    pub fn plant(mutant: Option<Mutant>) {
        PLANTED.set(mutant);
    }

    /// Whether the fault is planted in this thread.
    pub(crate) fn is_planted(mutant: Mutant) -> bool {
        PLANTED.get() == Some(mutant)
    }

    /// Makes the randomness of this thread follow from a seed, or gives it back to the operating system.
    pub fn seed_randomness(seed: Option<u64>) {
        let reader = seed.map(|seed| {
            let mut hasher = blake3::Hasher::new_derive_key("tidelog simulated randomness");
            hasher.update(&seed.to_le_bytes());
            hasher.finalize_xof()
        });
        RANDOMNESS.set(reader);
    }

    /// Fills `bytes` and returns true when this thread's randomness is seeded.
    pub(crate) fn random(bytes: &mut [u8]) -> bool {
        RANDOMNESS.with_borrow_mut(|reader| match reader {
            Some(reader) => {
                reader.fill(bytes);
                true
            }
            None => false,
        })
    }
}
