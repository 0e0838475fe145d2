//! Turning colour masks back into index files.

use std::fs;
use std::path::Path;

use crate::label_code::LabelCode;
use crate::manifest::DatasetManifest;
use crate::{ColourMap, Encoding, Error, IGNORE, LabelMap, Result, read_image, write_palette_png};

/// Colours that mean "ignored" where no class has them: black, VOC's border, white.
pub(crate) const VOID: [[u8; 3]; 3] = [[0; 3], [224, 224, 192], [255; 3]];

/// Rewrites every PNG below `from` whose pixels have the colours of a dataset's classes as a palette PNG of that
/// dataset's label ids, 255 for what is ignored, under the same path below `to`. Returns how many there were.
///
/// # Errors
/// File for the first that cannot be read, holds a colour that is no class's or cannot be written; Param where two
/// classes have one colour.
pub fn convert_masks(from: &Path, to: &Path, facts: &DatasetManifest) -> Result<usize> {
    let (classes, ids) = (facts.classes()?, facts.label_ids());
    let map = match facts.code(Encoding::Colours, None)? {
        LabelCode::Colours(map) => map.or(VOID.map(|colour| (colour, IGNORE))),
        LabelCode::Ids(_) => ColourMap::new([])?,
    };
    // The palette shows each id in its class's colour.
    let mut palette = vec![[0u8; 3]; 256];
    for (&id, &colour) in ids.iter().zip(&classes.colours) {
        palette[usize::from(id)] = colour;
    }
    convert(from, to, &|path, target| {
        let named = |reason: String| Error::file(path, reason);
        let labels = map.apply(&read_image(path)?).map_err(named)?;
        let raw = labels.ids.iter().map(|&id| ids.get(usize::from(id)).copied().unwrap_or(IGNORE)).collect();
        write_palette_png(target, &LabelMap { width: labels.width, height: labels.height, ids: raw }, &palette)
    })
}

fn convert(from: &Path, to: &Path, one: &dyn Fn(&Path, &Path) -> Result<()>) -> Result<usize> {
    let failed = |error: std::io::Error| Error::file(from, format!("cannot list: {error}"));
    let mut count = 0;
    let mut entries: Vec<_> = fs::read_dir(from).map_err(failed)?.collect::<std::io::Result<_>>().map_err(failed)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            count += convert(&path, &target, one)?;
        } else if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("png")) {
            fs::create_dir_all(to).map_err(|error| Error::file(to, format!("cannot create: {error}")))?;
            one(&path, &target)?;
            count += 1;
        }
    }
    Ok(count)
}
