//! Pedestrians and cyclists, built of limbs.

use dsd_random::Stream;

use super::camera::{Camera, Light};
use super::canvas::{Canvas, Layer};
use super::class;
use super::furniture::Spot;
use super::noise::{Rgb, scaled};

const CLOTHES: [Rgb; 12] = [
    [0.1, 0.1, 0.12],
    [0.16, 0.18, 0.28],
    [0.3, 0.3, 0.32],
    [0.55, 0.53, 0.5],
    [0.45, 0.1, 0.1],
    [0.2, 0.32, 0.22],
    [0.78, 0.77, 0.74],
    [0.3, 0.22, 0.16],
    [0.62, 0.52, 0.36],
    [0.15, 0.3, 0.5],
    [0.75, 0.7, 0.15],
    [0.42, 0.26, 0.38],
];
const SKINS: [Rgb; 4] = [[0.78, 0.6, 0.5], [0.66, 0.48, 0.38], [0.45, 0.31, 0.23], [0.3, 0.2, 0.15]];
const HAIR: [Rgb; 4] = [[0.1, 0.08, 0.07], [0.3, 0.2, 0.12], [0.55, 0.45, 0.3], [0.5, 0.5, 0.5]];

fn any(stream: &mut Stream, colours: &[Rgb]) -> Rgb {
    let tone = stream.between(0.8, 1.2) as f32;
    colours.get(stream.below(colours.len())).map_or([0.5; 3], |colour| scaled(*colour, tone))
}

/// Colours of a person.
#[derive(Clone, Copy, Debug)]
struct Look {
    coat: Rgb,
    legs: Rgb,
    skin: Rgb,
    hair: Rgb,
}

impl Look {
    fn draw(stream: &mut Stream) -> Self {
        Self {
            coat: any(stream, &CLOTHES),
            legs: any(stream, &CLOTHES),
            skin: any(stream, &SKINS),
            hair: any(stream, &HAIR),
        }
    }
}

/// Somebody on foot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pedestrian {
    look: Look,
    height: f32,
    stride: f32,
    girth: f32,
    bag: Option<Rgb>,
    long_coat: bool,
}

impl Pedestrian {
    pub(super) fn draw(stream: &mut Stream) -> Self {
        Self {
            look: Look::draw(stream),
            height: if stream.chance(0.12) { stream.between(1.05, 1.4) } else { stream.between(1.55, 1.9) } as f32,
            stride: stream.between(-0.3, 0.3) as f32,
            girth: stream.between(0.85, 1.25) as f32,
            bag: stream.chance(0.35).then(|| any(stream, &CLOTHES)),
            long_coat: stream.chance(0.3),
        }
    }

    pub(super) fn paint(&self, canvas: &mut Canvas, camera: &Camera, light: &Light, spot: Spot) {
        let layer = Layer { depth: spot.z, class: class::PEDESTRIAN };
        let unit = camera.scale(spot.z) * self.height;
        let foot = camera.project(spot.s, 0.0, spot.z);
        let at = |across: f32, up: f32| [foot[0] + across * unit, foot[1] - up * unit];
        let lit = |colour: Rgb| light.through(light.on(colour, [0.3 * light.sun[0].signum(), 0.2, -0.85], 0.9), spot.z);
        let thick = |radius: f32| (radius * unit * self.girth).max(0.35);
        canvas.darken(foot, [0.2 * unit, 0.05 * unit], spot.z, 0.4);
        let (legs, coat) = (lit(self.look.legs), lit(self.look.coat));
        for sign in [-1.0, 1.0] {
            let spread = 0.035 * sign + self.stride * 0.4 * sign;
            let knee = at(0.035 * sign + self.stride * 0.25 * sign, 0.27);
            canvas.limb(at(0.03 * sign, 0.5), knee, [thick(0.05), thick(0.04)], layer, legs);
            canvas.limb(knee, at(spread, 0.03), [thick(0.038), thick(0.028)], layer, legs);
            canvas.limb(
                at(spread, 0.015),
                at(spread + 0.03 * self.stride.signum(), 0.012),
                [thick(0.02); 2],
                layer,
                lit([0.08; 3]),
            );
        }
        let hem = if self.long_coat { 0.34 } else { 0.48 };
        canvas.limb(at(0.0, hem), at(0.0, 0.76), [thick(0.085), thick(0.095)], layer, coat);
        for sign in [-1.0, 1.0] {
            let elbow = at(0.12 * sign - self.stride * 0.12 * sign, 0.62);
            canvas.limb(at(0.095 * sign, 0.79), elbow, [thick(0.034), thick(0.03)], layer, scaled(coat, 0.88));
            let hand = at(0.11 * sign - self.stride * 0.3 * sign, 0.48);
            canvas.limb(elbow, hand, [thick(0.028), thick(0.022)], layer, scaled(coat, 0.88));
            canvas.ellipse(hand, [0.02 * unit, 0.022 * unit], layer, |_, _| lit(self.look.skin));
        }
        if let Some(bag) = self.bag {
            canvas.ellipse(at(0.13, 0.52), [0.06 * unit, 0.08 * unit], layer, |_, _| lit(bag));
        }
        canvas.limb(at(0.0, 0.84), at(0.0, 0.88), [thick(0.03); 2], layer, lit(self.look.skin));
        canvas.ellipse(at(0.0, 0.935), [0.052 * unit, 0.065 * unit], layer, |_, _| lit(self.look.skin));
        canvas.ellipse(at(0.0, 0.962), [0.055 * unit, 0.045 * unit], layer, |_, _| lit(self.look.hair));
    }
}

