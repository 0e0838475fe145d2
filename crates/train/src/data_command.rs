//! `dsd data`: what published datasets there are, where to get one, importing and checking it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use dsd_data::{CheckReport, DatasetManifest, Patience, Severity, manifest, manifests, write_rgb_png};
use indicatif::{ProgressBar, ProgressStyle};

/// A dataset to import, or nothing for a list of them.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DataArguments {
    #[command(subcommand)]
    command: Option<DataCommand>,
    /// camvid, cityscapes, ade20k or voc2012 [default: a list].
    name: Option<String>,
    /// Archive (tar, tar.gz, tgz, zip) or folder to import; several archives that belong together, each with --from.
    #[arg(long, value_name = "ARCHIVE")]
    from: Vec<PathBuf>,
    /// Where to put it [default: data/NAME].
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

#[derive(clap::Subcommand, Debug)]
enum DataCommand {
    /// Look through a dataset on disk: what is wrong in a line each, shares of the classes, a picture of samples.
    Check {
        /// Folder of the dataset.
        root: PathBuf,
        /// A published dataset or folder [default: what it looks like].
        #[arg(long)]
        dataset: Option<String>,
        /// Where to write the picture.
        #[arg(long, value_name = "FILE", default_value = "check.png")]
        sheet: PathBuf,
    },
    /// Add the split trainaug to Pascal VOC 2012, from SBD's benchmark.tgz or the folder that it unpacks to.
    Sbd {
        /// benchmark.tgz or the folder that it unpacks to.
        from: PathBuf,
        /// Where VOC 2012 lies.
        #[arg(long, value_name = "DIR", default_value = "data/voc2012")]
        root: PathBuf,
    },
    /// Turn RGB masks in a dataset's class colours into index files, with ids as in its label files.
    Masks {
        /// Folder of the masks; folders in it too.
        from: PathBuf,
        /// The published dataset whose colours they have.
        #[arg(long)]
        dataset: String,
        /// Folder for the index files.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

/// Runs `dsd data`.
///
/// # Errors
/// A check that found an error; an unknown name; a source that is missing, damaged or incomplete, naming the culprit; a dataset that has to be
/// fetched by hand, after printing how.
pub fn run(arguments: &DataArguments) -> Result<()> {
    match &arguments.command {
        Some(DataCommand::Check { root, dataset, sheet }) => return check(root, dataset.as_deref(), sheet),
        Some(DataCommand::Masks { from, dataset, to }) => {
            say_line!("{} masks turned into index files", dsd_data::convert_masks(from, to, manifest(dataset)?)?)?;
            return Ok(());
        }
        Some(DataCommand::Sbd { from, root }) => {
            let count = dsd_data::add_sbd(from, root)?;
            say_line!("trainaug {count} pairs; dsd data check {} looks at them", root.display())?;
            return Ok(());
        }
        None => {}
    }
    let Some(name) = &arguments.name else {
        return list();
    };
    let facts = manifest(name)?;
    let to = arguments.to.clone().unwrap_or_else(|| PathBuf::from("data").join(name));
    if !arguments.from.is_empty() {
        return import(facts, &arguments.from, &to);
    }
    guide(facts, &to)?;
    let parts = || facts.archives.iter().filter(|archive| archive.extra.is_none());
    if parts().next().is_none() || parts().any(|archive| archive.url.is_none()) {
        bail!("{name} has to be fetched by hand, as above");
    }
    let folder = to.parent().unwrap_or(Path::new(".")).join("downloads");
    let fetch = |archive| {
        let patience = Patience::default();
        with_bar(|progress| dsd_data::download(archive, &folder, facts.limits.total_bytes, patience, progress))
    };
    let archives: Vec<PathBuf> = parts().map(fetch).collect::<Result<_>>()?;
    import(facts, &archives, &to)
}

fn list() -> Result<()> {
    for facts in manifests()? {
        let splits: Vec<String> = facts.splits.iter().map(|split| format!("{} {}", split.name, split.count)).collect();
        say_line!("{:11} {}: {} classes; {}", facts.name, facts.title, facts.classes()?.len(), splits.join(", "))?;
    }
    Ok(())
}

fn import(facts: &DatasetManifest, from: &[PathBuf], to: &Path) -> Result<()> {
    let report = with_bar(|progress| dsd_data::import(&facts.name, from, to, progress))?;
    for (split, count) in &report.splits {
        let found = count.map_or("not in the source".to_string(), |count| format!("{count} pairs, all read"));
        say_line!("{split:11} {found}")?;
    }
    for (archive, hash, known) in &report.archives {
        let known = known.as_ref().map_or("not one whose hash is known".to_string(), |known| format!("known: {known}"));
        say_line!("{} {hash} ({known})", archive.display())?;
    }
    say_line!("{} ({}), {}", report.root.display(), report.layout, facts.source.licence)?;
    Ok(())
}

/// What a person has to fetch, where, and what to do with it.
fn guide(facts: &DatasetManifest, to: &Path) -> Result<()> {
    say_line!("{}", facts.title)?;
    say_line!("  {}", facts.source.title)?;
    say_line!("  {}", facts.source.licence)?;
    for step in &facts.source.by_hand {
        say_line!("  - {step}")?;
    }
    let parts: Vec<_> = facts.archives.iter().filter(|archive| archive.extra.is_none()).collect();
    for archive in &parts {
        let size = archive.bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
        let hash = match (&archive.sha256, &archive.sha1) {
            (Some(hash), _) => format!(", SHA-256 {hash}"),
            (None, Some(hash)) => format!(", SHA-1 {hash}"),
            (None, None) => String::new(),
        };
        let place = archive.url.as_deref().map(|url| format!(" from {url}")).unwrap_or_default();
        say_line!("  - {}{place}: {}{size}{hash}", archive.file, archive.description)?;
    }
    let from: Vec<String> = parts.iter().map(|archive| format!("--from {}", archive.file)).collect();
    say_line!("then: dsd data {} {} --to {}", facts.name, from.join(" "), to.display())?;
    say_line!(
        "or unpack yourself and give the folder: --from DIR; as it lies: dsd data check DIR. Forms that are read:"
    )?;
    for layout in &facts.layouts {
        say_line!("  {}: {}", layout.name, layout.description)?;
    }
    Ok(())
}

/// Runs work that reports its progress, with a bar where there is a terminal.
fn with_bar<T>(work: impl FnOnce(&dsd_data::Progress<'_>) -> dsd_data::Result<T>) -> Result<T> {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}") {
        bar.set_style(style);
    }
    let outcome = work(&|what, done, of| {
        bar.set_message(what.to_string());
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    Ok(outcome?)
}

fn check(root: &Path, dataset: Option<&str>, sheet: &Path) -> Result<()> {
    let report = with_bar(|progress| dsd_data::check(root, dataset, progress))?;
    say_line!("{} as {} ({})", root.display(), report.dataset, report.layout)?;
    table(&report)?;
    for fault in &report.faults {
        let severity = if fault.severity == Severity::Error { "error" } else { "warning" };
        say_line!("{severity} [{}] {}", fault.kind, fault.text)?;
    }
    if let Some(picture) = &report.sheet {
        write_rgb_png(sheet, picture)?;
        say_line!("samples with their labels: {}", sheet.display())?;
    }
    let errors = report.faults.iter().filter(|fault| fault.severity == Severity::Error).count();
    if report.failed() {
        bail!("{}: {errors} errors, as above", root.display());
    }
    say_line!("no errors, {} warnings", report.faults.len())?;
    Ok(())
}

/// Pairs, sizes, and the share of each class in percent of all pixels, split by split.
fn table(report: &CheckReport) -> Result<()> {
    for split in &report.splits {
        let size = |[height, width]: [usize; 2]| format!("{width}x{height}");
        let sizes = match split.sizes {
            Some((least, most)) if least == most => size(least),
            Some((least, most)) => format!("{} to {}", size(least), size(most)),
            None => "no image readable".to_string(),
        };
        say_line!("{:11} {:6} pairs, {sizes}", split.name, split.pairs)?;
    }
    let names = report.classes.names.iter().map(String::as_str).chain(["(ignored)"]);
    let width = names.clone().map(|name| name.chars().count()).max().unwrap_or(0);
    let heads: Vec<String> = report.splits.iter().map(|split| format!("{:>11}", split.name)).collect();
    say_line!("{:width$} {}", "class, %", heads.join(""))?;
    for (class, name) in names.enumerate() {
        let share = |pixels: &[u64]| 100.0 * pixels[class] as f64 / pixels.iter().sum::<u64>().max(1) as f64;
        let shares: Vec<String> = report.splits.iter().map(|split| format!("{:11.3}", share(&split.pixels))).collect();
        say_line!("{name:width$} {}", shares.join(""))?;
    }
    Ok(())
}
