//! Sky, skyline and ground: what is painted over whole rows before anything stands on it.

use dsd_random::Stream;

use super::camera::{Camera, FAR, Light};
use super::canvas::{Canvas, Layer};
use super::class;
use super::noise::{Rgb, between, cell, floor, fract, layered, mix, scaled, smooth};

/// Colours and cloudiness of the sky.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sky {
    seed: u32,
    zenith: Rgb,
    clouds: f32,
    cloud: Rgb,
}

impl Sky {
    pub(super) fn draw(stream: &mut Stream, light: &Light) -> Self {
        let mut pick = |low: f64, high: f64| stream.between(low, high) as f32;
        let blue = [pick(0.25, 0.45), pick(0.45, 0.62), pick(0.75, 0.95)];
        let grey = pick(0.55, 0.9);
        let zenith = mix(blue, [grey, grey, grey * 1.03], light.overcast);
        let bright = pick(0.8, 1.02);
        let clouds = pick(0.0, 0.75) + 0.2 * light.overcast;
        Self { seed: stream.bits() as u32, zenith, clouds, cloud: [bright, bright, bright * 1.01] }
    }

    /// Paints every row above the horizon (and one below, which the ground covers).
    pub(super) fn paint(&self, canvas: &mut Canvas, camera: &Camera, light: &Light) {
        let rows = ((camera.horizon + 2.0).max(0.0) as usize).min(canvas.height);
        let per_pixel = 1.0 / camera.focal;
        let top = camera.horizon * per_pixel;
        for y in 0..rows {
            let rise = ((camera.horizon - y as f32) * per_pixel).max(0.0);
            let base = mix(light.haze, self.zenith, (rise / top.max(0.2)).sqrt().min(1.0));
            // Clouds get flatter towards the horizon.
            let v = 0.9 / (rise + 0.12);
            // Clouds are soft: every fourth pixel is enough, the others lie between.
            let density = |x: usize| {
                let u = (x as f32 - camera.centre) * per_pixel * (v + 0.6);
                layered(u * 1.7, v * 1.1, self.seed, 3) + self.clouds - 0.98
            };
            let row = &mut canvas.colours[y * canvas.width..(y + 1) * canvas.width];
            let mut left = density(0);
            for (block, pixels) in row.chunks_mut(4).enumerate() {
                let right = density(4 * block + 4);
                for (step, colour) in pixels.iter_mut().enumerate() {
                    let share = ((left + (right - left) * step as f32 * 0.25) * 3.2).clamp(0.0, 1.0);
                    *colour = mix(base, self.cloud, share * 0.85);
                }
                left = right;
            }
        }
    }
}

/// What closes the view at the end of the street: far buildings and trees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Skyline {
    seed: u32,
    height: f32,
    trees: f32,
}

impl Skyline {
    pub(super) fn draw(stream: &mut Stream) -> Self {
        Self {
            seed: stream.bits() as u32,
            height: stream.between(5.0, 14.0) as f32,
            trees: stream.between(0.1, 0.8) as f32,
        }
    }

    pub(super) fn paint(&self, canvas: &mut Canvas, camera: &Camera, light: &Light) {
        let scale = camera.scale(FAR);
        for x in 0..canvas.width {
            let across = (x as f32 + 0.5 - camera.centre) / scale;
            let block = (across / 11.0).floor() as i32;
            let is_tree = cell(block, 1, self.seed) < self.trees;
            let roof = self.height * (0.5 + 0.8 * cell(block, 2, self.seed));
            let up = if is_tree { self.height * (0.35 + 0.6 * layered(across / 5.0, 0.0, self.seed, 3)) } else { roof };
            let shade = 0.7 + 0.5 * cell(block, 3, self.seed);
            let base = if is_tree { [0.2, 0.28, 0.14] } else { [0.5 * shade, 0.44 * shade, 0.4 * shade] };
            let top = camera.horizon + (camera.above - up) * scale;
            let bottom = ((camera.horizon + camera.above * scale + 2.0).max(0.0) as usize).min(canvas.height);
            let layer = Layer { depth: FAR, class: if is_tree { class::TREE } else { class::BUILDING } };
            for y in (top.floor().max(0.0) as usize)..bottom {
                let grain = 0.8 + 0.4 * smooth(across * 0.9, y as f32 * 0.5, self.seed ^ 7);
                let colour = light.through(light.on(scaled(base, grain), [0.0, 0.3, -0.95], 0.6), FAR);
                canvas.put(x, y, layer, (y as f32 + 1.0 - top).clamp(0.0, 1.0), colour);
            }
        }
    }
}

