//! Makes a guest's hidden state reachable, by rewriting the export section and nothing else.
//!
//! Owns: the reserved names `__us_*`, what they stand for, and the judgement whether a module's live
//! state can be checkpointed at all. Never touches code: every other section is copied byte for byte,
//! so indices, offsets in backtraces and compiled speed are the module's own.
//!
//! A host sees only exports, but a guest's state is more: compilers keep the stack pointer and, in Go,
//! half the scheduler in mutable globals that nobody exports. A guest restored without them traps, or,
//! worse, does not.
//!
//! | name | what |
//! |---|---|
//! | `__us_m0` | the memory |
//! | `__us_g{n}` | the n-th mutable global |
//! | `__us_t{n}` | the n-th table, if the module's code changes tables |
//! | `__us_f{i}` | function `i`, if the module's code changes tables and `i` may lie in one |
//! | `__us_start` | the function of the start section, which is taken out: a restored guest must not run it again |

use std::collections::BTreeSet;

use wasm_encoder::{ExportKind, ExportSection, RawSection};
use wasmparser::{
    BinaryReaderError, ConstExpr, DataKind, ElementItems, ElementKind, ExternalKind, Operator,
    Parser, Payload, RefType, TableInit, TypeRef, ValType,
};

/// What begins every name that is ours.
pub const RESERVED: &str = "__us_";

/// The name under which the host finds the memory.
pub(crate) const MEMORY: &str = "__us_m0";

/// The start function, called once when a guest is created.
pub(crate) const START: &str = "__us_start";

/// How many functions may lie in tables that change: each needs a name of its own, and the largest
/// programs we know of put some ten thousand into their tables.
const MAX_FUNCTIONS: usize = 100_000;

/// A module whose state can be reached.
#[derive(Clone, Debug)]
pub struct Rewritten {
    /// The module to compile.
    pub wasm: Vec<u8>,
    /// What it exports under reserved names.
    pub layout: Layout,
}

/// Where a module keeps its state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Whether `__us_start` is to be called once.
    pub has_start: bool,
    /// Whether there is a memory, `__us_m0`.
    pub has_memory: bool,
    /// The types of the mutable globals `__us_g0`, `__us_g1`, …
    pub globals: Vec<Scalar>,
    /// How many tables are exported: all, or none if no code changes them.
    pub tables: u32,
    /// Which functions are exported for the tables' sake, by index.
    pub functions: Vec<u32>,
    /// What keeps it from being checkpointed, if anything does.
    pub obstacle: Option<Obstacle>,
}

/// The type of a global that is no reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// 32 bits, whole.
    I32,
    /// 64 bits, whole.
    I64,
    /// 32 bits, floating.
    F32,
    /// 64 bits, floating.
    F64,
    /// A vector of 128 bits.
    V128,
}

impl Scalar {
    /// How many bytes a value takes.
    pub fn width(self) -> usize {
        match self {
            Scalar::I32 | Scalar::F32 => 4,
            Scalar::I64 | Scalar::F64 => 8,
            Scalar::V128 => 16,
        }
    }
}

/// Why the state of a module's instances cannot be checkpointed. It can be called all the same, as a
/// stateless function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Obstacle {
    /// A memory, table or global belongs to the host, which has none to give.
    #[error("it imports a memory, a table or a global")]
    Imported,
    /// A memory that several threads share changes while it is written down.
    #[error("its memory is shared")]
    SharedMemory,
    /// A memory of 64 bits, or with pages of another size than 64 KiB.
    #[error("its memory is addressed by 64 bits, or has pages of an unusual size")]
    UnusualMemory,
    /// More than one memory.
    #[error("it has more than one memory")]
    SeveralMemories,
    /// A table or global of references that mean nothing on another machine.
    #[error("it has a table or a mutable global of references other than to its functions")]
    References,
    /// A heap of objects that only the engine sees, or exceptions.
    #[error("it has a garbage-collected heap or exceptions")]
    ManagedHeap,
    /// It drops a passive segment, and whether it has done so cannot be asked.
    #[error("it drops a passive segment while it runs")]
    DroppedSegments,
    /// More functions may lie in changing tables than can be given names.
    #[error("too many of its functions may lie in tables that change")]
    TooManyFunctions,
}

