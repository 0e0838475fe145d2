//! Inputs copied so that taps are offsets.
//!
//! A convolution reads one input element for every channel, tap and output pixel. Where the input has been copied with
//! its zero border and, for strides, with its rows and columns sorted by remainder ([`Border`]), that is the sum of three
//! offsets, and neighbouring output pixels read neighbouring elements.

use super::Conv2dShape;
use crate::gemm::PANEL_COLUMNS;
use crate::lanes::{Instructions, Lanes, Stage, WIDTH};

/// How a plane is copied: bordered with zeros, and split into sub-planes by row and column remainder.
///
/// Border row r and column q go to sub-plane (r mod s, q mod t) at (r / s, q / t), so a tap is a constant offset and
/// neighbouring output pixels read neighbouring elements for every stride.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Border {
    /// Rows and columns of the plane.
    size: [usize; 2],
    /// Zeros before the first row and column.
    before: [usize; 2],
    /// From one output pixel to the next.
    stride: [usize; 2],
    /// Rows and columns of a sub-plane.
    part: [usize; 2],
    /// Which (row, column) remainders are ever read.
    used: Vec<bool>,
}

impl Border {
    /// For output pixels `out`, spaced by `stride`, that read at `taps` (offsets from the first row and column of the
    /// border).
    pub(super) fn new(
        size: [usize; 2],
        before: [usize; 2],
        stride: [usize; 2],
        out: [usize; 2],
        taps: &[[usize; 2]],
    ) -> Self {
        let part = [0, 1].map(|axis| {
            let reach = taps.iter().map(|tap| tap[axis]).max().unwrap_or(0);
            out[axis] + reach / stride[axis]
        });
        let mut used = vec![false; stride[0] * stride[1]];
        for tap in taps {
            used[tap[0] % stride[0] * stride[1] + tap[1] % stride[1]] = true;
        }
        Self { size, before, stride, part, used }
    }

    /// Elements of the copy of one plane.
    pub(super) fn plane_len(&self) -> usize {
        self.used.len() * self.part[0] * self.part[1]
    }

    /// Where a tap lies relative to its output pixel's place.
    pub(super) fn tap_offset(&self, tap: [usize; 2]) -> usize {
        let part = tap[0] % self.stride[0] * self.stride[1] + tap[1] % self.stride[1];
        (part * self.part[0] + tap[0] / self.stride[0]) * self.part[1] + tap[1] / self.stride[1]
    }

    /// From one output row to the next.
    pub(super) fn row_step(&self) -> usize {
        self.part[1]
    }

    /// True where outputs read the rows of the plane as they are: a copy is some of them.
    pub(super) fn is_contiguous(&self) -> bool {
        self.before == [0, 0] && self.stride == [1, 1] && self.part[1] == self.size[1] && self.part[0] <= self.size[0]
    }

    /// Copies one plane. Sub-planes that are never read keep their old contents.
    pub(super) fn copy_plane(&self, plane: &[f32], copy: &mut [f32]) {
        self.copy_rows(plane, 0, copy);
    }

    /// Copies what the outputs read whose first row is `first_row`, instead of row 0.
    pub(super) fn copy_rows(&self, plane: &[f32], first_row: usize, copy: &mut [f32]) {
        Instructions::detect().run(CopyPlane { border: self, first_row: first_row * self.stride[0], plane, copy });
    }
}

struct CopyPlane<'a> {
    border: &'a Border,
    /// The row of the border that comes first.
    first_row: usize,
    plane: &'a [f32],
    copy: &'a mut [f32],
}

