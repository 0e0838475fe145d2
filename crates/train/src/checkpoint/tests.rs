//! What checkpoints promise: bit-equal on return, damage noticed, and after a failure of any file operation, a kill or a
//! loss of power the checkpoint before or the new one.

#![allow(clippy::print_stdout, reason = "tests print how many cases they tried, for `cargo xtask reliability`")]

use std::fs;

use dsd_random::Stream;

use super::memory::{Fault, Memory, Operation, power_states};
use super::*;

const FOLDER: &str = "run/teacher/checkpoints";

fn checkpoint(step: u64, value: f32) -> Checkpoint {
    let tensor = Tensor::from_vec(vec![value, 2.0, 3.0], 3, &Device::Cpu).unwrap();
    let state = State { step, updates: step, best: Some((step, 0.1 + 0.2)), ..State::default() };
    Checkpoint::new(state)
        .with("model", BTreeMap::from([("weight".to_string(), tensor.clone())]))
        .with("optimiser", BTreeMap::from([("weight.velocity".to_string(), tensor)]))
}

/// Step and the number that tells checkpoints of one step apart.
fn identity(checkpoint: &Checkpoint) -> (u64, f32) {
    let value = |section: &str, name: &str| checkpoint.section(section).unwrap()[name].to_vec1::<f32>().unwrap()[0];
    assert_eq!(value("model", "weight"), value("optimiser", "weight.velocity"), "a mixture of two checkpoints");
    (checkpoint.state.step, value("model", "weight"))
}

fn newest(files: &Memory) -> Option<(u64, f32)> {
    load_newest_from(files, Path::new(FOLDER)).unwrap().0.as_ref().map(identity)
}

fn flip(path: &Path, bit: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[bit / 8] ^= 1 << (bit % 8);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_checkpoint_comes_back_bit_equal_and_only_the_last_two_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    for step in [10, 20, 30] {
        save(folder.path(), &checkpoint(step, step as f32)).unwrap();
    }
    let names: Vec<String> = list(&Disk, folder.path()).unwrap().iter().map(|name| name.text()).collect();
    assert_eq!(names, ["step-00000020", "step-00000030"]);
    let (loaded, skipped) = load_newest(folder.path()).unwrap();
    let loaded = loaded.unwrap();
    assert!(skipped.is_empty());
    assert_eq!(loaded.state, checkpoint(30, 30.0).state);
    assert_eq!(identity(&loaded), (30, 30.0));
    let message = loaded.section("memory").unwrap_err().to_string();
    assert!(message.contains("model, optimiser, no memory"), "{message}");
}

#[test]
fn damage_is_named_and_the_checkpoint_before_is_used() {
    for file in ["model.safetensors", "optimiser.safetensors", "state.json", "manifest.json"] {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), &checkpoint(10, 1.0)).unwrap();
        save(folder.path(), &checkpoint(20, 2.0)).unwrap();
        let path = folder.path().join("step-00000020").join(file);
        flip(&path, 4 * fs::read(&path).unwrap().len());
        let (loaded, skipped) = load_newest(folder.path()).unwrap();
        assert_eq!(loaded.unwrap().state.step, 10, "{file}");
        assert_eq!(skipped.len(), 1);
        assert!(skipped[0].contains("step-00000020") && skipped[0].contains(file), "{skipped:?}");
        // The stage goes on and writes the step again: the damaged one makes room.
        save(folder.path(), &checkpoint(20, 3.0)).unwrap();
        assert_eq!(identity(&load_newest(folder.path()).unwrap().0.unwrap()), (20, 3.0));
    }
}

#[test]
fn later_checkpoints_that_are_damaged_do_not_push_out_a_good_one() {
    let folder = tempfile::tempdir().unwrap();
    for step in [10, 30] {
        save(folder.path(), &checkpoint(step, 1.0)).unwrap();
    }
    fs::rename(folder.path().join("step-00000030"), folder.path().join("step-00000050")).unwrap();
    for name in ["step-00000040", "step-00000050"] {
        fs::create_dir_all(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("manifest.json"), "{}").unwrap();
    }
    save(folder.path(), &checkpoint(20, 2.0)).unwrap();
    assert_eq!(load_newest(folder.path()).unwrap().0.unwrap().state.step, 20);
    assert_eq!(list(&Disk, folder.path()).unwrap().len(), 2);
}

