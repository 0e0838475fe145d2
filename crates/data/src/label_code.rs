//! How a label file says which class a pixel is: by an id or by a colour.

use std::path::Path;

use crate::{Error, IGNORE, IdMap, LabelMap, Result, RgbImage, read_image, read_labels};

/// Ids or colours.
#[derive(Clone, Debug)]
pub(crate) enum LabelCode {
    Ids(IdMap),
    Colours(ColourMap),
}

impl LabelCode {
    /// Reads a label file as train ids.
    pub(crate) fn read(&self, path: &Path) -> Result<LabelMap> {
        match self {
            Self::Ids(ids) => read_labels(path, ids),
            Self::Colours(colours) => {
                let name = |reason| Error::file(path, reason);
                if path.extension().is_some_and(|end| !end.eq_ignore_ascii_case("png")) {
                    return Err(name("label maps must be PNG, since JPEG changes the colours".to_string()));
                }
                colours.apply(&read_image(path)?).map_err(name)
            }
        }
    }
}

/// Which colour of an RGB label file is which train id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColourMap {
    /// (colour as one number, train id), sorted by colour.
    entries: Vec<(u32, u8)>,
}

fn packed(colour: [u8; 3]) -> u32 {
    u32::from_be_bytes([0, colour[0], colour[1], colour[2]])
}

impl ColourMap {
    /// Takes colours with their train ids ([`IGNORE`] for those that count nowhere).
    ///
    /// # Errors
    /// Param where a colour is listed twice.
    pub fn new(entries: impl IntoIterator<Item = ([u8; 3], u8)>) -> Result<Self> {
        let mut entries: Vec<(u32, u8)> = entries.into_iter().map(|(colour, id)| (packed(colour), id)).collect();
        entries.sort_unstable();
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::param("colours", format!("{} belongs to two classes", shown(pair[0].0))));
        }
        Ok(Self { entries })
    }

    /// The same map with more colours, where it does not know them yet.
    pub(crate) fn or(mut self, more: impl IntoIterator<Item = ([u8; 3], u8)>) -> Self {
        for (colour, id) in more {
            if let Err(place) = self.entries.binary_search_by_key(&packed(colour), |(known, _)| *known) {
                self.entries.insert(place, (packed(colour), id));
            }
        }
        self
    }

    /// The train ids of an RGB label image. Colours must be exact: the error names the first that is not listed, its
    /// place, and the nearest that is.
    ///
    /// # Errors
    /// The reason, without a file's name.
    pub fn apply(&self, image: &RgbImage) -> Result<LabelMap, String> {
        let mut ids = Vec::with_capacity(image.width * image.height);
        let mut last = (u32::MAX, IGNORE);
        for (position, pixel) in image.pixels.chunks_exact(3).enumerate() {
            let colour = packed([pixel[0], pixel[1], pixel[2]]);
            if colour != last.0 {
                let Ok(place) = self.entries.binary_search_by_key(&colour, |(known, _)| *known) else {
                    let (x, y) = (position % image.width, position / image.width);
                    return Err(format!(
                        "colour {} at column {x}, row {y} is no class's; the nearest is {}; was the file scaled \
                         smoothly or saved as JPEG? get the original label map",
                        shown(colour),
                        self.nearest(colour).map_or("none".to_string(), shown)
                    ));
                };
                last = (colour, self.entries[place].1);
            }
            ids.push(last.1);
        }
        LabelMap::new(image.width, image.height, ids).map_err(|error| error.to_string())
    }

    fn nearest(&self, colour: u32) -> Option<u32> {
        let apart = |known: u32| -> u32 {
            known.to_be_bytes().iter().zip(colour.to_be_bytes()).map(|(&a, b)| u32::from(a.abs_diff(b)).pow(2)).sum()
        };
        self.entries.iter().map(|(known, _)| *known).min_by_key(|known| apart(*known))
    }
}

fn shown(colour: u32) -> String {
    let [_, r, g, b] = colour.to_be_bytes();
    format!("({r}, {g}, {b})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_become_ids_and_a_foreign_one_is_named_with_its_place() -> Result<()> {
        let map = ColourMap::new([([1, 2, 3], 4), ([0, 0, 0], IGNORE), ([9, 9, 9], 0)])?;
        let image = RgbImage::new(3, 1, vec![9, 9, 9, 0, 0, 0, 1, 2, 3])?;
        assert_eq!(map.apply(&image).map(|labels| labels.ids), Ok(vec![0, IGNORE, 4]));
        let image = RgbImage::new(1, 2, vec![9, 9, 9, 1, 2, 4])?;
        let reason = map.apply(&image).err().unwrap_or_default();
        assert!(reason.starts_with("colour (1, 2, 4) at column 0, row 1 is no class's; the nearest is (1, 2, 3)"));
        assert!(ColourMap::new([([1, 1, 1], 0), ([1, 1, 1], 1)]).is_err());
        Ok(())
    }
}
