//! Datasets of every kind open, and what is wrong with one is named.

use std::fs;
use std::path::Path;

use dsd_data::{Dataset, IGNORE, OpenOptions, open};

use crate::{message, write_pair};

fn refused(kind: &str, root: &Path, split: &str) -> String {
    message(open(kind, Some(root), split, &OpenOptions::default()).map(|_| ()))
}

fn opened(kind: &str, root: &Path, split: &str) -> std::sync::Arc<dyn Dataset> {
    open(kind, Some(root), split, &OpenOptions::default()).expect("opens")
}

#[test]
fn camvid_opens_by_list_by_folder_and_by_the_tutorials_prefix() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path();
    let base = root.join("CamVid");
    for (stem, id) in [("b", 11), ("a", 10)] {
        let label = base.join(format!("trainannot/{stem}.png"));
        write_pair(&base.join(format!("train/{stem}.png")), &label, 6, 4, id);
    }
    // By folders: sorted; the root may be the folder above.
    for place in [root, base.as_path()] {
        let dataset = opened("camvid", place, "train");
        assert_eq!((dataset.len(), dataset.name(0).as_str()), (2, "a"));
        assert_eq!(dataset.sample(0).expect("reads").labels.ids, [10; 24]);
        assert_eq!(dataset.sample(1).expect("reads").labels.ids, [IGNORE; 24]);
    }
    // By list: in the list's order.
    let lists = [
        "train/b.png trainannot/b.png\n\ntrain/a.png trainannot/a.png\n",
        "/SegNet/CamVid/train/b.png /SegNet/CamVid/trainannot/b.png\r\n/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png",
    ];
    for list in lists {
        fs::write(base.join("train.txt"), list).expect("writes");
        let dataset = opened("camvid", root, "train");
        assert_eq!((dataset.name(0), dataset.name(1)), ("b".into(), "a".into()));
    }
}

#[test]
fn what_is_wrong_with_a_camvid_folder_is_named_with_its_place() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path();
    assert!(refused("camvid", &root.join("none"), "train").contains("none: no such folder"));
    assert!(
        refused("camvid", root, "train")
            .contains("holds no train split of camvid; known forms: SegNet (SPLIT/NAME.png")
    );
    assert!(refused("camvid", root, "holdout").contains("train, val, test"));
    write_pair(&root.join("train/a.png"), &root.join("trainannot/a.png"), 6, 4, 3);
    let list = root.join("train.txt");
    fs::write(&list, "train/a.png trainannot/a.png\ntrain/a.png\n").expect("writes");
    assert!(refused("camvid", root, "train").contains("train.txt:2: expected an image and a label path"));
    fs::write(&list, "train/a.png trainannot/z.png\n").expect("writes");
    assert!(refused("camvid", root, "train").contains("train.txt:1: no file trainannot/z.png"));
    fs::write(&list, "train/../train/a.png trainannot/a.png\n").expect("writes");
    assert!(refused("camvid", root, "train").contains("train.txt:1: no file train/../train/a.png"));
    fs::write(&list, "\n").expect("writes");
    assert!(refused("camvid", root, "train").contains("lists no pair"));
    fs::remove_file(&list).expect("removes");
    fs::remove_file(root.join("trainannot/a.png")).expect("removes");
    assert!(refused("camvid", root, "train").contains("a.png: has no label map"));

    write_pair(&root.join("train/a.png"), &root.join("trainannot/a.png"), 6, 4, 12);
    let text = message(opened("camvid", root, "train").sample(0));
    assert!(text.contains("trainannot/a.png: label id 12 at column 0, row 0") && text.contains("0–10"), "{text}");
    write_pair(&root.join("train/other.png"), &root.join("trainannot/a.png"), 5, 4, 1);
    fs::remove_file(root.join("train/other.png")).expect("removes");
    let text = message(opened("camvid", root, "train").sample(0));
    assert!(text.contains("is 6x4 pixels, its label map") && text.contains("is 5x4"), "{text}");
}

fn own_data(root: &Path, count: usize) {
    for index in 0..count {
        let name = format!("{index}.png");
        write_pair(&root.join("images").join(&name), &root.join("labels").join(&name), 4, 3, 7);
    }
    fs::write(root.join("classes.toml"), "names = [\"road\", \"car\"]\nids = [7, 9]\nignore = 0\n").expect("writes");
}

#[test]
fn own_data_is_split_by_seed_into_disjoint_parts() {
    let folder = tempfile::tempdir().expect("folder");
    own_data(folder.path(), 10);
    let names = |split: &str| {
        let dataset = opened("folder", folder.path(), split);
        (0..dataset.len()).map(|index| dataset.name(index)).collect::<Vec<_>>()
    };
    let (train, val) = (names("train"), names("val"));
    assert_eq!((train.len(), val.len(), names("all").len()), (8, 2, 10));
    assert!(val.iter().all(|name| !train.contains(name)));
    let sample = opened("folder", folder.path(), "val").sample(0).expect("reads");
    assert_eq!(sample.labels.ids, [0; 12], "id 7 is class 0");
    // A list wins over the share.
    fs::write(folder.path().join("val.txt"), "3\n\n1\n").expect("writes");
    assert_eq!(names("val"), ["3", "1"]);
    fs::write(folder.path().join("val.txt"), "3\n44\n").expect("writes");
    assert!(refused("folder", folder.path(), "val").contains("val.txt:2: no image 44.png"));
    fs::write(folder.path().join("val.txt"), "../3\n").expect("writes");
    assert!(refused("folder", folder.path(), "val").contains("val.txt:1: expected a file stem"));
}

#[test]
fn what_is_wrong_with_own_data_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path();
    assert!(refused("folder", root, "train").contains("classes.toml: cannot read"));
    own_data(root, 3);
    assert!(refused("folder", root, "extra").contains("no extra.txt"));
    for (text, expected) in [
        ("names = [\"a\"]\ncolor = 3", "color"),
        ("names = [\"a\", \"a\"]", "named twice"),
        ("names = [\"a\", \"b\"]\nids = [1]", "one per class (2), got 1"),
        ("names = [\"a\", \"b\"]\nids = [1, 1]", "belongs to two classes"),
        ("names = [\"a\"]\ncolours = []", "colours"),
        ("names = [\"a\"", "classes.toml: "),
    ] {
        fs::write(root.join("classes.toml"), text).expect("writes");
        let message = refused("folder", root, "train");
        assert!(message.contains("classes.toml") && message.contains(expected), "{message}");
    }
    assert!(
        message(open("kitti", None, "train", &OpenOptions::default()).map(|_| ()))
            .contains("streets, camvid, cityscapes, ade20k, voc2012 or folder")
    );
    assert!(message(open("camvid", None, "train", &OpenOptions::default()).map(|_| ())).starts_with("root: "));
}
