//! Whose the peer is, and what that lets it do: proven at the beginning, and anew whenever it changes.

use super::{Output, Session, SessionError};
use crate::history::Reader;
use crate::sync::guard::Proven;
use crate::sync::wire::{self, Frame};

impl Session {
    pub(super) fn handle_auth(&mut self, auth: wire::Auth) -> Result<(), SessionError> {
        // Where a key says enough, a token says nothing more.
        if self.config.guarded {
            self.guard.count_token()?;
            self.out.put(Output::Prove { token: Some(auth.token) });
        }
        Ok(())
    }

    /// Shows the peer another token, from now on.
    ///
    /// # Errors
    /// [`SessionError::BadFrame`] when it is longer than a token may be.
    pub fn show_token(&mut self, token: wire::Token) -> Result<(), SessionError> {
        if self.opening.hello_sent {
            self.out.control(&Frame::Auth(wire::Auth { token: token.clone() }))?;
        }
        self.config.token = Some(token);
        Ok(())
    }

    /// Takes who the peer's user is: the answer to [`Output::Prove`].
    ///
    /// # Errors
    /// As [`Self::handle_frame`].
    pub fn handle_proven(&mut self, proven: Proven, reader: &Reader) -> Result<(), SessionError> {
        self.follower.prove(&proven);
        self.source.permit(proven.permits.clone());
        self.exchanges.prove(&proven);
        self.guard.prove(proven);
        if self.opening.judged { self.handle_access_changed(reader) } else { self.acknowledge(reader) }
    }

    /// Takes note that so many rows that the peer denied are taken back, durably: all that an [`Output::TakeBack`] had, or
    /// none of them where some are left.
    ///
    /// # Errors
    /// As [`Self::handle_frame`].
    pub fn handle_taken_back(&mut self, rows: usize) -> Result<(), SessionError> {
        if rows == 0 {
            return Ok(());
        }
        self.taken_back += rows as u64;
        self.out.control(&Frame::TakenBack(wire::TakenBack { rows: self.taken_back }))
    }

    /// Takes note that the peer's user may do other things than before.
    ///
    /// # Errors
    /// As [`Self::handle_frame`].
    pub fn handle_access_changed(&mut self, reader: &Reader) -> Result<(), SessionError> {
        if mutant!(RevocationUnheard) {
            return Ok(());
        }
        self.look_again(reader, true)
    }

    /// Takes note that the peer's user may read other documents than before, for nothing but the time. What was denied is
    /// not asked for every few seconds.
    ///
    /// # Errors
    /// As [`Self::handle_frame`].
    pub fn handle_time_passed(&mut self, reader: &Reader) -> Result<(), SessionError> {
        self.look_again(reader, false)
    }

    fn look_again(&mut self, reader: &Reader, asks_for_denied: bool) -> Result<(), SessionError> {
        self.exchanges.drop_unreadable(reader, &mut self.out)?;
        self.report_ended_exchanges(reader)?;
        if asks_for_denied {
            self.follower.handle_access_changed(&self.exchanges);
        }
        self.source.handle_access_changed(&mut self.out)
    }
}
