//! The thread on which one store answers the owners of its records.
//!
//! Owns: the [`Replica`] machine, its store, and the queue before them. Decides nothing: the machine
//! does. What it adds is that everything which waits shares one flush.
//!
//! ```text
//!   ask ──> queue ──> machine ──> writes of all that waited: one commit ──> Flushed ──> answers
//!                             └─> reads ──> Read, or Damage
//! ```
//!
//! While the disk is nearly full, new records are turned away before the machine hears of them, as if
//! the message had been lost; promises, reads and confirmations go on. The owner sees a silent member
//! and does what it does with one (rule R6).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use understudy_protocol::cluster::replication::{
    Replica, ReplicaAction as Action, ReplicaEvent as Event, Write,
};
use understudy_protocol::id::{ChildId, IncarnationId, NodeId, Seq};
use understudy_protocol::journal::{Recorded, ReplicaStart, Sink};
use understudy_protocol::machine::Machine;
use understudy_protocol::time::Time;
use understudy_protocol::wire::codec::record_bytes_max;
use understudy_protocol::wire::replica::{Ask, ReplicaAnswer, ReplicaRequest};
use understudy_supervision::clock;
use understudy_supervision::store::{CheckpointStore, ReadError, StoreError};

/// The queue is full: the request was not taken. Its owner asks again; any request may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store's queue is full")]
pub struct Full;

/// A store's thread. Dropping it stops it.
#[derive(Debug)]
pub struct ReplicaThread {
    queue: Option<SyncSender<Asked>>,
    queued_bytes: Arc<AtomicUsize>,
    stopping: Arc<AtomicBool>,
    full: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Asked {
    from: NodeId,
    request: ReplicaRequest,
    bytes: usize,
}

/// Hears every answer, from the store's thread. It must not block.
pub type Answer = Box<dyn FnMut(NodeId, ReplicaAnswer) + Send>;

/// Hears once, from the store's thread, that the store has failed and answers nothing more.
pub type Failed = Box<dyn FnOnce(StoreError) + Send>;

impl ReplicaThread {
    /// Starts the thread. What the store held is read on it first. `log` hears every event of the
    /// machine, if it is given.
    ///
    /// # Errors
    ///
    /// When the operating system gives no thread; the store is closed then.
    pub fn start(
        store: Box<dyn CheckpointStore>,
        session: IncarnationId,
        log: Option<Box<dyn Sink>>,
        answer: Answer,
        failed: Failed,
    ) -> std::io::Result<ReplicaThread> {
        let (queue, asked) = sync_channel(QUEUE_MAX);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let stopping = Arc::new(AtomicBool::new(false));
        let full = Arc::new(AtomicBool::new(false));
        let waiting = Queue {
            asked,
            bytes: Arc::clone(&queued_bytes),
            stopping: Arc::clone(&stopping),
            full: Arc::clone(&full),
        };
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                let run = AssertUnwindSafe(|| Serving::run(store, session, log, answer, &waiting));
                let ended = catch_unwind(run).unwrap_or_else(|_| {
                    Err(StoreError::Failed {
                        reason: "the store's thread panicked".into(),
                    })
                });
                if let Err(error) = ended {
                    tracing::error!(%error, "the store has failed");
                    failed(error);
                }
            })?;
        Ok(ReplicaThread {
            queue: Some(queue),
            queued_bytes,
            stopping,
            full,
            thread: Some(thread),
        })
    }

    /// Whether records were turned away when it was last looked, because the disk is nearly full: true
    /// until there is room, for whoever wants to say why a call was not answered.
    pub fn fullness(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.full)
    }

    /// Asks the store. Never blocks.
    pub fn ask(&self, from: NodeId, request: ReplicaRequest) -> Result<(), Full> {
        let bytes = bytes_of(&request);
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let asked = Asked {
            from,
            request,
            bytes,
        };
        let sent = match &self.queue {
            Some(queue) if queued <= QUEUE_BYTES_MAX => queue.try_send(asked),
            _ => Err(TrySendError::Full(asked)),
        };
        sent.map_err(|_| {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            metrics::counter!("understudy_store_requests_refused").increment(1);
            Full
        })
    }

    /// Stops the thread when it has done what was asked before, and closes the store.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic has been told as a failure.
            let _ = thread.join();
        }
    }
}

