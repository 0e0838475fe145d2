//! The pictures of a report: image, truth and what each network sees.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use base64::Engine;
use dsd_data::{LabelMap, RgbImage, overlay};
use serde::Serialize;

use crate::recipe::Recipe;
use crate::stage::{self, ROLES};
use crate::{Error, Result, evaluate, splits};

/// Weight of the class colour in an overlay, 0–1.
const ALPHA: f32 = 0.6;

/// A validation image with everything that was said of it; pictures are data URLs.
#[derive(Debug, Serialize)]
pub(super) struct Picture {
    name: String,
    /// Caption and picture, in order: image, truth, teacher, baseline, distilled.
    views: Vec<(String, String)>,
}

/// The colour of each class by name.
pub(super) type Colours = BTreeMap<String, [u8; 3]>;

/// Pictures of evenly spaced validation images, and the colour of each class by name.
pub(super) fn pictures(folder: &Path, recipe: &Recipe) -> Result<(Vec<Picture>, Colours)> {
    let val = splits::open(&recipe.data, &recipe.data.val_split, recipe.seed, recipe.data.val_count)?;
    let classes = val.classes().clone();
    let mut networks = Vec::new();
    for role in ROLES {
        let saved = dsd_models::load(&folder.join(role).join("best"))?;
        let normalisation = stage::data_normalisation(&saved.card.normalisation);
        networks.push((role, saved.segmenter()?, normalisation));
    }
    let count = recipe.run.pictures.min(val.len());
    let mut pictures = Vec::with_capacity(count);
    for number in 0..count {
        let sample = val.sample((2 * number + 1) * val.len() / (2 * count))?;
        let paint = |labels: &LabelMap| overlay(&sample.image, labels, &classes.colours, ALPHA);
        let mut views = vec![
            ("image".to_string(), data_url(&sample.image)?),
            ("truth".to_string(), data_url(&paint(&sample.labels)?)?),
        ];
        for (role, network, normalisation) in &networks {
            for labels in evaluate::predict(network.as_ref(), &[&sample.image], normalisation)? {
                views.push(((*role).to_string(), data_url(&paint(&labels)?)?));
            }
        }
        pictures.push(Picture { name: sample.name.clone(), views });
    }
    Ok((pictures, classes.names.into_iter().zip(classes.colours).collect()))
}

/// A JPEG of the image as a data URL; overlays have soft colours, so that nothing is lost to the eye.
fn data_url(image: &RgbImage) -> Result<String> {
    let mut bytes = Cursor::new(Vec::new());
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 88);
    let (width, height) = (image.width as u32, image.height as u32);
    image::ImageEncoder::write_image(encoder, &image.pixels, width, height, image::ExtendedColorType::Rgb8)
        .map_err(|error| Error::Setting(format!("a picture of the report cannot be encoded: {error}")))?;
    let text = base64::engine::general_purpose::STANDARD.encode(bytes.into_inner());
    Ok(format!("data:image/jpeg;base64,{text}"))
}
