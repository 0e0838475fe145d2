//! Every form of every published dataset is found and read, and ids survive on every path.

use std::fs;
use std::path::Path;

use dsd_data::{
    Dataset, Encoding, IGNORE, IdMap, LabelMap, OpenOptions, Published, manifest, manifests, open, read_labels,
    write_grey_png,
};

use crate::message;
use crate::miniatures::{self, class};

fn opened(name: &str, root: &Path, split: &str) -> Published {
    Published::open(name, root, split).unwrap_or_else(|error| panic!("{error}"))
}

/// The first ids of a split's first sample.
fn first(name: &str, root: &Path, split: &str, count: usize) -> Vec<u8> {
    opened(name, root, split).sample(0).unwrap_or_else(|error| panic!("{error}")).labels.ids[..count].to_vec()
}

#[test]
fn cityscapes_label_ids_become_train_ids_and_its_cities_one_split() {
    let folder = tempfile::tempdir().expect("folder");
    miniatures::cityscapes(folder.path(), "labelIds", &[7, 33, 0, 29, 24, 255]);
    let train = opened("cityscapes", folder.path(), "train");
    let names: Vec<String> = (0..train.len()).map(|index| train.name(index)).collect();
    assert_eq!(names[1..], ["aachen_000000_000019_leftImg8bit", "bochum_000000_000003_leftImg8bit"]);
    assert_eq!(first("cityscapes", folder.path(), "val", 6), [0, 18, IGNORE, IGNORE, 11, IGNORE]);
    assert!(message(Published::open("cityscapes", folder.path(), "test")).contains("holds no test split"));
    // Files of train ids are known by their name, and labelIds win.
    let other = tempfile::tempdir().expect("folder");
    miniatures::cityscapes(other.path(), "labelTrainIds", &[0, 18, 255]);
    assert_eq!(first("cityscapes", other.path(), "train", 3), [0, 18, IGNORE]);
    miniatures::cityscapes(other.path(), "labelIds", &[8]);
    assert_eq!(first("cityscapes", other.path(), "train", 2), [1, 1]);
}

#[test]
fn ade20k_counts_from_one_and_ignores_other() {
    let folder = tempfile::tempdir().expect("folder");
    miniatures::ade20k(folder.path(), &[0, 1, 150]);
    for root in [folder.path().to_path_buf(), folder.path().join("ADEChallengeData2016")] {
        assert_eq!(opened("ade20k", &root, "train").len(), 2);
        assert_eq!(first("ade20k", &root, "val", 3), [IGNORE, 0, 149]);
    }
    miniatures::ade20k(folder.path(), &[151]);
    let reason = message(opened("ade20k", folder.path(), "val").sample(0));
    assert!(reason.contains("label id 151") && reason.contains("1–150; ignored: 0, 255"), "{reason}");
}

#[test]
fn voc_palettes_are_read_as_indices_and_trainaug_with_or_without_a_list() {
    let folder = tempfile::tempdir().expect("folder");
    miniatures::voc2012(folder.path(), &[0, 20, 255]);
    let base = folder.path().join("VOCdevkit/VOC2012");
    for (split, count) in [("train", 2), ("val", 1), ("trainval", 3)] {
        assert_eq!(opened("voc2012", folder.path(), split).len(), count);
        assert_eq!(first("voc2012", &base, split, 3), [0, 20, IGNORE]);
    }
    assert!(message(Published::open("voc2012", &base, "trainaug")).contains("holds no trainaug split"));
    // The usual folder holds labels of val too: they stay out.
    for name in ["2007_000032", "2007_000033", "2008_000003"] {
        miniatures::ids(&base.join(format!("SegmentationClassAug/{name}.png")), &[5]);
    }
    let aug = opened("voc2012", &base, "trainaug");
    assert_eq!((0..aug.len()).map(|at| aug.name(at)).collect::<Vec<_>>(), ["2007_000032", "2008_000003"]);
    // With a list; labels that the folder lacks are VOC's own.
    let list = base.join("ImageSets/Segmentation/trainaug.txt");
    fs::write(&list, "2007_000039\n2008_000003\n").expect("list");
    assert_eq!(first("voc2012", &base, "trainaug", 2), [0, 20]);
    fs::write(&list, "2008_000003\n2009_000001\n").expect("list");
    assert!(message(Published::open("voc2012", &base, "trainaug")).contains("trainaug.txt:2: no image"));
}

