//! Where the vectors of a plane lie.

use crate::lanes::WIDTH;

/// Rows of a stack.
pub(super) const STACK: usize = 4;

/// One vector of a plane.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Where it reads at offset 0.
    pub(super) from: usize,
    /// Where its first element lies in the plane that is written, or whose gradient is read,
    pub(super) to: usize,
    /// and how many elements its row has from there on.
    pub(super) room: usize,
}

/// The vectors of some rows.
pub(super) struct Places {
    pub(super) list: Vec<Place>,
    /// The largest `from`.
    pub(super) reach: usize,
}

impl Places {
    /// Vectors at the columns `starts` of `rows`: (row, column) reads at row · `step` + column, and lies at `to` in a
    /// plane `width` wide.
    pub(super) fn new(
        rows: impl IntoIterator<Item = usize>,
        starts: &[usize],
        step: usize,
        width: usize,
        to: impl Fn(usize, usize) -> usize,
    ) -> Self {
        let place = |row: usize, column: usize| {
            let to = to(row, column);
            Place { from: row * step + column, to, room: width - to % width }
        };
        let mut list = Vec::new();
        for row in rows {
            list.extend(starts.iter().map(|&column| place(row, column)));
        }
        let reach = list.iter().map(|place| place.from).max().unwrap_or(0);
        Self { list, reach }
    }
}

/// Vectors of [`STACK`] rows at the same column, `pitch` elements apart in the copy and `rise` in the plane.
pub(super) struct Stacks {
    /// The uppermost vector of each stack.
    pub(super) top: Places,
    /// The vectors of the rows that are left over.
    pub(super) single: Places,
    pub(super) pitch: usize,
    pub(super) rise: usize,
}

impl Stacks {
    /// Vectors at the columns `starts` of `rows` rows of a plane `width` wide. Rows `dilation` apart are stacked; none
    /// without a dilation. With `overlap` the last stack may overlap the one above it, so that fewer are left over.
    pub(super) fn new(
        rows: usize,
        width: usize,
        starts: &[usize],
        step: usize,
        dilation: Option<usize>,
        overlap: bool,
    ) -> Self {
        let (mut top, mut single) = (Vec::new(), Vec::new());
        let Some(apart) = dilation else {
            single.extend(0..rows);
            return Self::of(top, single, width, starts, step, 1);
        };
        for phase in 0..apart.min(rows) {
            let count = (rows - phase).div_ceil(apart);
            let whole = count / STACK * STACK;
            let row = |index: usize| phase + index * apart;
            top.extend((0..whole).step_by(STACK).map(row));
            if whole < count && whole > 0 && overlap {
                top.push(row(count - STACK));
            } else {
                single.extend((whole..count).map(row));
            }
        }
        Self::of(top, single, width, starts, step, apart)
    }

    fn of(top: Vec<usize>, single: Vec<usize>, width: usize, starts: &[usize], step: usize, apart: usize) -> Self {
        let places = |rows| Places::new(rows, starts, step, width, |row, column| row * width + column);
        Self { top: places(top), single: places(single), pitch: apart * step, rise: apart * width }
    }
}

/// Columns at which vectors start that cover `columns` columns; where there are enough, the last one overlaps the one
/// before it instead of reaching over the end.
pub(super) fn overlapping(columns: usize) -> Vec<usize> {
    (0..columns).step_by(WIDTH).map(|column| column.min(columns.saturating_sub(WIDTH))).collect()
}
