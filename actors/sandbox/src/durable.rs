//! A guest whose state outlives its instance.
//!
//! Owns: an instance, a copy of every page that differs from the module's image as of the last call that
//! ended well, and the numbers of its deltas. Never answers from a state that a failed call left behind:
//! the instance is replaced, and is as before the call.
//!
//! ```text
//!   call ──> ran well ──> keep(): which pages differ from the copy? ──> copy follows ──> take_delta()
//!        └─> failed ────> a new instance from the copy                               └─> image()
//! ```
//!
//! The kernel says which pages were written since the last call, or at least which ones may have been
//! ([`dirty`](crate::dirty)); of those, the ones that differ from the copy (or, if there is none yet, from
//! the module's image) have changed. Comparing is exact, where a hash would only be likely, and the copy
//! is what a failed call is undone from.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use tokio::task::yield_now;
use wasmtime::{Func, Global, Ref, Table, Val};

use crate::abi::{Args, CallError, Outcome};
use crate::dirty::Watch;
use crate::engine::{Compiled, Limits, PAGE_BYTES};
use crate::instance::{Instance, Setup};
use crate::rewrite::{Obstacle, Scalar};
use crate::snapshot::{
    Change, Delta, Image, NO_FUNCTION, PAGE, Rest, SnapshotError, Sums, TURN, Trailer, is_zero,
};
use crate::wasi::Log;

const ZEROS: [u8; PAGE] = [0; PAGE];

/// The largest memory of a guest whose state is kept: an image must fit what a snapshot may be, 64 MiB,
/// with everything else that is in it.
pub const MAX_DURABLE_MEMORY: u64 = 60 << 20;

/// Why there is no such guest. Nothing runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DurableError {
    /// The module's state cannot be checkpointed.
    #[error("the state of this module cannot be checkpointed: {0}")]
    Obstacle(Obstacle),
    /// It cannot be made, or its first code failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Its state cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Its state needs more than it may have.
    #[error("the state does not fit: {0}")]
    DoesNotFit(String),
    /// The kernel did not say which pages were written.
    #[error("which pages were written cannot be found out: {0}")]
    Scan(#[from] io::Error),
}

/// A guest whose state is kept.
#[derive(Debug)]
pub struct Durable {
    // Before the instance, whose memory it must not outlive.
    watch: Watch,
    instance: Instance,
    handles: Handles,
    /// The state as of the last call that ended well.
    kept: Kept,
    /// The number of the last delta that was taken, and what has changed since.
    sequence: u64,
    pending: Pending,
    /// Of what is kept, as far as an image was made of it.
    sums: Sums,
}

#[derive(Debug, Default)]
struct Kept {
    /// Pages that may differ from the module's image, by number.
    pages: BTreeMap<u32, Box<[u8]>>,
    rest: Rest,
}

/// What is to be in the next delta.
#[derive(Debug, Default, PartialEq)]
struct Pending {
    pages: BTreeSet<u32>,
    memory_pages: bool,
    globals: bool,
    tables: bool,
    wasi: bool,
}

/// The hidden exports of one instance.
#[derive(Debug, Default)]
struct Handles {
    globals: Vec<Global>,
    tables: Vec<Table>,
    functions: HashMap<u32, Func>,
    /// Which function an element of a table is, by its address in this instance.
    by_address: HashMap<usize, u32>,
}

impl Durable {
    /// A new guest, its start function and `_initialize` run. Its first delta is what they did.
    ///
    /// # Errors
    /// See [`DurableError`].
    pub async fn create(compiled: &Compiled, setup: Setup) -> Result<Durable, DurableError> {
        let setup = admit(compiled, setup)?;
        let mut durable = Durable::untouched(compiled, setup).await?;
        durable.instance.initialize().await?;
        durable.keep()?;
        // The first state is told whole, even if it is that of a guest that did nothing yet.
        durable.pending = Pending {
            pages: durable.pending.pages,
            memory_pages: true,
            globals: true,
            tables: true,
            wasi: true,
        };
        Ok(durable)
    }