/// Surfaces and widths of the street.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ground {
    pub(super) seed: u32,
    /// Half the road's width, metres.
    pub(super) half: f32,
    /// Width of the pavement on the left and right, metres.
    pub(super) pavement: [f32; 2],
    asphalt: Rgb,
    lane: Rgb,
    lane_side: f32,
    paving: Rgb,
    slabs: bool,
    /// Behind the pavement: grass or paving.
    green: [bool; 2],
    wear: f32,
    dashed: bool,
    edge_lines: f32,
    /// Distance of a zebra crossing, metres.
    pub(super) zebra: Option<f32>,
    wet: f32,
    /// Height of the buildings that shade the ground, by side; 0 where the sun does not come from there.
    pub(super) shade: [f32; 2],
}

impl Ground {
    pub(super) fn draw(stream: &mut Stream) -> Self {
        let seed = stream.bits() as u32;
        let mut pick = |low: f64, high: f64| stream.between(low, high) as f32;
        let half = pick(2.9, 4.9);
        let pavement = [pick(1.5, 4.6), pick(1.5, 4.6)];
        let level = pick(0.27, 0.5);
        let asphalt = [level * pick(0.97, 1.06), level, level * pick(0.96, 1.06)];
        let paved = pick(0.36, 0.66);
        let paving = [paved * pick(1.0, 1.12), paved, paved * pick(0.84, 1.0)];
        let (lane_side, lane_red, wear, edge_lines) = (pick(-1.0, 1.0), pick(0.0, 1.0), pick(0.2, 0.9), pick(0.0, 1.0));
        let (zebra_at, wet) = (pick(5.0, 34.0), (pick(-1.2, 0.7)).max(0.0));
        Self {
            seed,
            half,
            pavement,
            asphalt,
            lane: if lane_red > 0.5 { [0.42, 0.25, 0.22] } else { [0.28, 0.36, 0.26] },
            lane_side: if lane_side.abs() > 0.7 { lane_side.signum() } else { 0.0 },
            // Some pavements are laid with the road's asphalt: only the kerb tells them apart.
            paving: if stream.chance(0.3) { mix(asphalt, paving, 0.25) } else { paving },
            slabs: stream.chance(0.6),
            green: [stream.chance(0.5), stream.chance(0.5)],
            wear,
            dashed: stream.chance(0.8),
            edge_lines,
            zebra: stream.chance(0.3).then_some(zebra_at),
            wet,
            shade: [0.0; 2],
        }
    }

    pub(super) fn paint(&self, canvas: &mut Canvas, camera: &Camera, light: &Light) {
        let first = (camera.horizon + 0.5).ceil().max(0.0) as usize;
        for y in first..canvas.height {
            let z = camera.focal * camera.above / (y as f32 + 0.5 - camera.horizon);
            if z > FAR {
                continue;
            }
            let (wide, deep) = (z / camera.focal, z * z / (camera.focal * camera.above));
            let shift = camera.shift(z);
            for x in 0..canvas.width {
                let s = (x as f32 + 0.5 - camera.centre) * wide - shift;
                let (colour, class) = self.surface(s, z, wide, deep);
                let lit = self.in_sun(s, z, light);
                let mut colour = light.on(colour, [0.0, 1.0, 0.0], lit);
                if self.wet > 0.0 && class == class::ROAD {
                    let pool = (layered(s * 0.5, z * 0.25, self.seed ^ 99, 2) * 2.6 - 1.1).clamp(0.0, 1.0);
                    let mirror = (z / (z + 9.0)).min(0.75);
                    colour = mix(colour, light.haze, self.wet * pool * mirror);
                }
                canvas.put(x, y, Layer { depth: z, class }, 1.0, light.through(colour, z));
            }
        }
    }

    /// Share of the sun that reaches the ground past the houses.
    fn in_sun(&self, s: f32, z: f32, light: &Light) -> f32 {
        let side = usize::from(light.sun[0] > 0.0);
        let tall = self.shade[side];
        if tall <= 0.0 {
            return 1.0;
        }
        let ragged = tall * (0.7 + 0.6 * cell(floor(z / 9.0 + light.sun[2] * 2.0), 5, self.seed));
        let reach = ragged * light.sun[0].abs() / light.sun[1].max(0.1);
        let wall = self.half + self.pavement[side];
        let away = wall - s * light.sun[0].signum();
        ((away - reach) * 2.5).clamp(0.0, 1.0)
    }

