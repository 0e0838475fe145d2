//! The inner part of a blocked matrix product C = A·B in f32: packed panels in, tiles of C out.
//!
//! A is packed in panels of up to 6 rows, so that the innermost loop reads it without gaps, or is read row by row where it
//! lies; B comes in panels of 16 columns whose rows lie side by side in memory, packed (`Columns::packed`) or where they
//! were found (`Columns::in_place`). 6 rows of 16 sums stay in registers, 12 vectors of AVX2 or 6 of AVX-512, while one
//! column of A meets one row of B per step. Callers pack (the second matrix of a convolution never exists as a whole) and
//! decide which task computes which part of C.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::fresh::uninit;
use crate::lanes::{Instructions, ProductStage, Vector};
use crate::parallel::Shared;
use crate::prefetch::prefetch;

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

/// Where A lies.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// In panels, one after the other: the panel of rows r.. starts at r · depth and holds `[depth][rows]`.
    Packed(&'a [f32]),
    /// Where it was found; B is packed then.
    InPlace(Scattered<'a>),
}

/// Rows that lie anywhere: element z of row r is `elements[rows[r] + places[z]]`.
#[derive(Clone, Copy)]
pub(crate) struct Scattered<'a> {
    pub(crate) elements: &'a [f32],
    pub(crate) rows: &'a [usize],
    pub(crate) places: &'a [usize],
    /// Whether rows lie so far apart that the processor does not fetch the next ones by itself.
    pub(crate) far: bool,
}

impl Scattered<'_> {
    /// Asks for some rows, where their elements lie side by side.
    #[inline(always)]
    fn fetch(&self, rows: Range<usize>) {
        let &[first, .., last] = self.places else { return };
        if self.far && (first..first + 2 * self.places.len()).contains(&last) {
            for row in &self.rows[rows] {
                prefetch(&self.elements[row + first..=row + last]);
            }
        }
    }
}

/// One part of C to compute: some panels of A times some panels of B.
pub(crate) struct Block<'a> {
    /// How A's rows are cut.
    pub(crate) row_panels: RowPanels,
    /// The panels of A that this block computes.
    pub(crate) panels: Range<usize>,
    /// All of A.
    pub(crate) a: Rows<'a>,
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
    #[allow(unsafe_code, reason = "C is shared between tasks")]
    pub(crate) unsafe fn run(&self, instructions: Instructions, c: Target<'_>) {
        instructions.run_products(Tiles { block: self, c });
    }
}

/// A block and where it goes; made by [`Block::run`] only, under its contract.
struct Tiles<'a> {
    block: &'a Block<'a>,
    c: Target<'a>,
}

impl ProductStage for Tiles<'_> {
    #[inline(always)]
    fn run<V: Vector, H: Vector>(self) {
        let Block { row_panels, panels, a, b, .. } = self.block;
        // Where C is larger than B, several panels of B stay in the first-level cache while panels of A pass, so that
        // rows of C are written in long runs.
        let rows = row_panels.rows(panels.start).start..row_panels.rows(panels.end - 1).end;
        let depth = b.rows.len();
        let group = if rows.len() > depth { (CACHED_COLUMNS / (PANEL_COLUMNS * depth)).max(1) } else { 1 };
        let reach = match a {
            Rows::InPlace(a) => {
                assert!(std::ptr::eq(b.rows, &PACKED_OFFSETS[..depth]), "rows in place go with packed columns");
                a.places.iter().max().copied().unwrap_or(0)
            }
            Rows::Packed(_) => 0,
        };
        for round in panels.clone().step_by(PANELS_PER_ROUND) {
            let round = round..(round + PANELS_PER_ROUND).min(panels.end);
            for (index, group) in b.panels.chunks(group).enumerate() {
                for panel in round.clone() {
                    let rows = row_panels.rows(panel);
                    match *a {
                        Rows::Packed(a) => {
                            self.row_panel::<V, H, _>(Packed(&a[rows.start * depth..rows.end * depth]), group, rows);
                        }
                        Rows::InPlace(a) => {
                            if index == 0 && panel + 1 < panels.end {
                                a.fetch(row_panels.rows(panel + 1));
                            }
                            self.row_panel::<V, H, _>(InPlace { a, first: rows.start, reach }, group, rows);
                        }
                    }
                }
            }
        }
    }
}

