//! Recording what a process does to files: `strace` writes it down, this reads it back.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Whether `strace` works here. What needs it says that it was skipped otherwise.
pub(crate) fn strace_works() -> bool {
    let tried = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    tried.is_ok_and(|output| output.status.success())
}

/// Runs the test `name` of this very binary in a process of its own, under `strace` with these options.
pub(crate) fn run_under_strace(options: &[&str], name: &str, environment: &[(&str, &Path)]) -> Output {
    let mut command = Command::new("strace");
    command.args(options).arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    for (key, value) in environment {
        command.env(key, value);
    }
    command.output().unwrap()
}

/// One call that matters, in the order in which they ended.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) result: i64,
    /// How many calls had ended when this one began.
    pub(crate) begun_after: usize,
}

#[derive(Debug, Clone)]
pub(crate) enum Argument {
    Bytes(Vec<u8>),
    Word(String),
}

impl Call {
    pub(crate) fn number(&self, at: usize) -> Option<i64> {
        match self.arguments.get(at)? {
            Argument::Word(word) => word.parse().ok(),
            Argument::Bytes(_) => None,
        }
    }

    pub(crate) fn word(&self, at: usize) -> &str {
        match self.arguments.get(at) {
            Some(Argument::Word(word)) => word,
            _ => "",
        }
    }

    pub(crate) fn bytes(&self, at: usize) -> &[u8] {
        match self.arguments.get(at) {
            Some(Argument::Bytes(bytes)) => bytes,
            _ => &[],
        }
    }

    pub(crate) fn path(&self, at: usize) -> PathBuf {
        use std::os::unix::ffi::OsStrExt as _;
        std::ffi::OsStr::from_bytes(self.bytes(at)).into()
    }
}

/// Reads what `strace -f -xx` wrote. Calls that failed are left out.
pub(crate) fn parse(text: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut unfinished: HashMap<&str, (String, usize)> = HashMap::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(char::is_whitespace) else { continue };
        let rest = rest.trim_start();
        if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, (begun.to_owned(), calls.len()));
            continue;
        }
        let (whole, begun_after) = match rest.strip_prefix("<... ") {
            Some(resumed) => {
                let Some((begun, at)) = unfinished.remove(thread) else { continue };
                let Some((_, end)) = resumed.split_once("resumed>") else { continue };
                (format!("{begun}{end}"), at)
            }
            None => (rest.to_owned(), calls.len()),
        };
        calls.extend(parse_call(&whole, begun_after));
    }
    calls
}

fn parse_call(text: &str, begun_after: usize) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let result = result.split(' ').next()?.parse().ok().filter(|result| *result >= 0)?;
    let arguments = arguments.trim_end().strip_suffix(')')?;
    Some(Call {
        name: name.to_owned(),
        arguments: arguments.split(", ").map(parse_argument).collect(),
        result,
        begun_after,
    })
}

/// Every text is written as `\x` and two digits a byte, so no argument has a comma in it.
fn parse_argument(text: &str) -> Argument {
    let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        assert!(!text.ends_with("\"..."), "strace cut off what was written");
        return Argument::Word(text.to_owned());
    };
    Argument::Bytes(inner.split("\\x").skip(1).map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect())
}
