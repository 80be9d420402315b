//! Fetching the key sets of token issuers, from files and from URLs.
//!
//! [`Authority`] says what is due; this fetches it on threads that may block, and hands it over. What a server answers is
//! nobody's word yet: it has five seconds and 256 KiB, and may not send us elsewhere.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use crate::auth::{Authority, KeyRequest, KeySource};
use crate::engine::now_ms;
use crate::limits::tokens as limits;

/// How often is looked what is due.
const PAUSE: Duration = Duration::from_secs(1);

/// Fetches whatever is due, now and from now on, until it is dropped.
pub async fn keep_fetching(authority: Arc<Authority>) {
    let mut wanted = authority.refreshes();
    // Dropped with this future; a fetch under way ends by itself.
    let mut fetches = JoinSet::new();
    loop {
        while let Some(request) = authority.refresh_due(now_ms()) {
            let authority = authority.clone();
            fetches.spawn_blocking(move || fetch_for(&authority, &request));
        }
        tokio::select! {
            Some(_) = fetches.join_next() => {}
            _ = wanted.changed() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Fetches whatever is due now, one after the other; returns when it is there, or cannot be had. It blocks.
pub fn fetch_due(authority: &Authority) {
    while let Some(request) = authority.refresh_due(now_ms()) {
        fetch_for(authority, &request);
    }
}

fn fetch_for(authority: &Authority, request: &KeyRequest) {
    let again = authority.is_failing(&request.issuer);
    let fetched = fetch(&request.source);
    let taken = match &fetched {
        Ok(bytes) => authority.take_keys(&request.issuer, bytes, now_ms()).map_err(|error| error.to_string()),
        Err(why) => {
            authority.keys_failed(&request.issuer);
            Err(why.clone())
        }
    };
    let Err(why) = taken else { return };
    if again {
        tracing::debug!(issuer = request.issuer, why, "the key set is still not renewed");
    } else {
        tracing::warn!(
            issuer = request.issuer,
            why,
            "the key set is not renewed; the one from before is used for a day"
        );
    }
}

/// Fetches one key set. It blocks, five seconds at most.
///
/// # Errors
/// Why it cannot be had.
pub fn fetch(source: &KeySource) -> Result<Vec<u8>, String> {
    match source {
        KeySource::File(path) => read(path),
        KeySource::Url(url) => get(url),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let fault = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    // Before it is opened: opening a pipe would wait for whoever writes into it.
    if !std::fs::metadata(path).map_err(fault)?.is_file() {
        return Err(format!("{} is not a regular file", path.display()));
    }
    bounded(File::open(path).map_err(fault)?).map_err(fault)
}

/// One byte more than a key set may have is enough to know that it is none.
fn bounded(reader: impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limits::KEY_SET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn get(url: &str) -> Result<Vec<u8>, String> {
    let plain = url.starts_with("http://");
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::WebPki)
        .unversioned_rustls_crypto_provider(crate::net::provider())
        .build();
    let mut config = Agent::config_builder()
        .tls_config(tls)
        .https_only(!plain)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        .timeout_global(Some(Duration::from_millis(limits::FETCH_MS)))
        .user_agent("tidelog");
    if plain {
        // A server on this machine is not asked for through another.
        config = config.proxy(None);
    }
    let fault = |error: ureq::Error| format!("cannot fetch {url}: {error}");
    let mut response = Agent::from(config.build()).get(url).call().map_err(fault)?;
    let status = response.status().as_u16();
    if status != 200 {
        let elsewhere = if (300..400).contains(&status) { "; give the address that it leads to" } else { "" };
        return Err(format!("cannot fetch {url}: the server answers with {status}{elsewhere}"));
    }
    bounded(response.body_mut().as_reader()).map_err(|error| format!("cannot fetch {url}: {error}"))
}
