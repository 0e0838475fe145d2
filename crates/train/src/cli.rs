//! The command line of `dsd`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use dsd_data::OpenOptions;
use dsd_metrics::Summary;

use crate::recipe::{Recipe, SHIPPED};
use crate::run::{RunSettings, train};
use crate::{Error, bench, compare, data_command, evaluate, import_model, interrupt, predict, report, stage};

/// Train a large segmentation network, distil it into a compact one, and see what that was worth.
#[derive(Parser, Debug)]
#[command(name = "dsd", version, about)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Train teacher, baseline and distilled student by a recipe, or all methods and seeds of a comparison; writes a table
    /// and a page.
    Train {
        /// Recipe inside the program (see `dsd recipes`) or path of a TOML file [default: quick, with --compare
        /// compare-quick; with --resume --out DIR: the run's own].
        recipe: Option<String>,
        /// The recipe is a comparison: methods and seeds.
        #[arg(long)]
        compare: bool,
        /// Change a setting of the recipe, for example --set student.steps=400.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        overrides: Vec<String>,
        /// Folder of the run [default: runs/NAME, or the next free runs/NAME-2].
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Go on with the run in the folder.
        #[arg(long)]
        resume: bool,
    },
    /// Evaluate a saved model on whole images of a dataset.
    Eval {
        /// Folder with model.safetensors and model.json.
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// streets, folder, or a published one (see `dsd data`).
        #[arg(long)]
        dataset: String,
        /// Folder of the dataset (not for streets).
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
        /// Split of the dataset.
        #[arg(long, default_value = "val")]
        split: String,
        /// streets: seed, the run's seed for the run's images.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// streets: number of images.
        #[arg(long, default_value_t = 40)]
        count: usize,
        /// Height and width that images and labels are brought to [default: those of the files; of streets 180 240].
        #[arg(long, num_args = 2, value_names = ["HEIGHT", "WIDTH"])]
        size: Option<Vec<usize>>,
        /// Images at once.
        #[arg(long, default_value_t = 4)]
        batch_size: usize,
        /// Print a JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Segment images: an indexed palette PNG and an overlay for each.
    Predict {
        /// Folder with model.safetensors and model.json.
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// PNG or JPEG images.
        #[arg(required = true)]
        images: Vec<PathBuf>,
        /// Folder for the results.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Write grey PNGs with the ids that this published dataset's own evaluator reads, instead of palette PNGs.
        #[arg(long, value_name = "DATASET")]
        label_ids: Option<String>,
    },
    /// List the networks, or import weights for one.
    #[command(args_conflicts_with_subcommands = true)]
    Models {
        #[command(subcommand)]
        command: Option<ModelsCommand>,
        /// Print a JSON array instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// List published datasets, say how to get one, import it.
    Data(data_command::DataArguments),
    /// Time kernels, operations and training steps.
    Bench(bench::BenchArguments),
    /// Write the page of a finished run or of a comparison again.
    Report {
        /// The run's folder.
        run: PathBuf,
    },
    /// List the recipes inside the program, or print one.
    Recipes {
        /// The recipe to print.
        name: Option<String>,
    },
}

#[derive(Subcommand, Debug)]
enum ModelsCommand {
    /// Weights of other people's training as a folder that training, evaluation and prediction take.
    Import(import_model::ImportArguments),
}

/// Runs the command line; the process's exit code.
#[must_use]
pub fn main() -> i32 {
    let arguments = Arguments::parse();
    start_log();
    let threads = match &arguments.command {
        Command::Bench(arguments) => arguments.threads(),
        _ => None,
    };
    let outcome = dsd_kernels::check_environment().map_err(anyhow::Error::from).and_then(|()| {
        let pool = pool(threads)?;
        pool.install(|| run(arguments))
    });
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {}", in_one_line(&error));
            if matches!(error.downcast_ref::<Error>(), Some(Error::Interrupted { .. })) { 130 } else { 1 }
        }
    }
}

