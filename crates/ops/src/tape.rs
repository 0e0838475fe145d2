//! A tape: the backward pass of this crate's operations without candle's price for an edge.
//!
//! candle allocates zeros for the gradient of every input and adds to them, so each edge of the graph costs three passes
//! over an activation. While a [`Tape`] lives, operations of this crate run outside candle's graph and are written down
//! in order; [`backward`] lets candle go through what was computed from their results (losses), and then goes through the
//! tape, where a gradient that comes alone is passed on as it is.
//!
//! Nothing is lost between the two: a recorded result is a node of candle's graph whose backward pass hands its gradient
//! to the tape, and fails where no tape listens. An operation is recorded only where every input that has a gradient is
//! a variable or recorded itself; anything else goes through candle's graph, with everything that follows from it. So
//! what candle goes through never lies before what the tape goes through.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result as CandleResult, Shape, Storage, Tensor,
    TensorId, Var, WithDType, bail,
};

use crate::storage::{from_elements, with_slices};
use crate::{Result, check, profile};

thread_local! {
    static CURRENT: RefCell<Option<Record>> = const { RefCell::new(None) };
    /// Where the running backward pass of candle puts the gradients of recorded results.
    static RECEIVED: RefCell<Option<Received>> = const { RefCell::new(None) };
    /// Gradients of parameters inside the nodes that the running backward pass has gone through.
    static INSIDE: RefCell<Vec<(TensorId, Tensor)>> = const { RefCell::new(Vec::new()) };
    static TAPES: Cell<u64> = const { Cell::new(0) };
}

/// Records this thread's operations until it is dropped. Tapes nest; the innermost records.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor, Var};
/// let x = Var::new(&[[[[-1f32, 2.0]]]], &Device::Cpu)?;
/// let tape = dsd_ops::Tape::start();
/// let loss = dsd_ops::relu(x.as_tensor())?.sqr()?.sum_all()?; // candle's operations may follow
/// let gradients = dsd_ops::backward(&loss)?;
/// assert_eq!(gradients.get(&x).unwrap().flatten_all()?.to_vec1::<f32>()?, [0.0, 4.0]);
/// drop(tape);
/// assert!(dsd_ops::backward(&loss).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "operations are recorded while it lives"]
pub struct Tape {
    outer: Option<Record>,
    /// A tape belongs to its thread.
    thread: PhantomData<*const ()>,
}

impl Tape {
    /// Begins to record.
    pub fn start() -> Self {
        let id = TAPES.get() + 1;
        TAPES.set(id);
        let outer = CURRENT.replace(Some(Record { id, nodes: Vec::new(), places: Places::default(), root: None }));
        Self { outer, thread: PhantomData }
    }

    /// As [`backward`], and the last time: activations are given back as soon as they are passed.
    ///
    /// # Errors
    /// As [`backward`].
    pub fn finish(self, loss: &Tensor) -> Result<GradStore> {
        run_backward(loss, true)
    }

    /// As [`finish`](Self::finish), from an output of any shape and the gradient that it has: PyTorch's
    /// `output.backward(gradient)`.
    ///
    /// # Errors
    /// As [`backward`]; Shape or DType where `gradient` has not those of `output`.
    pub fn finish_with(self, output: &Tensor, gradient: &Tensor) -> Result<GradStore> {
        const OP: &str = "finish_with";
        check::float(OP, "output", output)?;
        check::same_shape(OP, "gradient", gradient, output.dims())?;
        check::dtype(OP, "gradient", gradient, output.dtype())?;
        let end = apply1(output, Given { gradient: gradient.clone() }, Reads::Sizes)?;
        self.finish(&end)
    }
}

/// A scalar whose gradient by its argument is a given tensor.
struct Given {
    gradient: Tensor,
}

