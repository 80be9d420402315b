//! Carrying out a command.

use serde_json::Value;

use super::{
    Cancel, CommandError, Context, Output, Request, audit, documents, peers, queries, rejected, status, tokens, watch,
};
use crate::node::nodefs;

/// Carries out `request` and returns its summary. It blocks, and ends early when `cancel` says so. It must be called
/// within a tokio runtime, on a thread that may block.
///
/// # Errors
/// [`CommandError`]. Unless it says otherwise, nothing was written then.
pub fn execute(
    context: &Context,
    request: Request,
    cancel: &Cancel,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let database = &context.database;
    match request {
        Request::List { collection: None } => documents::collections(database, cancel, output),
        Request::List { collection: Some(name) } => documents::list(database, &name, cancel, output),
        Request::Read { id, at } => documents::read(database, &id, at, output),
        Request::Add { collection, name, id, value, must_be_new } => {
            let asked = documents::Asked { name, id, value, must_be_new };
            documents::add(database, &collection, asked, output)
        }
        Request::Set { id, path, value } => documents::set(database, &id, &path, &value, output),
        Request::Replace { id, base, value } => documents::replace(database, &id, &base, &value, output),
        Request::Remove { id } => documents::remove(database, &id, output),
        Request::Restore { id } => documents::restore(database, &id, output),
        Request::Log { id: Some(id), from, limit } => documents::log(database, &id, from, limit, output),
        Request::Log { id: None, from, limit } => watch::log(database, from, limit, output),
        Request::Hashes { id } => documents::hashes(database, &id, output),
        Request::Admit { id, changes, tried } => documents::admit(database, &id, changes, tried),
        Request::Import { collection, rows } => documents::import(database, collection.as_deref(), rows),
        Request::ImportAutomergeRepo { folder, collection } => {
            nodefs::import(database, &folder, collection.as_deref(), cancel, output)
        }
        Request::Watch { target, from, limit, once } => {
            watch::watch(database, target, &from, limit, once, cancel, output)
        }
        Request::Listen { collection, predicate, from, limit, once } => {
            queries::listen(database, &collection, &predicate, &from, limit, once, cancel, output)
        }
        Request::Query { collection, query, predicate } => {
            queries::query(database, &collection, &query, predicate.as_deref(), cancel, output)
        }
        Request::IndexList { collection } => queries::indexes(database, &collection, output),
        Request::IndexAdd { collection, fields } => queries::declare(database, &collection, &fields, output),
        Request::IndexRemove { collection, id } => queries::drop_index(database, &collection, &id, output),
        Request::FeedList => queries::feeds(database, output),
        Request::FeedReset { consumer } => queries::reset_feed(database, &consumer, cancel, output),
        Request::Export { target, format } => documents::export(database, target, format, cancel, output),
        Request::PeerAdd { peer, role } => peers::add(context, &peer, &role, output),
        Request::PeerList => peers::list(context, output),
        Request::PeerRemove { peer } => peers::remove(context, &peer, output),
        Request::Ticket { invite } => peers::ticket(context, invite.as_deref(), output),
        Request::TokenNew { user, role, ttl_ms, claims } => tokens::new(context, user, role, ttl_ms, claims, output),
        Request::TokenList => tokens::list(context, output),
        Request::TokenRevoke { what } => tokens::revoke(context, what, output),
        Request::RejectedList => rejected::list(database, output),
        Request::RejectedResubmit { id, change } => rejected::resubmit(database, &id, change.as_deref(), output),
        Request::RejectedDiscard { id, change } => rejected::discard(database, &id, change.as_deref(), output),
        Request::AuditList { filter } => audit::list(database, filter, cancel, output),
        Request::AuditShow { lsn } => audit::show(database, lsn, cancel, output),
        Request::AuditRules { version } => audit::rules(database, version.as_deref(), output),
        Request::RulesReplay { draft, current, from, collection, limit } => {
            audit::replay(database, &draft, current.as_ref(), from, collection.as_deref(), limit, cancel, output)
        }
        Request::Status => status::status(context, output),
        Request::Verify { deep } => status::verify(database, deep, cancel, output),
    }
}
