//! The parameters and running statistics of a network, ordered by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::error::{Error, Result, WeightMismatch};
use crate::init;

/// One trained tensor.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its full name, such as `backbone.layer1.0.conv1.weight`.
    pub name: String,
    /// Its value; the key of its gradient.
    pub var: Var,
    /// Whether weight decay applies: true for weights of two or more dimensions, false for biases, the scale and
    /// shift of a normalisation and the slopes of PReLU.
    pub decay: bool,
}

#[derive(Clone, Debug)]
enum Entry {
    Parameter(Var),
    Buffer(Tensor),
}

impl Entry {
    /// With the graph: what a network that is trained is built on.
    fn tensor(&self) -> Tensor {
        match self {
            Self::Parameter(var) => var.as_tensor().clone(),
            Self::Buffer(tensor) => tensor.clone(),
        }
    }

    /// Without the graph, sharing storage.
    fn detached(&self) -> Tensor {
        match self {
            Self::Parameter(var) => var.as_detached_tensor(),
            Self::Buffer(tensor) => tensor.clone(),
        }
    }

    /// Copies into the existing storage, so that every holder sees the new value.
    fn assign(&self, value: &Tensor) -> candle_core::Result<()> {
        match self {
            Self::Parameter(var) => var.set(value),
            Self::Buffer(tensor) => tensor.slice_set(value, 0, 0),
        }
    }
}

#[derive(Debug)]
struct Shared {
    seed: u64,
    dtype: DType,
    device: Device,
    entries: Mutex<BTreeMap<String, Entry>>,
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One ordered store of all parameters and running statistics. Clones share the same tensors.
///
/// Tensors come into being when a network is built on [`ParamStore::builder`]. Their initial values are a function of
/// the seed and their names, not of the order in which they are made. Names that end in `running_mean` or
/// `running_var` are buffers: plain tensors that no optimiser touches.
#[derive(Clone, Debug)]
pub struct ParamStore {
    shared: Arc<Shared>,
}

impl ParamStore {
    /// An empty store whose tensors will have this element type and live on this device.
    #[must_use]
    pub fn new(seed: u64, dtype: DType, device: &Device) -> Self {
        let shared = Shared { seed, dtype, device: device.clone(), entries: Mutex::new(BTreeMap::new()) };
        Self { shared: Arc::new(shared) }
    }

    /// The source of a network that is trained: makes and initialises a tensor the first time its name is asked for,
    /// and hands out the same one ever after.
    #[must_use]
    pub fn builder(&self) -> VarBuilder<'static> {
        let backend = Creating { shared: self.shared.clone() };
        VarBuilder::from_backend(Box::new(backend), self.shared.dtype, self.shared.device.clone())
    }

    /// The source of a network that is evaluated: the same storage without the graph. Such a twin sees every later
    /// update; a name that the store does not have is an error.
    #[must_use]
    pub fn frozen_builder(&self) -> VarBuilder<'static> {
        let tensors = self.shared.entries().iter().map(|(name, entry)| (name.clone(), entry.detached())).collect();
        tensor_builder(tensors, self.shared.dtype, &self.shared.device)
    }

    /// All trained tensors, sorted by name.
    #[must_use]
    pub fn parameters(&self) -> Vec<Parameter> {
        let entries = self.shared.entries();
        entries
            .iter()
            .filter_map(|(name, entry)| match entry {
                Entry::Parameter(var) => {
                    Some(Parameter { name: name.clone(), var: var.clone(), decay: var.rank() >= 2 })
                }
                Entry::Buffer(_) => None,
            })
            .collect()
    }

    /// All running statistics, sorted by name.
    #[must_use]
    pub fn buffers(&self) -> Vec<(String, Tensor)> {
        let entries = self.shared.entries();
        entries
            .iter()
            .filter_map(|(name, entry)| match entry {
                Entry::Parameter(_) => None,
                Entry::Buffer(tensor) => Some((name.clone(), tensor.clone())),
            })
            .collect()
    }

    /// Parameters and running statistics without the graph, sharing storage: a later step changes them. Save them, or
    /// copy them to keep them.
    #[must_use]
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.shared.entries().iter().map(|(name, entry)| (name.clone(), entry.detached())).collect()
    }

    /// The number of trained values; running statistics do not count.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().map(|parameter| parameter.var.elem_count()).sum()
    }

    /// Replaces the value of every parameter and running statistic, in place: all of them or, on an error of names or
    /// shapes, none. Values are converted to the element type of the store.
    ///
    /// # Errors
    /// [`Error::Weights`] with all missing names, unexpected names and wrong shapes.
    pub fn apply(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let entries = self.shared.entries();
        let own: Vec<(&str, Tensor)> = entries.iter().map(|(name, entry)| (name.as_str(), entry.detached())).collect();
        let mismatch = WeightMismatch::between(own.iter().map(|(name, tensor)| (*name, tensor.dims())), tensors);
        if !mismatch.is_empty() {
            return Err(Error::Weights(mismatch));
        }
        let Shared { dtype, device, .. } = self.shared.as_ref();
        // A value may be a view of the very tensor that it is to replace: copied, so that source and target differ.
        let converted = tensors
            .values()
            .map(|tensor| tensor.to_device(device)?.to_dtype(*dtype)?.force_contiguous())
            .collect::<candle_core::Result<Vec<_>>>()?;
        for (entry, value) in entries.values().zip(&converted) {
            entry.assign(value)?;
        }
        Ok(())
    }
}

