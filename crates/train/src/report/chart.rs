//! Line charts as SVG.

use std::fmt::Write as _;

/// Size of the drawing in its own units, and the margins around the plot.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 26.0;

/// A line with a name.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    pub(crate) name: String,
    colour: String,
    /// (step, value), steps ascending.
    pub(crate) points: Vec<(f64, f64)>,
    /// (step, lowest, highest), steps ascending: drawn as an area behind the line.
    pub(crate) band: Vec<(f64, f64, f64)>,
}

impl Curve {
    pub(crate) fn new(name: &str, colour: &str) -> Self {
        Self { name: name.to_string(), colour: colour.to_string(), points: Vec::new(), band: Vec::new() }
    }

    /// A running mean over a twentieth of the points, so that batches do not hide the course.
    pub(crate) fn smooth(&mut self) {
        let window = (self.points.len() / 20).max(1);
        let values: Vec<f64> = self.points.iter().map(|point| point.1).collect();
        for (index, point) in self.points.iter_mut().enumerate() {
            let from = (index + 1).saturating_sub(window);
            point.1 = values[from..=index].iter().sum::<f64>() / (index + 1 - from) as f64;
        }
    }
}

/// A fixed colour for each term of the loss.
pub(crate) fn colour_of_term(name: &str) -> &'static str {
    const COLOURS: [(&str, &str); 5] = [
        ("cross_entropy", "#30638e"),
        ("aux_cross_entropy", "#8fb8de"),
        ("psd", "#d1495b"),
        ("csd", "#edae49"),
        ("pixel_kd", "#66a182"),
    ];
    COLOURS.iter().find(|(term, _)| name.starts_with(term)).map_or("#777777", |(_, colour)| colour)
}

/// A chart over training steps.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    title: String,
    unit: String,
    curves: Vec<Curve>,
    /// The step and the value that the axes reach at least.
    reach: (f64, f64),
}

impl Chart {
    /// A chart of the curves that have points.
    pub(crate) fn new(title: &str, unit: &str, curves: Vec<Curve>) -> Self {
        let curves = curves.into_iter().filter(|curve| !curve.points.is_empty()).collect();
        Self { title: title.to_string(), unit: unit.to_string(), curves, reach: (1.0, 0.0) }
    }

    /// The chart with axes that reach at least this step and this value: charts side by side can be compared.
    pub(crate) fn reaching(self, step: f64, value: f64) -> Self {
        Self { reach: (step, value), ..self }
    }

    /// The chart with its title and legend as an HTML figure.
    pub(crate) fn svg(&self) -> String {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let right = points().map(|point| point.0).fold(self.reach.0.max(1.0), f64::max);
        let tops = self.curves.iter().flat_map(|curve| &curve.band).map(|band| band.2);
        let highest = points().map(|point| point.1).chain(tops).fold(self.reach.1, f64::max);
        let lowest = points().map(|point| point.1).fold(0.0, f64::min);
        let step = tick((highest - lowest).max(1e-9));
        let (bottom, top) = ((lowest / step).floor() * step, ((highest / step).ceil() * step).max(step));
        let x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * value / right;
        let y = |value: f64| TOP + (HEIGHT - TOP - BOTTOM) * (top - value) / (top - bottom);

        let mut svg = format!(
            "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            self.title, self.title
        );
        let mut value = bottom;
        while value <= top + step * 1e-6 {
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                y(value),
                y(value),
                LEFT - 6.0,
                y(value) + 4.0,
                label(value, step)
            );
            value += step;
        }
        let step_x = tick(right);
        let mut value = 0.0;
        while value <= right * (1.0 + 1e-9) {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                x(value),
                HEIGHT - 8.0,
                label(value, step_x)
            );
            value += step_x;
        }
        if !self.unit.is_empty() {
            let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", LEFT + 4.0, TOP + 8.0, self.unit);
        }
        for curve in self.curves.iter().filter(|curve| !curve.band.is_empty()) {
            let lower = curve.band.iter().map(|(step, low, _)| (step, low));
            let upper = curve.band.iter().rev().map(|(step, _, high)| (step, high));
            let area: Vec<String> =
                lower.chain(upper).map(|(step, value)| format!("{:.1},{:.1}", x(*step), y(*value))).collect();
            let (area, colour) = (area.join(" "), &curve.colour);
            let _ = write!(svg, "<polygon points=\"{area}\" fill=\"{colour}\" fill-opacity=\"0.22\"/>");
        }
        for curve in &self.curves {
            let path: Vec<String> =
                curve.points.iter().map(|(step, value)| format!("{:.1},{:.1}", x(*step), y(*value))).collect();
            let _ = write!(svg, "<polyline points=\"{}\" stroke=\"{}\"/>", path.join(" "), curve.colour);
            if curve.points.len() <= 30 {
                for (step, value) in &curve.points {
                    let _ = write!(
                        svg,
                        "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\" fill=\"{}\"/>",
                        x(*step),
                        y(*value),
                        curve.colour
                    );
                }
            }
        }
        svg.push_str("</svg><p class=\"legend\">");
        for curve in &self.curves {
            let _ = write!(svg, "<span><i style=\"background:{}\"></i>{}</span>", curve.colour, curve.name);
        }
        svg.push_str("</p></figure>");
        svg
    }
}

/// A round distance between about five ticks.
fn tick(range: f64) -> f64 {
    let raw = range / 5.0;
    let power = 10f64.powf(raw.log10().floor());
    let factor = raw / power;
    power
        * if factor <= 1.0 {
            1.0
        } else if factor <= 2.0 {
            2.0
        } else if factor <= 5.0 {
            5.0
        } else {
            10.0
        }
}

fn label(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_labels_show_what_they_need() {
        assert_eq!([tick(100.0), tick(0.7), tick(4.0)].map(|step| label(step, step)), ["20", "0.2", "1"]);
    }

    #[test]
    fn smoothing_keeps_a_constant_and_the_number_of_points() {
        let mut curve = Curve::new("loss", "#000000");
        curve.points = (0..100).map(|step| (f64::from(step), 2.0)).collect();
        curve.smooth();
        assert_eq!(curve.points.len(), 100);
        assert!(curve.points.iter().all(|point| (point.1 - 2.0).abs() < 1e-12));
    }

    #[test]
    fn a_chart_draws_every_curve_that_has_points() {
        let mut curve = Curve::new("teacher", "#123456");
        curve.points = vec![(1.0, 3.0), (2.0, 4.0)];
        let chart = Chart::new("Loss", "nats", vec![curve, Curve::new("empty", "#654321")]);
        let svg = chart.svg();
        assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (1, 2));
        assert!(!svg.contains("NaN") && !svg.contains("empty"));
    }

    #[test]
    fn bands_are_areas_and_axes_reach_what_they_are_told() {
        let mut curve = Curve::new("mean", "#123456");
        curve.points = vec![(1.0, 3.0), (2.0, 4.0)];
        curve.band = vec![(1.0, 2.0, 4.0), (2.0, 4.0, 9.0)];
        let svg = Chart::new("mIoU", "%", vec![curve.clone()]).svg();
        assert_eq!(svg.matches("<polygon").count(), 1);
        assert!(svg.contains(">10<"), "the axis ends below the band: {svg}");
        assert!(Chart::new("mIoU", "%", vec![curve]).reaching(2.0, 37.0).svg().contains(">40<"));
    }
}
