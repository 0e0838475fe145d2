//! Softmax and log-softmax over the channels of `[N,C,…]`, in one pass over tiles that stay in the cache.

use super::{BLOCK, Element, Kernel, LANES, Planes, sum, vectorised};
use crate::Result;
use crate::error::check_length;
use crate::parallel::{Shared, for_each_task};

/// Softmax or its logarithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Softmax {
    /// yᶜ = exp(xᶜ) / Σ exp(x).
    Probability,
    /// yᶜ = xᶜ − ln Σ exp(x).
    Logarithm,
}

/// Pixels of a tile: all channels of a tile and its sums stay in the first two caches.
pub(crate) const TILE: usize = 256;
/// Channels that are added up in the element type before the sum goes to f64.
pub(crate) const FLUSH: usize = 256;
/// Elements that make a task worth its start.
const TASK: usize = 1 << 14;

/// The softmax over the channels, or its logarithm. The largest value is subtracted first: any finite x is fine.
///
/// # Errors
/// Length.
pub fn softmax_forward<T: Element>(kind: Softmax, sizes: Planes, x: &[T], y: &mut [T]) -> Result<()> {
    check_length("softmax", "x", x.len(), sizes.elements())?;
    check_length("softmax", "output", y.len(), sizes.elements())?;
    let y = Shared::new(y);
    for_each_tile(sizes, |tile| {
        if sizes.pixels == 1 {
            let from = tile.start(0);
            #[allow(unsafe_code, reason = "tasks write disjoint rows")]
            // SAFETY: the row belongs to this image alone, and no two tiles share an image of one pixel.
            let y = unsafe { y.part(from, sizes.channels) };
            vectorised(ForwardRow { kind, x: &x[from..from + sizes.channels], y });
        } else {
            vectorised(Forward { kind, tile, x, y });
        }
    });
    Ok(())
}

/// The gradient of [`softmax_forward`] from its output `y` and the output's gradient `g`.
///
/// Softmax: dxᶜ = yᶜ · (gᶜ − Σ g · y). Logarithm: dxᶜ = gᶜ − exp(yᶜ) · Σ g.
///
/// # Errors
/// Length.
pub fn softmax_backward<T: Element>(kind: Softmax, sizes: Planes, y: &[T], g: &[T], dx: &mut [T]) -> Result<()> {
    check_length("softmax", "output", y.len(), sizes.elements())?;
    check_length("softmax", "gradient", g.len(), sizes.elements())?;
    check_length("softmax", "input gradient", dx.len(), sizes.elements())?;
    let dx = Shared::new(dx);
    for_each_tile(sizes, |tile| {
        if sizes.pixels == 1 {
            let row = tile.start(0)..tile.start(0) + sizes.channels;
            #[allow(unsafe_code, reason = "tasks write disjoint rows")]
            // SAFETY: the row belongs to this image alone, and no two tiles share an image of one pixel.
            let dx = unsafe { dx.part(row.start, sizes.channels) };
            vectorised(BackwardRow { kind, y: &y[row.clone()], g: &g[row], dx });
        } else {
            vectorised(Backward { kind, tile, y, g, dx });
        }
    });
    Ok(())
}

/// Some neighbouring pixels of one image, with all their channels.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    pub(crate) sizes: Planes,
    /// Position among all tiles.
    pub(crate) index: usize,
    /// The image.
    pub(crate) image: usize,
    /// The first pixel in the image.
    pub(crate) from: usize,
    /// How many pixels.
    pub(crate) len: usize,
}

impl Tile {
    /// Where the tile's part of a channel starts.
    #[inline(always)]
    pub(crate) fn start(self, channel: usize) -> usize {
        (self.image * self.sizes.channels + channel) * self.sizes.pixels + self.from
    }

    /// The tile's part of a channel.
    #[inline(always)]
    pub(crate) fn of<T>(self, elements: &[T], channel: usize) -> &[T] {
        &elements[self.start(channel)..][..self.len]
    }

    /// The tile's part of a channel, to write.
    #[inline(always)]
    pub(crate) fn of_mut<'a, T>(self, elements: &Shared<'a, T>, channel: usize) -> &'a mut [T] {
        #[allow(unsafe_code, reason = "tasks write disjoint tiles")]
        // SAFETY: tiles are disjoint ranges of pixels of an image; a kernel holds one channel's part at a time.
        unsafe {
            elements.part(self.start(channel), self.len)
        }
    }
}

/// How many tiles there are.
pub(crate) fn tile_count(sizes: Planes) -> usize {
    sizes.batch * sizes.pixels.div_ceil(TILE)
}

/// Runs `task` on all tiles, several of them one after the other where they are small.
pub(crate) fn for_each_tile(sizes: Planes, task: impl Fn(Tile) + Sync + Send) {
    if sizes.elements() == 0 {
        return;
    }
    let per_image = sizes.pixels.div_ceil(TILE);
    let count = tile_count(sizes);
    let per_task = (TASK / (sizes.channels * sizes.pixels.min(TILE))).max(1);
    for_each_task(count.div_ceil(per_task), |group| {
        for index in group * per_task..((group + 1) * per_task).min(count) {
            let from = index % per_image * TILE;
            task(Tile { sizes, index, image: index / per_image, from, len: TILE.min(sizes.pixels - from) });
        }
    });
}

