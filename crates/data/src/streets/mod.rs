//! `streets`: generated street scenes with CamVid's 11 classes, for training without a download.
//!
//! Each scene is a street in perspective: sky, rows of houses, road with markings, pavements, trees, posts, signs,
//! fences, cars, people and cyclists, with occlusion by depth, sun and shadow, haze, texture, lens and sensor. Layout,
//! camera and colours vary so much, and the classes' colours overlap so much (grey cars on grey roads, pavements of
//! asphalt, shop fronts, puddles that mirror the sky), that neither place nor colour alone gives a class away; thin and
//! rare things are a few pixels wide. Nothing is stored: scene i of a split is a function of (seed, split, i, size).
//!
//! Order of work: `scene` decides what stands where, `backdrop`, `walls`, `furniture`, `vehicles` and `people` paint
//! on a `canvas` seen by a `camera`, `film` makes the photograph and the label map.

mod backdrop;
mod camera;
mod canvas;
mod film;
mod furniture;
mod noise;
mod people;
mod scene;
mod vehicles;
mod walls;

use dsd_random::Stream;

use crate::{Classes, Dataset, Error, LabelMap, Result, RgbImage, Sample, manifest};

/// Train ids: CamVid's order.
mod class {
    pub(super) const SKY: u8 = 0;
    pub(super) const BUILDING: u8 = 1;
    pub(super) const POLE: u8 = 2;
    pub(super) const ROAD: u8 = 3;
    pub(super) const PAVEMENT: u8 = 4;
    pub(super) const TREE: u8 = 5;
    pub(super) const SIGN: u8 = 6;
    pub(super) const FENCE: u8 = 7;
    pub(super) const CAR: u8 = 8;
    pub(super) const PEDESTRIAN: u8 = 9;
    pub(super) const BICYCLIST: u8 = 10;
}

/// Settings of [`Streets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreetsConfig {
    /// Seed of every scene.
    pub seed: u64,
    /// Number of scenes in the split, ≥ 1.
    pub count: usize,
    /// Width in pixels, 16 to 4096.
    pub width: usize,
    /// Height in pixels, 16 to 4096.
    pub height: usize,
}

/// A split of generated street scenes.
#[derive(Clone, Debug)]
pub struct Streets {
    config: StreetsConfig,
    classes: Classes,
    split: String,
}

impl Streets {
    /// Any split name is a set of its own: `train` and `val` share no scene.
    ///
    /// # Errors
    /// Param for a count of 0, a side out of range or an empty split name.
    pub fn new(config: StreetsConfig, split: &str) -> Result<Self> {
        if config.count == 0 {
            return Err(Error::param("count", "expected at least 1, got 0"));
        }
        if [config.width, config.height].iter().any(|side| !(16..=4096).contains(side)) {
            let (width, height) = (config.width, config.height);
            return Err(Error::param("size", format!("expected sides of 16 to 4096 pixels, got {width}x{height}")));
        }
        if split.is_empty() {
            return Err(Error::param("split", "is empty"));
        }
        Ok(Self { config, classes: manifest("camvid")?.classes()?, split: split.to_owned() })
    }
}

impl Dataset for Streets {
    fn len(&self) -> usize {
        self.config.count
    }

    fn classes(&self) -> &Classes {
        &self.classes
    }

    fn sample(&self, index: usize) -> Result<Sample> {
        let StreetsConfig { seed, count, width, height } = self.config;
        if index >= count {
            return Err(Error::Index { index, count });
        }
        let mut stream = Stream::new(seed, &format!("streets/{}", self.split), 0, index as u64);
        let (image, labels) = photograph(&mut stream, width, height);
        Ok(Sample { name: self.name(index), image, labels })
    }

    fn name(&self, index: usize) -> String {
        if index < self.config.count { format!("{}-{index:05}", self.split) } else { String::new() }
    }
}

/// One scene with its labels.
fn photograph(stream: &mut Stream, width: usize, height: usize) -> (RgbImage, LabelMap) {
    let film = film::Film::draw(stream);
    let canvas = scene::Scene::draw(stream, width, height).paint(width, height);
    (film.develop(&canvas), film.annotate(&canvas))
}
