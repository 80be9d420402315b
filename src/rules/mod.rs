//! Security rules: who may read and write which document, in Firestore's `match`/`allow` form, with CEL's expressions.
//!
//! A text becomes [`Rules`] once ([`Rules::parse`]), and those decide about [`Request`]s ([`Rules::decide`]) without IO,
//! clock or randomness, within a budget. What a decision has to know is said beforehand ([`Rules::needs`]), and why it
//! went as it did afterwards ([`Rules::explain`]).
//!
//! ```
//! # fn main() -> Result<(), tidelog::rules::RulesError> {
//! use tidelog::rules::{Auth, Operation, Request, Rules, Value};
//!
//! let rules = Rules::parse(
//!     "rules.tidelog",
//!     "match /notes/{id} { allow update: if request.auth.uid == resource.data.owner; }",
//! )?;
//! let ann = Auth::from_json("ann", &serde_json::json!({}));
//! let note = Value::from_json(&serde_json::json!({ "owner": "ann" }));
//! let request = Request { auth: Some(&ann), before: Some(&note), ..Request::new(Operation::Update, "notes", "n1") };
//! assert!(rules.decide(&request).allowed);
//! # Ok(())
//! # }
//! ```
//!
//! From the text to the decision: `lexer`, `expression` and `parser` make the tree in `ast`; `compile` resolves names and,
//! with `calls`, writes functions out, which gives `program`; `needs` reads off that what can be looked at; `machine` evaluates it, with
//! `operators` and `functions`; `decide` picks the `allow`s that matter.

mod ast;
mod calls;
mod compile;
mod decide;
mod document_json;
mod explain;
mod expression;
mod functions;
mod lexer;
mod machine;
mod needs;
mod operators;
mod parser;
mod problem;
mod program;
mod request;
mod time;
mod value;

#[cfg(test)]
mod tests;

pub use decide::{AllowInfo, FunctionInfo, Rules};
pub use explain::{AllowTrace, Explanation, Outcome, TraceNode};
pub use problem::{Problem, RulesError, nearest};
pub use request::{Auth, ChangeFacts, Data, Decision, Documents, Fields, Needs, Operation, Request, Why};
pub use value::Value;
