//! Prediction of single images.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dsd_data::{Classes, DatasetManifest, overlay, read_image, write_grey_png, write_palette_png, write_rgb_png};

use crate::checkpoint::make_folder;
use crate::{Error, Result, evaluate, stage};

/// Weight of the class colour in an overlay, 0–1.
const ALPHA: f32 = 0.5;

/// Segments images and writes `STEM.png` (indexed, with the classes' palette) and `STEM_overlay.png` for each into
/// `out`; returns a line for each. With a dataset's manifest, `STEM.png` is a grey PNG of that dataset's label ids.
///
/// # Errors
/// A model whose classes are not the dataset's; the first image that cannot be read or written, by name; two images whose results would have one name.
pub fn predict(
    model: &Path,
    images: &[PathBuf],
    out: &Path,
    manifest: Option<&DatasetManifest>,
) -> Result<Vec<String>> {
    let mut stems = BTreeSet::new();
    for path in images {
        let stem = path.file_stem().ok_or_else(|| Error::file(path, "is no image file"))?;
        if !stems.insert(stem.to_os_string()) {
            return Err(Error::file(path, format!("two images would write {}.png", stem.to_string_lossy())));
        }
    }
    let saved = dsd_models::load(model)?;
    let normalisation = stage::data_normalisation(&saved.card.normalisation);
    let segmenter = saved.segmenter()?;
    let (names, colours) =
        saved.card.classes.iter().map(|class| (class.name.clone(), class.colour)).unzip::<_, _, Vec<_>, Vec<_>>();
    let classes = Classes { names, colours };
    if let Some(manifest) =
        manifest.filter(|manifest| manifest.classes().is_ok_and(|theirs| theirs.names != classes.names))
    {
        let reason = format!("its classes are not those of {}: {}", manifest.name, classes.names.join(", "));
        return Err(Error::file(model, reason));
    }
    make_folder(out)?;
    let mut lines = Vec::with_capacity(images.len());
    for (path, stem) in images.iter().zip(images.iter().filter_map(|path| path.file_stem())) {
        let image = read_image(path)?;
        let Some(labels) = evaluate::predict(segmenter.as_ref(), &[&image], &normalisation)?.pop() else { continue };
        let name = stem.to_string_lossy();
        let indexed = out.join(format!("{name}.png"));
        match manifest {
            Some(manifest) => write_grey_png(&indexed, &labels, &manifest.label_ids())?,
            None => write_palette_png(&indexed, &labels, &classes.colours)?,
        }
        write_rgb_png(&out.join(format!("{name}_overlay.png")), &overlay(&image, &labels, &classes.colours, ALPHA)?)?;
        let mut counts = vec![0usize; classes.names.len()];
        for &id in &labels.ids {
            if let Some(count) = counts.get_mut(usize::from(id)) {
                *count += 1;
            }
        }
        let mut order: Vec<usize> = (0..counts.len()).filter(|&class| counts[class] > 0).collect();
        order.sort_by_key(|&class| std::cmp::Reverse(counts[class]));
        let shares: Vec<String> = order
            .iter()
            .take(4)
            .map(|&class| {
                format!("{} {:.0} %", classes.names[class], 100.0 * counts[class] as f64 / labels.ids.len() as f64)
            })
            .collect();
        lines.push(format!("{} → {} ({})", path.display(), indexed.display(), shares.join(", ")));
    }
    Ok(lines)
}
