//! Formats and names, without a file on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use dsd_random::Stream;

use super::scheme::{Place, recognise};
use super::*;
use crate::backbone::{Architecture, Stem};
use crate::{EncoderDecoderConfig, variant};

/// A file of the fixture made by `tests/reference/torch_zip.py`.
fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/torch_zip.safetensors");
    let files = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    files[name].to_vec1().unwrap()
}

fn parsed(name: &str) -> Result<Checkpoint> {
    Checkpoint::parse(name, fixture(name))
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    checkpoint.tensor(name).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The values of the fixture: (7 i mod 64 − 32) / 8.
fn expected(count: usize) -> Vec<f32> {
    (0..count).map(|index| ((7 * index % 64) as f32 - 32.0) / 8.0).collect()
}

#[test]
fn torch_checkpoints_are_read_in_every_form_that_training_programs_write() {
    for name in ["plain", "nested half", "module double", "protocol 4 bfloat", "parameters"] {
        let checkpoint = parsed(name).unwrap();
        let shapes: Vec<_> = checkpoint.tensors().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect();
        let own = [("bn1.num_batches_tracked", vec![]), ("bn1.weight", vec![4]), ("conv1.weight", vec![4, 3, 3, 3])];
        assert_eq!(shapes, own.map(|(name, shape)| (name.to_string(), shape)), "{name}");
        assert_eq!(values(&checkpoint, "conv1.weight"), expected(108), "{name}");
        assert_eq!(values(&checkpoint, "bn1.weight"), expected(4), "{name}");
        assert!(checkpoint.tensor("bn1.num_batches_tracked").is_err(), "{name}: integers are no weights");
    }
    assert_eq!(parsed("nested half").unwrap().notes, ["taken from below the key \"state_dict\""]);
    assert_eq!(parsed("module double").unwrap().notes.len(), 2);
}

#[test]
fn views_are_read_through_their_strides() {
    let checkpoint = parsed("views").unwrap();
    // The storage of conv1 is [3,4,3,3] with its first two axes exchanged.
    let storage = expected(108);
    let mut exchanged = Vec::new();
    for out in 0..4 {
        for input in 0..3 {
            exchanged.extend_from_slice(&storage[(input * 4 + out) * 9..][..9]);
        }
    }
    assert_eq!(values(&checkpoint, "conv1.weight"), exchanged);
    assert_eq!(values(&checkpoint, "bn1.weight"), expected(8)[4..]);
    assert_eq!(values(&checkpoint, "bn1.bias"), [expected(8)[6]; 4]);
}

#[test]
fn what_cannot_be_read_says_what_to_do() {
    let message = |name: &str| parsed(name).err().unwrap().to_string();
    let old = message("old");
    assert!(old.contains("before version 1.6") && old.contains("torch.load('old', map_location='cpu'"), "{old}");
    assert!(message("whole module").contains("torch.nn.modules.activation.PReLU"), "{}", message("whole module"));
    for (bytes, part) in [
        (b"".to_vec(), "neither safetensors"),
        (b"<!DOCTYPE html><html>".to_vec(), "neither safetensors"),
        (vec![0xff; 64], "neither safetensors"),
        (b"PK\x03\x04 and nothing".to_vec(), "no directory"),
        // A header of 15 MB that is not there.
        ([15u64 << 20, u64::from(b'{')].map(u64::to_le_bytes).concat(), "damaged safetensors"),
    ] {
        let message = Checkpoint::parse("x", bytes).err().unwrap().to_string();
        assert!(message.starts_with("x: ") && message.contains(part), "{message}");
    }
}

#[test]
fn a_stored_bit_that_fell_over_is_found() {
    let mut bytes = fixture("plain");
    // Elements 1 and 2 of the storage; they occur once.
    let pattern: Vec<u8> = expected(3)[1..].iter().flat_map(|value| value.to_le_bytes()).collect();
    let at = bytes.windows(pattern.len()).position(|window| window == pattern).unwrap();
    bytes[at] ^= 1;
    assert!(Checkpoint::parse("x", bytes).err().unwrap().to_string().contains("CRC-32"));
}

/// A stored zip file of one member: its local header, the directory and the end.
fn zip_of(name: &str, content: &[u8]) -> Vec<u8> {
    let sizes = [zip::crc32(content), content.len() as u32, content.len() as u32].map(u32::to_le_bytes).concat();
    let lengths = [name.len() as u16, 0].map(u16::to_le_bytes).concat();
    let mut bytes = [b"PK\x03\x04", &[0; 10][..], &sizes, &lengths, name.as_bytes(), content].concat();
    let directory = [b"PK\x01\x02", &[0; 12][..], &sizes, &lengths, &[0; 14], name.as_bytes()].concat();
    let (at, length) = (bytes.len() as u32, directory.len() as u32);
    bytes.extend(directory);
    bytes.extend(
        [b"PK\x05\x06", &[0; 4][..], &[1, 0, 1, 0], &length.to_le_bytes(), &at.to_le_bytes(), &[0; 2]].concat(),
    );
    bytes
}

/// A short pickle can say one long thing a million times; what is copied of it has a limit.
#[test]
fn repetition_in_a_pickle_is_not_multiplied() {
    // A dictionary that holds itself under many keys, and a tensor of 100 000 axes under many names.
    let mut dict = b"\x80\x02}q\x00(".to_vec();
    for index in 0..20_000u32 {
        dict.extend(format!("X\x05\x00\x00\x00{index:05}h\x00").bytes());
    }
    dict.extend(b"u.");
    let mut axes = b"\x80\x02(".to_vec();
    axes.extend(b"K\x01".repeat(100_000));
    axes.extend(b"tq\x010ctorch._utils\n_rebuild_tensor_v2\n(NK\x00h\x01h\x01tRq\x020}(");
    for index in 0..20_000u32 {
        axes.extend(format!("X\x05\x00\x00\x00{index:05}h\x02").bytes());
    }
    axes.extend(b"u.");
    for (pickle, part) in [(dict, "no tensors"), (axes, "unknown form")] {
        let message = Checkpoint::parse("x", zip_of("a/data.pkl", &pickle)).err().unwrap().to_string();
        assert!(message.contains(part), "{message}");
    }
    let long = zip_of("a/data.pkl", &vec![b'N'; (16 << 20) + 1]);
    assert!(Checkpoint::parse("x", long).err().unwrap().to_string().contains("expected at most"));
}

/// Neither a panic nor more memory than the file is long, whatever is changed: each mutant is an error or is read.
#[test]
fn a_thousand_mutants_of_each_format_are_errors_or_checkpoints() {
    let weight = Tensor::from_vec(expected(108), (4, 3, 3, 3), &Device::Cpu).unwrap();
    let bias = Tensor::zeros(4, DType::F64, &Device::Cpu).unwrap();
    let plain = safetensors::serialize([("conv1.weight", &weight), ("bn1.weight", &bias)], None).unwrap();
    for (format, original) in [("zip", fixture("plain")), ("nested", fixture("nested half")), ("safetensors", plain)] {
        let (mut refused, mut read) = (0, 0);
        for index in 0..1000 {
            let mut stream = Stream::new(11, format, 0, index);
            let mut bytes = original.clone();
            match index % 4 {
                0 => bytes.truncate(stream.below(bytes.len())),
                1 => {
                    let at = stream.below(bytes.len());
                    bytes[at] ^= 1 << stream.below(8);
                }
                2 => {
                    // A field of a special value.
                    let at = stream.below(bytes.len() - 8);
                    let value = [0u64, u64::MAX, u64::MAX >> 1, 1 << 63, 0xffff_ffff][stream.below(5)];
                    let width = [1, 2, 4, 8][stream.below(4)];
                    bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                }
                _ => {
                    // A piece of the file in another place of it.
                    let (from, to) = (stream.below(bytes.len() - 16), stream.below(bytes.len() - 16));
                    bytes.copy_within(from..from + 16, to);
                }
            }
            // The checksums of a zip file would hide what its pickle can do: here it is read as it is.
            if let Some(at) = bytes.windows(2).position(|window| window == [0x80, 2]) {
                drop(pickle::parse(&bytes[at..]));
            }
            match Checkpoint::parse("mutant", bytes) {
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                }
                Ok(checkpoint) => {
                    for (name, shape) in checkpoint.tensors() {
                        // Only shapes that a network has are ever read.
                        if shape == [4, 3, 3, 3] || shape == [4] {
                            drop(checkpoint.tensor(name));
                        }
                    }
                    read += 1;
                }
            }
        }
        assert!(refused > 250 && read > 0, "{format}: {refused} refused, {read} read");
    }
}

