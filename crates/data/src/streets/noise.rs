//! Texture noise: functions of a position and a seed, cheap enough for every pixel.
//!
//! Scenes draw their layout from a `Stream`; textures take one seed from it and hash positions with that.

/// A colour in display-referred 0–1, RGB.
pub(super) type Rgb = [f32; 3];

/// `a` at share 0, `b` at share 1.
pub(super) fn mix(a: Rgb, b: Rgb, share: f32) -> Rgb {
    std::array::from_fn(|c| a[c] + (b[c] - a[c]) * share)
}

/// Every channel times `factor`.
pub(super) fn scaled(colour: Rgb, factor: f32) -> Rgb {
    colour.map(|value| value * factor)
}

/// Channel by channel product.
pub(super) fn tinted(colour: Rgb, tint: Rgb) -> Rgb {
    std::array::from_fn(|c| colour[c] * tint[c])
}

/// Largest whole number ≤ `x`, for |x| < 2³¹. The standard one is a library call on the x86-64 baseline.
#[inline]
pub(super) fn floor(x: f32) -> i32 {
    let whole = x as i32;
    whole - i32::from(x < whole as f32)
}

/// Distance of `x` from the whole number below it, in [0, 1).
#[inline]
pub(super) fn fract(x: f32) -> f32 {
    x - floor(x) as f32
}

/// Length of the vector (x, y); nothing here comes near the overflow that `hypot` guards against.
#[inline]
pub(super) fn length(x: f32, y: f32) -> f32 {
    (x * x + y * y).sqrt()
}

/// 64 well mixed bits of a 64-bit key (the finaliser of SplitMix64).
pub(super) fn hash(key: u64) -> u64 {
    let mut z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Uniform in [0, 1), a function of the cell (x, y) and the seed.
#[inline]
pub(super) fn cell(x: i32, y: i32, seed: u32) -> f32 {
    let mut h = (x as u32).wrapping_mul(0x85eb_ca6b) ^ (y as u32).wrapping_mul(0xc2b2_ae35) ^ seed;
    h = (h ^ (h >> 15)).wrapping_mul(0x2c1b_3c6d);
    h = (h ^ (h >> 12)).wrapping_mul(0x297a_2d39);
    ((h ^ (h >> 15)) >> 8) as f32 / 16_777_216.0
}

/// Smooth value noise in [0, 1) with features of size 1.
#[inline]
pub(super) fn smooth(x: f32, y: f32, seed: u32) -> f32 {
    let (column, row) = (floor(x), floor(y));
    let ease = |t: f32| t * t * (3.0 - 2.0 * t);
    let (u, v) = (ease(x - column as f32), ease(y - row as f32));
    let line = |row: i32| {
        let (a, b) = (cell(column, row, seed), cell(column + 1, row, seed));
        a + (b - a) * u
    };
    let (above, below) = (line(row), line(row + 1));
    above + (below - above) * v
}

/// Sum of `octaves` of [`smooth`], each half as large and half as strong; in [0, 1).
#[inline]
pub(super) fn layered(x: f32, y: f32, seed: u32, octaves: u32) -> f32 {
    let (mut sum, mut weight, mut total, mut frequency) = (0.0, 1.0, 0.0, 1.0);
    for octave in 0..octaves {
        sum += weight * smooth(x * frequency, y * frequency, seed.wrapping_add(octave * 0x9e37));
        total += weight;
        weight *= 0.5;
        frequency *= 2.03;
    }
    sum / total
}

/// Share of a window of width `blur` around `position` that lies between `low` and `high`: an antialiased box.
pub(super) fn between(position: f32, low: f32, high: f32, blur: f32) -> f32 {
    let blur = blur.max(1e-4);
    (((position + 0.5 * blur).min(high) - (position - 0.5 * blur).max(low)) / blur).clamp(0.0, 1.0)
}
