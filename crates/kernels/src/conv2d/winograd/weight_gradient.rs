//! The gradient of the weights.
//!
//! With Y = Aᵀ M A and M = U ⊙ V a loss with gradient ∂Y has ∂M = A ∂Y Aᵀ, ∂U = Σ over tiles of ∂M ⊙ V and
//! ∂g = Gᵀ ∂U G: the adjoint of the forward pass, with the same points.
//!
//! Three ways to share out the work. *By strips*, where each task can hold sums ∂U of its own, because there are few
//! channels, or many tiles for it: it takes its strips through the transforms and the sums, and the tasks' ∂g, a quarter
//! of ∂U, are added in order. *By channels*, where there are few tiles: each task takes some channels of the side with
//! more of them through all steps, with all transforms of the other side, which mostly each thread makes for itself.
//! *By filters*: tiles are taken some hundred at a time, or in two halves, their transforms are made in parallel, then
//! each task adds up a block of output channels (times some blocks of input channels), tiles in order.

use std::marker::PhantomData;
use std::ops::Range;

use super::super::scratch::Buffer;
use super::Settings;
use super::blocks::{Block, CHANNELS, channels};
use super::convolve::SKEW;
use super::grid::{Grid, Layer};
use super::limits::Limits;
use super::points::Variant;
use super::product::FilterSums;
use super::scratch::Scratch;
use super::transform::{FilterGradients, Maps, Planes, ToTiles};
use crate::parallel::{Prepared, Shared, for_each_task, for_each_task_if};

/// Elements of the gradient that a task adds up, at least.
const ADDED: usize = 4096;
/// Blocks of output channels that read the same transformed inputs together, at most.
const GROUP: usize = 8;
/// Blocks of output and of input channels whose sums stay in the second-level cache until they are transformed.
const SQUARE: usize = 4;
/// Blocks of input channels that each reading of all transformed gradients has to be worth, where there are as many.
const WHOLE_GROUP: usize = 8;

/// What is transformed.
#[derive(Clone, Copy)]
enum Side {
    Gradients,
    Inputs,
}

/// The blocks of both sides in the order of their tasks: the first half of both comes before the second, as two
/// threads mostly take a half of the tasks each, here and in the sums: what one has made is then more often read by itself.
fn order(gradients: usize, inputs: usize) -> Vec<(Side, usize)> {
    let mut order: Vec<_> = (0..gradients).map(|block| (Side::Gradients, block)).collect();
    order.extend((0..inputs).map(|block| (Side::Inputs, block)));
    order.sort_by_key(|&(side, block)| match side {
        Side::Gradients => block * inputs.max(1),
        Side::Inputs => block * gradients.max(1),
    });
    order
}

/// Some input channels of some strips.
struct Part {
    strips: Range<usize>,
    /// Strips whose transforms are held at once.
    at_once: usize,
    /// Blocks of input channels.
    in_blocks: Range<usize>,
    /// Whether the output's gradients are still to be transformed.
    transform: bool,
    /// Whether the work is shared out between threads.
    parallel: bool,
}

struct Pass<'a, V, const M: usize, const IN: usize, const A: usize> {
    layer: &'a Layer,
    grid: Grid,
    settings: Settings,
    x: &'a [f32],
    grad_y: &'a [f32],
    grad_weight: Shared<'a, f32>,
    variant: PhantomData<V>,
}

/// Overwrites `grad_weight` with the gradient of the weights of a forward `layer`.
pub(super) fn run<V: Variant<M, IN, A>, const M: usize, const IN: usize, const A: usize>(
    settings: Settings,
    layer: &Layer,
    x: &[f32],
    grad_y: &[f32],
    grad_weight: &mut [f32],
) {
    let grid = Grid::new(layer, M);
    let pass = Pass::<V, M, IN, A> {
        layer,
        grid,
        settings,
        x,
        grad_y,
        grad_weight: Shared::new(grad_weight),
        variant: PhantomData,
    };
    let own_sums = pass.own_sums();
    if pass.few_tiles(own_sums) {
        pass.by_channels();
    } else if own_sums {
        pass.by_strips();
    } else {
        pass.by_filters();
    }
}

