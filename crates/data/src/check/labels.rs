//! What the label files of a split say together: the ways in which they are commonly wrong.

use super::{Fault, Look, Part, Severity};
use crate::label_code::LabelCode;
use crate::masks::VOID;
use crate::{Classes, ColourMap, Error, IGNORE, IdMap, Result, manifest, read_image};

/// The kind of fault of an index file that is an RGB image.
pub(super) const MASK: &str = "rgb-mask";

/// Whether a label file could not be read because it is an RGB image.
pub(super) fn is_mask(error: &Error) -> bool {
    matches!(error, Error::File { reason, .. } if reason.starts_with("is an RGB colour mask"))
}

/// Adds what is wrong with a split as a whole.
pub(super) fn diagnose(
    dataset: &str,
    classes: &Classes,
    part: &Part,
    looks: &[Look],
    faults: &mut Vec<Fault>,
) -> Result<()> {
    let split = &part.name;
    let mut error = |kind, text| faults.push(Fault { severity: Severity::Error, kind, text });
    if let Some(expected) = part.expected.filter(|expected| *expected != part.pairs.len()) {
        let got = part.pairs.len();
        let name = dataset.split(':').next().unwrap_or_default();
        let text = format!(
            "{split} has {got} pairs, published are {expected}; get what is missing (dsd data {name}) or remove what is too much"
        );
        error("count", text);
    }
    if let Some(text) = masks(dataset, classes, part, looks) {
        error(MASK, text);
    }
    let mut raw = [0u64; 256];
    for look in looks.iter().filter_map(|look| look.raw.as_ref()) {
        raw.iter_mut().zip(look.iter()).for_each(|(sum, count)| *sum += count);
    }
    let seen: Vec<u8> = (0..=255u8).filter(|&id| raw[usize::from(id)] > 0).collect();
    if let (LabelCode::Ids(map), false) = (&part.code, seen.is_empty()) {
        let foreign: Vec<u8> = seen.iter().copied().filter(|&id| map.train_id(id).is_none()).collect();
        match misread(dataset, classes, map, &seen, &foreign)? {
            Some((kind, text)) => error(kind, format!("{split}: {text}")),
            None if foreign.is_empty() => {}
            None => {
                let at = looks.iter().position(|look| {
                    look.raw.as_ref().is_some_and(|raw| foreign.iter().any(|&id| raw[usize::from(id)] > 0))
                });
                let place = at.and_then(|at| part.pairs.get(at)).map(|pair| pair.labels.display().to_string());
                let ids: Vec<String> = foreign.iter().take(12).map(ToString::to_string).collect();
                let text = format!(
                    "{split}: label ids {} are none of this dataset's ({}), first in {}; correct the files, or the ids in classes.toml",
                    ids.join(", "),
                    map.allowed(),
                    place.unwrap_or_default()
                );
                error("unknown-id", text);
            }
        }
    }
    let empty: Vec<usize> = (0..looks.len())
        .filter(|&at| {
            looks[at].ids.as_ref().is_some_and(|ids| ids[..usize::from(IGNORE)].iter().all(|count| *count == 0))
        })
        .collect();
    if let (Some(&first), false) = (empty.first(), part.unlabelled) {
        let all = empty.len() == looks.len();
        let severity = if all { Severity::Error } else { Severity::Warning };
        let text = format!(
            "{split}: {} of {} images have ignored pixels only, first {}; {}",
            empty.len(),
            looks.len(),
            part.pairs[first].labels.display(),
            if all { "these labels are not published or the ids are wrong" } else { "take them out of the split" }
        );
        faults.push(Fault { severity, kind: "all-ignored", text });
    }
    Ok(())
}

