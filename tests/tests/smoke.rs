//! The run that `dsd train smoke` makes: its table, its files, and its numbers counted again by hand.

use std::path::Path;

use candle_core::{Device, Tensor};
use dsd_data::{Dataset, IGNORE, OpenOptions, RgbImage};
use dsd_models::{Mode, Segmenter};
use dsd_train::recipe::Recipe;
use serde_json::Value;

use crate::program::{dsd, json, smoke_run, succeed, text};

const ROLES: [&str; 3] = ["teacher", "baseline", "distilled"];
const CLASSES: [&str; 11] =
    ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"];

fn recipe(run: &Path) -> Recipe {
    Recipe::read(text(&run.join("recipe.toml")), &[]).unwrap()
}

/// The validation images of a `streets` run.
fn validation(recipe: &Recipe) -> std::sync::Arc<dyn Dataset> {
    let (count, size) = (recipe.data.val_count.unwrap(), recipe.data.size.unwrap());
    let options = OpenOptions { seed: recipe.seed, count, size: Some(size), ..OpenOptions::default() };
    dsd_data::open("streets", None, "val", &options).unwrap()
}

#[test]
fn it_prints_the_table_of_metrics_json_and_the_page() {
    let (run, stdout) = smoke_run();
    let metrics = json(&run.join("metrics.json"));
    for role in ROLES {
        let row = stdout.lines().find(|line| line.starts_with(role)).unwrap_or_else(|| panic!("no {role}: {stdout}"));
        let cells: Vec<&str> = row.split_whitespace().collect();
        for (cell, key) in cells[1..4].iter().zip(["miou", "mean_accuracy", "pixel_accuracy"]) {
            assert_eq!(*cell, format!("{:.2}", 100.0 * metrics[role][key].as_f64().unwrap()), "{role} {key}: {row}");
        }
    }
    for class in CLASSES {
        assert!(stdout.lines().any(|line| line.starts_with(class)), "no row for {class}: {stdout}");
    }
    assert_eq!(stdout.lines().last().unwrap(), format!("page: {}", run.join("report.html").display()));
}

#[test]
fn metrics_json_has_fractions_for_every_role_and_class() {
    let (run, _) = smoke_run();
    let metrics = json(&run.join("metrics.json"));
    let is_fraction = |value: &Value| value.as_f64().is_some_and(|value| (0.0..=1.0).contains(&value));
    assert_eq!(metrics.as_object().unwrap().len(), ROLES.len());
    for role in ROLES {
        for key in ["miou", "pixel_accuracy", "mean_accuracy"] {
            assert!(is_fraction(&metrics[role][key]), "{role} {key}: {}", metrics[role][key]);
        }
        let iou = metrics[role]["iou"].as_object().unwrap();
        assert_eq!(iou.len(), CLASSES.len());
        let mut counted = Vec::new();
        for class in CLASSES {
            let value = iou.get(class).unwrap_or_else(|| panic!("{role} has no {class}"));
            assert!(value.is_null() || is_fraction(value), "{role} {class}: {value}");
            counted.extend(value.as_f64());
        }
        let mean = counted.iter().sum::<f64>() / counted.len() as f64;
        assert!((mean - metrics[role]["miou"].as_f64().unwrap()).abs() < 1e-12, "{role}: the mean of the classes");
    }
}

#[test]
fn the_page_needs_nothing_but_itself() {
    let (run, _) = smoke_run();
    let page = std::fs::read_to_string(run.join("report.html")).unwrap().replace("&#x2f;", "/");
    for outside in ["http://", "https://", "<link", "@import", "src=\"//", "<iframe"] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
    let sources: Vec<&str> = page.split("src=\"").skip(1).collect();
    assert!(!sources.is_empty(), "no picture");
    for source in sources {
        let start: String = source.chars().take(30).collect();
        assert!(start.starts_with("data:image/"), "a source outside the page: {start}");
    }
    for name in CLASSES.iter().chain(&ROLES) {
        assert!(page.contains(name), "no {name} on the page");
    }
}

#[test]
fn the_page_can_be_written_again_from_the_folder() {
    let (run, stdout) = smoke_run();
    let copy = tempfile::tempdir().unwrap();
    let files = ["recipe.toml", "environment.json", "log.jsonl", "metrics.json"].map(String::from);
    let of_roles = ROLES.iter().flat_map(|role| {
        ["done.json", "times.json", "best/model.json", "best/model.safetensors", "best/metrics.json"]
            .map(|file| format!("{role}/{file}"))
    });
    for file in files.into_iter().chain(of_roles) {
        let target = copy.path().join(&file);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(run.join(&file), target).unwrap();
    }
    let printed = succeed(&mut dsd(&["report", text(copy.path())]));
    let table = |text: &str| text.lines().filter(|line| !line.starts_with("page:")).collect::<Vec<_>>().join("\n");
    assert_eq!(table(&printed), table(stdout));
    let page = |folder: &Path| std::fs::read(folder.join("report.html")).unwrap();
    assert!(page(copy.path()) == page(run), "the page written again differs");
}

#[test]
fn the_kept_recipe_resolves_to_itself() {
    let (run, _) = smoke_run();
    let text = std::fs::read_to_string(run.join("recipe.toml")).unwrap();
    let kept = Recipe::parse("recipe.toml", &text, &[]).unwrap();
    assert_eq!(kept.to_toml().unwrap(), text);
    assert_eq!(kept, Recipe::read("smoke", &[]).unwrap());
}

