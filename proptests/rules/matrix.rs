//! Rules, principals, documents, operations and paths drawn at random, decided twice.

use std::collections::BTreeMap;

use cel::Program;
use tidelog::rules::Rules;

use super::reference::{Allow, Block, Segment, allowed, context};
use super::world::{Case, Others, Random, others};

const RULE_SETS: usize = 420;
const CASES: usize = 500;
const DECISIONS_MIN: usize = 200_000;

/// What an `allow` is for, and which operations that is.
const ALLOWED: [(&str, &[&str]); 6] = [
    ("read", &["get", "list"]),
    ("write", &["create", "update", "delete"]),
    ("get, update", &["get", "update"]),
    ("list, presence", &["list", "presence"]),
    ("create, presence", &["create", "presence"]),
    ("delete", &["delete"]),
];

/// Operators that must be seen true and false a hundred times each, at the root of a condition or right below it.
const OPERATORS: [&str; 33] = [
    "&&",
    "||",
    "!",
    "?:",
    "==",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "in list",
    "in map",
    "+",
    "-",
    "*",
    "/",
    "%",
    "negate",
    "size",
    "has",
    "is",
    "startsWith",
    "endsWith",
    "contains",
    "matches",
    "hasOnly",
    "hasAny",
    "hasAll",
    "within",
    "index",
    "get",
    "exists",
    "diff",
];

/// An expression as the rules are given it, and as the reference is.
#[derive(Clone)]
struct Pair {
    ours: String,
    theirs: String,
}

fn pair(ours: &str, theirs: &str) -> Pair {
    Pair { ours: ours.to_owned(), theirs: theirs.to_owned() }
}

fn same(text: &str) -> Pair {
    pair(text, text)
}

fn joined(before: &str, a: &Pair, between: &str, b: &Pair, after: &str) -> Pair {
    let join = |a: &str, b: &str| format!("{before}{a}{between}{b}{after}");
    Pair { ours: join(&a.ours, &b.ours), theirs: join(&a.theirs, &b.theirs) }
}

fn wrapped(before: &str, a: &Pair, after: &str) -> Pair {
    joined(before, a, "", &same(""), after)
}

/// Draws expressions.
struct Maker<'r> {
    random: &'r mut Random,
    /// Names of the path, if any.
    names: Vec<&'static str>,
    /// Functions so far: name, how many parameters, and the text with `\u{1}0\u{1}` for the first of them.
    functions: Vec<(String, usize, String)>,
}

