//! What the page and the examples say is so.

use tidelog::node::command::rules::{coverage, parse_cases};
use tidelog::rules::{Operation, Request, Rules, Why};

const PAGE: &str = include_str!("../../docs/rules.md");
const EXAMPLE: &str = include_str!("../../examples/rules.tidelog");
const CASES: &str = include_str!("../../examples/rules.cases.json");

/// The blocks of the page with this mark.
fn blocks(mark: &str) -> Vec<&'static str> {
    let begin = format!("```{mark}\n");
    PAGE.split(begin.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn the_page_shows_the_example_and_its_cases_are_decided_as_expected() {
    assert_eq!(blocks("rules"), [EXAMPLE], "docs/rules.md shows examples/rules.tidelog");
    let rules = Rules::parse("rules.tidelog", EXAMPLE).unwrap();
    let cases = parse_cases("cases", CASES).unwrap();
    for case in cases.iter().chain(&parse_cases("the page", blocks("json")[0]).unwrap()) {
        let explanation = case.explain(&rules);
        assert_eq!(Some(explanation.decision.allowed), case.expect, "{}\n{explanation}", case.name);
    }
    assert!(coverage(&rules, &cases).iter().filter(|row| row.is_reached()).count() >= 8);
}

#[test]
fn every_line_of_the_page_that_should_be_true_is() {
    let lines: Vec<&str> = blocks("cel")[0].lines().collect();
    assert!(lines.len() > 15);
    for line in lines {
        let source = format!("match /a/{{id}} {{ allow get: if {line}; }}");
        let rules = Rules::parse("the page", &source).unwrap_or_else(|error| panic!("{error}"));
        let request = Request::new(Operation::Get, "a", "b");
        assert_eq!(rules.decide(&request).why, Why::Allowed, "{line}\n{}", rules.explain(&request));
    }
}

#[test]
fn the_page_s_problem_is_told_as_it_says() {
    let source = "match /a/{id} { function signedIn() { return request.auth != null; }\n  allow read: if signedIn() || request.atuh.uid == id;\n}";
    let error = Rules::parse("rules.tidelog", source).unwrap_err().to_string();
    let shown = blocks("text")[0].trim_end();
    assert_eq!(error, format!("the rules cannot be read\n{shown}"));
}
