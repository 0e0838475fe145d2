//! Inputs copied so that taps are offsets.
//!
//! A convolution reads one input element for every channel, tap and output pixel. Where the input has been copied with
//! its zero border and, for strides, with its rows and columns sorted by remainder ([`Border`]), that is the sum of three
//! offsets, and neighbouring output pixels read neighbouring elements.

use std::ops::Range;

use super::Conv2dShape;
use super::products::Planes;
use crate::gemm::{PANEL_COLUMNS, Run};
use crate::lanes::{Instructions, Lanes, Stage, WIDTH};
use crate::prefetch::prefetch;

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
    /// Where the columns of each remainder go.
    columns: Vec<Columns>,
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
        let columns = (0..stride[1]).map(|rest| Columns::new(size[1], before[1], stride[1], part[1], rest)).collect();
        Self { size, before, stride, part, used, columns }
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

    /// The rows of the border, and those of them that the plane has, that the outputs read whose first row is
    /// `first_row`.
    fn rows(&self, first_row: usize) -> [Range<usize>; 2] {
        let rows = first_row * self.stride[0]..(first_row + self.part[0]) * self.stride[0];
        let inside = |row: usize| row.clamp(rows.start, rows.end);
        let inside = inside(self.before[0])..inside(self.size[0] + self.before[0]);
        [rows, inside]
    }

    /// Those rows of a plane that the outputs read whose first row is `first_row`.
    pub(super) fn rows_read<'p>(&self, plane: &'p [f32], first_row: usize) -> &'p [f32] {
        let [_, rows] = self.rows(first_row);
        let before = self.before[0].min(rows.start);
        &plane[(rows.start - before) * self.size[1]..(rows.end - before) * self.size[1]]
    }

    /// Copies what the outputs read whose first row is `first_row`. Sub-planes that are never read keep their old
    /// contents.
    pub(super) fn copy_rows(&self, plane: &[f32], first_row: usize, copy: &mut [f32]) {
        Instructions::detect().run(CopyPlane { border: self, first_row, plane, edges: true, copy });
    }

    /// Copies what all outputs read to a copy whose edges are zero already, as in one that was filled with zeros before
    /// the first plane.
    pub(super) fn copy_inside(&self, plane: &[f32], copy: &mut [f32]) {
        Instructions::detect().run(CopyPlane { border: self, first_row: 0, plane, edges: false, copy });
    }
}

/// The columns of one remainder.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Columns {
    /// Those places of a row of the sub-plane that lie inside of the plane,
    places: Range<usize>,
    /// and the column of the plane at the first of them.
    from: usize,
}

impl Columns {
    fn new(width: usize, before: usize, stride: usize, part_width: usize, rest: usize) -> Self {
        let start = before.saturating_sub(rest).div_ceil(stride).min(part_width);
        let end = (width + before).saturating_sub(rest).div_ceil(stride).clamp(start, part_width);
        Self { places: start..end, from: (start * stride + rest).saturating_sub(before) }
    }
}

struct CopyPlane<'a> {
    border: &'a Border,
    /// The row of the output that comes first.
    first_row: usize,
    plane: &'a [f32],
    /// Whether zeros are written around what is copied.
    edges: bool,
    copy: &'a mut [f32],
}

impl Stage for CopyPlane<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Border { size: [_, width], before: [before, _], stride: [row_stride, stride], .. } = *self.border;
        let Border { part: [part_rows, part_width], ref used, ref columns, .. } = *self.border;
        let part_len = part_rows * part_width;
        let [rows, inside] = self.border.rows(self.first_row);
        if self.edges {
            for (index, part) in self.copy.chunks_exact_mut(part_len).enumerate().filter(|&(index, _)| used[index]) {
                let of_rest = |row: usize| (row - rows.start).saturating_sub(index / stride).div_ceil(row_stride);
                let inside = of_rest(inside.start)..of_rest(inside.end);
                zero_edges::<L>(part, part_width, [&inside, &columns[index % stride].places]);
            }
        }
        if inside.is_empty() {
            return;
        }
        // Rows in the order of the plane: so the processor fetches ahead what is farther away.
        let first = inside.start - rows.start;
        let sources = self.plane[(inside.start - before) * width..].chunks_exact(width).take(inside.len());
        let group = stride * part_len;
        let mut rest = first % row_stride;
        let mut line = rest * group + first / row_stride * part_width;
        let mut next = move || {
            let this = line;
            (rest, line) = (rest + 1, line + group);
            if rest == row_stride {
                (rest, line) = (0, line + part_width - row_stride * group);
            }
            this
        };
        match columns.as_slice() {
            [all] if row_stride == 1 => {
                // As below; depthwise planes of short rows would spend more time on finding each line than on copying it.
                let lines = self.copy[first * part_width..].chunks_exact_mut(part_width);
                for (source, line) in sources.zip(lines) {
                    copy_row::<L>(&source[all.from..], &mut line[all.places.clone()]);
                }
            }
            [all] => {
                for source in sources {
                    let line = next();
                    let out = &mut self.copy[line + all.places.start..line + all.places.end];
                    copy_row::<L>(&source[all.from..], out);
                }
            }
            [zero, one] if used.iter().all(|used| *used) => {
                // Both remainders from the same loads: one has the even columns of the plane, one the odd ones.
                for source in sources {
                    let (zero_part, one_part) = self.copy[next()..].split_at_mut(part_len);
                    let zero_part = &mut zero_part[zero.places.start..zero.places.end];
                    let one_part = &mut one_part[one.places.start..one.places.end];
                    if zero.from == 0 {
                        separate::<L>(source, zero_part, one_part);
                    } else {
                        separate::<L>(source, one_part, zero_part);
                    }
                }
            }
            _ => {
                for source in sources {
                    let line = next();
                    for (index, column) in columns.iter().enumerate() {
                        let from = line + index * part_len;
                        if used[from / part_len] && !column.places.is_empty() {
                            let out = &mut self.copy[from + column.places.start..from + column.places.end];
                            every::<L>(&source[column.from..], stride, out);
                        }
                    }
                }
            }
        }
    }
}

