//! The picture in the making: colour, label and depth of every pixel, and antialiased shapes.
//!
//! Colours are mixed by a shape's coverage of the pixel; label and depth change where it covers half or more, so that
//! the image is smooth and the labels are crisp. Whatever lies deeper than what a pixel shows is not painted.

use super::noise::{Rgb, length, mix};

/// Depth, class and canvas of what is painted: shapes of one object share it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    /// Distance along the optical axis in metres.
    pub(super) depth: f32,
    /// Train id.
    pub(super) class: u8,
}

/// A picture with labels and depths.
pub(super) struct Canvas {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) colours: Vec<Rgb>,
    pub(super) labels: Vec<u8>,
    pub(super) depths: Vec<f32>,
}

impl Canvas {
    pub(super) fn new(width: usize, height: usize, class: u8) -> Self {
        let count = width * height;
        Self {
            width,
            height,
            colours: vec![[0.0; 3]; count],
            labels: vec![class; count],
            depths: vec![f32::MAX; count],
        }
    }

    /// Paints one pixel if nothing nearer is there.
    #[inline]
    pub(super) fn put(&mut self, x: usize, y: usize, layer: Layer, coverage: f32, colour: Rgb) {
        let at = y * self.width + x;
        if coverage <= 0.0 || layer.depth > self.depths[at] + 0.02 {
            return;
        }
        self.colours[at] = if coverage >= 1.0 { colour } else { mix(self.colours[at], colour, coverage) };
        if coverage >= 0.5 {
            self.labels[at] = layer.class;
            self.depths[at] = layer.depth;
        }
    }

