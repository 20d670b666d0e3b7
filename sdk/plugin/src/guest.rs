//! The canonical ABI by hand: what `weir:plugin/transform@1.0.0` exports and imports as a core module.
//!
//! Two exports and three imports are less code than generated bindings, and the batch is read where the host put it.
//! This module exists in the WebAssembly build alone, where there is one thread; every raw pointer is in here.
//!
//! - The host writes arguments into memory it asks for with `cabi_realloc`, and gives that memory to the callee.
//! - A result that does not fit one value is returned as a pointer to its parts: see [`answer`].
use std::alloc::{Layout, alloc, handle_alloc_error, realloc as grow};
use std::cell::RefCell;
use std::thread::LocalKey;

use weir_plugin_abi::VerdictWriter;

use crate::instance::{Host, Instance};
use crate::log::Level;
use crate::{BatchError, InitError, Plugin};

/// Where [`export!`](crate::export!) keeps the instance of its plugin.
pub struct Slot<P>(RefCell<Option<Instance<P>>>);

impl<P> Slot<P> {
    /// An empty slot.
    #[must_use]
    pub const fn new() -> Self {
        Self(RefCell::new(None))
    }
}

impl<P> Default for Slot<P> {
    fn default() -> Self {
        Self::new()
    }
}

mod import {
    #[link(wasm_import_module = "weir:plugin/sink@1.0.0")]
    unsafe extern "C" {
        #[link_name = "emit"]
        pub(super) fn emit(verdicts: *const u8, verdicts_bytes: usize, arena: *const u8, arena_bytes: usize);
    }
    #[link(wasm_import_module = "weir:plugin/log@1.0.0")]
    unsafe extern "C" {
        #[link_name = "write"]
        pub(super) fn write(level: i32, message: *const u8, message_bytes: usize);
    }
    #[link(wasm_import_module = "weir:plugin/metric@1.0.0")]
    unsafe extern "C" {
        #[link_name = "add"]
        pub(super) fn add(id: i32, n: i64);
    }
}

struct Imports;

impl Host for Imports {
    fn emit(&mut self, verdicts: &[u8], arena: &[u8]) {
        // SAFETY: both slices are valid for reads of their lengths, and the host only reads them during the call.
        unsafe { import::emit(verdicts.as_ptr(), verdicts.len(), arena.as_ptr(), arena.len()) }
    }

    fn count(&mut self, id: u32, n: u64) {
        // SAFETY: no pointers pass; the canonical ABI passes u32 and u64 as i32 and i64 of the same bits.
        unsafe { import::add(id.cast_signed(), n.cast_signed()) }
    }
}

pub(crate) fn log(level: Level, message: &str) {
    // SAFETY: the text is valid for reads of its length and UTF-8, and the host only reads it during the call.
    unsafe { import::write(level as i32, message.as_ptr(), message.len()) }
}

/// `cabi_realloc`: memory for the arguments of the next call.
///
/// # Safety
/// `old` is null and `old_bytes` 0, or they are a block given out before with the same `align`, as the canonical ABI asks.
#[must_use]
pub unsafe fn realloc(old: *mut u8, old_bytes: usize, align: usize, new_bytes: usize) -> *mut u8 {
    if new_bytes == 0 {
        // The canonical ABI wants an aligned pointer even for nothing, and never reads there.
        return std::ptr::without_provenance_mut(align);
    }
    let Ok(layout) = Layout::from_size_align(new_bytes, align) else { std::process::abort() };
    let block = if old_bytes == 0 {
        // SAFETY: `layout` has a size above 0.
        unsafe { alloc(layout) }
    } else {
        // SAFETY: by this function's contract `old` was allocated here with `old_bytes` and the same valid `align`, and
        // `new_bytes` is above 0.
        unsafe { grow(old, Layout::from_size_align_unchecked(old_bytes, align), new_bytes) }
    };
    if block.is_null() {
        handle_alloc_error(layout);
    }
    block
}

