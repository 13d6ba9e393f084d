//! What was compiled, kept until the room is needed.
//!
//! Owns: one result for each module's content and engine, and the promise that it is worked out once,
//! however many ask at the same time. Never compiles on a thread that serves calls, nor as urgently as one:
//! whoever pushes a module that takes a minute to compile takes what nobody else wants.
//!
//! A failure is kept too: a module whose compiling fails would otherwise take a core again with every
//! call that names it. What is compiled lives as long as anyone holds it; forgetting it here only means
//! that the next who asks compiles again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, watch};

use crate::module::{Module, ModuleHash};
use crate::threads::GuestThreads;

/// The most modules kept: each is some megabytes of code.
pub const CACHED_MAX: usize = 128;

/// The most bytes of modules whose code is kept; the code is three to five times as much.
pub const CACHED_BYTES_MAX: usize = 128 << 20;

/// How many are compiled at once: each takes whole cores, so more would not be done sooner; but one that
/// takes long shall not keep all others waiting.
pub const COMPILES_MAX: usize = 2;

/// What was compiled of which module by which engine. A clone shares it.
pub struct Cache<T, E> {
    inner: Arc<Inner<T, E>>,
}

struct Inner<T, E> {
    entries: Mutex<Entries<T, E>>,
    threads: GuestThreads,
    compiling: Arc<Semaphore>,
}

struct Entries<T, E> {
    by_key: HashMap<Key, Entry<T, E>>,
    bytes: usize,
    clock: u64,
}

/// A module's content, and the engine: code of one engine's settings is of no use to another's.
type Key = (ModuleHash, u64);

type Slot<T, E> = Option<Result<T, E>>;

struct Entry<T, E> {
    /// Empty while it is compiled; closed and empty if that was given up.
    done: watch::Receiver<Slot<T, E>>,
    bytes: usize,
    used: u64,
}

/// Compiling came to no end: it panicked. Nothing is kept; whoever asks again tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("compiling the module came to no end")]
pub struct GaveUp;

