//! Each hostile vector is refused by name, within 50 ms of CPU and 64 MiB of address space, in a process of its own.

use std::process::Command;

use tidelog::document::split;
use tidelog::sync::gate::read_message;
use tidelog::{Change, Limits};

use super::vectors::all;

const CHILD: &str = "TIDELOG_VECTOR";
const DOOR: &str = "TIDELOG_VECTOR_DOOR";
const CPU_MS: u64 = 50;
const BYTES: u64 = 64 << 20;

#[test]
fn every_hostile_vector_is_refused_by_name_and_cheaply() {
    let vectors = all();
    assert!(vectors.len() >= 40, "{} vectors", vectors.len());
    let names: std::collections::BTreeSet<_> = vectors.iter().map(|vector| (vector.door as u8, vector.name)).collect();
    assert_eq!(names.len(), vectors.len(), "each has its own name");
    let mut faults = Vec::new();
    let mut worst = (0, "");
    let folder = tempfile::tempdir().unwrap();
    for vector in &vectors {
        let file = folder.path().join("vector");
        std::fs::write(&file, &vector.bytes).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["gate::bombs::one_vector_in_its_own_process", "--exact", "--nocapture"])
            .env(CHILD, &file)
            .env(DOOR, (vector.door as u8).to_string())
            .env("RUST_BACKTRACE", "0")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        let took = said.split("took ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        match took {
            Some(took) if child.status.success() && said.contains(vector.words) => {
                worst = worst.max((took, vector.name))
            }
            _ => {
                let why = String::from_utf8_lossy(&child.stderr);
                faults.push(format!("{:?}, {}: {said}{why}", vector.door, vector.name));
            }
        }
    }
    println!("{} vectors; the worst took {} us: {}", vectors.len(), worst.0, worst.1);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Does nothing unless it is the child of the test above.
#[test]
fn one_vector_in_its_own_process() {
    let Some(file) = std::env::var_os(CHILD) else { return };
    let bytes = std::fs::read(file).unwrap();
    let door = std::env::var(DOOR).unwrap();
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').next().unwrap().parse().unwrap();
    let limit = rustix::process::Rlimit { current: Some(pages * 4096 + BYTES), maximum: None };
    rustix::process::setrlimit(rustix::process::Resource::As, limit).unwrap();
    let before = cpu_us();
    let refused = match door.as_str() {
        "0" => Change::parse(bytes).map(|_| ()).map_err(|error| error.to_string()),
        "1" => split(&bytes, &Limits::DEFAULT).map(|_| ()).map_err(|error| error.to_string()),
        _ => read_message(&bytes).map(|_| ()).map_err(|error| error.to_string()),
    };
    let took = cpu_us() - before;
    let why = refused.expect_err("it is refused");
    assert!(!why.contains("panicked"), "{why}");
    assert!(took <= CPU_MS * 1000, "{took} us of CPU");
    println!("took {took} us: {why}");
}

fn cpu_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}
