;; A guest that means harm: each export is one attack.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (table $table 1 funcref)
  (data (i32.const 512) "f")

  ;; Time.
  (func (export "loop") (loop (br 0)))
  (func $recurse (export "recurse") (result i32) (i32.add (call $recurse) (i32.const 1)))
  (func (export "sleep") (param $low i32) (result i32)
    ;; One subscription: the monotonic clock, an hour or so.
    (i32.store (i32.const 16) (i32.const 1))
    (i32.store (i32.const 24) (local.get $low))
    (i32.store (i32.const 28) (i32.const 1000))
    (call $poll_oneoff (i32.const 0) (i32.const 128) (i32.const 1) (i32.const 256)))

  ;; Memory. Each takes all that it is given, and says how much that was.
  (func $hoard (export "hoard") (result i32)
    (loop (br_if 0 (i32.ge_s (memory.grow (i32.const 1)) (i32.const 0))))
    (memory.size))
  (func (export "hoard_and_fill") (result i32)
    (drop (call $hoard))
    (memory.fill (i32.const 0) (i32.const 0xaa) (i32.mul (memory.size) (i32.const 65536)))
    (memory.size))
  (func (export "grow_by") (param $pages i32) (result i32) (memory.grow (local.get $pages)))
  (func (export "hoard_table") (result i32)
    (loop (br_if 0 (i32.ge_s (table.grow $table (ref.null func) (i32.const 100)) (i32.const 0))))
    (table.size $table))
  (func (export "copy") (param $to i32) (param $from i32) (param $bytes i32)
    (memory.copy (local.get $to) (local.get $from) (local.get $bytes)))
  (func (export "fill") (param $at i32) (param $bytes i32)
    (memory.fill (local.get $at) (i32.const 0) (local.get $bytes)))
  (func (export "copy_for_ever")
    (drop (call $hoard))
    (loop
      (memory.copy (i32.const 0) (i32.const 65536)
        (i32.mul (i32.sub (memory.size) (i32.const 1)) (i32.const 65536)))
      (br 0)))
  (func (export "load") (param $at i32) (result i32) (i32.load (local.get $at)))

  ;; The host's own functions.
  (func (export "log_for_ever")
    (i32.store (i32.const 0) (i32.const 0))
    (i32.store (i32.const 4) (i32.const 60000))
    (loop
      (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br 0)))
  (func (export "log_much") (result i32)
    ;; A thousand buffers that all lie over one another.
    (local $n i32)
    (loop
      (i32.store (i32.add (i32.const 1024) (local.get $n)) (i32.const 0))
      (i32.store (i32.add (i32.const 1028) (local.get $n)) (i32.const 65536))
      (local.set $n (i32.add (local.get $n) (i32.const 8)))
      (br_if 0 (i32.lt_s (local.get $n) (i32.const 8000))))
    (drop (call $fd_write (i32.const 1) (i32.const 1024) (i32.const 1000) (i32.const 8)))
    (i32.load (i32.const 8)))
  (func (export "random") (param $at i32) (param $bytes i32) (result i32)
    (call $random_get (local.get $at) (local.get $bytes)))
  (func (export "random_for_ever")
    (loop (drop (call $random_get (i32.const 0) (i32.const 65536))) (br 0)))
  ;; Opens one file until it is refused: how often, and with what number.
  (func (export "open") (result i32 i32)
    (local $n i32) (local $errno i32)
    (loop
      (local.set $errno (call $path_open (i32.const 3) (i32.const 0) (i32.const 512) (i32.const 1)
        (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8)))
      (if (i32.eqz (local.get $errno)) (then
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br 1))))
    (local.get $n) (local.get $errno))
  ;; Has the host do the same again and again.
  (func (export "ask") (param $times i32) (param $bytes i32)
    (loop
      (drop (call $random_get (i32.const 0) (local.get $bytes)))
      (local.set $times (i32.sub (local.get $times) (i32.const 1)))
      (br_if 0 (local.get $times))))
  ;; Reaches twenty thousand times for what it may not have.
  (func (export "reach") (result i32)
    (local $n i32)
    (loop
      (drop (call $random_get (i32.const 0) (i32.const 1)))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if 0 (i32.lt_s (local.get $n) (i32.const 20000))))
    (local.get $n))

  ;; Bytes: pointers and lengths that are not what they should be.
  (global $alloc (mut i32) (i32.const 4096))
  (func (export "us_alloc") (param i32) (result i32) (global.get $alloc))
  (func (export "answer_far") (param i32 i32) (result i32 i32 i32)
    (i32.const -16) (i32.const 0) (i32.const 0))
  (func (export "answer_long") (param i32 i32) (result i32 i32 i32)
    (i32.store (i32.const 0x100) (i32.const 0xfff0))
    (i32.const 0x100) (i32.const 0) (i32.const 0))
  (func (export "answer_huge") (param i32 i32) (result i32 i32 i32)
    (i32.store (i32.const 0x100) (i32.const -1))
    (i32.const 0x100) (i32.const 0) (i32.const 0))
  (func (export "answer_across") (param i32 i32) (result i32 i32 i32)
    (i32.const 65534) (i32.const 0) (i32.const 0))
  (func (export "message_far") (param i32 i32) (result i32 i32 i32)
    (i32.const 0) (i32.const 2) (i32.const 65536))
  (func (export "message_long") (param i32 i32) (result i32 i32 i32)
    (memory.fill (i32.const 0) (i32.const 0x61) (i32.const 65536))
    (i32.const 0) (i32.const 2) (i32.const 0))
  (func (export "message_endless") (param i32 i32) (result i32 i32 i32)
    (memory.fill (i32.const 0) (i32.const 0x61) (i32.const 65536))
    (i32.const 0) (i32.const 13) (i32.const 1))
)
