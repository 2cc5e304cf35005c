//! Memory whose size follows from files, options or the batch: a lack of it is an error, not the end of the process.

use super::{Error, Result};

/// Host memory that could not be had.
pub(crate) fn no_room(operation: &'static str, bytes: usize) -> Error {
    Error::OutOfMemory { operation, device: "cpu".into(), needed: bytes as u64, available: None }
}

/// An empty vector with room for `len` elements.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn vec<T>(operation: &'static str, len: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    let reserved = vec.try_reserve_exact(len);
    reserved.map_err(|_| no_room(operation, len.saturating_mul(size_of::<T>())))?;
    Ok(vec)
}

/// `len` zeros, which take no memory before they are touched.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn zeros<T: bytemuck::Zeroable>(operation: &'static str, len: usize) -> Result<Vec<T>> {
    let none = |()| no_room(operation, len.saturating_mul(size_of::<T>()));
    bytemuck::allocation::try_zeroed_vec(len).map_err(none)
}

/// A copy.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn copy<T: Copy>(operation: &'static str, values: &[T]) -> Result<Vec<T>> {
    let mut copy = vec(operation, values.len())?;
    copy.extend_from_slice(values);
    Ok(copy)
}

/// Makes sure that work which allocates piece by piece, `bytes` in all, will find them, as far as this can be told beforehand.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn require(operation: &'static str, bytes: usize) -> Result<()> {
    vec::<u8>(operation, bytes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_an_error_that_says_how_much_it_was() {
        for error in [
            vec::<u64>("read", usize::MAX / 16).map(drop),
            zeros::<u64>("read", usize::MAX / 16).map(drop),
            require("read", isize::MAX as usize),
        ] {
            let error = error.expect_err("no machine has as much").to_string();
            assert!(error.starts_with("read on device cpu: expected 9223372036854775"), "{error}");
            assert!(error.contains("bytes of free memory, got fewer; "), "{error}");
        }
        // More bytes than a number counts.
        assert!(vec::<u64>("read", usize::MAX / 4).is_err());
        assert_eq!(copy("read", &[1, 2, 3]).ok(), Some(std::vec![1, 2, 3]));
        assert!(require("read", 1 << 20).is_ok());
    }
}
