//! `check` names each fault of a dataset with what mends it, and calls nothing wrong that is right.

use std::fs;
use std::path::Path;

use dsd_data::{CheckReport, Severity, check, convert_masks, manifest};

use crate::miniatures;

fn checked(root: &Path, dataset: Option<&str>) -> CheckReport {
    check(root, dataset, &|_, _, _| {}).unwrap_or_else(|error| panic!("{error}"))
}

/// The texts of a kind of fault, after checking that each is one line.
fn told(report: &CheckReport, kind: &str) -> Vec<String> {
    assert!(report.faults.iter().all(|fault| !fault.text.contains('\n')), "{:?}", report.faults);
    report.faults.iter().filter(|fault| fault.kind == kind).map(|fault| fault.text.clone()).collect()
}

/// Kinds of errors but for the counts, which no miniature has right.
fn errors(report: &CheckReport) -> Vec<&'static str> {
    let errors = report.faults.iter().filter(|fault| fault.severity == Severity::Error && fault.kind != "count");
    errors.map(|fault| fault.kind).collect()
}

#[test]
fn every_form_is_recognised_and_nothing_else_is_wrong_with_it() {
    type Make = fn(&Path);
    let forms: [(&str, &str, Make); 8] = [
        ("cityscapes", "gtFine labelIds", |root| miniatures::cityscapes(root, "labelIds", &[7, 21, 23, 26, 3])),
        ("cityscapes", "gtFine labelTrainIds", |root| miniatures::cityscapes(root, "labelTrainIds", &[0, 8, 10, 255])),
        ("ade20k", "SceneParse150", |root| miniatures::ade20k(root, &[0, 1, 150])),
        ("voc2012", "VOCdevkit", |root| miniatures::voc2012(root, &[0, 15, 255])),
        ("camvid", "original", |root| miniatures::camvid_original(root, &[[128, 128, 128], [0, 0, 0]])),
        ("camvid", "fastai", |root| miniatures::camvid_fastai(root, &[21, 30, 17])),
        ("camvid", "Kaggle", |root| miniatures::camvid_kaggle(root, &[[128, 128, 128]])),
        ("camvid", "SegNet", |root| miniatures::camvid_paddle(root, &[0, 3, 11])),
    ];
    for (dataset, layout, make) in forms {
        let folder = tempfile::tempdir().expect("folder");
        make(folder.path());
        let report = checked(folder.path(), None);
        assert_eq!((report.dataset.as_str(), report.layout.as_str()), (dataset, layout));
        assert_eq!(errors(&report), Vec::<&str>::new(), "{layout}: {:?}", report.faults);
        assert!(told(&report, "count").iter().all(|text| text.contains("published are")));
        assert!(report.sheet.is_some() && report.splits.iter().all(|split| split.pairs > 0));
    }
    let folder = tempfile::tempdir().expect("folder");
    let error = check(folder.path(), None, &|_, _, _| {}).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("looks like none of camvid, cityscapes, ade20k, voc2012"), "{error}");
}

#[test]
fn labels_in_the_wrong_ids_are_recognised_as_a_whole() {
    type Make = fn(&Path);
    let grey: fn(&Path) = |root| miniatures::voc2012(root, &[0, 38, 147, 220]);
    let cases: [(&str, Make, &str); 5] = [
        ("label-ids-as-train-ids", |root| miniatures::cityscapes(root, "labelTrainIds", &[7, 21, 26]), "_labelIds.png"),
        (
            "train-ids-as-label-ids",
            |root| miniatures::cityscapes(root, "labelIds", &[0, 1, 8, 13, 255]),
            "_labelTrainIds.png",
        ),
        ("zero-as-ignore", |root| miniatures::ade20k(root, &[0, 1, 149, 255]), "lowered by one"),
        ("palette-as-grey", grey, "mode P"),
        (
            "unknown-id",
            |root| miniatures::camvid_paddle(root, &[0, 77]),
            "label ids 77 are none of this dataset's (0–10; ignored: 11, 255)",
        ),
    ];
    for (kind, make, expected) in cases {
        let folder = tempfile::tempdir().expect("folder");
        make(folder.path());
        let report = checked(folder.path(), None);
        let texts = told(&report, kind);
        assert!(report.failed() && !texts.is_empty(), "{kind}: {:?}", report.faults);
        assert!(texts.iter().all(|text| text.contains(expected)), "{kind}: {texts:?}");
    }
}

