//! What the task losses are, what must not change them, and ties.

use candle_core::{DType, Device, Tensor, Var};
use dsd_similarity::{
    ClassSet, Dice, Focal, Keep, LovaszSoftmax, Ohem, Probability, Scope, Ssl, cross_entropy, dice, focal,
    lovasz_softmax, ohem_cross_entropy, ssl, ssl_distillation,
};

use super::super::{assert_close, flat, mask, normal, scalar};
use super::{DICE, IGNORED, LOVASZ, all_losses, all_ssl, labels, pixels};

const ROUNDING: f64 = 1e-12;

fn ids_of(labels: &Tensor) -> Vec<u8> {
    labels.flatten_all().unwrap().to_vec1().unwrap()
}

/// Logits that give each pixel's label, or the given class, all the probability.
fn certain(ids: &[u8], classes: usize, shape: (usize, usize, usize)) -> Tensor {
    let (n, h, w) = shape;
    let element = |index: usize| {
        let (image, class, position) = (index / (classes * h * w), index / (h * w) % classes, index % (h * w));
        if usize::from(ids[image * h * w + position]) == class { 100.0 } else { -100.0 }
    };
    Tensor::from_vec((0..n * classes * h * w).map(element).collect::<Vec<f64>>(), (n, classes, h, w), &Device::Cpu)
        .unwrap()
}

fn slopes(logits: &Tensor, loss: impl Fn(&Tensor) -> Tensor) -> Vec<f64> {
    let logits = Var::from_tensor(logits).unwrap();
    flat(loss(logits.as_tensor()).backward().unwrap().get(&logits).unwrap())
}

#[test]
fn a_sure_and_right_prediction_costs_nothing() {
    let ids = labels("right", &[2, 5, 6], 3, 0.2);
    let logits = certain(&ids_of(&ids), 3, (2, 5, 6));
    for (name, loss) in all_losses(3) {
        assert!(scalar(&loss(&logits, &ids).unwrap()) < 1e-30, "{name}");
    }
}

#[test]
fn with_everything_ignored_value_and_gradient_are_zero() {
    let (logits, ids) = (normal("nothing", &[2, 3, 4, 5], 2.0), labels("nothing", &[2, 4, 5], 3, 1.0));
    for (name, loss) in all_losses(3) {
        assert_eq!(scalar(&loss(&logits, &ids).unwrap()), 0.0, "{name}");
        assert!(slopes(&logits, |z| loss(z, &ids).unwrap()).iter().all(|&slope| slope == 0.0), "{name}");
    }
    let nothing = mask("nothing", &[2, 4, 5], 0.0);
    let teacher = normal("nothing teacher", &[2, 3, 4, 5], 2.0);
    for cfg in all_ssl() {
        let loss = |z: &Tensor| ssl_distillation(z, &teacher, Some(&nothing), cfg).unwrap();
        assert_eq!(scalar(&loss(&logits)), 0.0, "{cfg:?}");
        assert!(slopes(&logits, loss).iter().all(|&slope| slope == 0.0), "{cfg:?}");
    }
}

#[test]
fn an_ignored_image_is_no_image() {
    let logits = normal("images", &[2, 3, 4, 5], 2.0);
    let first = labels("images", &[1, 4, 5], 3, 0.1);
    let both = Tensor::cat(&[first.clone(), labels("no image", &[1, 4, 5], 3, 1.0)], 0).unwrap();
    let alone = logits.narrow(0, 0, 1).unwrap();
    for (name, loss) in all_losses(3) {
        let (both, alone) = (scalar(&loss(&logits, &both).unwrap()), scalar(&loss(&alone, &first).unwrap()));
        assert_close(&name, &[both], &[alone], ROUNDING);
    }
}

