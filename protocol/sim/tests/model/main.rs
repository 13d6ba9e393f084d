//! Every interleaving, within bounds, of what the simulator only samples.
#![allow(clippy::unwrap_used)]

mod replication;
mod shared;

use stateright::{Checker, HasDiscoveries, Model};
use replication::{Bounds, Takeover};

fn env(n: &str, d: u64) -> u64 { std::env::var(n).map_or(d, |n| n.parse().unwrap()) }
#[test]
fn probe() {
    let w = std::env::var("W").unwrap_or("1,1".into());
    let w: Vec<u8> = w.split(',').map(|x| x.parse().unwrap()).collect();
    let tt = std::env::var("T").unwrap_or("0,0".into());
    let tt: Vec<u8> = tt.split(',').map(|x| x.parse().unwrap()).collect();
    let b = Bounds { stores: env("S",3), members: env("M",3), units: env("U",1) as u16, epochs: env("E",2), writes: w.leak(), ticks: tt.leak(), crashes: env("C",0) as u8, cuts: env("K",0) as u8, losses: env("L",0) as u8, duplicates: env("D",0) as u8, late_flush: env("F",0)==1 };
    #[cfg(feature="sabotage")]
    if let Ok(r) = std::env::var("R") { 
        use understudy_protocol::rules::*;
        switch_off(Rule::ALL.into_iter().find(|x| format!("{x:?}") == r)); }
    println!("{b:?}");
    let model = Takeover::within(b);
    let seen = model.seen.clone();
    let t = std::time::Instant::now();
    let n = env("N", 2_000_000) as usize;
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).threads(env("J",1) as usize).target_state_count(n).spawn_bfs().join();
    println!("states {} generated {} depth {} in {:?} {seen:?}", checker.unique_state_count(), checker.state_count(), checker.max_depth(), t.elapsed());
    for (name, path) in checker.discoveries() {
        println!("{name}");
        for a in path.into_actions() { println!("   {a:?}"); }
    }
}
