//! What went wrong with a request, as RFC 9457 writes it down.

use std::borrow::Cow;

use axum::http::header::{ALLOW, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::document::{PatchError, ViewError};
use crate::error::{Error, QueryError};
use crate::id::{IdError, encode_hex, random_bytes, shortened};
use crate::quota::Busy;

/// Why a request was not done.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    fix: Option<String>,
    /// After which time the same may be asked again.
    retry_after_ms: Option<u64>,
}

const JSON: &str = "application/problem+json";
/// When to ask again where the server itself has enough to do.
const SHORTLY_MS: u64 = 1_000;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), fix: None, retry_after_ms: None }
    }

    pub(super) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// A parameter of the request cannot be understood.
    pub(super) fn parameter(name: &str, value: &str, expected: &str) -> Self {
        let detail = format!("{name}: {:?} is not understood", shortened(value));
        Self::new(StatusCode::BAD_REQUEST, "E0311", detail).fix(format!("give {expected}"))
    }

    /// The body is not JSON.
    pub(super) fn body(why: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "E0312", format!("the body is not taken: {why}"))
    }

    pub(super) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "E0313", "there is nothing at this path")
            .fix("GET /v1/collections lists collections; docs/http.md shows every path")
    }

    pub(super) fn no_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "E0314", "this path does not know this method")
    }

    pub(super) fn origin(origin: &str) -> Self {
        let detail = format!("pages of {} may not use this server", shortened(origin));
        Self::new(StatusCode::FORBIDDEN, "E0315", detail).fix("start the server with --origin and that origin")
    }

    pub(super) fn host(host: &str) -> Self {
        let detail = format!("this server is for this machine alone and not known as {}", shortened(host));
        Self::new(StatusCode::MISDIRECTED_REQUEST, "E0316", detail).fix("ask for localhost, or its address")
    }

    /// Whoever asks did not say who he is, or not credibly.
    pub(super) fn unauthenticated(code: &'static str, why: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, why)
            .fix("send `Authorization: Bearer <token>` with a token that counts")
    }

    /// The token that a stream was opened with does not count any more.
    pub(super) fn left() -> Self {
        Self::unauthenticated("E0205", "the token does not count any more")
    }

    /// Only whoever runs the server may do this.
    pub(super) fn not_admin() -> Self {
        Self::new(StatusCode::FORBIDDEN, "E0203", "not allowed: this is for the role `admin`")
            .fix("bring a token with that role, or use the command line on the server's machine")
    }

    /// Somebody has had as much as he may have for now.
    pub(super) fn busy(busy: &Busy) -> Self {
        let mut problem = Self::new(StatusCode::TOO_MANY_REQUESTS, busy.code(), busy.to_string())
            .fix("ask again later, and less often; who runs the server may allow more (`serve --quotas`)");
        problem.retry_after_ms = Some(busy.retry_after_ms());
        problem
    }

    pub(super) fn slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "E0320", "the request took too long; whether it was done is unknown")
            .fix("look at the document, then send it again")
    }

    pub(super) fn internal(why: &str) -> Self {
        tracing::error!(error = why, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "E0317", "the request failed inside the server")
            .fix("the server's log says more")
    }
}

impl Problem {
    /// What is said of it where the answer has begun already.
    pub(super) fn to_json(&self) -> serde_json::Value {
        json!({ "code": self.code, "detail": self.detail, "fix": self.fix })
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::NotFound(_) | Error::OtherCollection { .. } => StatusCode::NOT_FOUND,
            Error::Deleted(_) | Error::Withheld(_) => StatusCode::GONE,
            Error::Changed { .. } => StatusCode::PRECONDITION_FAILED,
            Error::Patch(error) => match **error {
                PatchError::Malformed(_) | PatchError::NotObject => StatusCode::BAD_REQUEST,
                PatchError::TooMany(_) => StatusCode::PAYLOAD_TOO_LARGE,
                _ => StatusCode::CONFLICT,
            },
            Error::View(ViewError::UnknownHead(_)) => StatusCode::NOT_FOUND,
            Error::View(ViewError::Broken | ViewError::Panicked(_) | ViewError::Unloadable(_)) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Error::View(_) | Error::Change(_) | Error::Refused { .. } | Error::Unappliable { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Error::Denied(_) => StatusCode::FORBIDDEN,
            Error::Id(_) | Error::Application(_) => StatusCode::BAD_REQUEST,
            Error::Query(error) => match **error {
                QueryError::NotReady { .. } | QueryError::TooManyListeners(_) => StatusCode::SERVICE_UNAVAILABLE,
                QueryError::Malformed { .. } => StatusCode::BAD_REQUEST,
                _ => StatusCode::UNPROCESSABLE_ENTITY,
            },
            Error::Busy | Error::ReadOnly(_) | Error::Closed => StatusCode::SERVICE_UNAVAILABLE,
            Error::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(%error, code = error.code(), "a request failed");
        }
        let fix = error.remedy().map(Cow::into_owned);
        let retry_after_ms = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(SHORTLY_MS);
        Self { status, code: error.code(), detail: error.to_string(), fix, retry_after_ms }
    }
}

impl From<IdError> for Problem {
    fn from(error: IdError) -> Self {
        Error::from(error).into()
    }
}

impl Problem {
    /// What is said of it, as JSON, and the request's name in that.
    fn said(&self) -> (serde_json::Value, String) {
        let request = encode_hex(&random_bytes::<8>());
        tracing::debug!(request, status = self.status.as_u16(), code = self.code, why = self.detail, "request refused");
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or_default(),
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
            "request_id": request,
        });
        if let Some(fix) = &self.fix {
            body["fix"] = fix.as_str().into();
        }
        if let Some(retry) = self.retry_after_ms {
            body["retry_after_ms"] = retry.into();
        }
        (body, request)
    }

    /// The whole answer as HTTP/1.1 has it, for a connection that is closed with it.
    pub(super) fn into_text(self) -> String {
        let (body, request) = self.said();
        let body = format!("{body}\n");
        let retry = self.retry_after_ms.unwrap_or(SHORTLY_MS).div_ceil(1000);
        format!(
            "HTTP/1.1 {}\r\nconnection: close\r\ncontent-type: {JSON}\r\nretry-after: {retry}\r\nx-request-id: \
             {request}\r\ncontent-length: {}\r\n\r\n{body}",
            self.status,
            body.len()
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (body, request) = self.said();
        let mut response = (self.status, [(CONTENT_TYPE, JSON)], format!("{body}\n")).into_response();
        let headers = response.headers_mut();
        if let Ok(request) = HeaderValue::from_str(&request) {
            headers.insert(REQUEST_ID, request);
        }
        if let Some(retry) = self.retry_after_ms {
            headers.insert(RETRY_AFTER, HeaderValue::from(retry.div_ceil(1000)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tidelog\""));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.entry(ALLOW).or_insert(HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE"));
        }
        response
    }
}
