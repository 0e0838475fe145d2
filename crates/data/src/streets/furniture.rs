//! What stands at the roadside: trees, lamps, traffic lights, signs, bins.

use dsd_random::Stream;

use super::camera::{Camera, Light};
use super::canvas::{Canvas, Layer};
use super::class;
use super::noise::{Rgb, cell, layered, length, scaled, smooth};

/// Where an object stands: metres from the road's middle and along the axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    pub(super) s: f32,
    pub(super) z: f32,
}

/// A tree: a trunk and a crown of overlapping leaf balls.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    seed: u32,
    trunk: f32,
    height: f32,
    balls: Vec<[f32; 3]>,
    leaf: Rgb,
    ragged: f32,
    gaps: f32,
}

impl Tree {
    pub(super) fn draw(stream: &mut Stream) -> Self {
        let height = stream.between(1.8, 3.8) as f32;
        let spread = stream.between(1.2, 2.9) as f32;
        let tall = spread * stream.between(0.9, 1.6) as f32;
        let count = 7 + stream.below(6);
        let balls = (0..count).map(|_| {
            let (angle, out) = (stream.between(0.0, std::f64::consts::TAU), stream.uniform().sqrt());
            let radius = spread * stream.between(0.35, 0.62) as f32;
            let (across, up) = ((angle.cos() * out) as f32 * spread * 0.7, (angle.sin() * out) as f32 * tall * 0.7);
            [across, height + tall * 0.8 + up, radius]
        });
        let balls = balls.collect();
        let autumn = stream.chance(0.15);
        let green = stream.between(0.8, 1.2) as f32;
        let leaf = if autumn { [0.56, 0.38, 0.15] } else { [0.3 * green, 0.42 * green, 0.17] };
        let (ragged, gaps) = (stream.between(0.15, 0.5) as f32, stream.between(0.06, 0.28) as f32);
        Self { seed: stream.bits() as u32, trunk: stream.between(0.1, 0.24) as f32, height, balls, leaf, ragged, gaps }
    }

    pub(super) fn paint(&self, canvas: &mut Canvas, camera: &Camera, light: &Light, spot: Spot) {
        let (scale, layer) = (camera.scale(spot.z), Layer { depth: spot.z, class: class::TREE });
        let at = |across: f32, up: f32| camera.project(spot.s + across, up, spot.z);
        let bark = light.through(light.on([0.3, 0.24, 0.19], [0.4 * light.sun[0].signum(), 0.0, -0.8], 0.8), spot.z);
        let radius = (self.trunk * scale).max(0.4);
        canvas.limb(at(0.0, 0.0), at(0.0, self.height + 0.8), [radius * 1.15, radius * 0.7], layer, bark);
        let discs: Vec<[f32; 3]> = self
            .balls
            .iter()
            .map(|ball| {
                let [x, y] = at(ball[0], ball[1]);
                [x, y, ball[2] * scale]
            })
            .collect();
        let bounds = discs.iter().fold([f32::MAX, f32::MAX, f32::MIN, f32::MIN], |b, d| {
            [b[0].min(d[0] - d[2]), b[1].min(d[1] - d[2]), b[2].max(d[0] + d[2]), b[3].max(d[1] + d[2])]
        });
        let [cx, cy] = [(bounds[0] + bounds[2]) * 0.5, (bounds[1] + bounds[3]) * 0.5];
        let half = [(bounds[2] - bounds[0]).max(1.0) * 0.5, (bounds[3] - bounds[1]).max(1.0) * 0.5];
        let leaf_size = 1.0 / (0.28 * scale).max(1.6);
        let rough = self.ragged * scale;
        let distance = |x: f32, y: f32| {
            let near = discs.iter().fold(f32::MAX, |least, d| least.min(length(x - d[0], y - d[1]) - d[2]));
            if near > rough {
                return near;
            }
            let leaves = layered(x * leaf_size, y * leaf_size, self.seed, 2);
            let solid = near + rough * (1.6 * leaves - 0.7) * 1.4;
            // Holes in the leaves, larger towards the rim.
            let rim = length((x - cx) / half[0], (y - cy) / half[1]);
            let hole = self.gaps * (0.4 + 0.6 * rim) - smooth(x * leaf_size * 0.8, y * leaf_size * 0.8, self.seed ^ 4);
            solid.max(hole * scale * 0.6)
        };
        let sun = light.sun;
        canvas.shape(bounds, layer, distance, |x, y| {
            let (u, v) = ((x - cx) / half[0], (y - cy) / half[1]);
            let depth = (1.0 - u * u - v * v).max(0.05).sqrt();
            let clump = smooth(x * leaf_size * 0.8, y * leaf_size * 0.8, self.seed ^ 1);
            let fine = cell(x as i32, y as i32, self.seed);
            let tone = 0.45 + 0.95 * clump + 0.35 * (fine - 0.5);
            let normal = [u * 0.7, -v * 0.7 + 0.2, -depth * 0.7];
            let open = 0.75 + 0.35 * (sun[0] * u - sun[1] * v);
            light.through(light.on(scaled(self.leaf, tone * open), normal, 0.9), spot.z)
        });
    }
}