impl Obstacle {
    /// A word for machines.
    pub fn code(self) -> &'static str {
        match self {
            Obstacle::Imported => "imported_state",
            Obstacle::SharedMemory => "shared_memory",
            Obstacle::UnusualMemory => "unusual_memory",
            Obstacle::SeveralMemories => "several_memories",
            Obstacle::References => "references",
            Obstacle::ManagedHeap => "managed_heap",
            Obstacle::DroppedSegments => "dropped_segments",
            Obstacle::TooManyFunctions => "too_many_functions",
        }
    }
}

/// Why a module was not rewritten. Nothing of it is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RewriteError {
    /// Not a module, or a broken one.
    #[error("this is not a WebAssembly module: {0}")]
    Malformed(String),
    /// It exports a name that is ours.
    #[error("the export {0:?} begins with the reserved {RESERVED:?}")]
    ReservedName(String),
}

impl From<BinaryReaderError> for RewriteError {
    fn from(error: BinaryReaderError) -> RewriteError {
        RewriteError::Malformed(error.to_string())
    }
}

/// Rewrites a module. Takes time proportional to its size, since all of its code is looked at.
///
/// # Errors
/// See [`RewriteError`]. A module that cannot be checkpointed is no error here: see
/// [`Layout::obstacle`].
pub fn rewrite(wasm: &[u8]) -> Result<Rewritten, RewriteError> {
    let found = Findings::of(wasm)?;
    let layout = found.layout();
    let mut module = wasm_encoder::Module::new();
    let mut exported = false;
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload?;
        let Some((id, range)) = payload.as_section() else {
            continue;
        };
        // The standard's order of sections; the numbers are not in order.
        let is_after_exports = matches!(
            payload,
            Payload::StartSection { .. }
                | Payload::ElementSection(_)
                | Payload::DataCountSection { .. }
                | Payload::CodeSectionStart { .. }
                | Payload::DataSection(_)
        );
        if !exported && (is_after_exports || matches!(payload, Payload::ExportSection(_))) {
            module.section(&found.exports(&layout));
            exported = true;
        }
        if matches!(
            payload,
            Payload::ExportSection(_) | Payload::StartSection { .. }
        ) {
            continue;
        }
        let data = wasm
            .get(range)
            .ok_or_else(|| RewriteError::Malformed("a section ends beyond the module".into()))?;
        module.section(&RawSection { id, data });
    }
    if !exported {
        module.section(&found.exports(&layout));
    }
    Ok(Rewritten {
        wasm: module.finish(),
        layout,
    })
}

/// What was found in a module.
#[derive(Debug, Default)]
struct Findings {
    exports: Vec<(String, ExportKind, u32)>,
    start: Option<u32>,
    memories: u32,
    tables: u32,
    /// How many globals there are, and which are mutable and of what type.
    all_globals: u32,
    globals: Vec<(u32, Scalar)>,
    functions: BTreeSet<u32>,
    passive_elements: BTreeSet<u32>,
    passive_data: BTreeSet<u32>,
    dropped_elements: BTreeSet<u32>,
    dropped_data: BTreeSet<u32>,
    changes_tables: bool,
    obstacle: Option<Obstacle>,
}

impl Findings {
    fn of(wasm: &[u8]) -> Result<Findings, RewriteError> {
        let mut found = Findings::default();
        for payload in Parser::new(0).parse_all(wasm) {
            found.look_at(payload?)?;
        }
        Ok(found)
    }