#[test]
fn every_packing_of_camvid_gives_the_same_split_and_classes() {
    // Column_Pole, Bridge, Sidewalk, Void, Sky.
    let masks = [[192, 192, 128], [0, 128, 64], [0, 0, 192], [0, 0, 0], [128, 128, 128]];
    let raw = [8, 3, 19, 30, 21];
    let of = |name: &str| class("camvid", name);
    let merged = [of("Pole"), of("Building"), of("Pavement"), IGNORE, of("Sky")];
    let exact = [of("Pole"), IGNORE, of("Pavement"), IGNORE, of("Sky")];
    type Make<'a> = &'a dyn Fn(&Path);
    let forms: [(&str, Make<'_>); 3] = [
        ("original", &|root| miniatures::camvid_original(root, &masks)),
        ("fastai", &|root| miniatures::camvid_fastai(root, &raw)),
        ("kaggle", &|root| miniatures::camvid_kaggle(root, &masks)),
    ];
    for (form, make) in forms {
        let folder = tempfile::tempdir().expect("folder");
        make(folder.path());
        let train = opened("camvid", folder.path(), "train");
        let names: Vec<String> = (0..train.len()).map(|at| train.name(at)).collect();
        assert_eq!(names, miniatures::FRAMES[..2], "{form}");
        assert_eq!(opened("camvid", folder.path(), "val").name(0), miniatures::FRAMES[2], "{form}");
        assert_eq!(opened("camvid", folder.path(), "test").name(0), miniatures::FRAMES[3], "{form}");
        for split in ["train", "val", "test"] {
            assert_eq!(first("camvid", folder.path(), split, 5), merged, "{form}");
            assert_eq!(first("camvid:merge", folder.path(), split, 5), merged, "{form}");
            assert_eq!(first("camvid:exact", folder.path(), split, 5), exact, "{form}");
        }
        assert!(message(Published::open("camvid:half", folder.path(), "train")).contains("merge, exact"));
    }
    let folder = tempfile::tempdir().expect("folder");
    miniatures::camvid_paddle(folder.path(), &[0, 10, 11]);
    assert_eq!(first("camvid", folder.path(), "val", 3), [0, 10, IGNORE]);
    assert!(message(Published::open("voc2012:merge", folder.path(), "train")).contains("no policies"));
}

#[test]
fn a_colour_that_is_no_class_is_named_with_its_place() {
    let folder = tempfile::tempdir().expect("folder");
    miniatures::camvid_original(folder.path(), &[[128, 128, 128], [0, 128, 92]]);
    let reason = message(opened("camvid", folder.path(), "train").sample(0));
    assert!(reason.contains("0001TP_006690_L.png: colour (0, 128, 92) at column 1, row 0"), "{reason}");
    assert!(reason.contains("the nearest is (0, 128, 64)"), "{reason}");
}

#[test]
fn all_256_values_go_through_every_manifest_and_back() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("all.png");
    let mut checked = 0;
    for facts in manifests().expect("parse") {
        let (ids, map) = (facts.label_ids(), facts.id_map().expect("maps"));
        for raw in 0..=255u8 {
            let labels = LabelMap::new(1, 1, vec![raw]).expect("sizes fit");
            write_grey_png(&path, &labels, &(0..=255).collect::<Vec<u8>>()).expect("writes");
            let place = ids.iter().position(|id| *id == raw).map(|at| at as u8);
            match (read_labels(&path, &map), place) {
                (Ok(labels), Some(place)) => {
                    assert_eq!(labels.ids, [place]);
                    // What is predicted is written in the ids that were read.
                    write_grey_png(&path, &labels, &ids).expect("writes");
                    let own = IdMap::new(&(0..255).collect::<Vec<u8>>(), &[255]).expect("maps");
                    assert_eq!(read_labels(&path, &own).expect("reads").ids, [raw]);
                }
                (Ok(labels), None) => assert_eq!((labels.ids, map.train_id(raw)), (vec![IGNORE], Some(IGNORE))),
                (Err(error), None) => assert!(error.to_string().contains(&format!("label id {raw} "))),
                (Err(error), Some(_)) => panic!("{}: {error}", facts.name),
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 4 * 256);
}

#[test]
fn recipes_may_name_any_of_them() {
    for facts in manifests().expect("parse") {
        let folder = tempfile::tempdir().expect("folder");
        let text = message(open(&facts.name, Some(folder.path()), "train", &OpenOptions::default()).map(|_| ()));
        assert!(text.contains("known forms"), "{text}");
        assert!(message(open(&facts.name, None, "train", &OpenOptions::default()).map(|_| ())).starts_with("root: "));
    }
    let cityscapes = manifest("cityscapes").expect("is known");
    assert_eq!(cityscapes.layouts[0].encoding, Encoding::Ids);
}