impl CustomOp1 for Given {
    fn name(&self) -> &'static str {
        "given"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let zero = match storage {
            CpuStorage::F64(_) => CpuStorage::F64(vec![0.0]),
            _ => CpuStorage::F32(vec![0.0]),
        };
        Ok((zero, Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> CandleResult<Option<Tensor>> {
        Ok(Some(self.gradient.clone()))
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        let own = CURRENT.replace(self.outer.take());
        drop(own);
    }
}

/// The gradients of everything behind `loss`: through candle's graph, through the [`Tape`] that records, and with those
/// of the parameters inside [`recompute`](crate::recompute)d parts.
///
/// # Errors
/// Those of the operations; a loss that came from a tape that no longer records.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    run_backward(loss, false)
}

fn run_backward(loss: &Tensor, last: bool) -> Result<GradStore> {
    let outside = INSIDE.take();
    let outer =
        RECEIVED.replace(CURRENT.with_borrow(|record| {
            record.as_ref().map(|record| Received { tape: record.id, gradients: BTreeMap::new() })
        }));
    let found = profile::backward("candle", &[], || loss.backward());
    let received = RECEIVED.replace(outer);
    let found = found.map_err(crate::Error::from).and_then(|mut gradients| {
        if let Some(received) = received {
            // Not recording meanwhile: a node may run operations of its own.
            let mut record = Suspended(CURRENT.take());
            if let Some(record) = &mut record.0 {
                record.go_back(received.gradients, &mut gradients, last)?;
            }
        }
        Ok(gradients)
    });
    let inside = INSIDE.replace(outside);
    let mut gradients = found?;
    for (id, gradient) in inside {
        add_to(&mut gradients, id, gradient)?;
    }
    Ok(gradients)
}

/// The number of operations on the tape that records.
#[cfg(test)]
pub(crate) fn recorded() -> usize {
    CURRENT.with_borrow(|record| record.as_ref().map_or(0, |record| record.nodes.len()))
}

/// Gradients of parameters for whoever called [`backward`].
pub(crate) fn found_inside(gradients: &GradStore) {
    let ids: Vec<TensorId> = gradients.get_ids().copied().collect();
    INSIDE.with_borrow_mut(|inside| {
        inside.extend(ids.into_iter().filter_map(|id| Some((id, gradients.get_id(id)?.clone()))));
    });
}

fn add_to(gradients: &mut GradStore, id: TensorId, gradient: Tensor) -> CandleResult<()> {
    let gradient = match gradients.get_id(id) {
        Some(other) => sum(other, &gradient)?,
        None => gradient,
    };
    gradients.insert_id(id, gradient);
    Ok(())
}

/// The sum of two gradients of one tensor.
fn sum(a: &Tensor, b: &Tensor) -> CandleResult<Tensor> {
    fn of<T: WithDType + dsd_kernels::activation::Element>(a: &Tensor, b: &Tensor) -> CandleResult<Tensor> {
        let values = with_slices::<T, _, _>([a, b], |[a, b]| Ok(dsd_kernels::activation::add_vec(a, b)?))?;
        from_elements(values, a.shape())
    }
    let parts = [a.contiguous()?, b.contiguous()?];
    profile::backward("sum of gradients", &parts, || match &parts {
        [a, b] if (a.dtype(), b.dtype()) == (DType::F32, DType::F32) => of::<f32>(a, b),
        [a, b] if (a.dtype(), b.dtype()) == (DType::F64, DType::F64) => of::<f64>(a, b),
        [a, b] => a + b,
    })
}

/// Looked up alone, never gone through: its order does not matter, and ids of tensors have none.
#[allow(clippy::disallowed_types, reason = "as above")]
type Places = std::collections::HashMap<TensorId, usize>;

/// What has been recorded.
#[derive(Debug)]
struct Record {
    id: u64,
    nodes: Vec<Node>,
    /// Where the result of which tensor's node lies.
    places: Places,
    /// What recorded results hang on in candle's graph.
    root: Option<Tensor>,
}

/// Puts the record back, also after an error.
struct Suspended(Option<Record>);

impl Drop for Suspended {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

struct Received {
    tape: u64,
    gradients: BTreeMap<usize, Tensor>,
}

/// What the backward pass of an operation reads of its tensors besides their sizes: the tape keeps nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Sizes alone.
    Sizes,
    /// All inputs.
    Inputs,
    /// The output.
    Output,
}

#[derive(Debug)]
struct Node {
    inputs: Vec<Input>,
    output: Tensor,
    operation: Operation,
}

/// An input of a node: the tensor, or one of its sizes and type that stands in for it.
#[derive(Debug)]
struct Input {
    tensor: Tensor,
    /// Of the tensor itself.
    id: TensorId,
    is_variable: bool,
}

/// A tensor of the sizes and the type of another, tracked where that is. All its elements are one NaN, so that a
/// backward pass that reads what it said it would not is found out.
fn stand_in(tensor: &Tensor) -> CandleResult<Tensor> {
    let value = Tensor::full(f32::NAN, (), tensor.device())?.to_dtype(tensor.dtype())?;
    let value = if tensor.track_op() { Var::from_tensor(&value)?.into_inner() } else { value };
    value.broadcast_as(tensor.shape())
}

/// An operation on any number of tensors, for [`apply`]. candle's own trait has three forms, of one to three.
pub(crate) trait ManyInputs: Send + Sync {
    /// The operation's name.
    fn name(&self) -> &'static str;
    /// The result without a graph.
    fn forward(&self, inputs: &[&Tensor]) -> CandleResult<(CpuStorage, Shape)>;
    /// A gradient for each input; `None` for those that need none.
    fn backward(&self, inputs: &[Tensor], gradient: &Tensor) -> CandleResult<Vec<Option<Tensor>>>;
}

enum Operation {
    One(Box<dyn CustomOp1 + Send + Sync>),
    Two(Box<dyn CustomOp2 + Send + Sync>),
    Three(Box<dyn CustomOp3 + Send + Sync>),
    Many(Box<dyn ManyInputs>),
}

impl Operation {
    fn name(&self) -> &'static str {
        match self {
            Self::One(op) => op.name(),
            Self::Two(op) => op.name(),
            Self::Three(op) => op.name(),
            Self::Many(op) => op.name(),
        }
    }
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Record {
    /// Whether an operation on these inputs belongs on the tape.
    fn takes(&self, inputs: &[&Tensor]) -> bool {
        let own = |x: &Tensor| x.is_variable() || self.places.contains_key(&x.id());
        let mut tracked = inputs.iter().filter(|x| x.track_op()).peekable();
        tracked.peek().is_some() && tracked.all(|x| own(x)) && inputs.iter().all(|x| x.device().is_cpu())
    }

    fn push(
        &mut self,
        inputs: &[&Tensor],
        output: (CpuStorage, Shape),
        operation: Operation,
        reads: Reads,
    ) -> CandleResult<Tensor> {
        let root = match &self.root {
            Some(root) => root,
            None => self.root.insert(Var::new(0f32, &candle_core::Device::Cpu)?.into_inner()),
        };
        let place = self.nodes.len();
        let output = root.apply_op1(Recorded { tape: self.id, place, output: Mutex::new(Some(output)) })?;
        self.places.insert(output.id(), place);
        let kept = |tensor: &Tensor, reads: bool| if reads { Ok(tensor.clone()) } else { stand_in(tensor) };
        let input = |x: &&Tensor| {
            let tensor = kept(x, reads == Reads::Inputs)?;
            Ok(Input { tensor, id: x.id(), is_variable: x.is_variable() })
        };
        let inputs = inputs.iter().map(input).collect::<CandleResult<_>>()?;
        self.nodes.push(Node { inputs, output: kept(&output, reads == Reads::Output)?, operation });
        Ok(output)
    }

    /// From the last node to the first, with what candle's graph has given.
    fn go_back(
        &mut self,
        received: BTreeMap<usize, Tensor>,
        gradients: &mut GradStore,
        last: bool,
    ) -> CandleResult<()> {
        let mut open: Vec<Option<Tensor>> = vec![None; self.nodes.len()];
        for (place, gradient) in received {
            open[place] = Some(gradient);
        }
        for place in (0..open.len()).rev() {
            if let Some(gradient) = open[place].take() {
                let node = &self.nodes[place];
                for (input, found) in node.inputs.iter().zip(node.backward(&gradient)?) {
                    let Some(found) = found else { continue };
                    match self.places.get(&input.id) {
                        Some(&before) => {
                            open[before] = Some(match open[before].take() {
                                Some(other) => sum(&other, &found)?,
                                None => found,
                            });
                        }
                        None if input.is_variable => add_to(gradients, input.id, found)?,
                        None => {}
                    }
                }
            }
            if last {
                self.nodes.pop();
            }
        }
        Ok(())
    }
}

impl Node {
    fn backward(&self, gradient: &Tensor) -> CandleResult<Vec<Option<Tensor>>> {
        let y = &self.output;
        let inputs: Vec<Tensor> = self.inputs.iter().map(|input| input.tensor.clone()).collect();
        profile::backward(self.operation.name(), &inputs, || {
            Ok(match (&self.operation, inputs.as_slice()) {
                (Operation::One(op), [a]) => vec![op.bwd(a, y, gradient)?],
                (Operation::Two(op), [a, b]) => <[_; 2]>::from(op.bwd(a, b, y, gradient)?).into(),
                (Operation::Three(op), [a, b, c]) => <[_; 3]>::from(op.bwd(a, b, c, y, gradient)?).into(),
                (Operation::Many(op), inputs) => op.backward(inputs, gradient)?,
                (operation, inputs) => bail!("{operation:?} was recorded with {} inputs", inputs.len()),
            })
        })
    }
}

/// A recorded result as a node of candle's graph.
struct Recorded {
    tape: u64,
    place: usize,
    /// The result, until the node takes it.
    output: Mutex<Option<(CpuStorage, Shape)>>,
}

impl CustomOp1 for Recorded {
    fn name(&self) -> &'static str {
        "recorded"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        output.ok_or_else(|| candle_core::Error::Msg("a recorded result was taken already".to_string()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> CandleResult<Option<Tensor>> {
        RECEIVED.with_borrow_mut(|received| match received {
            Some(received) if received.tape == self.tape => {
                received.gradients.insert(self.place, gradient.clone());
                Ok(None)
            }
            _ => bail!("the loss comes from operations on a tape: use dsd_ops::backward while that Tape lives"),
        })
    }
}

/// Runs `forward` and records it, where the tape takes the inputs; gives `operation` back where it does not.
fn record<C>(
    inputs: &[&Tensor],
    operation: C,
    reads: Reads,
    forward: impl FnOnce(&C) -> CandleResult<(CpuStorage, Shape)>,
    wrap: impl FnOnce(C) -> Operation,
) -> CandleResult<std::result::Result<Tensor, C>> {
    if !CURRENT.with_borrow(|record| record.as_ref().is_some_and(|record| record.takes(inputs))) {
        return Ok(Err(operation));
    }
    let output = forward(&operation)?;
    CURRENT.with_borrow_mut(|record| match record {
        Some(record) => record.push(inputs, output, wrap(operation), reads).map(Ok),
        None => bail!("a tape ended within an operation"),
    })
}

/// Calls `f` with the storages and layouts of tensors on the CPU.
fn on_cpu<R, const COUNT: usize>(
    tensors: [&Tensor; COUNT],
    f: impl FnOnce([(&CpuStorage, &Layout); COUNT]) -> CandleResult<R>,
) -> CandleResult<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut parts = Vec::with_capacity(COUNT);
    for (guard, layout) in &guards {
        match &**guard {
            Storage::Cpu(storage) => parts.push((storage, *layout)),
            _ => bail!("a tape records on the CPU alone"),
        }
    }
    match parts.try_into() {
        Ok(parts) => f(parts),
        Err(_) => bail!("a tensor was lost"),
    }
}

/// `op` on one tensor, on the tape or in candle's graph.
pub(crate) fn apply1<C: CustomOp1 + Send + Sync + 'static>(x: &Tensor, op: C, reads: Reads) -> CandleResult<Tensor> {
    let forward = |op: &C| on_cpu([x], |[(s, l)]| op.cpu_fwd(s, l));
    let name = op.name();
    profile::forward(name, &[x], || match record(&[x], op, reads, forward, |op| Operation::One(Box::new(op)))? {
        Ok(output) => Ok(output),
        Err(op) => x.apply_op1(op),
    })
}

/// `op` on two tensors.
pub(crate) fn apply2<C: CustomOp2 + Send + Sync + 'static>(
    a: &Tensor,
    b: &Tensor,
    op: C,
    reads: Reads,
) -> CandleResult<Tensor> {
    let forward = |op: &C| on_cpu([a, b], |[(s1, l1), (s2, l2)]| op.cpu_fwd(s1, l1, s2, l2));
    let name = op.name();
    profile::forward(name, &[a, b], || match record(&[a, b], op, reads, forward, |op| Operation::Two(Box::new(op)))? {
        Ok(output) => Ok(output),
        Err(op) => a.apply_op2(b, op),
    })
}

