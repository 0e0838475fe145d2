//! Things that run along the street: house fronts with their end walls, fences and hedges.
//!
//! A front is painted column by column: each column's sight line meets the front's line at one distance, which gives
//! the position along the wall and the rows of its foot and top.

use dsd_random::Stream;

use super::camera::{Camera, Light, NEAR};
use super::canvas::{Canvas, Layer};
use super::class;
use super::noise::{Rgb, between, cell, floor, fract, hash, layered, mix, scaled, smooth, tinted};

/// A vertical surface along the street.
struct Strip {
    /// Metres from the road's middle, and from where to where along it.
    s: f32,
    from: f32,
    to: f32,
    foot: f32,
    class: u8,
}

/// Paints a strip. `top` gives the height at a position; `shade` gives colour and opacity at (along, up, size of the
/// pixel along and up, all in metres).
fn paint_strip(
    canvas: &mut Canvas,
    camera: &Camera,
    strip: &Strip,
    top: impl Fn(f32) -> f32,
    shade: impl Fn(f32, f32, f32, f32) -> (Rgb, f32),
) {
    let (from, to) = (strip.from.max(NEAR), strip.to);
    if to <= from {
        return;
    }
    let column = |z: f32| camera.project(strip.s, 0.0, z)[0];
    let steps = (0..=6).map(|step| column(from + (to - from) * (step as f32 / 6.0)));
    let (low, high) = steps.fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(x), high.max(x)));
    let (columns, _) = canvas.clip([low, 0.0, high, 0.0]);
    for x in columns {
        let Some(z) = camera.meet(x as f32 + 0.5, strip.s) else { continue };
        if z < from || z > to {
            continue;
        }
        let next = camera.meet(x as f32 + 1.5, strip.s).unwrap_or(z);
        let (scale, along) = (camera.scale(z), (next - z).abs().clamp(z / camera.focal, 6.0));
        let upper = camera.horizon + (camera.above - top(z)) * scale;
        let lower = camera.horizon + (camera.above - strip.foot) * scale;
        let layer = Layer { depth: z, class: strip.class };
        let rows = (upper.floor().max(0.0) as usize)..((lower.ceil().max(0.0) as usize).min(canvas.height));
        for y in rows {
            let edge = (y as f32 + 1.0 - upper).min(lower - y as f32).clamp(0.0, 1.0);
            let up = camera.above - (y as f32 + 0.5 - camera.horizon) / scale;
            if z > canvas.depths[y * canvas.width + x] + 0.02 {
                continue;
            }
            let (colour, opacity) = shade(z, up, along, 1.0 / scale);
            // The whole strip carries the label, also where one looks through its bars.
            if opacity < 1.0 && edge >= 0.5 {
                let at = y * canvas.width + x;
                canvas.colours[at] = mix(canvas.colours[at], colour, opacity);
                canvas.labels[at] = layer.class;
                canvas.depths[at] = layer.depth;
            } else {
                canvas.put(x, y, layer, edge * opacity, colour);
            }
        }
    }
}

/// Depth of every house from the street backwards, metres.
const DEPTH: f32 = 9.0;

/// A house.
#[derive(Clone, Copy, Debug)]
pub(super) struct House {
    seed: u32,
    /// −1 left of the road, 1 right.
    pub(super) side: f32,
    /// Metres of the front from the road's middle, > 0.
    pub(super) front: f32,
    pub(super) from: f32,
    pub(super) to: f32,
    pub(super) height: f32,
    roof: f32,
    wall: Rgb,
    tiles: Rgb,
    storey: f32,
    bay: f32,
    window: [f32; 2],
    frame: Rgb,
    shop: Option<Rgb>,
    brick: bool,
    band: bool,
}

