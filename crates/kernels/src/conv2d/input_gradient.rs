//! The input gradient as matrix products whose second matrix is packed from the output gradient on the fly.
//!
//! With strides (s, t) the input pixels fall into s·t classes by remainder. Each class is a stride-1 convolution of the
//! output gradient with the taps that reach that class, so nothing is multiplied by inserted zeros.

use std::mem::MaybeUninit;

use super::Conv2dShape;
use super::few_pixels;
use super::products::{Output, Planes, Reading, Region, Regions, Sums, Weights};
use super::scratch::{Lists, with_buffer, with_lists};
use crate::gemm::{RowPanels, Target, target};
use crate::lanes::{Instructions, Lanes, Stage, WIDTH};
use crate::parallel::Shared;

/// The input pixels of one remainder class, and the taps that reach them.
pub(super) struct Class {
    /// Kernel tap and where it reads, relative to the class's pixel, in the bordered output gradient.
    pub(super) taps: Vec<(usize, [usize; 2])>,
    /// Where the packed weights of this class begin, in matrix rows.
    start: usize,
}

/// The remainder classes of a strided input gradient and the border they need before the first row and column.
pub(super) fn classes(shape: &Conv2dShape) -> (Vec<Class>, [usize; 2]) {
    let reads = |axis: usize, rest: usize, tap: usize| {
        // Input position i·s + rest is reached by `tap` from output position i + shift.
        let distance = (rest + shape.padding[axis]) as isize - (tap * shape.dilation[axis]) as isize;
        let stride = shape.stride[axis] as isize;
        (distance.rem_euclid(stride) == 0).then(|| distance.div_euclid(stride))
    };
    let mut found = Vec::new();
    let mut before = [0isize; 2];
    for rest in 0..shape.stride[0] * shape.stride[1] {
        let (rest_row, rest_column) = (rest / shape.stride[1], rest % shape.stride[1]);
        let mut taps = Vec::new();
        for tap in 0..shape.taps() {
            let row = reads(0, rest_row, tap / shape.kernel[1]);
            let column = reads(1, rest_column, tap % shape.kernel[1]);
            if let (Some(row), Some(column)) = (row, column) {
                before = [before[0].max(-row), before[1].max(-column)];
                taps.push((tap, [row, column]));
            }
        }
        found.push(taps);
    }
    let mut start = 0;
    let classes = found
        .into_iter()
        .map(|taps| {
            let taps: Vec<_> = taps
                .into_iter()
                .map(|(tap, [row, column])| (tap, [(row + before[0]) as usize, (column + before[1]) as usize]))
                .collect();
            let class = Class { start, taps };
            start += class.taps.len() * shape.group_out_channels();
            class
        })
        .collect();
    (classes, before.map(|before| before as usize))
}

/// The gradient of the input; every element of `grad_x` is written.
pub(super) fn backward_input(
    instructions: Instructions,
    shape: &Conv2dShape,
    weight: &[f32],
    grad_y: &[f32],
    grad_x: &mut [MaybeUninit<f32>],
) {
    if few_pixels::applies(shape) {
        return few_pixels::backward_input(instructions, shape, weight, grad_y, grad_x);
    }
    let (rows, channels) = (shape.group_in_channels(), shape.group_out_channels());
    let row_panels = RowPanels::new(rows);
    let (classes, before) = classes(shape);
    // Rows and columns of a class in one image; the last may lie outside the input.
    let class_size = [shape.in_height.div_ceil(shape.stride[0]), shape.in_width.div_ceil(shape.stride[1])];
    let all_taps: Vec<[usize; 2]> = classes.iter().flat_map(|class| class.taps.iter().map(|tap| tap.1)).collect();
    let most_taps = classes.iter().map(|class| class.taps.len()).max().unwrap_or(0).max(1);
    let grad_x = Shared::new(grad_x);
    for group in 0..shape.groups {
        let planes = Planes {
            elements: grad_y,
            batch: shape.batch,
            of: shape.out_channels,
            first: group * channels,
            channels,
            size: [shape.out_height(), shape.out_width()],
        };
        let reading = Reading { before, stride: [1, 1], out: class_size, taps: &all_taps };
        let regions = Regions::for_products(planes, reading, rows, most_taps);
        let pack = |packed: &mut [f32], parallel| {
            for class in &classes {
                let taps = class.taps.len();
                let packed = &mut packed[class.start * rows..(class.start + taps * channels) * rows];
                regions.pack_weights((rows, taps), (packed, parallel), |panel, block, out| {
                    // Blocks are whole channels of the output.
                    let first = group * channels + block.start / taps;
                    let weights = weight[first * rows * shape.taps()..].chunks_exact(rows * shape.taps());
                    let weights = weights.map(|weights| &weights[panel.start * shape.taps()..panel.end * shape.taps()]);
                    match panel.len() {
                        6 => pack_class::<6>(weights, shape.taps(), &class.taps, out),
                        5 => pack_class::<5>(weights, shape.taps(), &class.taps, out),
                        4 => pack_class::<4>(weights, shape.taps(), &class.taps, out),
                        _ => {
                            for (weights, out) in weights.zip(out.chunks_exact_mut(panel.len() * taps)) {
                                for (&(tap, _), out) in class.taps.iter().zip(out.chunks_exact_mut(panel.len())) {
                                    let weights = weights.iter().skip(tap).step_by(shape.taps());
                                    out.iter_mut().zip(weights).for_each(|(out, weight)| *out = *weight);
                                }
                            }
                        }
                    }
                });
            }
        };
        let sums = |class: &Class| Sums {
            instructions,
            row_panels,
            rows,
            taps: regions.tap_offsets(class.taps.iter().map(|tap| tap.1)),
            first_weight: class.start * rows,
            bias: None,
        };
        let sums: Vec<Sums<'_>> = classes.iter().map(sums).collect();
        let weights = Weights { len: rows * channels * shape.taps(), pack };
        match sums.as_slice() {
            [sums] => regions.fill(sums, weights, [shape.in_channels, group * rows], grad_x),
            _ => interleaved(shape, group, class_size, &regions, &sums, weights, grad_x),
        }
    }
}

