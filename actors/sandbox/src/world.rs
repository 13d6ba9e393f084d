//! What a guest sees of the world besides its policy: time and chance, as part of its state.
//!
//! Owns: a guest's clock and its source of random bytes. Never lets a guest see a time that goes back,
//! on whichever machine it goes on, nor two machines draw different bytes after the same state.
//!
//! Both are inputs that the host chooses, so both are written down with the guest's memory: the bytes
//! are a stream named by a seed and a position, the clock is the host's, moved forward so that it never
//! falls behind what the guest has already seen. A call that only asked for the time has therefore
//! taken a step, like one that wrote to memory.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use minicbor::{Decode, Encode};
use rand_core::TryRng;
use sha2::{Digest, Sha256};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock};

/// Where a guest's clock gets the time: nanoseconds since 1970.
pub type TimeSource = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The machine's clock.
pub fn system_time() -> TimeSource {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_nanos() as u64)
    })
}

/// A guest's time and chance, as they are written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct WorldState {
    /// Names the stream of random bytes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub seed: [u8; 32],
    /// How many bytes of the stream were drawn.
    #[n(1)]
    pub drawn: u64,
    /// The last time that the guest saw, in nanoseconds since 1970.
    #[n(2)]
    pub seen: u64,
}

/// A guest's time and chance.
#[derive(Clone)]
pub struct World {
    source: TimeSource,
    now: Arc<Mutex<Now>>,
}

struct Now {
    state: WorldState,
    /// By how much the guest's clock is ahead of the source, in nanoseconds.
    ahead: u64,
    /// The bytes of the stream around `state.drawn`, and the number of their block.
    block: [u8; 32],
    block_number: Option<u64>,
}

impl World {
    /// The world of a guest in this state.
    pub fn new(state: WorldState, source: TimeSource) -> World {
        let now = Now {
            state,
            ahead: 0,
            block: [0; 32],
            block_number: None,
        };
        World {
            source,
            now: Arc::new(Mutex::new(now)),
        }
    }

    /// Another guest's world, with the same source of time.
    pub fn at(&self, state: WorldState) -> World {
        World::new(state, self.source.clone())
    }

    /// The state to write down.
    pub fn state(&self) -> WorldState {
        self.lock().state
    }

    /// A call begins: its clock starts no earlier than the last time that the guest saw, and runs as
    /// fast as the source from there.
    pub(crate) fn begin_call(&self) {
        let time = (self.source)();
        let mut now = self.lock();
        now.ahead = now.state.seen.saturating_sub(time);
    }

    fn time(&self) -> u64 {
        let time = (self.source)();
        let mut now = self.lock();
        let time = time.saturating_add(now.ahead);
        now.state.seen = time.max(now.state.seen.saturating_add(1));
        now.state.seen
    }

    fn draw(&self, into: &mut [u8]) {
        let mut now = self.lock();
        for byte in into {
            let number = now.state.drawn / 32;
            if now.block_number != Some(number) {
                let block = Sha256::new()
                    .chain_update(now.state.seed)
                    .chain_update(number.to_le_bytes());
                now.block = block.finalize().into();
                now.block_number = Some(number);
            }
            *byte = now.block[(now.state.drawn % 32) as usize];
            now.state.drawn += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("World").field(&self.state()).finish()
    }
}

impl HostWallClock for World {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.time())
    }
}

impl HostMonotonicClock for World {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        self.time()
    }
}

impl TryRng for World {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.draw(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.draw(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), Infallible> {
        self.draw(into);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn settable() -> (Arc<AtomicU64>, TimeSource) {
        let time = Arc::new(AtomicU64::new(1_000));
        let read = time.clone();
        (time, Arc::new(move || read.load(Ordering::Relaxed)))
    }

    #[test]
    fn time_never_goes_back_not_even_on_a_machine_that_is_behind() {
        let (time, source) = settable();
        let world = World::new(WorldState::default(), source);
        world.begin_call();
        assert_eq!(world.time(), 1_000);
        assert_eq!(world.time(), 1_001);
        let (behind, source) = settable();
        behind.store(10, Ordering::Relaxed);
        let restored = World::new(world.state(), source);
        restored.begin_call();
        assert_eq!(restored.time(), 1_002);
        // From there it runs as fast as time does, so that a guest that sleeps wakes up.
        behind.store(510, Ordering::Relaxed);
        assert_eq!(restored.time(), 1_501);
        time.store(5_000, Ordering::Relaxed);
        world.begin_call();
        assert_eq!(world.time(), 5_000);
    }

    #[test]
    fn a_restored_guest_draws_the_bytes_that_the_other_would_have_drawn() {
        let (_, source) = settable();
        let state = WorldState {
            seed: [7; 32],
            ..WorldState::default()
        };
        let world = World::new(state, source.clone());
        let mut first = [0; 45];
        world.draw(&mut first);
        let restored = World::new(world.state(), source.clone());
        let (mut here, mut there) = ([0; 70], [0; 70]);
        world.draw(&mut here);
        restored.draw(&mut there);
        assert_eq!(here, there);
        let mut again = [0; 45];
        World::new(state, source).draw(&mut again);
        assert_eq!(first, again);
        assert_ne!(first[..32], here[..32]);
    }
}
