//! What a module must be before anything compiles it.
//!
//! Owns: the reading of a module that somebody sent: its size, its sections, what it imports, how much
//! of everything it has; and [`About`], what can be said of it without running it. Never compiles, and
//! never keeps anything of a module that it refused.
//!
//! Compiling is the expensive and the dangerous step: it takes minutes for some modules, and a fault in
//! a compiler is an escape. So everything that can be refused is refused here first, by a reader that
//! only walks over the bytes once and allocates no more than the limits below allow.
//!
//! The proposals that are on are those that a guest from today's toolchains needs, and no others
//! ([`FEATURES`]): each further one is more compiler for a stranger to try out. Relaxed SIMD is off
//! because two machines may answer it differently, and a restored guest must not.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use wasmparser::{
    CompositeInnerType, ExternalKind, FuncType, KnownCustom, Operator, Parser, Payload, TypeRef,
    ValidPayload, Validator, WasmFeatures,
};

use crate::rewrite::RESERVED;
use crate::wasi;

/// The proposals a module may use: WebAssembly 2.0 without `externref`, and extended constant
/// expressions, which compilers emit. The engine is configured with the same set.
pub const FEATURES: WasmFeatures = WasmFeatures::WASM2
    .union(WasmFeatures::EXTENDED_CONST)
    .difference(WasmFeatures::GC_TYPES);

/// The most exports, imports, custom sections and producers that [`About`] lists: what a person reads,
/// and what an answer to a call holds.
pub const LISTED_MAX: usize = 1_000;

/// The most bytes of JSON that exports, and producers, take of [`About`]: with everything else it fits
/// the answer to a call, which has 1 MiB, whatever a module calls them.
const TOLD_JSON_MAX: usize = 256 << 10;

/// How much of everything a module may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The module itself, in bytes.
    pub bytes: usize,
    /// Function types.
    pub types: u32,
    /// Functions with a body.
    pub functions: u32,
    /// Imports.
    pub imports: u32,
    /// Exports.
    pub exports: u32,
    /// Globals.
    pub globals: u32,
    /// Tables.
    pub tables: u32,
    /// Memories.
    pub memories: u32,
    /// Element segments.
    pub elements: u32,
    /// Data segments.
    pub data: u32,
    /// Custom sections.
    pub customs: u32,
    /// The length of one function's body, in bytes.
    pub body_bytes: u32,
    /// The places that the `br_table`s of one function name.
    pub targets: u32,
    /// The same of all functions.
    pub targets_total: u32,
    /// The locals of one function, its parameters included.
    pub locals: u32,
    /// The parameters, and the results, of one function type.
    pub parameters: u32,
    /// The length of an imported or exported name, in bytes.
    pub name_bytes: u32,
    /// What a memory may begin with, in bytes.
    pub memory_bytes: u64,
    /// What a table may begin with, in elements.
    pub table_elements: u64,
}

impl Limits {
    /// The limits of a node. The largest real guests that were looked at (CPython 3.15, 26 MiB, and
    /// QuickJS) have a third of these or less.
    pub const NODE: Limits = Limits {
        bytes: 32 << 20, // a module travels and is stored whole, on three replicas
        types: 10_000,
        functions: 50_000, // a compiler's time and memory grow with them
        imports: 256,      // WASI preview 1 has 46
        exports: 10_000,   // each is an entry in a table of every instance
        globals: 5_000,    // 16 bytes of every instance, and of every checkpoint
        tables: 4,
        memories: 1,
        elements: 10_000,
        data: 50_000,
        customs: 256,
        body_bytes: 2 << 20, // a compiler takes more than linear time for one body
        targets: 20_000, // each is an edge for the compiler, whose time grows faster than their number
        targets_total: 1_000_000,
        locals: 5_000,
        parameters: 32,
        name_bytes: 512,
        memory_bytes: 256 << 20, // what one large script interpreter needs
        table_elements: 20_000,
    };
}

