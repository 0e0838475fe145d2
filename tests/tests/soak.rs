//! A long run holds no more memory and no more open files than a short one.

#[cfg(target_os = "linux")]
#[test]
#[ignore = "minutes; started by `cargo xtask reliability --deep`"]
fn two_thousand_steps_hold_no_more_memory_and_files_than_the_first() {
    use std::fs;
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    use dsd_tests::cases;

    use crate::program::{TINY, train};

    let steps = cases(200, 2000);
    let folder = tempfile::tempdir().unwrap();
    let set = format!("teacher.steps={steps}");
    let more = [&*set, "evaluation.every=50", "run.checkpoint_every=20", "run.log_every=1", "run.workers=2"];
    let mut command = train(&folder.path().join("run"), &[&TINY, &more]);
    command.env("DSD_LOG", "dsd_train=trace").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let about = format!("/proc/{}", child.id());
    let (mut memory, mut open) = (Vec::new(), Vec::new());
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        if !line.unwrap().contains("teacher, step ") {
            continue;
        }
        // The program works on while it is looked at: a file may just be written, an allocation just be made.
        let pages = fs::read_to_string(format!("{about}/statm")).ok();
        if let Some(pages) = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok()) {
            memory.push(4 * pages);
            open.push(fs::read_dir(format!("{about}/fd")).map_or(0, Iterator::count) as u64);
        }
    }
    assert!(child.wait().unwrap().success());
    let seen = memory.len();
    assert!(seen as u64 >= steps / 2, "{seen} of {steps} steps were looked at");
    // After the first tenth, which fills what is kept for the next step.
    let median = |values: &[u64]| {
        let mut sorted = values.to_vec();
        sorted.sort_unstable();
        sorted[sorted.len() / 2]
    };
    let tenth = seen / 10;
    let (first, last) = (median(&memory[tenth..2 * tenth]), median(&memory[seen - tenth..]));
    let growth = last as f64 / first as f64 - 1.0;
    let (first_open, last_open) = (median(&open[tenth..2 * tenth]), median(&open[seen - tenth..]));
    assert_eq!(first_open, last_open, "open files");
    let percent = 100.0 * growth;
    assert!(growth <= 0.01, "memory grew by {percent:.2} % from {first} KiB");
    println!("figure S1 steps {steps} memory {percent:+.2} % from {first} KiB, {last_open} open files");
}
