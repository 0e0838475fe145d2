//! The sizes and settings of a 2-D convolution.

use std::ops::Range;

use crate::error::{check_length, param};
use crate::{Error, Result};

const OP: &str = "conv2d";

/// The sizes and settings of a 2-D convolution; pairs are (vertical, horizontal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dShape {
    /// N, images.
    pub batch: usize,
    /// C, channels of the input; a multiple of `groups`.
    pub in_channels: usize,
    /// H, rows of the input.
    pub in_height: usize,
    /// W, columns of the input.
    pub in_width: usize,
    /// K, channels of the output; a multiple of `groups`.
    pub out_channels: usize,
    /// Rows and columns of the kernel, ≥ 1.
    pub kernel: [usize; 2],
    /// Input pixels from one output pixel to the next, ≥ 1.
    pub stride: [usize; 2],
    /// Zeros put before the first and after the last input row or column.
    pub padding: [usize; 2],
    /// Zeros put after the last input row or column beyond `padding`: TensorFlow's "SAME" needs one more there.
    pub extra_padding: [usize; 2],
    /// Input pixels from one kernel tap to the next, ≥ 1.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other, ≥ 1; `in_channels` of them with as many outputs is depthwise.
    pub groups: usize,
}

impl Conv2dShape {
    /// A checked shape with stride 1, no padding, dilation 1 and one group.
    ///
    /// # Errors
    /// [`Error::Param`] as [`Conv2dShape::check`].
    pub fn new(input: [usize; 4], out_channels: usize, kernel: [usize; 2]) -> Result<Self> {
        let [batch, in_channels, in_height, in_width] = input;
        let shape = Self {
            batch,
            in_channels,
            in_height,
            in_width,
            out_channels,
            kernel,
            stride: [1, 1],
            padding: [0, 0],
            extra_padding: [0, 0],
            dilation: [1, 1],
            groups: 1,
        };
        shape.check()?;
        Ok(shape)
    }

