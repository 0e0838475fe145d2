//! The order and content of batches follow from seed and step alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use dsd_data::{
    Augmentation, Batch, Dataset, Error, Loader, LoaderOptions, Normalisation, OpenOptions, Result, Sample, ScaleRange,
    epoch_order, open,
};

use crate::message;

fn streets(count: usize) -> Arc<dyn Dataset> {
    open("streets", None, "train", &OpenOptions { seed: 5, count, size: Some([24, 32]), ..OpenOptions::default() })
        .expect("opens")
}

fn augmentation() -> Arc<Augmentation> {
    let scale = ScaleRange { min: 0.5, max: 2.0, step: None };
    let plain = Augmentation::none([20, 20], Normalisation::IMAGENET);
    Arc::new(Augmentation { scale, flip: 0.5, brightness: 0.3, contrast: 0.3, saturation: 0.3, ..plain })
}

fn batches(options: LoaderOptions, count: usize) -> Vec<Batch> {
    let loader = Loader::new(streets(7), augmentation(), options).expect("starts");
    loader.take(count).collect::<Result<_>>().expect("every batch is good")
}

#[test]
fn an_epochs_order_is_a_permutation_of_its_own() {
    let seeds = if std::env::var_os("DSD_DEEP").is_some() { 1000 } else { 3 };
    for seed in 0..seeds {
        let orders: Vec<Vec<usize>> = (0..3).map(|epoch| epoch_order(seed, epoch, 50)).collect();
        for order in &orders {
            assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), (0..50).collect());
        }
        assert_ne!(orders[0], orders[1]);
        assert_eq!(orders[2], epoch_order(seed, 2, 50));
    }
    assert_ne!(epoch_order(0, 0, 50), epoch_order(1, 0, 50));
    println!("figure D2 seeds {seeds} with three epochs each");
}

#[test]
fn batches_do_not_depend_on_workers_or_on_where_the_run_was_resumed() {
    let base = LoaderOptions { batch_size: 3, seed: 9, workers: 0, prefetch: 4, first_step: 0 };
    let truth = batches(base, 8);
    for workers in [1, 2, 3] {
        for prefetch in [1, 4] {
            assert_eq!(batches(LoaderOptions { workers, prefetch, ..base }, 8), truth, "{workers} workers");
        }
    }
    for first_step in [1, 5] {
        let resumed = batches(LoaderOptions { workers: 2, first_step, ..base }, 3);
        assert_eq!(resumed, truth[first_step as usize..first_step as usize + 3]);
    }
    assert_ne!(batches(LoaderOptions { seed: 10, ..base }, 1)[0], truth[0]);
}

#[test]
fn every_sample_comes_once_an_epoch_though_batches_span_epochs() {
    let names: Vec<String> = batches(LoaderOptions { batch_size: 3, workers: 0, ..LoaderOptions::default() }, 7)
        .into_iter()
        .flat_map(|batch| batch.names)
        .collect();
    assert_eq!(names.len(), 21);
    for epoch in names.chunks(7) {
        assert_eq!(epoch.iter().collect::<BTreeSet<_>>().len(), 7, "{epoch:?}");
    }
}

#[test]
fn a_dropped_loader_ends_its_threads() {
    let dataset = streets(7);
    for taken in 0..3 {
        let options = LoaderOptions { workers: 2, prefetch: 2, ..LoaderOptions::default() };
        let loader = Loader::new(Arc::clone(&dataset), augmentation(), options).expect("starts");
        assert_eq!(loader.take(taken).filter(Result::is_ok).count(), taken);
    }
    assert_eq!(Arc::strong_count(&dataset), 1, "a thread still holds the dataset");
}

/// Fails or panics at one sample.
struct Broken(Arc<dyn Dataset>, bool);

impl Dataset for Broken {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn classes(&self) -> &dsd_data::Classes {
        self.0.classes()
    }
    fn sample(&self, index: usize) -> Result<Sample> {
        match (index, self.1) {
            (4, true) => panic!("a decoder's bug"),
            (4, false) => Err(Error::Index { index, count: 0 }),
            _ => self.0.sample(index),
        }
    }
    fn name(&self, index: usize) -> String {
        self.0.name(index)
    }
}

#[test]
fn a_bad_sample_is_an_error_in_its_batch_and_the_rest_goes_on() {
    for panics in [false, true] {
        for workers in [0, 2] {
            let options = LoaderOptions { batch_size: 1, workers, ..LoaderOptions::default() };
            let dataset = Arc::new(Broken(streets(7), panics));
            let results: Vec<_> = Loader::new(dataset, augmentation(), options).expect("starts").take(14).collect();
            let failures: Vec<&Error> = results.iter().filter_map(|result| result.as_ref().err()).collect();
            assert_eq!(failures.len(), 2, "once an epoch");
            let expected = if panics { "train-00004" } else { "sample 4" };
            assert!(failures[0].to_string().contains(expected), "{}", failures[0]);
        }
    }
}

#[test]
fn impossible_settings_are_named() {
    let start = |options| Loader::new(streets(3), augmentation(), options).map(|_| ());
    let base = LoaderOptions::default();
    assert!(message(start(LoaderOptions { batch_size: 0, ..base })).starts_with("batch_size"));
    assert!(message(start(LoaderOptions { prefetch: 0, ..base })).starts_with("prefetch"));
    assert!(message(start(LoaderOptions { first_step: u64::MAX, ..base })).starts_with("first_step"));
}