    /// The guest in the state of an image, if there is one, and the deltas after it.
    ///
    /// # Errors
    /// See [`DurableError`].
    pub async fn restore(
        compiled: &Compiled,
        setup: Setup,
        image: Option<&Image<'_>>,
        deltas: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<Durable, DurableError> {
        let setup = admit(compiled, setup)?;
        let module = *compiled.sha256();
        let mut kept = Kept::default();
        let mut sequence = 0;
        let mut durable = Durable::untouched(compiled, setup).await?;
        if let Some(image) = image {
            if image.trailer.module != module {
                return Err(SnapshotError::WrongModule("image").into());
            }
            sequence = image.trailer.sequence;
            image.verify().await?;
            kept.pages = durable.differing(image).await;
            kept.rest = image.trailer.rest.clone();
        }
        for delta in deltas {
            let delta = Delta::decode(delta.as_ref()).await?;
            delta.follows(&module, sequence)?;
            sequence = delta.sequence;
            for (number, page) in delta.each_page() {
                kept.pages.insert(number, page.into());
            }
            delta.rest.apply(&mut kept.rest);
        }
        if image.is_none() && sequence == 0 {
            let why = "there is neither an image nor a delta".to_owned();
            return Err(SnapshotError::Malformed("state", why).into());
        }
        durable.kept = kept;
        durable.sequence = sequence;
        durable.settle().await?;
        Ok(durable)
    }

    /// Calls an export; a call that fails leaves the state as it was. What changed is for
    /// [`Durable::take_delta`].
    ///
    /// # Errors
    /// [`CallFailed::Call`]: the guest is as before the call. [`CallFailed::Lost`]: it cannot be gone on
    /// with, and is to be restored from what was recorded.
    pub async fn call<R>(
        &mut self,
        export: &str,
        args: Args<'_>,
        with: impl FnOnce(Outcome<'_>) -> R,
    ) -> Result<R, CallFailed> {
        // The last caller went away in the middle.
        if self.instance.is_spent() {
            self.undo().await.map_err(CallFailed::Lost)?;
        }
        match self.instance.call(export, args, with).await {
            Ok(done) => match self.keep() {
                Ok(()) => Ok(done),
                Err(error) => {
                    self.instance.set_spent(true);
                    Err(CallFailed::Lost(error))
                }
            },
            Err(error) => {
                if self.instance.is_spent() {
                    self.undo().await.map_err(CallFailed::Lost)?;
                }
                Err(CallFailed::Call(error))
            }
        }
    }

    /// What has changed since the last delta, as the next one. None if nothing has.
    pub async fn take_delta(&mut self) -> Option<Vec<u8>> {
        if !self.has_pending() {
            return None;
        }
        let pending = &self.pending;
        let module = *self.instance.compiled().sha256();
        let Rest {
            memory_pages,
            globals,
            tables,
            wasi,
        } = &self.kept.rest;
        let change = Change {
            memory_pages: *memory_pages,
            globals: pending.globals.then(|| globals.clone()),
            tables: pending.tables.then(|| tables.clone()),
            wasi: pending.wasi.then(|| wasi.clone()),
        };
        let mut delta = Delta::new(module, self.sequence + 1, change);
        for number in &pending.pages {
            if let Some(page) = self.kept.pages.get(number) {
                delta.push(*number, page);
            }
        }
        let delta = delta.encode().await;
        // Only now, since whoever asked may have gone away meanwhile.
        self.pending = Pending::default();
        self.sequence += 1;
        Some(delta)
    }

    /// Whether anything has changed since the last delta.
    pub fn has_pending(&self) -> bool {
        self.pending != Pending::default()
    }

    /// The whole state as of the last call that ended well, with `about` for whoever restores it. It
    /// counts as having all the deltas that were taken; what is pending comes again with the next.
    ///
    /// # Errors
    /// The state cannot be gone back to after a caller went away: restore it from what was recorded.
    pub async fn image(&mut self, about: &[u8]) -> Result<Vec<u8>, DurableError> {
        if self.instance.is_spent() {
            self.undo().await?;
        }
        let trailer = Trailer::new(
            *self.instance.compiled().sha256(),
            self.sequence,
            self.kept.rest.clone(),
            about.to_vec(),
        );
        let memory = self.instance.memory();
        Ok(Image::write(memory, trailer, &mut self.sums).await)
    }

    /// The number of the last delta.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Its memory as it is.
    pub fn memory(&self) -> &[u8] {
        self.instance.memory()
    }

    /// All of its state but its memory, as of the last call that ended well.
    pub fn rest(&self) -> &Rest {
        &self.kept.rest
    }

    /// What it is an instance of.
    pub fn compiled(&self) -> &Compiled {
        self.instance.compiled()
    }

    /// What it wrote during the last call.
    pub fn log(&self) -> &Log {
        self.instance.log()
    }

    /// How often it was denied something during the last call.
    pub fn denied(&self) -> u32 {
        self.instance.denied()
    }

    /// What it may use.
    pub fn limits(&self) -> &Limits {
        &self.instance.setup().limits
    }

    async fn untouched(compiled: &Compiled, setup: Setup) -> Result<Durable, DurableError> {
        let mut instance = Instance::bare(compiled, setup).await?;
        compiled.remember_image(&instance);
        let handles = Handles::of(&mut instance)?;
        Ok(Durable {
            watch: compiled.engine().scanner().watch(),
            instance,
            handles,
            kept: Kept::default(),
            sequence: 0,
            pending: Pending::default(),
            sums: Sums::default(),
        })
    }

    /// The pages of an image that this untouched instance has differently.
    async fn differing(&self, image: &Image<'_>) -> BTreeMap<u32, Box<[u8]>> {
        let memory = self.instance.memory();
        let mut differing = BTreeMap::new();
        let all = image.trailer.rest.memory_pages as usize * PAGE_BYTES as usize;
        for number in 0..all / PAGE {
            let range = number * PAGE..(number + 1) * PAGE;
            // Beyond what the instance begins with, and beyond what the image holds, there are zeros.
            let mine = memory.get(range.clone()).unwrap_or(&ZEROS);
            let page = image.memory.get(range).unwrap_or(&ZEROS);
            if mine != page {
                differing.insert(number as u32, page.into());
            }
            if number % (TURN / PAGE) == 0 {
                yield_now().await;
            }
        }
        differing
    }

    /// A new instance in place of a spent one, in the state that is kept.
    async fn undo(&mut self) -> Result<(), DurableError> {
        // The old memory's watch ends before that memory does.
        self.watch = self.instance.compiled().engine().scanner().watch();
        self.instance.replace().await?;
        self.handles = Handles::of(&mut self.instance)?;
        self.settle().await?;
        self.instance.set_spent(false);
        Ok(())
    }

    /// Brings an instance in which nothing has run into the state that is kept.
    async fn settle(&mut self) -> Result<(), DurableError> {
        let Durable {
            instance,
            handles,
            kept,
            ..
        } = self;
        let fault = |what: &str| {
            let why = format!("{what} are not the module's");
            SnapshotError::Malformed("state", why)
        };
        let wasi = instance.store.data_mut().wasi();
        wasi.restore(&kept.rest.wasi)
            .map_err(|error| SnapshotError::Malformed("state", error.to_string()))?;
        if let Some(memory) = instance.memory {
            let pages = memory.size(&instance.store);
            let missing = u64::from(kept.rest.memory_pages).checked_sub(pages);
            let missing = missing.ok_or_else(|| fault("its pages"))?;
            let grown = memory.grow_async(&mut instance.store, missing).await;
            grown.map_err(|error| DurableError::DoesNotFit(format!("{error:#}")))?;
            for (written, (number, page)) in kept.pages.iter().enumerate() {
                let at = *number as usize * PAGE;
                let place = memory.data_mut(&mut instance.store).get_mut(at..at + PAGE);
                let place = place.ok_or_else(|| fault("its pages"))?;
                place.copy_from_slice(page);
                if written % (TURN / PAGE) == 0 {
                    yield_now().await;
                }
            }
        } else if kept.rest.memory_pages != 0 || !kept.pages.is_empty() {
            return Err(fault("its pages").into());
        }
        handles.write(instance, &kept.rest, fault).await?;
        // What was written here is what is kept: the next question is about what comes now.
        self.watch.written(self.instance.memory())?;
        Ok(())
    }

    /// Finds out what the last call changed, and keeps it.
    fn keep(&mut self) -> Result<(), DurableError> {
        let rest = self.handles.read(&mut self.instance, &self.kept.rest);
        let memory = self.instance.memory();
        let written = self.watch.written(memory)?;
        let image = self.instance.compiled().remembered_image();
        for number in written
            .iter()
            .flat_map(|range| range.start / PAGE..range.end.div_ceil(PAGE))
        {
            let Some(page) = memory.get(number * PAGE..(number + 1) * PAGE) else {
                continue;
            };
            let number = number as u32;
            if let Some(kept) = self.kept.pages.get_mut(&number) {
                if **kept != *page {
                    kept.copy_from_slice(page);
                    self.pending.pages.insert(number);
                    self.sums.forget(number);
                }
                continue;
            }
            // A page may be written without being changed: then it is as it was in the beginning.
            let at = number as usize * PAGE;
            let is_as_in_image = match image.get(at..at + PAGE) {
                Some(first) => first == page,
                None => is_zero(page),
            };
            if !is_as_in_image {
                self.kept.pages.insert(number, page.into());
                self.pending.pages.insert(number);
                self.sums.forget(number);
            }
        }
        let before = &self.kept.rest;
        self.pending.memory_pages |= rest.memory_pages != before.memory_pages;
        self.pending.globals |= rest.globals != before.globals;
        self.pending.tables |= rest.tables != before.tables;
        self.pending.wasi |= rest.wasi != before.wasi;
        self.kept.rest = rest;
        Ok(())
    }
}

/// Why a call of a durable guest has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum CallFailed {
    /// The call failed; the guest is as before it.
    #[error(transparent)]
    Call(CallError),
    /// The guest is lost here. What was recorded stands.
    #[error("the guest is lost: {0}")]
    Lost(DurableError),
}

impl Handles {
    fn of(instance: &mut Instance) -> Result<Handles, DurableError> {
        let layout = instance.compiled().layout().clone();
        let missing = |name: &str| {
            DurableError::Call(CallError::Engine(format!("the hidden {name} is missing")))
        };
        let mut handles = Handles::default();
        let Instance {
            store, instance, ..
        } = instance;
        for n in 0..layout.globals.len() {
            let name = format!("__us_g{n}");
            let global = instance.get_global(&mut *store, &name);
            handles.globals.push(global.ok_or_else(|| missing(&name))?);
        }
        for n in 0..layout.tables {
            let name = format!("__us_t{n}");
            let table = instance.get_table(&mut *store, &name);
            handles.tables.push(table.ok_or_else(|| missing(&name))?);
        }
        for index in layout.functions {
            let name = format!("__us_f{index}");
            let function = instance.get_func(&mut *store, &name);
            let function = function.ok_or_else(|| missing(&name))?;
            let address = function.to_raw(&mut *store) as usize;
            handles.by_address.insert(address, index);
            handles.functions.insert(index, function);
        }
        Ok(handles)
    }

