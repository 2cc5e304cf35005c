//! Tensors whose type of element is known at run time.

use std::ops::Range;

use half::{bf16, f16};

use super::buffer::{Buffer, View, ViewMut};
use super::context::Context;
use super::element::{Element, with_element};
use crate::backend::Dtype;
use crate::{Error, Result};

/// Elements on a device, of the type that a backend stores them in.
#[derive(Debug)]
pub enum Tensor {
    /// Of 32 bits.
    F32(Buffer<f32>),
    /// Of IEEE half precision.
    F16(Buffer<f16>),
    /// Upper halves of an f32.
    Bf16(Buffer<bf16>),
}

impl Tensor {
    /// Allocates `len` elements, of f32 where `dtype` is a type of weights alone; undefined.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn allocate(context: &Context, dtype: Dtype, len: usize) -> Result<Self> {
        with_element!(dtype, T => Ok(T::tensor(context.allocate(len)?)))
    }

    /// Uploads `values`, each rounded to nearest, ties to even.
    ///
    /// # Errors
    /// The device has no memory left, or failed.
    pub fn upload(context: &Context, dtype: Dtype, values: &[f32]) -> Result<Self> {
        with_element!(dtype, T => {
            let rounded: Vec<T> = values.iter().map(|&value| T::from_f32(value)).collect();
            Ok(T::tensor(context.upload(&rounded)?))
        })
    }

    /// What it holds.
    pub fn dtype(&self) -> Dtype {
        match self {
            Tensor::F32(_) => Dtype::F32,
            Tensor::F16(_) => Dtype::F16,
            Tensor::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Tensor::F32(buffer) => buffer.len(),
            Tensor::F16(buffer) => buffer.len(),
            Tensor::Bf16(buffer) => buffer.len(),
        }
    }

    /// Whether it holds no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it, to read.
    ///
    /// # Errors
    /// [`Error::Shape`] if its elements are of another type; so below.
    pub fn view<T: Element>(&self) -> Result<View<'_, T>> {
        T::buffer(self).map(Buffer::view).ok_or_else(|| self.is_no::<T>())
    }

    /// All of it, to write.
    ///
    /// # Errors
    /// As [`Tensor::view`].
    pub fn view_mut<T: Element>(&mut self) -> Result<ViewMut<'_, T>> {
        let error = self.is_no::<T>();
        T::buffer_mut(self).map(Buffer::view_mut).ok_or(error)
    }

    /// The first `len` elements, to read.
    ///
    /// # Errors
    /// As [`Tensor::view`]; it holds fewer.
    pub fn head<T: Element>(&self, len: usize) -> Result<View<'_, T>> {
        self.view()?.slice(0..len)
    }

    /// The first `len` elements, to write.
    ///
    /// # Errors
    /// As [`Tensor::head`].
    pub fn head_mut<T: Element>(&mut self, len: usize) -> Result<ViewMut<'_, T>> {
        self.view_mut()?.slice(0..len)
    }

    /// Waits, then copies a range back.
    ///
    /// # Errors
    /// It does not lie inside; the device failed.
    pub fn download(&self, context: &Context, range: Range<usize>) -> Result<Vec<f32>> {
        with_element!(self.dtype(), T => {
            let values = context.download(self.view::<T>()?.slice(range)?)?;
            Ok(values.into_iter().map(T::to_f32).collect())
        })
    }

    fn is_no<T: Element>(&self) -> Error {
        let (expected, got) = (T::DTYPE.name().to_owned(), self.dtype().name().to_owned());
        Error::Shape { operation: "view", tensor: "elements", expected, got }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::device_tests;

    fn elements_are_of_the_type_that_was_asked_for(context: &Context) -> Result<()> {
        // 1 + 2^-9 lies between two bf16, and is one of f16.
        let values = [1.0 + 2f32.powi(-9), -0.0, f32::INFINITY];
        for (dtype, stored, first) in [
            (Dtype::F32, Dtype::F32, values[0]),
            (Dtype::F16, Dtype::F16, values[0]),
            (Dtype::Bf16, Dtype::Bf16, 1.0),
            (Dtype::I8, Dtype::F32, values[0]),
        ] {
            let mut tensor = Tensor::upload(context, dtype, &values)?;
            assert_eq!((tensor.dtype(), tensor.len()), (stored, 3));
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            let expected = [first, values[1], values[2]];
            assert_eq!(bits(&tensor.download(context, 0..3)?), bits(&expected), "{dtype:?}");
            assert_eq!(bits(&tensor.download(context, 1..3)?), bits(&expected[1..]), "{dtype:?}");
            assert_eq!(Tensor::allocate(context, dtype, 5)?.dtype(), stored);
            let errors = [tensor.view::<f32>().err(), tensor.view::<f16>().err(), tensor.view_mut::<bf16>().err()];
            let is_refused = errors.map(|error| error.is_some_and(|error| error.kind() == "shape"));
            assert_eq!(is_refused, [Dtype::F32, Dtype::F16, Dtype::Bf16].map(|other| other != stored));
        }
        let error = Tensor::upload(context, Dtype::F16, &values)?.head::<f32>(1).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("view: elements: expected f32, got f16"));
        assert!(Tensor::upload(context, Dtype::F32, &values)?.head::<f32>(4).is_err());
        Ok(())
    }

    device_tests! {
        elements: elements_are_of_the_type_that_was_asked_for;
    }
}