struct Creating {
    shared: Arc<Shared>,
}

fn is_buffer(name: &str) -> bool {
    matches!(name.rsplit('.').next(), Some("running_mean" | "running_var"))
}

fn shape_error(name: &str, expected: Shape, got: &Shape) -> candle_core::Error {
    candle_core::Error::UnexpectedShape {
        msg: format!("parameter {name} exists in another shape"),
        expected,
        got: got.clone(),
    }
}

impl SimpleBackend for Creating {
    fn get(&self, shape: Shape, name: &str, hint: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let mut entries = self.shared.entries();
        if let Some(entry) = entries.get(name) {
            let tensor = entry.tensor();
            return if tensor.shape() == &shape { Ok(tensor) } else { Err(shape_error(name, shape, tensor.shape())) };
        }
        let value = init::initial(self.shared.seed, name, &shape, hint, dtype, device)?;
        let entry = if is_buffer(name) { Entry::Buffer(value) } else { Entry::Parameter(Var::from_tensor(&value)?) };
        let tensor = entry.tensor();
        entries.insert(name.to_string(), entry);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        let missing = || candle_core::Error::CannotFindTensor { path: name.to_string() };
        self.shared.entries().get(name).map(Entry::tensor).ok_or_else(missing)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.shared.entries().contains_key(name)
    }
}

/// The source of a network on existing plain tensors: no graph is built on them, and names and shapes are verified.
#[must_use]
pub fn tensor_builder(tensors: BTreeMap<String, Tensor>, dtype: DType, device: &Device) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Fixed { tensors }), dtype, device.clone())
}

struct Fixed {
    tensors: BTreeMap<String, Tensor>,
}

impl SimpleBackend for Fixed {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() == &shape { Ok(tensor) } else { Err(shape_error(name, shape, tensor.shape())) }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let missing = || candle_core::Error::CannotFindTensor { path: name.to_string() };
        self.tensors.get(name).ok_or_else(missing)?.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

/// Records the shapes that a network asks for and gives views of one single zero: nothing of the size of a weight is
/// allocated. For counting and verifying; a network built on it computes zeros.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShapeRecorder {
    shapes: Arc<Mutex<BTreeMap<String, Vec<usize>>>>,
}

impl ShapeRecorder {
    pub(crate) fn builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, Device::Cpu)
    }

    pub(crate) fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of trained values among the recorded shapes.
    pub(crate) fn parameter_count(&self) -> usize {
        let shapes = self.shapes();
        shapes.iter().filter(|(name, _)| !is_buffer(name)).map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }
}

