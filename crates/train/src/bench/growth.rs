//! How the time of a training step grows with its work.

use anyhow::Result;
use serde_json::Value;

use super::networks::{NETWORKS, STEP, Step};
use super::{Bench, Case, Row};

const BATCHES: [usize; 5] = [1, 2, 4, 8, 16];
const SIDES: [usize; 5] = [64, 128, 256, 512, 1024];

/// Steps over batches of 256×256 images and over the sides of one image, and the exponent that fits each best: 1 where
/// time grows as the work does, which is the number of pixels.
pub(super) fn growth(bench: &mut Bench) -> Result<()> {
    let batches = BATCHES.map(|batch| [batch, 3, STEP[0], STEP[1]]);
    let sides = SIDES.map(|side| [1, 3, side, side]);
    for name in NETWORKS {
        if !bench.wants(name) {
            continue;
        }
        for (what, sizes) in [("batch", batches), ("side", sides)] {
            let before = bench.rows.len();
            for dims in sizes {
                let case = format!("{name} {}", dims.map(|side| side.to_string()).join(","));
                let mut step = Step::new(name, None, dims, bench.recompute)?;
                bench.case(Case::new(&case, Value::Null), || step.run().map(Some))?;
            }
            let points: Vec<(f64, f64)> = sizes
                .iter()
                .zip(&bench.rows[before..])
                .map(|(dims, row)| (dims.iter().product::<usize>() as f64, row.ours_ms))
                .collect();
            let exponent = exponent(&points);
            let case = format!("{name}, exponent over the {what}");
            say_line!("{:8} {case:48} {exponent:9.3}", bench.bench)?;
            bench.rows.push(Row { bench: bench.bench, case, exponent: Some(exponent), ..Row::default() });
        }
    }
    Ok(())
}

/// The slope of log time over log work, by least squares.
fn exponent(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points.iter().map(|(work, time)| (work.ln(), time.ln())).collect();
    let count = logs.len() as f64;
    let (mean_x, mean_y) = logs.iter().fold((0.0, 0.0), |(x, y), log| (x + log.0 / count, y + log.1 / count));
    let (above, below) = logs
        .iter()
        .fold((0.0, 0.0), |(above, below), (x, y)| (above + (x - mean_x) * (y - mean_y), below + (x - mean_x).powi(2)));
    above / below
}

#[cfg(test)]
mod tests {
    use super::exponent;

    #[test]
    fn the_exponent_is_that_of_the_power_law() {
        let cubes: Vec<(f64, f64)> = (1..6).map(|x| (f64::from(x), 7.0 * f64::from(x).powi(3))).collect();
        assert!((exponent(&cubes) - 3.0).abs() < 1e-12);
    }
}
