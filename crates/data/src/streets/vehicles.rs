//! Cars, vans and lorries: a side profile extruded across, turned by any angle and painted face by face.

use dsd_random::Stream;

use super::camera::{Camera, Light, NEAR};
use super::canvas::{Canvas, Layer, signed_area};
use super::class;
use super::furniture::Spot;
use super::noise::{Rgb, mix, scaled, tinted};

/// A vehicle.
#[derive(Clone, Debug)]
pub(super) struct Car {
    /// Body below the windows and cabin above, each a convex profile of (along, up) in metres; along runs to the front.
    body: Vec<[f32; 2]>,
    cabin: Vec<[f32; 2]>,
    half_width: f32,
    length: f32,
    wheel: f32,
    paint: Rgb,
    glass: Rgb,
    closed: bool,
    brakes: bool,
    lights_on: bool,
}

impl Car {
    pub(super) fn draw(stream: &mut Stream) -> Self {
        const PAINTS: [Rgb; 11] = [
            [0.72, 0.73, 0.75],
            [0.5, 0.51, 0.53],
            [0.28, 0.29, 0.31],
            [0.09, 0.09, 0.1],
            [0.85, 0.85, 0.84],
            [0.5, 0.08, 0.08],
            [0.1, 0.15, 0.36],
            [0.2, 0.3, 0.42],
            [0.13, 0.27, 0.2],
            [0.55, 0.5, 0.4],
            [0.7, 0.55, 0.1],
        ];
        let kind = stream.below(10);
        let mut pick = |low: f64, high: f64| stream.between(low, high) as f32;
        let stretch = pick(0.92, 1.08);
        let (length, belt, roof, half_width, wheel) = match kind {
            0 => (pick(4.6, 5.4), 1.25, pick(1.95, 2.4), 0.95, 0.34),
            1 => (pick(6.5, 9.5), 1.5, pick(2.9, 3.6), 1.15, 0.45),
            _ => (pick(3.7, 4.7), pick(0.88, 0.98), pick(1.38, 1.55), pick(0.8, 0.88), pick(0.29, 0.33)),
        };
        let half = length * stretch * 0.5;
        let van = kind <= 1;
        let body = if van {
            vec![[-half, 0.3], [half, 0.3], [half, belt * 0.8], [half * 0.86, belt], [-half, belt]]
        } else {
            vec![
                [-half, 0.28],
                [half, 0.28],
                [half, 0.62],
                [half * 0.95, 0.78],
                [half * 0.42, belt],
                [-half * 0.97, belt],
            ]
        };
        let cabin = if van {
            vec![[-half, belt], [half * 0.86, belt], [half * 0.68, roof], [-half, roof]]
        } else {
            // Saloons have a boot behind the rear window, hatchbacks end with it.
            let back = if kind < 5 { 0.62 } else { 0.97 };
            vec![[-half * back, belt], [half * 0.46, belt], [half * 0.12, roof], [-half * (back - 0.22), roof]]
        };
        let paint = PAINTS[stream.below(PAINTS.len())];
        let tone = stream.between(0.85, 1.12) as f32;
        Self {
            body,
            cabin,
            half_width,
            length: 2.0 * half,
            wheel,
            paint: scaled(paint, tone),
            glass: [0.1, 0.12, 0.14],
            closed: kind == 1 || (kind == 0 && stream.chance(0.7)),
            brakes: stream.chance(0.35),
            lights_on: stream.chance(0.25),
        }
    }

