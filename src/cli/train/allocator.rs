//! How the C library's allocator keeps memory during training.

/// Keeps what one step has freed for the next. By default glibc gives large tensors back to the system and has their pages made and
/// cleared again, which took an eighth of a small model's step.
pub(super) fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // The largest that glibc takes: beyond it, memory is mapped for each tensor.
        const MAPPED_FROM: libc::c_int = 32 << 20;
        // SAFETY: mallopt takes any numbers, locks what it changes, and answers 0 to what it does not know.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        }
    }
}