#[test]
fn eval_returns_the_numbers_of_the_run_whatever_the_batch_size() {
    let (run, _) = smoke_run();
    let recipe = recipe(run);
    let [height, width] = recipe.data.size.unwrap().map(|side| side.to_string());
    let (seed, count) = (recipe.seed.to_string(), recipe.data.val_count.unwrap().to_string());
    for (role, batch_size) in [("teacher", "4"), ("baseline", "4"), ("distilled", "4"), ("distilled", "1")] {
        let model = run.join(role).join("best");
        let mut eval = dsd(&["eval", "--model", text(&model), "--dataset", "streets", "--json", "--seed", &seed]);
        eval.args(["--count", &count, "--size", &height, &width, "--batch-size", batch_size]);
        let printed: Value = serde_json::from_str(&succeed(&mut eval)).unwrap();
        let expected = &json(&run.join("metrics.json"))[role];
        assert_eq!(&printed, expected, "{role}, batches of {batch_size}");
    }
}

/// The class of every pixel, from the network's logits; the first of equal ones.
fn classify(network: &dyn Segmenter, image: &RgbImage, normalisation: &dsd_models::Normalisation) -> Vec<u8> {
    let (height, width) = (image.height, image.width);
    let mut input = vec![0f32; 3 * height * width];
    for channel in 0..3 {
        for position in 0..height * width {
            let value = f32::from(image.pixels[3 * position + channel]) / 255.0;
            input[channel * height * width + position] =
                (value - normalisation.mean[channel]) / normalisation.std[channel];
        }
    }
    let input = Tensor::from_vec(input, (1, 3, height, width), &Device::Cpu).unwrap();
    let logits = network.forward(&input, Mode::Eval).unwrap().logits;
    assert_eq!(logits.dims(), [1, CLASSES.len(), height, width], "this student's logits have the image's size");
    let logits: Vec<Vec<f32>> = logits.squeeze(0).unwrap().flatten_from(1).unwrap().to_vec2().unwrap();
    (0..height * width)
        .map(|position| {
            let best = (1..CLASSES.len())
                .fold(0, |best, class| if logits[class][position] > logits[best][position] { class } else { best });
            best as u8
        })
        .collect()
}

#[test]
fn an_independent_count_gives_the_same_iou() {
    let (run, _) = smoke_run();
    let dataset = validation(&recipe(run));
    assert_eq!(dataset.classes().names, CLASSES);
    let metrics = json(&run.join("metrics.json"));
    for role in ["baseline", "distilled"] {
        let saved = dsd_models::load(&run.join(role).join("best")).unwrap();
        let network = saved.segmenter().unwrap();
        let (mut both, mut either) = ([0u64; CLASSES.len()], [0u64; CLASSES.len()]);
        let (mut right, mut counted) = (0u64, 0u64);
        for index in 0..dataset.len() {
            let sample = dataset.sample(index).unwrap();
            let predicted = classify(network.as_ref(), &sample.image, &saved.card.normalisation);
            for (&label, &guess) in sample.labels.ids.iter().zip(&predicted) {
                if label == IGNORE {
                    continue;
                }
                counted += 1;
                right += u64::from(label == guess);
                either[usize::from(label)] += 1;
                if label == guess {
                    both[usize::from(label)] += 1;
                } else {
                    either[usize::from(guess)] += 1;
                }
            }
        }
        assert!(counted > 0);
        for (class, name) in CLASSES.iter().enumerate() {
            let expected = (either[class] > 0).then(|| both[class] as f64 / either[class] as f64);
            let stored = &metrics[role]["iou"][name];
            assert_eq!(*stored, serde_json::Value::from(expected), "{role} {name}");
        }
        assert_eq!(metrics[role]["pixel_accuracy"], serde_json::Value::from(right as f64 / counted as f64), "{role}");
    }
}

#[test]
fn predict_writes_class_indices_with_the_palette_and_an_overlay() {
    let (run, _) = smoke_run();
    let folder = tempfile::tempdir().unwrap();
    let sample = validation(&recipe(run)).sample(0).unwrap();
    let (width, height) = (sample.image.width as u32, sample.image.height as u32);
    let picture = image::RgbImage::from_raw(width, height, sample.image.pixels.clone()).unwrap();
    let path = folder.path().join("street.png");
    picture.save(&path).unwrap();

    let (model, out) = (run.join("distilled").join("best"), folder.path().join("out"));
    let printed = succeed(&mut dsd(&["predict", "--model", text(&model), text(&path), "--out", text(&out)]));
    assert_eq!(printed.lines().count(), 1, "{printed}");
    assert!(printed.contains("street.png"), "{printed}");

    let saved = dsd_models::load(&model).unwrap();
    let file = std::io::BufReader::new(std::fs::File::open(out.join("street.png")).unwrap());
    let mut decoder = png::Decoder::new(file);
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info().unwrap();
    let info = reader.info();
    assert_eq!((info.width, info.height, info.color_type), (width, height, png::ColorType::Indexed));
    assert_eq!(info.bit_depth, png::BitDepth::Eight);
    let palette = info.palette.as_ref().unwrap().to_vec();
    for (class, colour) in saved.card.classes.iter().zip(palette.chunks_exact(3)) {
        assert_eq!(colour, class.colour, "{}", class.name);
    }
    let mut indices = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut indices).unwrap();
    let expected = classify(saved.segmenter().unwrap().as_ref(), &sample.image, &saved.card.normalisation);
    assert!(indices == expected, "the indices are not the classes");

    let overlay = image::open(out.join("street_overlay.png")).unwrap();
    assert_eq!((overlay.width(), overlay.height(), overlay.color()), (width, height, image::ColorType::Rgb8));
    assert!(overlay.as_bytes() != picture.as_raw().as_slice(), "the overlay shows no classes");
}