    /// Colour and class of the ground; `wide` and `deep` are the pixel's size there in metres.
    fn surface(&self, s: f32, z: f32, wide: f32, deep: f32) -> (Rgb, u8) {
        let side = usize::from(s > 0.0);
        let out = s.abs() - self.half;
        if out < 0.0 {
            return (
                mix(self.road(s, z, wide, deep), scaled(self.paving, 0.7), between(out, -0.12, 9.0, wide)),
                class::ROAD,
            );
        }
        if out < self.pavement[side] {
            let kerb = between(out, 0.0, 0.16, wide.max(0.02));
            let joint = if self.slabs && deep < 0.6 {
                let lines = between(fract(out / 0.6), 0.0, 0.06, wide / 0.6).max(between(
                    (z / 0.6).fract(),
                    0.0,
                    0.08,
                    deep / 0.6,
                ));
                1.0 - 0.3 * lines * (1.0 - deep / 0.6)
            } else {
                1.0
            };
            let tone = if self.slabs && deep < 0.6 {
                0.9 + 0.16 * cell((out / 0.6) as i32, (z / 0.6) as i32, self.seed)
            } else {
                1.0
            };
            let grain = 0.84 + 0.32 * smooth(s * 1.9, z * 1.9, self.seed ^ 3);
            return (mix(scaled(self.paving, grain * joint * tone), [0.62, 0.61, 0.58], kerb * 0.7), class::PAVEMENT);
        }
        let grain = 0.6 + 0.8 * layered(s * 2.5, z * 2.5 / (1.0 + deep), self.seed ^ 5, 2);
        if self.green[side] {
            (scaled([0.27, 0.36, 0.15], grain), class::TREE)
        } else {
            (scaled(self.paving, 0.6 + 0.4 * grain), class::PAVEMENT)
        }
    }

    /// Colour of the road: asphalt with wear, patches and wheel tracks, coloured lane, markings, zebra.
    fn road(&self, s: f32, z: f32, wide: f32, deep: f32) -> Rgb {
        let coarse = smooth(s * 0.9, z * 0.3, self.seed);
        let fine = cell((s * 22.0) as i32, (z * 22.0) as i32, self.seed) - 0.5;
        let tracks = 0.2 * (fract(s.abs() / (self.half * 0.5)) - 0.5).abs() - 0.05;
        let mut tone = 0.83 + 0.34 * coarse + tracks + 0.14 * fine / (1.0 + 6.0 * deep);
        let patch = cell(floor(s / 1.9), floor(z / 4.7), self.seed ^ 11);
        if patch > 0.9 {
            tone *= 0.87;
        } else if patch < 0.06 {
            tone *= 1.09;
        }
        let edge = self.half - s.abs();
        let on_lane = self.lane_side * s > 0.0 && edge < 1.6;
        let mut colour = scaled(if on_lane { self.lane } else { self.asphalt }, tone);
        let worn = || 1.0 - self.wear * layered(s * 3.0, z * 1.5, self.seed ^ 21, 2);
        let white = [0.82, 0.82, 0.79];
        let dash = if self.dashed { between(fract(z / 6.0 + 0.3), 0.0, 0.5, deep / 6.0) } else { 1.0 };
        let middle = between(s, -0.07, 0.07, wide) * dash;
        if middle > 0.0 {
            colour = mix(colour, white, middle * worn());
        }
        if self.edge_lines > 0.45 {
            let double = self.edge_lines > 0.75;
            let lines = between(edge, 0.25, 0.34, wide) + if double { between(edge, 0.44, 0.53, wide) } else { 0.0 };
            let paint = if double { [0.78, 0.64, 0.2] } else { white };
            if lines > 0.0 {
                colour = mix(colour, paint, (lines * worn()).min(1.0));
            }
        }
        if let Some(at) = self.zebra {
            let along = between(z, at, at + 2.8, deep);
            let bars = between(fract(s / 1.1), 0.0, 0.5, wide / 1.1);
            if along * bars > 0.0 {
                colour = mix(colour, white, along * bars * (0.5 + 0.5 * worn()));
            }
        }
        colour
    }
}
