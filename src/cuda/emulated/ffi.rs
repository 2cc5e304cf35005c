//! The C interface of `kernels/host/emulator.cpp`.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_uint, c_void};
use std::ptr::NonNull;

use crate::backend::Activation;
use crate::cuda::generated;
#[cfg(test)]
use crate::cuda::layout::Entry;

/// A kernel in the emulator's tables; mirrors `emulated::Kernel`.
#[repr(C)]
pub struct Kernel {
    name: *const c_char,
    max_threads: c_uint,
    argument_type: *const c_char,
    argument_bytes: usize,
    entry: *const c_void,
    next: *const Kernel,
}

unsafe extern "C" {
    safe fn emulated_activate(activation: c_uint, x: f32, as_on_cpu: bool) -> f32;
    fn emulated_new(seed: u64) -> *mut c_void;
    fn emulated_delete(emulator: *mut c_void);
    fn emulated_launch(
        emulator: *mut c_void,
        kernel: *const Kernel,
        grid: *const c_uint,
        block: *const c_uint,
        dynamic_bytes: usize,
        arguments: *const c_void,
    ) -> *const c_char;
    fn emulated_watch(emulator: *mut c_void, begin: usize, end: usize);
    fn emulated_watched_bytes(emulator: *const c_void) -> u64;
    fn emulated_poison(begin: *const c_void, bytes: usize);
    fn emulated_unpoison(begin: *const c_void, bytes: usize);
}

/// An activation as kernels compute it, of what is stored as f32 or as something narrower.
pub fn activate(activation: Activation, x: f32, is_f32: bool) -> f32 {
    emulated_activate(activation as c_uint, x, is_f32)
}

/// A kernel that this build's emulator can run.
#[derive(Clone, Copy)]
pub struct KernelRef(&'static Kernel);

// SAFETY: the tables are written before `main` and never after; a `Kernel` holds addresses of constants and of code.
unsafe impl Send for KernelRef {}
// SAFETY: as above.
unsafe impl Sync for KernelRef {}

impl KernelRef {
    /// The largest block that the kernel can be launched with.
    pub fn max_threads(self) -> u32 {
        self.0.max_threads
    }

    /// The size of the struct that the kernel takes.
    pub fn argument_bytes(self) -> usize {
        self.0.argument_bytes
    }
}

/// All kernels by symbol.
pub fn kernels() -> HashMap<&'static str, KernelRef> {
    let mut found = HashMap::new();
    for list in generated::EMULATED {
        let mut next = list();
        // SAFETY: the lists hold constants that live as long as the program and end in null.
        while let Some(kernel) = unsafe { next.as_ref() } {
            // SAFETY: a name is a C string literal.
            let name = unsafe { CStr::from_ptr(kernel.name) };
            found.insert(name.to_str().unwrap_or_default(), KernelRef(kernel));
            next = kernel.next;
        }
    }
    found
}

/// What the kernel files export of their layout.
#[cfg(test)]
pub fn layout_entries() -> Vec<Entry> {
    let mut found = Vec::new();
    for list in generated::EMULATED_LAYOUTS {
        let mut count = 0;
        let entries = list(&mut count);
        if !entries.is_null() {
            // SAFETY: a constant table of so many entries.
            found.extend_from_slice(unsafe { std::slice::from_raw_parts(entries, count) });
        }
    }
    found
}

/// The struct that each kernel takes, by symbol, as its file spells it.
#[cfg(test)]
pub fn argument_types() -> HashMap<&'static str, &'static str> {
    // SAFETY: a name is a C string literal.
    let text = |kernel: KernelRef| unsafe { CStr::from_ptr(kernel.0.argument_type) }.to_str().unwrap_or_default();
    kernels().into_iter().map(|(symbol, kernel)| (symbol, text(kernel))).collect()
}

/// An emulator: the stacks and the state of one running block.
pub struct Emulator(NonNull<c_void>);

// SAFETY: between launches an emulator is plain memory, bound to no thread; launches take it by `&mut`.
unsafe impl Send for Emulator {}

impl Emulator {
    /// A new emulator; none if memory is short. The seed decides the order in which threads run.
    pub fn new(seed: u64) -> Option<Self> {
        // SAFETY: takes any seed.
        NonNull::new(unsafe { emulated_new(seed) }).map(Emulator)
    }

    /// Runs a launch to its end; the message says what went wrong.
    ///
    /// # Safety
    /// `arguments` holds the kernel's struct; with it and these dimensions the kernel stays inside live memory.
    pub unsafe fn launch(
        &mut self,
        kernel: KernelRef,
        grid: [u32; 3],
        block: u32,
        shared: usize,
        arguments: &[u64],
    ) -> Result<(), String> {
        let block = [block, 1, 1];
        // SAFETY: the pointers are valid for the call; the rest is the caller's promise.
        let message = unsafe {
            emulated_launch(self.0.as_ptr(), kernel.0, grid.as_ptr(), block.as_ptr(), shared, arguments.as_ptr().cast())
        };
        if message.is_null() {
            return Ok(());
        }
        // SAFETY: a message is a C string, valid until the next launch.
        Err(unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned())
    }

    /// Counts reads in a range of addresses from now on.
    pub fn watch(&mut self, begin: usize, end: usize) {
        // SAFETY: the addresses are compared only.
        unsafe { emulated_watch(self.0.as_ptr(), begin, end) }
    }

    /// Bytes read in the watched range.
    pub fn watched_bytes(&self) -> u64 {
        // SAFETY: reads a number.
        unsafe { emulated_watched_bytes(self.0.as_ptr()) }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // SAFETY: it came from `emulated_new`, and nothing runs on it.
        unsafe { emulated_delete(self.0.as_ptr()) }
    }
}

/// Tells AddressSanitizer, if the emulator was built with it, that nobody may touch these bytes.
pub fn poison(begin: *const u8, bytes: usize) {
    // SAFETY: marks addresses, touches nothing.
    unsafe { emulated_poison(begin.cast(), bytes) }
}

/// Takes [`poison`] back.
pub fn unpoison(begin: *const u8, bytes: usize) {
    // SAFETY: marks addresses, touches nothing.
    unsafe { emulated_unpoison(begin.cast(), bytes) }
}
