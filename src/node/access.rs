//! Who may do what on a node: how that is set up, and rules that are read again when their file changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;

use super::command::{CommandError, Context, Exit};
use super::keys;
use crate::access::{Access, AccessOptions, Admittance};
use crate::auth::{Authority, AuthorityOptions, Issuer};
use crate::net::Links;
use crate::rules::Rules;
use crate::sync::wire::{TOKEN_BYTES_MAX, Token};

/// Who may do what on a node. By default anybody may do everything.
#[derive(Debug, Clone, Default)]
pub struct AccessConfig {
    /// Whoever comes must prove who he is.
    pub authenticates: bool,
    /// The issuers whose tokens are taken beside the node's own.
    pub issuers: Option<PathBuf>,
    /// The file of the rules.
    pub rules: Option<PathBuf>,
}

/// No more than this is read of a file of rules, which may hold less.
const READ_MAX: u64 = 1 << 20;
/// How often the file of the rules is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl AccessConfig {
    /// Whether there is anything that somebody might not do.
    pub(super) fn restricts(&self) -> bool {
        self.authenticates || self.rules.is_some()
    }

    /// Reads the rules, where there are some.
    pub(super) fn read_rules(&self) -> Result<Option<Rules>, CommandError> {
        self.rules.as_deref().map(read).transpose()
    }

    /// Reads the issuers, where there are some.
    pub(super) fn read_issuers(&self) -> Result<Vec<Issuer>, CommandError> {
        Ok(self.issuers.as_deref().map(Issuer::read_file).transpose()?.unwrap_or_default())
    }

    /// Sets access up. Key sets are fetched before anybody is let in, as far as they can be had.
    pub(super) async fn open(
        &self,
        context: &Context,
        rules: Option<Rules>,
        issuers: Vec<Issuer>,
    ) -> Result<Access, CommandError> {
        let (database, directory) = (context.database.clone(), context.peers.directory().to_owned());
        let admittance = if self.authenticates { Admittance::Proven } else { Admittance::Anybody };
        let mut authority = None;
        if self.restricts() {
            let options = AuthorityOptions { directory, node: database.node(), issuers };
            let made = Arc::new(Authority::open(options)?);
            context.set_authority(made.clone());
            let fetching = made.clone();
            // What cannot be had now is asked for again; until then its tokens are not accepted.
            let _ = tokio::task::spawn_blocking(move || keys::fetch_due(&fetching)).await;
            authority = Some(made);
        }
        Ok(Access::new(database, AccessOptions { admittance, authority, rules }))
    }

    /// Keeps it up to date from now on: key sets are fetched when they are due, and the rules read again whenever their
    /// file changes. Dropped, it ends.
    pub(super) fn keep(&self, access: &Access, context: &Context) -> JoinSet<()> {
        let mut keeping = JoinSet::new();
        if self.restricts()
            && let Ok(authority) = context.authority()
        {
            keeping.spawn(keys::keep_fetching(authority));
        }
        keeping.spawn(access.follow(context.database.changed_documents()));
        if let Some(path) = self.rules.clone() {
            keeping.spawn(watch(path, access.clone()));
        }
        keeping
    }
}

/// Reads the rules again whenever their file changes. Those that cannot be read replace nothing.
async fn watch(path: PathBuf, access: Access) {
    let file = path.clone();
    let take = move |found: Result<Rules, CommandError>| match found {
        Ok(rules) if access.rules().is_some_and(|before| before.digest() == rules.digest()) => {}
        Ok(rules) => {
            access.set_rules(rules);
            tracing::info!(file = %file.display(), "other rules are in force");
        }
        Err(error) => {
            tracing::error!(file = %file.display(), %error, "rules that cannot be read replace nothing");
        }
    };
    follow_file(path, read, take).await;
}

/// Reads a file again whenever it changes, and gives what was read.
async fn follow_file<T: Send + 'static>(
    path: PathBuf,
    read: fn(&Path) -> Result<T, CommandError>,
    mut take: impl FnMut(Result<T, CommandError>),
) {
    let mut seen = stamp(&path);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        let (file, before) = (path.clone(), seen);
        let look = move || {
            let now = stamp(&file);
            (now, (now != before && now.is_some()).then(|| read(&file)))
        };
        let Ok((now, found)) = tokio::task::spawn_blocking(look).await else { return };
        seen = now;
        found.into_iter().for_each(&mut take);
    }
}

/// Reads the token that says to other nodes who our user is.
pub(super) fn read_token(path: &Path) -> Result<Token, CommandError> {
    let text = read_text(path, TOKEN_BYTES_MAX as u64 + 2)?;
    let token = text.trim();
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX || token.bytes().any(|byte| !byte.is_ascii_graphic()) {
        let why = format!("{} does not hold a token: one line, at most {TOKEN_BYTES_MAX} bytes", path.display());
        return Err(CommandError::new("E0119", Exit::Usage, why).fix("`tidelog token new --user NAME -q` makes one"));
    }
    Ok(Token(token.to_owned()))
}

/// Shows the token again whenever its file changes. One that cannot be read replaces nothing.
pub(super) async fn follow_token(path: PathBuf, links: Links) {
    let file = path.clone();
    let take = move |found| match found {
        Ok(token) => match links.set_token(token) {
            Ok(()) => tracing::info!(file = %file.display(), "another token is shown"),
            Err(error) => tracing::error!(%error, "the token is not shown"),
        },
        Err(error) => {
            tracing::error!(file = %file.display(), %error, "a token that cannot be read replaces nothing");
        }
    };
    follow_file(path, read_token, take).await;
}

/// What changes when a file does.
fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(path: &Path) -> Result<Rules, CommandError> {
    let text = read_text(path, READ_MAX)?;
    Rules::parse(&path.display().to_string(), &text).map_err(|error| {
        CommandError::new("E0210", Exit::Usage, error.to_string())
            .fix("mend the rules; `tidelog rules check` says the same")
    })
}

fn read_text(path: &Path, max: u64) -> Result<String, CommandError> {
    use std::io::Read as _;
    let failed = |error| CommandError::file("read", path, &error);
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(max).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}