    fn look_at(&mut self, payload: Payload<'_>) -> Result<(), RewriteError> {
        match payload {
            Payload::Version { encoding, .. } if encoding != wasmparser::Encoding::Module => {
                return Err(RewriteError::Malformed(
                    "a component, not a module".to_owned(),
                ));
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    match import?.ty {
                        TypeRef::Memory(_) => self.refuse(Obstacle::Imported),
                        TypeRef::Table(_) => {
                            self.tables += 1;
                            self.refuse(Obstacle::Imported);
                        }
                        TypeRef::Global(_) => {
                            self.all_globals += 1;
                            self.refuse(Obstacle::Imported);
                        }
                        TypeRef::Tag(_) => self.refuse(Obstacle::ManagedHeap),
                        TypeRef::Func(_) | TypeRef::FuncExact(_) => {}
                    }
                }
            }
            Payload::TableSection(tables) => {
                for table in tables {
                    let table = table?;
                    if table.ty.element_type != RefType::FUNCREF || table.ty.table64 {
                        self.refuse(Obstacle::References);
                    }
                    if let TableInit::Expr(init) = table.init {
                        self.look_at_const(&init)?;
                    }
                    self.tables += 1;
                }
            }
            Payload::MemorySection(memories) => {
                for memory in memories {
                    let memory = memory?;
                    if memory.shared {
                        self.refuse(Obstacle::SharedMemory);
                    }
                    if memory.memory64 || memory.page_size_log2.is_some() {
                        self.refuse(Obstacle::UnusualMemory);
                    }
                    self.memories += 1;
                }
                if self.memories > 1 {
                    self.refuse(Obstacle::SeveralMemories);
                }
            }
            Payload::TagSection(_) => self.refuse(Obstacle::ManagedHeap),
            Payload::GlobalSection(globals) => {
                for global in globals {
                    let global = global?;
                    self.look_at_const(&global.init_expr)?;
                    let index = self.all_globals;
                    self.all_globals += 1;
                    if !global.ty.mutable {
                        continue;
                    }
                    match scalar(global.ty.content_type) {
                        Some(scalar) => self.globals.push((index, scalar)),
                        None => self.refuse(Obstacle::References),
                    }
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    if export.name.starts_with(RESERVED) {
                        return Err(RewriteError::ReservedName(export.name.to_owned()));
                    }
                    // Whoever is exported may be referred to by `ref.func`.
                    if export.kind == ExternalKind::Func {
                        self.functions.insert(export.index);
                    }
                    let kind = kind(export.kind);
                    self.exports
                        .push((export.name.to_owned(), kind, export.index));
                }
            }
            Payload::StartSection { func, .. } => self.start = Some(func),
            Payload::ElementSection(segments) => {
                for (index, segment) in (0..).zip(segments) {
                    let segment = segment?;
                    if matches!(segment.kind, ElementKind::Passive) {
                        self.passive_elements.insert(index);
                    }
                    match segment.items {
                        ElementItems::Functions(functions) => {
                            for function in functions {
                                self.functions.insert(function?);
                            }
                        }
                        ElementItems::Expressions(_, expressions) => {
                            for expression in expressions {
                                self.look_at_const(&expression?)?;
                            }
                        }
                    }
                }
            }
            Payload::DataSection(segments) => {
                for (index, segment) in (0..).zip(segments) {
                    if matches!(segment?.kind, DataKind::Passive) {
                        self.passive_data.insert(index);
                    }
                }
            }
            Payload::CodeSectionEntry(body) => {
                for operator in body.get_operators_reader()? {
                    self.look_at_code(&operator?);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn look_at_code(&mut self, operator: &Operator<'_>) {
        match *operator {
            Operator::TableSet { .. }
            | Operator::TableGrow { .. }
            | Operator::TableFill { .. }
            | Operator::TableCopy { .. }
            | Operator::TableInit { .. } => self.changes_tables = true,
            Operator::DataDrop { data_index } => {
                self.dropped_data.insert(data_index);
            }
            Operator::ElemDrop { elem_index } => {
                self.dropped_elements.insert(elem_index);
            }
            _ => {}
        }
    }

    fn look_at_const(&mut self, expression: &ConstExpr<'_>) -> Result<(), RewriteError> {
        for operator in expression.get_operators_reader() {
            if let Operator::RefFunc { function_index } = operator? {
                self.functions.insert(function_index);
            }
        }
        Ok(())
    }

    /// Only the first obstacle counts.
    fn refuse(&mut self, obstacle: Obstacle) {
        self.obstacle.get_or_insert(obstacle);
    }

    fn layout(&self) -> Layout {
        // Dropping an active segment changes nothing: it was dropped when it had been copied.
        let drops = !self.passive_data.is_disjoint(&self.dropped_data)
            || !self.passive_elements.is_disjoint(&self.dropped_elements);
        let mut obstacle = self.obstacle;
        if drops {
            obstacle.get_or_insert(Obstacle::DroppedSegments);
        }
        let tracks_tables = self.changes_tables && self.tables > 0;
        if tracks_tables && self.functions.len() > MAX_FUNCTIONS {
            obstacle.get_or_insert(Obstacle::TooManyFunctions);
        }
        let tracks_tables = tracks_tables && obstacle.is_none();
        Layout {
            has_start: self.start.is_some(),
            has_memory: self.memories > 0,
            globals: self.globals.iter().map(|(_, scalar)| *scalar).collect(),
            tables: if tracks_tables { self.tables } else { 0 },
            functions: match tracks_tables {
                true => self.functions.iter().copied().collect(),
                false => Vec::new(),
            },
            obstacle,
        }
    }

    fn exports(&self, layout: &Layout) -> ExportSection {
        let mut section = ExportSection::new();
        for (name, kind, index) in &self.exports {
            section.export(name, *kind, *index);
        }
        if layout.has_memory {
            section.export(MEMORY, ExportKind::Memory, 0);
        }
        for (n, (index, _)) in self.globals.iter().enumerate() {
            section.export(&format!("__us_g{n}"), ExportKind::Global, *index);
        }
        for n in 0..layout.tables {
            section.export(&format!("__us_t{n}"), ExportKind::Table, n);
        }
        for index in &layout.functions {
            section.export(&format!("__us_f{index}"), ExportKind::Func, *index);
        }
        if let Some(start) = self.start {
            section.export(START, ExportKind::Func, start);
        }
        section
    }
}

fn scalar(of: ValType) -> Option<Scalar> {
    match of {
        ValType::I32 => Some(Scalar::I32),
        ValType::I64 => Some(Scalar::I64),
        ValType::F32 => Some(Scalar::F32),
        ValType::F64 => Some(Scalar::F64),
        ValType::V128 => Some(Scalar::V128),
        ValType::Ref(_) => None,
    }
}

fn kind(of: ExternalKind) -> ExportKind {
    match of {
        ExternalKind::Func | ExternalKind::FuncExact => ExportKind::Func,
        ExternalKind::Table => ExportKind::Table,
        ExternalKind::Memory => ExportKind::Memory,
        ExternalKind::Global => ExportKind::Global,
        ExternalKind::Tag => ExportKind::Tag,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(wat: &str) -> Rewritten {
        rewrite(&wat::parse_str(wat).unwrap()).unwrap()
    }

    fn names(rewritten: &Rewritten) -> Vec<String> {
        let mut names = Vec::new();
        for payload in Parser::new(0).parse_all(&rewritten.wasm) {
            if let Payload::ExportSection(exports) = payload.unwrap() {
                names.extend(
                    exports
                        .into_iter()
                        .map(|export| export.unwrap().name.to_owned()),
                );
            }
        }
        names
    }

    #[test]
    fn hidden_globals_and_memory_are_named_and_nothing_else_changes() {
        let wat = r#"(module
            (memory 1)
            (global $sp (mut i32) (i32.const 7))
            (global i64 (i64.const 1))
            (global $x (mut f64) (f64.const 0))
            (func (export "get") (result i32) (global.get $sp)))"#;
        let rewritten = of(wat);
        assert_eq!(names(&rewritten), ["get", "__us_m0", "__us_g0", "__us_g1"]);
        assert_eq!(rewritten.layout.globals, [Scalar::I32, Scalar::F64]);
        assert_eq!(rewritten.layout.obstacle, None);
        wasmparser::validate(&rewritten.wasm).unwrap();
        let code = |wasm: &[u8]| {
            let mut code = Vec::new();
            for payload in Parser::new(0).parse_all(wasm) {
                if let Payload::CodeSectionEntry(body) = payload.unwrap() {
                    code.extend_from_slice(body.as_bytes());
                }
            }
            code
        };
        assert_eq!(code(&rewritten.wasm), code(&wat::parse_str(wat).unwrap()));
    }

    #[test]
    fn a_module_without_exports_or_code_is_still_a_module() {
        for wat in ["(module)", "(module (memory 1))", "(module (func))"] {
            wasmparser::validate(&of(wat).wasm).unwrap();
        }
    }

    #[test]
    fn the_start_function_becomes_an_export() {
        let rewritten = of(r#"(module (func $s) (start $s))"#);
        assert!(rewritten.layout.has_start);
        assert_eq!(names(&rewritten), [START]);
        let has_start = Parser::new(0)
            .parse_all(&rewritten.wasm)
            .any(|payload| matches!(payload.unwrap(), Payload::StartSection { .. }));
        assert!(!has_start);
    }

    #[test]
    fn only_tables_that_change_are_named_with_all_functions_that_may_lie_in_them() {
        let constant =
            r#"(module (table 2 funcref) (elem (i32.const 0) $a $b) (func $a) (func $b))"#;
        assert_eq!(of(constant).layout.tables, 0);
        assert!(names(&of(constant)).is_empty());
        let changing = r#"(module (table 2 funcref) (elem (i32.const 0) $b) (func $a) (func $b)
            (func (export "set") (table.set (i32.const 0) (ref.null func))))"#;
        let rewritten = of(changing);
        assert_eq!(rewritten.layout.tables, 1);
        assert_eq!(rewritten.layout.functions, [1, 2]);
        wasmparser::validate(&rewritten.wasm).unwrap();
    }

    #[test]
    fn what_cannot_be_checkpointed_has_a_code() {
        let cases = [
            (r#"(module (import "a" "b" (memory 1)))"#, "imported_state"),
            (
                r#"(module (import "a" "b" (global i32)))"#,
                "imported_state",
            ),
            (r#"(module (memory 1 2 shared))"#, "shared_memory"),
            (r#"(module (memory i64 1))"#, "unusual_memory"),
            (r#"(module (memory 1) (memory 1))"#, "several_memories"),
            (r#"(module (table 1 externref))"#, "references"),
            (
                r#"(module (global (mut externref) (ref.null extern)))"#,
                "references",
            ),
            (
                r#"(module (global (mut funcref) (ref.null func)))"#,
                "references",
            ),
            (r#"(module (tag))"#, "managed_heap"),
            (
                r#"(module (memory 1) (data $d "x") (func (data.drop $d)))"#,
                "dropped_segments",
            ),
            (
                r#"(module (table 1 funcref) (elem $e func) (func (elem.drop $e)))"#,
                "dropped_segments",
            ),
        ];
        for (wat, code) in cases {
            let obstacle = of(wat).layout.obstacle;
            assert_eq!(obstacle.map(Obstacle::code), Some(code), "{wat}");
        }
    }

    #[test]
    fn reading_a_passive_segment_or_dropping_an_active_one_is_no_obstacle() {
        let passive = r#"(module (memory 1) (data $d "x")
            (func (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1))))"#;
        let active = r#"(module (memory 1) (data $d (i32.const 0) "x") (func (data.drop $d)))"#;
        assert_eq!(of(passive).layout.obstacle, None);
        assert_eq!(of(active).layout.obstacle, None);
    }

    #[test]
    fn a_reserved_name_is_refused() {
        let wasm = wat::parse_str(r#"(module (func (export "__us_g0")))"#).unwrap();
        let error = rewrite(&wasm).unwrap_err();
        assert_eq!(error, RewriteError::ReservedName("__us_g0".into()));
    }

    #[test]
    fn no_truncation_and_no_flipped_bit_panics() {
        let wasm = wat::parse_str(
            r#"(module (memory 1) (global (mut i32) (i32.const 0)) (table 1 funcref)
                (elem (i32.const 0) $f) (func $f (export "f")) (start $f) (data (i32.const 0) "x"))"#,
        )
        .unwrap();
        for length in 0..wasm.len() {
            let _ = rewrite(&wasm[..length]);
        }
        for bit in 0..wasm.len() * 8 {
            let mut wasm = wasm.clone();
            wasm[bit / 8] ^= 1 << (bit % 8);
            let _ = rewrite(&wasm);
        }
    }
}
