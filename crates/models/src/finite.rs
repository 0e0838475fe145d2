//! Which layer of a network is the first whose output is not a number: a forward pass that looks at every layer.

use std::cell::RefCell;

use candle_core::{DType, Tensor};

use crate::{Mode, Result, Segmenter};

thread_local! {
    /// The first layer that was found, while this thread looks.
    static FOUND: RefCell<Option<Option<String>>> = const { RefCell::new(None) };
}

/// The path of the first convolution or normalisation, in the order of computation, whose output has an infinite
/// element or one that is not a number; else the name of the first such feature. `None`: all is finite.
///
/// In training mode the pass moves running statistics like any other.
///
/// # Errors
/// Those of the network.
pub fn first_not_finite(network: &dyn Segmenter, images: &Tensor, mode: Mode) -> Result<Option<String>> {
    let looking = Looking::start();
    let output = network.forward(images, mode)?;
    if let Some(layer) = looking.found() {
        return Ok(Some(layer));
    }
    for feature in &output.features {
        if !is_finite(&feature.tensor)? {
            return Ok(Some(feature.name.clone()));
        }
    }
    Ok(None)
}

/// Whether every element is finite.
///
/// # Errors
/// candle's.
pub fn is_finite(tensor: &Tensor) -> Result<bool> {
    let values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    Ok(values.iter().all(|value| value.is_finite()))
}

/// Looks at a layer's output where this thread looks.
pub(crate) fn look(layer: &str, output: &Tensor) -> Result<()> {
    if FOUND.with_borrow(|found| *found == Some(None)) && !is_finite(output)? {
        FOUND.set(Some(Some(layer.to_string())));
    }
    Ok(())
}

/// While it lives, this thread looks.
struct Looking;

impl Looking {
    fn start() -> Self {
        FOUND.set(Some(None));
        Self
    }

    fn found(&self) -> Option<String> {
        FOUND.with_borrow(|found| found.clone().flatten())
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        FOUND.set(None);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{ParamStore, build, variant};

    #[test]
    fn the_first_layer_is_named_by_its_path_and_none_where_all_is_finite() {
        let config = variant("enet").unwrap();
        let store = ParamStore::new(1, DType::F32, &Device::Cpu);
        let network = build(&config, 3, store.builder()).unwrap();
        let images = Tensor::ones((1, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(first_not_finite(network.as_ref(), &images, Mode::Eval).unwrap(), None);
        // Two convolutions are spoilt: the one that is computed first is named.
        let mut tensors = store.tensors();
        let convolutions: Vec<String> = store
            .parameters()
            .into_iter()
            .filter(|parameter| parameter.decay && parameter.name.ends_with("weight"))
            .map(|parameter| parameter.name)
            .collect();
        let spoilt = [&convolutions[0], &convolutions[convolutions.len() / 2]];
        for name in spoilt {
            let infinite = (tensors[name].ones_like().unwrap() * f64::INFINITY).unwrap();
            tensors.insert(name.clone(), infinite);
        }
        store.apply(&tensors).unwrap();
        let layer = first_not_finite(network.as_ref(), &images, Mode::Eval).unwrap().unwrap();
        assert!(spoilt.contains(&&format!("{layer}.weight")), "{layer} instead of one of {spoilt:?}");
        assert!(FOUND.with_borrow(Option::is_none), "the thread still looks");
    }
}
