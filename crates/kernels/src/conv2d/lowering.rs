//! The second matrix of a convolution, read from the input on the fly.
//!
//! Row (channel, tap) and column (output pixel) of that matrix is one input element. [`View`] finds it by adding three
//! offsets, because the input has been copied with its zero border and, for horizontal strides, with its columns sorted
//! by remainder, so that neighbouring output pixels always read neighbouring elements. Inputs that need neither are
//! used where they lie.

use std::ops::Range;

use super::Conv2dShape;
use crate::gemm::{PANEL_COLUMNS, Simd};
use crate::lanes::{Instructions, Lanes, Stage, WIDTH};
use crate::parallel::{Shared, for_each_task};

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

    /// True where the copy would be the plane itself.
    pub(super) fn is_identity(&self) -> bool {
        self.before == [0, 0] && self.stride == [1, 1] && self.part == self.size
    }

    /// Copies one plane. Sub-planes that are never read keep their old contents.
    pub(super) fn copy_plane(&self, plane: &[f32], copy: &mut [f32]) {
        Instructions::detect().run(CopyPlane { border: self, plane, copy });
    }

    /// Copies the planes `channels` of the images `images` of a tensor with `all_channels` channels.
    pub(super) fn copy_planes(
        &self,
        tensor: &[f32],
        all_channels: usize,
        images: Range<usize>,
        channels: Range<usize>,
        copy: &mut [f32],
    ) {
        const PLANES_PER_TASK: usize = 4;
        let plane = self.size[0] * self.size[1];
        let planes = images.len() * channels.len();
        let copies = Shared::new(copy);
        for_each_task(planes.div_ceil(PLANES_PER_TASK), |task| {
            for index in task * PLANES_PER_TASK..((task + 1) * PLANES_PER_TASK).min(planes) {
                let (n, c) = (images.start + index / channels.len(), channels.start + index % channels.len());
                let from = (n * all_channels + c) * plane;
                #[allow(unsafe_code, reason = "tasks write disjoint planes")]
                // SAFETY: each index belongs to one task and has its own range.
                let copy = unsafe { copies.part(index * self.plane_len(), self.plane_len()) };
                self.copy_plane(&tensor[from..from + plane], copy);
            }
        });
    }
}

struct CopyPlane<'a> {
    border: &'a Border,
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
                let source = (row * row_stride + row_rest).wrapping_sub(before[0]);
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

/// The second matrix: rows (channel, tap), columns output pixels.
pub(super) struct View<'a> {
    pub(super) elements: &'a [f32],
    pub(super) image_stride: usize,
    pub(super) channel_stride: usize,
    pub(super) row_step: usize,
    /// The offset of each tap.
    pub(super) taps: Vec<usize>,
    /// Rows and columns of the output.
    pub(super) out: [usize; 2],
}

