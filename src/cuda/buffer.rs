//! What a context hands out: buffers, views of them, graphs, page-locked memory. All give themselves back when dropped.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use super::context::Context;
use super::device::{GraphId, PinnedId};
use super::element::Element;
use crate::backend::Dtype;
use crate::{Error, Result};

/// Memory on a device, freed when dropped.
pub struct Buffer<T> {
    pub(super) context: Context,
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) element: PhantomData<T>,
}

impl<T> Buffer<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it, to read.
    pub fn view(&self) -> View<'_, T> {
        View { owner: self.context.id(), address: self.address, len: self.len, element: PhantomData }
    }

    /// All of it, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut { owner: self.context.id(), address: self.address, len: self.len, element: PhantomData }
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} on {}", self.len, std::any::type_name::<T>(), self.context.name())
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: the address came from this context's `allocate`, and no view outlives the buffer.
        unsafe { self.context.free(self.address, self.len * size_of::<T>()) };
    }
}

/// Part of a buffer, to read.
pub struct View<'a, T> {
    pub(super) owner: usize,
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) element: PhantomData<&'a [T]>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<'a, T> View<'a, T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it.
    ///
    /// # Errors
    /// [`Error::Shape`] if the range does not lie inside.
    pub fn slice(self, range: Range<usize>) -> Result<View<'a, T>> {
        check_range(&range, self.len)?;
        let address = self.address + (range.start * size_of::<T>()) as u64;
        Ok(View { owner: self.owner, address, len: range.len(), element: PhantomData })
    }
}

impl<'a> View<'a, u32> {
    /// The structures that the words are.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are not a whole number of these.
    pub fn cast<S: bytemuck::Pod>(self) -> Result<View<'a, S>> {
        let words = size_of::<S>() / size_of::<u32>();
        if words == 0 || !self.len.is_multiple_of(words) || align_of::<S>() > align_of::<u32>() {
            let (expected, got) = (format!("structures of {words} words"), format!("{} words", self.len));
            return Err(Error::Shape { operation: "cast", tensor: "words", expected, got });
        }
        Ok(View { owner: self.owner, address: self.address, len: self.len / words, element: PhantomData })
    }
}

/// Part of a buffer, to write.
pub struct ViewMut<'a, T> {
    pub(super) owner: usize,
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) element: PhantomData<&'a mut [T]>,
}

impl<'a, T> ViewMut<'a, T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it.
    ///
    /// # Errors
    /// [`Error::Shape`] if the range does not lie inside.
    pub fn slice(self, range: Range<usize>) -> Result<ViewMut<'a, T>> {
        check_range(&range, self.len)?;
        let address = self.address + (range.start * size_of::<T>()) as u64;
        Ok(ViewMut { owner: self.owner, address, len: range.len(), element: PhantomData })
    }

    /// The same part, to read, while this is borrowed.
    pub fn as_view(&self) -> View<'_, T> {
        View { owner: self.owner, address: self.address, len: self.len, element: PhantomData }
    }

    /// The same part, to write, while this is borrowed.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { owner: self.owner, address: self.address, len: self.len, element: PhantomData }
    }
}

impl<'a, T: bytemuck::Pod> View<'a, T> {
    /// The same memory as words.
    ///
    /// # Errors
    /// [`Error::Shape`] if an element is no whole number of aligned words.
    pub fn bits(self) -> Result<View<'a, u32>> {
        let (word, size) = (size_of::<u32>(), size_of::<T>());
        if !size.is_multiple_of(word) || align_of::<T>() < align_of::<u32>() {
            let (expected, got) = ("elements of whole words".to_owned(), format!("elements of {size} bytes"));
            return Err(Error::Shape { operation: "cast", tensor: "words", expected, got });
        }
        Ok(View { owner: self.owner, address: self.address, len: self.len * (size / word), element: PhantomData })
    }
}

/// What a step enqueues, recorded; forgotten by the device when dropped.
pub struct Graph {
    pub(super) context: Context,
    pub(super) id: GraphId,
    pub(super) nodes: usize,
    /// How often the context had freed memory when this was recorded.
    pub(super) frees: u64,
}

impl Graph {
    /// Kernel launches, matrix products, copies and fills that it holds.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Whether nothing of the context's memory has been freed since the recording: then all that the graph names is there.
    pub fn is_intact(&self) -> bool {
        self.frees == self.context.frees()
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a graph of {} nodes on {}", self.nodes, self.context.name())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.context.drop_graph(self.id);
    }
}

/// Page-locked host memory, freed when dropped.
pub struct Pinned<T> {
    pub(super) context: Context,
    pub(super) id: PinnedId,
    pub(super) len: usize,
    pub(super) element: PhantomData<T>,
}

impl<T> Pinned<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has room for no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<T> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} of page-locked memory", self.len, std::any::type_name::<T>())
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        self.context.free_pinned(self.id, self.len * size_of::<T>());
    }
}

impl<'a, T: Element> View<'a, T> {
    /// The same memory as f32, which it must be.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is of another type.
    pub fn floats(self) -> Result<View<'a, f32>> {
        if T::DTYPE == Dtype::F32 {
            return Ok(View { owner: self.owner, address: self.address, len: self.len, element: PhantomData });
        }
        let (expected, got) = ("F32".to_owned(), format!("{:?}", T::DTYPE));
        Err(Error::Shape { operation: "cast", tensor: "elements", expected, got })
    }
}

fn check_range(range: &Range<usize>, len: usize) -> Result<()> {
    if range.start <= range.end && range.end <= len {
        return Ok(());
    }
    Err(Error::Shape {
        operation: "slice",
        tensor: "range",
        expected: format!("a range in 0..{len}"),
        got: format!("{range:?}"),
    })
}
