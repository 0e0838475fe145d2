//! Random inputs, and what a backward pass begins with.

use candle_core::{DType, Device, Tensor, Var};
use dsd_ops::Tape;
use dsd_random::Stream;

pub(super) fn random(count: usize, purpose: &str) -> Vec<f32> {
    let mut stream = Stream::new(1, purpose, 0, 0);
    (0..count).map(|_| stream.normal() as f32).collect()
}

pub(super) fn tensor(dims: &[usize], purpose: &str) -> crate::Result<Tensor> {
    Ok(Tensor::from_vec(random(dims.iter().product(), purpose), dims, &Device::Cpu)?)
}

pub(super) fn var(dims: &[usize], purpose: &str) -> crate::Result<Var> {
    Ok(Var::from_tensor(&tensor(dims, purpose)?)?)
}

pub(super) fn labels(count: usize, [height, width]: [usize; 2], classes: usize) -> crate::Result<Tensor> {
    let mut stream = Stream::new(1, "labels", 0, 0);
    let ids = (0..count * height * width).map(|_| stream.below(classes) as u8).collect();
    Ok(Tensor::from_vec(ids, (count, height, width), &Device::Cpu)?)
}

/// The value of a scalar of either precision.
pub(super) fn scalar(value: &Tensor) -> crate::Result<f64> {
    Ok(value.to_dtype(DType::F64)?.to_scalar()?)
}

/// Forward and backward passes as a training step runs them, on a tape. The output gets a dense random gradient, made
/// in the first run and kept.
#[derive(Default)]
pub(super) struct Upstream(Option<Tensor>);

impl Upstream {
    /// One pass of `forward` and back; a scalar output gets 1 as its gradient, and is returned.
    pub(super) fn run(&mut self, forward: impl FnOnce() -> crate::Result<Tensor>) -> crate::Result<Option<f64>> {
        let tape = Tape::start();
        let output = forward()?;
        if output.rank() == 0 {
            tape.finish(&output)?;
            return Ok(Some(scalar(&output)?));
        }
        let gradient = match &self.0 {
            Some(gradient) => gradient.clone(),
            None => self.0.insert(tensor(output.dims(), "gradient")?).clone(),
        };
        tape.finish_with(&output, &gradient)?;
        Ok(None)
    }
}
