//! The peer: wasmtime as one would use it without us, with the same settings.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tokio::task::JoinSet;
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, InstancePre, Linker, Module,
    PoolingAllocationConfig, Store,
};

use super::{BATCH, micros, p50_and_p99};

/// A compiled guest.
pub(crate) struct Bare {
    engine: Engine,
    pre: InstancePre<()>,
}

impl Bare {
    pub(crate) fn new(guest: &[u8]) -> Result<Bare> {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_core_instances(SLOTS)
            .total_memories(SLOTS)
            .total_tables(SLOTS)
            .total_stacks(SLOTS);
        let mut config = Config::new();
        config
            .epoch_interruption(true)
            .memory_init_cow(true)
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&config).map_err(failed)?;
        let module = Module::new(&engine, guest).map_err(failed)?;
        let pre = Linker::new(&engine).instantiate_pre(&module);
        Ok(Bare {
            engine,
            pre: pre.map_err(failed)?,
        })
    }

    fn store(&self) -> Store<()> {
        let mut store = Store::new(&self.engine, ());
        store.set_epoch_deadline(u64::MAX / 2);
        store
    }

    /// p50 and p99 of making an instance, calling it and dropping it, in microseconds.
    pub(crate) async fn fresh(&self, count: usize) -> Result<(f64, f64)> {
        let mut took = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            let mut store = self.store();
            let instance = self.pre.instantiate_async(&mut store).await;
            let instance = instance.map_err(failed)?;
            let add = instance.get_typed_func::<(i32, i32), i32>(&mut store, "add");
            let add = add.map_err(failed)?;
            let sum = add.call_async(&mut store, (2, 3)).await;
            drop(store);
            took.push(micros(began.elapsed()));
            sum.map_err(failed)?;
        }
        p50_and_p99(&took)
    }

    /// Calls a second of instances that are there already, each caller with its own.
    pub(crate) async fn warm(&self, callers: usize, time: Duration) -> Result<f64> {
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let (pre, mut store) = (self.pre.clone(), self.store());
            tasks.spawn(async move {
                let instance = pre.instantiate_async(&mut store).await;
                let instance = instance.map_err(failed)?;
                let add = instance.get_typed_func::<(i32, i32), i32>(&mut store, "add");
                let add = add.map_err(failed)?;
                let mut calls = 0_u64;
                let until = Instant::now() + time;
                while Instant::now() < until {
                    for _ in 0..BATCH {
                        let sum = add.call_async(&mut store, (2, 3)).await;
                        sum.map_err(failed)?;
                    }
                    calls += BATCH;
                    tokio::task::yield_now().await;
                }
                Ok::<u64, anyhow::Error>(calls)
            });
        }
        let mut calls = 0;
        while let Some(called) = tasks.join_next().await {
            calls += called??;
        }
        Ok(calls as f64 / began.elapsed().as_secs_f64())
    }
}

fn failed(error: wasmtime::Error) -> anyhow::Error {
    anyhow!("{error:#}")
}

/// As many as there are callers, and some.
const SLOTS: u32 = 128;