/// What a post carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    Lamp,
    TrafficLight,
    Disc,
    Triangle,
    Board,
    Nothing,
}

/// A lamp post, traffic light, road sign or bollard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Post {
    head: Head,
    height: f32,
    radius: f32,
    steel: Rgb,
    face: Rgb,
    mark: Rgb,
    reach: f32,
    size: f32,
}

impl Post {
    pub(super) fn draw(stream: &mut Stream, side: f32) -> Self {
        const FACES: [[Rgb; 2]; 6] = [
            [[0.75, 0.1, 0.1], [0.88, 0.88, 0.86]],
            [[0.1, 0.24, 0.6], [0.85, 0.86, 0.88]],
            [[0.85, 0.85, 0.83], [0.15, 0.15, 0.15]],
            [[0.85, 0.7, 0.1], [0.1, 0.1, 0.1]],
            [[0.1, 0.38, 0.22], [0.85, 0.86, 0.84]],
            [[0.5, 0.5, 0.5], [0.3, 0.3, 0.32]],
        ];
        let head = match stream.below(13) {
            0..=3 => Head::Lamp,
            4 | 5 => Head::TrafficLight,
            6 | 7 => Head::Disc,
            8 => Head::Triangle,
            9 | 10 => Head::Board,
            _ => Head::Nothing,
        };
        let height = match head {
            Head::Lamp => stream.between(5.0, 8.5),
            Head::Nothing if stream.chance(0.5) => stream.between(0.8, 1.1),
            Head::Nothing => stream.between(5.5, 8.0),
            _ => stream.between(2.2, 3.2),
        } as f32;
        let tone = stream.between(0.12, 0.55) as f32;
        let [face, mark] = FACES[stream.below(FACES.len())];
        let radius = if matches!(head, Head::Lamp | Head::Nothing) { 0.08 } else { 0.055 };
        let reach = -side * stream.between(0.6, 1.8) as f32;
        Self {
            head,
            height,
            radius,
            steel: [tone, tone * 1.02, tone],
            face,
            mark,
            reach,
            size: stream.between(0.3, 0.45) as f32,
        }
    }