/// Why a module is refused. Nothing of it was kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields are named as what they hold; an offset is in bytes of the module
pub enum ValidateError {
    /// It is larger than a module may be.
    #[error("the module has {bytes} bytes, more than the {max} that are allowed")]
    TooLarge { bytes: usize, max: usize },
    /// It does not begin as WebAssembly does.
    #[error("this is not WebAssembly: it does not begin with \\0asm")]
    NotWasm,
    /// It is of another version of the binary format.
    #[error("the module is of version {version} of the binary format, not 1")]
    Version { version: u16 },
    /// It is a component.
    #[error("this is a component, not a core module")]
    Component,
    /// It ends in the middle of something.
    #[error("the module ends too early, at byte {offset}: {reason}")]
    Truncated { offset: usize, reason: String },
    /// Its bytes break a rule of WebAssembly.
    #[error("the module is malformed at byte {offset}: {reason}")]
    Malformed { offset: usize, reason: String },
    /// It uses a proposal that is off.
    #[error("the module needs something that is off here, at byte {offset}: {reason}")]
    Feature { offset: usize, reason: String },
    /// It has too much of something.
    #[error("the module has {found} {what} at byte {offset}, more than the {max} that are allowed")]
    TooMany {
        what: &'static str,
        found: u64,
        max: u64,
        offset: usize,
    },
    /// It imports from somewhere that does not exist here.
    #[error("the module imports {module:?} {name:?} at byte {offset}, which does not exist here")]
    Import {
        module: String,
        name: String,
        offset: usize,
    },
    /// It imports from `wasi_unstable`, what came before preview 1.
    #[error("the module imports {name:?} from wasi_unstable (preview 0) at byte {offset}")]
    Preview0 { name: String, offset: usize },
    /// It was built for JavaScript's hosts by Go.
    #[error(
        "the module was built for a browser by Go: it imports {name:?} from gojs at byte {offset}"
    )]
    GoJs { name: String, offset: usize },
    /// It imports a known function as another type, or something that is no function.
    #[error("the module imports {name:?} at byte {offset} as {found}; here it is {wanted}")]
    ImportType {
        name: String,
        found: String,
        wanted: String,
        offset: usize,
    },
    /// It exports a name that is the host's.
    #[error("the module exports {name:?} at byte {offset}, and such names are the host's")]
    ReservedExport { name: String, offset: usize },
}

impl ValidateError {
    /// The error's name, as programs match on it.
    pub fn code(&self) -> &'static str {
        match self {
            ValidateError::TooLarge { .. } => "module_too_large",
            ValidateError::NotWasm => "not_wasm",
            ValidateError::Version { .. } => "wasm_version",
            ValidateError::Component => "component",
            ValidateError::Truncated { .. } => "truncated",
            ValidateError::Malformed { .. } => "malformed",
            ValidateError::Feature { .. } => "feature_off",
            ValidateError::TooMany { .. } => "too_many",
            ValidateError::Import { .. } => "unknown_import",
            ValidateError::Preview0 { .. } => "preview0",
            ValidateError::GoJs { .. } => "gojs",
            ValidateError::ImportType { .. } => "import_type",
            ValidateError::ReservedExport { .. } => "reserved_export",
        }
    }

    /// What its author can do about it.
    pub fn next_step(&self) -> &'static str {
        match self {
            ValidateError::TooLarge { .. } => {
                "strip it (wasm-strip, `-s`, `-ldflags=-s -w`) or split it"
            }
            ValidateError::NotWasm => "push the .wasm file that the compiler wrote, not its text",
            ValidateError::Version { .. } | ValidateError::Malformed { .. } => {
                "build it again; `wasm-tools validate` names the same place"
            }
            ValidateError::Component => {
                "build a core module: target wasm32-wasip1 instead of wasm32-wasip2, no componentize step"
            }
            ValidateError::Truncated { .. } => "push the whole file again",
            ValidateError::Feature { .. } => {
                "turn the proposal off in the compiler (threads, exceptions, memory64, relaxed SIMD and \
                 garbage collection are off here)"
            }
            ValidateError::TooMany { .. } => "make it smaller, or split it into several modules",
            ValidateError::Import { .. } => {
                "only wasi_snapshot_preview1 is here; link the rest into the module, or leave it out"
            }
            ValidateError::Preview0 { .. } => {
                "build it with a toolchain from 2020 or later (target wasm32-wasip1)"
            }
            ValidateError::GoJs { .. } => {
                "build it with GOOS=wasip1 GOARCH=wasm -buildmode=c-shared instead of GOOS=js"
            }
            ValidateError::ImportType { .. } => "declare the import as WASI preview 1 does",
            ValidateError::ReservedExport { .. } => "give the export another name",
        }
    }

    /// Where in the module it is, in bytes, if it is at one place.
    pub fn offset(&self) -> Option<usize> {
        match self {
            ValidateError::TooLarge { .. }
            | ValidateError::NotWasm
            | ValidateError::Version { .. }
            | ValidateError::Component => None,
            ValidateError::Truncated { offset, .. }
            | ValidateError::Malformed { offset, .. }
            | ValidateError::Feature { offset, .. }
            | ValidateError::TooMany { offset, .. }
            | ValidateError::Import { offset, .. }
            | ValidateError::Preview0 { offset, .. }
            | ValidateError::GoJs { offset, .. }
            | ValidateError::ImportType { offset, .. }
            | ValidateError::ReservedExport { offset, .. } => Some(*offset),
        }
    }
}

