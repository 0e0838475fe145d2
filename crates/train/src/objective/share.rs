//! What each term does to the gradient: its share of the norm, and weights that follow from a share.
//!
//! share_i = w_i ‖g_i‖ / Σ_j w_j ‖g_j‖, g_i the gradient of term i alone. Where every term acts on logits, g is taken at
//! the logits (main and auxiliary head together): the losses run once more on logits that are cut off from the network,
//! and the network is not gone through. A term on features never reaches the logits, so with one of those g is taken at
//! the student's parameters, with one backward pass per term. Neither changes the step.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use dsd_models::{Output, Parameter};
use dsd_ops::backward;

use super::companions::cut;
use super::{Objective, Progress, TermLoss};
use crate::optimiser::gradient_norm;
use crate::recipe::{ShareAt, Term};
use crate::{Error, Result};

const BALANCE: &str = "balance.";
/// How much of the old weight stays in a measurement after the first ones.
const MEMORY: f64 = 0.9;
/// A term below this share does nothing.
const INERT: f64 = 0.001;
/// A term above this share leaves the others nothing.
const DOMINATING: f64 = 0.9;
/// Measurements before a warning.
const ENOUGH: usize = 3;

impl Objective {
    /// ‖g‖ of each term, before its weight.
    pub(super) fn gradient_norms(
        &self,
        at: Progress,
        terms: &[TermLoss],
        student: &Output,
        teacher: Option<&Output>,
        labels: &Tensor,
        parameters: &[Parameter],
    ) -> Result<Vec<f64>> {
        let reaches_logits = self.terms.iter().all(|(_, term)| term.loss.layers().is_none());
        let place = self.options.share_at.unwrap_or(if reaches_logits { ShareAt::Logits } else { ShareAt::Parameters });
        match place {
            ShareAt::Parameters => terms
                .iter()
                .map(|term| {
                    let gradients = backward(&term.loss)?;
                    gradient_norm(parameters.iter().filter_map(|parameter| gradients.get(parameter.var.as_tensor())))
                })
                .collect(),
            ShareAt::Logits => {
                let logits = cut(&student.logits)?;
                let aux_logits = student.aux_logits.as_ref().map(cut).transpose()?;
                let mut output = student.clone();
                output.logits = logits.as_tensor().clone();
                output.aux_logits = aux_logits.as_ref().map(|var| var.as_tensor().clone());
                for feature in &mut output.features {
                    feature.tensor = feature.tensor.detach();
                }
                let leaves: Vec<&Tensor> =
                    std::iter::once(&logits).chain(&aux_logits).map(|var| var.as_tensor()).collect();
                self.terms(at, &output, teacher, labels)?
                    .iter()
                    .map(|term| {
                        let gradients = backward(&term.loss)?;
                        gradient_norm(leaves.iter().filter_map(|leaf| gradients.get(leaf)))
                    })
                    .collect()
            }
        }
    }
}

/// Each term's share; empty where the norms are not finite or all 0.
pub(super) fn shares(terms: &[TermLoss], norms: &[f64]) -> BTreeMap<String, f64> {
    let parts: Vec<f64> = terms.iter().zip(norms).map(|(term, norm)| term.weight * norm).collect();
    let total: f64 = parts.iter().sum();
    if !(total.is_finite() && total > 0.0) {
        return BTreeMap::new();
    }
    terms.iter().zip(parts).map(|(term, part)| (term.name.clone(), part / total)).collect()
}

/// Weights that hold terms at their stated shares.
#[derive(Clone, Debug, Default)]
pub(super) struct Balancer {
    /// By term: the logarithm of the weight, and how often it was measured.
    weights: BTreeMap<String, (f64, f64)>,
}

impl Balancer {
    /// The weight of a term, once it was measured.
    pub(super) fn weight(&self, name: &str) -> Option<f64> {
        self.weights.get(name).map(|(logarithm, _)| logarithm.exp())
    }

    /// Follows one measurement.
    ///
    /// Terms without a stated share keep their weights and hold what is left: with R their part and S the stated shares
    /// together, the whole is R / (1 − S), and w_i = share_i · R / (1 − S) / ‖g_i‖. The logarithms of the first `first`
    /// measurements are averaged, later ones come in with a tenth.
    pub(super) fn update(&mut self, all: &[(String, Term)], terms: &[TermLoss], norms: &[f64], first: u64) {
        let stated = |name: &str| all.iter().find(|(own, _)| own == name).and_then(|(_, term)| term.share);
        let measured = || terms.iter().zip(norms);
        let rest: f64 = measured().filter(|(t, _)| stated(&t.name).is_none()).map(|(t, norm)| t.weight * norm).sum();
        let taken: f64 = measured().filter_map(|(term, _)| stated(&term.name)).sum();
        if !(rest.is_finite() && rest > 0.0 && taken < 1.0) {
            return;
        }
        let whole = rest / (1.0 - taken);
        for (term, norm) in measured() {
            let Some(share) = stated(&term.name) else { continue };
            let logarithm = (share * whole / norm).ln();
            if !logarithm.is_finite() {
                continue;
            }
            let (kept, count) = self.weights.entry(term.name.clone()).or_insert((logarithm, 0.0));
            let new = if *count < first as f64 { 1.0 / (*count + 1.0) } else { 1.0 - MEMORY };
            *kept += new * (logarithm - *kept);
            *count += 1.0;
        }
    }