#[test]
fn the_order_of_images_and_of_classes_does_not_matter() {
    let (logits, ids) = (normal("order", &[2, 3, 4, 5], 2.0), labels("order", &[2, 4, 5], 3, 0.2));
    let swapped = |t: &Tensor| Tensor::cat(&[t.narrow(0, 1, 1).unwrap(), t.narrow(0, 0, 1).unwrap()], 0).unwrap();
    let class = |index| logits.narrow(1, index, 1).unwrap();
    let turned = Tensor::cat(&[class(1), class(2), class(0)], 1).unwrap();
    let turned_ids: Vec<u8> = ids_of(&ids).iter().map(|&id| if id == IGNORED { id } else { (id + 2) % 3 }).collect();
    let turned_ids = Tensor::from_vec(turned_ids, (2, 4, 5), &Device::Cpu).unwrap();
    for (name, loss) in all_losses(3) {
        let expected = scalar(&loss(&logits, &ids).unwrap());
        assert_close(&name, &[scalar(&loss(&swapped(&logits), &swapped(&ids)).unwrap())], &[expected], ROUNDING);
        // With class weights the classes are told apart.
        if !name.starts_with("weighted") {
            assert_close(&name, &[scalar(&loss(&turned, &turned_ids).unwrap())], &[expected], ROUNDING);
        }
    }
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let (logits, ids) = (normal("threads", &[2, 4, 70, 65], 2.0), labels("threads", &[2, 70, 65], 4, 0.1));
    let single = logits.to_dtype(DType::F32).unwrap();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let of = |(_, loss): super::Named| {
                let mut all = slopes(&single, |z| loss(z, &ids).unwrap());
                all.push(scalar(&loss(&single, &ids).unwrap()));
                all.into_iter().map(f64::to_bits).collect::<Vec<_>>()
            };
            all_losses(4).into_iter().map(of).collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert!(run(2) == one && run(5) == one);
}

#[test]
fn focal_without_focus_is_cross_entropy_and_more_focus_costs_less() {
    let (logits, ids) = (normal("focus", &[2, 4, 5, 6], 2.0), labels("focus", &[2, 5, 6], 4, 0.2));
    for weights in [None, Some([0.5, 1.0, 0.0, 3.0].as_slice())] {
        let value = |gamma| scalar(&focal(&logits, &ids, pixels(weights), Focal { gamma }).unwrap());
        let plain = scalar(&cross_entropy(&logits, &ids, pixels(weights)).unwrap());
        assert_close("γ = 0", &[value(0.0)], &[plain], ROUNDING);
        assert!(value(0.0) > value(1.0) && value(1.0) > value(2.0) && value(2.0) > 0.0);
    }
}

#[test]
fn mining_keeps_what_its_rule_says() {
    // p of the label: 0.5, 0.8, 0.5, 0.9, 0.2, 0.5; the seventh pixel is ignored, the eighth has a class of weight 0.
    let odds = [1.0, 4.0, 1.0, 9.0, 0.25, 1.0, 0.01, 1.0f64];
    let logits: Vec<f64> = odds.iter().map(|odds| odds.ln()).chain([0.0; 8]).chain([-1e3; 8]).collect();
    let logits = Tensor::from_vec(logits, (1, 3, 2, 4), &Device::Cpu).unwrap();
    let ids = Tensor::new(&[[[0u8, 0, 0, 0], [0, 0, IGNORED, 1]]], &Device::Cpu).unwrap();
    let weights = [1.0, 0.0, 1.0];
    let half = 2f64.ln();
    let fifth = 5f64.ln();
    let easy = [1.25f64.ln(), (10.0f64 / 9.0).ln()];
    for (threshold, minimum, kept) in [
        (0.6, Keep::Pixels(0), vec![0, 2, 4, 5]),
        // p = 0.5 is not below 0.5.
        (0.5, Keep::Pixels(0), vec![4]),
        (0.0, Keep::Pixels(0), vec![]),
        // Of equal probabilities the first.
        (0.3, Keep::Pixels(2), vec![0, 4]),
        (0.3, Keep::Pixels(3), vec![0, 2, 4]),
        (0.6, Keep::Pixels(5), vec![0, 1, 2, 4, 5]),
        (0.0, Keep::Pixels(100), vec![0, 1, 2, 3, 4, 5]),
        // Half of six; a tenth of six is a pixel.
        (0.0, Keep::Share(0.5), vec![0, 2, 4]),
        (0.0, Keep::Share(0.1), vec![4]),
    ] {
        let cfg = Ohem { threshold, minimum };
        let loss = |z: &Tensor| ohem_cross_entropy(z, &ids, pixels(Some(&weights)), cfg).unwrap();
        let of = |pixel: &usize| [half, easy[0], half, easy[1], fifth, half][*pixel];
        let expected = kept.iter().map(of).sum::<f64>() / (kept.len() as f64).max(1.0);
        assert_close(&format!("{cfg:?}"), &[scalar(&loss(&logits))], &[expected], ROUNDING);
        let gradient = slopes(&logits, loss);
        let moved: Vec<usize> = (0..8).filter(|&pixel| gradient[pixel] != 0.0).collect();
        assert_eq!(moved, kept, "{cfg:?}");
    }
}