impl Maker<'_> {
    fn text(&mut self) -> Pair {
        let mut facts = vec![
            "request.auth.uid",
            "request.auth.token.role",
            "resource.data.owner",
            "resource.data.title",
            "request.resource.data.owner",
            "request.method",
            "request.path",
            "resource.data.meta.room",
            "resource.id",
            "request.change.author",
            "resource['data'].owner",
            "'ann'",
            "'admin'",
            "'lobby'",
            "\"Tides\"",
            "'tide'",
            "''",
            "resource.data.mixed",
            "string(resource.data.n)",
        ];
        facts.extend(&self.names);
        let fact = same(self.random.word(&facts));
        if self.random.below(8) > 0 { fact } else { joined("(", &fact, " + ", &same("'n'"), ")") }
    }

    fn number(&mut self) -> Pair {
        let fact = self.random.pick(&[
            "resource.data.n",
            "request.resource.data.n",
            "request.auth.token.level",
            "resource.data.meta.a",
            "0",
            "1",
            "2",
            "-1",
            "resource.data.numbers[0]",
            "size(resource.data.editors)",
            "resource.data.title.size()",
            "int('2')",
            "resource.data.mixed",
            "int(resource.data.x)",
        ]);
        same(fact)
    }

    fn list(&mut self) -> Pair {
        let fact = self.random.pick(&[
            "resource.data.editors",
            "request.auth.token.rooms",
            "request.change.paths",
            "request.change.keys",
            "['ann', 'bob']",
            "['ann', 'title', 'meta', 'lobby', 'hall']",
            "[request.auth.uid, 'eve']",
            "[]",
            "resource.data.meta.keys()",
            "request.resource.data.editors",
            "['title'] + ['meta', 'n']",
        ]);
        same(fact)
    }

    fn map(&mut self) -> Pair {
        let maps = [
            "resource.data",
            "resource.data.meta",
            "request.resource.data",
            "{'a': 1, 'ann': 2}",
            "request.auth.token",
        ];
        same(self.random.word(&maps))
    }

    /// A condition that is there to try one operator.
    fn featured(&mut self, operator: &'static str, depth: usize) -> Pair {
        let arithmetic = |maker: &mut Self, sign: &str| {
            let (a, b, c) = (maker.number(), maker.number(), maker.number());
            let compare = *maker.random.pick(&["==", "<", ">", "<="]);
            joined("", &joined("(", &a, &format!(" {sign} "), &b, ")"), &format!(" {compare} "), &c, "")
        };
        match operator {
            "&&" | "||" => {
                let (a, b) = (self.condition(depth), self.condition(depth));
                let two = joined("(", &a, &format!(" {operator} "), &b, ")");
                if self.random.below(2) == 0 {
                    return two;
                }
                let c = self.condition(depth);
                joined("(", &two, &format!(" {operator} "), &c, ")")
            }
            "!" => wrapped("!(", &self.condition(depth), ")"),
            "?:" => {
                let (a, b, c) = (self.condition(depth), self.condition(depth), self.condition(depth));
                joined("(", &joined("", &a, " ? ", &b, ""), " : ", &c, ")")
            }
            "==" | "!=" => {
                let (a, b) = match self.random.below(5) {
                    0 => (self.number(), self.number()),
                    1 => (self.list(), self.list()),
                    2 => (self.map(), self.map()),
                    3 => (
                        same(self.random.word(&["resource", "request.resource", "request.auth", "request.change"])),
                        same("null"),
                    ),
                    _ => (self.text(), self.text()),
                };
                joined("(", &a, &format!(" {operator} "), &b, ")")
            }
            "<" | "<=" | ">" | ">=" => {
                let (a, b) = match self.random.below(3) {
                    0 => (same("resource.data.x"), self.number()),
                    1 => (self.text(), self.text()),
                    _ => (self.number(), self.number()),
                };
                joined("(", &a, &format!(" {operator} "), &b, ")")
            }
            "in list" => joined("(", &self.text(), " in ", &self.list(), ")"),
            "in map" => joined(
                "(",
                &same(self.random.word(&["'a'", "'title'", "'owner'", "request.auth.uid"])),
                " in ",
                &self.map(),
                ")",
            ),
            "+" | "-" | "*" | "/" | "%" => arithmetic(self, operator),
            "negate" => joined("(", &wrapped("-(", &self.number(), ")"), " < ", &self.number(), ")"),
            "size" => {
                let of = match self.random.below(3) {
                    0 => self.text(),
                    1 => self.list(),
                    _ => self.map(),
                };
                joined("", &wrapped("size(", &of, ")"), " > ", &self.number(), "")
            }
            "has" => {
                let places = [
                    "resource.data.title",
                    "resource.data.open",
                    "request.auth.token.role",
                    "request.resource.data.owner",
                    "resource.data.meta.room",
                    "resource.data.meta.gone",
                    "request.auth.token.level",
                    "resource.data.mixed",
                    "resource.data.gone",
                ];
                wrapped("has(", &same(self.random.word(&places)), ")")
            }
            "is" => {
                let (name, test) = *self.random.pick(&[
                    ("string", "type(#) == string"),
                    ("int", "type(#) == int"),
                    ("float", "type(#) == double"),
                    ("number", "(type(#) == int || type(#) == double)"),
                    ("bool", "type(#) == bool"),
                    ("list", "type(#) == list"),
                    ("map", "type(#) == map"),
                    ("null", "type(#) == null_type"),
                ]);
                let of = match self.random.below(4) {
                    0 => self.number(),
                    1 => self.list(),
                    2 => same("resource.data.mixed"),
                    _ => self.text(),
                };
                Pair {
                    ours: format!("({} is {name})", of.ours),
                    theirs: format!("({})", test.replace('#', &of.theirs)),
                }
            }
            "startsWith" | "endsWith" | "contains" => {
                let part = same(self.random.word(&["'ti'", "'T'", "'e'", "''", "'n'", "request.auth.uid", "'d'"]));
                joined("", &self.text(), &format!(".{operator}("), &part, ")")
            }
            "matches" => {
                let pattern = self.random.word(&["^[a-z]+$", "ti(de|n).*", "^$", ".*[A-Z].*", "n.*b?|x", "[a-z]"]);
                // Ours holds the whole text against it, as Firestore's does.
                let pattern = Pair { ours: format!("'{pattern}'"), theirs: format!("'^(?:{pattern})$'") };
                joined("", &self.text(), ".matches(", &pattern, ")")
            }
            "hasOnly" | "hasAny" | "hasAll" => {
                joined("", &wrapped("(", &self.list(), ")"), &format!(".{operator}("), &self.list(), ")")
            }
            "within" => {
                let prefixes = same(self.random.word(&[
                    "['title', 'meta']",
                    "['meta', 'editors', 'n', 'title']",
                    "['meta/a']",
                    "[]",
                    "['n', 'title', 'editors']",
                ]));
                let paths = same(self.random.word(&[
                    "request.change.paths",
                    "request.change.keys",
                    "['meta/a', 'n']",
                    "['metals']",
                ]));
                joined("", &paths, ".within(", &prefixes, ")")
            }
            "index" => same(self.random.word(&[
                "resource.data.editors[0] == request.auth.uid",
                "resource.data.numbers[1] > 1",
                "resource.data['owner'] == 'ann'",
                "[true, resource.data.open][request.auth.token.level]",
                "resource.data[resource.data.meta.room == 'lobby' ? 'owner' : 'title'] == 'ann'",
                "request['auth'].uid == resource.id",
            ])),
            "get" => match self.random.below(3) {
                0 => {
                    let at = self.text();
                    Pair {
                        ours: format!("get(/users/$({})).data.level > 1", at.ours),
                        theirs: format!("documentAt('/users/' + {}).data.level > 1", at.theirs),
                    }
                }
                1 => pair(
                    "get('/users/' + request.auth.uid).data.admin",
                    "documentAt('/users/' + request.auth.uid).data.admin",
                ),
                _ => pair(
                    "resource.data.get('title', 'ann') == 'ann' || resource.data.get('gone', 1) == 2",
                    "valueOr(resource.data, 'title', 'ann') == 'ann' || valueOr(resource.data, 'gone', 1) == 2",
                ),
            },
            "exists" => {
                let at = self.text();
                Pair {
                    ours: format!("exists(/users/$({}))", at.ours),
                    theirs: format!("(documentAt('/users/' + {}) != null)", at.theirs),
                }
            }
            _ => {
                let keys = self.list();
                let check = *self.random.pick(&["hasOnly", "hasAny", "hasAll"]);
                let keys =
                    if self.random.below(2) == 0 { same("['title', 'n', 'owner', 'x', 'meta', 'open']") } else { keys };
                Pair {
                    ours: format!("request.resource.data.diff(resource.data).affectedKeys().{check}({})", keys.ours),
                    theirs: format!("affected(request.resource.data, resource.data).{check}({})", keys.theirs),
                }
            }
        }
    }

    fn condition(&mut self, depth: usize) -> Pair {
        match self.random.below(10) {
            0 => same(self.random.word(&["true", "resource.data.open", "request.auth.token.verified", "false"])),
            1 | 2 if !self.functions.is_empty() => self.call(),
            _ => {
                let operators = if depth == 0 { &OPERATORS[4..] } else { &OPERATORS[..] };
                let operator = *self.random.pick(operators);
                wrapped("(", &self.featured(operator, depth.saturating_sub(1)), ")")
            }
        }
    }

    /// A call: a call for us, the text of the body for the reference.
    fn call(&mut self) -> Pair {
        let (name, count, body) = self.random.pick(&self.functions).clone();
        let arguments: Vec<Pair> = (0..count)
            .map(|n| if n == 0 { same(self.random.word(&["resource", "request.resource"])) } else { self.text() })
            .collect();
        let ours = arguments.iter().map(|argument| argument.ours.as_str()).collect::<Vec<_>>().join(", ");
        let mut theirs = body;
        for (n, argument) in arguments.iter().enumerate() {
            theirs = theirs.replace(&format!("\u{1}{n}\u{1}"), &format!("({})", argument.theirs));
        }
        Pair { ours: format!("{name}({ours})"), theirs: format!("({theirs})") }
    }

    /// A function with a document and a text as its parameters, and a name of its own within.
    fn function(&mut self) -> String {
        let name = format!("f{}", self.functions.len());
        let let_value = same(self.random.word(&["#0.data.owner", "#0.data.title + #1", "#0.data.mixed", "#0"]));
        let result = self.random.word(&[
            "mine == #1 || #1 in #0.data.editors",
            "#0 != null && #0.data.open && mine != #1",
            "mine == null || #0.data.n > 0",
            "#1 in ['ann', 'eve'] && has(#0.data.title)",
            "(mine == #1) == #0.data.open",
            "!(mine == 'ann') || #1.startsWith('a')",
        ]);
        let inner = self.condition(0);
        let ours = |text: &str| text.replace("#0", "doc").replace("#1", "word");
        let source = format!(
            "function {name}(doc, word) {{ let mine = {}; let other = {}; return ({}) && (other || mine == word); }}\n",
            ours(&let_value.ours),
            inner.ours,
            ours(result)
        );
        let theirs = |text: &str| text.replace("#0", "\u{1}0\u{1}").replace("#1", "\u{1}1\u{1}");
        let mine = format!("({})", theirs(&let_value.theirs));
        let body = format!("({}) && (({}) || mine == #1)", result, inner.theirs).replace("mine", &mine);
        self.functions.push((name, 2, theirs(&body)));
        source
    }
}

