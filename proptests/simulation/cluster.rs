//! The first tier: engines and sessions in one thread.

use super::world::{Plan, World};

#[test]
fn one() {
    let seed = std::env::var("TIDELOG_SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let episodes = std::env::var("EPISODES").ok().and_then(|seed| seed.parse().ok()).unwrap_or(12);
    let begin = std::time::Instant::now();
    let outcome = World::run(Plan { seed, episodes, mutant: None });
    println!("{:.1?} {outcome:#?}", begin.elapsed());
    assert_eq!(outcome.failure, None);
}