#[test]
fn pixels_whose_probability_rounds_to_zero_are_still_ranked() {
    let logits = Tensor::new(&[[[[-500f32, -2000., -1000.]], [[0., 0., 0.]]]], &Device::Cpu).unwrap();
    let ids = Tensor::zeros((1, 1, 3), DType::U8, &Device::Cpu).unwrap();
    let cfg = Ohem { threshold: 0.0, minimum: Keep::Pixels(1) };
    assert_eq!(scalar(&ohem_cross_entropy(&logits, &ids, pixels(None), cfg).unwrap()), 2000.0);
}

#[test]
fn at_sure_predictions_dice_is_one_minus_f1_and_lovasz_one_minus_iou() {
    let (truth, guess) = (labels("truth", &[2, 6, 7], 3, 0.2), labels("guess", &[2, 6, 7], 3, 0.0));
    let (truth_ids, guess_ids) = (ids_of(&truth), ids_of(&guess));
    let logits = certain(&guess_ids, 3, (2, 6, 7));
    for scope in [Scope::Batch, Scope::Image] {
        let starts = if scope == Scope::Batch { vec![0] } else { vec![0, 42] };
        let regions: Vec<_> = starts.iter().map(|&start| start..start + 84 / starts.len()).collect();
        let (mut f1, mut iou) = (0.0, 0.0);
        for region in &regions {
            for class in 0..3u8 {
                let counted = region.clone().filter(|&pixel| truth_ids[pixel] != IGNORED);
                let [mut both, mut sum] = [0.0, 0.0];
                for pixel in counted {
                    let (t, g) = (truth_ids[pixel] == class, guess_ids[pixel] == class);
                    both += f64::from(u8::from(t && g));
                    sum += f64::from(u8::from(t) + u8::from(g));
                }
                f1 += 2.0 * both / sum / 3.0 / regions.len() as f64;
                iou += both / (sum - both) / 3.0 / regions.len() as f64;
            }
        }
        let of_dice = scalar(&dice(&logits, &truth, IGNORED, Dice { scope, ..DICE }).unwrap());
        let of_lovasz = scalar(&lovasz_softmax(&logits, &truth, IGNORED, LovaszSoftmax { scope, ..LOVASZ }).unwrap());
        assert_close(&format!("{scope:?}"), &[of_dice, of_lovasz], &[1.0 - f1, 1.0 - iou], ROUNDING);
    }
}