    /// The state besides the memory, after a call that began with it as it was `before`.
    fn read(&self, instance: &mut Instance, before: &Rest) -> Rest {
        let wasi = instance.store.data_mut().wasi();
        let mut rest = Rest {
            // With files in it this may be megabytes; and it is never empty once it was read.
            wasi: match wasi.is_untouched() && !before.wasi.is_empty() {
                true => before.wasi.clone(),
                false => wasi.checkpoint(),
            },
            ..Rest::default()
        };
        let store = &mut instance.store;
        if let Some(memory) = instance.memory {
            rest.memory_pages = memory.size(&*store) as u32;
        }
        for global in &self.globals {
            match global.get(&mut *store) {
                Val::I32(value) => rest.globals.extend_from_slice(&value.to_le_bytes()),
                Val::I64(value) => rest.globals.extend_from_slice(&value.to_le_bytes()),
                Val::F32(bits) => rest.globals.extend_from_slice(&bits.to_le_bytes()),
                Val::F64(bits) => rest.globals.extend_from_slice(&bits.to_le_bytes()),
                Val::V128(bits) => {
                    let bits = bits.as_u128();
                    rest.globals.extend_from_slice(&bits.to_le_bytes());
                }
                // The layout has scalars only.
                _ => {}
            }
        }
        for table in &self.tables {
            let mut elements = Vec::new();
            for at in 0..table.size(&*store) {
                let index = match table.get(&mut *store, at) {
                    Some(Ref::Func(Some(function))) => {
                        let address = function.to_raw(&mut *store) as usize;
                        self.by_address.get(&address).copied()
                    }
                    _ => None,
                };
                elements.push(index.unwrap_or(NO_FUNCTION));
            }
            rest.tables.push(elements);
        }
        rest
    }

