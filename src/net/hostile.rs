//! Tests with peers that are not what they should be, and with peers that may not stay.
//!
//! Each names the verdict of *both* ends. A dialler may meet the acceptor's only after its own `connect` has succeeded.

use std::sync::Arc;
use std::time::SystemTime;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, ResolvesClientCert};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::{SignatureScheme, version::TLS13};

use crate::id::NodeId;
use crate::limits::Limits;

use super::allow::{AllowList, Role, UnknownKeys};
use super::close::CloseCode;
use super::endpoint::Endpoint;
use super::error::NetError;
use super::identity::Identity;
use super::link::Link;
use super::link::tests::{LOOPBACK, endpoint, identity, meet};
use super::refusal::Ends;
use super::tls::{self, ALPN, RawKeys};

/// How a dialler with the configuration `config` fares with an honest acceptor: what it is told, what the other finds.
async fn dial_with(config: quinn::ClientConfig) -> (NetError, NetError) {
    let acceptor = endpoint(1);
    let dialler = quinn::Endpoint::client(LOOPBACK.parse().unwrap()).unwrap();
    let connecting = dialler.connect_with(config, acceptor.local_addr(), &tls::server_name(acceptor.node())).unwrap();
    let ends = Ends {
        local: identity(2).node(),
        remote: Some(acceptor.node()),
        address: acceptor.local_addr(),
        dialled: true,
    };
    let dial = async {
        match connecting.await {
            Ok(connection) => ends.explain(&connection.closed().await),
            Err(error) => ends.explain(&error),
        }
    };
    let accept = async { acceptor.accept().await.unwrap().finish().await.unwrap_err() };
    tokio::join!(dial, accept)
}

/// How an honest dialler fares with an acceptor with the configuration `config`.
async fn accept_with(config: quinn::ServerConfig) -> (NetError, NetError) {
    let acceptor = quinn::Endpoint::server(config, LOOPBACK.parse().unwrap()).unwrap();
    let address = acceptor.local_addr().unwrap();
    let dialler = endpoint(2);
    let ends = Ends { local: identity(1).node(), remote: None, address: dialler.local_addr(), dialled: false };
    let accept = async {
        match acceptor.accept().await.unwrap().await {
            Ok(connection) => ends.explain(&connection.closed().await),
            Err(error) => ends.explain(&error),
        }
    };
    let dial = async {
        match dialler.connect_to(identity(1).node(), address).await {
            Ok(link) => link.closed().await,
            Err(error) => error,
        }
    };
    tokio::join!(dial, accept)
}

fn client() -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier> {
    rustls::ClientConfig::builder_with_provider(tls::provider()).with_protocol_versions(&[&TLS13]).unwrap()
}

fn pinning() -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    client().dangerous().with_custom_certificate_verifier(RawKeys::new())
}

