//! The inner part of a blocked matrix product C = A·B in f32: packed panels in, tiles of C out.
//!
//! A is packed in panels of up to 6 rows, so that the innermost loop reads it without gaps; B comes in panels of 16
//! columns whose rows lie side by side in memory, packed (`Columns::packed`) or where they were found
//! (`Columns::in_place`). 12 vectors of C stay in registers while one column of A meets one row of B per step. Callers
//! pack (the second matrix of a convolution never exists as a whole) and decide which task computes which part of C.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::fresh::uninit;
use crate::parallel::Shared;
use crate::simd;

/// The most rows of a panel of A.
pub(crate) const PANEL_ROWS: usize = 6;
/// The columns of a panel of B.
pub(crate) const PANEL_COLUMNS: usize = 16;
/// Panels of A that stay in the second-level cache while panels of B pass.
const PANELS_PER_ROUND: usize = 16;

/// Elements of panels of B that stay in the first-level cache.
const CACHED_COLUMNS: usize = 6 << 10;

/// A matrix C that tasks write parts of; what a block does not add to need not be initialised.
pub(crate) type Target<'a> = Shared<'a, MaybeUninit<f32>>;

/// An initialised slice as a [`Target`].
pub(crate) fn target(slice: &mut [f32]) -> Target<'_> {
    Shared::new(uninit(slice))
}

/// Which version of the innermost loop runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Simd {
    /// Plain Rust.
    Portable,
    /// AVX2 and FMA; exists only where the processor has both ([`Simd::detect`]).
    #[cfg(target_arch = "x86_64")]
    Avx2(Detected),
}

/// The proof that [`Simd::detect`] found AVX2 and FMA: nothing outside this module can make one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Detected(());

impl Simd {
    /// The best version for this processor.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if simd::avx2_fma() {
            return Self::Avx2(Detected(()));
        }
        Self::Portable
    }
}

/// How the rows of A are cut into panels of nearly equal height, at most [`PANEL_ROWS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowPanels {
    rows: usize,
    count: usize,
}

impl RowPanels {
    pub(crate) fn new(rows: usize) -> Self {
        Self { rows, count: rows.div_ceil(PANEL_ROWS) }
    }

    pub(crate) fn count(self) -> usize {
        self.count
    }

    /// The rows of panel `index`.
    pub(crate) fn rows(self, index: usize) -> Range<usize> {
        let (height, higher) = (self.rows / self.count, self.rows % self.count);
        let start = index * height + index.min(higher);
        start..start + height + usize::from(index < higher)
    }
}

/// Packs `height` rows of A, given as slices of the same length, into one panel `[depth][height]`.
pub(crate) fn pack_panel(rows: &[&[f32]], panel: &mut [f32]) {
    match *rows {
        [a, b, c, d, e, f] => {
            for ((((((out, a), b), c), d), e), f) in panel.chunks_exact_mut(6).zip(a).zip(b).zip(c).zip(d).zip(e).zip(f)
            {
                out.copy_from_slice(&[*a, *b, *c, *d, *e, *f]);
            }
        }
        [a, b, c, d, e] => {
            for (((((out, a), b), c), d), e) in panel.chunks_exact_mut(5).zip(a).zip(b).zip(c).zip(d).zip(e) {
                out.copy_from_slice(&[*a, *b, *c, *d, *e]);
            }
        }
        _ => {
            for (index, row) in rows.iter().enumerate() {
                for (out, value) in panel.iter_mut().skip(index).step_by(rows.len()).zip(*row) {
                    *out = *value;
                }
            }
        }
    }
}

/// Up to 16 columns of B, which lie side by side.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    /// Where the first of 16 columns lies, before the offset of a row.
    first: usize,
    /// Those of the 16 that are wanted, as places in the list of C's columns.
    columns: Range<usize>,
}

/// The most rows of a packed B.
pub(crate) const PACKED_ROWS: usize = 256;

/// Where the rows of a packed panel lie.
static PACKED_OFFSETS: [usize; PACKED_ROWS] = {
    let mut offsets = [0; PACKED_ROWS];
    let mut row = 0;
    while row < PACKED_ROWS {
        offsets[row] = row * PANEL_COLUMNS;
        row += 1;
    }
    offsets
};

/// Columns of B: element z of column j of a panel is `elements[first + rows[z] + j]`.
pub(crate) struct Columns<'a> {
    elements: &'a [f32],
    rows: &'a [usize],
    panels: &'a [Panel],
}