/// What a module is, as far as it can be said without running it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its length in bytes.
    pub bytes: u64,
    /// Whether it is run once or called.
    pub shape: Shape,
    /// Functions with a body.
    pub functions: u32,
    /// What it imports; the first [`LISTED_MAX`].
    pub imports: Vec<Item>,
    /// What it exports; the first [`LISTED_MAX`], and fewer of very long names.
    pub exports: Vec<Item>,
    /// How many exports it has in all.
    pub exports_total: u32,
    /// Its memories, in pages of 64 KiB.
    pub memories: Vec<Extent>,
    /// Its tables, in elements.
    pub tables: Vec<Extent>,
    /// Its globals.
    pub globals: u32,
    /// Those of them that can change: what a checkpoint must hold beside the memory.
    pub mutable_globals: u32,
    /// Whether it runs something when it is instantiated.
    pub has_start: bool,
    /// Its custom sections.
    pub customs: Vec<Custom>,
    /// What it was made with, if it says so.
    pub producers: Vec<Producer>,
}

/// How a module wants to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// It exports functions and needs nothing first.
    #[default]
    Library,
    /// It exports `_initialize`, to be called before any other.
    Reactor,
    /// It exports `_start`: a program, run once.
    Command,
}

/// Something imported or exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// From where, if imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Its name.
    pub name: String,
    /// Its type, as `(i32, i64) -> (f32)`, `memory`, `table` or `global`.
    #[serde(rename = "type")]
    pub type_text: String,
}

/// What something begins with and may grow to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// At first.
    pub min: u64,
    /// At most, if the module says so.
    pub max: Option<u64>,
}

/// A custom section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Custom {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Something that took part in making the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Producer {
    /// As what: `language`, `processed-by`, `sdk`.
    pub field: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// Reads a module through and says what it is. It takes about 10 ms a MiB: not for a thread that
/// others share.
///
/// # Errors
/// The module is refused; the first reason that was met, in the order of its bytes.
pub fn validate(module: &[u8], limits: &Limits) -> Result<About, ValidateError> {
    if module.len() > limits.bytes {
        return Err(ValidateError::TooLarge {
            bytes: module.len(),
            max: limits.bytes,
        });
    }
    check_header(module)?;
    let mut reading = Reading::new(module, limits);
    let mut parser = Parser::new(0);
    parser.set_features(FEATURES);
    for payload in parser.parse_all(module) {
        reading.take(payload.map_err(|error| reading.broken(&error))?)?;
    }
    Ok(reading.about)
}

/// The first eight bytes: magic, version, and whether it is a component (which is layer 1).
fn check_header(module: &[u8]) -> Result<(), ValidateError> {
    let Some(rest) = module.strip_prefix(b"\0asm") else {
        return Err(ValidateError::NotWasm);
    };
    match rest {
        [1, 0, 0, 0, ..] => Ok(()),
        [_, _, 1, 0, ..] => Err(ValidateError::Component),
        [low, high, ..] => Err(ValidateError::Version {
            version: u16::from_le_bytes([*low, *high]),
        }),
        _ => Err(ValidateError::Truncated {
            offset: module.len(),
            reason: "it has no version".into(),
        }),
    }
}