/// Names and shapes as `tests/reference/scheme_names.py` listed them, with the running statistics.
fn published(network: &str) -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/scheme_names.json");
    let text = std::fs::read_to_string(path).unwrap();
    let all: BTreeMap<String, BTreeMap<String, Vec<usize>>> = serde_json::from_str(&text).unwrap();
    with_statistics(&all[network])
}

/// A normalisation has a weight of one dimension.
fn with_statistics(named: &BTreeMap<String, Vec<usize>>) -> Checkpoint {
    let mut shapes = named.clone();
    for (name, shape) in named {
        if let (Some(layer), [_]) = (name.strip_suffix(".weight"), shape.as_slice()) {
            shapes.insert(format!("{layer}.running_mean"), shape.clone());
            shapes.insert(format!("{layer}.running_var"), shape.clone());
            shapes.insert(format!("{layer}.num_batches_tracked"), vec![]);
        }
    }
    Checkpoint::of_shapes(shapes)
}

fn report(checkpoint: &Checkpoint, config: &ModelConfig, classes: usize, part: Part) -> Report {
    let wanted = Wanted::new(config, classes, part).unwrap();
    compare(checkpoint, recognise(checkpoint, &wanted.all).unwrap(), &wanted).1
}

fn resnet50(kind: fn(EncoderDecoderConfig) -> ModelConfig, head_channels: usize) -> ModelConfig {
    kind(EncoderDecoderConfig {
        backbone: Architecture::ResNet50,
        output_stride: 8,
        width: 1.0,
        head_channels,
        stem: Some(Stem::Classic),
        aux: true,
        dropout: 0.1,
    })
}

