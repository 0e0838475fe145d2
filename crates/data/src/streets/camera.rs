//! A pinhole camera above a flat, curved street, and the light of the scene.
//!
//! Street coordinates in metres: `s` across (0 on the road's middle, right positive), `up` above the road, `z` along
//! the optical axis. The street's middle lies at `turn · z + bend · z² − aside` to the right of the axis.

use dsd_random::Stream;

use super::noise::{Rgb, mix, tinted};

/// Nearest distance that is painted, metres.
pub(super) const NEAR: f32 = 1.2;
/// Distance of the skyline, metres.
pub(super) const FAR: f32 = 140.0;

/// Where the camera is and how it looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Camera {
    /// Focal length in pixels.
    pub(super) focal: f32,
    /// Column of the optical axis.
    pub(super) centre: f32,
    /// Row of the horizon.
    pub(super) horizon: f32,
    /// Metres above the road.
    pub(super) above: f32,
    /// Metres right of the road's middle.
    pub(super) aside: f32,
    /// Tangent of the angle between axis and street.
    pub(super) turn: f32,
    /// Half the street's curvature, 1/metre.
    pub(super) bend: f32,
}

impl Camera {
    /// Row and column of a point of the street.
    pub(super) fn project(&self, s: f32, up: f32, z: f32) -> [f32; 2] {
        let z = z.max(NEAR * 0.5);
        let across = s + self.shift(z);
        [self.centre + self.focal * across / z, self.horizon + self.focal * (self.above - up) / z]
    }

    /// How far the street's middle lies right of the axis at `z`.
    pub(super) fn shift(&self, z: f32) -> f32 {
        self.turn * z + self.bend * z * z - self.aside
    }

    /// Pixels per metre at `z`.
    pub(super) fn scale(&self, z: f32) -> f32 {
        self.focal / z.max(NEAR * 0.5)
    }

    /// Where the sight line of a column meets the line at `s` along the street; none where it never does.
    pub(super) fn meet(&self, column: f32, s: f32) -> Option<f32> {
        let slope = self.turn - (column - self.centre) / self.focal;
        let offset = s - self.aside;
        if self.bend.abs() < 1e-6 {
            let z = -offset / slope;
            return (z > 0.0 && z.is_finite()).then_some(z);
        }
        let root = slope * slope - 4.0 * self.bend * offset;
        if root < 0.0 {
            return None;
        }
        let (a, b) = ((-slope - root.sqrt()) / (2.0 * self.bend), (-slope + root.sqrt()) / (2.0 * self.bend));
        let (near, far) = if a < b { (a, b) } else { (b, a) };
        if near > 0.0 {
            Some(near)
        } else if far > 0.0 {
            Some(far)
        } else {
            None
        }
    }
}

/// Sun, sky light and haze.
#[derive(Clone, Copy, Debug)]
pub(super) struct Light {
    /// Unit vector towards the sun: right, up, along the axis.
    pub(super) sun: [f32; 3],
    /// Light of the sun on a surface that faces it.
    pub(super) direct: Rgb,
    /// Light of the sky from everywhere.
    pub(super) ambient: Rgb,
    /// 0 clear, 1 overcast.
    pub(super) overcast: f32,
    /// What distance fades to.
    pub(super) haze: Rgb,
    /// Metres after which 60 % is haze.
    pub(super) reach: f32,
}

impl Light {
    pub(super) fn draw(stream: &mut Stream) -> Self {
        let mut pick = |low: f64, high: f64| stream.between(low, high) as f32;
        let azimuth = pick(0.0, std::f64::consts::TAU);
        let elevation = pick(0.25, 1.2);
        let overcast = (pick(-0.3, 1.3)).clamp(0.0, 1.0);
        let warmth = pick(0.0, 1.0) * (1.0 - elevation / 1.3);
        let strength = (1.0 - overcast) * pick(0.55, 0.8);
        let direct = [1.0, 0.95 - 0.12 * warmth, 0.86 - 0.3 * warmth].map(|value| value * strength);
        let level = pick(0.42, 0.6) + 0.28 * overcast;
        let ambient = [level * 0.95, level, level * (1.08 - 0.04 * overcast)];
        let grey = pick(0.62, 0.82);
        let haze = mix([grey * 0.88, grey * 0.96, grey * 1.08], [grey; 3], overcast);
        let sun = [elevation.cos() * azimuth.sin(), elevation.sin(), elevation.cos() * azimuth.cos()];
        Self { sun, direct, ambient, overcast, haze, reach: pick(90.0, 420.0) }
    }

    /// Colour of a surface with the given normal (right, up, along), in the sun by the share `lit`.
    pub(super) fn on(&self, colour: Rgb, normal: [f32; 3], lit: f32) -> Rgb {
        let facing = (0..3).map(|axis| normal[axis] * self.sun[axis]).sum::<f32>().max(0.0) * lit;
        // The sky is above: what looks up gets more of it.
        let open = 0.75 + 0.25 * normal[1];
        tinted(colour, std::array::from_fn(|c| self.ambient[c] * open + self.direct[c] * facing))
    }

    /// The colour as seen through `z` metres of air.
    pub(super) fn through(&self, colour: Rgb, z: f32) -> Rgb {
        // 1 − 1 / (1 + q + q²/2), which is near 1 − exp(−q) and needs no library call.
        let q = z / self.reach;
        mix(colour, self.haze, 1.0 - 1.0 / (1.0 + q + 0.5 * q * q))
    }
}