    /// Paints the vehicle; `heading` is the angle of its front from the axis, radians, to the right.
    pub(super) fn paint(&self, canvas: &mut Canvas, camera: &Camera, light: &Light, spot: Spot, heading: f32) {
        let (sin, cos) = heading.sin_cos();
        // Along the car, across it (to its right), up.
        let place = |along: f32, across: f32, up: f32| -> ([f32; 2], f32) {
            let (right, ahead) = (along * sin + across * cos, along * cos - across * sin);
            let z = (spot.z + ahead).max(NEAR * 0.6);
            // The street may bend beneath the car; the car does not.
            let centre = spot.s + camera.shift(spot.z);
            let x = camera.centre + camera.focal * (centre + right) / z;
            ([x, camera.horizon + camera.focal * (camera.above - up) / z], z)
        };
        let layer = Layer { depth: spot.z - 0.3, class: class::CAR };
        let turned =
            |normal: [f32; 3]| [normal[0] * sin + normal[1] * cos, normal[2], normal[0] * cos - normal[1] * sin];
        let right = camera.shift(spot.z) + spot.s;
        // The side whose outward normal looks back at the camera.
        let side = if (right * cos - spot.z * sin) > 0.0 { -1.0 } else { 1.0 };
        let ground = place(0.0, 0.0, 0.0).0;
        let scale = camera.scale(spot.z);
        let spread = (self.length * 0.55 * sin.abs() + self.half_width * 1.25 * cos.abs()) * scale;
        let deep = (self.length * 0.5 * cos.abs() + self.half_width * sin.abs() + 0.3) * camera.above / spot.z * scale;
        canvas.darken(ground, [spread, deep.min(spread)], spot.z, 0.55);

        self.wheels(canvas, &place, layer, side);
        let belt = self.cabin.first().map_or(1.0, |point| point[1]);
        for (profile, is_cabin) in [(&self.body, false), (&self.cabin, true)] {
            let inset = if is_cabin && !self.closed { 0.9 } else { 1.0 };
            let half_at = |up: f32| self.half_width * if up > belt + 0.05 { inset } else { 1.0 };
            let mut faces: Vec<(f32, usize)> = (0..profile.len())
                .map(|index| {
                    let (a, b) = (profile[index], profile[(index + 1) % profile.len()]);
                    (place((a[0] + b[0]) * 0.5, 0.0, (a[1] + b[1]) * 0.5).1, index)
                })
                .collect();
            faces.sort_by(|a, b| b.0.total_cmp(&a.0));
            for (_, index) in faces {
                let (a, b) = (profile[index], profile[(index + 1) % profile.len()]);
                let (wa, wb) = (half_at(a[1]), half_at(b[1]));
                let corners = [(a, -wa), (b, -wb), (b, wb), (a, wa)].map(|(p, across)| place(p[0], across, p[1]).0);
                // Profiles run counter-clockwise (front to the right): faces that look at the camera turn left on screen.
                if signed_area(&corners) >= 0.0 {
                    continue;
                }
                let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
                let size = dx.hypot(dy).max(1e-3);
                let normal = turned([dy / size, 0.0, -dx / size]);
                let is_pane = is_cabin && dy.abs() > 0.2 && !(self.closed && dx.abs() < 0.1);
                self.face(canvas, layer, light, &corners, normal, spot.z, is_pane);
                if !is_cabin && dy.abs() > 0.2 && dx.abs() < 0.2 {
                    self.end_details(canvas, &place, layer, a[0]);
                }
            }
            let flank: Vec<[f32; 2]> = profile.iter().map(|p| place(p[0], side * half_at(p[1]), p[1]).0).collect();
            let normal = turned([0.0, side, 0.0]);
            self.face(canvas, layer, light, &flank, normal, spot.z, false);
            if is_cabin {
                self.side_windows(
                    canvas,
                    &place,
                    layer,
                    light,
                    side * self.half_width * (inset + 0.02),
                    normal,
                    spot.z,
                );
            }
        }
        self.near_wheels(canvas, &place, layer, side);
    }

    fn face(
        &self,
        canvas: &mut Canvas,
        layer: Layer,
        light: &Light,
        corners: &[[f32; 2]],
        normal: [f32; 3],
        z: f32,
        is_pane: bool,
    ) {
        let (top, bottom) = corners.iter().fold((f32::MAX, f32::MIN), |(t, b), p| (t.min(p[1]), b.max(p[1])));
        let height = (bottom - top).max(1.0);
        let base = light.on(self.paint, normal, 1.0);
        let shine = tinted(light.haze, [0.9; 3]);
        canvas.polygon(corners, layer, |_, y| {
            let v = (y - top) / height;
            // Lacquer mirrors the sky above and the dark road below.
            let colour = mix(scaled(base, 1.05 - 0.3 * v), shine, 0.16 * (1.0 - v));
            light.through(colour, z)
        });
        if is_pane {
            let pane = shrunk(corners, 0.84);
            canvas.polygon(&pane, layer, |x, y| {
                let v = (y - top) / height;
                let streak = if ((x + y * 1.5) / height * 1.3).fract() < 0.25 { 0.12 } else { 0.0 };
                light.through(mix(self.glass, shine, 0.22 + 0.3 * (1.0 - v) + streak), z)
            });
        }
    }

