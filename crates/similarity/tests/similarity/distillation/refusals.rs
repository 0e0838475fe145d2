//! Wrong arguments of distillation losses: each is refused with a line that names it.

use candle_core::{DType, Device, Tensor};
use dsd_similarity::{
    AdversarialForm, AttentionTransfer, ChannelKd, CrossImageKd, DistKd, Ifvd, MemoryBank, MemoryContrast, PairwiseKd,
    PixelKd, PoolWindow, adversarial_critic, adversarial_student, attention_transfer, channel_kd,
    class_weighted_pixel_kd, cross_image_kd, dist_kd, fitnet, ifvd, memory_contrast, pairwise_kd,
};

use crate::normal;
use crate::refusals::refused;

#[test]
fn shapes_and_settings() {
    let good = normal("good", &[2, 3, 4, 5], 1.0);
    let wide = normal("wide", &[2, 6, 4, 5], 1.0);
    let images = normal("images", &[3, 3, 4, 5], 1.0);
    let single = good.to_dtype(DType::F32).unwrap();
    let channels = "teacher has shape [2, 6, 4, 5], expected [2,3,H,W] with no size 0";
    refused(fitnet(&good, &wide, None), &format!("fitnet: {channels}"));
    refused(channel_kd(&good, &wide, None, ChannelKd::published()), &format!("channel_kd: {channels}"));
    refused(
        pairwise_kd(&good, &images, None, PairwiseKd::unpooled()),
        "pairwise_kd: teacher has shape [3, 3, 4, 5], expected [2,C,H,W] with no size 0",
    );
    refused(fitnet(&good, &single, None), "fitnet: teacher is f32, expected f64");
    let at = AttentionTransfer::published();
    refused(
        attention_transfer(&[], &[], None, at),
        "attention_transfer: student is 0, expected at least 1 feature layer",
    );
    for (window, message) in [
        (PoolWindow::Pixels([0, 2]), "window is [0, 2], expected at least 1 by 1"),
        (PoolWindow::Share(0.0), "window is 0, expected a share above 0, at most 1"),
        (PoolWindow::Share(f64::NAN), "window is NaN, expected a share above 0, at most 1"),
    ] {
        let cfg = PairwiseKd { window, average: false };
        refused(pairwise_kd(&good, &good, None, cfg), &format!("pairwise_kd: {message}"));
    }
    let finite = "expected a finite number above 0";
    let cfg = ChannelKd { temperature: 0.0 };
    refused(channel_kd(&good, &good, None, cfg), &format!("channel_kd: temperature is 0, {finite}"));
    let cfg = CrossImageKd { temperature: -1.0, average_pool: 1 };
    refused(cross_image_kd(&good, &good, None, cfg), &format!("cross_image_kd: temperature is -1, {finite}"));
    let cfg = CrossImageKd { temperature: 1.0, average_pool: 0 };
    refused(cross_image_kd(&good, &good, None, cfg), "cross_image_kd: average_pool is 0, expected at least 1");
    let cfg = DistKd { intra: f64::INFINITY, ..DistKd::published() };
    refused(dist_kd(&good, &good, None, cfg), "dist_kd: intra is inf, expected a finite number of at least 0");
    let cfg = PixelKd { temperature: 1.0 };
    let weights = |weights: &[f64]| class_weighted_pixel_kd(&good, &good, None, weights, cfg);
    refused(weights(&[1.0]), "class_weighted_pixel_kd: class_weights is 1, expected 3 factors");
    refused(
        weights(&[1.0, -2.0, 1.0]),
        "class_weighted_pixel_kd: class_weights is -2, expected finite numbers of at least 0",
    );
}

#[test]
fn labels_memories_and_scores() {
    let good = normal("good", &[2, 3, 4, 5], 1.0);
    let labels = Tensor::zeros((2, 4, 5), DType::U8, &Device::Cpu).unwrap();
    let cfg = Ifvd { num_classes: 0 };
    refused(ifvd(&good, &good, &labels, None, cfg), "ifvd: num_classes is 0, expected 1 to 255");
    let (cfg, one) = (Ifvd { num_classes: 3 }, labels.narrow(0, 0, 1).unwrap());
    refused(ifvd(&good, &good, &one, None, cfg), "ifvd: labels has shape [1, 4, 5], expected [2,H,W] with no size 0");
    let memory = normal("memory", &[7, 4], 1.0);
    refused(
        memory_contrast(&good, &good, &memory, None, MemoryContrast::published()),
        "memory_contrast: memory has shape [7, 4], expected [M,3]",
    );
    refused(MemoryBank::new(2, 0, 3, DType::F32), "memory_bank: capacity is 0, expected at least 1");
    refused(MemoryBank::new(2, 2, 3, DType::U8), "memory_bank: dtype is u8, expected f32 or f64");
    let mut bank = MemoryBank::new(2, 2, 4, DType::F64).unwrap();
    let pushed = bank.push_regions(&good, &labels, None);
    refused(pushed, "push_regions: features has shape [2, 3, 4, 5], expected [N,4,H,W]");
    let scores = normal("scores", &[2, 3], 1.0);
    let other = scores.narrow(1, 0, 2).unwrap();
    refused(
        adversarial_critic(&scores, &other, AdversarialForm::Hinge),
        "adversarial_critic: student has shape [2, 2], expected [2, 3]",
    );
    refused(
        adversarial_student(&scores.narrow(0, 0, 0).unwrap()),
        "adversarial_student: student has shape [0, 3], expected at least one score",
    );
}