    async fn write(
        &self,
        instance: &mut Instance,
        rest: &Rest,
        fault: impl Fn(&str) -> SnapshotError,
    ) -> Result<(), DurableError> {
        let does_not_fit = |error: wasmtime::Error| DurableError::DoesNotFit(format!("{error:#}"));
        let types = instance.compiled().layout().globals.clone();
        let store = &mut instance.store;
        let width: usize = types.iter().map(|ty| ty.width()).sum();
        if width != rest.globals.len() || self.tables.len() != rest.tables.len() {
            return Err(fault("its globals").into());
        }
        let mut bytes = &rest.globals[..];
        for (global, ty) in self.globals.iter().zip(types) {
            let (value, others) = bytes.split_at(ty.width());
            bytes = others;
            global
                .set(&mut *store, value_of(ty, value))
                .map_err(does_not_fit)?;
        }
        for (table, elements) in self.tables.iter().zip(&rest.tables) {
            let missing = (elements.len() as u64).checked_sub(table.size(&*store));
            let missing = missing.ok_or_else(|| fault("its tables"))?;
            let grown = table
                .grow_async(&mut *store, missing, Ref::Func(None))
                .await;
            grown.map_err(does_not_fit)?;
            for (at, index) in (0..).zip(elements) {
                let function = match *index {
                    NO_FUNCTION => None,
                    index => Some(
                        *self
                            .functions
                            .get(&index)
                            .ok_or_else(|| fault("its tables"))?,
                    ),
                };
                table
                    .set(&mut *store, at, Ref::Func(function))
                    .map_err(does_not_fit)?;
            }
        }
        Ok(())
    }
}

fn admit(compiled: &Compiled, mut setup: Setup) -> Result<Setup, DurableError> {
    if let Some(obstacle) = compiled.layout().obstacle {
        return Err(DurableError::Obstacle(obstacle));
    }
    setup.limits.memory_bytes = setup.limits.memory_bytes.min(MAX_DURABLE_MEMORY);
    Ok(setup)
}

/// `bytes` is as wide as the type.
fn value_of(ty: Scalar, bytes: &[u8]) -> Val {
    let mut wide = [0; 16];
    wide[..bytes.len()].copy_from_slice(bytes);
    let bits = u128::from_le_bytes(wide);
    match ty {
        Scalar::I32 => Val::I32(bits as i32),
        Scalar::I64 => Val::I64(bits as i64),
        Scalar::F32 => Val::F32(bits as u32),
        Scalar::F64 => Val::F64(bits as u64),
        Scalar::V128 => Val::V128(bits.into()),
    }
}