/// Zeros around the `inside` rows and columns of a plane, and perhaps in them.
#[inline(always)]
fn zero_edges<L: Lanes>(plane: &mut [f32], width: usize, [rows, columns]: [&Range<usize>; 2]) {
    let (above, rest) = plane.split_at_mut(rows.start * width);
    let (between, below) = rest.split_at_mut(rows.len() * width);
    above.fill(0.0);
    below.fill(0.0);
    if columns.len() == width {
        return;
    }
    let after = width - columns.end;
    for line in between.chunks_exact_mut(width) {
        // By whole vectors, where they reach all of it.
        if width >= WIDTH && columns.start <= WIDTH && after <= WIDTH {
            L::zero().store_some(line);
            L::zero().store_some(&mut line[width - WIDTH..]);
        } else {
            line.fill(0.0);
        }
    }
}

/// Channels between the one that is copied and the one that is fetched into the cache meanwhile.
pub(super) const AHEAD: usize = 4;

/// Copies some runs of pixels of some channels, one after the other, to `copy`, where channels lie `stride` apart. Runs
/// count from the first channel of `planes` in the first image.
pub(super) fn copy_spans(planes: &Planes<'_>, runs: &[Run], channels: Range<usize>, copy: &mut [f32], stride: usize) {
    Instructions::detect().run(CopySpans { planes, runs, channels, copy, stride });
}

struct CopySpans<'a> {
    planes: &'a Planes<'a>,
    runs: &'a [Run],
    channels: Range<usize>,
    copy: &'a mut [f32],
    stride: usize,
}

impl Stage for CopySpans<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let plane = self.planes.size[0] * self.planes.size[1];
        for (channel, mut copy) in self.channels.zip(self.copy.chunks_mut(self.stride)) {
            for run in self.runs {
                let first = channel * plane + run.first;
                // Channels lie so far apart that the processor does not fetch the next one by itself.
                if channel + AHEAD < self.planes.channels {
                    prefetch(&self.planes.elements[first + AHEAD * plane..][..run.len]);
                }
                let (out, rest) = copy.split_at_mut(run.len);
                copy_row::<L>(&self.planes.elements[first..], out);
                copy = rest;
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

/// out[t] = source[t].
#[inline(always)]
fn copy_row<L: Lanes>(source: &[f32], out: &mut [f32]) {
    for (out, source) in out.as_chunks_mut::<WIDTH>().0.iter_mut().zip(source.as_chunks::<WIDTH>().0) {
        L::load(source).store(out);
    }
    let (len, rest) = (out.len(), out.len() % WIDTH);
    if rest > 0 && len >= WIDTH {
        // The last vector overlaps the one before it.
        L::load_some(&source[len - WIDTH..len]).store_some(&mut out[len - WIDTH..]);
    } else if rest > 0 {
        out.copy_from_slice(&source[..len]);
    }
}

/// out[t] = source[t · stride].
#[inline(always)]
fn every<L: Lanes>(source: &[f32], stride: usize, out: &mut [f32]) {
    // Outputs whose vectors lie inside of the source.
    let len = if stride == 2 { out.len().min(source.len() / 2) } else { 0 };
    let mut done = 0;
    while done < len && len >= WIDTH {
        // The last vector overlaps the one before it.
        let start = done.min(len - WIDTH);
        let source = &source[2 * start..2 * (start + WIDTH)];
        let [values, _] = L::separate(L::load_some(source), L::load_some(&source[WIDTH..]));
        values.store_some(&mut out[start..start + WIDTH]);
        done = start + WIDTH;
    }
    for index in done..out.len() {
        out[index] = source[index * stride];
    }
}

/// evens[t] = source[2t] and odds[t] = source[2t + 1].
#[inline(always)]
fn separate<L: Lanes>(source: &[f32], evens: &mut [f32], odds: &mut [f32]) {
    let both = evens.len().min(odds.len()).min(source.len() / 2);
    let pairs = source.as_chunks::<WIDTH>().0.as_chunks::<2>().0;
    let vectors = evens[..both].as_chunks_mut::<WIDTH>().0.iter_mut().zip(odds[..both].as_chunks_mut::<WIDTH>().0);
    for ((evens, odds), [low, high]) in vectors.zip(pairs) {
        let [even, odd] = L::separate(L::load(low), L::load(high));
        even.store(evens);
        odd.store(odds);
    }
    let mut done = both / WIDTH * WIDTH;
    if done < both && both >= WIDTH {
        // The last vectors overlap those before them.
        let start = both - WIDTH;
        let source = &source[2 * start..2 * both];
        let [even, odd] = L::separate(L::load_some(source), L::load_some(&source[WIDTH..]));
        even.store_some(&mut evens[start..both]);
        odd.store_some(&mut odds[start..both]);
        done = both;
    }
    for (out, value) in evens[done..].iter_mut().zip(source[2 * done..].iter().step_by(2)) {
        *out = *value;
    }
    for (out, value) in odds[done..].iter_mut().zip(source.iter().skip(2 * done + 1).step_by(2)) {
        *out = *value;
    }
}

/// The taps of the kernel as offsets from the first row and column of the zero border.
pub(super) fn kernel_taps(shape: &Conv2dShape) -> Vec<[usize; 2]> {
    let [rows, columns] = shape.kernel;
    (0..rows * columns).map(|tap| [tap / columns * shape.dilation[0], tap % columns * shape.dilation[1]]).collect()
}