#[test]
fn backbones_of_published_classifiers_are_complete() {
    let resnet = backbone_alone(Architecture::ResNet18, 1.0, Some(Stem::Classic));
    let lite = backbone_alone(Architecture::EfficientNetLite0, 1.0, None);
    let mobile2 = backbone_alone(Architecture::MobileNetV2, 1.0, None);
    let mobile3 = backbone_alone(Architecture::MobileNetV3Large, 1.0, None);
    for (network, config, scheme, outside) in [
        ("torchvision resnet18", &resnet, Scheme::Torchvision, 2),
        ("timm resnet18", &resnet, Scheme::Torchvision, 2),
        // The last convolution, four of its normalisation, two of the classifier.
        ("torchvision mobilenet_v2", &mobile2, Scheme::Torchvision, 7),
        ("timm mobilenetv2_100", &mobile2, Scheme::TimmMobileNetV2, 7),
        ("torchvision mobilenet_v3_large", &mobile3, Scheme::Torchvision, 4),
        ("timm mobilenetv3_large_100", &mobile3, Scheme::TimmMobileNetV3, 4),
        ("timm tf_efficientnet_lite0", &lite, Scheme::TimmEfficientNet, 7),
    ] {
        let report = report(&published(network), config, 1, Part::Backbone);
        assert_eq!((report.scheme, report.refusal()), (scheme, None), "{network}");
        assert_eq!((report.outside.len(), report.unexpected.len()), (outside, 0), "{network}: {report}");
    }
}

#[test]
fn timms_mobile_networks_are_torchvisions_by_other_names() {
    for (timm, torchvision, scheme) in [
        ("timm mobilenetv2_100", "torchvision mobilenet_v2", Scheme::TimmMobileNetV2),
        ("timm mobilenetv3_large_100", "torchvision mobilenet_v3_large", Scheme::TimmMobileNetV3),
    ] {
        let placed = |network: &str, scheme: Scheme| -> BTreeSet<(String, Vec<usize>)> {
            let checkpoint = published(network);
            let places = checkpoint.tensors().map(|(name, shape)| (scheme.place(name), name, shape.to_vec()));
            let ours = places.filter_map(|(place, name, shape)| match place {
                Place::Ours(ours) => Some((ours, shape)),
                Place::Elsewhere | Place::Counter => None,
                other => panic!("{network} {name}: {other:?}"),
            });
            ours.collect()
        };
        let (theirs, ours) = (placed(timm, scheme), placed(torchvision, Scheme::Torchvision));
        assert!(theirs.len() > 150, "{}", theirs.len());
        assert_eq!(theirs, ours, "{timm}");
    }
}

#[test]
fn torchvisions_decoders_and_heads_have_their_places() {
    for (network, config, scheme, decoder) in [
        ("torchvision deeplabv3_resnet50", resnet50(ModelConfig::Deeplabv3, 256), Scheme::TorchvisionDeepLabV3, 37),
        ("torchvision fcn_resnet50", resnet50(ModelConfig::Fcn, 512), Scheme::TorchvisionFcn, 7),
    ] {
        let report = report(&published(network), &config, 21, Part::Everything);
        assert_eq!(report.scheme, scheme, "{network}");
        assert_eq!(report.unexpected, Vec::<String>::new(), "{network}");
        let below = |prefix: &str| report.matched.iter().filter(|(ours, _)| ours.starts_with(prefix)).count();
        // torchvision's auxiliary head of a ResNet-50 has 256 channels, ours as many as the decoder.
        let aux = report.wrong_shape.iter().filter(|wrong| wrong.name.starts_with("aux.")).count();
        assert_eq!(below("decoder.") + below("classifier."), decoder, "{report}");
        assert_eq!((below("aux.") + aux, report.wrong_shape.len()), (7, aux), "{report}");
        // Of the backbone the list has the stem alone.
        assert!(report.missing.iter().all(|name| name.starts_with("backbone.layer")), "{report}");
    }
}

