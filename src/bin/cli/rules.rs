//! `tidelog rules`.

use std::path::Path;

use serde_json::{Value, json};
use tidelog::node::command::rules::{RulesCase, coverage, parse_cases, read_cases, read_rules};
use tidelog::node::command::{CommandError, Exit};
use tidelog::rules::nearest;

use super::arguments::Rules;
use super::screen::Screen;
use super::table::{Column, cell, table};

pub(super) fn run(command: Rules, screen: &Screen) -> Result<(), CommandError> {
    match command {
        Rules::Check { file } => check(&file, screen),
        Rules::Test { file, cases } => test(&file, &cases, screen),
        Rules::Explain { file, place, case } => explain(&file, place.as_deref(), case.as_deref(), screen),
        Rules::Coverage { file, cases, fail_under } => cover(&file, &cases, fail_under, screen),
        Rules::Replay { .. } => Err(CommandError::usage("this is a command of a session")),
    }
}

fn check(file: &Path, screen: &Screen) -> Result<(), CommandError> {
    let rules = read_rules(file)?;
    let digest: String = rules.digest().iter().map(|byte| format!("{byte:02x}")).collect();
    let (allows, functions) = (rules.allows().len(), rules.functions().len());
    if screen.json {
        return screen.print(&json!({ "digest": digest, "allows": allows, "functions": functions }).to_string());
    }
    if screen.quiet {
        return screen.print(&digest);
    }
    screen.print(&format!("{}: {allows} allows, {functions} functions, digest {digest}", file.display()))?;
    screen.next(&format!("tidelog rules test {} CASES.json", file.display()));
    Ok(())
}

fn test(file: &Path, cases: &Path, screen: &Screen) -> Result<(), CommandError> {
    let rules = read_rules(file)?;
    let cases = read_cases(cases)?;
    if let Some(case) = cases.iter().find(|case| case.expect.is_none()) {
        let why = format!("{}: nothing is expected of it", case.name);
        return Err(CommandError::new("E0219", Exit::Usage, why).fix("add \"expect\": \"allow\" or \"deny\""));
    }
    let mut failed = 0_usize;
    for case in &cases {
        let explanation = case.explain(&rules);
        let is_right = case.expect == Some(explanation.decision.allowed);
        failed += usize::from(!is_right);
        if screen.json {
            let mut row = json!({
                "name": case.name,
                "passed": is_right,
                "allowed": explanation.decision.allowed,
                "rule": explanation.decision.rule,
                "why": explanation.decision.why.to_string(),
            });
            if !is_right {
                row["explanation"] = explanation.to_json();
            }
            screen.print(&row.to_string())?;
        } else if screen.quiet {
            if !is_right {
                screen.print(&case.name)?;
            }
        } else if is_right {
            screen.print(&format!("ok      {}", case.name))?;
        } else {
            screen.print(&format!("FAILED  {}: {}", case.name, case.asks()))?;
            for line in explanation.to_string().lines() {
                screen.print(&format!("        {line}"))?;
            }
        }
    }
    if failed > 0 {
        let why = format!("{failed} of {} cases are decided otherwise than expected", cases.len());
        return Err(CommandError::new("E0218", Exit::Failed, why).fix("the trees above show what every part came to"));
    }
    if !screen.json && !screen.quiet {
        screen.print(&format!("{} cases are decided as expected", cases.len()))?;
    }
    Ok(())
}

fn explain(file: &Path, place: Option<&str>, case: Option<&str>, screen: &Screen) -> Result<(), CommandError> {
    let rules = read_rules(file)?;
    let case = match (place, case) {
        (_, Some(text)) => parse_cases("the case", text)?.into_iter().next(),
        (Some(place), None) => Some(named_case(place)?),
        (None, None) => None,
    };
    let Some(case) = case else {
        return Err(CommandError::usage("no case is given").fix("name one as CASES.json#NAME, or give it with --case"));
    };
    let explanation = case.explain(&rules);
    if screen.json {
        return screen.print(&explanation.to_json().to_string());
    }
    screen.print(&format!("{}: {}", case.name, case.asks()))?;
    screen.print(&explanation.to_string())
}

fn named_case(place: &str) -> Result<RulesCase, CommandError> {
    let Some((path, name)) = place.split_once('#') else {
        return Err(CommandError::usage(format!("{place} names no case")).fix("write CASES.json#NAME"));
    };
    let cases = read_cases(Path::new(path))?;
    if let Some(found) = cases.iter().find(|case| case.name == name) {
        return Ok(found.clone());
    }
    let remedy = match nearest(name, cases.iter().map(|case| case.name.as_str())) {
        Some(near) => format!("did you mean {near:?}?"),
        None => "`tidelog rules test` lists their names".to_owned(),
    };
    Err(CommandError::new("E0219", Exit::NotFound, format!("{path} has no case {name:?}")).fix(remedy))
}

fn cover(file: &Path, cases: &Path, fail_under: Option<u8>, screen: &Screen) -> Result<(), CommandError> {
    let rules = read_rules(file)?;
    let rows = coverage(&rules, &read_cases(cases)?);
    let reached = rows.iter().filter(|row| row.is_reached()).count();
    let json_rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "kind": row.kind, "line": row.line, "name": row.name, "true": row.yes, "false": row.no, "error": row.failed,
                "other": row.other, "reached": row.is_reached(),
            })
        })
        .collect();
    let columns: [Column; 7] = [
        ("LINE", |row| cell(&row["line"])),
        ("WHAT", |row| cell(&row["kind"])),
        ("NAME", |row| cell(&row["name"])),
        ("TRUE", |row| cell(&row["true"])),
        ("FALSE", |row| cell(&row["false"])),
        ("ERROR", |row| cell(&row["error"])),
        ("", |row| if row["reached"] == json!(false) { "never".to_owned() } else { String::new() }),
    ];
    let share = if rows.is_empty() { 100 } else { reached * 100 / rows.len() };
    if screen.json {
        for row in &json_rows {
            screen.print(&row.to_string())?;
        }
    } else if screen.quiet {
        screen.print(&share.to_string())?;
    } else {
        screen.print(&table(&columns, &json_rows))?;
        screen.print(&format!("{reached} of {} are reached: {share} %", rows.len()))?;
    }
    if let Some(least) = fail_under.filter(|least| share < usize::from(*least)) {
        let why = format!("{share} % of the rules are reached, less than {least} %");
        return Err(CommandError::new("E0220", Exit::Failed, why).fix("add cases that reach what was never looked at"));
    }
    Ok(())
}