impl<V: Variant<M, IN, A>, const M: usize, const IN: usize, const A: usize> Pass<'_, V, M, IN, A> {
    /// Whether a task's sums are small, or little beside its transformed tiles.
    fn own_sums(&self) -> bool {
        let (in_blocks, out_blocks) = (self.layer.in_blocks(), self.layer.out_blocks());
        let sums = CHANNELS * in_blocks * out_blocks;
        let tiles = (in_blocks + out_blocks) * self.grid.strips * self.grid.strip_tiles() / self.tasks();
        let Limits { own_sum_blocks, most_own_sum_blocks, .. } = self.settings.limits;
        A * A * sums <= own_sum_blocks || (A * A * sums <= most_own_sum_blocks && 3 * tiles >= 4 * sums)
    }

    /// Whether tasks take channels: there are few tiles, and where the sums could be a task's own, so few that it costs less to
    /// make the transforms of one side twice than to make, transform and add several sums.
    fn few_tiles(&self, own_sums: bool) -> bool {
        let tiles = self.grid.strips * self.grid.strip_tiles();
        let more = self.layer.in_blocks().max(self.layer.out_blocks());
        let Limits { channel_tiles, channel_tiles_per_block, .. } = self.settings.limits;
        tiles <= channel_tiles && (!own_sums || (more > 1 && tiles <= channel_tiles_per_block * more))
    }

    /// Tasks with sums of their own.
    fn tasks(&self) -> usize {
        let strips = self.grid.strips;
        (strips * self.grid.strip_tiles() / self.settings.limits.tiles_of_own_sums).clamp(4, 16).min(strips)
    }

    fn by_strips(&self) {
        let Self { layer, grid, settings: Settings { instructions, limits }, .. } = *self;
        let (in_blocks, out_blocks) = (layer.in_blocks(), layer.out_blocks());
        let (strips, strip_tiles) = (grid.strips, grid.strip_tiles());
        let tasks = self.tasks();
        let at_once = limits.own_tile_blocks / (A * A * (in_blocks + out_blocks)) / strip_tiles;
        let at_once = at_once.clamp(1, strips.div_ceil(tasks));
        let tiles_stride = at_once * strip_tiles;
        let values_stride = in_blocks * tiles_stride + SKEW;
        let gradients_stride = out_blocks * tiles_stride + SKEW;
        let sums_stride = out_blocks * CHANNELS * in_blocks + SKEW;
        // The first task writes to the result, the others to memory of their own.
        let gradient_len = self.gradient_len();
        let mut others = Buffer::take((tasks - 1) * gradient_len);
        let shared = Shared::new(&mut others);
        for_each_task(tasks, |task| {
            let strips = task * strips / tasks..(task + 1) * strips / tasks;
            let mut values = Scratch::take(A * A * values_stride);
            let mut gradients = Scratch::take(A * A * gradients_stride);
            let mut sums = Scratch::take(A * A * sums_stride);
            for first in strips.clone().step_by(at_once) {
                let round = first..(first + at_once).min(strips.end);
                let shared = [Shared::new(&mut values), Shared::new(&mut gradients)];
                for (place, strip) in round.clone().enumerate() {
                    let tile = place * strip_tiles;
                    for block in 0..in_blocks {
                        let first = block * tiles_stride + tile;
                        self.transform_inputs(strip, block, &shared[0], values_stride, first);
                    }
                    for block in 0..out_blocks {
                        let first = block * tiles_stride + tile;
                        self.transform_gradients(strip, block, &shared[1], gradients_stride, first);
                    }
                }
                instructions.run_products(FilterSums {
                    planes: A * A,
                    gradients: &gradients,
                    gradients_stride,
                    values: &values,
                    values_stride,
                    tiles_stride,
                    tiles: round.len() * strip_tiles,
                    in_channels: layer.in_channels,
                    out_channels: layer.out_channels,
                    sums: &mut sums,
                    sums_stride,
                    add: first > strips.start,
                });
            }
            let gradient = if task == 0 { self.grad_weight } else { shared.after((task - 1) * gradient_len) };
            self.transform_sums(&sums, sums_stride, 0..out_blocks, 0..in_blocks, gradient);
        });
        self.add(&others);
    }

    /// Elements of the gradient.
    fn gradient_len(&self) -> usize {
        9 * self.layer.in_channels * self.layer.out_channels
    }

    /// Adds gradients to the result, in order.
    fn add(&self, others: &[f32]) {
        let len = self.gradient_len();
        let part = len.div_ceil(4).max(ADDED);
        for_each_task_if(!others.is_empty(), len.div_ceil(part), |task| {
            let place = task * part..((task + 1) * part).min(len);
            #[allow(unsafe_code, reason = "tasks write disjoint parts")]
            // SAFETY: each task has its own part.
            let sums = unsafe { self.grad_weight.part(place.start, place.len()) };
            for other in others.chunks_exact(len) {
                sums.iter_mut().zip(&other[place.clone()]).for_each(|(sum, value)| *sum += value);
            }
        });
    }

    /// Each task takes some channels of one side, and all of the other.
    fn by_channels(&self) {
        let Self { layer, grid, settings: Settings { instructions, .. }, .. } = *self;
        let (in_blocks, out_blocks) = (layer.in_blocks(), layer.out_blocks());
        let (strips, tiles) = (grid.strips, grid.strips * grid.strip_tiles());
        let more_inputs = in_blocks > out_blocks;
        let (sides, [more, fewer]) = if more_inputs {
            ([Side::Inputs, Side::Gradients], [in_blocks, out_blocks])
        } else {
            ([Side::Gradients, Side::Inputs], [out_blocks, in_blocks])
        };
        // The tiles of some blocks of channels of a side, and the distance of two planes of them.
        let transform = |side, blocks: Range<usize>, parallel| {
            let stride = blocks.len() * tiles + SKEW;
            let mut transformed = Scratch::take(A * A * stride);
            let shared = Shared::new(&mut transformed);
            for_each_task_if(parallel, blocks.len() * strips, |task| {
                let (place, strip) = (task / strips, task % strips);
                let (block, first) = (blocks.start + place, place * tiles + strip * grid.strip_tiles());
                match side {
                    Side::Gradients => self.transform_gradients(strip, block, &shared, stride, first),
                    Side::Inputs => self.transform_inputs(strip, block, &shared, stride, first),
                }
            });
            (transformed, stride)
        };
        // Four tasks at least, of nearly equal size, and as many for each thread.
        let tasks = more.div_ceil(SQUARE).max(4).next_multiple_of(rayon::current_num_threads()).min(more);
        let prepared = Prepared { bytes: size_of::<Block>() * A * A * fewer * tiles, uses: more * CHANNELS };
        prepared.for_each_task(
            tasks,
            |parallel| transform(sides[1], 0..fewer, parallel),
            |others, task| {
                let of_task = task * more / tasks..(task + 1) * more / tasks;
                let own = transform(sides[0], of_task.clone(), false);
                let sums_stride = CHANNELS * of_task.len() * SQUARE.min(fewer) + SKEW;
                let mut sums = Scratch::take(A * A * sums_stride);
                for first in (0..fewer).step_by(SQUARE) {
                    let group = first..(first + SQUARE).min(fewer);
                    let others = (&others.0[first * tiles..], others.1);
                    let own = (&own.0[..], own.1);
                    let ((values, values_stride), (gradients, gradients_stride), in_blocks, out_blocks) = if more_inputs
                    {
                        (own, others, of_task.clone(), group)
                    } else {
                        (others, own, group, of_task.clone())
                    };
                    instructions.run_products(FilterSums {
                        planes: A * A,
                        gradients,
                        gradients_stride,
                        values,
                        values_stride,
                        tiles_stride: tiles,
                        tiles,
                        in_channels: channels(&in_blocks, layer.in_channels),
                        out_channels: channels(&out_blocks, layer.out_channels),
                        sums: &mut sums,
                        sums_stride,
                        add: false,
                    });
                    self.transform_sums(&sums, sums_stride, out_blocks, in_blocks, self.grad_weight);
                }
            },
        );
    }

    fn by_filters(&self) {
        let Self { grid: Grid { strips, .. }, settings: Settings { limits, .. }, .. } = *self;
        let (in_blocks, out_blocks) = (self.layer.in_blocks(), self.layer.out_blocks());
        let (sums, tiles) = (CHANNELS * in_blocks * out_blocks, strips.div_ceil(2) * self.grid.strip_tiles());
        let halved = A * A * sums <= limits.halved_sum_blocks
            && A * A * tiles * (in_blocks + out_blocks) <= limits.half_tile_blocks;
        let halves = if halved { strips.min(2) } else { 1 };
        // One thread each, where there are no more.
        let apart = rayon::current_num_threads() <= halves;
        // The first writes to the result.
        let mut other = Buffer::take((halves - 1) * self.gradient_len());
        let shared = Shared::new(&mut other);
        for_each_task(halves, |half| {
            let strips = half * strips / halves..(half + 1) * strips / halves;
            self.some_strips(strips, !apart, if half == 0 { self.grad_weight } else { shared });
        });
        self.add(&other);
    }

    /// Writes what some strips contribute to `grad_weight`.
    fn some_strips(&self, strips: Range<usize>, parallel: bool, grad_weight: Shared<'_, f32>) {
        let (in_blocks, out_blocks) = (self.layer.in_blocks(), self.layer.out_blocks());
        let strip_tiles = self.grid.strip_tiles();
        let limits = self.settings.limits;
        let (tile, least) = (A * A * (in_blocks + out_blocks), limits.gradient_round_tiles);
        let many_sums = A * A * CHANNELS * in_blocks * out_blocks > limits.many_sum_blocks;
        // Blocks of channels whose transforms of all tiles may be held.
        let whole = limits.most_gradient_round_blocks / (A * A * strips.len() * strip_tiles);
        // Input channels are taken in groups: as many as may be held beside all the gradients, which each group reads, or
        // as many whose sums may be held from round to round.
        let (at_once, group) = if many_sums && whole >= out_blocks + in_blocks.min(WHOLE_GROUP) {
            (strips.len(), whole - out_blocks)
        } else {
            let most = if many_sums { limits.most_gradient_round_blocks } else { limits.gradient_round_blocks };
            let tiles = (most / tile).clamp(least, if many_sums { 2 * least } else { usize::MAX });
            let at_once = (tiles / strip_tiles).clamp(1, strips.len());
            (
                at_once,
                if at_once < strips.len() { limits.sum_blocks / (A * A * CHANNELS * out_blocks) } else { in_blocks },
            )
        };
        let groups = in_blocks.div_ceil(group.clamp(1, in_blocks));
        let gradients_stride = out_blocks * at_once * strip_tiles + SKEW;
        let mut gradients = Scratch::take(A * A * gradients_stride);
        for index in 0..groups {
            let part = Part {
                strips: strips.clone(),
                at_once,
                in_blocks: index * in_blocks / groups..(index + 1) * in_blocks / groups,
                transform: index == 0 || at_once < strips.len(),
                parallel,
            };
            self.run_part(&part, &mut gradients, grad_weight);
        }
    }

    /// Writes a part of the gradient of the weights.
    fn run_part(&self, part: &Part, gradients: &mut [Block], grad_weight: Shared<'_, f32>) {
        let &Part { strips: ref all_strips, at_once, ref in_blocks, transform, parallel } = part;
        let out_blocks = self.layer.out_blocks();
        let tiles_stride = at_once * self.grid.strip_tiles();
        let values_stride = in_blocks.len() * tiles_stride + SKEW;
        let gradients_stride = out_blocks * tiles_stride + SKEW;
        let mut values = Scratch::take(A * A * values_stride);

        // Tasks have some blocks of both sides. Four tasks at least, where there are four pairs of blocks; they share out
        // the side with more blocks, so that those are read once and the others several times.
        let all_at_once = at_once == all_strips.len();
        let shared_out = |blocks: usize| (blocks / 4).clamp(1, GROUP);
        let read_again = |blocks: usize, tasks: usize| blocks.div_ceil(4usize.div_ceil(tasks));
        let more_inputs = in_blocks.len() > out_blocks;
        let (group, per_task) = if more_inputs {
            let per_task = shared_out(in_blocks.len());
            (read_again(out_blocks, in_blocks.len().div_ceil(per_task)), per_task)
        } else {
            let group = shared_out(out_blocks);
            (group, read_again(in_blocks.len(), out_blocks.div_ceil(group)))
        };
        let (groups, parts) = (out_blocks.div_ceil(group), in_blocks.len().div_ceil(per_task));
        let sums_stride = group * CHANNELS * per_task + SKEW;
        let sums_len = A * A * sums_stride;
        let mut kept = Scratch::take(if all_at_once { 0 } else { groups * parts * sums_len });
        let kept = Shared::new(&mut kept);

        let order = order(if transform { out_blocks } else { 0 }, in_blocks.len());
        for first in all_strips.clone().step_by(at_once) {
            let strips = first..(first + at_once).min(all_strips.end);
            let shared = [Shared::new(&mut values), Shared::new(gradients)];
            for_each_task_if(parallel, strips.len() * order.len(), |task| {
                let ((side, block), place) = (order[task / strips.len()], task % strips.len());
                let first_tile = block * tiles_stride + place * self.grid.strip_tiles();
                match side {
                    Side::Gradients => {
                        self.transform_gradients(first + place, block, &shared[1], gradients_stride, first_tile);
                    }
                    Side::Inputs => {
                        let in_block = in_blocks.start + block;
                        self.transform_inputs(first + place, in_block, &shared[0], values_stride, first_tile);
                    }
                }
            });
            let (values, gradients) = (&values[..], &*gradients);
            for_each_task_if(parallel, groups * parts, |task| {
                let (index, part) =
                    if more_inputs { (task % groups, task / groups) } else { (task / parts, task % parts) };
                let first_out = index * group;
                let out_blocks = first_out..(first_out + group).min(out_blocks);
                let part = part * per_task..((part + 1) * per_task).min(in_blocks.len());
                let in_blocks = in_blocks.start + part.start..in_blocks.start + part.end;
                let mut own = Scratch::take(if all_at_once { sums_len } else { 0 });
                let sums = if all_at_once {
                    &mut own[..]
                } else {
                    #[allow(unsafe_code, reason = "tasks write disjoint parts")]
                    // SAFETY: each task has its own part.
                    unsafe {
                        kept.part(task * sums_len, sums_len)
                    }
                };
                self.settings.instructions.run_products(FilterSums {
                    planes: A * A,
                    gradients: &gradients[first_out * tiles_stride..],
                    gradients_stride,
                    values: &values[part.start * tiles_stride..],
                    values_stride,
                    tiles_stride,
                    tiles: strips.len() * self.grid.strip_tiles(),
                    in_channels: channels(&in_blocks, self.layer.in_channels),
                    out_channels: channels(&out_blocks, self.layer.out_channels),
                    sums,
                    sums_stride,
                    add: first > all_strips.start,
                });
                if strips.end == all_strips.end {
                    self.transform_sums(sums, sums_stride, out_blocks, in_blocks, grad_weight);
                }
            });
        }
    }

    /// ∂g of the channels whose sums ∂U these are; no two calls that run at once share (output block, input block).
    fn transform_sums(
        &self,
        sums: &[Block],
        stride: usize,
        out_blocks: Range<usize>,
        in_blocks: Range<usize>,
        grad_weight: Shared<'_, f32>,
    ) {
        for (index, out_block) in out_blocks.enumerate() {
            self.settings.instructions.run(FilterGradients::<V::FilterGradient, A> {
                sums: &sums[index * CHANNELS * in_blocks.len()..],
                stride,
                layer: self.layer,
                out_block,
                in_blocks: in_blocks.clone(),
                grad_weight,
                transform: PhantomData,
            });
        }
    }

    /// V of one strip and block of input channels, to the planes' tiles from `first` on, which no other call has.
    fn transform_inputs(&self, strip: usize, block: usize, values: &Shared<'_, Block>, stride: usize, first: usize) {
        let mut pixels = Scratch::take(A * self.grid.strip_width(IN));
        self.settings.instructions.run(ToTiles::<V::Input, IN, A> {
            maps: Maps { data: self.x, channels: self.layer.in_channels, size: self.layer.in_size },
            padding: self.layer.padding,
            dilation: self.layer.dilation,
            tile: M,
            grid: &self.grid,
            strip: self.grid.strip(strip),
            block,
            pixels: &mut pixels,
            planes: Planes { blocks: *values, stride, first },
            transform: PhantomData,
        });
    }

    /// ∂M of one strip and block of output channels, as `transform_inputs`.
    fn transform_gradients(&self, strip: usize, block: usize, to: &Shared<'_, Block>, stride: usize, first: usize) {
        let mut pixels = Scratch::take(A * self.grid.strip_width(M));
        self.settings.instructions.run(ToTiles::<V::OutputGradient, M, A> {
            maps: Maps { data: self.grad_y, channels: self.layer.out_channels, size: self.layer.out_size },
            padding: [0, 0],
            dilation: self.layer.dilation,
            tile: M,
            grid: &self.grid,
            strip: self.grid.strip(strip),
            block,
            pixels: &mut pixels,
            planes: Planes { blocks: *to, stride, first },
            transform: PhantomData,
        });
    }
}