#[test]
fn a_thousand_flipped_bits_and_every_cut_of_the_manifest_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &checkpoint(10, 1.0)).unwrap();
    let whole = folder.path().join("step-00000010");
    let files = ["model.safetensors", "optimiser.safetensors", "state.json", "manifest.json"];
    let mut stream = Stream::new(7, "flips", 0, 0);
    let mut flips = 0;
    let deep = std::env::var_os("DSD_DEEP").is_some();
    for _ in 0..if deep { 2500 } else { 250 } {
        for file in files {
            let path = whole.join(file);
            let bit = stream.below(8 * fs::read(&path).unwrap().len());
            flip(&path, bit);
            let message = load(&whole).expect_err(&format!("{file}, bit {bit}: not noticed")).to_string();
            assert!(message.contains("step-00000010"), "{message}");
            flip(&path, bit);
            flips += 1;
        }
    }
    let manifest = fs::read(whole.join("manifest.json")).unwrap();
    for length in 0..manifest.len() {
        fs::write(whole.join("manifest.json"), &manifest[..length]).unwrap();
        assert!(load(&whole).is_err(), "manifest cut after {length} bytes");
    }
    fs::write(whole.join("manifest.json"), &manifest).unwrap();
    load(&whole).unwrap();
    assert_eq!(flips, if deep { 10_000 } else { 1000 });
    println!("figure C4 flipped_bits {flips}");
    println!("figure C4 cuts_of_the_manifest {}", manifest.len());
}

#[test]
fn an_unfinished_checkpoint_is_not_seen_and_none_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(load_newest(folder.path()).unwrap().0.is_none());
    for stray in ["step-00000010.tmp", "step-1", "step-", "step-00000010.bak"] {
        fs::create_dir(folder.path().join(stray)).unwrap();
    }
    assert!(load_newest(folder.path()).unwrap().0.is_none());
    save(folder.path(), &checkpoint(10, 1.0)).unwrap();
    assert_eq!(load_newest(folder.path()).unwrap().0.unwrap().state.step, 10);
}

/// What lies in the folder, the checkpoint that is saved then.
fn scenarios() -> [(&'static str, Vec<Checkpoint>, Checkpoint); 4] {
    [
        ("the first", vec![], checkpoint(10, 1.0)),
        ("the second", vec![checkpoint(10, 1.0)], checkpoint(20, 2.0)),
        ("one that pushes out the oldest", vec![checkpoint(10, 1.0), checkpoint(20, 2.0)], checkpoint(30, 3.0)),
        ("the only one again with other content", vec![checkpoint(10, 1.0)], checkpoint(10, 2.0)),
    ]
}

fn prepared(before: &[Checkpoint]) -> (Memory, Option<(u64, f32)>) {
    let files = Memory::default();
    for checkpoint in before {
        save_to(&files, Path::new(FOLDER), checkpoint).unwrap();
    }
    files.forget();
    let newest = newest(&files);
    assert_eq!(newest, before.last().map(identity));
    (files, newest)
}

#[test]
fn after_any_failing_operation_there_is_the_old_or_the_new_checkpoint() {
    let mut cases = 0;
    for (name, before, next) in scenarios() {
        for fault in [Fault::Crash, Fault::Error, Fault::Full, Fault::Short] {
            for at in 0.. {
                let (files, old) = prepared(&before);
                files.fail(at, fault);
                let saved = save_to(&files, Path::new(FOLDER), &next);
                if !files.failed() {
                    saved.unwrap();
                    assert!(at > 8, "{name}: only {at} operations");
                    break;
                }
                files.mend();
                let found = newest(&files);
                assert!(found == old || found == Some(identity(&next)), "{name}, {fault:?} at {at}: {found:?}");
                // The next save succeeds and leaves nothing behind.
                save_to(&files, Path::new(FOLDER), &next).unwrap();
                assert_eq!(newest(&files), Some(identity(&next)), "{name}, {fault:?} at {at}");
                let names = files.names(Path::new(FOLDER)).unwrap();
                assert!(names.len() <= KEPT && names.iter().all(|name| name.len() == 13), "{name}: {names:?}");
                cases += 1;
            }
        }
    }
    assert!(cases >= 190, "{cases} cases");
    println!("figure C2 failing_operations {cases} crash, error, full disk, short write in four situations");
}

#[test]
fn after_a_loss_of_power_at_any_moment_there_is_the_old_or_the_new_checkpoint() {
    let mut states = 0;
    for (name, before, next) in scenarios() {
        let (files, old) = prepared(&before);
        let start = files.copy();
        save_to(&files, Path::new(FOLDER), &next).unwrap();
        let operations = files.operations();
        for (state, described) in power_states(&start, &operations) {
            let (found, _) = load_newest_from(&state, Path::new(FOLDER))
                .unwrap_or_else(|error| panic!("{name}, {described}: {error}"));
            let found = found.as_ref().map(identity);
            assert!(found == old || found == Some(identity(&next)), "{name}, {described}: {found:?}");
            states += 1;
        }
        assert!(matches!(operations[0], Operation::MakeFolder(_)));
    }
    assert!(states >= 1000, "{states} states");
    println!("figure C3 states_after_a_loss_of_power {states}");
}
