//! The network between nodes: delay, loss, duplication, reordering, and partitions of every shape.
//!
//! Owns: whether and when a message arrives. Never looks into one.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::rng::Rng;

/// What carries a message: the heart has a port of its own (rule L9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// The heart's port.
    Heart,
    /// The main port.
    Main,
}

/// The links between all nodes.
#[derive(Clone, Debug)]
pub struct Net {
    rng: Rng,
    /// One way, one lane: nothing gets through.
    blocked: BTreeSet<(usize, usize, Lane)>,
    quality: Quality,
    /// How many messages were sent; how many of those never arrived.
    pub sent: u64,
    /// Lost or blocked.
    pub lost: u64,
}

/// How good every link is.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// The least and the usual most delay.
    pub delay: (Duration, Duration),
    /// Messages that are lost, in a thousand.
    pub loss_permille: u64,
    /// Messages that arrive twice, in a thousand.
    pub double_permille: u64,
    /// Messages that take ten times as long, in a thousand: they arrive out of order.
    pub late_permille: u64,
}

impl Quality {
    /// Two machines on one switch.
    pub const GOOD: Quality = Quality {
        delay: (Duration::from_micros(100), Duration::from_micros(900)),
        loss_permille: 1,
        double_permille: 1,
        late_permille: 5,
    };
}

impl Net {
    /// A good network.
    pub fn new(seed: u64) -> Net {
        Net {
            rng: Rng::new(seed, "net"),
            blocked: BTreeSet::new(),
            quality: Quality::GOOD,
            sent: 0,
            lost: 0,
        }
    }

    /// After which delays a message sent now arrives: never, once or twice.
    pub fn deliver(&mut self, from: usize, to: usize, lane: Lane) -> [Option<Duration>; 2] {
        self.sent += 1;
        if from == to {
            return [Some(Duration::from_micros(5)), None];
        }
        if self.blocked.contains(&(from, to, lane)) || self.rng.chance(self.quality.loss_permille) {
            self.lost += 1;
            return [None, None];
        }
        let twice = self.rng.chance(self.quality.double_permille);
        [Some(self.delay()), twice.then(|| self.delay())]
    }

    /// A delay as it is now.
    pub fn delay(&mut self) -> Duration {
        let (least, most) = self.quality.delay;
        let delay = self.rng.span(least, most);
        if self.rng.chance(self.quality.late_permille) {
            delay * 10
        } else {
            delay
        }
    }

    /// Cuts one way of a link.
    pub fn block(&mut self, from: usize, to: usize, lanes: &[Lane]) {
        self.blocked
            .extend(lanes.iter().map(|lane| (from, to, *lane)));
    }

    /// Mends every cut.
    pub fn heal(&mut self) {
        self.blocked.clear();
    }

    /// Whether anything is cut.
    pub fn is_cut(&self) -> bool {
        !self.blocked.is_empty()
    }

    /// Makes every link this good.
    pub fn set_quality(&mut self, quality: Quality) {
        self.quality = quality;
    }
}