    pub(super) fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let tensor = |(name, (logarithm, count)): (&String, &(f64, f64))| {
            Ok((format!("{BALANCE}{name}"), Tensor::new(&[*logarithm, *count], &Device::Cpu)?))
        };
        self.weights.iter().map(tensor).collect()
    }

    pub(super) fn restore(&mut self, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        self.weights.clear();
        for (key, tensor) in saved {
            let Some(name) = key.strip_prefix(BALANCE) else { continue };
            match tensor.to_vec1::<f64>()?.as_slice() {
                [logarithm, count] => self.weights.insert(name.to_string(), (*logarithm, *count)),
                _ => {
                    return Err(Error::Setting(format!(
                        "{key} of the checkpoint is {:?}, expected [2]",
                        tensor.shape()
                    )));
                }
            };
        }
        Ok(())
    }
}

/// Looks at shares as they are measured and names a term that does nothing or everything, once each.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen: BTreeMap<String, Vec<f64>>,
    warned: BTreeSet<String>,
}

impl Watch {
    /// The warnings that the newest measurement gives cause for.
    pub(crate) fn look(&mut self, shares: &BTreeMap<String, f64>) -> Vec<String> {
        let mut warnings = Vec::new();
        for (name, share) in shares {
            let seen = self.seen.entry(name.clone()).or_default();
            seen.push(*share);
            if seen.len() < ENOUGH || self.warned.contains(name) {
                continue;
            }
            if let Some(warning) = verdict(name, median(seen)) {
                self.warned.insert(name.clone());
                warnings.push(warning);
            }
        }
        warnings
    }
}

/// What is to be said about a term that holds this share (the median of several measurements).
pub(crate) fn verdict(name: &str, share: f64) -> Option<String> {
    let percent = 100.0 * share;
    if share < INERT {
        Some(format!("the term {name} holds {percent:.3} % of the gradient: it does nothing at this weight"))
    } else if share > DOMINATING {
        Some(format!("the term {name} holds {percent:.1} % of the gradient: the other terms do next to nothing"))
    } else {
        None
    }
}

/// The middle of at least one number.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Loss, Preset};

    fn term(name: &str, weight: f64) -> TermLoss {
        TermLoss {
            name: name.to_string(),
            weight,
            loss: Tensor::zeros((), candle_core::DType::F32, &Device::Cpu).unwrap(),
        }
    }

    #[test]
    fn stated_shares_are_reached_whatever_the_norms_are() {
        let csd = Loss::Csd { preset: Preset::PaperReading, temperature: None };
        let all = vec![
            ("cross_entropy".to_string(), Term::new(1.0, Loss::CrossEntropy {})),
            ("csd".to_string(), Term { share: Some(0.3), ..Term::new(1.0, csd) }),
        ];
        let mut balancer = Balancer::default();
        assert_eq!(balancer.weight("csd"), None);
        let mut terms = vec![term("cross_entropy", 1.0), term("csd", 1.0)];
        balancer.update(&all, &terms, &[2.0, 1e-4], 20);
        terms[1].weight = balancer.weight("csd").unwrap();
        let found = shares(&terms, &[2.0, 1e-4]);
        assert!((found["csd"] - 0.3).abs() < 1e-12, "{found:?}");
        // A second measurement is averaged in the logarithm: the weight is the geometric mean.
        let once = balancer.weight("csd").unwrap();
        balancer.update(&all, &terms, &[2.0, 4e-4], 20);
        assert!((balancer.weight("csd").unwrap() / (once / 2.0) - 1.0).abs() < 1e-12);
        // Norms that say nothing change nothing.
        let before = balancer.weight("csd");
        balancer.update(&all, &terms, &[f64::NAN, 1.0], 20);
        balancer.update(&all, &terms, &[1.0, 0.0], 20);
        assert_eq!(balancer.weight("csd"), before);
        let mut restored = Balancer::default();
        restored.restore(&balancer.tensors().unwrap()).unwrap();
        assert_eq!(restored.weights, balancer.weights);
    }

    #[test]
    fn a_term_that_does_nothing_and_one_that_does_everything_are_named_once() {
        let mut watch = Watch::default();
        let shares = BTreeMap::from([("cross_entropy".to_string(), 0.9995), ("psd".to_string(), 0.0005)]);
        assert!(watch.look(&shares).is_empty() && watch.look(&shares).is_empty());
        let warnings = watch.look(&shares);
        assert!(warnings[0].contains("cross_entropy holds 100.0 %") || warnings[0].contains("99.9"), "{warnings:?}");
        assert!(warnings[1].contains("psd holds 0.050 %"), "{warnings:?}");
        assert!(watch.look(&shares).is_empty());
    }
}
