//! Weights of other people's training.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use dsd_models::backbone::{Architecture, Stem};
use dsd_models::weights::{self, BackboneCard, Imported, Part, Scheme, backbone_alone, save_backbone};
use dsd_models::{
    CARD_FILE, ClassInfo, FORMAT_VERSION, Mode, ModelCard, ModelConfig, Normalisation, ParamStore, WEIGHTS_FILE, build,
    load, save, variant,
};

use super::{CLASSES, images, small, values};

const NORMALISATION: Normalisation = Normalisation { mean: [0.25, 0.5, 0.75], std: [0.5, 0.25, 0.125] };

/// A small network, initialised from a seed.
fn network(name: &str, seed: u64) -> (ModelConfig, ParamStore) {
    let config = small(variant(name).unwrap());
    let store = ParamStore::new(seed, DType::F32, &Device::Cpu);
    build(&config, CLASSES, store.builder()).unwrap();
    (config, store)
}

fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) -> String {
    fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    path.display().to_string()
}

fn card(config: ModelConfig) -> ModelCard {
    let class = |id| ClassInfo { name: format!("class {id}"), colour: [id, 0, 0] };
    ModelCard {
        format_version: FORMAT_VERSION,
        model: config,
        classes: (0..CLASSES as u8).map(class).collect(),
        normalisation: NORMALISATION,
        weights_sha256: String::new(),
        training: serde_json::Value::Null,
    }
}

#[test]
fn a_saved_model_is_a_source_and_its_normalisation_comes_along() {
    let (config, store) = network("pspnet_resnet18", 3);
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &card(config), &store.tensors()).unwrap();
    let source = folder.path().display().to_string();
    for source in [source.clone(), format!("{source}/{WEIGHTS_FILE}")] {
        let taken = weights::load(&source, &config, CLASSES, Part::Everything).unwrap();
        assert_eq!((taken.normalisation, taken.report.scheme), (Some(NORMALISATION), Scheme::Own));
        assert_eq!(taken.tensors.keys().collect::<Vec<_>>(), store.tensors().keys().collect::<Vec<_>>());
        for (name, tensor) in &store.tensors() {
            assert_eq!(values(&taken.tensors[name]), values(tensor), "{name}");
        }
    }
    // With other classes: refused with a way out, which leaves out the classifiers alone.
    let message = weights::load(&source, &config, CLASSES + 1, Part::Everything).unwrap_err().to_string();
    assert!(message.contains("classifier.weight has shape") && message.contains("all-but-classifiers"), "{message}");
    assert!(!message.contains('\n'));
    let taken = weights::load(&source, &config, CLASSES + 1, Part::AllButClassifiers).unwrap();
    let outside = ["aux.classifier.bias", "aux.classifier.weight", "classifier.bias", "classifier.weight"];
    assert_eq!(taken.report.outside, outside);
    assert_eq!(taken.tensors.len() + outside.len(), store.tensors().len());
    // Damage to the weights is found by the card beside them.
    let path = folder.path().join(WEIGHTS_FILE);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let message = weights::load(&source, &config, CLASSES, Part::Everything).unwrap_err().to_string();
    assert!(message.contains("SHA-256"), "{message}");
}

#[test]
fn a_backbone_is_saved_by_itself_and_is_no_network() {
    let (config, store) = network("pspnet_resnet18", 3);
    let folder = tempfile::tempdir().unwrap();
    let file = write(&folder.path().join("all.safetensors"), &store.tensors());
    let taken = weights::load(&file, &config, CLASSES, Part::Backbone).unwrap();
    assert!(taken.normalisation.is_none() && taken.tensors.keys().all(|name| name.starts_with("backbone.")));
    let card = BackboneCard::new(&config, NORMALISATION, Imported::from(&taken.report)).unwrap();
    let to = folder.path().join("made/backbone");
    save_backbone(&to, &card, &taken.tensors).unwrap();

    let message = load(&to).unwrap_err().to_string();
    assert!(message.contains("kind is \"backbone\"") && message.contains("whole network"), "{message}");
    let again = weights::load(&to.display().to_string(), &config, CLASSES, Part::Backbone).unwrap();
    assert_eq!(again.normalisation, Some(NORMALISATION));
    for (name, tensor) in &again.tensors {
        assert_eq!(values(tensor), values(&store.tensors()[name]), "{name}");
    }
    let message = weights::load(&to.display().to_string(), &config, CLASSES, Part::Everything).unwrap_err().to_string();
    assert!(message.contains("missing") && message.contains("the part `backbone`"), "{message}");
    // ENet has no backbone of its own name.
    let (enet, _) = network("enet", 1);
    assert!(weights::load(&file, &enet, CLASSES, Part::Backbone).unwrap_err().to_string().contains("no backbone"));
    assert!(BackboneCard::new(&enet, NORMALISATION, Imported::from(&taken.report)).is_err());
}