    pub(super) fn paint(&self, canvas: &mut Canvas, camera: &Camera, light: &Light, spot: Spot) {
        let (scale, z) = (camera.scale(spot.z), spot.z);
        let lit = |colour: Rgb| light.through(light.on(colour, [0.3 * light.sun[0].signum(), 0.1, -0.9], 0.9), z);
        let at = |across: f32, up: f32| camera.project(spot.s + across, up, z);
        let pole = Layer { depth: z, class: class::POLE };
        let sign = Layer { depth: z - 0.05, class: class::SIGN };
        let radius = (self.radius * scale).max(0.5);
        let steel = lit(self.steel);
        canvas.limb(at(0.0, 0.0), at(0.0, self.height), [radius * 1.15, radius * 0.85], pole, steel);
        let size = self.size * scale;
        let [x, y] = at(0.0, self.height);
        match self.head {
            Head::Lamp => {
                let [tip_x, tip_y] = at(self.reach, self.height + 0.25);
                canvas.limb([x, y], [tip_x, tip_y], [radius * 0.8, radius * 0.7], pole, steel);
                let lamp = [tip_x, tip_y + 0.08 * scale];
                canvas.ellipse(lamp, [0.32 * scale, 0.1 * scale], pole, |_, _| lit([0.75, 0.74, 0.66]));
            }
            Head::TrafficLight => {
                let (w, h) = ((0.2 * scale).max(0.9), (0.52 * scale).max(1.6));
                let points = [[x - w, y - h], [x + w, y - h], [x + w, y + h], [x - w, y + h]];
                canvas.polygon(&points, sign, |_, _| lit([0.08, 0.08, 0.09]));
                let burning = ((self.reach.abs() * 91.0) as usize) % 3;
                for (index, lamp) in [[0.95, 0.15, 0.1], [0.95, 0.65, 0.1], [0.15, 0.85, 0.4]].into_iter().enumerate() {
                    let centre = [x, y + h * (index as f32 - 1.0) * 0.62];
                    let glow = if index == burning { lamp } else { scaled(lamp, 0.22) };
                    canvas.ellipse(centre, [w * 0.55, w * 0.55], sign, |_, _| glow);
                }
            }
            Head::Disc => {
                let centre = [x, y - size * 0.2];
                canvas.ellipse(centre, [size, size], sign, |_, _| lit(self.face));
                canvas.ellipse(centre, [size * 0.72, size * 0.72], sign, |px, py| {
                    let bar = (py - centre[1]).abs() < size * 0.16 && (px - centre[0]).abs() < size * 0.5;
                    lit(if bar { self.face } else { self.mark })
                });
            }
            Head::Triangle => {
                for (grow, colour) in [(1.0, [0.75, 0.12, 0.1]), (0.62, [0.88, 0.88, 0.85])] {
                    let r = size * 1.25 * grow;
                    let points = [[x, y - r], [x + r * 0.87, y + r * 0.5], [x - r * 0.87, y + r * 0.5]];
                    canvas.polygon(&points, sign, |_, _| lit(colour));
                }
            }
            Head::Board => {
                let (w, h) = (size * 2.0, size * 1.1);
                let points = [[x - w, y - h], [x + w, y - h], [x + w, y + h], [x - w, y + h]];
                canvas.polygon(&points, sign, |px, py| {
                    let (u, v) = ((px - x) / w, (py - y) / h);
                    let border = u.abs() > 0.92 || v.abs() > 0.86;
                    let text = (v * 2.5 + 9.0).fract() < 0.4 && cell((u * 9.0) as i32, (v * 2.5) as i32, 5) > 0.35;
                    lit(if border || (text && u.abs() < 0.8) { self.mark } else { self.face })
                });
            }
            Head::Nothing => {}
        }
    }
}

/// A bin, cabinet or box: something that no class names, labelled 255.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bin {
    width: f32,
    height: f32,
    colour: Rgb,
}

impl Bin {
    pub(super) fn draw(stream: &mut Stream) -> Self {
        const COLOURS: [Rgb; 5] =
            [[0.12, 0.2, 0.13], [0.12, 0.12, 0.13], [0.2, 0.22, 0.42], [0.55, 0.54, 0.5], [0.6, 0.12, 0.1]];
        Self {
            width: stream.between(0.35, 0.9) as f32,
            height: stream.between(0.7, 1.35) as f32,
            colour: COLOURS[stream.below(COLOURS.len())],
        }
    }

    pub(super) fn paint(&self, canvas: &mut Canvas, camera: &Camera, light: &Light, spot: Spot) {
        let layer = Layer { depth: spot.z, class: crate::IGNORE };
        let at = |across: f32, up: f32| camera.project(spot.s + across, up, spot.z);
        let half = self.width * 0.5;
        let body = [at(-half * 0.85, 0.0), at(half * 0.85, 0.0), at(half, self.height), at(-half, self.height)];
        let left = body[0][0];
        let width = (body[1][0] - left).max(1.0);
        canvas.polygon(&body, layer, |x, _| {
            let round = 0.75 + 0.5 * (1.0 - (2.0 * (x - left) / width - 1.0).powi(2)).max(0.0) * 0.6;
            light.through(light.on(scaled(self.colour, round), [0.0, 0.1, -0.95], 0.9), spot.z)
        });
        let lid = [
            at(-half * 1.1, self.height),
            at(half * 1.1, self.height),
            at(half, self.height + 0.1),
            at(-half, self.height + 0.1),
        ];
        canvas.polygon(&lid, layer, |_, _| {
            light.through(light.on(scaled(self.colour, 1.3), [0.0, 0.8, -0.4], 1.0), spot.z)
        });
    }
}
