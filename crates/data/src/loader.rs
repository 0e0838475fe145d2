//! Endless, deterministic batches with worker threads and bounded prefetch.
//!
//! The run is one long sequence of samples: epoch after epoch, each epoch a permutation of the dataset. Batch k is the
//! samples at positions k·B to (k+1)·B − 1, so a batch may span two epochs and no sample is left out. Position p
//! belongs to epoch p / len and is sample `order(epoch)[p mod len]`, augmented by the stream of (seed, epoch, sample).
//! Nothing depends on threads or on where the sequence was entered. Worker w of W makes batches w, w + W, w + 2W, …
//! and the caller takes them in turn.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use dsd_random::Stream;

use crate::{Augmentation, Dataset, Error, Result, Sample};

/// A batch of augmented examples.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Normalised images `[N,3,H,W]`.
    pub images: Vec<f32>,
    /// Train ids `[N,H,W]`, 255 ignored.
    pub labels: Vec<u8>,
    /// N, examples in the batch.
    pub count: usize,
    /// H in pixels.
    pub height: usize,
    /// W in pixels.
    pub width: usize,
    /// The samples' names, in order.
    pub names: Vec<String>,
}

/// Settings of a [`Loader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Examples in a batch, ≥ 1. May exceed the dataset's length.
    pub batch_size: usize,
    /// Seed of the order and of the augmentation.
    pub seed: u64,
    /// Worker threads; 0 makes each batch in the caller's thread.
    pub workers: usize,
    /// Batches made ahead of the caller by all workers together, ≥ 1 where there are workers.
    pub prefetch: usize,
    /// The first batch to deliver: the number of steps already done when a run is resumed.
    pub first_step: u64,
}

impl Default for LoaderOptions {
    /// Batches of 8, seed 0, one worker, 4 batches ahead, from the start.
    fn default() -> Self {
        Self { batch_size: 8, seed: 0, workers: 1, prefetch: 4, first_step: 0 }
    }
}

/// The order of the samples in an epoch: a permutation of `0..count`, a function of (seed, epoch) alone.
#[must_use]
pub fn epoch_order(seed: u64, epoch: u64, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    Stream::new(seed, "order", epoch, 0).shuffle(&mut order);
    order
}

/// Endless batches of a dataset. Dropping it ends its threads.
///
/// A sample that cannot be read is an `Err` in the place of its batch, naming the file; the next call goes on with the
/// next batch, so that the caller decides whether to stop.
pub struct Loader {
    /// Makes batches in the caller's thread where there are no workers.
    maker: BatchMaker,
    workers: Vec<Worker>,
    next: u64,
    first: u64,
}

struct Worker {
    batches: Receiver<Result<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts the worker threads.
    ///
    /// # Errors
    /// Param for an empty dataset, a batch size or prefetch of 0, or a setting of the augmentation out of its range;
    /// `LoaderStopped` where the system gives no thread.
    pub fn new(dataset: Arc<dyn Dataset>, augmentation: Arc<Augmentation>, options: LoaderOptions) -> Result<Self> {
        augmentation.check()?;
        if dataset.is_empty() {
            return Err(Error::param("dataset", "is empty"));
        }
        if options.batch_size == 0 {
            return Err(Error::param("batch_size", "expected at least 1, got 0"));
        }
        if options.workers > 0 && options.prefetch == 0 {
            return Err(Error::param("prefetch", "expected at least 1, got 0"));
        }
        let samples_before = options.first_step.checked_mul(options.batch_size as u64);
        if samples_before.is_none_or(|count| count > u64::MAX / 2) {
            return Err(Error::param("first_step", format!("{} is out of range", options.first_step)));
        }
        let maker = BatchMaker { dataset, augmentation, options, order: None };
        let workers = (0..options.workers).map(|worker| start(maker.clone(), worker)).collect::<Result<_>>()?;
        Ok(Self { maker, workers, next: options.first_step, first: options.first_step })
    }
}

fn start(mut maker: BatchMaker, worker: usize) -> Result<Worker> {
    let options = maker.options;
    // One finished batch waits in the thread's hand while the channel is full.
    let waiting = (options.prefetch / options.workers).saturating_sub(1);
    let (sender, batches): (SyncSender<Result<Batch>>, _) = sync_channel(waiting);
    let mut step = options.first_step.saturating_add(worker as u64);
    let body = move || {
        while sender.send(maker.batch(step)).is_ok() {
            step += options.workers as u64;
        }
    };
    let thread = std::thread::Builder::new().name(format!("dsd-loader-{worker}")).spawn(body);
    Ok(Worker { batches, thread: Some(thread.map_err(|_| Error::LoaderStopped)?) })
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.next;
        self.next += 1;
        if self.workers.is_empty() {
            return Some(self.maker.batch(step));
        }
        let turn = (step - self.first) as usize % self.workers.len();
        let batch = self.workers.get(turn).and_then(|worker| worker.batches.recv().ok());
        Some(batch.unwrap_or(Err(Error::LoaderStopped)))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Closing the channels first lets every thread's next send fail, whatever it is doing now.
        let threads: Vec<_> = self.workers.drain(..).filter_map(|worker| worker.thread).collect();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// Makes any batch of the run.
#[derive(Clone)]
struct BatchMaker {
    dataset: Arc<dyn Dataset>,
    augmentation: Arc<Augmentation>,
    options: LoaderOptions,
    /// The last epoch's order, kept because neighbouring batches share it.
    order: Option<(u64, Vec<usize>)>,
}

impl BatchMaker {
    fn batch(&mut self, step: u64) -> Result<Batch> {
        let [height, width] = self.augmentation.crop;
        let count = self.options.batch_size;
        let mut batch = Batch {
            images: Vec::with_capacity(count * 3 * height * width),
            labels: Vec::with_capacity(count * height * width),
            count,
            height,
            width,
            names: Vec::with_capacity(count),
        };
        let samples = self.dataset.len() as u64;
        let first = step.saturating_mul(count as u64);
        for position in first..first + count as u64 {
            let (epoch, place) = (position / samples, position % samples);
            let index = self.order(epoch)[place as usize];
            let sample = self.sample(index)?;
            let mut stream = Stream::new(self.options.seed, "augment", epoch, index as u64);
            let (image, labels) = self.augmentation.apply(&sample, &mut stream)?;
            batch.images.extend_from_slice(&image);
            batch.labels.extend_from_slice(&labels);
            batch.names.push(sample.name);
        }
        Ok(batch)
    }

    fn order(&mut self, epoch: u64) -> &[usize] {
        if self.order.as_ref().is_none_or(|(known, _)| *known != epoch) {
            self.order = Some((epoch, epoch_order(self.options.seed, epoch, self.dataset.len())));
        }
        self.order.as_ref().map_or(&[], |(_, order)| order)
    }

    /// A sample whose decoder panics is an error that names it, like any other bad sample.
    fn sample(&self, index: usize) -> Result<Sample> {
        let read = catch_unwind(AssertUnwindSafe(|| self.dataset.sample(index)));
        read.unwrap_or_else(|_| {
            Err(Error::file(self.dataset.name(index), "its decoder broke off; the file is damaged, replace it"))
        })
    }
}
