//! TLS 1.3 with raw public keys (RFC 7250) on both sides: the key is the name, and nothing else is believed.
//!
//! The dialler pins the key it expects. The acceptor takes any Ed25519 key whose secret the peer holds, and leaves it
//! to the application whether that key may stay: a refusal inside the handshake could not name its remedy.
//!
//! No session is ever resumed and no early data is taken. A resumed session skips the verifier, so a key that was
//! struck off would come back, and early data can be replayed.

use std::fmt;
use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, ServerName, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, UnixTime, alg_id,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};

use crate::id::NodeId;

use super::error::NetError;
use super::identity::Identity;
use super::transport;

/// The protocol and its major version, as the handshake negotiates it.
pub const ALPN: &[u8] = b"tidelog/1";

/// An Ed25519 SubjectPublicKeyInfo is always these 12 bytes and then the key (RFC 8410, section 4). DER has one
/// encoding of a value, so comparing is parsing.
const PUBLIC_KEY_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The node that an encoded public key names; `None` when it is not an Ed25519 key.
pub(super) fn node_of_public_key(encoded: &[u8]) -> Option<NodeId> {
    encoded.strip_prefix(&PUBLIC_KEY_PREFIX)?.try_into().ok().map(NodeId)
}

/// The key that the peer proved. The TLS stack hands it out in the type that it uses for certificates.
pub(super) fn node_of_peer(connection: &quinn::Connection) -> Option<NodeId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    node_of_public_key(chain.first()?)
}

/// The server name under which `node` is dialled.
///
/// QUIC demands a well-formed name. It is not sent; it carries the pinned key to the verifier, and it files the tokens
/// that spare a returning dialler the check of its address.
pub(super) fn server_name(node: NodeId) -> String {
    format!("{node}.tidelog")
}

fn node_of_name(name: &ServerName<'_>) -> Option<NodeId> {
    match name {
        ServerName::DnsName(name) => name.as_ref().strip_suffix(".tidelog")?.parse().ok(),
        _ => None,
    }
}

/// Named, never the process-wide default: that one panics when features bring in two providers.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Whether `node` signed `message`: Ed25519 over the message itself, as in RFC 8032.
pub(super) fn is_signed_by(node: NodeId, message: &[u8], signature: &[u8; 64]) -> bool {
    let is_ed25519 = |algorithm: &&&dyn SignatureVerificationAlgorithm| {
        algorithm.public_key_alg_id() == alg_id::ED25519 && algorithm.signature_alg_id() == alg_id::ED25519
    };
    let algorithm = SUPPORTED.get_or_init(|| provider().signature_verification_algorithms).all.iter().find(is_ed25519);
    algorithm.is_some_and(|algorithm| algorithm.verify_signature(&node.0, message, signature).is_ok())
}

/// The provider's algorithms, asked for once.
static SUPPORTED: OnceLock<WebPkiSupportedAlgorithms> = OnceLock::new();

/// How we accept.
pub(super) fn accepting(identity: &Identity) -> Result<quinn::ServerConfig, NetError> {
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?
        .with_client_cert_verifier(RawKeys::new())
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity.key())));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.max_early_data_size = 0;
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    let crypto = QuicServerConfig::try_from(tls).map_err(|e| NetError::Tls(e.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    transport::accepting(&mut config);
    Ok(config)
}

/// How we dial. One configuration does for every peer, since [`server_name`] says which key is expected.
pub(super) fn dialling(identity: &Identity) -> Result<quinn::ClientConfig, NetError> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?
        .dangerous() // the TLS stack's word for "not the web's rules"
        .with_custom_certificate_verifier(RawKeys::new())
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity.key())));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.enable_early_data = false;
    tls.resumption = Resumption::disabled();
    tls.enable_sni = false;
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| NetError::Tls(e.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport::dialling());
    Ok(config)
}

fn refused(error: Error) -> NetError {
    NetError::Tls(error.to_string())
}

/// Why a key was refused. The peer is sent this text, so it names only the key that the peer itself has shown.
enum Refused {
    NotEd25519,
    NotThePinned(NodeId),
}

