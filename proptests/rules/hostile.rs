//! Texts that nobody means well with: an error or a denial, in time, and never a panic.

use std::time::{Duration, Instant};

use tidelog::rules::{Operation, Request, Rules};

use super::world::{Case, Others, Random, others};

const GOOD: &str = include_str!("../../examples/rules.tidelog");

/// Reads a text and, if it is rules, asks them; all of it must be over soon.
fn survive(source: &str, cases: &[Case], others: &Others) -> bool {
    let began = Instant::now();
    let result = Rules::parse("rules.tidelog", source);
    if let Ok(rules) = &result {
        for case in cases {
            let ready = case.ready();
            let request = case.request(&ready, others);
            assert_eq!(rules.decide(&request), rules.decide(&request), "the same answer twice");
            assert_eq!(rules.explain(&request).decision, rules.decide(&request));
        }
    } else if let Err(error) = &result {
        assert!((1..=20).contains(&error.problems.len()));
        assert!(error.problems.iter().all(|problem| problem.line > 0 && problem.column > 0));
        assert!(error.to_string().len() < 64 << 10, "what is told is bounded too");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{} bytes took {:?}", source.len(), began.elapsed());
    result.is_ok()
}

#[test]
fn damaged_rules_never_panic() {
    let others = Others(others());
    let mut random = Random(0x6861_726d);
    let cases: Vec<Case> = (0..4).map(|_| Case::draw(&mut random)).collect();
    assert!(survive(GOOD, &cases, &others), "the example is rules");
    const PIECES: [&str; 36] = [
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        ";",
        ",",
        ".",
        "/",
        "$(",
        "'",
        "\"",
        "\\",
        "match ",
        "allow ",
        "function ",
        "let ",
        "return ",
        "if ",
        "request",
        "resource",
        "get(",
        "exists(/a/b)",
        ".data",
        " in ",
        " is ",
        "&&",
        "||",
        "?",
        ":",
        "0x",
        "1e9",
        "\u{0}",
        "é",
        "/*",
    ];
    let mut read = 0;
    for _ in 0..6000 {
        let mut text = GOOD.to_owned();
        for _ in 0..=random.below(4) {
            let mut from = random.below(text.len());
            while !text.is_char_boundary(from) {
                from -= 1;
            }
            let mut to = (from + random.below(12)).min(text.len());
            while !text.is_char_boundary(to) {
                to -= 1;
            }
            let piece = if random.below(3) == 0 { "" } else { random.word(&PIECES) };
            text.replace_range(from..to.max(from), piece);
        }
        read += usize::from(survive(&text, &cases, &others));
    }
    assert!(read > 20, "some of them are rules still: {read}");
    for _ in 0..2000 {
        let text: String = (0..random.below(200)).map(|_| random.word(&PIECES)).collect();
        survive(&text, &cases, &others);
    }
}

#[test]
fn bombs_are_an_error_or_a_denial() {
    let others = Others(others());
    let mut random = Random(0x626f_6d62);
    let cases: Vec<Case> = (0..4).map(|_| Case::draw(&mut random)).collect();
    let inside = |condition: &str| format!("match /{{any=**}} {{ allow read, write, presence: if {condition}; }}");
    let deep = |open: &str, close: &str| inside(&format!("{}1{}", open.repeat(60_000), close.repeat(60_000 / 2)));
    let doubling: String =
        (1..200).map(|n| format!("function f{n}(x) {{ return f{}(x) + f{}(x); }}", n - 1, n - 1)).collect();
    let sources = [
        deep("(", ")"),
        deep("[", "]"),
        deep("{'a':", "}"),
        deep("!", ""),
        deep("-", ""),
        deep("true?1:", ""),
        deep("f(", ")"),
        deep("/a/$(", ")"),
        deep("a.", ""),
        deep("a[", "]"),
        deep("1+", ""),
        deep("true||", ""),
        deep("has(", ")"),
        "match /a/{b} {".repeat(15_000),
        "{".repeat(250_000),
        "}".repeat(250_000),
        "/*".repeat(100_000),
        "'".repeat(200_001),
        "match /".repeat(30_000),
        "allow ".repeat(40_000),
        "function f(".repeat(20_000),
        "let ".repeat(50_000),
        inside(&format!("'{}' == ''", "x".repeat(250_000))),
        inside(&format!("[{}] == []", "1,".repeat(120_000))),
        inside(&format!("{{{}}} == {{}}", "'a':1,".repeat(40_000))),
        inside("'aaaaaaaaaaaaaaaaaaaaaaaaaaaaa'.matches('(a|aa|a?)*(a*)*$b')"),
        inside("'a'.matches('((((a{50}){50}){50}){50})')"),
        inside(&format!("'a'.matches('{}')", "(".repeat(900))),
        inside(&"'a'.matches('a{900}') && ".repeat(300)),
        format!("function f0(x) {{ return x; }} {doubling} {}", inside("f199(1) > 0")),
        format!("function f(x) {{ return g(x); }} function g(x) {{ return f(x); }} {}", inside("f(1)")),
        inside("resource.data == resource.data || true").repeat(3000),
        "\u{feff}\u{202e}".repeat(1000),
    ];
    for source in &sources {
        if survive(source, &cases, &others) {
            let rules = Rules::parse("rules.tidelog", source).unwrap();
            let began = Instant::now();
            let _ = rules.decide(&Request::new(Operation::Get, "a", "b"));
            assert!(began.elapsed() < Duration::from_secs(2), "a decision is bounded");
        }
    }
}