#[test]
fn an_auxiliary_head_may_be_left_behind() {
    let ModelConfig::Fcn(settings) = resnet50(ModelConfig::Fcn, 512) else { panic!("another network") };
    let config = ModelConfig::Fcn(EncoderDecoderConfig { aux: false, ..settings });
    let report = report(&published("torchvision fcn_resnet50"), &config, 21, Part::Everything);
    assert_eq!((report.outside.len(), report.unexpected.len()), (7, 0), "{report}");
}

#[test]
fn torchvisions_lraspp_is_complete() {
    let ModelConfig::Deeplabv3(resnet) = resnet50(ModelConfig::Deeplabv3, 128) else { panic!("another network") };
    let backbone = Architecture::MobileNetV3Large;
    let config =
        ModelConfig::Lraspp(EncoderDecoderConfig { backbone, output_stride: 16, stem: None, aux: false, ..resnet });
    let report = report(&published("torchvision lraspp"), &config, 21, Part::Everything);
    assert_eq!((report.scheme, report.refusal()), (Scheme::TorchvisionLrAspp, None));
    assert!(report.matched.len() > 250 && report.outside.is_empty(), "{report}");
}

/// ResNet-18 with the deep stem as the distillation codes name it, from our own names.
fn deep_resnet(prefix: &str) -> BTreeMap<String, Vec<usize>> {
    let shapes = parameter_shapes(&variant("pspnet_resnet18").unwrap(), 19).unwrap();
    let own = shapes.into_iter().filter_map(|(name, shape)| Some((name.strip_prefix("backbone.")?.to_string(), shape)));
    own.filter(|(name, _)| !name.contains("running")).map(|(name, shape)| (format!("{prefix}{name}"), shape)).collect()
}

fn norm(names: &mut BTreeMap<String, Vec<usize>>, name: &str, channels: usize) {
    for part in ["weight", "bias"] {
        names.insert(format!("{name}.{part}"), vec![channels]);
    }
}

#[test]
fn the_distillation_codes_pspnets_have_their_places() {
    let config = variant("pspnet_resnet18").unwrap();
    for pyramid in ["pspmodule", "head.0"] {
        let mut names = deep_resnet("");
        for stage in 0..4 {
            names.insert(format!("{pyramid}.stages.{stage}.1.weight"), vec![128, 512, 1, 1]);
            norm(&mut names, &format!("{pyramid}.stages.{stage}.2"), 128);
        }
        names.insert(format!("{pyramid}.bottleneck.0.weight"), vec![128, 1024, 3, 3]);
        norm(&mut names, &format!("{pyramid}.bottleneck.1"), 128);
        let head = if pyramid == "head.0" { "head.1" } else { "head" };
        names.insert("dsn.0.weight".into(), vec![128, 256, 3, 3]);
        names.insert("dsn.0.bias".into(), vec![128]);
        norm(&mut names, "dsn.1", 128);
        for (name, channels) in [(head, 128), ("dsn.3", 128)] {
            names.insert(format!("{name}.weight"), vec![19, channels, 1, 1]);
            names.insert(format!("{name}.bias"), vec![19]);
        }
        let checkpoint = with_statistics(&names);
        let everything = report(&checkpoint, &config, 19, Part::Everything);
        assert_eq!((everything.scheme, everything.refusal()), (Scheme::SkdPspnet, None));
        // Taken as a backbone it keeps the origin of its colours, whatever decoder the network has.
        let fcn = backbone_alone(Architecture::ResNet18, 1.0, Some(Stem::Deep));
        let backbone = report(&checkpoint, &fcn, 1, Part::Backbone);
        assert_eq!((backbone.scheme, backbone.refusal()), (Scheme::SkdPspnet, None));
        // Other classes are refused, unless they are left out on purpose.
        let other = report(&checkpoint, &config, 11, Part::Everything).refusal().unwrap();
        assert!(other.contains("head") && other.contains("all-but-classifiers"), "{other}");
        let without = report(&checkpoint, &config, 11, Part::AllButClassifiers);
        assert_eq!((without.refusal(), without.outside.len()), (None, 4));
    }

    let mut names = deep_resnet("pretrained.");
    for stage in 1..=4 {
        names.insert(format!("head.psp.conv{stage}.0.weight"), vec![128, 512, 1, 1]);
        norm(&mut names, &format!("head.psp.conv{stage}.1"), 128);
    }
    names.insert("head.block.0.weight".into(), vec![128, 1024, 3, 3]);
    norm(&mut names, "head.block.1", 128);
    names.insert("head.classifier.weight".into(), vec![19, 128, 1, 1]);
    names.insert("head.classifier.bias".into(), vec![19]);
    let ModelConfig::Pspnet(mut settings) = config else { panic!("another network") };
    settings.aux = false;
    let cirkd = report(&with_statistics(&names), &ModelConfig::Pspnet(settings), 19, Part::Everything);
    assert_eq!((cirkd.scheme, cirkd.refusal()), (Scheme::CirkdPspnet, None));
}
