;; Drops records whose value starts with `d` and says nothing about the others: the least a filter can do.
;; byte_filter.wasm beside it is this text, assembled; a test holds them together.
(module
  (import "weir:plugin/sink@1.0.0" "emit" (func $emit (param i32 i32 i32 i32)))
  (memory (export "memory") 1)
  ;; Verdicts stand first: 32 bytes a record, laid out for the batch that is there. The batch comes behind them.
  (func (export "cabi_realloc") (param i32 i32 i32) (param $bytes i32) (result i32)
    (local $least i32)
    ;; A batch is always larger than its verdicts, so twice its size holds both.
    (local.set $least (i32.add (i32.shr_u (local.get $bytes) (i32.const 15)) (i32.const 2)))
    (if (i32.gt_u (local.get $least) (memory.size))
      (then (if (i32.eq (memory.grow (i32.sub (local.get $least) (memory.size))) (i32.const -1)) (then unreachable))))
    (i32.add (i32.const 1024) (i32.and (i32.add (local.get $bytes) (i32.const 15)) (i32.const -16))))
  (func (export "init") (param i32 i32 i32 i32) (result i32)
    (i32.store8 (i32.const 16) (i32.const 0))
    (i32.const 16))
  (func (export "process") (param $batch i32) (param i32) (result i32)
    (local $left i32) (local $index i32) (local $entry i32) (local $out i32)
    (local.set $left (i32.load offset=12 (local.get $batch)))
    (local.set $entry (i32.add (local.get $batch) (i32.load16_u offset=6 (local.get $batch))))
    (local.set $out (i32.const 1024))
    (block $done
      (br_if $done (i32.eqz (local.get $left)))
      (loop $next
        (if (i32.and
              (i32.eq (i32.load8_u (i32.add (local.get $batch) (i32.load offset=16 (local.get $entry)))) (i32.const 100))
              (i32.ne (i32.load offset=20 (local.get $entry)) (i32.const 0)))
          (then
            (i64.store (local.get $out) (i64.or (i64.extend_i32_u (local.get $index)) (i64.const 0x0000000200000000)))
            (i64.store offset=24 (local.get $out) (i64.const -1))
            (local.set $out (i32.add (local.get $out) (i32.const 32)))))
        (local.set $entry (i32.add (local.get $entry) (i32.load offset=8 (local.get $batch))))
        (local.set $index (i32.add (local.get $index) (i32.const 1)))
        (br_if $next (i32.lt_u (local.get $index) (local.get $left)))))
    (if (i32.ne (local.get $out) (i32.const 1024))
      (then (call $emit (i32.const 1024) (i32.sub (local.get $out) (i32.const 1024)) (i32.const 0) (i32.const 0))))
    (i32.store8 (i32.const 16) (i32.const 0))
    (i32.store (i32.const 20) (local.get $left))
    (i32.store (i32.const 24) (i32.const 0))
    (i32.const 16)))
