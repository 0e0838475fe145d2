//! Generated scenes are deterministic and have the class shares of real ones.

use dsd_data::{IGNORE, OpenOptions, open};

use crate::message;

#[test]
fn scenes_are_a_function_of_seed_split_and_index() {
    let options = OpenOptions { seed: 3, count: 6, size: Some([60, 80]), ..OpenOptions::default() };
    let open_split =
        |split: &str, seed| open("streets", None, split, &OpenOptions { seed, ..options.clone() }).expect("opens");
    let (first, second) = (open_split("train", 3), open_split("train", 3));
    for index in [5, 0, 3] {
        let sample = first.sample(index).expect("generates");
        assert_eq!(sample, second.sample(index).expect("generates"));
        assert_eq!(sample.image.pixels.len(), 60 * 80 * 3);
        assert!(sample.labels.ids.iter().all(|&id| id < 11 || id == IGNORE));
    }
    let base = first.sample(0).expect("generates");
    assert_ne!(base.image, first.sample(1).expect("generates").image);
    assert_ne!(base.image, open_split("val", 3).sample(0).expect("generates").image);
    assert_ne!(base.image, open_split("train", 4).sample(0).expect("generates").image);
    assert!(message(first.sample(6)).contains("sample 6 was asked for, but the dataset has 6"));
}

#[test]
fn class_shares_resemble_camvids() {
    let dataset = open("streets", None, "train", &OpenOptions { count: 120, ..OpenOptions::default() }).expect("opens");
    let mut counts = [0u64; 256];
    for index in 0..dataset.len() {
        dataset.sample(index).expect("generates").labels.ids.iter().for_each(|&id| counts[usize::from(id)] += 1);
    }
    let total: u64 = counts.iter().sum();
    // Lowest and highest share in percent, in the classes' order; the last row is void.
    let bounds = [
        (12.0, 25.0),
        (15.0, 30.0),
        (0.4, 2.0),
        (25.0, 38.0),
        (4.0, 12.0),
        (5.0, 16.0),
        (0.3, 1.5),
        (0.7, 3.0),
        (4.0, 12.0),
        (0.3, 1.5),
        (0.2, 1.2),
        (1.0, 5.0),
    ];
    for (index, (low, high)) in bounds.into_iter().enumerate() {
        let id = if index == 11 { usize::from(IGNORE) } else { index };
        let share = counts[id] as f64 * 100.0 / total as f64;
        assert!((low..=high).contains(&share), "id {id}: {share:.2} %, expected {low} to {high} %");
    }
}

#[test]
fn odd_sizes_work_and_impossible_ones_are_refused() {
    for size in [[16, 16], [17, 33], [97, 31]] {
        let options = OpenOptions { size: Some(size), count: 4, ..OpenOptions::default() };
        let dataset = open("streets", None, "val", &options).expect("opens");
        let sample = dataset.sample(3).expect("generates");
        assert_eq!([sample.labels.height, sample.labels.width], size);
    }
    let refused = |options: OpenOptions| message(open("streets", None, "train", &options).map(|_| ()));
    assert!(refused(OpenOptions { size: Some([0, 10]), ..OpenOptions::default() }).starts_with("size"));
    assert!(refused(OpenOptions { count: 0, ..OpenOptions::default() }).starts_with("count"));
}
