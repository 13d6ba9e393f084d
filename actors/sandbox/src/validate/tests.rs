//! Modules that are none, and those that ask for too much.

#![allow(clippy::unwrap_used)]

use wasm_encoder::{
    CodeSection, ExportKind, ExportSection, Function, FunctionSection, TypeSection,
};

use super::*;

/// What a module in text is, or why it is refused.
fn of(wat: &str) -> Result<About, ValidateError> {
    validate(&wat::parse_str(wat).unwrap(), &Limits::NODE)
}

/// A module is refused so, with an offset (unless it is refused whole) and a next step.
#[track_caller]
fn check(wasm: &[u8], code: &str) {
    let error = validate(wasm, &Limits::NODE).unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    assert!(!error.next_step().is_empty());
    if let Some(offset) = error.offset() {
        assert!(offset <= wasm.len(), "{error}");
    }
}

#[track_caller]
fn check_wat(wat: &str, code: &str) {
    check(&wat::parse_str(wat).unwrap(), code);
}

#[test]
fn what_a_module_is_can_be_said_without_running_it() {
    let about = of(r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 2 9)
        (table 3 funcref)
        (global (mut i32) (i32.const 0))
        (global i64 (i64.const 0))
        (func (export "_initialize"))
        (func (export "add") (param i32 i64) (result f32 f64) unreachable)
        (@custom "note" "hello"))"#)
    .unwrap();
    assert_eq!(about.shape, Shape::Reactor);
    assert_eq!(about.imports[0].name, "fd_write");
    let add = about
        .exports
        .iter()
        .find(|item| item.name == "add")
        .unwrap();
    assert_eq!(add.type_text, "(i32, i64) -> (f32, f64)");
    assert_eq!(
        about.memories,
        [Extent {
            min: 2,
            max: Some(9)
        }]
    );
    assert_eq!(about.tables, [Extent { min: 3, max: None }]);
    assert_eq!(
        (about.functions, about.globals, about.mutable_globals),
        (2, 2, 1)
    );
    assert!(about.customs.contains(&Custom {
        name: "note".into(),
        bytes: 5
    }));
    let json = serde_json::to_string(&about).unwrap();
    assert_eq!(serde_json::from_str::<About>(&json).unwrap(), about);
}

#[test]
fn what_is_not_a_core_module_is_refused_by_its_first_bytes() {
    check(b"", "not_wasm");
    check(b"#!/bin/sh", "not_wasm");
    check(b"(module)", "not_wasm");
    check(b"\0asm", "truncated");
    check(b"\0asm\x02\0\0\0", "wasm_version");
    check(b"\0asm\x0d\0\x01\0", "component");
    let huge = vec![0; Limits::NODE.bytes + 1];
    check(&huge, "module_too_large");
}

#[test]
fn every_cut_of_a_module_is_refused_and_none_panics() {
    let whole = wat::parse_str(
        r#"(module (memory 1) (table 1 funcref) (global (mut i32) (i32.const 7))
            (func $f (export "f") (param i32) (result i32) (local i64) (local.get 0))
            (elem (i32.const 0) $f) (data (i32.const 8) "some text"))"#,
    )
    .unwrap();
    validate(&whole, &Limits::NODE).unwrap();
    let mut refused = 0;
    for length in 0..whole.len() {
        refused += u32::from(validate(&whole[..length], &Limits::NODE).is_err());
    }
    // A cut between two sections may leave a module that is whole, only smaller.
    assert!(
        refused as usize > whole.len() - 12,
        "{refused} of {}",
        whole.len()
    );
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let _ = validate(&flipped, &Limits::NODE);
    }
}

#[test]
fn counts_that_no_module_has_are_refused_before_anything_is_allocated() {
    // Code must follow its declarations, so its own claim (10) is another error.
    for section in [1_u8, 2, 3, 4, 5, 6, 7, 9, 11] {
        // A section of six bytes that claims four thousand million entries.
        let wasm = [
            b"\0asm\x01\0\0\0",
            &[section, 5, 0xff, 0xff, 0xff, 0xff, 0x0f][..],
        ]
        .concat();
        check(&wasm, "too_many");
    }
}

