//! Signatures with the node's key: of what it says to other nodes of origins, and what they say.
//!
//! The key also proves who we are in TLS 1.3. What is signed there begins with 64 spaces, what is signed here with the
//! name of a statement, so that neither is ever taken for the other.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rustls::SignatureScheme;

use super::identity::Identity;
use super::tls;
use crate::engine::Database;
use crate::id::NodeId;
use crate::sync::{Attester, Unproven};

/// Signatures that are remembered, some 100 bytes each: a change that is made here goes to each node that is linked.
const MADE_MAX: usize = 4096;

impl Attester for Identity {
    fn sign(&self, statement: &[u8]) -> Option<[u8; 64]> {
        let signer = self.key().key.choose_scheme(&[SignatureScheme::ED25519])?;
        signer.sign(statement).ok()?.try_into().ok()
    }

    fn verify(&self, node: NodeId, statement: &[u8], signature: &[u8; 64]) -> bool {
        tls::is_signed_by(node, statement, signature)
    }
}

/// The attester of a node's links: its key, what it signed lately, and a count of what others could not prove.
#[derive(Debug)]
pub(super) struct LinkAttester {
    identity: Identity,
    counts: Counts,
    // Protects what is remembered. Held for look-ups, never while anything is signed.
    made: Mutex<HashMap<[u8; 32], [u8; 64]>>,
}

/// Where it is counted.
struct Counts(Database);

impl LinkAttester {
    pub(super) fn new(identity: Identity, database: Database) -> Self {
        Self { identity, counts: Counts(database), made: Mutex::default() }
    }
}

impl Attester for LinkAttester {
    fn sign(&self, statement: &[u8]) -> Option<[u8; 64]> {
        let digest = *blake3::hash(statement).as_bytes();
        let made = || self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signature) = made().get(&digest) {
            return Some(*signature);
        }
        let signature = self.identity.sign(statement)?;
        let mut made = made();
        if made.len() >= MADE_MAX {
            made.clear();
        }
        made.insert(digest, signature);
        Some(signature)
    }

    fn verify(&self, node: NodeId, statement: &[u8], signature: &[u8; 64]) -> bool {
        self.identity.verify(node, statement, signature)
    }

    fn note_unproven(&self, unproven: Unproven) {
        self.counts.0.note_unproven(unproven);
    }
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counts")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::MemoryStorage;

    fn identity(seed: u8) -> Identity {
        Identity::from_seed(&[seed; 32]).unwrap()
    }

    #[test]
    fn a_signature_holds_for_its_node_and_its_statement_alone() {
        let (one, two) = (identity(1), identity(2));
        let signature = one.sign(b"statement").unwrap();
        assert!(two.verify(one.node(), b"statement", &signature));
        assert!(!two.verify(two.node(), b"statement", &signature));
        assert!(!two.verify(one.node(), b"statements", &signature));
        assert!(!two.verify(NodeId([0xff; 32]), b"statement", &signature), "no key at all");
        for bit in 0..512 {
            let mut forged = signature;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!two.verify(one.node(), b"statement", &forged), "bit {bit}");
        }
    }

    /// The first test vector of RFC 8032 with a message: any other implementation can check what we sign.
    #[test]
    fn signatures_are_those_of_rfc_8032() {
        let bytes = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
        let seed = bytes("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
        let signature = bytes(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        );
        let identity = Identity::from_seed(&seed.try_into().unwrap()).unwrap();
        assert_eq!(identity.sign(&[0x72]).unwrap(), &signature[..]);
    }

    #[test]
    fn what_was_signed_lately_is_not_signed_again_and_no_more_is_remembered_than_there_is_room_for() {
        let database = Database::on(MemoryStorage::new()).node(identity(1).node()).open().unwrap();
        let attester = LinkAttester::new(identity(1), database.clone());
        let first = attester.sign(b"one").unwrap();
        assert_eq!(first, identity(1).sign(b"one").unwrap());
        // It is taken from what is remembered: what stands there is what comes out.
        attester.made.lock().unwrap().insert(*blake3::hash(b"one").as_bytes(), [7; 64]);
        assert_eq!(attester.sign(b"one").unwrap(), [7; 64]);
        for n in 0..MADE_MAX + 10 {
            attester.sign(&n.to_le_bytes()).unwrap();
            assert!(attester.made.lock().unwrap().len() <= MADE_MAX);
        }
        attester.note_unproven(Unproven::Unsigned);
        attester.note_unproven(Unproven::Forged);
        attester.note_unproven(Unproven::Forged);
        assert_eq!(database.status().unproven_origins, [1, 2]);
    }
}
