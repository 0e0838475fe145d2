//! Segmentation networks, their parameters and their saved form.
//!
//! A network is a backbone, a decoder and a head, nothing more: [`backbone`] gives features at named stages, [`decoder`]
//! merges them into one, [`EncoderDecoder`] classifies it, and any backbone goes with any decoder. Networks that are
//! one piece by their paper ([`enet`]) implement [`Segmenter`] themselves. A network knows no loss and no dataset: it
//! returns logits, auxiliary logits and named features with their strides.
//!
//! Parameters live in a [`ParamStore`], ordered by name; a network is built on its [`ParamStore::builder`] to be
//! trained and on its [`ParamStore::frozen_builder`] to be evaluated without a graph.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dsd_models::{Mode, ParamStore, build, variant};
//! # fn main() -> dsd_models::Result<()> {
//! let config = variant("enet").ok_or_else(|| dsd_models::Error::unknown_variant("enet"))?;
//! let store = ParamStore::new(1, DType::F32, &Device::Cpu);
//! let network = build(&config, 11, store.builder())?;
//! let images = Tensor::zeros((1, 3, 33, 48), DType::F32, &Device::Cpu)?;
//! let output = network.forward(&images, Mode::Eval)?;
//! assert_eq!(output.logits.dims(), [1, 11, 33, 48]);
//! # Ok(())
//! # }
//! ```

pub mod backbone;
mod blocks;
mod config;
pub mod decoder;
mod discriminator;
mod encoder_decoder;
pub mod enet;
mod error;
pub mod espnet;
pub mod espnetv2;
mod finite;
mod head;
mod init;
pub mod layers;
mod multiply_adds;
mod params;
mod saved;
mod segmenter;
mod variants;
pub mod weights;

pub use blocks::with_recomputed_blocks;
pub use config::{EncoderDecoderConfig, ModelChoice, ModelConfig, build, parameter_count, parameter_shapes};
pub use discriminator::{Discriminator, DiscriminatorConfig};
pub use encoder_decoder::EncoderDecoder;
pub use enet::{Enet, EnetConfig, EnetForm};
pub use error::{Error, Result, WeightMismatch};
pub use espnet::{Espnet, EspnetConfig};
pub use espnetv2::{EspnetV2, EspnetV2Config};
pub use finite::{first_not_finite, is_finite};
pub use head::{AuxHead, Classifier};
pub use multiply_adds::{Convolution, convolutions, multiply_adds};
pub use params::{ParamStore, Parameter, tensor_builder};
pub use saved::{CARD_FILE, ClassInfo, FORMAT_VERSION, ModelCard, Normalisation, SavedModel, WEIGHTS_FILE, load, save};
pub use segmenter::{Feature, Mode, Output, Segmenter};
pub use variants::{VARIANT_SIZE, Variant, variant, variants};