/// The threads that everything runs on. Work that starts on one of them goes on at once; from outside, each operation
/// would be handed over to a thread that has to wake up first.
///
/// # Errors
/// The system gives no threads.
fn pool(threads: Option<usize>) -> Result<rayon::ThreadPool, rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0)) // 0: RAYON_NUM_THREADS, or as many as there are cores
        .thread_name(|index| format!("dsd-{index}"))
        // Deep graphs are walked and dropped recursively; the usual stack is too small for a ResNet-101.
        .stack_size(256 << 20)
        .build()
}

/// An error with its causes in one line. Only the first line of each counts: with RUST_BACKTRACE set, the tensor library
/// appends a backtrace to its messages. A cause that its effect has quoted already is left out.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let first = text.lines().next().unwrap_or_default().trim();
        if line.is_empty() {
            line.push_str(first);
        } else if !line.ends_with(first) {
            line.push_str(": ");
            line.push_str(first);
        }
    }
    line
}

fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Train { recipe, compare, overrides, out, resume } => {
            let recipe = match (&recipe, &out) {
                (Some(recipe), _) => Recipe::read(recipe, &overrides)?,
                (None, Some(out)) if resume => Recipe::of_run(out, &overrides)?,
                (None, _) => Recipe::read(if compare { "compare-quick" } else { "quick" }, &overrides)?,
            };
            let settings = RunSettings { out, resume };
            interrupt::listen().context("cannot listen for Ctrl-C")?;
            let folder = if compare || recipe.comparison.is_some() {
                compare::compare(&recipe, &settings, |table| {
                    // A pipe that was closed does not end a comparison.
                    let _ = say_line!("{table}");
                })?
            } else {
                train(&recipe, &settings)?
            };
            print_outcome(&folder)
        }
        Command::Eval { model, dataset, root, split, seed, count, size, batch_size, json } => {
            let size = size.map(<[usize; 2]>::try_from).transpose();
            let size = size.map_err(|_| anyhow::anyhow!("--size: expected HEIGHT WIDTH"))?;
            let options = OpenOptions { seed, count, size, ..OpenOptions::default() };
            let dataset = dsd_data::open(&dataset, root.as_deref(), &split, &options)?;
            eval(&model, dataset.as_ref(), batch_size, json)
        }
        Command::Predict { model, images, out, label_ids } => {
            let manifest = label_ids.as_deref().map(dsd_data::manifest).transpose()?;
            for line in predict::predict(&model, &images, &out, manifest)? {
                say_line!("{line}")?;
            }
            Ok(())
        }
        Command::Models { command: Some(ModelsCommand::Import(arguments)), .. } => import_model::run(&arguments),
        Command::Models { command: None, json } => models(json),
        Command::Data(arguments) => data_command::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Report { run } => {
            if Recipe::of_run(&run, &[])?.comparison.is_some() {
                compare::write(&run)?
            } else {
                report::write(&run)?
            }
            print_outcome(&run)
        }
        Command::Recipes { name: None } => {
            for (name, text) in SHIPPED {
                say_line!("{name:21} {}", Recipe::parse(name, text, &[])?.description)?;
            }
            Ok(())
        }
        Command::Recipes { name: Some(name) } => match SHIPPED.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => {
                say!("{text}")?;
                Ok(())
            }
            None => bail!("no recipe {name}; the program has {}", SHIPPED.map(|(name, _)| name).join(", ")),
        },
    }
}

/// The table of a finished run or of a comparison, and where its page is.
fn print_outcome(folder: &Path) -> Result<()> {
    let (table, page) = match Recipe::of_run(folder, &[])?.comparison {
        Some(_) => (compare::table(folder)?, "comparison.html"),
        None => (report::table(folder)?, "report.html"),
    };
    say!("{table}")?;
    say_line!("page: {}", folder.join(page).display())
}