fn quic_client(mut tls: rustls::ClientConfig, protocols: &[&[u8]]) -> quinn::ClientConfig {
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

fn x509() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let name = tls::server_name(identity(1).node());
    let certificate = rcgen::CertificateParams::new(vec![name]).unwrap().self_signed(&key).unwrap();
    (certificate.into(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

/// Negotiates raw keys and then shows an X.509 certificate.
fn liar() -> Identity {
    let (certificate, key) = x509();
    let key = tls::provider().key_provider.load_private_key(key).unwrap();
    Identity::showing(CertifiedKey::new(vec![certificate], key))
}

#[tokio::test]
async fn another_protocol_or_none_is_named_at_both_ends() {
    for protocols in [&[&b"tidelog/2"[..], b"h3"][..], &[]] {
        let resolver = Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity(2).key()));
        let (dialler, acceptor) =
            dial_with(quic_client(pinning().with_client_cert_resolver(resolver), protocols)).await;
        assert!(matches!(dialler, NetError::OtherProtocol { .. }), "{dialler:?}");
        assert!(matches!(acceptor, NetError::OtherProtocol { .. }), "{acceptor:?}");
        assert!(dialler.to_string().contains(std::str::from_utf8(ALPN).unwrap()), "{dialler}");
    }
}

#[tokio::test]
async fn an_ordinary_tls_client_and_one_without_a_key_are_refused() {
    let (certificate, key) = x509();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let chain = vec![certificate];
    let ordinary =
        client().with_root_certificates(roots).with_client_auth_cert(chain.clone(), key.clone_key()).unwrap();
    let halfway = pinning().with_client_auth_cert(chain, key).unwrap();
    for tls in [ordinary, halfway, pinning().with_no_client_auth()] {
        let (dialler, acceptor) = dial_with(quic_client(tls, &[ALPN])).await;
        assert!(matches!(dialler, NetError::NoRawKeys { .. }), "{dialler:?}");
        assert!(matches!(acceptor, NetError::NoRawKeys { .. }), "{acceptor:?}");
    }
}

#[tokio::test]
async fn an_ordinary_tls_server_is_refused() {
    let (certificate, key) = x509();
    let mut tls = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let (dialler, acceptor) = accept_with(config).await;
    assert!(matches!(dialler, NetError::NoRawKeys { .. }), "{dialler:?}");
    assert!(matches!(acceptor, NetError::NoRawKeys { .. }), "{acceptor:?}");
}

#[tokio::test]
async fn a_certificate_in_place_of_the_key_it_promised_is_refused() {
    let (dialler, acceptor) = dial_with(tls::dialling(&liar()).unwrap()).await;
    assert!(matches!(dialler, NetError::BadKey { ours: true, .. }), "{dialler:?}");
    assert!(matches!(acceptor, NetError::BadKey { ours: false, .. }), "{acceptor:?}");

    let (dialler, acceptor) = accept_with(tls::accepting(&liar()).unwrap()).await;
    assert!(matches!(dialler, NetError::BadKey { ours: false, .. }), "{dialler:?}");
    assert!(matches!(acceptor, NetError::BadKey { ours: true, .. }), "{acceptor:?}");
}

#[tokio::test]
async fn a_client_that_promises_a_key_and_shows_none_is_refused() {
    #[derive(Debug)]
    struct Silent;
    impl ResolvesClientCert for Silent {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            None
        }
        fn only_raw_public_keys(&self) -> bool {
            true
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    let tls = pinning().with_client_cert_resolver(Arc::new(Silent));
    let (dialler, acceptor) = dial_with(quic_client(tls, &[ALPN])).await;
    assert!(matches!(dialler, NetError::NoKey { ours: true, .. }), "{dialler:?}");
    assert!(matches!(acceptor, NetError::NoKey { ours: false, .. }), "{acceptor:?}");
}

#[tokio::test]
async fn the_thief_of_a_public_key_is_refused_on_either_side() {
    let thief = |victim: u8| identity(victim).signing_with(&identity(9));
    let (dialler, acceptor) = dial_with(tls::dialling(&thief(2)).unwrap()).await;
    assert!(matches!(dialler, NetError::KeyNotProven { ours: true, .. }), "{dialler:?}");
    assert!(matches!(acceptor, NetError::KeyNotProven { ours: false, .. }), "{acceptor:?}");

    let (dialler, acceptor) = accept_with(tls::accepting(&thief(1)).unwrap()).await;
    assert!(matches!(dialler, NetError::KeyNotProven { ours: false, .. }), "{dialler:?}");
    assert!(matches!(acceptor, NetError::KeyNotProven { ours: true, .. }), "{acceptor:?}");
}

/// Dials, lets `list` judge, and hands out the link of the dialler with the verdict.
async fn judged(dialler: &Endpoint, acceptor: &Endpoint, list: &AllowList) -> (Link, Result<Link, NetError>) {
    let (link, arrival) = meet(dialler, acceptor).await;
    let arrival = arrival.unwrap();
    let verdict = match list.judge(arrival.node(), arrival.address(), None, SystemTime::now()) {
        Ok(_) => Ok(arrival.admit()),
        Err(error) => {
            arrival.refuse(&error);
            Err(error)
        }
    };
    (link.unwrap(), verdict)
}

#[tokio::test]
async fn both_ends_are_told_the_command_that_allows_the_dialler() {
    let (dialler, acceptor) = (endpoint(2), endpoint(1));
    let list = AllowList::new(UnknownKeys::Refuse);
    let (link, verdict) = judged(&dialler, &acceptor, &list).await;
    let (there, here) = (verdict.unwrap_err(), link.closed().await);
    for error in [there, here] {
        assert!(matches!(error, NetError::NotAllowed { node } if node == dialler.node()), "{error:?}");
        assert!(error.to_string().contains(&format!("`tidelog peer add {}`", dialler.node())), "{error}");
        assert!(error.is_retryable(), "the dialler comes back by itself once the command was run");
    }
    assert!(matches!(link.accept_uni().await, Err(NetError::NotAllowed { .. })), "streams say the same");
}

#[tokio::test]
async fn a_key_that_was_struck_off_is_refused_at_its_next_handshake() {
    let (dialler, acceptor) = (endpoint(2), endpoint(1));
    let list = AllowList::new(UnknownKeys::Refuse);
    list.allow(dialler.node(), Role::Node);
    let (first, verdict) = judged(&dialler, &acceptor, &list).await;
    let open = verdict.unwrap();
    list.remove(dialler.node());
    open.close(CloseCode::Removed, "");
    assert!(matches!(first.closed().await, NetError::Closed { code: CloseCode::Removed, .. }));

    // The same endpoint, so that whatever it could have kept of the first session would be used.
    let (second, verdict) = judged(&dialler, &acceptor, &list).await;
    assert!(matches!(verdict, Err(NetError::NotAllowed { node }) if node == dialler.node()));
    assert!(matches!(second.closed().await, NetError::NotAllowed { .. }));
}

#[tokio::test]
async fn an_unknown_key_with_an_invite_in_its_first_frame_is_admitted() {
    let (dialler, acceptor) = (endpoint(2), endpoint(1));
    let list = AllowList::new(UnknownKeys::Refuse);
    let invite = list.invite(Role::Node, SystemTime::now()).unwrap();
    for shown in [*invite.as_bytes(), [0; 16]] {
        list.remove(dialler.node());
        let (link, arrival) = meet(&dialler, &acceptor).await;
        let (link, arrival) = (link.unwrap(), arrival.unwrap());
        let node: NodeId = arrival.node();
        assert!(list.judge(node, arrival.address(), None, SystemTime::now()).is_err());
        let (mut writer, mut reader) = link.open_bi().await.unwrap();
        writer.send(&shown).await.unwrap();
        let (mut answer, mut hello) = arrival.accept_bi().await.unwrap();
        let body = hello.read(Limits::DEFAULT.hello_bytes_max).await.unwrap().unwrap();
        let shown = super::ticket::Invite::from_bytes(body.try_into().unwrap());
        match list.judge(node, arrival.address(), Some(&shown), SystemTime::now()) {
            Ok(admission) => {
                assert_eq!((shown == invite, admission.role), (true, Role::Node));
                let _accepted = arrival.admit();
                answer.send(b"welcome").await.unwrap();
                assert_eq!(reader.read(100).await.unwrap().unwrap(), b"welcome");
            }
            Err(error) => {
                assert_ne!(shown, invite);
                arrival.refuse(&error);
                let told = reader.read(100).await.unwrap_err();
                assert!(matches!(told, NetError::InviteRefused { node } if node == dialler.node()), "{told:?}");
            }
        }
    }
}