#[test]
fn a_classifiers_backbone_gives_the_same_features_and_timms_settings_are_read() {
    let config = backbone_alone(Architecture::ResNet18, 0.125, Some(Stem::Classic));
    let store = ParamStore::new(4, DType::F32, &Device::Cpu);
    build(&config, 1, store.builder()).unwrap();
    // As torchvision names it, in a DataParallel, with a classifier; half precision.
    let mut theirs: BTreeMap<String, Tensor> = store
        .tensors()
        .into_iter()
        .filter_map(|(name, tensor)| Some((format!("module.{}", name.strip_prefix("backbone.")?), tensor)))
        .map(|(name, tensor)| (name, tensor.to_dtype(DType::F16).unwrap()))
        .collect();
    theirs.insert("module.fc.weight".into(), Tensor::zeros((10, 64), DType::F16, &Device::Cpu).unwrap());
    theirs.insert("module.bn1.num_batches_tracked".into(), Tensor::new(3i64, &Device::Cpu).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = write(&folder.path().join("resnet.safetensors"), &theirs);
    let taken = weights::load(&file, &config, 1, Part::Backbone).unwrap();
    assert_eq!(taken.normalisation.unwrap().mean, [0.485, 0.456, 0.406]);
    assert_eq!(taken.report.outside, ["fc.weight"]);
    assert_eq!(taken.report.ignored, ["bn1.num_batches_tracked"]);
    assert_eq!(taken.report.matched.len(), taken.tensors.len());
    for (name, tensor) in &taken.tensors {
        let rounded = store.tensors()[name].to_dtype(DType::F16).unwrap().to_dtype(DType::F32).unwrap();
        assert_eq!(values(tensor), values(&rounded), "{name}");
    }
    let text = taken.report.to_string();
    for part in ["torchvision", "matched", "not asked for       1  fc.weight", "note"] {
        assert!(text.contains(part), "{text}");
    }
    fs::write(
        folder.path().join("config.json"),
        r#"{"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}"#,
    )
    .unwrap();
    let stated = weights::load(&file, &config, 1, Part::Backbone).unwrap().normalisation.unwrap();
    assert_eq!((stated.mean, stated.std), ([0.5; 3], [0.25; 3]));
}

#[test]
fn the_distillation_codes_network_is_changed_where_it_differs() {
    let (config, store) = network("pspnet_resnet18", 6);
    let own = store.tensors();
    // Every scale with alternating sign, as in-place ABN allows.
    let mut theirs = BTreeMap::new();
    for (name, tensor) in &own {
        let renamed = match name.strip_prefix("backbone.") {
            Some(name) => name.to_string(),
            None => [
                ("decoder.stages.0.conv", "pspmodule.stages.0.1"),
                ("decoder.stages.0.bn", "pspmodule.stages.0.2"),
                ("decoder.stages.1.conv", "pspmodule.stages.1.1"),
                ("decoder.stages.1.bn", "pspmodule.stages.1.2"),
                ("decoder.stages.2.conv", "pspmodule.stages.2.1"),
                ("decoder.stages.2.bn", "pspmodule.stages.2.2"),
                ("decoder.stages.3.conv", "pspmodule.stages.3.1"),
                ("decoder.stages.3.bn", "pspmodule.stages.3.2"),
                ("decoder.bottleneck.conv", "pspmodule.bottleneck.0"),
                ("decoder.bottleneck.bn", "pspmodule.bottleneck.1"),
                ("aux.conv", "dsn.0"),
                ("aux.bn", "dsn.1"),
                ("aux.classifier", "dsn.3"),
                ("classifier", "head"),
            ]
            .iter()
            .find_map(|(ours, theirs)| Some(format!("{theirs}{}", name.strip_prefix(ours)?)))
            .unwrap(),
        };
        theirs.insert(renamed, tensor.clone());
    }
    theirs.insert("dsn.0.bias".into(), Tensor::full(2f32, 8, &Device::Cpu).unwrap());
    theirs.insert("bn1.weight".into(), Tensor::full(-1f32, own["backbone.bn1.weight"].dims(), &Device::Cpu).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = write(&folder.path().join("skd.safetensors"), &theirs);
    let taken = weights::load(&file, &config, CLASSES, Part::Everything).unwrap();
    assert_eq!(taken.report.scheme, Scheme::SkdPspnet);
    assert!(taken.report.notes.iter().any(|note| note.contains("not the same network")), "{}", taken.report);

    let first = |tensors: &BTreeMap<String, Tensor>| {
        tensors["backbone.conv1.weight"].narrow(0, 0, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (bgr, rgb) = (first(&own), first(&taken.tensors));
    assert_eq!([&bgr[..9], &bgr[9..18], &bgr[18..]], [&rgb[18..], &rgb[9..18], &rgb[..9]]);
    // The mean of Caffe is that of blue, green, red.
    let mean = taken.normalisation.unwrap().mean.map(|mean| mean * 255.0);
    assert!((mean[0] - 122.678_91).abs() < 1e-3 && (mean[2] - 104.006_99).abs() < 1e-3, "{mean:?}");
    // 4 branches of 8 channels stand before 64 of the feature there, behind them here.
    let merge = |tensors: &BTreeMap<String, Tensor>, from: usize, count: usize| {
        values(&tensors["decoder.bottleneck.conv.weight"].narrow(1, from, count).unwrap().contiguous().unwrap())
    };
    assert_eq!(merge(&taken.tensors, 0, 64), merge(&own, 32, 64));
    assert_eq!(merge(&taken.tensors, 64, 32), merge(&own, 0, 32));
    // bias before a normalisation: (x + b − μ) = (x − (μ − b)).
    assert_eq!(values(&taken.tensors["aux.bn.running_mean"]), [-2.0; 8]);
    assert!(values(&taken.tensors["backbone.bn1.weight"]).iter().all(|&scale| (scale - 1.000_01).abs() < 1e-6));
    let network = build(&config, CLASSES, dsd_models::tensor_builder(taken.tensors, DType::F32, &Device::Cpu)).unwrap();
    network.forward(&images(1, 33, 33), Mode::Eval).unwrap();
}

#[test]
fn what_cannot_be_a_source_is_an_error_of_one_line() {
    let config = variant("pspnet_resnet18_half").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let one = |name: &str| BTreeMap::from([(name.to_string(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap())]);
    let unknown = write(&folder.path().join("unknown.safetensors"), &one("blocks.attention.qkv"));
    let empty = write(&folder.path().join("empty.safetensors"), &BTreeMap::new());
    let message = |source: &str| {
        let message = weights::load(source, &config, CLASSES, Part::Backbone).unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
        message
    };
    assert!(message(&unknown).contains("blocks.attention.qkv"), "{}", message(&unknown));
    assert!(message(&empty).contains("no tensors"), "{}", message(&empty));
    assert!(message("no/such/file.pth").contains("no/such/file.pth: cannot read the weights"));
    assert!(message("hub:without-a-revision").contains("hub:owner/name@revision"));
    #[cfg(not(feature = "hub"))]
    assert!(message("hub:a/b@main").contains("--features hub"));
    // A card that is of other weights is no card for these.
    fs::write(folder.path().join(CARD_FILE), "{}").unwrap();
    assert!(message(&unknown).contains("known scheme"));
}

/// The file is kept beside the repository; without it there is nothing to test.
#[test]
fn the_real_efficientnet_lite0_is_recognised_tensor_by_tensor() {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/weights/efficientnet_lite0_imagenet.safetensors");
    if !file.exists() {
        eprintln!("skipped: {} is not there", file.display());
        return;
    }
    let config = backbone_alone(Architecture::EfficientNetLite0, 1.0, None);
    let taken = weights::load(&file.display().to_string(), &config, 1, Part::Backbone).unwrap();
    let report = &taken.report;
    assert_eq!(report.scheme, Scheme::EfficientNetLite);
    let all = report.matched.len() + report.outside.len() + report.ignored.len();
    assert_eq!((all, report.matched.len(), report.ignored.len()), (296, 240, 49), "{report}");
    assert_eq!(
        report.outside,
        [
            "_bn1.bias",
            "_bn1.running_mean",
            "_bn1.running_var",
            "_bn1.weight",
            "_conv_head.weight",
            "_fc.bias",
            "_fc.weight"
        ]
    );
    let stated = taken.normalisation.unwrap();
    assert_eq!((stated.mean, stated.std), ([127.0 / 255.0; 3], [128.0 / 255.0; 3]));
}