fn eval(model: &Path, dataset: &dyn dsd_data::Dataset, batch_size: usize, json: bool) -> Result<()> {
    let saved = dsd_models::load(model)?;
    let classes: Vec<&str> = saved.card.classes.iter().map(|class| class.name.as_str()).collect();
    if classes != dataset.classes().names {
        let theirs = dataset.classes().names.join(", ");
        bail!("{}: the model's classes are {}, the dataset's {theirs}", model.display(), classes.join(", "));
    }
    let normalisation = stage::data_normalisation(&saved.card.normalisation);
    let segmenter = saved.segmenter()?;
    let bar = indicatif::ProgressBar::new(dataset.len() as u64);
    let matrix = evaluate::evaluate(segmenter.as_ref(), dataset, &normalisation, batch_size, |done| {
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let summary: Summary = stage::summary(&matrix, dataset)?;
    if json {
        say_line!("{}", serde_json::to_string_pretty(&summary)?)?;
    } else {
        let percent = |value: Option<f64>| value.map_or("   –".to_string(), |value| format!("{:6.2}", 100.0 * value));
        say_line!("mIoU             {} % over the classes that occur", percent(summary.miou))?;
        say_line!("mean accuracy    {} %", percent(summary.mean_accuracy))?;
        say_line!("pixel accuracy   {} %", percent(summary.pixel_accuracy))?;
        say_line!("freq. weighted   {} %", percent(summary.frequency_weighted_iou))?;
        for (name, value) in &summary.iou.0 {
            say_line!("  {name:14} {} %", percent(*value))?;
        }
    }
    Ok(())
}

fn models(json: bool) -> Result<()> {
    let variants = dsd_models::variants();
    if json {
        let rows: Vec<serde_json::Value> = variants
            .iter()
            .map(|variant| {
                serde_json::json!({
                    "name": variant.name,
                    "role": variant.role,
                    "backbone": variant.backbone,
                    "description": variant.description,
                    "output_stride": variant.output_stride(),
                    "output_strides": variant.output_strides,
                    "parameters": variant.parameters,
                    "multiply_adds": variant.multiply_adds,
                    "multiply_adds_size": dsd_models::VARIANT_SIZE,
                    "parameters_source": variant.parameters_source,
                    "source": variant.source,
                    "weights": variant.weights,
                    "config": variant.config,
                })
            })
            .collect();
        say_line!("{}", serde_json::to_string_pretty(&rows)?)?;
        return Ok(());
    }
    let [height, width] = dsd_models::VARIANT_SIZE;
    say_line!(
        "{:26} {:18} {:24} {:>13} {:>10} {:>10}",
        "name",
        "role",
        "backbone",
        "output stride",
        "parameters",
        "mult.-adds"
    )?;
    for variant in variants {
        let others: Vec<String> = variant
            .output_strides
            .iter()
            .filter(|stride| **stride != variant.output_stride())
            .map(ToString::to_string)
            .collect();
        let others = if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
        say_line!(
            "{:26} {:18} {:24} {:>13} {:>8.2} M {:>8.2} G",
            variant.name,
            variant.role,
            variant.backbone,
            format!("{}{others}", variant.output_stride()),
            variant.parameters as f64 / 1e6,
            variant.multiply_adds as f64 / 1e9,
        )?;
        say_line!("    {}; {}", variant.description, variant.source)?;
        say_line!("    weights: {}", variant.weights)?;
    }
    say_line!(
        "19 classes; multiply-adds of one image of {height}x{width} without auxiliary head; other strides in brackets"
    )?;
    Ok(())
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("DSD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_whatever_its_causes_append() {
        let inner = std::io::Error::other("no space left\n   0: a frame\n   1: another");
        let outer = anyhow::Error::from(inner).context("disk.bin: cannot write");
        assert_eq!(in_one_line(&outer), "disk.bin: cannot write: no space left");
        let quoted = anyhow::Error::msg("full").context("disk.bin: full");
        assert_eq!(in_one_line(&quoted), "disk.bin: full");
    }
}
