//! The numbered rules, as switches that only a sabotage test can turn off.
//!
//! Owns: the list of rules whose breaking must be noticed, and [`keeps`], which every place that
//! keeps one of them asks. In every build but the sabotage test's, `keeps` is the constant `true`
//! and costs nothing; the feature refuses to compile into an optimised build.

/// A rule of the core that can be sabotaged. The names are those of ARCHITECTURE.md's rule table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // the variants are the rules' own numbers
pub enum Rule {
    L2,
    L3,
    L4,
    L5,
    L6,
    L7,
    L8,
    L12,
    R1,
    R2,
    R3,
    R5,
    R6,
    R7,
    R8,
    T1,
    T2,
    E1,
    E2,
    S2,
    S3,
    V1,
    V2,
    /// Restart intensity (OTP): more restarts in the window than allowed escalate.
    Intensity,
}

impl Rule {
    /// Every rule, in order.
    pub const ALL: [Rule; 24] = [
        Rule::L2,
        Rule::L3,
        Rule::L4,
        Rule::L5,
        Rule::L6,
        Rule::L7,
        Rule::L8,
        Rule::L12,
        Rule::R1,
        Rule::R2,
        Rule::R3,
        Rule::R5,
        Rule::R6,
        Rule::R7,
        Rule::R8,
        Rule::T1,
        Rule::T2,
        Rule::E1,
        Rule::E2,
        Rule::S2,
        Rule::S3,
        Rule::V1,
        Rule::V2,
        Rule::Intensity,
    ];
}

/// Whether `rule` is kept: always, except where a sabotage test has switched it off.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub const fn keeps(_rule: Rule) -> bool {
    true
}

#[cfg(feature = "sabotage")]
pub use sabotage::{keeps, switch_off};

#[cfg(feature = "sabotage")]
mod sabotage {
    use super::Rule;
    use core::sync::atomic::{AtomicU64, Ordering};

    /// One bit for each rule that is off. One process sabotages one rule at a time.
    static OFF: AtomicU64 = AtomicU64::new(0);

    /// Switches `rule` off for the whole process, and every other rule on again; `None` mends all.
    pub fn switch_off(rule: Option<Rule>) {
        OFF.store(rule.map_or(0, |rule| 1 << rule as u64), Ordering::SeqCst);
    }

    /// Whether `rule` is kept.
    #[inline]
    pub fn keeps(rule: Rule) -> bool {
        OFF.load(Ordering::Relaxed) & (1 << rule as u64) == 0
    }
}
