//! `cargo xtask reliability`: runs the tests behind docs/reliability.md, collects how many cases each tried, and writes
//! docs/reliability.json and the table of that page.
//!
//! A test says what it did in a line of its output, `figure ID NAME COUNT REMARK`; it fails where a case does. `--deep`
//! sets `DSD_DEEP`, which raises the counts.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A promise that is counted.
struct Figure {
    id: &'static str,
    name: &'static str,
    /// The whole name of the test that prints it.
    test: &'static str,
    /// The least count in every landing; none where it is tried in the deep tier only.
    landing: Option<u64>,
    /// The least count in the deep tier.
    deep: u64,
    /// What the cases are.
    cases: &'static str,
}

const fn figure(
    id: &'static str,
    name: &'static str,
    test: &'static str,
    landing: u64,
    deep: u64,
    cases: &'static str,
) -> Figure {
    Figure { id, name, test, landing: Some(landing), deep, cases }
}

const MUTANTS: &str = "mutants_of_every_format_are_read_or_refused_within_bounds";
const TARS: &str = "import::hostile_archives_are_refused_whole_and_nothing_is_written";
const LYING_TARS: &str = "import::tars_that_lie_are_refused_whole_and_nothing_is_written";
const FLIPS: &str = "checkpoint::tests::a_thousand_flipped_bits_and_every_cut_of_the_manifest_are_noticed";

const FIGURES: [Figure; 33] = [
    figure(
        "N1",
        "operation_rows",
        "gradients::every_gradient_equals_central_differences",
        894,
        894,
        "operations with settings and shapes whose gradients are compared with central differences in f64",
    ),
    figure(
        "N3",
        "operation_cases",
        "reference::values_and_gradients_equal_those_of_pytorch",
        123,
        123,
        "operations' values and gradients compared with PyTorch",
    ),
    figure(
        "N3",
        "dsd_cases",
        "reference::every_case_of_the_reference_file_agrees",
        36,
        36,
        "PSD, CSD and KD, the same",
    ),
    figure(
        "N3",
        "distillation_cases",
        "distillation::reference::values_and_gradients_equal_pytorch",
        98,
        98,
        "other distillation losses, the same",
    ),
    figure(
        "N3",
        "task_loss_cases",
        "task::reference::every_case_of_the_reference_file_agrees_in_f64_and_f32",
        80,
        80,
        "task losses, the same",
    ),
    figure("N3", "optimisers", "ten_steps_equal_pytorch", 6, 6, "optimisers' ten steps, the same"),
    figure(
        "N3",
        "networks",
        "equality::networks_are_equal_to_other_implementations",
        24,
        24,
        "networks with the weights of other implementations",
    ),
    figure(
        "N5",
        "random_label_maps",
        "ten_thousand_random_maps_are_counted_exactly_in_any_split",
        10_000,
        1_000_000,
        "random label maps counted by brute force, whole, in batches and merged",
    ),
    figure(
        "N5",
        "cityscapes_images",
        "evaluators::cityscapes_own_evaluator_gives_the_same_figures",
        6,
        6,
        "images scored by Cityscapes' own evaluator",
    ),
    figure(
        "C1",
        "kills",
        "crash::runs_killed_at_thirty_moments_end_with_the_bytes_of_one_that_was_not",
        30,
        300,
        "kills of a run, which then goes on",
    ),
    figure(
        "C2",
        "failing_operations",
        "checkpoint::tests::after_any_failing_operation_there_is_the_old_or_the_new_checkpoint",
        190,
        190,
        "file operations of a save that fail, each in every way",
    ),
    figure(
        "C3",
        "states_after_a_loss_of_power",
        "checkpoint::tests::after_a_loss_of_power_at_any_moment_there_is_the_old_or_the_new_checkpoint",
        1000,
        1000,
        "states of the disk after a loss of power during a save",
    ),
    figure("C4", "flipped_bits", FLIPS, 1000, 10_000, "flipped bits in a checkpoint"),
    figure("C4", "cuts_of_the_manifest", FLIPS, 300, 300, "lengths to which its manifest is cut"),
    figure(
        "D1",
        "runs_with_other_workers_and_threads",
        "crash::loader_workers_and_threads_change_no_byte",
        4,
        40,
        "runs with other numbers of loader workers and threads",
    ),
    figure(
        "D2",
        "seeds",
        "loading::an_epochs_order_is_a_permutation_of_its_own",
        3,
        1000,
        "seeds whose epochs are permutations",
    ),
    figure("F1", "mutants_archive", MUTANTS, 20_000, 200_000, "changed archives (zip, tar, tar.gz)"),
    figure("F1", "mutants_checkpoint", MUTANTS, 20_000, 200_000, "changed checkpoints, hashes made anew or not"),
    figure("F1", "mutants_classes", MUTANTS, 20_000, 200_000, "changed classes.toml"),
    figure("F1", "mutants_image", MUTANTS, 20_000, 200_000, "changed images (PNG, JPEG)"),
    figure("F1", "mutants_labels", MUTANTS, 20_000, 200_000, "changed label maps"),
    figure("F1", "mutants_list", MUTANTS, 20_000, 200_000, "changed split lists"),
    figure("F1", "mutants_manifest", MUTANTS, 20_000, 200_000, "changed dataset manifests"),
    figure("F1", "mutants_recipe", MUTANTS, 20_000, 200_000, "changed recipes"),
    figure("F1", "mutants_safetensors", MUTANTS, 20_000, 200_000, "changed safetensors files"),
    figure("F1", "mutants_torch", MUTANTS, 20_000, 200_000, "changed PyTorch checkpoints"),
    figure("F2", "corpus_files", MUTANTS, 30, 30, "files of the corpus"),
    figure(
        "W1",
        "misbehaviours",
        "downloads::what_misbehaves_is_survived_or_refused_and_never_gets_the_name",
        24,
        24,
        "ways in which a server misbehaves",
    ),
    figure(
        "W1",
        "corrupted_bodies",
        "downloads::a_body_with_a_wrong_byte_never_gets_the_name",
        1000,
        10_000,
        "downloads with a wrong byte",
    ),
    figure("W2", "drops", "downloads::drops_are_continued_and_little_is_sent_twice", 20, 20, "dropped connections"),
    figure("A1", "hostile_tar_entries", TARS, 13, 13, "tar archives with a forbidden entry"),
    figure("A1", "tars_that_lie", LYING_TARS, 11, 11, "tar archives that contradict themselves or exceed a limit"),
    figure(
        "A1",
        "hostile_zips",
        "zips::hostile_zips_are_refused_by_rule_and_nothing_is_written",
        25,
        25,
        "hostile zip archives",
    ),
];

