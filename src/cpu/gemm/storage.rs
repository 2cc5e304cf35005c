//! Where packed weights lie.

use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

use super::tiling::PANEL;

/// Cache lines of packed weights, zeros at first. Many of them are mapped on large pages where the system offers those: each step of
/// the search reads all weights, and pages of 4 KiB are then more than a processor keeps addresses of.
pub(super) enum Lines<L> {
    Heap(Vec<L>),
    Mapped(MmapMut),
}

impl<L: Pod> Lines<L> {
    /// The size of a large page.
    const LARGE: usize = 1 << 21;

    pub fn zeroed(len: usize) -> Self {
        Self::mapped(len).unwrap_or_else(|| Lines::Heap(vec![L::zeroed(); len]))
    }

    fn mapped(len: usize) -> Option<Self> {
        let bytes = len * size_of::<L>();
        if !cfg!(target_os = "linux") || bytes < Self::LARGE {
            return None;
        }
        let map = MmapMut::map_anon(bytes).ok()?;
        // A system without large pages serves small ones.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(Lines::Mapped(map))
    }
}

impl<L: Pod> Deref for Lines<L> {
    type Target = [L];

    #[inline]
    fn deref(&self) -> &[L] {
        match self {
            Lines::Heap(lines) => lines,
            // A mapping starts at a page and was made for whole lines.
            Lines::Mapped(map) => bytemuck::cast_slice(map),
        }
    }
}

impl<L: Pod> DerefMut for Lines<L> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [L] {
        match self {
            Lines::Heap(lines) => lines,
            Lines::Mapped(map) => bytemuck::cast_slice_mut(map),
        }
    }
}

/// Steps that are written at a time: together they stay in the processor's first cache, whatever the stride of the rows.
const BLOCK: usize = 16;

/// Writes rows of as many values as the panel has steps, one row a column.
pub(super) fn interleave<T: Copy>(rows: &[T], panel: &mut [[T; PANEL]]) {
    let steps = panel.len();
    for (first, block) in (0..).step_by(BLOCK).zip(panel.chunks_mut(BLOCK)) {
        for (column, row) in rows.chunks_exact(steps).enumerate() {
            for (step, value) in block.iter_mut().zip(&row[first..]) {
                step[column] = *value;
            }
        }
    }
}

/// Steps of the whole panels that a thread packs at a time, `steps` being those of one: some megabytes.
pub(super) fn panels_of_share(steps: usize) -> usize {
    const SHARE: usize = 1 << 15;
    SHARE.next_multiple_of(steps)
}

#[cfg(test)]
mod tests {
    use super::{Lines, PANEL, interleave};

    #[test]
    fn rows_become_columns_and_what_has_no_row_stays() {
        for (rows, steps) in [(1, 1), (32, 16), (7, 33)] {
            let values: Vec<usize> = (0..rows * steps).collect();
            let mut panel = vec![[usize::MAX; PANEL]; steps];
            interleave(&values, &mut panel);
            for (step, line) in panel.iter().enumerate() {
                let expected = |column| if column < rows { column * steps + step } else { usize::MAX };
                assert_eq!(*line, std::array::from_fn(expected));
            }
        }
    }

    #[test]
    fn few_lines_and_many_are_zeros_that_can_be_written() {
        let large = Lines::<[f32; 16]>::LARGE / 64;
        for len in [0, 1, large - 1, large, large + 1] {
            let mut lines = Lines::<[f32; 16]>::zeroed(len);
            assert_eq!(lines.len(), len);
            assert!(lines.iter().all(|line| *line == [0.0; 16]));
            for (i, line) in lines.iter_mut().enumerate() {
                *line = [i as f32; 16];
            }
            assert!(lines.iter().enumerate().all(|(i, line)| *line == [i as f32; 16]));
        }
    }
}