impl House {
    pub(super) fn draw(stream: &mut Stream, side: f32, front: f32, from: f32, to: f32, height: f32) -> Self {
        const WALLS: [Rgb; 9] = [
            [0.52, 0.32, 0.25],
            [0.62, 0.5, 0.36],
            [0.72, 0.66, 0.54],
            [0.8, 0.78, 0.72],
            [0.46, 0.42, 0.4],
            [0.58, 0.56, 0.54],
            [0.66, 0.58, 0.46],
            [0.42, 0.27, 0.22],
            [0.6, 0.63, 0.66],
        ];
        const SHOPS: [Rgb; 6] = [
            [0.15, 0.3, 0.5],
            [0.55, 0.1, 0.12],
            [0.1, 0.32, 0.2],
            [0.75, 0.6, 0.15],
            [0.2, 0.2, 0.22],
            [0.6, 0.6, 0.62],
        ];
        let seed = stream.bits() as u32;
        let wall = WALLS[stream.below(WALLS.len())];
        let tone = stream.between(0.8, 1.15) as f32;
        let storey = stream.between(2.6, 3.5) as f32;
        let shop = stream.chance(0.35).then(|| SHOPS[stream.below(SHOPS.len())]);
        let frame = if stream.chance(0.65) { [0.82, 0.82, 0.8] } else { [0.25, 0.22, 0.2] };
        Self {
            seed,
            side,
            front,
            from,
            to,
            height,
            roof: if stream.chance(0.6) { stream.between(1.2, 2.8) as f32 } else { 0.0 },
            wall: scaled(wall, tone),
            tiles: if stream.chance(0.5) { [0.36, 0.2, 0.16] } else { [0.28, 0.29, 0.32] },
            storey,
            bay: stream.between(1.8, 3.4) as f32,
            window: [stream.between(0.35, 0.7) as f32, stream.between(0.45, 0.65) as f32],
            frame,
            shop,
            brick: stream.chance(0.6),
            band: stream.chance(0.4),
        }
    }

    pub(super) fn paint(&self, canvas: &mut Canvas, camera: &Camera, light: &Light) {
        self.paint_roof(canvas, camera, light);
        self.paint_end(canvas, camera, light);
        let (s, class) = (self.side * self.front, class::BUILDING);
        let strip = Strip { s, from: self.from, to: self.to, foot: -0.1, class };
        let normal = [-self.side, 0.0, 0.0];
        let face = [light.on([1.0; 3], normal, 1.0), light.on(self.frame, normal, 0.6)];
        paint_strip(
            canvas,
            camera,
            &strip,
            |_| self.height,
            |along, up, wide, high| {
                let colour = self.front_colour(along - self.from, up, [wide, high], face, light.haze);
                (light.through(colour, along), 1.0)
            },
        );
    }

    /// The roof shows above the eaves as far as its ridge, half the house's depth behind the front.
    fn paint_roof(&self, canvas: &mut Canvas, camera: &Camera, light: &Light) {
        if self.roof <= 0.0 {
            return;
        }
        let s = self.side * (self.front + 0.5 * DEPTH);
        let strip = Strip { s, from: self.from, to: self.to, foot: self.height - 1.5, class: class::BUILDING };
        let face = light.on(self.tiles, [-self.side * 0.6, 0.8, 0.0], 1.0);
        paint_strip(
            canvas,
            camera,
            &strip,
            |_| self.height + self.roof,
            |along, up, _, high| {
                let courses = 0.85 + 0.3 * smooth(along * 2.0, up * 7.0 / (1.0 + 4.0 * high), self.seed);
                (light.through(scaled(face, courses), along), 1.0)
            },
        );
    }