#[test]
fn rgb_masks_are_told_from_foreign_colours_and_turned_back() {
    let folder = tempfile::tempdir().expect("folder");
    miniatures::voc2012(folder.path(), &[0]);
    let masks = folder.path().join("VOCdevkit/VOC2012/SegmentationClass");
    for name in ["2007_000032", "2007_000033", "2007_000039"] {
        miniatures::colours(&masks.join(format!("{name}.png")), &[[0; 3], [0, 64, 128], [224, 224, 192]]);
    }
    let texts = told(&checked(folder.path(), None), "rgb-mask");
    assert!(texts.iter().any(|text| text.contains("dsd data masks DIR --dataset voc2012")), "{texts:?}");
    // As it says.
    let fixed = folder.path().join("fixed");
    assert_eq!(convert_masks(&masks, &fixed, manifest("voc2012").expect("is known")).expect("converts"), 3);
    fs::remove_dir_all(&masks).expect("removes");
    fs::rename(&fixed, &masks).expect("moves");
    let report = checked(folder.path(), None);
    assert_eq!(errors(&report), Vec::<&str>::new());
    assert_eq!(report.splits[0].pixels[20], 2 * 16, "a third is tvmonitor");
    miniatures::colours(&masks.join("2007_000033.png"), &[[1, 2, 3]]);
    let texts = told(&checked(folder.path(), None), "rgb-mask");
    assert!(texts.iter().any(|text| text.contains("not this dataset's")), "{texts:?}");
}

/// Own data with two classes.
fn own(root: &Path, raw: &[u8]) {
    for (shade, name) in (0..).zip(["a", "b", "c", "d"]) {
        miniatures::image(&root.join(format!("images/{name}.png")), shade);
        miniatures::ids(&root.join(format!("labels/{name}.png")), raw);
    }
    fs::write(root.join("classes.toml"), "names = [\"road\", \"car\"]\n").expect("classes");
    fs::write(root.join("train.txt"), "a\nb\nc\n").expect("list");
    fs::write(root.join("val.txt"), "d\n").expect("list");
}

#[test]
fn own_data_is_told_what_to_write_into_classes_toml() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path();
    own(root, &[0, 1, 255]);
    let report = checked(root, None);
    assert_eq!((report.dataset.as_str(), report.faults.len()), ("folder", 0), "{:?}", report.faults);
    assert_eq!(report.splits[0].pixels, [48, 48, 48]);
    for (raw, kind, fix) in [
        (&[0, 1, 2], "zero-as-ignore", "ids = [1, 2]\nignore = [0, 255]"),
        (&[0, 255, 255], "foreground-255", "ids = [0, 255]\nignore = []"),
    ] {
        own(root, raw);
        let texts = told(&checked(root, None), kind);
        assert!(!texts.is_empty() && texts[0].contains(&fix.replace('\n', " and ")), "{kind}: {texts:?}");
        fs::write(root.join("classes.toml"), format!("names = [\"road\", \"car\"]\n{fix}\n")).expect("classes");
        assert_eq!(errors(&checked(root, None)), Vec::<&str>::new(), "the advice mends it");
    }
}

#[test]
fn faults_of_single_files_are_named() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path();
    own(root, &[0, 1]);
    fs::copy(root.join("images/a.png"), root.join("images/d.png")).expect("copies");
    let whole = fs::read(root.join("images/b.png")).expect("reads");
    fs::write(root.join("images/b.png"), &whole[..whole.len() / 2]).expect("writes");
    crate::write_pair(&root.join("scratch.png"), &root.join("labels/c.png"), 5, 4, 1);
    miniatures::ids(&root.join("labels/d.png"), &[255]);
    let report = checked(root, Some("folder"));
    for (kind, parts) in [
        ("unreadable", &["images/b.png", "truncated PNG"] as &[&str]),
        ("size-mismatch", &["images/c.png", "is 8x6 pixels", "is 5x4"]),
        ("duplicate", &["images/d.png of val is the same image as", "images/a.png of train"]),
        ("all-ignored", &["val: 1 of 1 images", "labels/d.png"]),
    ] {
        let texts = told(&report, kind);
        assert!(texts.len() == 1 && parts.iter().all(|part| texts[0].contains(part)), "{kind}: {texts:?}");
    }
    // Many faults of one kind are counted, not listed.
    for index in 0..9 {
        miniatures::image(&root.join(format!("images/x{index}.png")), 9);
        miniatures::ids(&root.join(format!("labels/x{index}.png")), &[0]);
        fs::write(root.join(format!("images/x{index}.png")), b"no image").expect("writes");
    }
    fs::write(root.join("train.txt"), (0..9).map(|index| format!("x{index}\n")).collect::<String>()).expect("list");
    let texts = told(&checked(root, None), "unreadable");
    assert_eq!((texts.len(), texts[5].as_str()), (6, "… and 4 more of this kind"));
    assert!(told(&checked(root, None), "absent-class")[0].contains("nothing in train is car"));
    fs::write(root.join("val.txt"), "nowhere\n").expect("list");
    assert!(told(&checked(root, None), "split")[0].contains("val.txt:1: no image nowhere.png"));
}

#[test]
fn splits_that_share_by_design_are_no_duplicates() {
    let folder = tempfile::tempdir().expect("folder");
    miniatures::voc2012(folder.path(), &[0, 1]);
    let base = folder.path().join("VOCdevkit/VOC2012");
    assert_eq!(told(&checked(&base, None), "duplicate"), Vec::<String>::new());
    fs::write(base.join("ImageSets/Segmentation/trainaug.txt"), "2007_000033\n").expect("list");
    assert!(told(&checked(&base, None), "duplicate")[0].contains("2007_000033"), "val must stay out of trainaug");
}