    /// Pixels whose centres lie in the bounds [left, top, right, bottom] widened by one: columns and rows.
    pub(super) fn clip(&self, bounds: [f32; 4]) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let low = |value: f32| (value - 1.0).floor().max(0.0) as usize;
        let high = |value: f32, side: usize| ((value + 1.0).ceil().max(0.0) as usize).min(side);
        (low(bounds[0])..high(bounds[2], self.width), low(bounds[1])..high(bounds[3], self.height))
    }

    /// Paints where `distance` (pixels, negative inside) says, in the colour of `shade`; both get the pixel's centre.
    pub(super) fn shape(
        &mut self,
        bounds: [f32; 4],
        layer: Layer,
        distance: impl Fn(f32, f32) -> f32,
        shade: impl Fn(f32, f32) -> Rgb,
    ) {
        let (columns, rows) = self.clip(bounds);
        for y in rows {
            for x in columns.clone() {
                let (px, py) = (x as f32 + 0.5, y as f32 + 0.5);
                let coverage = (0.5 - distance(px, py)).clamp(0.0, 1.0);
                if coverage > 0.0 && layer.depth <= self.depths[y * self.width + x] + 0.02 {
                    self.put(x, y, layer, coverage, shade(px, py));
                }
            }
        }
    }

    /// Paints a convex polygon.
    pub(super) fn polygon(&mut self, points: &[[f32; 2]], layer: Layer, shade: impl Fn(f32, f32) -> Rgb) {
        let area = signed_area(points);
        if area.abs() < 1e-3 {
            return;
        }
        // Outward normal and offset of every edge.
        let mut edges = [[0f32; 3]; 16];
        let count = points.len().min(16);
        for (index, edge) in edges.iter_mut().take(count).enumerate() {
            let (a, b) = (points[index], points[(index + 1) % points.len()]);
            let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
            let size = length(dx, dy).max(1e-6) * area.signum();
            let (nx, ny) = (dy / size, -dx / size);
            *edge = [nx, ny, -(nx * a[0] + ny * a[1])];
        }
        let edges = &edges[..count];
        let (columns, rows) = self.clip(bounds(points, 0.0));
        for y in rows {
            let py = y as f32 + 0.5;
            // Columns that the polygon touches in this row, and those that it covers wholly: an edge bounds both.
            let (mut touched, mut covered) = ([f32::MIN, f32::MAX], [f32::MIN, f32::MAX]);
            for [nx, ny, offset] in edges {
                let fixed = ny * py + offset;
                for (range, reach) in [(&mut touched, 0.5), (&mut covered, -0.5)] {
                    if nx.abs() < 1e-6 {
                        if fixed > reach {
                            *range = [f32::MAX, f32::MIN];
                        }
                    } else if *nx > 0.0 {
                        range[1] = range[1].min((reach - fixed) / nx);
                    } else {
                        range[0] = range[0].max((reach - fixed) / nx);
                    }
                }
            }
            let first = columns.start.max((touched[0] - 0.5).max(0.0) as usize);
            let last = columns.end.min((touched[1] + 0.5).max(0.0) as usize);
            for x in first..last {
                if layer.depth > self.depths[y * self.width + x] + 0.02 {
                    continue;
                }
                let px = x as f32 + 0.5;
                let whole = px >= covered[0] && px <= covered[1];
                let distance = || edges.iter().fold(f32::MIN, |most, [nx, ny, o]| most.max(nx * px + ny * py + o));
                let coverage = if whole { 1.0 } else { (0.5 - distance()).clamp(0.0, 1.0) };
                if coverage > 0.0 {
                    self.put(x, y, layer, coverage, shade(px, py));
                }
            }
        }
    }

    /// Paints a straight limb from `a` to `b` with round ends; the radius goes from `thick[0]` to `thick[1]` pixels.
    pub(super) fn limb(&mut self, a: [f32; 2], b: [f32; 2], thick: [f32; 2], layer: Layer, colour: Rgb) {
        let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
        let squared = (dx * dx + dy * dy).max(1e-9);
        let distance = |x: f32, y: f32| {
            let t = (((x - a[0]) * dx + (y - a[1]) * dy) / squared).clamp(0.0, 1.0);
            length(x - a[0] - t * dx, y - a[1] - t * dy) - (thick[0] + (thick[1] - thick[0]) * t)
        };
        self.shape(bounds(&[a, b], thick[0].max(thick[1])), layer, distance, |_, _| colour);
    }

    /// Paints an upright ellipse; pixels with their distance in radii (0 centre, 1 rim).
    pub(super) fn ellipse(&mut self, centre: [f32; 2], radii: [f32; 2], layer: Layer, shade: impl Fn(f32, f32) -> Rgb) {
        let [rx, ry] = radii.map(|radius| radius.max(0.3));
        let at = |x: f32, y: f32| length((x - centre[0]) * (1.0 / rx), (y - centre[1]) * (1.0 / ry));
        let box_of = [centre[0] - rx, centre[1] - ry, centre[0] + rx, centre[1] + ry];
        self.shape(box_of, layer, |x, y| (at(x, y) - 1.0) * rx.min(ry), shade);
    }

    /// Paints a ring: the part of an upright ellipse within `thick` pixels of its rim.
    pub(super) fn ring(&mut self, centre: [f32; 2], radii: [f32; 2], thick: f32, layer: Layer, colour: Rgb) {
        let [rx, ry] = radii.map(|radius| radius.max(0.3));
        let at = |x: f32, y: f32| length((x - centre[0]) * (1.0 / rx), (y - centre[1]) * (1.0 / ry));
        let reach = [rx + thick, ry + thick];
        let box_of = [centre[0] - reach[0], centre[1] - reach[1], centre[0] + reach[0], centre[1] + reach[1]];
        self.shape(box_of, layer, |x, y| ((at(x, y) - 1.0) * rx.min(ry)).abs() - thick, |_, _| colour);
    }

    /// Darkens a soft ellipse of ground: `strength` of the light goes at its centre. Labels stay.
    pub(super) fn darken(&mut self, centre: [f32; 2], radii: [f32; 2], depth: f32, strength: f32) {
        let [rx, ry] = radii.map(|radius| radius.max(0.5));
        let (columns, rows) = self.clip([centre[0] - rx, centre[1] - ry, centre[0] + rx, centre[1] + ry]);
        for y in rows {
            for x in columns.clone() {
                let at = y * self.width + x;
                let (u, v) = ((x as f32 + 0.5 - centre[0]) / rx, (y as f32 + 0.5 - centre[1]) / ry);
                let inside = 1.0 - (u * u + v * v);
                // Ground and façades far behind the object take no shadow from it.
                if inside > 0.0 && self.depths[at] < depth * 1.6 + 2.0 {
                    let factor = 1.0 - strength * (inside * 1.5).min(1.0);
                    self.colours[at] = self.colours[at].map(|value| value * factor);
                }
            }
        }
    }
}

/// Twice the polygon's area, positive where its points turn clockwise on screen.
pub(super) fn signed_area(points: &[[f32; 2]]) -> f32 {
    let next = points.iter().cycle().skip(1);
    points.iter().zip(next).map(|(a, b)| a[0] * b[1] - a[1] * b[0]).sum()
}

fn bounds(points: &[[f32; 2]], margin: f32) -> [f32; 4] {
    points.iter().fold([f32::MAX, f32::MAX, f32::MIN, f32::MIN], |b, p| {
        [b[0].min(p[0] - margin), b[1].min(p[1] - margin), b[2].max(p[0] + margin), b[3].max(p[1] + margin)]
    })
}
