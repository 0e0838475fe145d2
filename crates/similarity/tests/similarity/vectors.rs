//! Values worked out by hand or by plain arithmetic for tiny inputs, to the digits that were written down.

use candle_core::{Device, Tensor};
use dsd_similarity::{
    Csd, LayerPairs, Psd, PsdReduction, attention_map, category_correlation, csd, psd, residual_attention,
};

use super::{assert_close, flat, scalar};

/// Half a unit of the eighth and of the tenth decimal.
const EIGHT_DIGITS: f64 = 5.1e-9;
const TEN_DIGITS: f64 = 5.1e-11;

fn layer(channels: &[[f64; 4]]) -> Tensor {
    Tensor::from_vec(channels.concat(), (1, channels.len(), 2, 2), &Device::Cpu).unwrap()
}

fn student() -> [Tensor; 3] {
    [
        layer(&[[1., 2., 3., 4.], [0., 1., 0., 1.]]),
        layer(&[[2., 0., 1., 3.]]),
        layer(&[[1., -1., 2., 0.], [0.5, 1.5, -0.5, 1.], [0., 1., 1., -2.]]),
    ]
}

fn teacher() -> [Tensor; 3] {
    [
        layer(&[[2., 1., 0., 3.]]),
        layer(&[[1., 1., 2., 2.], [0., 3., 1., 0.]]),
        layer(&[[3., -1., 1., 0.], [0., 2., -1., 0.5], [-1., 0., 2., 1.]]),
    ]
}

fn logits(classes: [[f64; 8]; 3]) -> Tensor {
    Tensor::from_vec(classes.concat(), (1, 3, 2, 4), &Device::Cpu).unwrap()
}

fn student_logits() -> Tensor {
    logits([[2., 1., 0., -1., 3., 2., 1., 0.], [0., 1., 2., 1., 0., -1., 2., 2.], [-1., 0., 0., 3., 1., 0., -2., 2.]])
}

fn teacher_logits() -> Tensor {
    logits([
        [4., 3., 0., -2., 5., 3., 0., -1.],
        [0., 0., 4., 0., -1., -2., 4., 1.],
        [-2., -1., 0., 5., 0., 0., -3., 5.],
    ])
}

#[test]
fn attention_and_residual_maps_have_the_written_values() {
    let attention = |layer: &Tensor| attention_map(layer, 2.0).unwrap();
    let rows: [(&str, Tensor, [f64; 4]); 4] = [
        ("A^S_1", attention(&student()[0]), [0.05025189, 0.25125945, 0.45226702, 0.85428214]),
        ("A^T_1", attention(&teacher()[0]), [0.40406102, 0.10101525, 0.0, 0.90913729]),
        (
            "R^S_12",
            residual_attention(&attention(&student()[0]), &attention(&student()[1]), true, 1e-12).unwrap(),
            [0.63069775, -0.44789340, -0.62613901, 0.09778441],
        ),
        (
            "R^T_12",
            residual_attention(&attention(&teacher()[0]), &attention(&teacher()[1]), true, 1e-12).unwrap(),
            [-0.29823684, 0.68765648, 0.39087984, -0.53422495],
        ),
    ];
    for (name, map, expected) in rows {
        assert_eq!(map.dims(), [1, 2, 2], "{name}");
        assert_close(name, &flat(&map), &expected, EIGHT_DIGITS);
    }
}

#[test]
fn psd_has_the_written_values() {
    let value = |pairs, reduction| {
        let cfg = Psd { pairs, reduction, ..Psd::paper_reading() };
        scalar(&psd(&student(), &teacher(), None, cfg).unwrap())
    };
    use LayerPairs::{Adjacent, All};
    for (pairs, reduction, expected) in [
        (All, PsdReduction::SquaredMean, 0.54722799),
        (Adjacent, PsdReduction::SquaredMean, 0.80320272),
        (All, PsdReduction::SquaredSum, 2.18891198),
        (Adjacent, PsdReduction::SquaredSum, 3.21281089),
        (All, PsdReduction::Norm, 1.31814598),
        (Adjacent, PsdReduction::Norm, 1.78939315),
    ] {
        assert_close(&format!("{pairs:?} {reduction:?}"), &[value(pairs, reduction)], &[expected], EIGHT_DIGITS);
    }
    for (shallow, deep, expected) in [(0, 1, 3.58615619), (0, 2, 0.14111414), (1, 2, 2.83946559)] {
        let pick = |layers: [Tensor; 3]| [layers[shallow].clone(), layers[deep].clone()];
        let cfg = Psd { reduction: PsdReduction::SquaredSum, ..Psd::paper_reading() };
        let distance = scalar(&psd(&pick(student()), &pick(teacher()), None, cfg).unwrap());
        assert_close(&format!("squared distance {shallow}{deep}"), &[distance], &[expected], EIGHT_DIGITS);
    }
    let presets = [
        (Psd::paper_reading(), value(Adjacent, PsdReduction::SquaredMean)),
        (Psd::cirkd_compat(), value(All, PsdReduction::SquaredMean)),
    ];
    for (cfg, expected) in presets {
        assert_eq!(scalar(&psd(&student(), &teacher(), None, cfg).unwrap()), expected, "{cfg:?}");
    }
    let at_four_positions = value(All, PsdReduction::SquaredMean) * 4.0 / 4225.0;
    assert_close("normalised", &[value(All, PsdReduction::ResolutionNormalised)], &[at_four_positions], 1e-15);
}

#[test]
fn csd_has_the_written_values() {
    let pooled = Csd { average_pool: true, ..Csd::paper_reading() };
    for (name, cfg, at_1, at_4) in [
        ("paper reading", Csd::paper_reading(), 0.0578753077, 0.0555229213),
        ("paper reading, pooled", pooled, 0.0639364729, 0.0216604522),
        ("as CIRKD", Csd::cirkd_compat(), 0.0553175462, 0.0038201400),
    ] {
        for (temperature, expected) in [(1.0, at_1), (4.0, at_4)] {
            let loss = csd(&student_logits(), &teacher_logits(), None, Csd { temperature, ..cfg }).unwrap();
            assert_close(&format!("{name}, τ = {temperature}"), &[scalar(&loss)], &[expected], TEN_DIGITS);
        }
    }
}

#[test]
fn correlation_matrices_have_the_written_values() {
    let matrix = |logits: &Tensor, cfg: Csd| flat(&category_correlation(logits, None, cfg).unwrap());
    for (name, logits, off_diagonal, diagonal) in [
        ("M_S", student_logits(), [0.88560053, 0.85329261, 0.90534374], [0.52999258, 0.52318272, 0.50436891]),
        ("M_T", teacher_logits(), [0.63725114, 0.54484464, 0.60032640], [0.62996330, 0.56421001, 0.54581659]),
    ] {
        let cosine = matrix(&logits, Csd::paper_reading());
        assert_close(name, &[cosine[1], cosine[2], cosine[5]], &off_diagonal, EIGHT_DIGITS);
        assert_close(name, &[cosine[3], cosine[6], cosine[7]], &off_diagonal, EIGHT_DIGITS);
        assert_close(name, &[cosine[0], cosine[4], cosine[8]], &[1.0; 3], 1e-14);
        let product = matrix(&logits, Csd::cirkd_compat());
        assert_close(name, &[product[0], product[4], product[8]], &diagonal, EIGHT_DIGITS);
    }
}