/// The export `init`: `result<_, init-error>` by pointer.
///
/// # Safety
/// `config` (`config_bytes` long) and `outputs` (`outputs_count` pairs of pointer and length, each a text) are blocks from
/// [`realloc`] of exactly these sizes that nobody else uses: the host gives them away.
#[must_use]
pub unsafe fn init<P: Plugin>(
    slot: &'static LocalKey<Slot<P>>,
    config: *mut u8,
    config_bytes: usize,
    outputs: *mut u8,
    outputs_count: usize,
) -> *const u32 {
    // SAFETY: by contract a block of this size and alignment 1, allocated here and given to us.
    let config = unsafe { Vec::from_raw_parts(config, config_bytes, config_bytes) };
    // SAFETY: by contract a block of this many pairs of 32-bit words with their alignment, given to us; `[u32; 2]` has
    // the size and alignment of such a pair.
    let pairs = unsafe { Vec::from_raw_parts(outputs.cast::<[u32; 2]>(), outputs_count, outputs_count) };
    let names = pairs.into_iter().map(|[start, bytes]| {
        let bytes = bytes as usize;
        // SAFETY: by contract each pair names a block of this size and alignment 1, given to us. Addresses come from the
        // host as numbers, so their provenance is what `realloc` exposed to it.
        let name = unsafe { Vec::from_raw_parts(std::ptr::with_exposed_provenance_mut(start as usize), bytes, bytes) };
        String::from_utf8_lossy(&name).into_owned()
    });
    let names: Vec<String> = names.collect();
    let made = Instance::<P>::init(&config, &names);
    match made {
        Ok(instance) => {
            std::panic::set_hook(Box::new(|panic| say_last_words(&panic.to_string())));
            slot.with(|slot| *slot.0.borrow_mut() = Some(instance));
            answer([0, 0, 0, 0], "")
        }
        Err(InitError::Config(text)) => answer([1, 0, 0, 0], &text),
        Err(InitError::Unsupported(text)) => answer([1, 1, 0, 0], &text),
    }
}

/// The export `process`: `result<outcome, batch-error>` by pointer.
///
/// # Safety
/// `batch` is a block of `batch_bytes` from [`realloc`] that nobody else uses: the host gives it away.
#[must_use]
pub unsafe fn process<P: Plugin>(slot: &'static LocalKey<Slot<P>>, batch: *mut u8, batch_bytes: usize) -> *const u32 {
    // SAFETY: by contract a block of this size and alignment 1, allocated here and given to us.
    let batch = unsafe { Vec::from_raw_parts(batch, batch_bytes, batch_bytes) };
    let done = slot.with(|slot| match slot.0.borrow_mut().as_mut() {
        Some(instance) => instance.process(&batch, &mut Imports),
        None => Err(BatchError::Fatal("the host called process before init".to_owned())),
    });
    match done {
        Ok(outcome) => answer([0, outcome.processed, outcome.rejected, 0], ""),
        Err(BatchError::Retry(text)) => answer([1, 0, 0, 0], &text),
        Err(BatchError::Fatal(text)) => answer([1, 1, 0, 0], &text),
    }
}

/// Hands a panic's message over as a reject, right before the trap: `emit` is the one import every plugin has.
///
/// Nothing of a batch that trapped is committed, so this verdict never counts; it is there to be read.
fn say_last_words(message: &str) {
    let mut words = VerdictWriter::new();
    words.reject(0, message);
    Imports.emit(words.verdicts(), words.arena());
}

/// Lays a result out for the host and returns where it is, until the next call.
///
/// Both results of the world have the same shape: the word at 0 says ok (0) or error (1). Behind it ok has its fields,
/// and error the case at 4, the text's start at 8 and its length at 12. Cases are one byte wide; the bytes above are
/// padding, and zero here.
fn answer(mut words: [u32; 4], text: &str) -> *const u32 {
    thread_local! {
        static ANSWER: RefCell<([u32; 4], String)> = const { RefCell::new(([0; 4], String::new())) };
    }
    ANSWER.with_borrow_mut(|(place, kept)| {
        if words[0] != 0 {
            text.clone_into(kept);
            words[2] = kept.as_ptr().expose_provenance() as u32;
            words[3] = kept.len() as u32;
        }
        *place = words;
        place.as_ptr()
    })
}

/// What [`export!`](crate::export!) becomes in the WebAssembly build.
#[doc(hidden)]
#[macro_export]
macro_rules! export_wasm {
    ($plugin:ty) => {
        const _: () = {
            ::std::thread_local! {
                static SLOT: $crate::guest::Slot<$plugin> = const { $crate::guest::Slot::new() };
            }

            #[unsafe(export_name = "init")]
            unsafe extern "C" fn init(config: *mut u8, config_bytes: usize, outputs: *mut u8, count: usize) -> *const u32 {
                // SAFETY: the host calls this by the canonical ABI, which is the contract of `guest::init`.
                unsafe { $crate::guest::init(&SLOT, config, config_bytes, outputs, count) }
            }

            #[unsafe(export_name = "process")]
            unsafe extern "C" fn process(batch: *mut u8, batch_bytes: usize) -> *const u32 {
                // SAFETY: the host calls this by the canonical ABI, which is the contract of `guest::process`.
                unsafe { $crate::guest::process(&SLOT, batch, batch_bytes) }
            }

            #[unsafe(export_name = "cabi_realloc")]
            unsafe extern "C" fn cabi_realloc(old: *mut u8, old_bytes: usize, align: usize, new_bytes: usize) -> *mut u8 {
                // SAFETY: the host calls this by the canonical ABI, which is the contract of `guest::realloc`.
                unsafe { $crate::guest::realloc(old, old_bytes, align, new_bytes) }
            }
        };
    };
}
