//! The input gradient as matrix products whose second matrix is packed from the output gradient on the fly.
//!
//! With strides (s, t) the input pixels fall into s·t classes by remainder. Each class is a stride-1 convolution of the
//! output gradient with the taps that reach that class, so nothing is multiplied by inserted zeros.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Conv2dShape;
use super::implicit::{Product, TASK_PIXELS, pack_weights};
use super::lowering::{Border, View, images_per_round};
use super::scratch::with_buffer;
use crate::gemm::{RowPanels, Simd, Target, target};
use crate::lanes::{Instructions, Lanes, Stage, WIDTH};
use crate::parallel::{Shared, for_each_task};

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

/// What every group and every round of images of one call share.
struct Call<'a> {
    simd: Simd,
    shape: &'a Conv2dShape,
    classes: &'a [Class],
    /// Rows and columns of a class in one image; the last may lie outside the input.
    class_size: [usize; 2],
    row_panels: RowPanels,
    /// All classes' packed weights.
    weights: &'a [f32],
}

/// The output gradient of one group as it is read: bordered or where it lies.
struct Source<'a> {
    elements: &'a [f32],
    image_stride: usize,
    border: &'a Border,
}

/// The gradient of the input; every element of `grad_x` is written.
pub(super) fn backward_input(
    simd: Simd,
    shape: &Conv2dShape,
    weight: &[f32],
    grad_y: &[f32],
    grad_x: &mut [MaybeUninit<f32>],
) {
    let (rows, channels) = (shape.group_in_channels(), shape.group_out_channels());
    let row_panels = RowPanels::new(rows);
    let (classes, before) = classes(shape);
    let class_size = [shape.in_height.div_ceil(shape.stride[0]), shape.in_width.div_ceil(shape.stride[1])];
    let size = [shape.out_height(), shape.out_width()];
    let all_taps: Vec<[usize; 2]> = classes.iter().flat_map(|class| class.taps.iter().map(|tap| tap.1)).collect();
    let border = Border::new(size, before, [1, 1], class_size, &all_taps);
    let direct = border.is_identity();
    let plane = size[0] * size[1];
    let image_len = channels * border.plane_len();
    let images = if direct { shape.batch } else { images_per_round(shape.batch, image_len) };
    let grad_x = Shared::new(grad_x);
    with_buffer(rows * channels * shape.taps(), |packed| {
        for group in 0..shape.groups {
            for class in &classes {
                let depth = class.taps.len() * channels;
                let packed = &mut packed[class.start * rows..(class.start + depth) * rows];
                pack_weights(row_panels, rows, depth, packed, |panel, block, out| {
                    for (z, out) in block.zip(out.chunks_exact_mut(panel.len())) {
                        let (k, tap) = (group * channels + z / class.taps.len(), class.taps[z % class.taps.len()].0);
                        for (out, c) in out.iter_mut().zip(panel.clone()) {
                            *out = weight[(k * rows + c) * shape.taps() + tap];
                        }
                    }
                });
            }
            let call = Call { simd, shape, classes: &classes, class_size, row_panels, weights: packed };
            let channel_range = group * channels..(group + 1) * channels;
            if direct {
                let elements = &grad_y[channel_range.start * plane..];
                let source = Source { elements, image_stride: shape.out_channels * plane, border: &border };
                call.run(group, 0..shape.batch, &source, grad_x);
                continue;
            }
            with_buffer(images * image_len, |copy| {
                for first in (0..shape.batch).step_by(images) {
                    let round = first..(first + images).min(shape.batch);
                    let copy = &mut copy[..round.len() * image_len];
                    border.copy_planes(grad_y, shape.out_channels, round.clone(), channel_range.clone(), copy);
                    let source = Source { elements: copy, image_stride: image_len, border: &border };
                    call.run(group, round, &source, grad_x);
                }
            });
        }
    });
}