impl<'a> Columns<'a> {
    /// `count` columns in panels `[depth][16]`, at most [`PACKED_ROWS`] deep; `panels` is where they are listed.
    pub(crate) fn packed(elements: &'a [f32], depth: usize, count: usize, panels: &'a mut Vec<Panel>) -> Self {
        let panel = |index: usize| Panel {
            first: index * PANEL_COLUMNS * depth,
            columns: index * PANEL_COLUMNS..count.min((index + 1) * PANEL_COLUMNS),
        };
        panels.clear();
        panels.extend((0..count.div_ceil(PANEL_COLUMNS)).map(panel));
        assert!(elements.len() >= panels.len() * PANEL_COLUMNS * depth);
        Self { elements, rows: &PACKED_OFFSETS[..depth], panels }
    }

    /// The columns of some runs where they lie; row z of each is `rows[z]` further. At least 16 elements must follow the
    /// first one of the last row of the last column. `panels` is where they are listed.
    pub(crate) fn in_place(elements: &'a [f32], rows: &'a [usize], runs: &[Run], panels: &'a mut Vec<Panel>) -> Self {
        let last = elements.len().checked_sub(rows.iter().max().unwrap_or(&0) + PANEL_COLUMNS);
        panels.clear();
        let mut column = 0;
        for run in runs {
            for start in (0..run.len).step_by(PANEL_COLUMNS) {
                let first = run.first + start;
                assert!(last.is_some_and(|last| first <= last));
                let len = (run.len - start).min(PANEL_COLUMNS);
                panels.push(Panel { first, columns: column..column + len });
                column += len;
            }
        }
        Self { elements, rows, panels }
    }
}

/// Neighbouring columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: usize,
    pub(crate) len: usize,
}

/// One part of C to compute: some panels of A times some panels of B.
pub(crate) struct Block<'a> {
    /// How A's rows are cut.
    pub(crate) row_panels: RowPanels,
    /// The panels of A that this block computes.
    pub(crate) panels: Range<usize>,
    /// All of A, packed: the panel of rows r.. starts at r · depth.
    pub(crate) a: &'a [f32],
    /// The columns of B, as many as `columns` has.
    pub(crate) b: Columns<'a>,
    /// Where in C each column begins.
    pub(crate) columns: &'a [usize],
    /// From one row of C to the next.
    pub(crate) row_stride: usize,
    /// Whether the product is added to C.
    pub(crate) add: bool,
    /// What each row starts from where the product is not added.
    pub(crate) bias: Option<&'a [f32]>,
}

