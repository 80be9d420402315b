//! The TypeScript package against the real binary: its compiler, then its own tests, which start, kill and start servers
//! themselves.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use super::repo_clients::{CHROMIUM, node_is_there_with};

/// The longest that the package's tests may take together. Each wait inside one is shorter and says what it waited for.
const TIME: Duration = Duration::from_secs(360);
/// So many tests there are at least, the browser's among them: fewer mean that some were not run.
const TESTS_MIN: usize = 73;

/// A run of node with all that it starts; dropped, it ends.
struct Run {
    group: u32,
    ended: Receiver<ExitStatus>,
}

impl Run {
    fn start(command: &mut Command) -> Self {
        let mut child = command.process_group(0).spawn().unwrap();
        let group = child.id();
        let (sender, ended) = sync_channel(1);
        std::thread::spawn(move || sender.send(child.wait().unwrap()));
        Self { group, ended }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Its servers are in its process group, and outlive it when it was late.
        let group = format!("-{}", self.group);
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
    }
}

fn package() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/typescript"))
}

/// The number that the report of node's test runner gives for a word.
fn counted(report: &str, word: &str) -> usize {
    let line = report.lines().rev().find_map(|line| line.strip_prefix(&format!("# {word} ")));
    line.unwrap_or_else(|| panic!("no count of {word}:\n{report}")).trim().parse().unwrap()
}

#[test]
fn the_typescript_package_compiles_strictly_and_passes_its_tests() {
    if !node_is_there_with(&[package()]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let built = package().join("dist-test");
    // What was removed from the sources must not be tested any more.
    let _ = fs::remove_dir_all(&built);
    let compiled = Command::new(package().join("node_modules/.bin/tsc")).current_dir(package()).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stdout));

    let (report, errors) = (folder.path().join("report"), folder.path().join("errors"));
    let mut tests: Vec<_> = fs::read_dir(built.join("test")).unwrap().map(|entry| entry.unwrap().path()).collect();
    tests.retain(|path| path.to_string_lossy().ends_with(".test.js"));
    tests.sort();
    let begun = Instant::now();
    let run = Run::start(
        Command::new("node")
            .args(["--test", "--test-reporter=tap"])
            .args(&tests)
            .current_dir(package())
            .env("TIDELOG_BINARY", env!("CARGO_BIN_EXE_tidelog"))
            .env("TIDELOG_CHROMIUM", CHROMIUM)
            .env_remove("TIDELOG_LOG")
            .env_remove("RUST_LOG")
            .env_remove("TIDELOG_HTTP")
            .stdin(Stdio::null())
            .stdout(File::create(&report).unwrap())
            .stderr(File::create(&errors).unwrap()),
    );
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let status = run
        .ended
        .recv_timeout(TIME)
        .unwrap_or_else(|error| panic!("the tests take too long ({error}):\n{}{}", read(&report), read(&errors)));
    let report = read(&report);
    assert!(status.success(), "{report}{}", read(&errors));
    let (passed, skipped) = (counted(&report, "pass"), counted(&report, "skipped"));
    let has_chromium = Path::new(CHROMIUM).exists();
    if !has_chromium {
        println!("skipped (chromium absent)");
    }
    assert_eq!(skipped, usize::from(!has_chromium), "{report}");
    assert!(passed + skipped >= TESTS_MIN, "only {passed} tests passed\n{report}");
    println!("{passed} tests of the package passed in {} ms", begun.elapsed().as_millis());
}
