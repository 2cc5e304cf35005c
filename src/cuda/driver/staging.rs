//! Copies from the host by way of page-locked memory: the driver may read pageable memory later than the call that names it.

use std::ffi::c_void;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

/// Pieces that copies take in turn, and their bytes.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 1 << 20;

/// A piece of page-locked memory.
struct Piece {
    host: *mut c_void,
    /// Recorded behind the last copy from it.
    taken: sys::CUevent,
    is_used: bool,
}

/// A ring of page-locked memory.
#[derive(Default)]
pub(super) struct Staging {
    pieces: Vec<Piece>,
    next: usize,
}

impl Staging {
    /// Enqueues a copy on a stream; the bytes have been taken when it returns.
    ///
    /// # Safety
    /// A context is current and the stream alive; there is room at `to`.
    pub unsafe fn copy(&mut self, to: u64, bytes: &[u8], stream: sys::CUstream) -> Result<(), DriverError> {
        let mut at = to;
        for part in bytes.chunks(PIECE_BYTES) {
            if self.pieces.len() < PIECES {
                self.add_piece()?;
            }
            let count = self.pieces.len();
            let piece = &mut self.pieces[self.next % count];
            self.next = (self.next + 1) % PIECES;
            // SAFETY: memory and event are alive; the copy from the piece before this one has been waited for, so that nobody reads
            // what is written here; the rest is the caller's promise.
            unsafe {
                if piece.is_used {
                    result::event::synchronize(piece.taken)?;
                }
                let staged = std::slice::from_raw_parts_mut(piece.host.cast::<u8>(), part.len());
                staged.copy_from_slice(part);
                result::memcpy_htod_async(at, staged, stream)?;
                result::event::record(piece.taken, stream)?;
            }
            piece.is_used = true;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn add_piece(&mut self) -> Result<(), DriverError> {
        let taken = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        // SAFETY: a size above 0; `release` frees both.
        match unsafe { result::malloc_host(PIECE_BYTES, 0) } {
            Ok(host) => {
                self.pieces.push(Piece { host, taken, is_used: false });
                self.next = self.pieces.len() - 1;
                Ok(())
            }
            Err(error) => {
                // SAFETY: created here, recorded nowhere. A failure leaves nothing to be done.
                let _ = unsafe { result::event::destroy(taken) };
                Err(error)
            }
        }
    }

    /// Gives the memory back. A context is current, and no copy is under way.
    pub fn release(&mut self) {
        for piece in self.pieces.drain(..) {
            // SAFETY: each was created once and is used no more. A failure leaves nothing to be done.
            unsafe {
                let _ = result::event::destroy(piece.taken);
                let _ = result::free_host(piece.host);
            }
        }
    }
}