    /// Refuses sizes that no convolution has.
    ///
    /// # Errors
    /// [`Error::Param`] for a size, stride or dilation of 0, groups that do not divide both channel counts, a kernel
    /// larger than the padded input, and sizes whose element counts overflow.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("batch", self.batch),
            ("in_channels", self.in_channels),
            ("in_height", self.in_height),
            ("in_width", self.in_width),
            ("out_channels", self.out_channels),
            ("kernel height", self.kernel[0]),
            ("kernel width", self.kernel[1]),
            ("vertical stride", self.stride[0]),
            ("horizontal stride", self.stride[1]),
            ("vertical dilation", self.dilation[0]),
            ("horizontal dilation", self.dilation[1]),
            ("groups", self.groups),
        ];
        for (argument, value) in sizes {
            if value == 0 {
                return Err(param(OP, argument, "at least 1", value));
            }
        }
        for (argument, value) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)] {
            if !value.is_multiple_of(self.groups) {
                return Err(param(OP, argument, format!("a multiple of groups = {}", self.groups), value));
            }
        }
        let names = [("kernel height", self.in_height), ("kernel width", self.in_width)];
        for (axis, (argument, size)) in names.into_iter().enumerate() {
            let too_large = || param(OP, argument, "an extent that fits into memory", self.kernel[axis]);
            let extent = (self.kernel[axis] - 1)
                .checked_mul(self.dilation[axis])
                .and_then(|reach| reach.checked_add(1))
                .ok_or_else(too_large)?;
            let padded = self.padding[axis]
                .checked_mul(2)
                .and_then(|padding| padding.checked_add(self.extra_padding[axis]))
                .and_then(|padding| padding.checked_add(size))
                .ok_or_else(too_large)?;
            if extent > padded {
                return Err(param(
                    OP,
                    argument,
                    format!("a dilated extent of at most {padded}, the padded input"),
                    format!("{} with dilation {}, extent {extent}", self.kernel[axis], self.dilation[axis]),
                ));
            }
        }
        let products: [(&'static str, &[usize]); 3] = [
            ("x", &[self.batch, self.in_channels, self.in_height, self.in_width]),
            ("y", &[self.batch, self.out_channels, self.out_height(), self.out_width()]),
            ("weight", &[self.out_channels, self.in_channels / self.groups, self.kernel[0], self.kernel[1]]),
        ];
        for (argument, sizes) in products {
            let elements = sizes.iter().try_fold(8usize, |product, &size| product.checked_mul(size));
            if elements.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
                return Err(param(OP, argument, "a size that fits into memory", format!("{sizes:?}")));
            }
        }
        Ok(())
    }

    fn out_size(&self, axis: usize, size: usize) -> usize {
        let padded = size + 2 * self.padding[axis] + self.extra_padding[axis];
        (padded - self.dilation[axis] * (self.kernel[axis] - 1) - 1) / self.stride[axis] + 1
    }

    /// Rows of the output. Call [`Conv2dShape::check`] first.
    #[must_use]
    pub fn out_height(&self) -> usize {
        self.out_size(0, self.in_height)
    }

    /// Columns of the output. Call [`Conv2dShape::check`] first.
    #[must_use]
    pub fn out_width(&self) -> usize {
        self.out_size(1, self.in_width)
    }

    /// Elements of the input `[N,C,H,W]`.
    #[must_use]
    pub fn input_len(&self) -> usize {
        self.batch * self.in_channels * self.in_height * self.in_width
    }

    /// Elements of the weight `[K,C/groups,kh,kw]`.
    #[must_use]
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.group_in_channels() * self.taps()
    }

    /// Elements of the output `[N,K,Ho,Wo]`.
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.batch * self.out_channels * self.out_height() * self.out_width()
    }

    /// Floating-point operations of one pass, a multiplication and an addition per tap, padding included.
    #[must_use]
    pub fn flops(&self) -> f64 {
        2.0 * self.output_len() as f64 * (self.group_in_channels() * self.taps()) as f64
    }

    pub(crate) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    pub(crate) fn group_in_channels(&self) -> usize {
        self.in_channels / self.groups
    }

    pub(crate) fn group_out_channels(&self) -> usize {
        self.out_channels / self.groups
    }

    /// The output rows (axis 0) or columns (axis 1) whose `tap` reads inside the input.
    pub(crate) fn inside(&self, axis: usize, tap: usize) -> Range<usize> {
        let (size, out) =
            if axis == 0 { (self.in_height, self.out_height()) } else { (self.in_width, self.out_width()) };
        let (stride, shift) = (self.stride[axis], tap * self.dilation[axis]);
        // Output position o reads o·stride + shift − padding, which must be in 0..size.
        let first = self.padding[axis].saturating_sub(shift).div_ceil(stride);
        let end = (size + self.padding[axis]).saturating_sub(shift).div_ceil(stride).min(out);
        first.min(end)..end
    }

    /// The input row or column that `tap` reads for the output position `position`, which [`Self::inside`] holds.
    pub(crate) fn source(&self, axis: usize, tap: usize, position: usize) -> usize {
        position * self.stride[axis] + tap * self.dilation[axis] - self.padding[axis]
    }

    pub(crate) fn check_input(&self, argument: &'static str, len: usize) -> Result<()> {
        check_length(OP, argument, len, self.input_len())
    }

    pub(crate) fn check_weight(&self, argument: &'static str, len: usize) -> Result<()> {
        check_length(OP, argument, len, self.weight_len())
    }

    pub(crate) fn check_output(&self, argument: &'static str, len: usize) -> Result<()> {
        check_length(OP, argument, len, self.output_len())
    }

    pub(crate) fn check_bias(&self, len: usize) -> Result<()> {
        check_length(OP, "bias", len, self.out_channels)
    }

    pub(crate) fn not_for(&self, algorithm: super::Algorithm) -> Error {
        param(OP, "algorithm", format!("one that can compute {self:?}"), format!("{algorithm:?}"))
    }
}