/// The test programs that hold them, beside the unit tests of the libraries.
const TARGETS: [&str; 8] = ["confusion", "data", "dsd", "hostile", "networks", "operations", "optimiser", "similarity"];

/// Figures of the deep tier alone.
const SOAK: [Figure; 1] = [Figure {
    id: "S1",
    name: "steps",
    test: "soak::two_thousand_steps_hold_no_more_memory_and_files_than_the_first",
    landing: None,
    deep: 2000,
    cases: "steps of one run, memory and open files watched",
}];

fn figures() -> impl Iterator<Item = &'static Figure> {
    FIGURES.iter().chain(&SOAK)
}

/// What a test printed: the count and the remark, by ID and name.
type Found = BTreeMap<String, (u64, String)>;

/// Runs the tests of a tier and writes what they printed.
pub(crate) fn run(root: &Path, deep: bool, mut cargo: Command) -> Result<()> {
    let mut tests: Vec<&str> = figures().filter(|figure| deep || figure.landing.is_some()).map(|f| f.test).collect();
    tests.dedup();
    cargo.current_dir(root).args(["test", "--release", "--workspace", "--locked", "--lib"]);
    for target in TARGETS {
        cargo.args(["--test", target]);
    }
    cargo.args(["--", "--exact", "--nocapture", "--include-ignored"]).args(&tests).stdout(Stdio::piped());
    if deep {
        cargo.env("DSD_DEEP", "1");
    }
    // Now: what is edited while the tests run is not what they test.
    let commit = said("git", &["describe", "--always", "--dirty", "--abbrev=10"]);
    let started = Instant::now();
    let mut child = cargo.spawn().context("cannot start cargo")?;
    let mut found = Found::new();
    for line in BufReader::new(child.stdout.take().context("no output of cargo")?).lines() {
        let line = line?;
        if let Some((key, value)) = parse(&line) {
            println!("{key}: {} {}", value.0, value.1);
            found.insert(key, value);
        } else if line.contains("FAILED") || line.contains("panicked") {
            println!("{line}");
        }
    }
    if !child.wait()?.success() {
        bail!("a test failed; nothing was written");
    }
    let wanted = |figure: &Figure| if deep { Some(figure.deep) } else { figure.landing };
    let mut rows = serde_json::Map::new();
    for figure in figures() {
        let (Some(wanted), key) = (wanted(figure), key(figure)) else { continue };
        match found.get(&key) {
            None => bail!("{} printed no figure {key}", figure.test),
            Some((count, _)) if *count < wanted => bail!("{key}: {count} cases, expected at least {wanted}"),
            Some((count, remark)) => rows.insert(key, json!({ "count": count, "remark": remark })),
        };
    }
    let path = root.join(LEDGER);
    let mut ledger = if path.exists() { read(&path)? } else { json!({}) };
    ledger[if deep { "deep" } else { "landing" }] = json!({
        "commit": commit,
        "date": said("date", &["-u", "+%Y-%m-%d"]),
        "processor": processor(),
        "seconds": started.elapsed().as_secs(),
        "figures": rows,
    });
    std::fs::write(&path, format!("{ledger:#}\n")).with_context(|| path.display().to_string())?;
    write_table(root)?;
    println!("{} figures in {} s; wrote {LEDGER} and {PAGE}", found.len(), started.elapsed().as_secs());
    Ok(())
}

