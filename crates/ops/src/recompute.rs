//! Activations computed again in the backward pass instead of being kept.
//!
//! A part of a network becomes one node: its forward pass runs without keeping what lies inside, its backward pass runs
//! the part once more and goes back through that. Memory falls to the inputs of the parts and the inside of one part;
//! time grows by one forward pass of the parts. Source: Chen et al., Training Deep Nets with Sublinear Memory Cost,
//! arXiv 1604.06174, section 3.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor, Var, WithDType};

use crate::Result;
use crate::storage::{tensor, unsupported, with_slices};
use crate::tape::{self, Reads, Tape};

const OP: &str = "recompute";

thread_local! {
    static RECOMPUTING: Cell<bool> = const { Cell::new(false) };
}

/// A part of a network: from one tensor to another, with parameters of its own.
pub type Part = Arc<dyn Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync>;

/// `part(x)`, whose activations are computed again in the backward pass.
///
/// Values are those of `part(x)` to the bit; so are gradients, but for the order of additions where x or a parameter is
/// used elsewhere too. The part runs twice: it must give the same both times, and
/// what it changes on the side (running statistics) only where [`is_recomputing`] is false. Without a graph on x it is
/// run as it is.
///
/// # Gradient
/// Reaches x and the part's parameters; the latter only through [`backward`](crate::backward), not through candle's method.
/// # Errors
/// Those of the part.
/// # Example
/// ```
/// # use std::sync::Arc;
/// # use candle_core::{Device, Tensor, Var};
/// let weight = Var::new(3f32, &Device::Cpu)?;
/// let x = Var::new(2f32, &Device::Cpu)?;
/// let inner = weight.clone();
/// let y = dsd_ops::recompute(x.as_tensor(), Arc::new(move |x| (x * inner.as_tensor())?.sqr()))?;
/// let gradients = dsd_ops::backward(&y)?;
/// assert_eq!(gradients.get(&x).unwrap().to_scalar::<f32>()?, 36.0);
/// assert_eq!(gradients.get(&weight).unwrap().to_scalar::<f32>()?, 24.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn recompute(x: &Tensor, part: Part) -> Result<Tensor> {
    if !x.track_op() {
        return Ok(part(x)?);
    }
    // The graph inside ends with `y`, and what the part records with a tape of its own: neither is kept.
    let y = {
        let _inside = Tape::start();
        part(&x.detach())?.detach().contiguous()?
    };
    let output = match y.dtype() {
        DType::F32 => copy::<f32>(&y)?,
        DType::F64 => copy::<f64>(&y)?,
        other => return Err(unsupported(OP, other)),
    };
    Ok(tape::apply1(x, Recompute { part, output: Mutex::new(Some(output)) }, Reads::Inputs)?)
}

/// Whether this thread runs a part for the second time.
#[must_use]
pub fn is_recomputing() -> bool {
    RECOMPUTING.get()
}

fn copy<T: WithDType>(y: &Tensor) -> candle_core::Result<(CpuStorage, Shape)> {
    with_slices::<T, _, _>([y], |[y]| Ok(y.to_vec())).map(|values| tensor(values, y.shape()))
}

struct Recompute {
    part: Part,
    /// The result, until the node takes it.
    output: Mutex<Option<(CpuStorage, Shape)>>,
}

