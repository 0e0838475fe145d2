//! The pictures of a report: image, truth and what each network sees.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use dsd_data::{LabelMap, RgbImage, overlay};
use jpeg_encoder::{ColorType, Encoder};
use serde::Serialize;

use crate::recipe::Recipe;
use crate::{Error, Result, evaluate, splits, stage};

/// Weight of the class colour in an overlay, 0–1.
const ALPHA: f32 = 0.6;

/// Of the JPEGs inside the page, 1–100.
const QUALITY: u8 = 88;

/// A validation image with everything that was said of it; pictures are data URLs.
#[derive(Debug, Serialize)]
pub(super) struct Picture {
    name: String,
    /// Caption and picture, in order: image, truth, each network.
    views: Vec<(String, String)>,
}

/// The colour of each class by name.
pub(super) type Colours = BTreeMap<String, [u8; 3]>;

/// Pictures of evenly spaced validation images, and the colour of each class by name.
pub(super) fn pictures(folder: &Path, recipe: &Recipe) -> Result<(Vec<Picture>, Colours)> {
    let val = splits::open(&recipe.data, &recipe.data.val_split, recipe.seed, recipe.data.val_count)?;
    let classes = val.classes().clone();
    let mut networks = Vec::new();
    for &role in recipe.roles() {
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
    let failed = |reason: String| Error::Setting(format!("a picture of the report cannot be encoded: {reason}"));
    let side = |pixels: usize| u16::try_from(pixels).map_err(|_| failed(format!("a side of {pixels} pixels")));
    let mut bytes = Vec::new();
    Encoder::new(&mut bytes, QUALITY)
        .encode(&image.pixels, side(image.width)?, side(image.height)?, ColorType::Rgb)
        .map_err(|error| failed(error.to_string()))?;
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    Ok(format!("data:image/jpeg;base64,{text}"))
}