impl Stage for CopyPlane<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Border {
            size: [height, width], before, stride: [row_stride, stride], part: [part_rows, part_width], ..
        } = *self.border;
        let parts = self.copy.chunks_exact_mut(part_rows * part_width);
        for (index, part) in parts.enumerate() {
            if !self.border.used[index] {
                continue;
            }
            let (row_rest, rest) = (index / stride, index % stride);
            // Column t of the part is column t·s + rest − before of the plane.
            let first = before[1].saturating_sub(rest).div_ceil(stride).min(part_width);
            let end = (width + before[1]).saturating_sub(rest).div_ceil(stride).clamp(first, part_width);
            for (row, out) in part.chunks_exact_mut(part_width).enumerate() {
                let source = (self.first_row + row * row_stride + row_rest).wrapping_sub(before[0]);
                if source >= height || first == end {
                    out.fill(0.0);
                    continue;
                }
                let source = &self.plane[source * width..(source + 1) * width];
                // The edges by whole vectors, where they do not reach further: what lies inside is written after them.
                if part_width >= WIDTH && first <= WIDTH && part_width - end <= WIDTH {
                    L::zero().store_some(out);
                    L::zero().store_some(&mut out[part_width - WIDTH..]);
                } else {
                    out.fill(0.0);
                }
                every::<L>(&source[first * stride + rest - before[1]..], stride, &mut out[first..end]);
            }
        }
    }
}

/// Packs elements into panels `[offsets][16]`: columns are the neighbours `sources`, rows begin at `offsets`. Columns
/// past the end of the last panel are zero.
pub(super) fn pack_pixels(elements: &[f32], sources: &[usize], offsets: &[usize], out: &mut [f32]) {
    let panels = out.chunks_exact_mut(offsets.len() * PANEL_COLUMNS);
    for (sources, panel) in sources.chunks(PANEL_COLUMNS).zip(panels) {
        if let &[first, .., last] = sources
            && sources.len() == PANEL_COLUMNS
            && last - first == PANEL_COLUMNS - 1
        {
            for (offset, out) in offsets.iter().zip(panel.chunks_exact_mut(PANEL_COLUMNS)) {
                out.copy_from_slice(&elements[offset + first..][..PANEL_COLUMNS]);
            }
            continue;
        }
        for (half, sources) in sources.chunks(8).enumerate() {
            let run = sources.len() == 8 && sources[7] - sources[0] == 7;
            for (offset, out) in offsets.iter().zip(panel.chunks_exact_mut(PANEL_COLUMNS)) {
                let out = &mut out[half * 8..half * 8 + 8];
                if run {
                    out.copy_from_slice(&elements[offset + sources[0]..][..8]);
                } else {
                    for (out, source) in out.iter_mut().zip(sources) {
                        *out = elements[offset + source];
                    }
                    out[sources.len()..].fill(0.0);
                }
            }
        }
        if sources.len() <= 8 {
            panel.chunks_exact_mut(PANEL_COLUMNS).for_each(|out| out[8..].fill(0.0));
        }
    }
}

/// out[t] = source[t · stride].
#[inline(always)]
fn every<L: Lanes>(source: &[f32], stride: usize, out: &mut [f32]) {
    // Outputs whose vectors lie inside of the source.
    let len = if stride <= 2 { out.len().min(source.len() / stride) } else { 0 };
    let whole = &mut out[..len];
    if stride == 1 {
        for (out, source) in whole.as_chunks_mut::<WIDTH>().0.iter_mut().zip(source.as_chunks::<WIDTH>().0) {
            L::load(source).store(out);
        }
    } else {
        let pairs = source.as_chunks::<WIDTH>().0.as_chunks::<2>().0;
        for (out, [low, high]) in whole.as_chunks_mut::<WIDTH>().0.iter_mut().zip(pairs) {
            L::evens(L::load(low), L::load(high)).store(out);
        }
    }
    let mut done = len / WIDTH * WIDTH;
    if done < len && len >= WIDTH {
        // The last vector overlaps the one before it.
        let source = &source[(len - WIDTH) * stride..];
        let low = L::load_some(source);
        let values = if stride == 1 { low } else { L::evens(low, L::load_some(&source[WIDTH..])) };
        values.store_some(&mut out[len - WIDTH..]);
        done = len;
    }
    for index in done..out.len() {
        out[index] = source[index * stride];
    }
}

/// The taps of the kernel as offsets from the first row and column of the zero border.
pub(super) fn kernel_taps(shape: &Conv2dShape) -> Vec<[usize; 2]> {
    let [rows, columns] = shape.kernel;
    (0..rows * columns).map(|tap| [tap / columns * shape.dilation[0], tap % columns * shape.dilation[1]]).collect()
}