/// Packs a panel of HEIGHT rows: of each output channel's `weights`, [HEIGHT, `kernel`], the taps of a class.
fn pack_class<'w, const HEIGHT: usize>(
    weights: impl Iterator<Item = &'w [f32]>,
    kernel: usize,
    taps: &[(usize, [usize; 2])],
    out: &mut [f32],
) {
    for (weights, out) in weights.zip(out.chunks_exact_mut(HEIGHT * taps.len())) {
        for (&(tap, _), out) in taps.iter().zip(out.as_chunks_mut::<HEIGHT>().0) {
            match weights.first_chunk() {
                Some(weights) if kernel == 1 => *out = *weights,
                _ => out.iter_mut().zip(weights.chunks_exact(kernel)).for_each(|(out, weights)| *out = weights[tap]),
            }
        }
    }
}

/// Computes every class and interleaves them.
fn interleaved(
    shape: &Conv2dShape,
    group: usize,
    class_size: [usize; 2],
    regions: &Regions<'_>,
    sums: &[Sums<'_>],
    weights: Weights<impl Fn(&mut [f32], bool) + Sync + Send>,
    grad_x: Target<'_>,
) {
    let channels = shape.group_in_channels();
    let class_width = class_size[1];
    regions.for_each_task(regions.count(), weights, |weights, task| {
        let region = regions.region(task);
        let count = region.images.len() * region.rows.len() * class_width;
        let compute = |buffer: &mut [f32], Lists { columns, .. }: &mut Lists| {
            columns.clear();
            columns.extend(0..count);
            let elements = target(buffer);
            let output = |class: usize| Output {
                columns,
                row_stride: count,
                elements: elements.after(class * channels * count),
            };
            let outputs: Vec<Output<'_>> = (0..sums.len()).map(output).collect();
            #[allow(unsafe_code, reason = "the buffer is this task's own")]
            // SAFETY: the buffer is borrowed mutably here, so nobody else uses it; classes have their own parts.
            unsafe {
                regions.run(&region, 0..RowPanels::new(channels).count(), weights, sums, &outputs);
            }
            for (sums, part) in sums.iter().zip(buffer.chunks_exact_mut(channels * count)) {
                if sums.taps.is_empty() {
                    part.fill(0.0);
                }
            }
            #[allow(unsafe_code, reason = "tasks write disjoint rows")]
            // SAFETY: a class row belongs to one task, so its input rows do.
            unsafe {
                interleave_region(shape, group, class_width, &region, buffer, grad_x);
            }
        };
        with_buffer(sums.len() * channels * count, |buffer| with_lists(|lists| compute(buffer, lists)));
    });
}

/// Interleaves the classes of a region, `[class][channel][pixel]`.
///
/// # Safety
/// Nobody else uses the region's rows of `grad_x` meanwhile.
#[allow(unsafe_code, reason = "hands the caller's proof on to Shared::part")]
unsafe fn interleave_region(
    shape: &Conv2dShape,
    group: usize,
    class_width: usize,
    region: &Region,
    classes: &[f32],
    grad_x: Target<'_>,
) {
    let [stride_rows, stride_columns] = shape.stride;
    let channels = shape.group_in_channels();
    let count = region.images.len() * region.rows.len() * class_width;
    let instructions = Instructions::detect();
    let mut parts = vec![&[][..]; stride_columns];
    // Channel by channel, so that rows are written in their order.
    let planes = region.images.clone().flat_map(|image| (0..channels).map(move |c| (image, c)));
    for (image, c) in planes {
        for class_row in region.rows.clone() {
            let place = (image - region.images.start) * region.rows.len() + class_row - region.rows.start;
            for rest_row in 0..stride_rows.min(shape.in_height - class_row * stride_rows) {
                let row = class_row * stride_rows + rest_row;
                let channel = image * shape.in_channels + group * channels + c;
                let from = (channel * shape.in_height + row) * shape.in_width;
                // SAFETY: by the caller's contract.
                let out = unsafe { grad_x.part(from, shape.in_width) };
                for (rest, part) in parts.iter_mut().enumerate() {
                    let class = rest_row * stride_columns + rest;
                    let from = (class * channels + c) * count + place * class_width;
                    *part = &classes[from..][..class_width];
                }
                instructions.run(Interleave { parts: &parts, out });
            }
        }
    }
}

/// Writes element j of part `rest` to j · stride + rest.
struct Interleave<'a> {
    parts: &'a [&'a [f32]],
    out: &'a mut [MaybeUninit<f32>],
}

impl Stage for Interleave<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let stride = self.parts.len();
        let mut done = 0;
        if let &[even, odd] = self.parts {
            let pairs = self.out.as_chunks_mut::<{ 2 * WIDTH }>().0;
            for ((out, even), odd) in pairs.iter_mut().zip(even.as_chunks().0).zip(odd.as_chunks().0) {
                let [low, high] = L::alternate(L::load(even), L::load(odd));
                let [first, second] = out.as_chunks_mut::<WIDTH>().0 else { continue };
                low.write(first);
                high.write(second);
                done += WIDTH;
            }
        }
        for (rest, part) in self.parts.iter().enumerate() {
            let outs = self.out.iter_mut().skip(done * stride + rest).step_by(stride);
            for (out, value) in outs.zip(part.get(done..).unwrap_or(&[])) {
                out.write(*value);
            }
        }
    }
}
