//! Wrong arguments: each is refused with a line that names it.

use candle_core::{DType, Tensor};
use dsd_similarity::{
    Deviation, Dice, Focal, Keep, Mining, Ohem, Result, Ssl, dice, focal, lovasz_softmax, ohem_cross_entropy, ssl,
    ssl_distillation, structure_error,
};

use super::super::normal;
use super::{DICE, IGNORED, LOVASZ, labels, pixels};

fn refused(result: Result<Tensor>, expected: &str) {
    assert_eq!(result.unwrap_err().to_string(), expected);
}

#[test]
fn logits_and_labels() {
    let (logits, ids) = (normal("refused", &[2, 3, 4, 5], 1.0), labels("refused", &[2, 4, 5], 4, 0.0));
    let (small, whole) = (ids.narrow(2, 0, 4).unwrap(), logits.to_dtype(DType::U32).unwrap());
    let at = ids.flatten_all().unwrap().to_vec1::<u8>().unwrap().iter().position(|&id| id == 3).unwrap();
    let place = format!("pixel (n {}, h {}, w {})", at / 20, at / 5 % 4, at % 5);
    type Call = fn(&Tensor, &Tensor) -> Result<Tensor>;
    let calls: [(&str, Call); 6] = [
        ("ohem_cross_entropy", |z, l| {
            ohem_cross_entropy(z, l, pixels(None), Ohem { threshold: 0.7, minimum: Keep::Pixels(1) })
        }),
        ("focal", |z, l| focal(z, l, pixels(None), Focal { gamma: 2.0 })),
        ("dice", |z, l| dice(z, l, IGNORED, DICE)),
        ("lovasz_softmax", |z, l| lovasz_softmax(z, l, IGNORED, LOVASZ)),
        ("ssl", |z, l| ssl(z, l, IGNORED, Ssl::paper_reading())),
        ("structure_error", |z, l| structure_error(z, l, IGNORED, Ssl::paper_reading())),
    ];
    for (op, call) in calls {
        refused(
            call(&logits, &ids),
            &format!(
                "{op}: labels is 3 at {place}, expected a class id below 3 (the number of classes) or the ignored label 255"
            ),
        );
        refused(call(&logits, &small), &format!("{op}: labels has shape [2, 4, 4], expected [2, 4, 5]"));
        refused(call(&logits, &logits), &format!("{op}: labels is f64, expected u8"));
        refused(call(&whole, &ids), &format!("{op}: logits is u32, expected f32 or f64"));
        refused(call(&ids, &ids), &format!("{op}: logits is u8, expected f32 or f64"));
    }
    refused(
        ssl_distillation(&logits, &normal("t", &[2, 4, 4, 5], 1.0), None, Ssl::paper_reading()),
        "ssl_distillation: teacher has shape [2, 4, 4, 5], expected [2,3,H,W] with no size 0",
    );
    refused(
        ssl_distillation(&logits, &logits, Some(&ids), Ssl::paper_reading()),
        "ssl_distillation: valid is 3, expected 0 (ignored) or 1 (counted) everywhere",
    );
}

#[test]
fn settings() {
    let (logits, ids) = (normal("refused", &[2, 3, 4, 5], 1.0), labels("refused settings", &[2, 4, 5], 3, 0.0));
    for threshold in [-0.1, 1.5, f64::NAN] {
        let cfg = Ohem { threshold, minimum: Keep::Pixels(1) };
        refused(
            ohem_cross_entropy(&logits, &ids, pixels(None), cfg),
            &format!("ohem_cross_entropy: threshold is {threshold}, expected a number from 0 to 1"),
        );
    }
    refused(
        ohem_cross_entropy(&logits, &ids, pixels(None), Ohem { threshold: 0.7, minimum: Keep::Share(2.0) }),
        "ohem_cross_entropy: minimum is 2, expected a share from 0 to 1",
    );
    refused(
        focal(&logits, &ids, pixels(None), Focal { gamma: -1.0 }),
        "focal: gamma is -1, expected a finite number of at least 0",
    );
    refused(
        focal(&logits, &ids, pixels(Some(&[1.0, 2.0])), Focal { gamma: 2.0 }),
        "focal: class_weights is 2, expected 3 numbers",
    );
    refused(
        focal(&logits, &ids, pixels(Some(&[1.0, -2.0, 1.0])), Focal { gamma: 2.0 }),
        "focal: class_weights is -2 for class 1, expected finite numbers ≥ 0",
    );
    refused(
        dice(&logits, &ids, IGNORED, Dice { smoothing: f64::INFINITY, ..DICE }),
        "dice: smoothing is inf, expected a finite number of at least 0",
    );
    let base = Ssl::paper_reading();
    for (cfg, message) in [
        (Ssl { window: 4, ..base }, "window is 4, expected an odd number from 3 to 255"),
        (Ssl { window: 1, ..base }, "window is 1, expected an odd number from 3 to 255"),
        (Ssl { window_std: 0.0, ..base }, "window_std is 0, expected a finite number above 0"),
        (Ssl { stabiliser: 0.0, ..base }, "stabiliser is 0, expected a finite number above 0"),
        (Ssl { variance_floor: -1.0, ..base }, "variance_floor is -1, expected a finite number of at least 0"),
        (Ssl { mining: Mining::Batch { share: 1.5 }, ..base }, "mining is 1.5, expected a number from 0 to 1"),
        (
            Ssl { mining: Mining::Absolute { error: -1.0 }, ..base },
            "mining is -1, expected a finite number of at least 0",
        ),
        (
            Ssl { mining: Mining::Bound { share: 0.1 }, deviation: Deviation::WholeMap, ..base },
            "mining is Bound, expected Batch, Map or Absolute: with WholeMap e has no bound",
        ),
        (Ssl { lambda: 1.1, ..base }, "lambda is 1.1, expected a number from 0 to 1"),
    ] {
        refused(ssl(&logits, &ids, IGNORED, cfg), &format!("ssl: {message}"));
        refused(ssl_distillation(&logits, &logits, None, cfg), &format!("ssl_distillation: {message}"));
    }
}