/// The rows of one panel of A.
trait Factors<'a>: Copy {
    /// Whether B is packed, so that where its rows lie need not be read.
    const WITH_PACKED_COLUMNS: bool;

    /// The elements; element z of row r of ROWS is at `starts[r]` + [`Self::place`] of z.
    fn elements(self) -> &'a [f32];
    /// Where the rows start. Checks that all their elements are there.
    fn starts<const ROWS: usize>(self, depth: usize) -> [usize; ROWS];
    fn place<const ROWS: usize>(self, z: usize) -> usize;
}

#[derive(Clone, Copy)]
struct Packed<'a>(&'a [f32]);

impl<'a> Factors<'a> for Packed<'a> {
    const WITH_PACKED_COLUMNS: bool = false;

    #[inline(always)]
    fn elements(self) -> &'a [f32] {
        self.0
    }
    #[inline(always)]
    fn starts<const ROWS: usize>(self, depth: usize) -> [usize; ROWS] {
        assert!(depth * ROWS <= self.0.len());
        std::array::from_fn(|row| row)
    }
    #[inline(always)]
    fn place<const ROWS: usize>(self, z: usize) -> usize {
        z * ROWS
    }
}

#[derive(Clone, Copy)]
struct InPlace<'a> {
    a: Scattered<'a>,
    /// The first row.
    first: usize,
    /// The farthest place.
    reach: usize,
}

impl<'a> Factors<'a> for InPlace<'a> {
    const WITH_PACKED_COLUMNS: bool = true;

    #[inline(always)]
    fn elements(self) -> &'a [f32] {
        self.a.elements
    }
    #[inline(always)]
    fn starts<const ROWS: usize>(self, depth: usize) -> [usize; ROWS] {
        assert!(depth <= self.a.places.len());
        let mut starts = [0; ROWS];
        starts.copy_from_slice(&self.a.rows[self.first..self.first + ROWS]);
        for start in starts {
            assert!(start + self.reach < self.a.elements.len());
        }
        starts
    }
    #[inline(always)]
    fn place<const ROWS: usize>(self, z: usize) -> usize {
        self.a.places[z]
    }
}