    fn side_windows(
        &self,
        canvas: &mut Canvas,
        place: &impl Fn(f32, f32, f32) -> ([f32; 2], f32),
        layer: Layer,
        light: &Light,
        across: f32,
        _normal: [f32; 3],
        z: f32,
    ) {
        let &[rear, front, front_top, rear_top] = self.cabin.as_slice() else { return };
        // A closed van has glass at the driver's seat only; cars have two panes with a pillar between.
        let panes: &[[f32; 2]] = if self.closed { &[[0.74, 0.97]] } else { &[[0.08, 0.47], [0.52, 0.93]] };
        let shine = light.haze;
        for pane in panes {
            let corner = |t: f32, v: f32| {
                let low = rear[0] + (front[0] - rear[0]) * t;
                let high = rear_top[0] + (front_top[0] - rear_top[0]) * t;
                place(low + (high - low) * v, across, rear[1] + (rear_top[1] - rear[1]) * v).0
            };
            let corners = [corner(pane[0], 0.06), corner(pane[1], 0.06), corner(pane[1], 0.86), corner(pane[0], 0.86)];
            canvas.polygon(&corners, layer, |_, _| light.through(mix(self.glass, shine, 0.25), z));
        }
    }

    /// Lamps, number plate and bumper at the end at `along`.
    fn end_details(
        &self,
        canvas: &mut Canvas,
        place: &impl Fn(f32, f32, f32) -> ([f32; 2], f32),
        layer: Layer,
        along: f32,
    ) {
        let front = along > 0.0;
        let out = along * 1.005;
        let w = self.half_width;
        let mut quad = |left: f32, right: f32, low: f32, high: f32, colour: Rgb| {
            let corners = [(left, low), (right, low), (right, high), (left, high)].map(|(a, u)| place(out, a, u).0);
            canvas.polygon(&corners, layer, |_, _| colour);
        };
        quad(-w, w, 0.28, 0.46, [0.12, 0.12, 0.12]);
        let lamp: Rgb = match (front, self.lights_on, self.brakes) {
            (true, true, _) => [1.0, 0.98, 0.85],
            (true, false, _) => [0.75, 0.76, 0.76],
            (false, _, true) => [0.95, 0.12, 0.08],
            (false, _, false) => [0.4, 0.06, 0.06],
        };
        quad(-w * 0.97, -w * 0.68, 0.6, 0.76, lamp);
        quad(w * 0.68, w * 0.97, 0.6, 0.76, lamp);
        let plate = if front { [0.85, 0.85, 0.82] } else { [0.82, 0.7, 0.2] };
        quad(-0.26, 0.26, 0.42, 0.54, plate);
    }

    /// The wheels of the far side and the dark beneath the body.
    fn wheels(&self, canvas: &mut Canvas, place: &impl Fn(f32, f32, f32) -> ([f32; 2], f32), layer: Layer, side: f32) {
        let reach = self.length * 0.5 * 0.64;
        for along in [-reach, reach] {
            self.wheel(canvas, place, layer, along, -side * self.half_width * 0.95, false);
        }
    }

    fn near_wheels(
        &self,
        canvas: &mut Canvas,
        place: &impl Fn(f32, f32, f32) -> ([f32; 2], f32),
        layer: Layer,
        side: f32,
    ) {
        let reach = self.length * 0.5 * 0.64;
        for along in [-reach, reach] {
            self.wheel(canvas, place, layer, along, side * self.half_width * 1.01, true);
        }
    }

    fn wheel(
        &self,
        canvas: &mut Canvas,
        place: &impl Fn(f32, f32, f32) -> ([f32; 2], f32),
        layer: Layer,
        along: f32,
        across: f32,
        with_rim: bool,
    ) {
        let circle = |radius: f32| -> Vec<[f32; 2]> {
            let angle = |step: usize| std::f32::consts::TAU * step as f32 / 12.0;
            let point =
                |step| place(along + radius * angle(step).cos(), across, self.wheel + radius * angle(step).sin());
            (0..12).map(|step| point(step).0).collect()
        };
        canvas.polygon(&circle(self.wheel), layer, |_, _| [0.05, 0.05, 0.05]);
        if with_rim {
            canvas.polygon(&circle(self.wheel * 0.6), layer, |_, _| [0.38, 0.39, 0.4]);
        }
        // The tread, seen from the front or behind.
        let inner = across * 0.78;
        let tread = [(across, 0.0), (inner, 0.0), (inner, 1.3), (across, 1.3)]
            .map(|(a, up)| place(along - self.wheel * along.signum() * 0.2, a, up * self.wheel).0);
        canvas.polygon(&tread, layer, |_, _| [0.05, 0.05, 0.05]);
    }
}

/// The polygon drawn together towards its middle.
fn shrunk(corners: &[[f32; 2]], factor: f32) -> Vec<[f32; 2]> {
    let count = corners.len().max(1) as f32;
    let middle = corners.iter().fold([0.0, 0.0], |m: [f32; 2], p| [m[0] + p[0] / count, m[1] + p[1] / count]);
    corners.iter().map(|p| [middle[0] + (p[0] - middle[0]) * factor, middle[1] + (p[1] - middle[1]) * factor]).collect()
}
