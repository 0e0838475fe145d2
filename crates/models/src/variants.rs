//! Networks by name.

use crate::backbone::{Architecture, Stem};
use crate::enet::{EnetConfig, EnetForm};
use crate::espnet::EspnetConfig;
use crate::espnetv2::EspnetV2Config;
use crate::{EncoderDecoderConfig, ModelConfig};

/// A named network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    /// Its name in recipes and on the command line.
    pub name: &'static str,
    /// What it is for: `teacher`, `student` or both.
    pub role: &'static str,
    /// What its features come from.
    pub backbone: &'static str,
    /// What it is, in a sentence.
    pub description: &'static str,
    /// The strides that its backbone can have; its own is [`Variant::output_stride`].
    pub output_strides: &'static [usize],
    /// Trained values with 19 classes (Cityscapes), the auxiliary head included.
    pub parameters: usize,
    /// Multiply-adds of one image of [`VARIANT_SIZE`] with 19 classes, as [`crate::multiply_adds`] counts them.
    pub multiply_adds: u64,
    /// What both counts were compared with.
    pub parameters_source: &'static str,
    /// Where the network is described.
    pub source: &'static str,
    /// Which published weights fit.
    pub weights: &'static str,
    /// Its settings.
    pub config: ModelConfig,
}

impl Variant {
    /// Input pixels per position of the backbone's last feature.
    #[must_use]
    pub fn output_stride(&self) -> usize {
        // Networks that are one piece have one stride only.
        let only = self.output_strides.first().copied().unwrap_or(1);
        self.config.encoder_decoder().map_or(only, |settings| settings.output_stride)
    }
}

/// Height and width at which [`Variant::multiply_adds`] is counted.
pub const VARIANT_SIZE: [usize; 2] = [512, 1024];

/// PSPNet as in the published distillation codes: deep stem, output stride 8, auxiliary head, dropout 0.1.
const PSPNET: EncoderDecoderConfig = EncoderDecoderConfig {
    backbone: Architecture::ResNet18,
    output_stride: 8,
    width: 1.0,
    head_channels: 128,
    stem: Some(Stem::Deep),
    aux: true,
    dropout: 0.1,
};

/// DeepLabV3 as in torchvision, but for dropout.
const DEEPLABV3: EncoderDecoderConfig =
    EncoderDecoderConfig { head_channels: 256, stem: Some(Stem::Classic), ..PSPNET };

/// PSPNet on a mobile network: output stride 16.
const MOBILE: EncoderDecoderConfig = EncoderDecoderConfig { output_stride: 16, stem: None, ..PSPNET };

const ENET: EnetConfig = EnetConfig { width: 1.0, early_dropout: 0.01, dropout: 0.1, form: EnetForm::Paper };

const ESPNET: EspnetConfig = EspnetConfig { width: 1.0, decoder: true, p: 2, q: 8, image_in_decoder: false };

const STRIDES: &[usize] = &[8, 16, 32];

const PSPNET_SOURCE: &str = "Zhao et al., CVPR 2017, as in the SKD and IFVD codes";
const DEEPLABV3_SOURCE: &str = "Chen et al., arXiv 1706.05587, as in torchvision";

const MOBILENETV2_SOURCE: &str = "Zhao et al., CVPR 2017; Sandler et al., CVPR 2018";
const ESPNET_SOURCE: &str = "Mehta et al., ECCV 2018, as in sacmehta/ESPNet";

const BY_TIMM: &str = "timm's ResNet with pyramid pooling in PyTorch";
const BY_TORCHVISION: &str = "torchvision";
const BY_TORCHVISION_MOBILE: &str = "torchvision's MobileNetV2 with pyramid pooling in PyTorch";