struct Forward<'a, T> {
    kind: Softmax,
    tile: Tile,
    x: &'a [T],
    y: Shared<'a, T>,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { kind, tile, x, y } = self;
        let channels = tile.sizes.channels;
        let (mut maximum, mut partial, mut total) = ([T::NEG_INFINITY; TILE], [T::ZERO; TILE], [0.0; TILE]);
        let (maximum, partial, total) = (&mut maximum[..tile.len], &mut partial[..tile.len], &mut total[..tile.len]);
        largest(tile, x, maximum);
        for channel in 0..channels {
            let out = tile.of_mut(&y, channel).iter_mut();
            for (((out, x), maximum), partial) in
                out.zip(tile.of(x, channel)).zip(maximum.iter()).zip(partial.iter_mut())
            {
                let shifted = *x - *maximum;
                let power = shifted.e_to();
                *partial += power;
                *out = if kind == Softmax::Probability { power } else { shifted };
            }
            if channel % FLUSH == FLUSH - 1 || channel == channels - 1 {
                flush(partial, total);
            }
        }
        for (partial, total) in partial.iter_mut().zip(total.iter()) {
            let total = T::from_f64(*total);
            *partial = if kind == Softmax::Probability { T::ONE / total } else { total.log() };
        }
        for channel in 0..channels {
            for (out, last) in tile.of_mut(&y, channel).iter_mut().zip(partial.iter()) {
                *out = if kind == Softmax::Probability { *out * *last } else { *out - *last };
            }
        }
    }
}

/// The largest value of each pixel's channels; starts from what `maximum` holds.
///
/// Two channels at a time (the last one twice where their number is odd): with one, the compiler makes a masked store
/// of the choice between old and new, and masked stores are slow on some processors.
#[inline(always)]
pub(crate) fn largest<T: Element>(tile: Tile, x: &[T], maximum: &mut [T]) {
    let channels = tile.sizes.channels;
    for channel in (0..channels).step_by(2) {
        let (first, second) = (tile.of(x, channel), tile.of(x, (channel + 1).min(channels - 1)));
        for ((maximum, first), second) in maximum.iter_mut().zip(first).zip(second) {
            *maximum = second.larger(first.larger(*maximum));
        }
    }
}

/// Adds the sums in the element type to those in f64 and starts them anew.
#[inline(always)]
pub(crate) fn flush<T: Element>(partial: &mut [T], total: &mut [f64]) {
    for (partial, total) in partial.iter_mut().zip(total) {
        *total += partial.to_f64();
        *partial = T::ZERO;
    }
}

struct Backward<'a, T> {
    kind: Softmax,
    tile: Tile,
    y: &'a [T],
    g: &'a [T],
    dx: Shared<'a, T>,
}

impl<T: Element> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { kind, tile, y, g, dx } = self;
        let channels = tile.sizes.channels;
        let (mut partial, mut total) = ([T::ZERO; TILE], [0.0; TILE]);
        let (partial, total) = (&mut partial[..tile.len], &mut total[..tile.len]);
        for channel in 0..channels {
            for ((partial, y), g) in partial.iter_mut().zip(tile.of(y, channel)).zip(tile.of(g, channel)) {
                *partial += if kind == Softmax::Probability { *g * *y } else { *g };
            }
            if channel % FLUSH == FLUSH - 1 || channel == channels - 1 {
                flush(partial, total);
            }
        }
        for (partial, total) in partial.iter_mut().zip(total.iter()) {
            *partial = T::from_f64(*total);
        }
        for channel in 0..channels {
            let out = tile.of_mut(&dx, channel).iter_mut();
            for (((out, y), g), sum) in out.zip(tile.of(y, channel)).zip(tile.of(g, channel)).zip(partial.iter()) {
                *out = if kind == Softmax::Probability { *y * (*g - *sum) } else { *g - y.e_to() * *sum };
            }
        }
    }
}

/// One pixel, whose channels lie side by side.
struct ForwardRow<'a, T> {
    kind: Softmax,
    x: &'a [T],
    y: &'a mut [T],
}

impl<T: Element> Kernel for ForwardRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { kind, x, y } = self;
        let mut maxima = [T::NEG_INFINITY; LANES];
        for chunk in x.chunks(LANES) {
            for (maximum, x) in maxima.iter_mut().zip(chunk) {
                *maximum = x.larger(*maximum);
            }
        }
        let maximum = maxima.iter().fold(T::NEG_INFINITY, |most, x| x.larger(most));
        let mut total = 0.0;
        for (x, y) in x.chunks(BLOCK).zip(y.chunks_mut(BLOCK)) {
            let mut lanes = [T::ZERO; LANES];
            for (x, y) in x.chunks(LANES).zip(y.chunks_mut(LANES)) {
                for ((x, y), lane) in x.iter().zip(y).zip(&mut lanes) {
                    let shifted = *x - maximum;
                    let power = shifted.e_to();
                    *lane += power;
                    *y = if kind == Softmax::Probability { power } else { shifted };
                }
            }
            total += sum(&lanes);
        }
        let (factor, offset) = (T::from_f64(1.0 / total), T::from_f64(total.ln()));
        for y in y {
            *y = if kind == Softmax::Probability { *y * factor } else { *y - offset };
        }
    }
}

struct BackwardRow<'a, T> {
    kind: Softmax,
    y: &'a [T],
    g: &'a [T],
    dx: &'a mut [T],
}

impl<T: Element> Kernel for BackwardRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { kind, y, g, dx } = self;
        let mut total = 0.0;
        for (y, g) in y.chunks(BLOCK).zip(g.chunks(BLOCK)) {
            let mut lanes = [T::ZERO; LANES];
            for (y, g) in y.chunks(LANES).zip(g.chunks(LANES)) {
                for ((y, g), lane) in y.iter().zip(g).zip(&mut lanes) {
                    *lane += if kind == Softmax::Probability { *g * *y } else { *g };
                }
            }
            total += sum(&lanes);
        }
        let total = T::from_f64(total);
        for ((dx, y), g) in dx.iter_mut().zip(y).zip(g) {
            *dx = if kind == Softmax::Probability { *y * (*g - total) } else { *g - y.e_to() * total };
        }
    }
}
