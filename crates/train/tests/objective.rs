//! The objective on made outputs of two networks that agree in nothing but the classes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must stop")]

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use dsd_models::{Feature, Output};
use dsd_random::Stream;
use dsd_similarity as similarity;
use dsd_train::Result;
use dsd_train::objective::{Objective, Progress};
use dsd_train::recipe::{Balance, ClassWeights, Loss, ObjectiveOptions, Preset, ShareAt, Task, Term};

const CLASSES: usize = 5;
const IGNORE: u8 = 255;

fn normal(name: &str, shape: &[usize]) -> Tensor {
    let mut stream = Stream::new(7, name, 0, 0);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| stream.normal() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The output of a network with logits of this size and two features of these channels at half and quarter of it.
fn output(name: &str, size: [usize; 2], channels: [usize; 2]) -> (Output, Vec<Var>) {
    let [h, w] = size;
    let shapes = [("shallow", [2, channels[0], h / 2, w / 2]), ("deep", [2, channels[1], h / 4, w / 4])];
    let mut vars = vec![Var::from_tensor(&normal(name, &[2, CLASSES, h, w])).unwrap()];
    let mut features = Vec::new();
    for (feature, shape) in shapes {
        let var = Var::from_tensor(&normal(&format!("{name}.{feature}"), &shape).abs().unwrap()).unwrap();
        features.push(Feature::new(feature, 8, var.as_tensor().clone()));
        vars.push(var);
    }
    (Output { logits: vars[0].as_tensor().clone(), aux_logits: None, features }, vars)
}

fn student() -> (Output, Vec<Var>) {
    output("student", [16, 24], [6, 10])
}

fn teacher() -> Output {
    output("teacher", [20, 32], [12, 16]).0
}

fn labels() -> Tensor {
    let mut stream = Stream::new(7, "labels", 0, 0);
    let ids = (0..2 * 32 * 48).map(|_| if stream.chance(0.1) { IGNORE } else { stream.below(CLASSES) as u8 }).collect();
    Tensor::from_vec(ids, (2, 32, 48), &Device::Cpu).unwrap()
}

fn at(step: u64) -> Progress {
    Progress { seed: 3, step, steps: 10 }
}

fn term(text: &str) -> Term {
    toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

const LAYERS: &str = "student = [\"shallow\", \"deep\"]\nteacher = [\"shallow\", \"deep\"]\n";

/// Every loss that a recipe can name.
fn every_term() -> Vec<Term> {
    let plain = [
        "cross_entropy",
        "ohem_cross_entropy\"\nthreshold = 0.7\nminimum = { share = 0.25 }\n#\"",
        "focal\"\ngamma = 2.0\n#\"",
        "dice\"\nsmoothing = 1.0\nsquared = false\nclasses = \"present\"\nscope = \"batch\"\n#\"",
        "lovasz_softmax\"\nclasses = \"present\"\nscope = \"image\"\n#\"",
        "ssl",
        "pixel_kd\"\ntemperature = 2.0\n#\"",
        "pixel_kd\"\ntemperature = 2.0\nclass_weighted = true\n#\"",
        "csd\"\npreset = \"paper_reading\"\n#\"",
        "channel_kd",
        "dist_kd",
        "adversarial\"\ncritic = \"tiny\"\n#\"",
        "ssl_distillation",
    ];
    let layered = [
        "psd\"\npreset = \"paper_reading\"\npairs = \"all\"\n#\"",
        "attention_transfer",
        "fitnet",
        "channel_kd",
        "pairwise_kd\"\nwindow = { pixels = [2, 2] }\n#\"",
        "ifvd",
        "cross_image_kd",
        "memory_contrast\"\npixel_capacity = 64\nregion_capacity = 16\n#\"",
    ];
    let of = |name: &str, layers: &str| term(&format!("weight = 0.5\n{layers}term = \"{name}\"\n"));
    plain.iter().map(|name| of(name, "")).chain(layered.iter().map(|name| of(name, LAYERS))).collect()
}

fn objective(options: ObjectiveOptions, terms: &[Term]) -> Objective {
    let task =
        Task { aux_weight: 0.0, class_weights: ClassWeights::Enet, terms: vec![Term::new(1.0, Loss::CrossEntropy {})] };
    let weights = vec![1.0, 2.0, 0.5, 1.0, 3.0];
    let mut objective = Objective::new(&task, options, Some(weights), IGNORE, terms);
    objective.prepare(3, &student().0, Some(&teacher())).unwrap();
    objective
}

fn values(objective: &mut Objective, step: u64) -> BTreeMap<String, f32> {
    let evaluation = objective.evaluate(at(step), &student().0, Some(&teacher()), &labels(), &[]).unwrap();
    evaluation.terms.iter().map(|term| (term.name.clone(), term.loss.to_scalar::<f32>().unwrap())).collect()
}

#[test]
fn every_loss_runs_between_networks_that_differ_in_channels_size_and_depth_and_reaches_the_student() {
    for term in every_term() {
        let mut objective = objective(ObjectiveOptions::default(), std::slice::from_ref(&term));
        let (output, vars) = student();
        let evaluation = objective.evaluate(at(1), &output, Some(&teacher()), &labels(), &[]).unwrap();
        let own = evaluation.terms.last().unwrap();
        assert!(own.name.starts_with(term.name()) && own.weight == 0.5, "{own:?}");
        let gradients = own.loss.backward().unwrap();
        let reached = |var: &Var| {
            gradients.get(var.as_tensor()).is_some_and(|gradient| {
                let size = gradient.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(size.is_finite(), "{}: {size}", own.name);
                size > 0.0
            })
        };
        let reaches: Vec<bool> = vars.iter().map(reached).collect();
        assert_eq!(
            reaches,
            if term.loss.layers().is_some() { [false, true, true] } else { [true, false, false] },
            "{}",
            own.name
        );
    }
}

#[test]
fn the_recipe_s_loss_is_the_function_s() -> Result<()> {
    let (own, other) = (student().0, teacher());
    let layers = |output: &Output| output.features.iter().map(|feature| feature.tensor.clone()).collect::<Vec<_>>();
    let valid = labels().ne(IGNORE)?;
    let expected = [
        similarity::psd(&layers(&own), &layers(&other), Some(&valid), similarity::Psd::paper_reading())?,
        similarity::csd(&own.logits, &other.logits, Some(&valid), similarity::Csd::paper_reading())?,
        similarity::dist_kd(&own.logits, &other.logits, Some(&valid), similarity::DistKd::published())?,
    ];
    let terms = [
        Term::new(2.0, term(&format!("term = \"psd\"\nweight = 1\npreset = \"paper_reading\"\n{LAYERS}")).loss),
        Term::new(3.0, Loss::Csd { preset: Preset::PaperReading, temperature: None }),
        Term::new(4.0, Loss::DistKd(similarity::DistKd::published())),
    ];
    let found = values(&mut objective(ObjectiveOptions::default(), &terms), 0);
    for (name, expected) in ["psd", "csd", "dist_kd"].iter().zip(expected) {
        assert_eq!(found[*name], expected.to_scalar::<f32>()?, "{name}");
    }
    Ok(())
}

#[test]
fn measuring_shares_changes_no_term_and_shares_add_up_to_one() {
    let terms = every_term();
    let never = ObjectiveOptions { share_every: 0, ..ObjectiveOptions::default() };
    let plain = values(&mut objective(never, &terms), 0);
    let on_logits: Vec<Term> = terms.into_iter().filter(|term| term.loss.layers().is_none()).collect();
    let (output, vars) = student();
    for place in [ShareAt::Logits, ShareAt::Parameters] {
        let options = ObjectiveOptions { share_every: 1, share_at: Some(place), ..ObjectiveOptions::default() };
        let mut watched = objective(options, &on_logits);
        // The logits as the only parameter: both places are the same then.
        let parameter = dsd_models::Parameter { name: "logits".to_string(), var: vars[0].clone(), decay: true };
        let evaluation = watched.evaluate(at(0), &output, Some(&teacher()), &labels(), &[parameter]).unwrap();
        let sum: f64 = evaluation.shares.values().sum();
        assert!(
            (sum - 1.0).abs() < 1e-9 && evaluation.shares.len() == evaluation.terms.len(),
            "{:?}",
            evaluation.shares
        );
        for term in &evaluation.terms {
            assert_eq!(term.loss.to_scalar::<f32>().unwrap(), plain[&term.name], "{}", term.name);
        }
        // The same norms by hand.
        let norms = evaluation.terms.iter().map(|term| {
            let gradient = term.loss.backward().unwrap().remove(vars[0].as_tensor()).unwrap();
            f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt()) * term.weight
        });
        let norms: Vec<f64> = norms.collect();
        let total: f64 = norms.iter().sum();
        for (term, norm) in evaluation.terms.iter().zip(norms) {
            let (found, expected) = (evaluation.shares[&term.name], norm / total);
            assert!(
                (found - expected).abs() < 1e-4 * (expected + 1e-3),
                "{place:?} {}: {found}, {expected}",
                term.name
            );
        }
    }
}

#[test]
fn a_balanced_term_holds_its_share_from_the_first_step() {
    let options = ObjectiveOptions { balance: Balance::Share, ..ObjectiveOptions::default() };
    let csd = Loss::Csd { preset: Preset::PaperReading, temperature: None };
    let terms = [
        Term { share: Some(0.25), ..Term::new(1.0, csd) },
        Term { share: Some(0.5), ..Term::new(1.0, Loss::DistKd(similarity::DistKd::published())) },
    ];
    let mut balanced = objective(options, &terms);
    let evaluation = balanced.evaluate(at(0), &student().0, Some(&teacher()), &labels(), &[]).unwrap();
    for (name, share) in [("csd", 0.25), ("dist_kd", 0.5), ("cross_entropy", 0.25)] {
        assert!((evaluation.shares[name] - share).abs() < 1e-9, "{:?}", evaluation.shares);
    }
    assert_eq!(evaluation.terms[0].weight, 1.0);
}

#[test]
fn an_objective_that_was_saved_goes_on_to_the_bit() {
    let options = ObjectiveOptions { balance: Balance::Share, balance_steps: 2, ..ObjectiveOptions::default() };
    let mut terms = every_term();
    let csd = Loss::Csd { preset: Preset::PaperReading, temperature: None };
    terms.push(Term { share: Some(0.25), ..Term::new(1.0, csd) });
    let mut first = objective(options, &terms);
    // Adaptors differ from their first values too.
    for parameter in first.parameters() {
        parameter.var.set(&(parameter.var.as_tensor() * 1.5).unwrap()).unwrap();
    }
    let go_on = |objective: &mut Objective, step: u64| {
        let found = values(objective, step);
        objective.finish(at(step), &student().0, Some(&teacher()), &labels()).unwrap();
        found
    };
    let start = go_on(&mut first, 0);
    let saved: BTreeMap<String, Tensor> =
        first.tensors().unwrap().into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap())).collect();
    let mut second = objective(options, &terms);
    second.restore(&saved).unwrap();
    let expected = go_on(&mut first, 1);
    assert_eq!(go_on(&mut second, 1), expected);
    // What has a state has changed by it.
    for name in ["memory_contrast", "adversarial"] {
        assert_ne!(start[name], expected[name], "{name}");
    }
    let (first, second) = (first.tensors().unwrap(), second.tensors().unwrap());
    assert!(first.keys().eq(second.keys()));
    for (name, tensor) in &first {
        let bits =
            |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!(bits(tensor) == bits(&second[name]), "{name}");
    }
    let mut less = saved.clone();
    less.retain(|name, _| !name.ends_with("pixels.embeddings"));
    let message = objective(options, &terms).restore(&less).unwrap_err().to_string();
    assert!(message.contains("memory.memory_contrast.0.pixels.embeddings"), "{message}");
}