impl SimpleBackend for ShapeRecorder {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let mut shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        shapes.insert(name.to_string(), shape.dims().to_vec());
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(candle_core::Error::CannotFindTensor { path: name.to_string() })
    }

    fn contains_tensor(&self, _: &str) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> ParamStore {
        ParamStore::new(3, DType::F32, &Device::Cpu)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn initial_values_do_not_depend_on_the_order_of_creation() {
        let (forward, backward) = (store(), store());
        let names = ["a.weight", "b.weight"];
        for name in names {
            forward.builder().get_with_hints((4, 3, 3, 3), name, init::TORCH_CONV).unwrap();
        }
        for name in names.iter().rev() {
            backward.builder().get_with_hints((4, 3, 3, 3), name, init::TORCH_CONV).unwrap();
        }
        for (first, second) in forward.parameters().iter().zip(backward.parameters()) {
            assert_eq!(first.name, second.name);
            assert_eq!(values(&first.var), values(&second.var));
        }
        let [a, b] = forward.parameters().try_into().unwrap();
        assert_ne!(values(&a.var), values(&b.var));
    }

    #[test]
    fn conventional_bounds_and_deviations_are_those_of_pytorch() {
        let builder = store().builder();
        // fan_in = 32·9 = 288, bound 1/√288; fan_out = 64·9 = 576, deviation √(2/576).
        let uniform = values(&builder.get_with_hints((64, 32, 3, 3), "u", init::TORCH_CONV).unwrap());
        let bound = 1.0 / 288f32.sqrt();
        let extreme = uniform.iter().fold(0f32, |extreme, value| extreme.max(value.abs()));
        assert!(extreme <= bound && extreme > 0.99 * bound, "{extreme} against {bound}");
        let normal = values(&builder.get_with_hints((64, 32, 3, 3), "n", init::KAIMING_FAN_OUT).unwrap());
        let deviation = (normal.iter().map(|value| value * value).sum::<f32>() / normal.len() as f32).sqrt();
        assert!((deviation / (2f32 / 576.0).sqrt() - 1.0).abs() < 0.02, "{deviation}");
    }

    #[test]
    fn running_statistics_are_buffers_and_only_matrices_decay() {
        let store = store();
        let builder = store.builder();
        builder.get((2, 2), "fc.weight").unwrap();
        builder.get(2, "bn.weight").unwrap();
        builder.get(2, "bn.running_mean").unwrap();
        builder.get(2, "bn.running_var").unwrap();
        let decays: Vec<_> = store.parameters().into_iter().map(|p| (p.name, p.decay)).collect();
        assert_eq!(decays, [("bn.weight".to_string(), false), ("fc.weight".to_string(), true)]);
        let buffers: Vec<_> = store.buffers().into_iter().map(|(name, tensor)| (name, tensor.track_op())).collect();
        assert_eq!(buffers, [("bn.running_mean".to_string(), false), ("bn.running_var".to_string(), false)]);
        assert_eq!(store.parameter_count(), 6);
    }

    #[test]
    fn the_same_name_is_the_same_tensor_and_another_shape_is_refused() {
        let store = store();
        let first = store.builder().get(3, "w").unwrap();
        assert_eq!(first.id(), store.builder().get(3, "w").unwrap().id());
        assert!(store.builder().get(4, "w").is_err());
    }

    #[test]
    fn apply_lists_everything_that_does_not_fit_and_then_changes_nothing() {
        let store = store();
        for name in ["a", "b", "c"] {
            store.builder().get(2, name).unwrap();
        }
        let ones = |count: usize| Tensor::ones(count, DType::F32, &Device::Cpu).unwrap();
        let wrong = BTreeMap::from([("a".into(), ones(2)), ("b".into(), ones(5)), ("z".into(), ones(1))]);
        let message = store.apply(&wrong).unwrap_err().to_string();
        for part in ["b has shape [5], expected [2]", "1 missing: c", "1 unexpected: z"] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(values(&store.tensors()["a"]), [0.0, 0.0]);
    }

    #[test]
    fn a_frozen_twin_sees_later_updates_and_has_no_graph() {
        let store = store();
        store.builder().get(2, "w").unwrap();
        store.builder().get(2, "running_mean").unwrap();
        let frozen = store.frozen_builder();
        let (weight, mean) = (frozen.get(2, "w").unwrap(), frozen.get(2, "running_mean").unwrap());
        let seven = Tensor::new(&[7f32, 7.0], &Device::Cpu).unwrap();
        store.apply(&BTreeMap::from([("w".into(), seven.clone()), ("running_mean".into(), seven)])).unwrap();
        assert_eq!(values(&weight), [7.0, 7.0]);
        assert_eq!(values(&mean), [7.0, 7.0]);
        assert!(!weight.track_op());
        assert!(frozen.get(2, "other").is_err());
        // Its own tensors are views of the targets.
        store.apply(&store.tensors()).unwrap();
        assert_eq!(values(&weight), [7.0, 7.0]);
    }
}