    /// The wall that faces the camera where the house begins.
    fn paint_end(&self, canvas: &mut Canvas, camera: &Camera, light: &Light) {
        if self.from <= NEAR {
            return;
        }
        let z = self.from;
        let (near, far) = (self.side * self.front, self.side * (self.front + DEPTH));
        let corner = |s: f32, up: f32| camera.project(s, up, z);
        let layer = Layer { depth: z + 0.01, class: class::BUILDING };
        let middle = (near + far) * 0.5;
        let points = [
            corner(near, -0.1),
            corner(near, self.height),
            corner(middle, self.height + self.roof),
            corner(far, self.height),
            corner(far, -0.1),
        ];
        let (scale, seed) = (camera.scale(z), self.seed ^ 77);
        canvas.polygon(&points, layer, |x, y| {
            let (u, v) = ((x - points[0][0]) / scale, camera.above - (y - camera.horizon) / scale);
            let tone = 0.82 + 0.3 * layered(u * 0.8, v * 0.8, seed, 2) + self.courses(u, v, 1.0 / scale, 1.0 / scale);
            light.through(light.on(scaled(self.wall, tone), [0.0, 0.0, -1.0], 0.9), z)
        });
    }

    fn courses(&self, u: f32, v: f32, wide: f32, high: f32) -> f32 {
        if !self.brick || high > 0.3 || wide > 0.8 {
            return 0.0;
        }
        let fade = 1.0 - high / 0.3;
        0.22 * fade * (cell(floor(u * 4.5), floor(v * 12.0), self.seed) - 0.5)
    }

    /// Wall, windows, doors and shop front at `u` metres along the front and `up` metres above the road, where a pixel
    /// is `[wide, high]` metres. `face` is the light on a white front and the window bars' colour in it.
    fn front_colour(&self, u: f32, up: f32, [wide, high]: [f32; 2], face: [Rgb; 2], gloss: Rgb) -> Rgb {
        let stain = 0.86 + 0.24 * smooth(u * 0.8, up * 0.8, self.seed);
        let mut wall = scaled(self.wall, stain + self.courses(u, up, wide, high));
        let (storeys, bays) = (up / self.storey, u / self.bay);
        let (storey, bay) = (floor(storeys) as f32, floor(bays) as f32);
        let (v, h) = (storeys - storey, bays - bay);
        let (blur_v, blur_h) = (high / self.storey, wide / self.bay);
        if self.band {
            wall = mix(wall, self.frame, 0.6 * between(v, 0.0, 0.07, blur_v));
        }
        let dice = cell(bay as i32, storey as i32, self.seed);
        // The topmost storey may be too low for a window; nothing is cut in two by the eaves.
        let room = (storey + 0.95) * self.storey < self.height;
        let ground = storey < 1.0;
        let (low, high_edge, half, is_door) = match (ground, self.shop.is_some()) {
            (true, true) => (0.12, 0.72, 0.46, false),
            (true, false) if dice < 0.3 => (0.0, 0.72, 0.2, true),
            _ => (0.28, 0.28 + self.window[1], self.window[0] * 0.5, false),
        };
        if !room && !ground {
            return tinted(wall, face[0]);
        }
        let frame_v = 0.035;
        let frame_h = 0.03;
        let outer = between(v, low - frame_v, high_edge + frame_v, blur_v)
            * between(h, 0.5 - half - frame_h, 0.5 + half + frame_h, blur_h);
        let inner = between(v, low, high_edge, blur_v) * between(h, 0.5 - half, 0.5 + half, blur_h);
        if let (true, Some(shop)) = (ground, self.shop) {
            // The fascia, with blocks of lettering.
            let fascia = between(v, 0.78, 0.97, blur_v);
            let letters = cell(floor(u * 5.0), (bay * 3.0) as i32, self.seed ^ 9);
            let text = if letters > 0.55 && wide < 0.4 { between(v, 0.83, 0.92, blur_v) } else { 0.0 };
            wall = mix(wall, mix(shop, [0.9, 0.88, 0.8], text), fascia);
        }
        let mut colour = tinted(mix(wall, self.frame, outer), face[0]);
        if inner > 0.0 {
            let pane = if is_door {
                let tint = hash(u64::from(self.seed) + bay as u64);
                let door: Rgb = std::array::from_fn(|c| 0.12 + 0.4 * ((tint >> (8 * c)) & 255) as f32 / 255.0);
                tinted(door, face[0])
            } else {
                // Glass mirrors the sky in part, more in some panes; curtains and lamps shine through.
                let mirror = 0.15 + 0.5 * dice * v;
                let room_tone = 0.1 + 0.22 * cell(bay as i32, storey as i32, self.seed ^ 5);
                let goods = if ground { 0.35 * smooth(u * 2.0, up * 3.0, self.seed ^ 8) } else { 0.0 };
                mix([room_tone + goods, room_tone + goods * 0.8, room_tone * 1.1 + goods * 0.7], gloss, mirror)
            };
            let bar = between(h, 0.49, 0.51, blur_h).max(between(v, low + 0.2, low + 0.225, blur_v));
            colour = mix(colour, mix(pane, face[1], bar * 0.7), inner);
        }
        colour
    }
}