#[test]
fn imports_of_what_is_not_here_are_refused_with_a_hint() {
    let import = |module: &str, name: &str| {
        format!(r#"(module (import "{module}" "{name}" (func (param i32) (result i32))))"#)
    };
    check_wat(&import("env", "emscripten_resize_heap"), "unknown_import");
    check_wat(
        &import("wasi_snapshot_preview1", "fd_explode"),
        "unknown_import",
    );
    check_wat(&import("wasi_unstable", "fd_close"), "preview0");
    check_wat(&import("gojs", "runtime.wasmExit"), "gojs");
    check_wat(&import("wasi_snapshot_preview1", "fd_write"), "import_type");
    check_wat(
        r#"(module (import "wasi_snapshot_preview1" "fd_close" (memory 1)))"#,
        "import_type",
    );
    check_wat(
        r#"(module (import "env" "memory" (memory 1)))"#,
        "unknown_import",
    );
    let error = of(&import("gojs", "runtime.wasmExit")).unwrap_err();
    assert!(error.next_step().contains("GOOS=wasip1"));
    let error = of(&import("wasi_unstable", "fd_close")).unwrap_err();
    assert!(error.to_string().contains("preview 0"));
}

#[test]
fn everything_has_a_limit() {
    check_wat("(module (memory 5000))", "too_many");
    check_wat("(module (table 20001 funcref))", "too_many");
    let many = |what: &str, count: usize| format!("(module {})", what.repeat(count));
    check_wat(
        &many(
            r#"(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))"#,
            257,
        ),
        "too_many",
    );
    check_wat(&many("(table 1 funcref)", 5), "too_many");
    check_wat(&many("(global i32 (i32.const 0))", 5_001), "too_many");
    check_wat(&many(r#"(@custom "x" "")"#, 257), "too_many");
    let locals = "(local i32)".repeat(5_001);
    check_wat(&format!("(module (func {locals}))"), "too_many");
    let parameters = "i32 ".repeat(33);
    check_wat(&format!("(module (func (param {parameters})))"), "too_many");
    let body = "(drop (i64.const 0x7fffffffffffffff))".repeat(200_000);
    check_wat(&format!("(module (func {body}))"), "too_many");
    let jumps = "0 ".repeat(20_001);
    check_wat(
        &format!("(module (func (br_table {jumps} (i32.const 0))))"),
        "too_many",
    );
    let jumps = format!("(func (br_table {} (i32.const 0)))", "0 ".repeat(19_000));
    check_wat(&format!("(module {})", jumps.repeat(53)), "too_many");
    let name = "n".repeat(513);
    check_wat(&format!(r#"(module (func (export "{name}")))"#), "too_many");
}

#[test]
fn proposals_that_are_off_are_refused() {
    for wat in [
        "(module (memory 1 1 shared))",
        "(module (memory i64 1))",
        "(module (tag))",
        "(module (table 1 externref))",
        "(module (type (struct (field i32))))",
        "(module (func (param v128) (result v128) (i32x4.relaxed_trunc_f32x4_s (local.get 0))))",
        "(module (func $f (return_call $f)))",
    ] {
        let error = of(wat).unwrap_err();
        assert!(
            matches!(error.code(), "feature_off" | "malformed"),
            "{wat}: {error:?}"
        );
    }
    let two_memories = of("(module (memory 1) (memory 1))").unwrap_err();
    assert_eq!(two_memories.code(), "too_many");
}

#[test]
fn what_breaks_the_rules_is_malformed_at_an_offset() {
    let body = [0x6a, 0x0b]; // adds two numbers that are not there
    let mut module = wasm_encoder::Module::new();
    let mut types = TypeSection::new();
    types.ty().function([], []);
    let mut functions = FunctionSection::new();
    functions.function(0);
    let mut exports = ExportSection::new();
    exports.export("f", ExportKind::Func, 0);
    let mut code = CodeSection::new();
    let mut function = Function::new([]);
    function.raw(body);
    code.function(&function);
    module
        .section(&types)
        .section(&functions)
        .section(&exports)
        .section(&code);
    check(&module.finish(), "malformed");
    check_wat(r#"(module (func (export "__us_g0")))"#, "reserved_export");
}

#[test]
fn what_is_told_of_a_module_fits_an_answer_whatever_it_calls_its_exports() {
    // As JSON, each of these bytes takes six.
    let mut text = String::from("(module (func $f");
    text.push_str(" (result i32) (i32.const 0))");
    for nth in 0..LISTED_MAX {
        let name = "\\01".repeat(500);
        text.push_str(&format!("(export \"{name}{nth}\" (func $f))"));
    }
    text.push(')');
    let about = validate(&wat::parse_str(text).unwrap(), &Limits::NODE).unwrap();
    assert_eq!(about.exports_total as usize, LISTED_MAX);
    assert!(about.exports.len() > 50);
    let told = serde_json::to_vec(&about).unwrap().len();
    assert!(told < 1 << 20, "{told} bytes");
}