impl Tiles<'_> {
    /// What one panel of A and some panels of B give.
    #[inline(always)]
    fn row_panel<'f, V: Vector, H: Vector, F: Factors<'f>>(&self, a: F, b: &[Panel], rows: Range<usize>) {
        for b in b {
            if b.columns.len() <= H::LEN {
                self.tile_of_rows::<H, F>(a, b, &rows);
            } else {
                self.tile_of_rows::<V, F>(a, b, &rows);
            }
        }
    }

    #[inline(always)]
    fn tile_of_rows<'f, V: Vector, F: Factors<'f>>(&self, a: F, b: &Panel, rows: &Range<usize>) {
        match rows.len() {
            1 => self.tile::<V, F, 1>(a, b, rows.start),
            2 => self.tile::<V, F, 2>(a, b, rows.start),
            3 => self.tile::<V, F, 3>(a, b, rows.start),
            4 => self.tile::<V, F, 4>(a, b, rows.start),
            5 => self.tile::<V, F, 5>(a, b, rows.start),
            _ => self.tile::<V, F, PANEL_ROWS>(a, b, rows.start),
        }
    }

    /// The tile of C that one panel of A and one of B give.
    #[allow(unsafe_code, reason = "rows of C come from the shared slice")]
    #[inline(always)]
    fn tile<'f, V: Vector, F: Factors<'f>, const ROWS: usize>(&self, a: F, b: &Panel, first_row: usize) {
        let Block { add, row_stride, .. } = *self.block;
        let columns = &self.block.columns[b.columns.clone()];
        let run = columns[columns.len() - 1] - columns[0] == columns.len() - 1;
        let part = |row: usize, column: usize, len: usize| {
            // SAFETY: these elements belong to this block by contract.
            unsafe { self.c.part(columns[column] + (first_row + row) * row_stride, len) }
        };
        if run && columns.len() == V::LEN {
            if !add {
                // Where C has not been in the cache yet, it is fetched while the sums are made.
                for row in 0..ROWS {
                    prefetch(part(row, 0, 1));
                }
            }
            let sums = self.sums::<V, F, ROWS>(a, b, first_row);
            for row in 0..ROWS {
                let (out, mut sum) = (part(row, 0, V::LEN), sums[row]);
                if add {
                    // SAFETY: what is added to has been written by contract, so this is a slice of f32.
                    sum = sum.add(unsafe { V::load_at(&*(std::ptr::from_ref(out) as *const [f32]), 0) });
                }
                sum.write(out);
            }
            return;
        }
        let mut sums = [[0.0; PANEL_COLUMNS]; ROWS];
        for (to, sum) in sums.iter_mut().zip(self.sums::<V, F, ROWS>(a, b, first_row)) {
            sum.write(uninit(to));
        }
        // By the runs that the columns are made of.
        for_each_run(columns, |from, count| {
            for (row, sums) in sums.iter().enumerate() {
                for (out, sum) in part(row, from, count).iter_mut().zip(&sums[from..]) {
                    // SAFETY: what is added to has been written by contract.
                    let old = if add { unsafe { out.assume_init() } } else { 0.0 };
                    out.write(if add { old + sum } else { *sum });
                }
            }
        });
    }

    /// The innermost loop: one panel of A times one of B, on top of the bias unless C is added to.
    #[allow(unsafe_code, reason = "unchecked reads in the innermost loop")]
    #[inline(always)]
    fn sums<'f, V: Vector, F: Factors<'f>, const ROWS: usize>(&self, a: F, b: &Panel, first_row: usize) -> [V; ROWS] {
        const { assert!(V::LEN <= PANEL_COLUMNS) };
        let Columns { elements, rows, .. } = self.block.b;
        let mut sums = [V::splat(0.0); ROWS];
        if let Some(bias) = self.block.bias
            && !self.block.add
        {
            for row in 0..ROWS {
                sums[row] = V::splat(bias[first_row + row]);
            }
        }
        let starts = a.starts::<ROWS>(rows.len());
        let mut factors = [a.elements().as_ptr(); ROWS];
        for row in 0..ROWS {
            factors[row] = factors[row].wrapping_add(starts[row]);
        }
        for (z, b_row) in rows.iter().enumerate() {
            let b_row = if F::WITH_PACKED_COLUMNS { z * PANEL_COLUMNS } else { *b_row };
            // SAFETY: `Columns` has 16 elements from each of its rows on in every panel.
            let values = unsafe { V::load_at(elements, b.first + b_row) };
            let place = a.place::<ROWS>(z);
            for row in 0..ROWS {
                // SAFETY: `starts` has checked every place of these rows.
                let factor = V::splat(unsafe { *factors[row].add(place) });
                sums[row] = factor.mul_add(values, sums[row]);
            }
        }
        sums
    }
}

/// Calls `body` with the first place and the length of each run of neighbours.
#[inline(always)]
fn for_each_run(columns: &[usize], mut body: impl FnMut(usize, usize)) {
    let mut from = 0;
    for to in 1..=columns.len() {
        if columns.get(to).is_none_or(|column| *column != columns[to - 1] + 1) {
            body(from, to - from);
            from = to;
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
            for instructions in Instructions::all() {
                let (mut c, mut panels) = (vec![0.0; rows * columns], Vec::new());
                for add in [false, true] {
                    let block = Block {
                        row_panels,
                        panels: 0..row_panels.count(),
                        a: Rows::Packed(&packed_a),
                        b: Columns::packed(&packed_b, depth, columns, &mut panels),
                        columns: &offsets,
                        row_stride: columns,
                        add,
                        bias: Some(&bias),
                    };
                    // SAFETY: `c` is used by nobody else.
                    unsafe { block.run(instructions, target(&mut c)) };
                    for (index, got) in c.iter().enumerate() {
                        let (i, j) = (index / columns, index % columns);
                        let sum: f64 =
                            (0..depth).map(|z| f64::from(a[i * depth + z]) * f64::from(b[z * columns + j])).sum();
                        let expected = if add { 2.0 } else { 1.0 } * sum + f64::from(bias[i]);
                        assert!(
                            (f64::from(*got) - expected).abs() < 1e-4,
                            "{instructions:?} {rows} {depth} {columns} {index}"
                        );
                    }
                }
            }
        }
    }
}