/// What the text of [`Refused::NotThePinned`] begins with, by which both ends know it again.
const NOT_THE_PINNED: &str = "not the pinned key: ";

/// Whether the reason given with alert 46 says that the acceptor's key is not the one that was dialled.
pub(super) fn is_wrong_key(reason: &str) -> bool {
    reason.contains(NOT_THE_PINNED)
}

/// The key that such a reason names.
pub(super) fn key_in_refusal(reason: &str) -> Option<NodeId> {
    let (_, rest) = reason.split_once(NOT_THE_PINNED)?;
    rest.get(..52)?.parse().ok()
}

/// By hand, because the TLS stack prints it with `{:?}`.
impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEd25519 => f.write_str("not an Ed25519 raw public key"),
            Self::NotThePinned(node) => write!(f, "{NOT_THE_PINNED}{node}"),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Refused {}

impl From<Refused> for Error {
    fn from(why: Refused) -> Self {
        // `Other` becomes alert 46, which nothing else in this set-up sends. `Error::General` would become 40, which
        // could no longer be told from "does not speak raw public keys".
        CertificateError::Other(OtherError(Arc::new(why))).into()
    }
}

/// Answers two questions about a peer: is this the key we expect, and does the peer hold its secret?
#[derive(Debug)]
pub(super) struct RawKeys {
    algorithms: WebPkiSupportedAlgorithms,
}

impl RawKeys {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { algorithms: provider().signature_verification_algorithms })
    }

    /// The usual call would parse X.509. This one reads the raw key and ties the algorithm to the key's type.
    fn signed(
        &self,
        message: &[u8],
        key: &[u8],
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(key), signature, &self.algorithms)
    }
}

/// The part of both verifier traits that is the same on both sides.
macro_rules! raw_keys_over_tls13_only {
    () => {
        fn requires_raw_public_keys(&self) -> bool {
            true
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            key: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.signed(message, key, signature)
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("QUIC has no TLS 1.2".into()))
        }
    };
}

impl ServerCertVerifier for RawKeys {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let node = node_of_public_key(key).ok_or(Refused::NotEd25519)?;
        if node_of_name(name) != Some(node) {
            return Err(Refused::NotThePinned(node).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    raw_keys_over_tls13_only!();
}

impl ClientCertVerifier for RawKeys {
    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        node_of_public_key(key).ok_or(Refused::NotEd25519)?;
        Ok(ClientCertVerified::assertion())
    }

    /// The default too, but everything rests on it.
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    raw_keys_over_tls13_only!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_id_is_a_well_formed_server_name_that_reads_back() {
        // All digits and all letters, the extremes of what a host name's rules could object to.
        for bytes in [[0; 32], [0xff; 32], [0xd6, 0xb5, 0xad, 0x6b, 0x5a].repeat(7)[..32].try_into().unwrap()] {
            let node = NodeId(bytes);
            let name = ServerName::try_from(server_name(node)).unwrap();
            assert_eq!(node_of_name(&name), Some(node));
        }
        assert_eq!(node_of_name(&ServerName::try_from("example.org").unwrap()), None);
        assert_eq!(node_of_name(&ServerName::try_from("127.0.0.1").unwrap()), None);
    }

    #[test]
    fn only_a_whole_ed25519_key_is_a_node() {
        let good = [&PUBLIC_KEY_PREFIX[..], &[7; 32]].concat();
        assert_eq!(node_of_public_key(&good), Some(NodeId([7; 32])));
        assert_eq!(node_of_public_key(&good[..43]), None);
        assert_eq!(node_of_public_key(&[&good[..], &[0]].concat()), None);
        assert_eq!(node_of_public_key(&good[1..]), None);
        assert_eq!(node_of_public_key(&[]), None);
    }

    #[test]
    fn a_refusal_tells_the_key_that_was_shown() {
        let node = NodeId([9; 32]);
        let text = Error::from(Refused::NotThePinned(node)).to_string();
        assert!(is_wrong_key(&text));
        assert_eq!(key_in_refusal(&text), Some(node));
        assert!(!is_wrong_key(&Error::from(Refused::NotEd25519).to_string()));
    }
}