/// Rules as text and as the reference has them.
fn rule_set(random: &mut Random) -> (String, Vec<Block>) {
    const PATHS: [(&[Segment], &str, &[&str]); 6] = [
        (&[Segment::Literal("notes"), Segment::One("id")], "/notes/{id}", &["id"]),
        (&[Segment::Literal("rooms"), Segment::One("id")], "/rooms/{id}", &["id"]),
        (&[Segment::One("collection"), Segment::One("id")], "/{collection}/{id}", &["collection", "id"]),
        (&[Segment::Rest("rest")], "/{rest=**}", &["rest"]),
        (&[Segment::Literal("users"), Segment::Literal("ann")], "/users/ann", &[]),
        (&[Segment::One("collection"), Segment::Rest("id")], "/{collection}/{id=**}", &["collection", "id"]),
    ];
    let mut maker = Maker { random, names: Vec::new(), functions: Vec::new() };
    let mut source = String::new();
    for _ in 0..2 {
        source.push_str(&maker.function());
    }
    let mut blocks = Vec::new();
    for _ in 0..7 {
        let (segments, text, names) = *maker.random.pick(&PATHS);
        // One in three is written as blocks within each other.
        let is_nested = segments.len() == 2 && maker.random.below(3) == 0;
        maker.names = names.to_vec();
        let (mut inner, mut allows) = (String::new(), Vec::new());
        for _ in 0..2 {
            let (word, operations) = *maker.random.pick(&ALLOWED);
            if maker.random.below(60) == 0 {
                inner.push_str(&format!("allow {word};\n"));
                allows.push(Allow { operations: operations.to_vec(), condition: None, tags: Vec::new() });
                continue;
            }
            let operator = *maker.random.pick(&OPERATORS);
            let condition = maker.featured(operator, 2);
            inner.push_str(&format!("allow {word}: if {};\n", condition.ours));
            let program = Program::compile(&condition.theirs);
            let program =
                program.unwrap_or_else(|error| panic!("the reference cannot read {}: {error}", condition.theirs));
            allows.push(Allow { operations: operations.to_vec(), condition: Some(program), tags: vec![operator] });
        }
        let block = |segments: &[Segment], allows, blocks| Block { segments: segments.to_vec(), allows, blocks };
        if is_nested {
            let at = text[1..].find('/').unwrap() + 1;
            source.push_str(&format!("match {} {{ match {} {{\n{inner}}} }}\n", &text[..at], &text[at..]));
            blocks.push(block(&segments[..1], vec![], vec![block(&segments[1..], allows, vec![])]));
        } else {
            source.push_str(&format!("match {text} {{\n{inner}}}\n"));
            blocks.push(block(segments, allows, vec![]));
        }
    }
    (source, blocks)
}

