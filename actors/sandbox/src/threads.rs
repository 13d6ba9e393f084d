//! Threads on which guests run, apart from the node's own.
//!
//! Owns: a runtime whose workers are more than the cores and a little less important than the node's.
//! Never runs anything but guests.
//!
//! A guest gives its thread up after each slice, but a slice is long for a node: a task of its own that
//! waits behind two guests on each worker has missed a heartbeat's deadline after a few turns. The kernel
//! is better at this than any queue of ours: a thread that wakes up for a moment is let in front of those
//! that have computed for long. So guests get threads enough that one who comes rarely finds all of them
//! taken, and the kernel shares the cores among them.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

/// Threads a core: so many guests that never stop may run before one more waits for a slice to end.
const THREADS_A_CORE: usize = 8;

/// By how much the node's own threads come first, as `nice` counts. The full range is for threads that
/// may starve; guests must not.
const NICE: i32 = 5;

/// The same for a thread that compiles: its module's callers can wait, others' cannot.
const COMPILER_NICE: i32 = 15;

/// The threads. Clones are the same threads; they end with the last one, without waiting for any guest.
#[derive(Clone, Debug)]
pub struct GuestThreads {
    owner: Arc<Owner>,
    handle: Handle,
}

#[derive(Debug)]
struct Owner(Option<Runtime>);

/// What was to be done panicked. Nothing of it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it panicked on a guest's thread")]
pub struct Lost;

impl GuestThreads {
    /// Starts them.
    ///
    /// # Errors
    /// The system gives no more threads. None runs.
    pub fn start() -> io::Result<GuestThreads> {
        let cores = available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores * THREADS_A_CORE)
            .thread_name("guests")
            .enable_time()
            // Each turn may be a whole slice: look for new calls and at the timers before every one.
            .global_queue_interval(1)
            .event_interval(1)
            .on_thread_start(|| {
                // On Linux this is the thread's own. Without the right to, guests are as important as
                // the node, which is worse, but no fault.
                if let Ok(own) = rustix::process::getpriority_process(None) {
                    let _ = rustix::process::setpriority_process(None, own + NICE);
                }
            })
            .build()?;
        Ok(GuestThreads {
            handle: runtime.handle().clone(),
            owner: Arc::new(Owner(Some(runtime))),
        })
    }

    /// Does something on these threads, and ends it when this future is dropped.
    ///
    /// # Errors
    /// It panicked; nothing of it is left.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Lost> {
        let mut owner = JoinSet::new();
        owner.spawn_on(work, &self.handle);
        match owner.join_next().await {
            Some(Ok(done)) => Ok(done),
            Some(Err(_)) | None => Err(Lost),
        }
    }

    /// Makes this thread, for good, and those that it starts, less important than guests: for compilers,
    /// on a thread of this runtime that may be held. What a compiler starts to share its work with has the
    /// importance of whichever thread first wanted it.
    pub(crate) fn step_back() {
        if let Ok(own) = rustix::process::getpriority_process(None) {
            let _ = rustix::process::setpriority_process(None, own.max(COMPILER_NICE));
        }
    }

    /// By which a guest's task is started there; whoever starts one owns it.
    pub(crate) fn handle(&self) -> &Handle {
        debug_assert!(
            self.owner.0.is_some(),
            "they run until the last clone is gone"
        );
        &self.handle
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // The last clone may well be dropped by a task, which may not wait.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::future::pending;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn work_is_done_on_a_guests_thread_which_comes_after_the_nodes() {
        let threads = GuestThreads::start().unwrap();
        let own = rustix::process::getpriority_process(None).unwrap();
        let work = async {
            let name = std::thread::current().name().map(str::to_owned);
            (name, rustix::process::getpriority_process(None).unwrap())
        };
        let (name, nice) = threads.run(work).await.unwrap();
        assert_eq!(name.as_deref(), Some("guests"));
        assert_eq!(nice, (own + NICE).min(19), "the node's is {own}");
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), own);
        assert_eq!(
            threads.run(async { panic!("on purpose") }).await,
            Err::<(), _>(Lost)
        );
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_ends() {
        struct Ends(mpsc::SyncSender<()>);
        impl Drop for Ends {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        let threads = GuestThreads::start().unwrap();
        let (ends, ended) = mpsc::sync_channel(1);
        let work = async move {
            let _ends = Ends(ends);
            pending::<()>().await;
        };
        let given_up = tokio::time::timeout(Duration::from_millis(20), threads.run(work)).await;
        assert!(given_up.is_err());
        assert_eq!(ended.recv_timeout(Duration::from_secs(10)), Ok(()));
    }
}