impl View<'_> {
    /// Where each of the output pixels `pixels` (counted over all images, each image row by row) reads at offset 0. The
    /// numbers increase, so 16 of them that span 15 are neighbours.
    pub(super) fn sources(&self, pixels: Range<usize>) -> Vec<usize> {
        let mut sources = Vec::with_capacity(pixels.len());
        let [height, width] = self.out;
        let mut pixel = pixels.start;
        while pixel < pixels.end {
            let (row, column) = (pixel / width, pixel % width);
            let from = row / height * self.image_stride + row % height * self.row_step;
            let end = width.min(column + pixels.end - pixel);
            sources.extend(from + column..from + end);
            pixel += end - column;
        }
        sources
    }

    /// The offset of row `z` of the matrix.
    fn row_offset(&self, z: usize) -> usize {
        z / self.taps.len() * self.channel_stride + self.taps[z % self.taps.len()]
    }

    /// Packs the rows `depth` and the columns `sources` into panels `[depth][16]`: columns are pixels. Columns past the
    /// end of the last panel are zero.
    pub(super) fn pack_pixels(
        &self,
        sources: &[usize],
        depth: Range<usize>,
        offsets: &mut Vec<usize>,
        out: &mut [f32],
    ) {
        offsets.clear();
        offsets.extend(depth.map(|z| self.row_offset(z)));
        let panels = out.chunks_exact_mut(offsets.len() * PANEL_COLUMNS);
        for (sources, panel) in sources.chunks(PANEL_COLUMNS).zip(panels) {
            let rows = offsets.iter().zip(panel.chunks_exact_mut(PANEL_COLUMNS));
            if let &[first, .., last] = sources
                && sources.len() == PANEL_COLUMNS
                && last - first == PANEL_COLUMNS - 1
            {
                for (offset, out) in rows {
                    out.copy_from_slice(&self.elements[offset + first..][..PANEL_COLUMNS]);
                }
                continue;
            }
            for (half, sources) in sources.chunks(8).enumerate() {
                let rows = offsets.iter().zip(panel.chunks_exact_mut(PANEL_COLUMNS));
                let run = sources.len() == 8 && sources[7] - sources[0] == 7;
                for (offset, out) in rows {
                    let out = &mut out[half * 8..half * 8 + 8];
                    if run {
                        out.copy_from_slice(&self.elements[offset + sources[0]..][..8]);
                    } else {
                        for (out, source) in out.iter_mut().zip(sources) {
                            *out = self.elements[offset + source];
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

    /// Packs the transposed matrix: columns are the matrix rows `rows`, the depth is the pixels `sources`.
    /// Panels `[pixels][16]`; columns past the end repeat the last.
    pub(super) fn pack_rows(&self, simd: Simd, sources: &[usize], rows: Range<usize>, out: &mut [f32]) {
        let panels = rows.clone().step_by(PANEL_COLUMNS);
        let (whole, rest) = sources.split_at(sources.len() / 8 * 8);
        for (first, panel) in panels.zip(out.chunks_exact_mut(sources.len() * PANEL_COLUMNS)) {
            let offsets: [usize; PANEL_COLUMNS] =
                std::array::from_fn(|index| self.row_offset((first + index).min(rows.end - 1)));
            let mut blocks = panel.chunks_exact_mut(8 * PANEL_COLUMNS);
            for (block, sources) in blocks.by_ref().zip(whole.chunks_exact(8)) {
                if sources[7] - sources[0] == 7 {
                    transpose(simd, &self.elements[sources[0]..], &offsets, block);
                } else {
                    gather(self.elements, &offsets, sources, block);
                }
            }
            gather(self.elements, &offsets, rest, blocks.into_remainder());
        }
    }
}

fn gather(elements: &[f32], offsets: &[usize; PANEL_COLUMNS], sources: &[usize], out: &mut [f32]) {
    for (source, out) in sources.iter().zip(out.chunks_exact_mut(PANEL_COLUMNS)) {
        for (out, offset) in out.iter_mut().zip(offsets) {
            *out = elements[offset + source];
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

/// Writes 16 rows of 8 elements, which begin at `offsets`, as 8 rows of 16.
fn transpose(simd: Simd, elements: &[f32], offsets: &[usize; PANEL_COLUMNS], out: &mut [f32]) {
    match simd {
        Simd::Portable => {
            for (column, &offset) in offsets.iter().enumerate() {
                let row = &elements[offset..offset + 8];
                for (out, value) in out.iter_mut().skip(column).step_by(PANEL_COLUMNS).zip(row) {
                    *out = *value;
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "detection stands behind this variant")]
        // SAFETY: this variant exists only where AVX2 was found.
        Simd::Avx2(_) => unsafe { transpose_avx2(elements, offsets, out) },
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector loads and stores of checked slices")]
#[target_feature(enable = "avx2,fma")]
fn transpose_avx2(elements: &[f32], offsets: &[usize; PANEL_COLUMNS], out: &mut [f32]) {
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps,
        _mm256_unpacklo_ps,
    };
    assert!(out.len() >= 8 * PANEL_COLUMNS && elements.len() >= 8);
    let last = elements.len() - 8;
    assert!(offsets.iter().all(|&offset| offset <= last));
    for half in 0..2 {
        // SAFETY: each row has 8 elements by the assertions.
        let load = |row: usize| unsafe { _mm256_loadu_ps(elements.as_ptr().add(offsets[half * 8 + row])) };
        let r = [load(0), load(1), load(2), load(3), load(4), load(5), load(6), load(7)];
        let pairs: [_; 8] = std::array::from_fn(|index| {
            let (a, b) = (r[index / 2 * 2], r[index / 2 * 2 + 1]);
            if index % 2 == 0 { _mm256_unpacklo_ps(a, b) } else { _mm256_unpackhi_ps(a, b) }
        });
        let quads: [_; 8] = std::array::from_fn(|index| {
            // Columns 0,4 · 1,5 · 2,6 · 3,7 of the first four rows, then of the last four.
            let (group, column) = (index / 4 * 4, index % 4);
            let (a, b) = (pairs[group + column / 2], pairs[group + 2 + column / 2]);
            if column % 2 == 0 { _mm256_shuffle_ps::<0x44>(a, b) } else { _mm256_shuffle_ps::<0xEE>(a, b) }
        });
        for column in 0..4 {
            let (top, bottom) = (quads[column], quads[4 + column]);
            let low = _mm256_permute2f128_ps::<0x20>(top, bottom);
            let high = _mm256_permute2f128_ps::<0x31>(top, bottom);
            // SAFETY: the last store ends at 7 · 16 + 8 + 8 = 128 elements, inside by the assertion.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr().add(column * PANEL_COLUMNS + half * 8), low);
                _mm256_storeu_ps(out.as_mut_ptr().add((column + 4) * PANEL_COLUMNS + half * 8), high);
            }
        }
    }
}

/// The taps of the kernel as offsets from the first row and column of the zero border.
pub(super) fn kernel_taps(shape: &Conv2dShape) -> Vec<[usize; 2]> {
    let [rows, columns] = shape.kernel;
    (0..rows * columns).map(|tap| [tap / columns * shape.dilation[0], tap % columns * shape.dilation[1]]).collect()
}

/// How many images are bordered at a time, so that the copy takes at most about 32 MiB.
pub(super) fn images_per_round(batch: usize, image_len: usize) -> usize {
    const ELEMENTS: usize = 8 << 20;
    (ELEMENTS / image_len.max(1)).clamp(1, batch)
}