#[test]
fn absent_classes_count_only_where_all_do() {
    let (logits, ids) = (normal("absent", &[1, 3, 4, 5], 1.0), labels("absent", &[1, 4, 5], 2, 0.0));
    let louder = |class: usize| {
        let raised = logits.narrow(1, class, 1).unwrap().affine(1.0, 3.0).unwrap();
        let part = |index: usize| if index == class { raised.clone() } else { logits.narrow(1, index, 1).unwrap() };
        Tensor::cat(&[part(0), part(1), part(2)], 1).unwrap()
    };
    let lovasz =
        |z: &Tensor, classes| scalar(&lovasz_softmax(z, &ids, IGNORED, LovaszSoftmax { classes, ..LOVASZ }).unwrap());
    // One absent class of three: its part of the mean is its greatest probability.
    let probs = dsd_ops::softmax_channels(&louder(2)).unwrap().narrow(1, 2, 1).unwrap();
    let greatest = flat(&probs).into_iter().fold(0.0, f64::max);
    let (present, all) = (lovasz(&louder(2), ClassSet::Present), lovasz(&louder(2), ClassSet::All));
    assert_close("lovasz", &[all], &[(2.0 * present + greatest) / 3.0], ROUNDING);
    let of_dice = |classes| scalar(&dice(&louder(2), &ids, IGNORED, Dice { classes, ..DICE }).unwrap());
    assert_close("dice", &[of_dice(ClassSet::All)], &[(2.0 * of_dice(ClassSet::Present) + 1.0) / 3.0], ROUNDING);
}

#[test]
fn equal_errors_give_the_slopes_of_row_major_order() {
    // Three pixels with even odds: all errors are ½.
    let logits = Tensor::zeros((1, 2, 1, 3), DType::F64, &Device::Cpu).unwrap();
    let ids = Tensor::new(&[[[0u8, 1, 0]]], &Device::Cpu).unwrap();
    // J after 1, 2, 3 pixels is 1/2, 2/3, 1 for class 0 and 1/2, 1, 1 for class 1. The slope of a class's p is its step
    // of J, negative where it is the label; ½ of the mean over classes, and ¼ of the softmax.
    let of_class_0 = [-0.5, 1.0 / 6.0, -1.0 / 3.0];
    let of_class_1 = [0.5, -0.5, 0.0];
    let expected: Vec<f64> = (0..3).map(|pixel| 0.5 * 0.25 * (of_class_0[pixel] - of_class_1[pixel])).collect();
    let gradient = slopes(&logits, |z| lovasz_softmax(z, &ids, IGNORED, LOVASZ).unwrap());
    assert_close("class 0", &gradient[..3], &expected, ROUNDING);
    assert_close("class 1", &gradient[3..], &expected.iter().map(|slope| -slope).collect::<Vec<_>>(), ROUNDING);
}

#[test]
fn structural_similarity_to_itself_is_zero_and_to_one_hot_probabilities_that_to_labels() {
    let (logits, ids) = (normal("itself", &[2, 3, 6, 5], 2.0), labels("itself", &[2, 6, 5], 3, 0.2));
    let valid: Vec<u8> = ids_of(&ids).iter().map(|&id| u8::from(id != IGNORED)).collect();
    let valid = Tensor::from_vec(valid, (2, 6, 5), &Device::Cpu).unwrap();
    let teacher = (certain(&ids_of(&ids), 3, (2, 6, 5)) * 10.0).unwrap();
    for cfg in all_ssl() {
        let own = ssl_distillation(&logits, &logits, Some(&valid), cfg).unwrap();
        assert_eq!(scalar(&own), 0.0, "{cfg:?}");
        assert!(slopes(&logits, |z| ssl_distillation(z, &logits, None, cfg).unwrap()).iter().all(|&s| s.abs() < 1e-15));
        let hard = scalar(&ssl_distillation(&logits, &teacher, Some(&valid), cfg).unwrap());
        assert_close(&format!("{cfg:?}"), &[hard], &[scalar(&ssl(&logits, &ids, IGNORED, cfg).unwrap())], ROUNDING);
    }
}

#[test]
fn the_teacher_receives_no_gradient() {
    let student = Var::from_tensor(&normal("s", &[1, 3, 4, 5], 1.0)).unwrap();
    let teacher = Var::from_tensor(&normal("t", &[1, 3, 4, 5], 1.0)).unwrap();
    for probability in [Probability::Sigmoid, Probability::Softmax] {
        let cfg = Ssl { probability, ..Ssl::paper_reading() };
        let loss = ssl_distillation(student.as_tensor(), teacher.as_tensor(), None, cfg).unwrap();
        let gradients = loss.backward().unwrap();
        assert!(gradients.get(&teacher).is_none() && gradients.get(&student).is_some());
    }
}
