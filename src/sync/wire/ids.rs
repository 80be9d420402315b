//! How the names of things are written: as the bytes they are.

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};

use crate::id::{Chain, ChangeHash, DocumentId, Heads, LogCursor, LogId, Lsn, NodeId};

/// Writes identifiers as the bytes they are.
macro_rules! as_bytes {
    ($($name:ident),*) => {$(
        impl Encode for $name {
            fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                self.0.encode(encoder)
            }
        }
        impl<C> Decode<C> for $name {
            fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
                Decode::decode(decoder).map(Self)
            }
        }
        bincode::impl_borrow_decode!($name);
    )*};
}
as_bytes!(DocumentId, NodeId, LogId, Lsn, Chain, ChangeHash);
bincode::impl_borrow_decode!(LogCursor);
bincode::impl_borrow_decode!(Heads);

impl Encode for LogCursor {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        (self.log_id, self.lsn, self.chain).encode(encoder)
    }
}

impl<C> Decode<C> for LogCursor {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let (log_id, lsn, chain) = Decode::decode(decoder)?;
        Ok(Self { log_id, lsn, chain })
    }
}

impl Encode for Heads {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.as_slice().encode(encoder)
    }
}

impl<C> Decode<C> for Heads {
    /// Reads heads in the one form they have: ascending and without repeats.
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let hashes: Vec<ChangeHash> = Decode::decode(decoder)?;
        if hashes.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(DecodeError::Other("heads are not ascending"));
        }
        Ok(Self::new(hashes))
    }
}