/// How a fence looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FenceKind {
    Railing,
    Planks,
    Mesh,
    Hedge,
}

/// A fence or hedge along the street.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fence {
    kind: FenceKind,
    seed: u32,
    pub(super) s: f32,
    pub(super) from: f32,
    pub(super) to: f32,
    height: f32,
    colour: Rgb,
}

impl Fence {
    pub(super) fn draw(stream: &mut Stream, s: f32, from: f32, to: f32) -> Self {
        let kind = [FenceKind::Railing, FenceKind::Railing, FenceKind::Planks, FenceKind::Mesh, FenceKind::Hedge]
            [stream.below(5)];
        const COLOURS: [Rgb; 5] =
            [[0.12, 0.13, 0.13], [0.42, 0.3, 0.2], [0.5, 0.46, 0.4], [0.18, 0.28, 0.2], [0.55, 0.56, 0.57]];
        let colour = COLOURS[stream.below(COLOURS.len())];
        let height = stream.between(0.9, 1.9) as f32;
        Self { kind, seed: stream.bits() as u32, s, from, to, height, colour }
    }

    pub(super) fn paint(&self, canvas: &mut Canvas, camera: &Camera, light: &Light) {
        let hedge = self.kind == FenceKind::Hedge;
        let class = if hedge { class::TREE } else { class::FENCE };
        let strip = Strip { s: self.s, from: self.from, to: self.to, foot: 0.0, class };
        let normal = [-self.s.signum(), 0.0, 0.0];
        let top =
            |z: f32| if hedge { self.height * (0.85 + 0.25 * smooth(z * 1.3, 0.0, self.seed)) } else { self.height };
        paint_strip(canvas, camera, &strip, top, |along, up, wide, high| {
            let rail = |at: f32| between(up, at - 0.035, at + 0.035, high);
            let (tone, opacity) = match self.kind {
                FenceKind::Railing => {
                    let bars = between(fract(along / 0.16), 0.0, 0.3, wide / 0.16);
                    (1.0, bars.max(rail(self.height - 0.04)).max(rail(0.15)))
                }
                FenceKind::Planks => {
                    let plank = cell(floor(along / 0.15), 0, self.seed);
                    let gap = between(fract(along / 0.15), 0.0, 0.08, wide / 0.15);
                    (0.75 + 0.4 * plank / (1.0 + 3.0 * wide) - 0.35 * gap, 1.0)
                }
                FenceKind::Mesh => {
                    let post = between(fract(along / 2.2), 0.0, 0.04, wide / 2.2);
                    (
                        1.1,
                        (0.35 + 0.3 * smooth(along * 6.0, up * 6.0, self.seed)).max(post).max(rail(self.height - 0.04)),
                    )
                }
                FenceKind::Hedge => (0.45 + 1.0 * layered(along * 3.0, up * 3.0, self.seed, 3), 1.0),
            };
            let base = if hedge { [0.16, 0.26, 0.1] } else { self.colour };
            (light.through(light.on(scaled(base, tone), normal, 0.9), along), opacity.clamp(0.0, 0.999))
        });
    }
}
