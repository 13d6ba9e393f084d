//! What the tests of the kind share: modules from a map, and a child with its records.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::{Value, json};
use understudy_protocol::id::{ChildId, IncarnationId};
use understudy_protocol::wire::envelope::CallKey;
use understudy_sandbox::Engine;
use understudy_sandbox::dirty::{Method, Scanner};
use understudy_sandbox::module::{Module, ModuleError, ModuleId, ModuleSource};
use understudy_sandbox::threads::GuestThreads;
use understudy_supervision::{Checkpoint, Child, Context, Handled, Kind, Request, StartError};

pub const HIDDEN: &str = include_str!("../guests/hidden.wat");
pub const LEDGER: &[u8] = include_bytes!("../guests/ledger.wasm");

/// Modules by `name@version`.
#[derive(Clone, Default)]
pub struct Shelf(pub BTreeMap<String, Vec<u8>>);

impl ModuleSource for Shelf {
    async fn fetch(&self, _: &str, id: &ModuleId) -> Result<Module, ModuleError> {
        let wasm = self.0.get(&id.to_string()).cloned();
        let wasm = wasm.ok_or(ModuleError::NotFound(id.to_string()))?;
        Ok(Module::new(wasm))
    }
}

/// The two guests that everybody uses.
pub fn shelf() -> Shelf {
    let mut shelf = Shelf::default();
    let hidden = wat::parse_str(HIDDEN).unwrap();
    shelf.0.insert("hidden@1.0.0".to_owned(), hidden);
    shelf.0.insert("ledger@1.0.0".to_owned(), LEDGER.to_vec());
    shelf
}

/// The threads of all guests.
pub fn threads() -> GuestThreads {
    static THREADS: OnceLock<GuestThreads> = OnceLock::new();
    THREADS
        .get_or_init(|| GuestThreads::start().unwrap())
        .clone()
}

/// One engine that asks the kernel which pages were written.
pub fn engine() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| Engine::with_slots(32).unwrap());
    engine.clone()
}

/// One that compares all pages, as on an old kernel.
pub fn comparing() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let scanner = || Scanner::at_most(Method::Comparing);
    let engine = ENGINE.get_or_init(|| Engine::build(32, scanner()).unwrap());
    engine.clone()
}

/// One that asks which pages were ever written, as where watching them is forbidden.
pub fn scanning() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let scanner = || Scanner::at_most(Method::Scanning);
    let engine = ENGINE.get_or_init(|| Engine::build(32, scanner()).unwrap());
    engine.clone()
}

/// A child and what is recorded of it.
pub struct Kept<'a, K: Kind> {
    kind: &'a K,
    pub child: K::Child,
    pub records: Checkpoint,
}

impl<'a, K: Kind> Kept<'a, K> {
    pub async fn begin(kind: &'a K) -> Kept<'a, K> {
        let records = Checkpoint::default();
        let child = start(kind, &records).await.unwrap();
        Kept {
            kind,
            child,
            records,
        }
    }

    /// A call whose step is recorded.
    pub async fn call(&mut self, body: &[u8]) -> Bytes {
        let handled = self.perform(body).await;
        self.records.steps.extend(handled.effect);
        handled.answer
    }

    /// A call whose step is recorded by nobody.
    pub async fn perform(&mut self, body: &[u8]) -> Handled {
        let key = CallKey::Internal {
            gateway: IncarnationId(1),
            number: 1,
        };
        let request = Request::new(key, Bytes::copy_from_slice(body));
        self.child.handle(request).await.unwrap()
    }

    /// A snapshot takes the place of all the steps.
    pub async fn rebase(&mut self) {
        let state = self.child.snapshot().await.unwrap();
        self.records = Checkpoint::new(Some(state), Vec::new());
    }

    /// Its process dies, and another one goes on from the records.
    pub async fn kill(&mut self) {
        self.child = start(self.kind, &self.records).await.unwrap();
    }
}

pub async fn start<K: Kind>(kind: &K, records: &Checkpoint) -> Result<K::Child, StartError> {
    let context = Context::new(ChildId::parse("acme/sandbox/s").unwrap(), |_, _| {});
    kind.start(context, records.clone()).await
}

pub fn create(module: &str) -> Vec<u8> {
    // Go wants more before it says a word; the others are to meet their limit.
    let memory = if module.starts_with("go") {
        32 << 20
    } else {
        1 << 20
    };
    let policy = json!({"clock": "virtual", "random": {"seeded": 7}, "output": "captured"});
    json!({"op": "create", "module": module, "policy": policy, "limits": {"memory_bytes": memory}})
        .to_string()
        .into_bytes()
}

pub fn numbers(export: &str, args: Value) -> Vec<u8> {
    json!({"op": "call", "export": export, "args": args})
        .to_string()
        .into_bytes()
}

pub fn bytes(export: &str, request: &[u8]) -> Vec<u8> {
    let mut body = json!({"op": "call", "export": export})
        .to_string()
        .into_bytes();
    body.push(b'\n');
    body.extend_from_slice(request);
    body
}

/// The line of JSON of an answer.
pub fn head(answer: &[u8]) -> Value {
    let line = answer.split(|byte| *byte == b'\n').next().unwrap();
    serde_json::from_slice(line).unwrap()
}

/// Steele, Lea and Flood's SplitMix64.
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
