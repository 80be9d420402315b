//! Tokens on the screen.

use serde_json::{Map, Value, json};
use tidelog::node::Session;
use tidelog::node::command::{CommandError, Request, TokenRevocation};

use super::arguments::Token;
use super::commands::{json_or_word, one, rows, show, text_of};
use super::screen::Screen;
use super::table::{Column, cell, time};

const COLUMNS: [Column; 6] = [
    ("ID", |row| cell(&row["id"])),
    ("USER", |row| cell(&row["user"])),
    ("ROLE", |row| cell(&row["role"])),
    ("ISSUED", |row| milliseconds(&row["issued_ms"])),
    ("EXPIRES", |row| milliseconds(&row["expires_ms"])),
    ("REVOKED", |row| milliseconds(&row["revoked_ms"])),
];

fn milliseconds(value: &Value) -> String {
    time(&value.as_u64().map_or(Value::Null, |ms| json!(ms / 1000)))
}

pub(super) fn token(session: &mut Session, command: Token, screen: &Screen) -> Result<(), CommandError> {
    match command {
        Token::New { user, role, ttl, claim } => {
            let claims = claims(&claim)?;
            let row = one(session, Request::TokenNew { user, role, ttl_ms: Some(ttl), claims })?;
            show(screen, &row, "token", &text_of(&row, "token"))?;
            if !screen.quiet && !screen.json {
                // Worth knowing without a terminal too: nobody can look the token up again.
                screen.warn(&format!(
                    "  This is the only time it is shown. Give it as `Authorization: Bearer <token>`, or in the address as \
                     ?access_token=<token>\n  expires {} UTC; end it earlier with: tidelog token revoke {}",
                    milliseconds(&row["expires_ms"]),
                    text_of(&row, "id"),
                ));
            }
            Ok(())
        }
        Token::Ls => {
            let count = rows(session, Request::TokenList, screen, "id", &COLUMNS)?;
            screen.next(if count == 0 { "tidelog token new --user <name>" } else { "tidelog token revoke <id>" });
            Ok(())
        }
        Token::Revoke { id, user, role } => {
            let what = match (id, user, role) {
                (Some(id), _, _) => TokenRevocation::Token(id),
                (_, Some(user), _) => TokenRevocation::User(user),
                (_, _, Some(role)) => TokenRevocation::Role(role),
                (None, None, None) => {
                    return Err(CommandError::usage("say what is revoked").fix("give an id, --user or --role"));
                }
            };
            let row = one(session, Request::TokenRevoke { what })?;
            let text = match text_of(&row, "revoked").as_str() {
                "token" if row["tokens"] == json!(0) => format!("{} was revoked before", text_of(&row, "name")),
                "token" => format!("{} is revoked", text_of(&row, "name")),
                kind => format!(
                    "every token of the {kind} {} from before now is revoked, {} of them listed here",
                    cell(&row["name"]),
                    row["tokens"]
                ),
            };
            show(screen, &row, "name", &text)?;
            screen.next("tidelog token ls");
            Ok(())
        }
    }
}

/// `name=value`, the value as JSON or a bare word.
fn claims(given: &[String]) -> Result<Map<String, Value>, CommandError> {
    let mut claims = Map::new();
    for claim in given {
        let Some((name, value)) = claim.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(CommandError::usage("a claim is name=value").fix("write it as --claim team=red"));
        };
        if claims.insert(name.to_owned(), json_or_word(value)?).is_some() {
            return Err(CommandError::usage(format!("the claim {name:?} is given twice")).fix("give it once"));
        }
    }
    Ok(claims)
}

/// How long a token is of use, as 45s, 90m, 12h or 30d, in milliseconds.
pub(super) fn lifetime(text: &str) -> Result<u64, String> {
    let hint = || "give a time as 45s, 90m, 12h or 30d".to_owned();
    let unit = text.chars().next_back().ok_or_else(hint)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(hint()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| hint())?;
    number.checked_mul(seconds * 1000).ok_or_else(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_has_a_unit() {
        assert_eq!(lifetime("45s"), Ok(45_000));
        assert_eq!(lifetime("90m"), Ok(5_400_000));
        assert_eq!(lifetime("12h"), Ok(43_200_000));
        assert_eq!(lifetime("30d"), Ok(2_592_000_000));
        for text in ["", "d", "30", "-1d", "1.5h", "30 d", "99999999999999999d", "1ü"] {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }

    #[test]
    fn claims_are_json_or_words() {
        let given = ["team=red", "level=3", "rooms=[\"a\"]", "note=a=b"].map(str::to_owned);
        assert_eq!(json!(claims(&given).unwrap()), json!({ "team": "red", "level": 3, "rooms": ["a"], "note": "a=b" }));
        for wrong in [&["team"][..], &["=x"], &["a=1", "a=2"], &["a={"]] {
            assert!(claims(&wrong.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).is_err());
        }
    }
}