impl<T, E> Cache<T, E>
where
    T: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static,
{
    /// An empty one, which compiles on these threads.
    pub fn new(threads: GuestThreads) -> Cache<T, E> {
        let entries = Entries {
            by_key: HashMap::new(),
            bytes: 0,
            clock: 0,
        };
        Cache {
            inner: Arc::new(Inner {
                entries: Mutex::new(entries),
                threads,
                compiling: Arc::new(Semaphore::new(COMPILES_MAX)),
            }),
        }
    }

    /// The module, compiled by the engine whose settings hash to `engine`: from here, or by `compile`,
    /// which runs on a thread that may be held. Whoever asks for the same meanwhile waits for the same.
    ///
    /// # Errors
    /// Compiling did not end. That it failed is an inner error, which is kept.
    pub async fn get(
        &self,
        module: &Module,
        engine: u64,
        compile: impl FnOnce(&Module) -> Result<T, E> + Send + 'static,
    ) -> Result<Result<T, E>, GaveUp> {
        let key = (module.sha256(), engine);
        let mut compile = Some(compile);
        loop {
            let (mut done, promise) = self.find(key, module.wasm().len());
            if let Some(promise) = promise
                && let Some(compile) = compile.take()
            {
                self.work_out(key, module.clone(), promise, compile).await?;
            }
            let ready = done.wait_for(|slot| slot.is_some()).await;
            if let Some(result) = ready.ok().and_then(|slot| slot.clone()) {
                return Ok(result);
            }
            // Whoever compiled it went away before it began: our turn, if we have not had it.
            self.forget(key, &done);
            if compile.is_none() {
                return Err(GaveUp);
            }
        }
    }

    /// What is kept of the module of this hash, if it is.
    pub fn peek(&self, sha256: ModuleHash, engine: u64) -> Option<Result<T, E>> {
        let mut entries = self.lock();
        entries.clock += 1;
        let used = entries.clock;
        let entry = entries.by_key.get_mut(&(sha256, engine))?;
        entry.used = used;
        entry.done.borrow().clone()
    }

    /// How many modules are kept, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        let entries = self.lock();
        (entries.by_key.len(), entries.bytes)
    }

    /// The entry; and, if there was none, the promise to fill it.
    #[allow(clippy::type_complexity)]
    fn find(
        &self,
        key: Key,
        bytes: usize,
    ) -> (
        watch::Receiver<Slot<T, E>>,
        Option<watch::Sender<Slot<T, E>>>,
    ) {
        let mut entries = self.lock();
        entries.clock += 1;
        let used = entries.clock;
        if let Some(entry) = entries.by_key.get_mut(&key) {
            entry.used = used;
            return (entry.done.clone(), None);
        }
        let (promise, done) = watch::channel(None);
        let entry = Entry {
            done: done.clone(),
            bytes,
            used,
        };
        entries.by_key.insert(key, entry);
        entries.bytes += bytes;
        entries.make_room();
        (done, Some(promise))
    }

    /// Once begun, compiling goes on to its end even if the one who asked goes away: a thread cannot be
    /// stopped, and others may wait for it.
    async fn work_out(
        &self,
        key: Key,
        module: Module,
        promise: watch::Sender<Slot<T, E>>,
        compile: impl FnOnce(&Module) -> Result<T, E> + Send + 'static,
    ) -> Result<(), GaveUp> {
        let permit = self.inner.compiling.clone().acquire_owned().await;
        let work = self.inner.threads.handle().spawn_blocking(move || {
            GuestThreads::step_back();
            promise.send_replace(Some(compile(&module)));
            drop(permit);
        });
        work.await.map_err(|_| {
            let mut entries = self.lock();
            entries.remove(&key);
            GaveUp
        })
    }

    fn forget(&self, key: Key, gone: &watch::Receiver<Slot<T, E>>) {
        let mut entries = self.lock();
        let same = |entry: &Entry<T, E>| entry.done.same_channel(gone);
        if entries.by_key.get(&key).is_some_and(same) {
            entries.remove(&key);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries<T, E>> {
        let entries = self.inner.entries.lock();
        entries.unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T, E> Entries<T, E> {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.by_key.remove(key) {
            self.bytes -= entry.bytes;
        }
    }

    /// Forgets what was not used for the longest time; never what is being compiled.
    fn make_room(&mut self) {
        while self.by_key.len() > CACHED_MAX || self.bytes > CACHED_BYTES_MAX {
            let ready = self
                .by_key
                .iter()
                .filter(|(_, entry)| entry.done.borrow().is_some());
            let Some(key) = ready
                .min_by_key(|(_, entry)| entry.used)
                .map(|(key, _)| *key)
            else {
                return;
            };
            self.remove(&key);
        }
    }
}

impl<T, E> Clone for Cache<T, E> {
    fn clone(&self) -> Cache<T, E> {
        Cache {
            inner: self.inner.clone(),
        }
    }
}

impl<T, E> std::fmt::Debug for Cache<T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cache")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn module(text: &str) -> Module {
        Module::new(text.as_bytes().to_vec())
    }

    #[tokio::test]
    async fn many_who_ask_at_once_wait_for_one_compilation() {
        let cache: Cache<usize, String> = Cache::new(GuestThreads::start().unwrap());
        let compiled = Arc::new(AtomicUsize::new(0));
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (cache, compiled) = (cache.clone(), compiled.clone());
            asking.spawn(async move {
                let count = move |_: &Module| {
                    // Long enough for the others to come.
                    let (_silent, hears) = std::sync::mpsc::sync_channel::<()>(1);
                    let _ = hears.recv_timeout(Duration::from_millis(30));
                    Ok(compiled.fetch_add(1, Ordering::SeqCst))
                };
                cache.get(&module("a"), 1, count).await.unwrap().unwrap()
            });
        }
        while let Some(answer) = asking.join_next().await {
            assert_eq!(answer.unwrap(), 0);
        }
        assert_eq!(compiled.load(Ordering::SeqCst), 1);
        let of_another_engine = cache.get(&module("a"), 2, |_| Ok(7)).await;
        assert_eq!(of_another_engine, Ok(Ok(7)));
    }

    #[tokio::test]
    async fn a_failure_is_kept_and_a_panic_is_not() {
        let cache: Cache<usize, String> = Cache::new(GuestThreads::start().unwrap());
        let failed = cache.get(&module("a"), 1, |_| Err("no".to_owned())).await;
        assert_eq!(failed, Ok(Err("no".to_owned())));
        let again = cache.get(&module("a"), 1, |_| Ok(1)).await;
        assert_eq!(again, Ok(Err("no".to_owned())));
        let panicked = cache.get(&module("b"), 1, |_| panic!("on purpose")).await;
        assert_eq!(panicked, Err(GaveUp));
        assert_eq!(cache.get(&module("b"), 1, |_| Ok(2)).await, Ok(Ok(2)));
    }

    #[tokio::test]
    async fn one_who_goes_away_leaves_the_work_to_the_next() {
        let cache: Cache<usize, String> = Cache::new(GuestThreads::start().unwrap());
        let all = COMPILES_MAX as u32;
        let busy = cache
            .inner
            .compiling
            .clone()
            .acquire_many_owned(all)
            .await
            .unwrap();
        let module_a = module("a");
        let first = cache.get(&module_a, 1, |_| Ok(1));
        assert!(
            tokio::time::timeout(Duration::from_millis(20), first)
                .await
                .is_err()
        );
        drop(busy);
        assert_eq!(cache.get(&module("a"), 1, |_| Ok(2)).await, Ok(Ok(2)));
    }

    #[tokio::test]
    async fn what_is_kept_has_a_limit_and_the_oldest_goes_first() {
        let cache: Cache<usize, String> = Cache::new(GuestThreads::start().unwrap());
        for n in 0..CACHED_MAX + 10 {
            let _ = cache.get(&module(&n.to_string()), 1, move |_| Ok(n)).await;
            let _ = cache.get(&module("0"), 1, |_| Ok(99)).await;
        }
        assert!(cache.size().0 <= CACHED_MAX);
        assert_eq!(cache.get(&module("0"), 1, |_| Ok(99)).await, Ok(Ok(0)));
        assert_eq!(cache.get(&module("1"), 1, |_| Ok(99)).await, Ok(Ok(99)));
    }
}