struct Reading<'a> {
    limits: &'a Limits,
    bytes: usize,
    validator: Validator,
    /// Every function type, as text, and those of the functions by index.
    types: Vec<FuncType>,
    functions: Vec<u32>,
    allocations: wasmparser::FuncValidatorAllocations,
    targets: u64,
    /// What exports and producers may still take of what is told.
    exports_left: usize,
    producers_left: usize,
    about: About,
}

impl<'a> Reading<'a> {
    fn new(module: &[u8], limits: &'a Limits) -> Reading<'a> {
        Reading {
            limits,
            bytes: module.len(),
            validator: Validator::new_with_features(FEATURES),
            types: Vec::new(),
            functions: Vec::new(),
            allocations: Default::default(),
            targets: 0,
            exports_left: TOLD_JSON_MAX,
            producers_left: TOLD_JSON_MAX,
            about: About {
                bytes: module.len() as u64,
                ..About::default()
            },
        }
    }

    fn take(&mut self, payload: Payload<'_>) -> Result<(), ValidateError> {
        // Counted before the validator sees it, which allocates by these counts.
        self.count(&payload)?;
        let valid = self.validator.payload(&payload);
        let valid = valid.map_err(|error| self.broken(&error))?;
        if let ValidPayload::Func(function, body) = valid {
            let mut validator = function.into_validator(std::mem::take(&mut self.allocations));
            let done = validator.validate(&body);
            done.map_err(|error| self.broken(&error))?;
            self.allocations = validator.into_allocations();
        }
        self.describe(payload)
    }

    /// Refuses what has too much of anything, by what its sections declare.
    fn count(&mut self, payload: &Payload<'_>) -> Result<(), ValidateError> {
        let limits = self.limits;
        let (what, found, max, range) = match payload {
            Payload::TypeSection(s) => ("types", s.count(), limits.types, s.range()),
            Payload::ImportSection(s) => ("imports", s.count(), limits.imports, s.range()),
            Payload::FunctionSection(s) => ("functions", s.count(), limits.functions, s.range()),
            Payload::TableSection(s) => ("tables", s.count(), limits.tables, s.range()),
            Payload::MemorySection(s) => ("memories", s.count(), limits.memories, s.range()),
            Payload::GlobalSection(s) => ("globals", s.count(), limits.globals, s.range()),
            Payload::ExportSection(s) => ("exports", s.count(), limits.exports, s.range()),
            Payload::ElementSection(s) => {
                ("element segments", s.count(), limits.elements, s.range())
            }
            Payload::DataSection(s) => ("data segments", s.count(), limits.data, s.range()),
            Payload::CodeSectionStart { count, range, .. } => {
                ("functions", *count, limits.functions, range.clone())
            }
            Payload::CodeSectionEntry(body) => return self.count_body(body),
            Payload::CustomSection(s) if self.about.customs.len() >= limits.customs as usize => (
                "custom sections",
                limits.customs + 1,
                limits.customs,
                s.range(),
            ),
            _ => return Ok(()),
        };
        at_most(what, found.into(), max.into(), range)
    }

    fn count_body(&mut self, body: &wasmparser::FunctionBody<'_>) -> Result<(), ValidateError> {
        let range = body.range();
        let bytes = range.len() as u64;
        let max = self.limits.body_bytes;
        at_most("bytes in one function", bytes, max.into(), range.clone())?;
        let (locals, targets) = counted(body).map_err(|error| self.broken(&error))?;
        let (max, what) = (self.limits.locals, "locals in one function");
        at_most(what, locals, max.into(), range.clone())?;
        let (max, what) = (self.limits.targets, "targets of jumps in one function");
        at_most(what, targets, max.into(), range.clone())?;
        self.targets += targets;
        let (max, what) = (self.limits.targets_total, "targets of jumps");
        at_most(what, self.targets, max.into(), range)
    }

    /// Writes down what the section says, and refuses what only its entries show.
    fn describe(&mut self, payload: Payload<'_>) -> Result<(), ValidateError> {
        match payload {
            Payload::TypeSection(section) => {
                let range = section.range();
                for group in section {
                    let group = group.map_err(|error| self.broken(&error))?;
                    for sub in group.into_types() {
                        let CompositeInnerType::Func(function) = sub.composite_type.inner else {
                            continue;
                        };
                        let max = self.limits.parameters.into();
                        let most = function.params().len().max(function.results().len());
                        at_most(
                            "parameters or results in one type",
                            most as u64,
                            max,
                            range.clone(),
                        )?;
                        self.types.push(function);
                    }
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports_with_offsets() {
                    let (offset, import) = import.map_err(|error| self.broken(&error))?;
                    self.import(offset, import)?;
                }
            }
            Payload::FunctionSection(section) => {
                self.about.functions = section.count();
                for function in section {
                    let index = function.map_err(|error| self.broken(&error))?;
                    self.functions.push(index);
                }
            }
            Payload::TableSection(section) => {
                for table in section.into_iter_with_offsets() {
                    let (offset, table) = table.map_err(|error| self.broken(&error))?;
                    let (min, max) = (table.ty.initial, table.ty.maximum);
                    let most = self.limits.table_elements;
                    at_most("elements in a table", min, most, offset..offset)?;
                    self.about.tables.push(Extent { min, max });
                }
            }
            Payload::MemorySection(section) => {
                for memory in section.into_iter_with_offsets() {
                    let (offset, memory) = memory.map_err(|error| self.broken(&error))?;
                    let (min, max) = (memory.initial, memory.maximum);
                    let bytes = min.saturating_mul(WASM_PAGE);
                    let most = self.limits.memory_bytes;
                    at_most("bytes in a memory", bytes, most, offset..offset)?;
                    self.about.memories.push(Extent { min, max });
                }
            }
            Payload::GlobalSection(section) => {
                self.about.globals = section.count();
                for global in section {
                    let global = global.map_err(|error| self.broken(&error))?;
                    self.about.mutable_globals += u32::from(global.ty.mutable);
                }
            }
            Payload::ExportSection(section) => {
                self.about.exports_total = section.count();
                for export in section.into_iter_with_offsets() {
                    let (offset, export) = export.map_err(|error| self.broken(&error))?;
                    self.export(offset, export)?;
                }
            }
            Payload::StartSection { .. } => self.about.has_start = true,
            Payload::CustomSection(section) => self.custom(&section),
            _ => {}
        }
        Ok(())
    }

    fn import(
        &mut self,
        offset: usize,
        import: wasmparser::Import<'_>,
    ) -> Result<(), ValidateError> {
        let max = self.limits.name_bytes.into();
        let longest = import.module.len().max(import.name.len()) as u64;
        at_most("bytes in a name", longest, max, offset..offset)?;
        let (module, name) = (import.module.to_owned(), import.name.to_owned());
        let type_text = match import.ty {
            TypeRef::Func(index) => {
                self.functions.push(index);
                self.type_text(index)
            }
            TypeRef::Table(_) => "table".into(),
            TypeRef::Memory(_) => "memory".into(),
            TypeRef::Global(_) => "global".into(),
            _ => "something else".into(),
        };
        match import.module {
            wasi::MODULE => {}
            "wasi_unstable" => return Err(ValidateError::Preview0 { name, offset }),
            "gojs" | "go" => return Err(ValidateError::GoJs { name, offset }),
            _ => {
                return Err(ValidateError::Import {
                    module,
                    name,
                    offset,
                });
            }
        }
        let Some(wanted) = wasi::type_text(import.name) else {
            return Err(ValidateError::Import {
                module,
                name,
                offset,
            });
        };
        if type_text != wanted {
            return Err(ValidateError::ImportType {
                name,
                found: type_text,
                wanted,
                offset,
            });
        }
        self.about.imports.push(Item {
            module: Some(module),
            name,
            type_text,
        });
        Ok(())
    }

    fn export(
        &mut self,
        offset: usize,
        export: wasmparser::Export<'_>,
    ) -> Result<(), ValidateError> {
        let max = self.limits.name_bytes.into();
        at_most(
            "bytes in a name",
            export.name.len() as u64,
            max,
            offset..offset,
        )?;
        let name = export.name.to_owned();
        if name.starts_with(RESERVED) {
            return Err(ValidateError::ReservedExport { name, offset });
        }
        let type_text = match export.kind {
            ExternalKind::Func => {
                let index = self.functions.get(export.index as usize);
                index.map_or_else(String::new, |index| self.type_text(*index))
            }
            ExternalKind::Table => "table".into(),
            ExternalKind::Memory => "memory".into(),
            ExternalKind::Global => "global".into(),
            _ => "something else".into(),
        };
        match export.name {
            "_initialize" => self.about.shape = Shape::Reactor,
            "_start" if self.about.shape == Shape::Library => self.about.shape = Shape::Command,
            _ => {}
        }
        let is_told = takes(&mut self.exports_left, &[&name, &type_text]);
        if is_told && self.about.exports.len() < LISTED_MAX {
            self.about.exports.push(Item {
                module: None,
                name,
                type_text,
            });
        }
        Ok(())
    }

    /// A custom section is no part of what a module means: one that cannot be read is only not told of.
    fn custom(&mut self, section: &wasmparser::CustomSectionReader<'_>) {
        self.about.customs.push(Custom {
            name: shortened(section.name()),
            bytes: section.data().len() as u64,
        });
        let KnownCustom::Producers(fields) = section.as_known() else {
            return;
        };
        for field in fields.into_iter().flatten() {
            for value in field.values.into_iter().flatten() {
                let producer = Producer {
                    field: shortened(field.name),
                    name: shortened(value.name),
                    version: shortened(value.version),
                };
                let texts = [&*producer.field, &producer.name, &producer.version];
                let is_told = takes(&mut self.producers_left, &texts);
                if is_told && self.about.producers.len() < LISTED_MAX {
                    self.about.producers.push(producer);
                }
            }
        }
    }

    fn type_text(&self, index: u32) -> String {
        match self.types.get(index as usize) {
            Some(function) => {
                let list = |types: &[wasmparser::ValType]| {
                    let names: Vec<String> = types.iter().map(ToString::to_string).collect();
                    names.join(", ")
                };
                format!(
                    "({}) -> ({})",
                    list(function.params()),
                    list(function.results())
                )
            }
            None => String::new(),
        }
    }

    fn broken(&self, error: &wasmparser::Error) -> ValidateError {
        let (offset, reason) = (error.offset(), error.message().to_owned());
        if error.missing_wasm_feature().is_some() {
            return ValidateError::Feature { offset, reason };
        }
        // The reader says the same of a section that claims more than the file holds and of a file
        // that was cut, because they are the same.
        if reason.contains("end-of-file") || offset >= self.bytes {
            return ValidateError::Truncated { offset, reason };
        }
        ValidateError::Malformed { offset, reason }
    }
}

/// A page of WebAssembly's memory, in bytes.
const WASM_PAGE: u64 = 65_536;

/// The most of a producer's or a custom section's name that is told, in bytes.
const TOLD_BYTES_MAX: usize = 128;

/// The locals of a function and the targets of its `br_table`s, the default ones included.
fn counted(body: &wasmparser::FunctionBody<'_>) -> wasmparser::Result<(u64, u64)> {
    let mut locals = 0;
    for group in body.get_locals_reader()? {
        locals += u64::from(group?.0);
    }
    let mut targets = 0;
    for operator in body.get_operators_reader()? {
        if let Operator::BrTable { targets: one } = operator? {
            targets += u64::from(one.len()) + 1;
        }
    }
    Ok((locals, targets))
}

fn shortened(text: &str) -> String {
    let end = text.floor_char_boundary(TOLD_BYTES_MAX);
    text[..end].to_owned()
}

/// Takes what an entry of these texts needs as JSON, if it is there; else nothing is left.
fn takes(left: &mut usize, texts: &[&str]) -> bool {
    // A control character is told as six.
    let signs = texts.iter().flat_map(|text| text.bytes());
    let signs = signs.map(|byte| match byte {
        0..b' ' => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    });
    let needed = signs.sum::<usize>() + ENTRY_JSON;
    let takes = needed <= *left;
    *left = if takes { *left - needed } else { 0 };
    takes
}

/// An entry's names of fields and signs, in JSON.
const ENTRY_JSON: usize = 64;

fn at_most(
    what: &'static str,
    found: u64,
    max: u64,
    at: Range<usize>,
) -> Result<(), ValidateError> {
    if found <= max {
        return Ok(());
    }
    Err(ValidateError::TooMany {
        what,
        found,
        max,
        offset: at.start,
    })
}

#[cfg(test)]
mod tests;