impl Call<'_> {
    fn run(&self, group: usize, images: Range<usize>, source: &Source<'_>, grad_x: Target<'_>) {
        let views: Vec<View<'_>> = self.classes.iter().map(|class| self.view(class, source)).collect();
        let rows = self.shape.group_in_channels();
        let plane = self.shape.in_height * self.shape.in_width;
        if let ([class], [view]) = (self.classes, views.as_slice()) {
            let image_stride = self.shape.in_channels * plane;
            let base = images.start * image_stride + group * rows * plane;
            let product = self.product(class, view, plane);
            product.run_images(images.len() * plane, plane, base, image_stride, grad_x);
            return;
        }
        let class_rows = images.len() * self.class_size[0];
        let step = (TASK_PIXELS / self.class_size[1]).min(class_rows.div_ceil(8)).max(1);
        for_each_task(class_rows.div_ceil(step), |task| {
            let class_rows = task * step..((task + 1) * step).min(class_rows);
            self.run_interleaved(group, images.start, class_rows, &views, grad_x);
        });
    }

    fn view<'a>(&self, class: &Class, source: &Source<'a>) -> View<'a> {
        View {
            elements: source.elements,
            image_stride: source.image_stride,
            channel_stride: source.border.plane_len(),
            row_step: source.border.row_step(),
            taps: class.taps.iter().map(|tap| source.border.tap_offset(tap.1)).collect(),
            out: self.class_size,
        }
    }

    fn product<'a>(&'a self, class: &Class, view: &'a View<'a>, row_stride: usize) -> Product<'a> {
        let rows = self.shape.group_in_channels();
        let depth = class.taps.len() * self.shape.group_out_channels();
        Product {
            simd: self.simd,
            view,
            weights: &self.weights[class.start * rows..(class.start + depth) * rows],
            row_panels: self.row_panels,
            rows,
            depth,
            bias: None,
            row_stride,
        }
    }

    /// Computes some rows of every class (counted over the images from `first_image`) and interleaves them.
    fn run_interleaved(
        &self,
        group: usize,
        first_image: usize,
        class_rows: Range<usize>,
        views: &[View<'_>],
        grad_x: Target<'_>,
    ) {
        let shape = self.shape;
        let [stride_rows, stride_columns] = shape.stride;
        let channels = shape.group_in_channels();
        let [class_height, class_width] = self.class_size;
        let pixels = class_rows.start * class_width..class_rows.end * class_width;
        let count = pixels.len();
        let columns: Vec<usize> = (0..count).collect();
        let instructions = Instructions::detect();
        with_buffer(stride_columns * channels * count, |buffer| {
            for rest_row in 0..stride_rows {
                for rest_column in 0..stride_columns {
                    let index = rest_row * stride_columns + rest_column;
                    let class = &self.classes[index];
                    let part = &mut buffer[rest_column * channels * count..(rest_column + 1) * channels * count];
                    if class.taps.is_empty() {
                        part.fill(0.0);
                        continue;
                    }
                    let product = self.product(class, &views[index], count);
                    #[allow(unsafe_code, reason = "the buffer is this task's own")]
                    // SAFETY: `part` is borrowed mutably here, so nobody else uses it.
                    unsafe {
                        product.run(0..self.row_panels.count(), pixels.clone(), &columns, target(part));
                    }
                }
                let mut parts = vec![&[][..]; stride_columns];
                for (local, class_row) in class_rows.clone().enumerate() {
                    let row = class_row % class_height * stride_rows + rest_row;
                    if row >= shape.in_height {
                        continue;
                    }
                    let image = first_image + class_row / class_height;
                    for c in 0..channels {
                        let channel = image * shape.in_channels + group * channels + c;
                        let from = (channel * shape.in_height + row) * shape.in_width;
                        #[allow(unsafe_code, reason = "tasks write disjoint rows")]
                        // SAFETY: a class row belongs to one task, so this input row does.
                        let out = unsafe { grad_x.part(from, shape.in_width) };
                        for (rest, part) in parts.iter_mut().enumerate() {
                            *part = &buffer[(rest * channels + c) * count + local * class_width..][..class_width];
                        }
                        instructions.run(Interleave { parts: &parts, out });
                    }
                }
            }
        });
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