/// Somebody on a bicycle; bicycle and rider are one class.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cyclist {
    look: Look,
    frame: Rgb,
    helmet: Option<Rgb>,
    /// How much of its length one sees: 0 from behind, 1 from the side; the sign is the direction.
    broadside: f32,
    pedal: f32,
    rider: bool,
}

impl Cyclist {
    pub(super) fn draw(stream: &mut Stream) -> Self {
        let broad = stream.chance(0.35);
        let sign = if stream.chance(0.5) { 1.0 } else { -1.0 };
        Self {
            look: Look::draw(stream),
            frame: any(stream, &CLOTHES),
            helmet: stream.chance(0.5).then(|| any(stream, &CLOTHES)),
            broadside: sign * if broad { stream.between(0.6, 1.0) } else { stream.between(0.04, 0.3) } as f32,
            pedal: stream.between(0.0, std::f64::consts::TAU) as f32,
            rider: stream.chance(0.88),
        }
    }

    pub(super) fn paint(&self, canvas: &mut Canvas, camera: &Camera, light: &Light, spot: Spot) {
        let layer = Layer { depth: spot.z, class: class::BICYCLIST };
        let unit = camera.scale(spot.z);
        let foot = camera.project(spot.s, 0.0, spot.z);
        // Metres along the bicycle and up, seen at its angle.
        let at = |along: f32, up: f32| [foot[0] + along * self.broadside * unit, foot[1] - up * unit];
        let lit = |colour: Rgb| light.through(light.on(colour, [0.3 * light.sun[0].signum(), 0.2, -0.85], 0.9), spot.z);
        let thick = |radius: f32| (radius * unit).max(0.32);
        canvas.darken(foot, [(0.9 * self.broadside.abs()).max(0.3) * unit, 0.1 * unit], spot.z, 0.4);
        let rubber = lit([0.07, 0.07, 0.07]);
        let wheel = 0.34;
        for along in [-0.52, 0.52] {
            let radii = [(wheel * self.broadside.abs()).max(0.025) * unit, wheel * unit];
            canvas.ring(at(along, wheel), radii, thick(0.025), layer, rubber);
        }
        let frame = lit(self.frame);
        let (hub, saddle, bars, crank) = ((-0.52, wheel), (-0.22, 0.92), (0.4, 0.98), (-0.05, 0.3));
        for (a, b) in [
            (hub, crank),
            (crank, saddle),
            (saddle, (0.36, 0.8)),
            (crank, (0.36, 0.8)),
            ((0.52, wheel), bars),
            (hub, (-0.2, 0.75)),
        ] {
            canvas.limb(at(a.0, a.1), at(b.0, b.1), [thick(0.022); 2], layer, frame);
        }
        let wide = (1.0 - self.broadside.abs()).max(0.1);
        let across = |base: [f32; 2], metres: f32| [base[0] + metres * wide * unit, base[1]];
        canvas.limb(
            across(at(bars.0, bars.1), -0.28),
            across(at(bars.0, bars.1), 0.28),
            [thick(0.022); 2],
            layer,
            rubber,
        );
        if !self.rider {
            return;
        }
        let (legs, coat) = (lit(self.look.legs), lit(self.look.coat));
        for sign in [-1.0, 1.0] {
            let turn = self.pedal + if sign > 0.0 { std::f32::consts::PI } else { 0.0 };
            let pedal = across(at(crank.0 + 0.17 * turn.cos(), crank.1 + 0.17 * turn.sin()), 0.12 * sign);
            let knee = across(at(0.22 + 0.08 * turn.cos(), 0.68 + 0.12 * turn.sin()), 0.14 * sign);
            canvas.limb(across(at(-0.2, 0.98), 0.1 * sign), knee, [thick(0.085), thick(0.07)], layer, legs);
            canvas.limb(knee, pedal, [thick(0.06), thick(0.045)], layer, legs);
        }
        let shoulder = at(0.16, 1.46);
        canvas.limb(at(-0.2, 1.0), shoulder, [thick(0.15), thick(0.17)], layer, coat);
        for sign in [-1.0, 1.0] {
            let from = across(shoulder, 0.2 * sign);
            canvas.limb(
                from,
                across(at(bars.0, bars.1 + 0.04), 0.25 * sign),
                [thick(0.055), thick(0.04)],
                layer,
                scaled(coat, 0.86),
            );
        }
        let head = at(0.25, 1.68);
        canvas.ellipse(head, [0.1 * unit, 0.125 * unit], layer, |_, _| lit(self.look.skin));
        let cap = lit(self.helmet.unwrap_or(self.look.hair));
        canvas.ellipse([head[0], head[1] - 0.06 * unit], [0.115 * unit, 0.09 * unit], layer, |_, _| cap);
    }
}