/// Writes the page's table from the ledger.
pub(crate) fn write_table(root: &Path) -> Result<()> {
    let page = root.join(PAGE);
    let text = std::fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let (before, _, after) = around(&text)?;
    let table = table(&read(&root.join(LEDGER))?);
    std::fs::write(&page, format!("{before}{table}{after}")).with_context(|| page.display().to_string())
}

const LEDGER: &str = "docs/reliability.json";
const PAGE: &str = "docs/reliability.md";
const BEGIN: &str = "<!-- table: cargo xtask reliability -->\n";
const END: &str = "<!-- end of table -->";

/// Fails where the page's table is not that of the ledger.
pub(crate) fn check(root: &Path) -> Result<()> {
    let page = root.join(PAGE);
    let text = std::fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    if around(&text)?.1 != table(&read(&root.join(LEDGER))?) {
        bail!("{PAGE}: its table is not that of {LEDGER}; cargo xtask reliability writes both");
    }
    Ok(())
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// The page before its table, the table, and what follows.
fn around(text: &str) -> Result<(&str, &str, &str)> {
    let begin = text.find(BEGIN).with_context(|| format!("{PAGE} has no {BEGIN}"))? + BEGIN.len();
    let length = text[begin..].find(END).with_context(|| format!("{PAGE} has no {END}"))?;
    Ok((&text[..begin], &text[begin..begin + length], &text[begin + length..]))
}

fn key(figure: &Figure) -> String {
    format!("{} {}", figure.id, figure.name)
}

/// `figure ID NAME COUNT REMARK`, at the beginning of a line or behind `test NAME ... `.
fn parse(line: &str) -> Option<(String, (u64, String))> {
    let rest = line.strip_prefix("figure ").or_else(|| Some(line.split_once(" ... figure ")?.1))?;
    let mut words = rest.splitn(4, ' ');
    let key = format!("{} {}", words.next()?, words.next()?);
    let count = words.next()?.parse().ok()?;
    Some((key, (count, words.next().unwrap_or_default().trim().to_string())))
}

/// The table of the page.
fn table(ledger: &Value) -> String {
    let mut text = String::new();
    for (tier, name) in [("landing", "Every landing"), ("deep", "Deep")] {
        let about = |what: &str| ledger[tier][what].to_string().trim_matches('"').to_string();
        text += &match ledger.get(tier) {
            None => format!("{name}: not run yet.\n\n"),
            Some(_) => format!(
                "{name}: commit {}, {}, {}, {} s.\n\n",
                about("commit"),
                about("date"),
                about("processor"),
                about("seconds")
            ),
        };
    }
    text += "| figure | cases | landing | deep | remark |\n|---|---|---|---|---|\n";
    for figure in figures() {
        let cell = |tier: &str, wanted: Option<u64>| {
            let count = ledger[tier]["figures"][key(figure)]["count"].as_u64();
            match (count, wanted) {
                (Some(count), _) => count.to_string(),
                (None, Some(wanted)) => format!("({wanted})"),
                (None, None) => String::new(),
            }
        };
        let remark = |tier: &str| ledger[tier]["figures"][key(figure)]["remark"].as_str().map(str::to_string);
        let remark = remark("landing").or_else(|| remark("deep")).unwrap_or_default();
        let (landing, deep) = (cell("landing", figure.landing), cell("deep", Some(figure.deep)));
        text += &format!("| {} | {} | {landing} | {deep} | {remark} |\n", figure.id, figure.cases);
    }
    text
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string()).unwrap_or_default();
    if text.is_empty() { "unknown".to_string() } else { text }
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{count} × {}", name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()))
}