/// What RGB images in the place of index files seem to be.
fn masks(dataset: &str, classes: &Classes, part: &Part, looks: &[Look]) -> Option<String> {
    let is = |look: &Look| look.faults.iter().any(|fault| fault.kind == MASK);
    let count = looks.iter().filter(|look| is(look)).count();
    let example = looks.iter().position(is).and_then(|at| part.pairs.get(at))?;
    let image = read_image(&example.labels).ok()?;
    let known = classes.colours.iter().copied().chain(VOID);
    let mut known: Vec<[u8; 3]> = known.collect();
    known.sort_unstable();
    known.dedup();
    let own = ColourMap::new(known.into_iter().map(|colour| (colour, 0))).is_ok_and(|map| map.apply(&image).is_ok());
    let why = if own && dataset == "folder" {
        "their colours are the classes' colours: write each pixel's class id instead, as a one-channel or palette PNG"
            .to_string()
    } else if own {
        format!(
            "their colours are the classes' colours: palette labels that were saved through their palette, or colour \
             masks; turn them back with: dsd data masks DIR --dataset {dataset} --to OUT"
        )
    } else {
        "their colours are not this dataset's; get the index files, or name the dataset that they belong to with --dataset"
            .to_string()
    };
    Some(format!("{}: {count} label files are RGB images, first {}; {why}", part.name, example.labels.display()))
}

/// A known way in which ids are wrong as a whole.
fn misread(
    dataset: &str,
    classes: &Classes,
    map: &IdMap,
    seen: &[u8],
    foreign: &[u8],
) -> Result<Option<(&'static str, String)>> {
    let count = classes.len();
    let labels: Vec<u8> = seen.iter().copied().filter(|id| *id != IGNORE).collect();
    let largest = labels.iter().copied().max().unwrap_or(0);
    let published = manifest(dataset.split(':').next().unwrap_or_default()).ok();
    if let Some(facts) = published {
        let (ids, own) = (facts.label_ids(), facts.id_map()?);
        let above = ids.iter().filter(|id| usize::from(**id) >= count).count();
        if !foreign.is_empty() && above > 0 && seen.iter().all(|&id| own.train_id(id).is_some()) {
            let text = "the files called train ids hold label ids; give them their name back (…_labelIds.png)";
            return Ok(Some(("label-ids-as-train-ids", text.to_string())));
        }
        // Where most classes have ids beyond the number of classes, files without any such id hold train ids.
        let dense = *map == own && foreign.is_empty() && usize::from(largest) < count && labels.len() > 2;
        if dense && 2 * above >= count && seen.contains(&IGNORE) {
            let text = "no id above the number of classes occurs: train ids in files of label ids; get the original \
                        files, or call these …_labelTrainIds.png";
            return Ok(Some(("train-ids-as-label-ids", text.to_string())));
        }
        let from_one = *map == own
            && map.train_id(0) == Some(IGNORE)
            && ids.iter().enumerate().all(|(at, &id)| usize::from(id) == at + 1);
        if from_one && seen.contains(&IGNORE) && seen.contains(&0) && usize::from(largest) < count {
            let text = "255 occurs, which the published files do not have, and the last id does not: the ids were \
                        lowered by one already and class 0 would be ignored; get the original files";
            return Ok(Some(("zero-as-ignore", text.to_string())));
        }
    }
    if foreign.is_empty() {
        let binary =
            published.is_none() && map.train_id(IGNORE) == Some(IGNORE) && labels == [0] && seen.contains(&IGNORE);
        let text = "only 0 and 255 occur: masks whose foreground is 255, which is ignored; write to classes.toml: \
                    ids = [0, 255] and ignore = []";
        return Ok(binary.then(|| ("foreground-255", text.to_string())));
    }
    // Counting from 1 with 0 for what counts nowhere.
    if published.is_none() && foreign.iter().all(|&id| usize::from(id) == count) {
        let ids: Vec<String> = (1..=count.min(8)).map(|id| id.to_string()).collect();
        let more = if count > 8 { ", …" } else { "" };
        let text = format!(
            "id {count} occurs, one more than there are classes: 0 is not a class but ignored; write to classes.toml: \
             ids = [{}{more}] and ignore = [0, 255]",
            ids.join(", ")
        );
        return Ok(Some(("zero-as-ignore", text)));
    }
    // Grey values of the classes' colours: a palette image that was converted to grey (ITU-R 601 luma, as PIL does).
    let grey = |colour: &[u8; 3]| {
        let [r, g, b] = colour.map(u32::from);
        ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
    };
    let greys: Vec<u8> = classes.colours.iter().map(grey).collect();
    let void = grey(&[224, 224, 192]);
    if labels.iter().all(|id| greys.contains(id) || *id == void || *id == 0) {
        let text = "the ids are the grey values of the classes' colours: palette labels that were converted to grey; \
                    get the original palette files and keep their indices (mode P)";
        return Ok(Some(("palette-as-grey", text.to_string())));
    }
    Ok(None)
}
