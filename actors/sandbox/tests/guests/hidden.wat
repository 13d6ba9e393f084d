;; A guest whose state lies where no host looks by itself: mutable globals that are not exported, a table
;; whose elements change places, memory that grows, a clock and a source of chance behind its imports.
(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (type $binary (func (param i64 i64) (result i64)))
  (memory 1)
  (table 4 funcref)
  (elem (i32.const 0) $add $sub $xor)
  (global $state (mut i64) (i64.const 88172645463325252))
  (global $count (mut i32) (i32.const 0))
  (global $ratio (mut f64) (f64.const 1))
  (global $wide (mut v128) (v128.const i64x2 3 5))

  (func $add (type $binary) (i64.add (local.get 0) (local.get 1)))
  (func $sub (type $binary) (i64.sub (local.get 0) (local.get 1)))
  (func $xor (type $binary) (i64.xor (local.get 0) (local.get 1)))

  ;; Marsaglia's xorshift, its state in a global.
  (func $next (result i64)
    (global.set $state (i64.xor (global.get $state) (i64.shl (global.get $state) (i64.const 13))))
    (global.set $state (i64.xor (global.get $state) (i64.shr_u (global.get $state) (i64.const 7))))
    (global.set $state (i64.xor (global.get $state) (i64.shl (global.get $state) (i64.const 17))))
    (global.get $state))

  ;; Draws a number and writes it somewhere in memory.
  (func (export "draw") (result i64)
    (local $n i64)
    (local.set $n (call $next))
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (global.set $ratio (f64.div (global.get $ratio) (f64.const 1.25)))
    (global.set $wide (i64x2.add (global.get $wide) (i64x2.splat (local.get $n))))
    (i64.store
      (i32.and (i32.wrap_i64 (local.get $n)) (i32.const 0xfff8))
      (local.get $n))
    (local.get $n))

  ;; Calls whatever lies at this place of the table. An empty one traps.
  (func (export "apply") (param $at i32) (param $with i64) (result i64)
    (call_indirect (type $binary) (call $next) (local.get $with) (local.get $at)))

  (func (export "swap") (param $a i32) (param $b i32)
    (local $kept funcref)
    (local.set $kept (table.get (local.get $a)))
    (table.set (local.get $a) (table.get (local.get $b)))
    (table.set (local.get $b) (local.get $kept)))

  (func (export "widen") (result i32) (table.grow (ref.func $xor) (i32.const 1)))
  (elem declare func $xor)

  ;; One more page, written at its end.
  (func (export "grow") (result i32)
    (local $old i32)
    (local.set $old (memory.grow (i32.const 1)))
    (if (i32.ge_s (local.get $old) (i32.const 0))
      (then (i32.store
        (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 4))
        (global.get $count))))
    (local.get $old))

  (func (export "clear") (param $page i32)
    (memory.fill (i32.mul (local.get $page) (i32.const 4096)) (i32.const 0) (i32.const 4096)))

  ;; Takes no step.
  (func (export "peek") (param $at i32) (result i64 i32 f64 i64)
    (i64.load (i32.and (local.get $at) (i32.const 0xfff8)))
    (global.get $count)
    (global.get $ratio)
    (i64x2.extract_lane 1 (global.get $wide)))

  ;; Its time and eight bytes of chance, which leave no trace in its memory but these.
  (func (export "world") (result i32 i32 i64 i64)
    (call $clock (i32.const 0) (i64.const 0) (i32.const 0))
    (call $random (i32.const 8) (i32.const 8))
    (i64.load (i32.const 0))
    (i64.load (i32.const 8)))

  ;; Spoils all that it can reach, and traps.
  (func (export "spoil")
    (global.set $state (i64.const 1))
    (global.set $count (i32.const -1))
    (table.fill (i32.const 0) (ref.null func) (i32.const 3))
    (drop (memory.grow (i32.const 1)))
    (memory.fill (i32.const 0) (i32.const 0xff) (i32.const 65536))
    unreachable)
)
