//! Tests of the task losses.

mod extremes;
mod golden;
mod gradients;
mod properties;
mod reference;
mod refusals;

use candle_core::{Device, Tensor};
use dsd_random::{Stream, name_hash};
use dsd_similarity::{
    ClassSet, CrossEntropyOptions, Deviation, Dice, EntropyMean, Focal, Keep, LovaszSoftmax, Mining, Ohem, Padding,
    Probability, Result, Scope, Ssl, cross_entropy, dice, focal, lovasz_softmax, ohem_cross_entropy, ssl,
};

const IGNORED: u8 = 255;

/// Class ids with about the given share of ignored pixels.
fn labels(name: &str, shape: &[usize; 3], classes: usize, ignored: f64) -> Tensor {
    let mut stream = Stream::new(1, "task labels", 0, name_hash(name));
    let mut draw = || if stream.chance(ignored) { IGNORED } else { stream.below(classes) as u8 };
    let ids: Vec<u8> = (0..shape.iter().product()).map(|_| draw()).collect();
    Tensor::from_vec(ids, shape.as_slice(), &Device::Cpu).unwrap()
}

fn pixels(class_weights: Option<&[f64]>) -> CrossEntropyOptions<'_> {
    CrossEntropyOptions { ignore_label: IGNORED, class_weights }
}

const DICE: Dice = Dice { smoothing: 0.0, squared: false, classes: ClassSet::Present, scope: Scope::Batch };
const LOVASZ: LovaszSoftmax = LovaszSoftmax { classes: ClassSet::Present, scope: Scope::Batch };

/// A loss of logits and labels, and its name.
type Named = (String, Box<dyn Fn(&Tensor, &Tensor) -> Result<Tensor> + Sync>);

/// Every setting of the structural similarity loss that changes what is computed.
fn all_ssl() -> Vec<Ssl> {
    let base = Ssl::paper_reading();
    let deviations = Deviation::WindowOfDeviations;
    let mut all = vec![
        base,
        Ssl { window: 5, window_std: 0.8, ..base },
        Ssl { deviation: deviations, ..base },
        Ssl { deviation: Deviation::WholeMap, ..base },
        Ssl { padding: Padding::Zero, ..base },
        Ssl { padding: Padding::Zero, deviation: deviations, ..base },
        Ssl { padding: Padding::Valid, ..base },
        Ssl { mining: Mining::Map { share: 0.1 }, ..base },
        Ssl { mining: Mining::Bound { share: 0.05 }, ..base },
        Ssl { mining: Mining::Absolute { error: 0.3 }, ..base },
        Ssl { differentiate_error: false, ..base },
        Ssl { entropy_mean: EntropyMean::Elements, ..base },
        Ssl { lambda: 0.0, ..base },
        Ssl { lambda: 1.0, ..base },
    ];
    all.extend(all.clone().into_iter().map(|cfg| Ssl { probability: Probability::Softmax, ..cfg }));
    all
}

/// Every loss on logits and labels with every switch. `classes`: the number of classes.
fn all_losses(classes: usize) -> Vec<Named> {
    let weights: Vec<f64> = (0..classes).map(|class| 0.5 + 0.5 * class as f64).collect();
    let mut all: Vec<Named> = Vec::new();
    for class_weights in [None, Some(weights)] {
        let name = if class_weights.is_some() { "weighted " } else { "" };
        let own = class_weights.clone();
        let loss = move |z: &Tensor, l: &Tensor| cross_entropy(z, l, pixels(own.as_deref()));
        all.push((format!("{name}cross_entropy"), Box::new(loss)));
        for minimum in [Keep::Pixels(7), Keep::Share(0.5)] {
            let (own, cfg) = (class_weights.clone(), Ohem { threshold: 0.1, minimum });
            let loss = move |z: &Tensor, l: &Tensor| ohem_cross_entropy(z, l, pixels(own.as_deref()), cfg);
            all.push((format!("{name}{cfg:?}"), Box::new(loss)));
        }
        for gamma in [0.0, 0.5, 1.0, 2.0, 5.0] {
            let (own, cfg) = (class_weights.clone(), Focal { gamma });
            let loss = move |z: &Tensor, l: &Tensor| focal(z, l, pixels(own.as_deref()), cfg);
            all.push((format!("{name}{cfg:?}"), Box::new(loss)));
        }
    }
    for classes in [ClassSet::Present, ClassSet::All] {
        for scope in [Scope::Batch, Scope::Image] {
            for (smoothing, squared) in [(0.0, false), (1.0, false), (0.5, true)] {
                let cfg = Dice { smoothing, squared, classes, scope };
                all.push((format!("{cfg:?}"), Box::new(move |z, l| dice(z, l, IGNORED, cfg))));
            }
            let cfg = LovaszSoftmax { classes, scope };
            all.push((format!("{cfg:?}"), Box::new(move |z, l| lovasz_softmax(z, l, IGNORED, cfg))));
        }
    }
    for cfg in all_ssl() {
        all.push((format!("{cfg:?}"), Box::new(move |z, l| ssl(z, l, IGNORED, cfg))));
    }
    assert_eq!(all.len(), 2 * 8 + 4 * 4 + 28);
    all
}
