//! How late this machine wakes a thread that sleeps.
//!
//! Owns: the measurement that a node makes before it starts (rule L9): a lease that is shorter than a
//! few late wake-ups would lapse for nothing. Never decides: the caller compares.

use std::io;
use std::time::Duration;

use understudy_supervision::clock;

use crate::realtime;

/// The 99.9th percentile of how late a thread like the heart's is woken. Takes about
/// [`SAMPLES`] milliseconds.
///
/// # Errors
/// When the system gives no thread.
pub fn late_by() -> io::Result<Duration> {
    let measure = || {
        // Without the priority the measurement is of what the heart will have: no priority.
        let _ = realtime::prefer_this_thread();
        let mut late: Vec<Duration> = (0..SAMPLES).map(|_| one_nap()).collect();
        late.sort_unstable();
        let rank = (late.len() * 999).div_ceil(1_000).saturating_sub(1);
        late.get(rank).copied().unwrap_or_default()
    };
    let thread = std::thread::Builder::new()
        .name("wake-ups".into())
        .spawn(measure)?;
    thread
        .join()
        .map_err(|_| io::Error::other("the measuring thread panicked"))
}

fn one_nap() -> Duration {
    let before = clock::now();
    #[allow(clippy::disallowed_methods)] // the nap is what is measured
    std::thread::sleep(NAP);
    clock::now().since(before).saturating_sub(NAP)
}

/// A TTL must be this many times the 99.9th percentile of late wake-ups (L9).
pub const TTL_WAKEUPS: u32 = 4;

/// Naps that are measured: some hundred milliseconds of a start are all that it may cost.
pub const SAMPLES: usize = 250;

const NAP: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naps_are_measured() {
        let late = late_by().expect("there is a thread");
        assert!(late > Duration::ZERO, "a nap never ends early");
        assert!(late < Duration::from_secs(60), "{late:?}");
    }
}