impl Block<'_> {
    /// Computes the block into `c`.
    ///
    /// # Safety
    /// Nobody else uses the elements of C in these rows and columns meanwhile, and where `add` they are initialised.
    /// Afterwards all of them are.
    #[allow(unsafe_code, reason = "calls into the version that detection has chosen; C is shared between tasks")]
    pub(crate) unsafe fn run(&self, simd: Simd, c: Target<'_>) {
        match simd {
            // SAFETY: exclusive use of this part of C is the caller's contract.
            Simd::Portable => unsafe { self.rounds::<false>(c) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Detected` exists only after detection; exclusive use as above.
            Simd::Avx2(_) => unsafe { self.rounds_avx2(c) },
        }
    }

    #[allow(unsafe_code, reason = "the generic body compiled with AVX2 and FMA")]
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn rounds_avx2(&self, c: Target<'_>) {
        // SAFETY: this function has the features; exclusive use is the caller's contract.
        unsafe { self.rounds::<true>(c) }
    }

    /// # Safety
    /// As [`Self::run`], and AVX2 and FMA are enabled where `AVX2`.
    #[allow(unsafe_code, reason = "hands its contract on")]
    #[inline(always)]
    unsafe fn rounds<const AVX2: bool>(&self, c: Target<'_>) {
        // Where C is larger than B, several panels of B stay in the first-level cache while panels of A pass, so that
        // rows of C are written in long runs.
        let rows = self.row_panels.rows(self.panels.start).start..self.row_panels.rows(self.panels.end - 1).end;
        let depth = self.b.rows.len();
        let group = if rows.len() > depth { (CACHED_COLUMNS / (PANEL_COLUMNS * depth)).max(1) } else { 1 };
        for round in self.panels.clone().step_by(PANELS_PER_ROUND) {
            let round = round..(round + PANELS_PER_ROUND).min(self.panels.end);
            for group in self.b.panels.chunks(group) {
                for panel in round.clone() {
                    let rows = self.row_panels.rows(panel);
                    let a = &self.a[rows.start * depth..rows.end * depth];
                    for b in group {
                        // SAFETY: the contract is handed on unchanged.
                        unsafe {
                            match rows.len() {
                                1 => self.tile::<AVX2, 1>(a, b, rows.start, c),
                                2 => self.tile::<AVX2, 2>(a, b, rows.start, c),
                                3 => self.tile::<AVX2, 3>(a, b, rows.start, c),
                                4 => self.tile::<AVX2, 4>(a, b, rows.start, c),
                                5 => self.tile::<AVX2, 5>(a, b, rows.start, c),
                                _ => self.tile::<AVX2, 6>(a, b, rows.start, c),
                            }
                        }
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::rounds`].
    #[allow(unsafe_code, reason = "hands its contract on; rows of C come from the shared slice")]
    #[inline(always)]
    unsafe fn tile<const AVX2: bool, const ROWS: usize>(&self, a: &[f32], b: &Panel, first_row: usize, c: Target<'_>) {
        let columns = &self.columns[b.columns.clone()];
        let b = &self.b.elements[b.first..];
        // Not a copy: its elements would be stored one by one and loaded together, which waits for the stores.
        let start: Option<&[f32; ROWS]> = match self.bias {
            Some(bias) if !self.add => bias[first_row..].first_chunk(),
            _ => None,
        };
        let run = columns.len() == PANEL_COLUMNS && columns[PANEL_COLUMNS - 1] - columns[0] == PANEL_COLUMNS - 1;
        #[cfg(target_arch = "x86_64")]
        if AVX2 && run {
            // SAFETY: the features are enabled by contract; `part` checks the bounds of each row of C.
            unsafe {
                avx2::tile_to_rows::<ROWS>(a, b, self.b.rows, start, self.add, |row| {
                    c.part(columns[0] + (first_row + row) * self.row_stride, PANEL_COLUMNS)
                });
            }
            return;
        }
        let mut sums = [[0f32; PANEL_COLUMNS]; ROWS];
        #[cfg(target_arch = "x86_64")]
        if AVX2 {
            let rows = target(sums.as_flattened_mut());
            // SAFETY: the features are enabled by contract; each row of the buffer is handed out once.
            unsafe {
                avx2::tile_to_rows::<ROWS>(a, b, self.b.rows, start, false, |row| {
                    rows.part(row * PANEL_COLUMNS, PANEL_COLUMNS)
                })
            };
        }
        if !AVX2 {
            sums = portable_tile::<ROWS>(a, b, self.b.rows, start);
        }
        let run = columns[columns.len() - 1] - columns[0] == columns.len() - 1;
        let count = if run { columns.len() } else { 1 };
        for (row, sums) in sums.iter().enumerate() {
            for (columns, sums) in columns.chunks(count).zip(sums.chunks(count)) {
                // SAFETY: these elements belong to this block by contract.
                let out = unsafe { c.part(columns[0] + (first_row + row) * self.row_stride, count) };
                for (out, sum) in out.iter_mut().zip(sums) {
                    // SAFETY: what is added to has been written by contract.
                    let old = if self.add { unsafe { out.assume_init() } } else { 0.0 };
                    out.write(if self.add { old + sum } else { *sum });
                }
            }
        }
    }
}

#[inline(always)]
fn portable_tile<const ROWS: usize>(
    a: &[f32],
    b: &[f32],
    rows: &[usize],
    start: Option<&[f32; ROWS]>,
) -> [[f32; PANEL_COLUMNS]; ROWS] {
    let mut sums = start.map_or([[0.0; PANEL_COLUMNS]; ROWS], |start| start.map(|value| [value; PANEL_COLUMNS]));
    for (a, row) in a.chunks_exact(ROWS).zip(rows) {
        for (sums, a) in sums.iter_mut().zip(a) {
            for (sum, b) in sums.iter_mut().zip(&b[*row..][..PANEL_COLUMNS]) {
                *sum += a * b;
            }
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };
    use std::mem::MaybeUninit;

    /// A tile of C, stored to or added to the rows that `row` hands out.
    ///
    /// # Safety
    /// AVX2 and FMA are enabled, `b` has 16 elements from each of `rows` on, and every slice that `row` hands out has 16
    /// elements, initialised where `add`.
    #[allow(unsafe_code, reason = "vector instructions and unchecked reads in the innermost loop")]
    #[inline(always)]
    pub(super) unsafe fn tile_to_rows<'a, const ROWS: usize>(
        a: &[f32],
        b: &[f32],
        rows: &[usize],
        start: Option<&[f32; ROWS]>,
        add: bool,
        mut row: impl FnMut(usize) -> &'a mut [MaybeUninit<f32>],
    ) {
        assert!(a.len() >= rows.len() * ROWS);
        let (mut a, b) = (a.as_ptr(), b.as_ptr());
        // SAFETY: step t of the loop reads a[t·ROWS ..][..ROWS], inside by the assertion, and 16 elements of `b` from row t
        // on, inside by contract; the rows of C have 16 elements by contract.
        unsafe {
            let mut sums: [[__m256; 2]; ROWS] = [[_mm256_setzero_ps(); 2]; ROWS];
            if let Some(start) = start {
                for index in 0..ROWS {
                    sums[index] = [_mm256_broadcast_ss(&start[index]); 2];
                }
            }
            for row in rows {
                let b = b.add(*row);
                let (low, high) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                for index in 0..ROWS {
                    let factor = _mm256_broadcast_ss(&*a.add(index));
                    sums[index][0] = _mm256_fmadd_ps(factor, low, sums[index][0]);
                    sums[index][1] = _mm256_fmadd_ps(factor, high, sums[index][1]);
                }
                a = a.add(ROWS);
            }
            for index in 0..ROWS {
                let out = row(index).as_mut_ptr().cast::<f32>();
                let [mut low, mut high] = sums[index];
                if add {
                    low = _mm256_add_ps(low, _mm256_loadu_ps(out));
                    high = _mm256_add_ps(high, _mm256_loadu_ps(out.add(8)));
                }
                _mm256_storeu_ps(out, low);
                _mm256_storeu_ps(out.add(8), high);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dsd_random::Stream;

    use super::*;

    #[test]
    fn panels_are_balanced_and_cover_all_rows() {
        for rows in 1..100 {
            let panels = RowPanels::new(rows);
            let mut next = 0;
            for index in 0..panels.count() {
                let range = panels.rows(index);
                assert_eq!(range.start, next);
                assert!((1..=PANEL_ROWS).contains(&range.len()));
                next = range.end;
            }
            assert_eq!(next, rows);
        }
        assert_eq!(RowPanels::new(16).rows(0), 0..6);
        assert_eq!(RowPanels::new(16).rows(2), 11..16);
    }

    #[test]
    #[allow(unsafe_code, reason = "one task owns all of C")]
    fn blocks_equal_the_sum_over_the_depth() {
        let mut stream = Stream::new(1, "gemm", 0, 0);
        for (rows, depth, columns) in [(1, 1, 1), (6, 5, 16), (7, 9, 17), (13, 256, 40), (31, 8, 33)] {
            let mut draw = |len: usize| (0..len).map(|_| stream.normal() as f32).collect::<Vec<_>>();
            let (a, b, bias) = (draw(rows * depth), draw(depth * columns), draw(rows));
            let row_panels = RowPanels::new(rows);
            let mut packed_a = vec![0.0; rows * depth];
            for panel in 0..row_panels.count() {
                let range = row_panels.rows(panel);
                let slices: Vec<&[f32]> = range.clone().map(|row| &a[row * depth..][..depth]).collect();
                pack_panel(&slices, &mut packed_a[range.start * depth..range.end * depth]);
            }
            let mut packed_b = vec![0.0; columns.div_ceil(16) * 16 * depth];
            for j in 0..columns {
                for z in 0..depth {
                    packed_b[(j / 16 * depth + z) * 16 + j % 16] = b[z * columns + j];
                }
            }
            let offsets: Vec<usize> = (0..columns).collect();
            for simd in [Simd::Portable, Simd::detect()] {
                let (mut c, mut panels) = (vec![0.0; rows * columns], Vec::new());
                for add in [false, true] {
                    let block = Block {
                        row_panels,
                        panels: 0..row_panels.count(),
                        a: &packed_a,
                        b: Columns::packed(&packed_b, depth, columns, &mut panels),
                        columns: &offsets,
                        row_stride: columns,
                        add,
                        bias: Some(&bias),
                    };
                    // SAFETY: `c` is used by nobody else.
                    unsafe { block.run(simd, target(&mut c)) };
                    for (index, got) in c.iter().enumerate() {
                        let (i, j) = (index / columns, index % columns);
                        let sum: f64 =
                            (0..depth).map(|z| f64::from(a[i * depth + z]) * f64::from(b[z * columns + j])).sum();
                        let expected = if add { 2.0 } else { 1.0 } * sum + f64::from(bias[i]);
                        assert!((f64::from(*got) - expected).abs() < 1e-4, "{simd:?} {rows} {depth} {columns} {index}");
                    }
                }
            }
        }
    }
}
