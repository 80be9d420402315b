//! Commands on tokens.

use serde_json::{Map, Value, json};

use super::{CommandError, Context, Exit, Output, TokenRevocation};
use crate::auth::{AuthError, IssuedToken, Revocation, TokenOrder};
use crate::engine::now_ms;

pub(super) fn new(
    context: &Context,
    uid: String,
    role: Option<String>,
    ttl_ms: Option<u64>,
    claims: Map<String, Value>,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let mut order = TokenOrder { role, claims, ..TokenOrder::new(uid) };
    order.ttl_ms = ttl_ms.unwrap_or(order.ttl_ms);
    let (token, issued) = context.authority()?.issue(order, now_ms())?;
    let mut row = row_of(&issued);
    row["token"] = json!(token);
    output.row(row)?;
    Ok(Value::Null)
}

pub(super) fn list(context: &Context, output: &mut dyn Output) -> Result<Value, CommandError> {
    for issued in context.authority()?.issued() {
        output.row(row_of(&issued))?;
    }
    Ok(Value::Null)
}

fn row_of(issued: &IssuedToken) -> Value {
    json!({
        "id": issued.id,
        "user": issued.uid,
        "role": issued.role,
        "issued_ms": issued.issued_ms,
        "expires_ms": issued.expires_ms,
        "revoked_ms": issued.revoked_ms,
    })
}

pub(super) fn revoke(context: &Context, what: TokenRevocation, output: &mut dyn Output) -> Result<Value, CommandError> {
    let (kind, name) = match &what {
        TokenRevocation::Token(name) => ("token", name.clone()),
        TokenRevocation::User(name) => ("user", name.clone()),
        TokenRevocation::Role(name) => ("role", name.clone()),
    };
    let revocation = match what {
        TokenRevocation::Token(id) => Revocation::Token(id),
        TokenRevocation::User(principal) => Revocation::User(principal),
        TokenRevocation::Role(role) => Revocation::Role(role),
    };
    let reached = context.authority()?.revoke(revocation, now_ms())?;
    output.row(json!({ "revoked": kind, "name": name, "tokens": reached }))?;
    Ok(Value::Null)
}

impl From<AuthError> for CommandError {
    fn from(error: AuthError) -> Self {
        let exit = match &error {
            AuthError::File { path, source, doing } => return Self::file(doing, path, source),
            AuthError::KeyFile { .. } => Exit::Denied,
            AuthError::List { .. } => Exit::Corruption,
            AuthError::Order(_) | AuthError::Issuers { .. } => Exit::Usage,
            AuthError::NoSuchToken => Exit::NotFound,
            AuthError::Full(..) => Exit::Conflict,
            AuthError::KeySet { .. } | AuthError::Signing(_) => Exit::Failed,
        };
        Self::new(error.code(), exit, error.to_string()).fix(error.remedy())
    }
}