static VARIANTS: [Variant; 16] = [
    Variant {
        name: "pspnet_resnet101",
        role: "teacher",
        backbone: "ResNet-101",
        description: "PSPNet, 512 head channels: the teacher of the published distillation results",
        output_strides: STRIDES,
        parameters: 70_436_838,
        multiply_adds: 523_405_099_008,
        parameters_source: "timm's ResNet with pyramid pooling in PyTorch; SKD and IFVD: 70.44 M (65.71 M without auxiliary head)",
        source: PSPNET_SOURCE,
        weights: "backbone: resnet101-imagenet.pth of CSAILVision/semantic-segmentation-pytorch",
        config: ModelConfig::Pspnet(EncoderDecoderConfig {
            backbone: Architecture::ResNet101,
            head_channels: 512,
            ..PSPNET
        }),
    },
    Variant {
        name: "pspnet_resnet50",
        role: "teacher",
        backbone: "ResNet-50",
        description: "PSPNet, 512 head channels: a lighter teacher",
        output_strides: STRIDES,
        parameters: 51_444_710,
        multiply_adds: 368_249_405_440,
        parameters_source: BY_TIMM,
        source: PSPNET_SOURCE,
        weights: "backbone: resnet50-imagenet.pth of CSAILVision/semantic-segmentation-pytorch",
        config: ModelConfig::Pspnet(EncoderDecoderConfig {
            backbone: Architecture::ResNet50,
            head_channels: 512,
            ..PSPNET
        }),
    },
    Variant {
        name: "deeplabv3_resnet101",
        role: "teacher",
        backbone: "ResNet-101, classic stem",
        description: "DeepLabV3, 256 head channels",
        output_strides: STRIDES,
        parameters: 60_995_174,
        multiply_adds: 482_309_832_704,
        parameters_source: BY_TORCHVISION,
        source: DEEPLABV3_SOURCE,
        weights: "torchvision deeplabv3_resnet101 (COCO, 21 classes); backbone: torchvision resnet101",
        config: ModelConfig::Deeplabv3(EncoderDecoderConfig { backbone: Architecture::ResNet101, ..DEEPLABV3 }),
    },
    Variant {
        name: "deeplabv3_resnet50",
        role: "teacher",
        backbone: "ResNet-50, classic stem",
        description: "DeepLabV3, 256 head channels",
        output_strides: STRIDES,
        parameters: 42_003_046,
        multiply_adds: 327_154_139_136,
        parameters_source: BY_TORCHVISION,
        source: DEEPLABV3_SOURCE,
        weights: "torchvision deeplabv3_resnet50 (COCO, 21 classes); backbone: torchvision resnet50",
        config: ModelConfig::Deeplabv3(EncoderDecoderConfig { backbone: Architecture::ResNet50, ..DEEPLABV3 }),
    },
    Variant {
        name: "pspnet_resnet34",
        role: "teacher or student",
        backbone: "ResNet-34",
        description: "PSPNet, 128 head channels: a teacher for two cores",
        output_strides: STRIDES,
        parameters: 23_176_294,
        multiply_adds: 205_468_598_272,
        parameters_source: BY_TIMM,
        source: PSPNET_SOURCE,
        weights: "backbone, with stem = \"classic\": torchvision resnet34",
        config: ModelConfig::Pspnet(EncoderDecoderConfig { backbone: Architecture::ResNet34, ..PSPNET }),
    },
    Variant {
        name: "pspnet_efficientnet_lite0",
        role: "teacher or student",
        backbone: "EfficientNet-Lite0",
        description: "PSPNet at output stride 16, 128 head channels: what two cores can fine-tune",
        output_strides: STRIDES,
        parameters: 4_216_614,
        multiply_adds: 9_088_712_704,
        parameters_source: "timm's EfficientNet-Lite0 with pyramid pooling in PyTorch",
        source: "Zhao et al., CVPR 2017; Tan and Le, ICML 2019 (Lite: TensorFlow's code)",
        weights: "backbone: timm tf_efficientnet_lite0, or the package efficientnet_lite_pytorch",
        config: ModelConfig::Pspnet(EncoderDecoderConfig { backbone: Architecture::EfficientNetLite0, ..MOBILE }),
    },
    Variant {
        name: "pspnet_resnet18",
        role: "student",
        backbone: "ResNet-18",
        description: "PSPNet, 128 head channels: the student of the published distillation results",
        output_strides: STRIDES,
        parameters: 13_068_134,
        multiply_adds: 120_911_429_632,
        parameters_source: "timm's ResNet with pyramid pooling in PyTorch; SKD and IFVD: 13.07 M (12.77 M without auxiliary head)",
        source: PSPNET_SOURCE,
        weights: "backbone: resnet18-imagenet.pth of CSAILVision/semantic-segmentation-pytorch",
        config: ModelConfig::Pspnet(PSPNET),
    },
    Variant {
        name: "pspnet_resnet18_half",
        role: "student",
        backbone: "ResNet-18, half width",
        description: "PSPNet with half the channels everywhere, 64 in the head",
        output_strides: STRIDES,
        parameters: 3_271_622,
        multiply_adds: 30_289_461_248,
        parameters_source: BY_TIMM,
        source: PSPNET_SOURCE,
        weights: "none",
        config: ModelConfig::Pspnet(EncoderDecoderConfig { width: 0.5, head_channels: 64, ..PSPNET }),
    },
    Variant {
        name: "pspnet_mobilenetv2",
        role: "student",
        backbone: "MobileNetV2",
        description: "PSPNet at output stride 16, 128 head channels",
        output_strides: STRIDES,
        parameters: 3_051_046,
        multiply_adds: 6_730_498_048,
        parameters_source: BY_TORCHVISION_MOBILE,
        source: MOBILENETV2_SOURCE,
        weights: "backbone: torchvision mobilenet_v2",
        config: ModelConfig::Pspnet(EncoderDecoderConfig { backbone: Architecture::MobileNetV2, ..MOBILE }),
    },
    Variant {
        name: "pspnet_mobilenetv2_half",
        role: "student",
        backbone: "MobileNetV2, half width",
        description: "PSPNet at output stride 16, 64 head channels",
        output_strides: STRIDES,
        parameters: 791_782,
        multiply_adds: 1_862_586_368,
        parameters_source: BY_TORCHVISION_MOBILE,
        source: MOBILENETV2_SOURCE,
        weights: "none",
        config: ModelConfig::Pspnet(EncoderDecoderConfig {
            backbone: Architecture::MobileNetV2,
            width: 0.5,
            head_channels: 64,
            ..MOBILE
        }),
    },
    Variant {
        name: "lraspp_mobilenetv3_large",
        role: "student",
        backbone: "MobileNetV3-Large",
        description: "LR-ASPP, 128 head channels, output stride 16, logits at stride 8",
        output_strides: STRIDES,
        parameters: 3_221_198,
        multiply_adds: 3_944_947_584,
        parameters_source: BY_TORCHVISION,
        source: "Howard et al., ICCV 2019, as in torchvision",
        weights: "torchvision lraspp_mobilenet_v3_large (COCO, 21 classes); backbone: torchvision mobilenet_v3_large",
        config: ModelConfig::Lraspp(EncoderDecoderConfig {
            backbone: Architecture::MobileNetV3Large,
            aux: false,
            dropout: 0.0,
            ..MOBILE
        }),
    },
    Variant {
        name: "enet",
        role: "student",
        backbone: "its own",
        description: "ENet as in its paper: bottlenecks, a small decoder, logits at input resolution",
        output_strides: &[8],
        parameters: 365_839,
        multiply_adds: 4_121_296_896,
        parameters_source: "the layers of the paper in PyTorch; Paszke et al. 2016, table 3: 0.37 M",
        source: "Paszke et al., arXiv 1606.02147",
        weights: "none: the public ones are those of enet_pytorch",
        config: ModelConfig::Enet(ENET),
    },
    Variant {
        name: "enet_pytorch",
        role: "student",
        backbone: "its own",
        description: "ENet in the form of its most used public weights",
        output_strides: &[8],
        parameters: 351_660,
        multiply_adds: 4_037_410_816,
        parameters_source: "davidtvs/PyTorch-ENet",
        source: "Paszke et al., arXiv 1606.02147, as in davidtvs/PyTorch-ENet",
        weights: "davidtvs/PyTorch-ENet: save/ENet_Cityscapes, save/ENet_CamVid",
        config: ModelConfig::Enet(EnetConfig { form: EnetForm::PytorchEnet, ..ENET }),
    },
    Variant {
        name: "espnet",
        role: "student",
        backbone: "ESPNet-C",
        description: "ESPNet, p = 2, q = 8: pyramids of dilated convolutions, logits at input resolution",
        output_strides: &[8],
        parameters: 362_949,
        multiply_adds: 4_603_043_840,
        parameters_source: "sacmehta/ESPNet",
        source: ESPNET_SOURCE,
        weights: "sacmehta/ESPNet: pretrained/decoder/espnet_p_2_q_8.pth (Cityscapes, 20 classes)",
        config: ModelConfig::Espnet(ESPNET),
    },
    Variant {
        name: "espnet_c",
        role: "student",
        backbone: "its own",
        description: "The encoder of ESPNet alone, logits at stride 8",
        output_strides: &[8],
        parameters: 349_193,
        multiply_adds: 3_468_058_624,
        parameters_source: "sacmehta/ESPNet",
        source: ESPNET_SOURCE,
        weights: "sacmehta/ESPNet: pretrained/encoder/espnet_p_2_q_8.pth (Cityscapes, 20 classes)",
        config: ModelConfig::Espnet(EspnetConfig { decoder: false, ..ESPNET }),
    },
    Variant {
        name: "espnetv2",
        role: "student",
        backbone: "its own",
        description: "ESPNetv2, width 1: pyramids of depthwise dilated convolutions, logits at stride 2",
        output_strides: &[16],
        parameters: 340_250,
        multiply_adds: 1_675_065_344,
        parameters_source: "sacmehta/ESPNetv2, without slopes that it never uses",
        source: "Mehta et al., CVPR 2019, as in sacmehta/ESPNetv2",
        weights: "sacmehta/ESPNetv2: segmentation and ImageNet weights of width 1",
        config: ModelConfig::EspnetV2(EspnetV2Config { width: 1.0, dropout: 0.2 }),
    },
];

/// All named networks, teachers first.
#[must_use]
pub fn variants() -> &'static [Variant] {
    &VARIANTS
}

/// The settings of the network of this name.
#[must_use]
pub fn variant(name: &str) -> Option<ModelConfig> {
    VARIANTS.iter().find(|variant| variant.name == name).map(|variant| variant.config)
}