/// `op` on three tensors.
pub(crate) fn apply3<C: CustomOp3 + Send + Sync + 'static>(
    a: &Tensor,
    b: &Tensor,
    c: &Tensor,
    op: C,
    reads: Reads,
) -> CandleResult<Tensor> {
    let forward = |op: &C| on_cpu([a, b, c], |[(s1, l1), (s2, l2), (s3, l3)]| op.cpu_fwd(s1, l1, s2, l2, s3, l3));
    let (name, inputs) = (op.name(), [a, b, c]);
    profile::forward(name, &inputs, || {
        match record(&inputs, op, reads, forward, |op| Operation::Three(Box::new(op)))? {
            Ok(output) => Ok(output),
            Err(op) => a.apply_op3(b, c, op),
        }
    })
}

/// `op` on any number of tensors; `None` where it belongs into candle's graph.
pub(crate) fn apply_many<C: ManyInputs + 'static>(
    inputs: &[&Tensor],
    op: C,
    reads: Reads,
) -> CandleResult<Option<Tensor>> {
    let forward = |op: &C| op.forward(inputs);
    let name = op.name();
    let recorded = || record(inputs, op, reads, forward, |op| Operation::Many(Box::new(op)));
    Ok(profile::forward(name, inputs, recorded)?.ok())
}

#[cfg(test)]
mod tests;
