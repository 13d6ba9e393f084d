//! Strikes: who may be poisonous (rule V2).
//!
//! Owns: the count, what each strike costs, and what clears it. Never decides who gets one; that
//! needs to know what the child was doing, see `child`.
//!
//! A lost process usually says nothing about the children that were in it. But one of them may have
//! brought it down, and if it did it was starting or at work. So those get a strike each: the
//! innocent ones run clean and are cleared, the guilty one collects three.

use core::time::Duration;

use minicbor::{Decode, Encode};

use super::policy::jittered;

/// Clean running for this long clears a child's strikes and its consecutive failures. Long enough
/// for a restored child to load and meet the work that killed it, as short as the default
/// intensity's window.
pub const CLEAN_RUNNING: Duration = Duration::from_secs(10);

/// This many strikes quarantine: one is bad luck, two may be; a unit that goes on costs a node each.
pub const STRIKES_MAX: u8 = 3;

/// How long the first and the second strike wait, before jitter. The first keeps within the 400 ms
/// in which children are to answer elsewhere, for most of those it holds up are innocent; the
/// second gives the cluster time to stand up again.
pub const STRIKE_BACKOFF: [Duration; STRIKES_MAX as usize - 1] =
    [Duration::from_millis(100), Duration::from_secs(2)];

/// A child's strikes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Strikes(#[n(0)] u8);

/// What a strike costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Penalty {
    /// Start again after this long.
    Wait(Duration),
    /// Start no more until an operator pardons it.
    Quarantine,
}

impl Strikes {
    /// None.
    pub const NONE: Strikes = Strikes(0);

    /// How many.
    pub const fn count(self) -> u8 {
        self.0
    }

    /// Adds one and says what it costs.
    pub fn strike(&mut self, random: u64) -> Penalty {
        let cost = STRIKE_BACKOFF.get(usize::from(self.0));
        self.0 = self.0.saturating_add(1).min(STRIKES_MAX);
        cost.map_or(Penalty::Quarantine, |span| {
            Penalty::Wait(jittered(*span, random))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_strikes_wait_longer_each_and_the_third_quarantines() {
        let mut strikes = Strikes::NONE;
        let cost: alloc::vec::Vec<Penalty> = (0..4).map(|_| strikes.strike(u64::MAX)).collect();
        let [first, second] = STRIKE_BACKOFF.map(Penalty::Wait);
        assert_eq!(
            cost,
            [first, second, Penalty::Quarantine, Penalty::Quarantine]
        );
        assert_eq!(strikes.count(), STRIKES_MAX);
    }
}
