//! Distillation and structure losses for semantic segmentation, on candle tensors.
//!
//! A loss takes tensors and settings and returns a scalar; it knows no model, data set or recipe. Teacher tensors are
//! detached here, so a gradient reaches the student alone. Teacher and student may differ in channels, strides and
//! depth. Nothing has parameters of its own: where a loss needs equal channels ([`fitnet`], [`channel_kd`] on features,
//! [`memory_contrast`]), the student's feature comes through an adaptor that the caller trains.
//!
//! | loss | what it compares |
//! |---|---|
//! | [`psd`] | where attention moves from one layer to a deeper one |
//! | [`csd`] | how the class maps of an image correlate |
//! | [`dsd`] | the weighted sum of both, with named presets |
//! | [`pixel_kd`], [`class_weighted_pixel_kd`] | the class distribution at each position |
//! | [`channel_kd`] (CWD) | the distribution of each channel over the positions |
//! | [`attention_transfer`] (AT) | where the layers attend |
//! | [`fitnet`] | the features themselves, behind an adaptor |
//! | [`pairwise_kd`] (SKD) | how similar any two places of an image are |
//! | [`ifvd`] | how places lie about the centre of their class |
//! | [`dist_kd`] (DIST) | whether probabilities correlate, by pixel and by class |
//! | [`cross_image_kd`], [`memory_contrast`] (CIRKD) | how places resemble those of other images, now and earlier |
//! | [`adversarial_student`], [`adversarial_critic`] | what a critic network says of whole predictions (SKD) |
//! | [`ssl_distillation`] | the local pattern of each class's probabilities |
//!
//! | task loss | what it compares with the labels |
//! |---|---|
//! | [`cross_entropy`] | the probability of the label, with class weights |
//! | [`ohem_cross_entropy`] | the same on the hardest pixels |
//! | [`focal`] | the same, pixels that are right already counting little |
//! | [`dice`] | the overlap of each class's probabilities with its pixels |
//! | [`lovasz_softmax`] | a surrogate of the IoU of each class |
//! | [`ssl`] | the local pattern of each class's probabilities |
//!
//! Tensors are f32 or f64 and may be strided. Pixel masks (`valid`) are u8 `[N,H,W]`, 1 counted, 0 ignored, at any
//! resolution, usually the labels': they are brought to the grid of the comparison by nearest neighbour.

mod adversarial;
mod attention;
mod attention_transfer;
mod channel_kd;
mod class_correlation;
mod cross_image;
mod csd;
mod dist_kd;
mod dsd;
mod fitnet;
mod grid;
mod ifvd;
mod mask;
mod mean_power;
mod memory_bank;
mod pairwise_kd;
mod pixel_kd;
mod psd;
mod relation;
mod task;
mod unit;

pub use adversarial::{AdversarialForm, adversarial_critic, adversarial_student, critic_input};
pub use attention::{attention_map, residual_attention};
pub use attention_transfer::{AttentionTransfer, attention_transfer};
pub use channel_kd::{ChannelKd, channel_kd};
pub use cross_image::{CrossImageKd, cross_image_kd};
pub use csd::{Csd, SoftmaxAxis, category_correlation, csd};
pub use dist_kd::{DistKd, dist_kd};
pub use dsd::{Dsd, DsdLoss, NetworkOutput, dsd};
pub use dsd_ops::{Error, Result};
pub use fitnet::fitnet;
pub use ifvd::{Ifvd, ifvd};
pub use memory_bank::{MemoryBank, MemoryContrast, memory_contrast};
pub use pairwise_kd::{PairwiseKd, PoolWindow, pairwise_kd};
pub use pixel_kd::{PixelKd, class_weighted_pixel_kd, pixel_kd};
pub use psd::{LayerPairs, MapSize, Psd, PsdReduction, REFERENCE_POSITIONS, psd};
pub use task::{
    ClassSet, CrossEntropyOptions, Deviation, Dice, EntropyMean, Focal, Keep, LovaszSoftmax, Mining, Ohem, Padding,
    Probability, Scope, Ssl, cross_entropy, dice, focal, lovasz_softmax, ohem_cross_entropy, ssl, ssl_distillation,
    structure_error,
};
