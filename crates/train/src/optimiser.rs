//! SGD and AdamW over the ordered parameters of a network, with state that can be saved.
//!
//! The arithmetic is `dsd_kernels::optimiser`, one pass over parameter, gradient and state; PyTorch's conventions, equal
//! to `torch.optim` (tests/reference/optimiser.py).

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Device, InplaceOp2, Layout, Shape, Tensor, Var};
use dsd_kernels::optimiser::{AdamW, Sgd, adamw_step, sgd_step, sum_of_squares};
use dsd_models::Parameter;

use crate::{Error, Result, recipe};

/// An optimiser with its state.
#[derive(Debug)]
pub struct Optimiser {
    settings: recipe::Optimiser,
    slots: Vec<Slot>,
    updates: u64,
}

#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    decay: bool,
    /// On the learning rate.
    factor: f64,
    /// Velocity (SGD) or first moment (AdamW).
    first: Vec<f32>,
    /// Second moment; empty for SGD.
    second: Vec<f32>,
}

impl Optimiser {
    /// An optimiser for these parameters, in this order; their names are different.
    #[must_use]
    pub fn new(settings: recipe::Optimiser, parameters: Vec<Parameter>) -> Self {
        let adam = matches!(settings, recipe::Optimiser::Adamw { .. });
        let slots = parameters
            .into_iter()
            .map(|Parameter { name, var, decay, .. }| {
                let count = var.as_tensor().elem_count();
                Slot {
                    name,
                    var,
                    decay,
                    factor: 1.0,
                    first: vec![0.0; count],
                    second: if adam { vec![0.0; count] } else { Vec::new() },
                }
            })
            .collect();
        Self { settings, slots, updates: 0 }
    }

    /// The same with the learning rate of all parameters whose names begin with `prefix` multiplied by `factor`.
    #[must_use]
    pub fn with_factor_below(mut self, prefix: &str, factor: f64) -> Self {
        for slot in self.slots.iter_mut().filter(|slot| slot.name.starts_with(prefix)) {
            slot.factor = factor;
        }
        self
    }

    /// The learning rate before the schedule's factor.
    #[must_use]
    pub fn base_rate(&self) -> f64 {
        match self.settings {
            recipe::Optimiser::Sgd { learning_rate, .. } | recipe::Optimiser::Adamw { learning_rate, .. } => {
                learning_rate
            }
        }
    }

    /// Updates made so far.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// One update of every parameter that has a gradient.
    ///
    /// # Errors
    /// [`Error::GradientNorm`] where the gradient's norm is not finite; nothing is changed then.
    pub fn step(&mut self, gradients: &GradStore, learning_rate: f64) -> Result<()> {
        let scale = self.clip_factor(gradients)?;
        self.updates += 1;
        for slot in &mut self.slots {
            let Some(gradient) = gradients.get(slot.var.as_tensor()) else { continue };
            let mut gradient = gradient.contiguous()?;
            if scale < 1.0 {
                gradient = (gradient * scale)?;
            }
            let update = Update {
                settings: self.settings,
                decay: slot.decay,
                learning_rate: learning_rate * slot.factor,
                updates: self.updates,
                state: Mutex::new((std::mem::take(&mut slot.first), std::mem::take(&mut slot.second))),
            };
            let done = slot.var.as_tensor().inplace_op2(&gradient, &update);
            (slot.first, slot.second) = update.state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            done?;
        }
        Ok(())
    }

    /// The Euclidean norm over all parameters.
    ///
    /// # Errors
    /// candle's.
    pub fn gradient_norm(&self, gradients: &GradStore) -> Result<f64> {
        gradient_norm(self.slots.iter().filter_map(|slot| gradients.get(slot.var.as_tensor())))
    }

    /// Which gradients are not finite, in words.
    ///
    /// # Errors
    /// candle's.
    pub fn not_finite(&self, gradients: &GradStore) -> Result<String> {
        let mut names = Vec::new();
        for slot in &self.slots {
            let Some(gradient) = gradients.get(slot.var.as_tensor()) else { continue };
            if !dsd_models::is_finite(gradient)? {
                names.push(slot.name.as_str());
            }
        }
        let first = names.first().copied().unwrap_or("none");
        Ok(format!("{} of {} gradients are not finite, {first} among them", names.len(), self.slots.len()))
    }

    /// min(1, clip / norm) over all gradients.
    fn clip_factor(&self, gradients: &GradStore) -> Result<f64> {
        let (recipe::Optimiser::Sgd { clip_norm, .. } | recipe::Optimiser::Adamw { clip_norm, .. }) = self.settings;
        let norm = self.gradient_norm(gradients)?;
        if !norm.is_finite() {
            return Err(Error::GradientNorm { norm });
        }
        let Some(limit) = clip_norm else { return Ok(1.0) };
        Ok((limit / (norm + 1e-6)).min(1.0))
    }

