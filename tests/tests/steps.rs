//! What a step is: gradients of several batches, the moving average of weights, and steps that are not finite.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::Tensor;
use dsd_train::checkpoint::{self, Checkpoint};

use crate::program::{TINY, json, refuse, succeed, train};

fn saved(run: &Path, role: &str, step: u64) -> Checkpoint {
    checkpoint::load(&run.join(role).join("checkpoints").join(format!("step-{step:08}"))).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares `found` with a combination of two sets of tensors, element by element, relative to the largest element.
fn assert_combined(
    found: &BTreeMap<String, Tensor>,
    a: (f32, &BTreeMap<String, Tensor>),
    b: (f32, &BTreeMap<String, Tensor>),
) {
    assert!(found.len() > 50 && found.keys().eq(a.1.keys()));
    for (name, tensor) in found {
        let (one, other) = (values(&a.1[name]), values(&b.1[name]));
        let expected: Vec<f32> = one.iter().zip(&other).map(|(x, y)| a.0 * x + b.0 * y).collect();
        let scale = expected.iter().fold(0f32, |scale, value| scale.max(value.abs()));
        for (got, expected) in values(tensor).iter().zip(&expected) {
            assert!((got - expected).abs() <= 1e-5 * scale, "{name}: {got} instead of {expected}, scale {scale}");
        }
    }
}

/// Steps that leave the weights where they are, so that two of them see what one of two batches sees; the velocity of
/// the first step is its gradient, that of the second adds half of it.
const STILL: [&str; 4] = [
    "student.optimiser={kind=\"sgd\",learning_rate=1e-38,momentum=0.5,weight_decay=0.0}",
    "run.checkpoint_every=1",
    "run.log_every=1",
    "distillation=[]",
];

/// The baseline's total at each logged step.
fn losses(run: &Path) -> Vec<f64> {
    let log = fs::read_to_string(run.join("log.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|line| line["role"] == "baseline").filter_map(|line| line["total"].as_f64()).collect()
}

#[test]
fn a_step_of_two_batches_has_the_mean_of_their_losses_and_gradients() {
    let folder = tempfile::tempdir().unwrap();
    let (single, double) = (folder.path().join("single"), folder.path().join("double"));
    succeed(&mut train(&single, &[&TINY, &STILL]));
    succeed(&mut train(&double, &[&TINY, &STILL, &["student.steps=1", "student.accumulate=2"]]));

    let velocity = |run: &Path, step: u64| saved(run, "baseline", step).section("optimiser").unwrap().clone();
    let (first, second) = (velocity(&single, 1), velocity(&single, 2));
    // (g₁ + g₂) / 2 = v₁ / 2 + (v₂ − v₁ / 2) / 2.
    assert_combined(&velocity(&double, 1), (0.25, &first), (0.5, &second));

    let (two, one) = (losses(&single), losses(&double));
    assert_eq!((two.len(), one.len()), (2, 1));
    assert!((one[0] - (two[0] + two[1]) / 2.0).abs() <= 1e-6 * one[0], "{one:?} instead of the mean of {two:?}");
}

#[test]
fn the_moving_average_is_what_is_evaluated_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let set = ["student.ema=0.75", "run.checkpoint_every=1", "evaluation.every=2", "distillation=[]"];
    succeed(&mut train(&run, &[&TINY, &set]));
    let (first, second) = (saved(&run, "baseline", 1), saved(&run, "baseline", 2));
    let weights = |checkpoint: &Checkpoint| checkpoint.section("model").unwrap().clone();
    let average = second.section("average").unwrap();
    // The first update begins it.
    assert_combined(average, (0.75, &weights(&first)), (0.25, &weights(&second)));
    let best = dsd_models::load(&run.join("baseline").join("best")).unwrap();
    assert!(best.tensors.keys().eq(average.keys()));
    for (name, tensor) in average {
        assert_eq!(values(tensor), values(&best.tensors[name]), "{name}");
    }
    assert!(saved(&run, "teacher", 2).section("average").is_err(), "an average that nobody asked for");
    refuse(&mut train(&folder.path().join("other"), &[&TINY, &["student.ema=1.0"]]), &["student.ema is 1", "below 1"]);
    refuse(&mut train(&folder.path().join("other"), &[&TINY, &["student.accumulate=0"]]), &["student.accumulate is 0"]);
}

#[test]
fn a_step_that_is_not_finite_is_skipped_where_the_recipe_says_so_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (one, three) = (folder.path().join("one"), folder.path().join("three"));
    // The first update throws the weights far away; no later step is finite.
    let set = ["teacher.optimiser.learning_rate=1e30", "teacher.ema=0.5", "run.on_not_finite=skip", "distillation=[]"];
    let (quiet, rhythm) = (["DSD_LOG", "off"], ["run.log_every=1", "teacher.schedule={power=0.0,warmup_steps=0}"]);
    for (run, steps) in [(&one, "teacher.steps=1"), (&three, "teacher.steps=3")] {
        succeed(train(run, &[&TINY, &set, &rhythm, &[steps]]).env(quiet[0], quiet[1]));
    }
    let bytes = |run: &Path, step: u64, file: &str| {
        fs::read(run.join(format!("teacher/checkpoints/step-{step:08}/{file}"))).unwrap()
    };
    for file in ["model.safetensors", "optimiser.safetensors", "average.safetensors"] {
        assert!(bytes(&one, 1, file) == bytes(&three, 3, file), "{file} differs");
    }
    let state = json(&three.join("teacher/checkpoints/step-00000003/state.json"));
    assert_eq!((&state["step"], &state["updates"], &state["skipped"]), (&3.into(), &1.into(), &2.into()));
    let log = fs::read_to_string(three.join("log.jsonl")).unwrap();
    let skipped: Vec<&str> = log.lines().filter(|line| line.contains("\"event\":\"skipped\"")).collect();
    assert_eq!(skipped.len(), 2, "{log}");
    for line in skipped {
        assert!(line.contains("\"term\":\"cross_entropy\"") && line.contains("that of "), "{line}");
    }
}

#[test]
fn measuring_shares_of_the_gradient_changes_no_weight() {
    // With features the shares are taken at the parameters, with logits alone at the logits.
    let at_logits = "distillation=[{ term = 'csd', weight = 10, preset = 'paper_reading' }]";
    for terms in [&[][..], &[at_logits]] {
        let folder = tempfile::tempdir().unwrap();
        let [never, always] = ["0", "1"].map(|every| {
            let run = folder.path().join(every);
            let every = format!("objective.share_every={every}");
            succeed(&mut train(&run, &[&TINY, terms, &[every.as_str()]]));
            run
        });
        let read = |run: &Path, file: &str| fs::read(run.join(file)).unwrap();
        for role in ["teacher", "baseline", "distilled"] {
            let file = format!("{role}/best/model.safetensors");
            assert!(read(&never, &file) == read(&always, &file), "{file} differs, terms {terms:?}");
        }
        let measured = |run: &Path| String::from_utf8(read(run, "log.jsonl")).unwrap().contains("\"shares\"");
        assert_eq!((measured(&never), measured(&always)), (false, true), "terms {terms:?}");
    }
}

#[test]
fn exact_convolutions_round_otherwise_and_mean_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let [fast, exact] = ["fast", "exact"].map(|name| folder.path().join(name));
    succeed(&mut train(&fast, &[&TINY, &STILL]));
    succeed(&mut train(&exact, &[&TINY, &STILL, &["run.exact=true"]]));
    let [of_fast, of_exact] = [&fast, &exact].map(|run| losses(run));
    assert!(!of_fast.is_empty() && of_fast.len() == of_exact.len());
    assert!(of_fast.iter().zip(&of_exact).all(|(a, b)| (a - b).abs() <= 1e-4 * b), "{of_fast:?} {of_exact:?}");
    let [fast, exact] = [&fast, &exact].map(|run| saved(run, "baseline", 1).section("optimiser").unwrap().clone());
    assert!(fast.iter().any(|(name, tensor)| values(tensor) != values(&exact[name])), "the switch does nothing");
}