impl Drop for ReplicaThread {
    fn drop(&mut self) {
        self.end();
    }
}

/// What runs on the thread.
struct Serving {
    replica: Recorded<Replica>,
    store: Box<dyn CheckpointStore>,
    answer: Answer,
    /// Records were turned away for want of room when it was last looked.
    full: Arc<AtomicBool>,
}

impl Serving {
    fn run(
        mut store: Box<dyn CheckpointStore>,
        session: IncarnationId,
        log: Option<Box<dyn Sink>>,
        answer: Answer,
        queue: &Queue,
    ) -> Result<(), StoreError> {
        let start = ReplicaStart {
            store: store.store_id(),
            session,
            opened: store.opened()?,
        };
        let mut serving = Serving {
            replica: Recorded::begin(clock::now(), start, log),
            store,
            answer,
            full: Arc::clone(&queue.full),
        };
        let mut scrub = Scrub {
            after: None,
            due: clock::now() + SCRUB_REST,
        };
        loop {
            let idle = scrub.due.since(clock::now());
            let first = match queue.asked.recv_timeout(idle) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => {
                    serving.scrub(&mut scrub)?;
                    serving.settle(queue)?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let has_room = serving.has_room()?;
            let (mut count, mut bytes) = (0, 0);
            let mut next = Some(first);
            while let Some(asked) = next {
                queue.bytes.fetch_sub(asked.bytes, Ordering::Relaxed);
                count += 1;
                bytes += asked.bytes;
                serving.take(asked, has_room);
                let more = count < GROUP_MAX && bytes < GROUP_BYTES_MAX;
                next = more.then(|| queue.asked.try_recv().ok()).flatten();
            }
            serving.settle(queue)?;
        }
    }

    /// One step of the round over the whole store.
    fn scrub(&mut self, scrub: &mut Scrub) -> Result<(), StoreError> {
        let scrubbed = self.store.scrub(scrub.after.as_ref())?;
        for (child, at) in scrubbed.damaged {
            self.damaged(child, at);
        }
        let rest = match &scrubbed.next {
            Some(_) => SCRUB_EVERY,
            None => SCRUB_REST,
        };
        *scrub = Scrub {
            after: scrubbed.next,
            due: clock::now() + rest,
        };
        Ok(())
    }

    fn damaged(&mut self, child: ChildId, at: Seq) {
        metrics::counter!("understudy_store_damaged_records").increment(1);
        tracing::error!(%child, %at, "a record is damaged");
        self.tell(Event::Damage { child, at });
    }

    fn has_room(&mut self) -> Result<bool, StoreError> {
        let room = match self.store.room() {
            Err(error) if error.is_final() => return Err(error),
            room => room,
        };
        // Said once each way: whoever looks for why no call is answered finds it.
        let was_full = self.full.swap(room.is_err(), Ordering::Relaxed);
        match (&room, was_full) {
            (Err(error), false) => tracing::error!(%error, "new records are turned away"),
            (Ok(()), true) => tracing::info!("there is room again: records are taken"),
            _ => {}
        }
        Ok(room.is_ok())
    }

    fn take(&mut self, asked: Asked, has_room: bool) {
        let Asked { from, request, .. } = asked;
        if !has_room && matches!(&request.ask, Ask::Append(append) if !append.records.is_empty()) {
            metrics::counter!("understudy_store_appends_refused_disk_full").increment(1);
            return;
        }
        self.tell(Event::Asked { from, request });
    }

    fn tell(&mut self, event: Event) {
        if let Err(refused) = self.replica.handle(clock::now(), event) {
            metrics::counter!("understudy_store_events_refused").increment(1);
            tracing::warn!(%refused, "the replica refused an event");
        }
    }

    /// Carries out what the machine wants until it wants nothing more: all writes as one commit, then
    /// the reads, so that a read sees every write before it.
    fn settle(&mut self, queue: &Queue) -> Result<(), StoreError> {
        let mut reads = VecDeque::new();
        loop {
            let mut writes = Vec::new();
            let mut last_ticket = None;
            while let Some(action) = self.replica.poll_action() {
                match action {
                    Action::Write { ticket, batch } => {
                        writes.extend(batch);
                        last_ticket = Some(ticket);
                    }
                    Action::Read { read, child, after } => reads.push_back((read, child, after)),
                    Action::Answer { to, answer } => (self.answer)(to, answer),
                }
            }
            if let Some(ticket) = last_ticket {
                if !self.commit(writes, queue)? {
                    // It is stopped before there was room: nothing of this was answered.
                    return Ok(());
                }
                self.tell(Event::Flushed { ticket });
            } else if let Some((read, child, after)) = reads.pop_front() {
                self.read(read, child, after)?;
            } else {
                return Ok(());
            }
        }
    }

    /// Whether the writes were committed: not when the thread is stopped while it waits for room.
    fn commit(&mut self, writes: Vec<Write>, queue: &Queue) -> Result<bool, StoreError> {
        let puts = writes.iter().any(|write| matches!(write, Write::Put(_)));
        // The machine counts on these records, so they wait for room; meanwhile the queue fills.
        while puts && !self.has_room()? {
            if queue.stopping.load(Ordering::Relaxed) {
                return Ok(false);
            }
            std::thread::park_timeout(ROOM_RETRY);
        }
        let began = clock::now();
        let count = writes.len();
        self.store.commit(writes)?;
        metrics::histogram!("understudy_store_commit_seconds")
            .record(clock::now().since(began).as_secs_f64());
        metrics::histogram!("understudy_store_commit_writes").record(count as f64);
        Ok(true)
    }

    fn read(&mut self, read: u64, child: ChildId, after: Seq) -> Result<(), StoreError> {
        match self.store.read(&child, after) {
            Ok(records) => self.tell(Event::Read { read, records }),
            // The owner is told of the damage instead; its fetch stays without an answer.
            Err(ReadError::Damaged { at }) => self.damaged(child, at),
            Err(ReadError::Store(error)) => return Err(error),
        }
        Ok(())
    }
}

/// Where the round over the whole store stands.
struct Scrub {
    after: Option<ChildId>,
    due: Time,
}

/// The thread's end of the queue.
struct Queue {
    asked: Receiver<Asked>,
    bytes: Arc<AtomicUsize>,
    stopping: Arc<AtomicBool>,
    full: Arc<AtomicBool>,
}

/// What a request takes of the queue's memory.
fn bytes_of(request: &ReplicaRequest) -> usize {
    let records = match &request.ask {
        Ask::Append(append) => append.records.iter().map(record_bytes_max).sum(),
        Ask::Seal { .. } | Ask::Fetch { .. } | Ask::Confirm { .. } => 0,
    };
    REQUEST_BYTES + records
}

/// Requests that wait. A flush takes a few milliseconds; what waits behind a thousand others is asked
/// again anyway.
const QUEUE_MAX: usize = 1_024;
/// Bytes that wait: 64 of the largest requests, and no more memory than sled's cache.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A request without its records: ids, and at most 64 excepted children.
const REQUEST_BYTES: usize = 256;

/// Requests that share a commit.
const GROUP_MAX: usize = 256;
/// Bytes that share a commit: 10 ms of a disk that writes 400 MB/s.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How often a disk that filled up between two looks is looked at again.
const ROOM_RETRY: Duration = Duration::from_millis(250);

/// A megabyte a second is no load. A step waits for a moment without requests.
const SCRUB_EVERY: Duration = Duration::from_secs(1);
/// Between two rounds. Opening the store has read all of it, so the first round can wait too.
const SCRUB_REST: Duration = Duration::from_secs(3_600);