impl CustomOp1 for Recompute {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        output.ok_or_else(|| candle_core::Error::Msg("recompute: the result was taken already".to_string()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let x = Var::from_tensor(&x.detach())?;
        let tape = Tape::start();
        let y = {
            let _mark = Mark::set();
            (self.part)(x.as_tensor())?
        };
        // d(Σ y·g)/dx and of the parameters: the factor 1 of the sum changes no bit of g.
        let g = g.detach();
        let mut gradients = tape.finish(&(y * &g)?.sum_all()?).map_err(candle_core::Error::wrap)?;
        let dx = gradients.remove(x.as_tensor());
        // candle gives the untracked factor a gradient too, as large as y.
        gradients.remove(&g);
        tape::found_inside(&gradients);
        Ok(dx)
    }
}

/// Marks the thread as recomputing until it is dropped, also after an error.
struct Mark(bool);

impl Mark {
    fn set() -> Self {
        Self(RECOMPUTING.replace(true))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        RECOMPUTING.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::backward;
    use crate::{Activation, RunningStatistics, batch_norm_train, conv2d};

    struct Net {
        weights: [Var; 2],
        scale: Var,
        shift: Var,
        mean: Tensor,
        var: Tensor,
    }

    fn values(count: usize, shape: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| ((i * 37 + count) as f32).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    impl Net {
        fn new() -> Arc<Self> {
            let var = |tensor: Tensor| Var::from_tensor(&tensor).unwrap();
            let plain = |value: f32| (Tensor::ones(4, DType::F32, &Device::Cpu).unwrap() * f64::from(value)).unwrap();
            Arc::new(Self {
                weights: [1, 2].map(|i| var(values(i, &[4, 4, 3, 3]))),
                scale: var(plain(1.5)),
                shift: var(plain(0.1)),
                mean: plain(0.0),
                var: plain(1.0),
            })
        }

        /// A residual block whose first weight is used twice.
        fn block(&self, x: &Tensor) -> Result<Tensor> {
            let running =
                (!is_recomputing()).then_some(RunningStatistics { mean: &self.mean, var: &self.var, momentum: 0.1 });
            let options = crate::Conv2dOptions { padding: [1; 2], ..Default::default() };
            let y = conv2d(x, self.weights[0].as_tensor(), None, options)?;
            let y =
                batch_norm_train(&y, self.scale.as_tensor(), self.shift.as_tensor(), running, 1e-5, Activation::Relu)?;
            let y = (conv2d(&y, self.weights[1].as_tensor(), None, options)?
                + conv2d(x, self.weights[0].as_tensor(), None, options)?)?;
            Ok((y + x)?)
        }

        fn variables(&self) -> [&Var; 4] {
            [&self.weights[0], &self.weights[1], &self.scale, &self.shift]
        }
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }

    /// The result, and the gradients of x and of every parameter, of two blocks with the same parameters.
    fn run(again: bool) -> Vec<Vec<u32>> {
        let net = Net::new();
        let x = Var::from_tensor(&values(3, &[2, 4, 9, 7])).unwrap();
        let mut y = x.as_tensor().clone();
        for _ in 0..2 {
            let inner = Arc::clone(&net);
            let part: Part = Arc::new(move |x| inner.block(x).map_err(candle_core::Error::wrap));
            y = if again { recompute(&y, part).unwrap() } else { part(&y).unwrap() };
        }
        let gradients = backward(&y.sqr().unwrap().sum_all().unwrap()).unwrap();
        let of = |var: &Var| bits(gradients.get(var.as_tensor()).unwrap());
        let mut all = vec![bits(&y), bits(&net.mean), bits(&net.var), of(&x)];
        all.extend(net.variables().map(of));
        all
    }

    #[test]
    fn values_statistics_and_gradients_are_those_of_the_part_itself() {
        let (plain, again) = (run(false), run(true));
        assert_eq!(plain[..4], again[..4]);
        // A parameter of several parts: its gradients are added in another order.
        for (one, other) in plain[4..].iter().flatten().zip(again[4..].iter().flatten()) {
            let (one, other) = (f32::from_bits(*one), f32::from_bits(*other));
            assert!((one - other).abs() <= 1e-5 * (1.0 + one.abs()), "{one} {other}");
        }
        assert!(!is_recomputing());
    }

    #[test]
    fn a_tape_keeps_one_node_of_a_part() {
        let net = Net::new();
        let x = Var::from_tensor(&values(3, &[2, 4, 9, 7])).unwrap();
        let inner = Arc::clone(&net);
        let part: Part = Arc::new(move |x| inner.block(x).map_err(candle_core::Error::wrap));
        let tape = Tape::start();
        part(x.as_tensor()).unwrap();
        let inside = tape::recorded();
        assert!(inside > 3, "{inside}");
        let y = recompute(x.as_tensor(), part).unwrap();
        assert_eq!(tape::recorded(), inside + 1);
        let gradients = tape.finish(&y.sqr().unwrap().sum_all().unwrap()).unwrap();
        assert!(net.variables().iter().all(|variable| gradients.get(variable.as_tensor()).is_some()));
    }

    #[test]
    fn without_a_graph_the_part_runs_as_it_is_and_its_error_is_passed_on() {
        let x = values(1, &[1, 4, 5, 5]);
        let net = Net::new();
        let inner = Arc::clone(&net);
        let y = recompute(&x, Arc::new(move |x| inner.block(x).map_err(candle_core::Error::wrap))).unwrap();
        // The part's parameters are in the graph as ever.
        assert!(backward(&y.sum_all().unwrap()).unwrap().get(net.weights[0].as_tensor()).is_some());
        let wrong: Part = Arc::new(|_| Err(candle_core::Error::Msg("no such part".to_string())));
        let x = Var::from_tensor(&x).unwrap();
        assert!(recompute(x.as_tensor(), wrong).unwrap_err().to_string().contains("no such part"));
        // An error while going back leaves nothing marked.
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let second: Part = Arc::new(move |x| match calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => x.sqr(),
            _ => Err(candle_core::Error::Msg("not again".to_string())),
        });
        let y = recompute(x.as_tensor(), second).unwrap();
        assert!(backward(&y.sum_all().unwrap()).unwrap_err().to_string().contains("not again"));
        assert!(!is_recomputing());
    }
}