    /// The state by name: `NAME.first` and `NAME.second`.
    ///
    /// # Errors
    /// candle's.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for slot in &self.slots {
            for (part, values) in [("first", &slot.first), ("second", &slot.second)] {
                if !values.is_empty() {
                    let tensor = Tensor::from_slice(values, slot.var.as_tensor().shape(), &Device::Cpu)?;
                    tensors.insert(format!("{}.{part}", slot.name), tensor);
                }
            }
        }
        Ok(tensors)
    }

    /// Takes over a saved state; everything is checked before anything is changed.
    ///
    /// # Errors
    /// [`Error::Setting`] naming a tensor that is missing or has another size.
    pub fn restore(&mut self, tensors: &BTreeMap<String, Tensor>, updates: u64) -> Result<()> {
        let mut states = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let part = |part: &str, expected: usize| -> Result<Vec<f32>> {
                let name = format!("{}.{part}", slot.name);
                if expected == 0 {
                    return Ok(Vec::new());
                }
                let tensor = tensors
                    .get(&name)
                    .ok_or_else(|| Error::Setting(format!("the saved optimiser state has no {name}")))?;
                let values = tensor.flatten_all()?.to_vec1::<f32>()?;
                if values.len() == expected {
                    Ok(values)
                } else {
                    let got = values.len();
                    Err(Error::Setting(format!(
                        "the saved optimiser state {name} has {got} elements, expected {expected}"
                    )))
                }
            };
            states.push((part("first", slot.first.len())?, part("second", slot.second.len())?));
        }
        for (slot, (first, second)) in self.slots.iter_mut().zip(states) {
            (slot.first, slot.second) = (first, second);
        }
        self.updates = updates;
        Ok(())
    }
}

/// The Euclidean norm of all gradients together, summed in f64.
///
/// # Errors
/// candle's.
pub fn gradient_norm<'a>(gradients: impl Iterator<Item = &'a Tensor>) -> Result<f64> {
    let mut sum = 0.0;
    for gradient in gradients {
        sum += gradient.contiguous()?.apply_op1_no_bwd(&SumOfSquares)?.to_scalar::<f64>()?;
    }
    Ok(sum.sqrt())
}

/// One parameter's update in place; the state lives outside the tensors.
struct Update {
    settings: recipe::Optimiser,
    decay: bool,
    learning_rate: f64,
    updates: u64,
    state: Mutex<(Vec<f32>, Vec<f32>)>,
}

impl InplaceOp2 for Update {
    fn name(&self) -> &'static str {
        "optimiser-update"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        to: &Layout,
        gradient: &CpuStorage,
        from: &Layout,
    ) -> candle_core::Result<()> {
        let strided = || candle_core::Error::Msg("optimiser: a parameter or its gradient is strided".to_string());
        let (start, end) = to.contiguous_offsets().ok_or_else(strided)?;
        let CpuStorage::F32(parameter) = parameter else {
            return Err(candle_core::Error::Msg("optimiser: parameters are f32".to_string()));
        };
        let parameter = &mut parameter[start..end];
        let (start, end) = from.contiguous_offsets().ok_or_else(strided)?;
        let gradient = &gradient.as_slice::<f32>()?[start..end];
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (first, second) = &mut *state;
        let done = match self.settings {
            recipe::Optimiser::Sgd { momentum, nesterov, weight_decay, decay_all, .. } => {
                let weight_decay = if self.decay || decay_all { weight_decay } else { 0.0 };
                let settings = Sgd { learning_rate: self.learning_rate, momentum, nesterov, weight_decay };
                sgd_step(parameter, gradient, first, settings, self.updates == 1)
            }
            recipe::Optimiser::Adamw { betas, eps, weight_decay, decay_all, .. } => {
                let weight_decay = if self.decay || decay_all { weight_decay } else { 0.0 };
                let settings =
                    AdamW { learning_rate: self.learning_rate, beta1: betas[0], beta2: betas[1], eps, weight_decay };
                adamw_step(parameter, gradient, first, second, self.updates, settings)
            }
        };
        done.map_err(candle_core::Error::wrap)
    }
}

/// Σ x² in f64, as a scalar.
struct SumOfSquares;

impl CustomOp1 for SumOfSquares {
    fn name(&self) -> &'static str {
        "sum-of-squares"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (start, end) = layout
            .contiguous_offsets()
            .ok_or_else(|| candle_core::Error::Msg("sum of squares: a gradient is strided".to_string()))?;
        let sum = match storage {
            CpuStorage::F32(values) => sum_of_squares(&values[start..end]),
            CpuStorage::F64(values) => sum_of_squares(&values[start..end]),
            _ => return Err(candle_core::Error::Msg("sum of squares: expected f32 or f64".to_string())),
        };
        Ok((CpuStorage::F64(vec![sum]), Shape::from(())))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use dsd_models::ParamStore;

    use super::*;

    #[test]
    fn a_factor_slows_what_lies_below_its_prefix_and_nothing_else() -> Result<()> {
        let store = ParamStore::new(1, DType::F32, &Device::Cpu);
        for name in ["backbone.w", "backbones.w", "decoder.backbone.w"] {
            store.builder().get(2, name)?;
        }
        let settings = recipe::Optimiser::Sgd {
            learning_rate: 1.0,
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
            decay_all: true,
            clip_norm: None,
        };
        let mut optimiser = Optimiser::new(settings, store.parameters()).with_factor_below("backbone.", 0.25);
        let sum = store.parameters().iter().map(|p| p.var.sum_all()).reduce(|a, b| a? + b?);
        let gradients = sum.unwrap()?.backward()?;
        optimiser.step(&gradients, 0.5)?;
        let moved: Vec<f32> = store
            .parameters()
            .iter()
            .map(|p| p.var.to_vec1::<f32>().map(|values| values[0]))
            .collect::<candle_core::Result<_>>()?;
        assert_eq!(moved, [-0.125, -0.5, -0.5]);
        Ok(())
    }
}