#[test]
fn every_decision_is_the_reference_s() {
    let mut random = Random(0x7469_6465);
    let others = Others(others());
    let cases: Vec<Case> = (0..CASES).map(|_| Case::draw(&mut random)).collect();
    let contexts: Vec<_> = cases.iter().map(|case| context(case, &others.0)).collect();
    let ready: Vec<_> = cases.iter().map(Case::ready).collect();
    let mut seen: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let (mut decisions, mut allowed_count) = (0_usize, 0_usize);
    for _ in 0..RULE_SETS {
        let (source, blocks) = rule_set(&mut random);
        let rules = Rules::parse("rules.tidelog", &source).unwrap_or_else(|error| panic!("{error}\n{source}"));
        for ((case, context), ready) in cases.iter().zip(&contexts).zip(&ready) {
            let request = case.request(ready, &others);
            let expected = allowed(&blocks, case, context, &mut |allow, outcome| {
                for tag in &allow.tags {
                    let (yes, no) = seen.entry(*tag).or_default();
                    match outcome {
                        Some(true) => *yes += 1,
                        Some(false) => *no += 1,
                        None => {}
                    }
                }
            });
            let decision = rules.decide(&request);
            decisions += 1;
            allowed_count += usize::from(expected);
            assert!(
                decision.allowed == expected,
                "{request:?}: the reference says {expected}\n{}\n{:#?}\n{source}",
                rules.explain(&request),
                case.facts()
            );
        }
    }
    let share = allowed_count * 100 / decisions;
    println!("{decisions} decisions, {share} % allowed; each operator true and false: {seen:?}");
    assert!(decisions >= DECISIONS_MIN, "{decisions} decisions");
    assert!((30..=70).contains(&share), "{share} % are allowed");
    for operator in OPERATORS {
        let (yes, no) = seen.get(operator).copied().unwrap_or_default();
        assert!(yes >= 100 && no >= 100, "{operator} was true {yes} times and false {no} times");
    }
}
