//! What stands where: one street drawn from a stream, painted from far to near.

use std::f32::consts::{FRAC_PI_2, PI};

use dsd_random::Stream;

use super::backdrop::{Ground, Sky, Skyline};
use super::camera::{Camera, FAR, Light};
use super::canvas::Canvas;
use super::class;
use super::furniture::{Bin, Post, Spot, Tree};
use super::people::{Cyclist, Pedestrian};
use super::vehicles::Car;
use super::walls::{Fence, House};

/// A street with everything in it.
pub(super) struct Scene {
    camera: Camera,
    light: Light,
    sky: Sky,
    skyline: Skyline,
    ground: Ground,
    things: Vec<Thing>,
}

/// Something that stands in the street and the distance by which it is ordered.
struct Thing {
    z: f32,
    kind: Kind,
}

enum Kind {
    House(House),
    Fence(Fence),
    Tree(Tree, Spot),
    Post(Post, Spot),
    Bin(Bin, Spot),
    Car(Box<Car>, Spot, f32),
    Pedestrian(Pedestrian, Spot),
    Cyclist(Cyclist, Spot),
}

/// How many of each thing a street has; drawn per scene, so that some are empty and some are crowded.
struct Density {
    houses: f64,
    trees: f64,
    posts: f64,
    fences: f64,
    parked: [f64; 2],
    traffic: f64,
    people: f64,
    cyclists: f64,
}

impl Scene {
    pub(super) fn draw(stream: &mut Stream, width: usize, height: usize) -> Self {
        let light = Light::draw(stream);
        let sky = Sky::draw(stream, &light);
        let skyline = Skyline::draw(stream);
        let mut ground = Ground::draw(stream);
        let (w, h) = (width as f32, height as f32);
        let mut pick = |low: f64, high: f64| stream.between(low, high) as f32;
        let camera = Camera {
            focal: w.max(h) * pick(0.85, 1.25),
            centre: w * pick(0.42, 0.58),
            horizon: h * pick(0.4, 0.58),
            above: pick(1.15, 1.95),
            // Mostly in the left lane, as in Cambridge; sometimes in the middle or on the right.
            aside: ground.half * pick(-0.75, 0.35),
            turn: pick(-0.13, 0.13),
            bend: pick(-1.0, 1.0).powi(3) * 0.0032,
        };
        let density = Density {
            houses: stream.between(0.35, 1.0),
            trees: stream.between(0.0, 1.0).powf(1.4),
            posts: stream.between(0.3, 1.0),
            fences: stream.between(0.0, 0.8),
            parked: [stream.between(-0.3, 0.75).max(0.0), stream.between(-0.3, 0.75).max(0.0)],
            traffic: stream.between(0.0, 1.0),
            people: stream.between(0.0, 1.0),
            cyclists: stream.between(0.0, 1.0),
        };
        let mut things = Vec::new();
        for side in [-1.0f32, 1.0] {
            let tall = houses(stream, &mut things, &ground, side, density.houses);
            let towards_sun = light.sun[0] * side > 0.0;
            ground.shade[usize::from(side > 0.0)] = if towards_sun { tall } else { 0.0 };
            roadside(stream, &mut things, &ground, side, &density);
        }
        traffic(stream, &mut things, &ground, &camera, &density);
        people(stream, &mut things, &ground, &density);
        things.sort_by(|a, b| b.z.total_cmp(&a.z));
        Self { camera, light, sky, skyline, ground, things }
    }

    pub(super) fn paint(&self, width: usize, height: usize) -> Canvas {
        let mut canvas = Canvas::new(width, height, class::SKY);
        let (camera, light) = (&self.camera, &self.light);
        self.sky.paint(&mut canvas, camera, light);
        self.skyline.paint(&mut canvas, camera, light);
        self.ground.paint(&mut canvas, camera, light);
        self.cast_shadows(&mut canvas);
        for thing in &self.things {
            match &thing.kind {
                Kind::House(house) => house.paint(&mut canvas, camera, light),
                Kind::Fence(fence) => fence.paint(&mut canvas, camera, light),
                Kind::Tree(tree, spot) => tree.paint(&mut canvas, camera, light, *spot),
                Kind::Post(post, spot) => post.paint(&mut canvas, camera, light, *spot),
                Kind::Bin(bin, spot) => bin.paint(&mut canvas, camera, light, *spot),
                Kind::Car(car, spot, heading) => car.paint(&mut canvas, camera, light, *spot, *heading),
                Kind::Pedestrian(person, spot) => person.paint(&mut canvas, camera, light, *spot),
                Kind::Cyclist(cyclist, spot) => cyclist.paint(&mut canvas, camera, light, *spot),
            }
        }
        canvas
    }

    /// Shadows of what stands free, laid over the ground before anything is painted on it.
    fn cast_shadows(&self, canvas: &mut Canvas) {
        let sun = self.light.sun;
        let strength = 0.5 * (1.0 - self.light.overcast);
        if strength < 0.05 {
            return;
        }
        let slope = 1.0 / sun[1].max(0.3);
        for thing in &self.things {
            // Height of the middle of what casts, its radius and how dense it is.
            let (spot, up, radius, dense) = match &thing.kind {
                Kind::Tree(_, spot) => (*spot, 4.0, 2.4, 0.8),
                Kind::Car(_, spot, _) => (*spot, 0.7, 1.5, 1.0),
                Kind::Pedestrian(_, spot) | Kind::Cyclist(_, spot) => (*spot, 0.9, 0.45, 0.8),
                Kind::Bin(_, spot) => (*spot, 0.5, 0.45, 0.8),
                _ => continue,
            };
            let (s, z) = (spot.s - sun[0] * slope * up, spot.z - sun[2] * slope * up);
            if z < 2.0 {
                continue;
            }
            let scale = self.camera.scale(z);
            let reach = radius * (1.0 + 0.5 * slope * sun[0].abs());
            let deep = radius * (1.0 + 0.5 * slope * sun[2].abs()) * self.camera.above / z;
            canvas.darken(self.camera.project(s, 0.0, z), [reach * scale, deep * scale], z, strength * dense);
        }
    }
}

/// Rows of houses with gaps; returns their usual height.
fn houses(stream: &mut Stream, things: &mut Vec<Thing>, ground: &Ground, side: f32, density: f64) -> f32 {
    let pavement = ground.half + ground.pavement[usize::from(side > 0.0)];
    let garden = if stream.chance(0.4) { stream.between(1.5, 7.0) as f32 } else { 0.1 };
    let usual = stream.between(4.5, 13.5) as f32;
    let terrace = stream.chance(0.6);
    let mut z = stream.between(-6.0, 4.0) as f32;
    let mut any = false;
    while z < FAR - 10.0 {
        let length = stream.between(5.0, 19.0) as f32;
        if stream.chance(density) {
            let height = usual * stream.between(0.75, 1.25) as f32;
            let front = pavement + garden + if terrace { 0.0 } else { stream.between(0.0, 2.5) as f32 };
            let house = House::draw(stream, side, front, z, z + length, height);
            things.push(Thing { z: z.max(1.0) + length * 0.5, kind: Kind::House(house) });
            any = true;
        } else if stream.chance(0.5) {
            // A tree fills the gap.
            let spot = Spot { s: side * (pavement + garden + stream.between(1.0, 6.0) as f32), z: z + length * 0.5 };
            if spot.z > 5.0 {
                things.push(Thing { z: spot.z, kind: Kind::Tree(Tree::draw(stream), spot) });
            }
        }
        z += length + if terrace { 0.0 } else { stream.between(0.0, 6.0) as f32 };
    }
    if any { usual } else { 0.0 }
}

/// Trees, posts, fences, bins and parked cars along one side.
fn roadside(stream: &mut Stream, things: &mut Vec<Thing>, ground: &Ground, side: f32, density: &Density) {
    let index = usize::from(side > 0.0);
    let (half, pavement) = (ground.half, ground.pavement[index]);
    let mut z = stream.between(4.0, 16.0) as f32;
    while z < 75.0 {
        if stream.chance(density.trees * 0.9) {
            let out = if stream.chance(0.5) { 0.6 } else { pavement as f64 + stream.between(0.3, 3.0) };
            let spot = Spot { s: side * (half + out as f32), z };
            things.push(Thing { z, kind: Kind::Tree(Tree::draw(stream), spot) });
        }
        z += stream.between(5.0, 13.0) as f32;
    }
    let mut z = stream.between(4.0, 12.0) as f32;
    while z < 70.0 {
        if stream.chance(density.posts) {
            let out = if stream.chance(0.75) { 0.4 } else { pavement - 0.2 };
            let spot = Spot { s: side * (half + out), z };
            things.push(Thing { z, kind: Kind::Post(Post::draw(stream, side), spot) });
        }
        z += stream.between(3.5, 13.0) as f32;
    }
    let mut z = stream.between(-2.0, 14.0) as f32;
    while z < 60.0 {
        let length = stream.between(5.0, 22.0) as f32;
        if stream.chance(density.fences) {
            let out = if stream.chance(0.72) { pavement + 0.05 } else { 0.25 };
            let fence = Fence::draw(stream, side * (half + out), z.max(1.5), z + length);
            things.push(Thing { z: z.max(1.5) + length * 0.5, kind: Kind::Fence(fence) });
        }
        z += length + stream.between(2.0, 12.0) as f32;
    }
    for _ in 0..stream.below(4) {
        let spot = Spot {
            s: side * (half + pavement * stream.between(0.5, 0.95) as f32),
            z: stream.between(5.0, 40.0) as f32,
        };
        things.push(Thing { z: spot.z, kind: Kind::Bin(Bin::draw(stream), spot) });
    }
    let mut z = stream.between(4.5, 14.0) as f32;
    while z < 80.0 {
        if stream.chance(density.parked[index]) {
            let car = Car::draw(stream);
            let spot = Spot { s: side * (half - 1.0 + stream.between(-0.15, 0.5) as f32), z };
            let heading = if side < 0.0 { 0.0 } else { PI } + stream.normal() as f32 * 0.03;
            things.push(Thing { z, kind: Kind::Car(Box::new(car), spot, heading) });
        }
        z += stream.between(5.2, 8.5) as f32;
    }
}

/// Cars on the move, in both lanes and across.
fn traffic(stream: &mut Stream, things: &mut Vec<Thing>, ground: &Ground, camera: &Camera, density: &Density) {
    let count = (density.traffic * 4.0 + stream.uniform()) as usize;
    for _ in 0..count {
        let (z, lane) = (7.0 + 55.0 * stream.uniform() as f32, if stream.chance(0.55) { -1.0f32 } else { 1.0 });
        let spot = Spot { s: lane * ground.half * 0.45 + stream.between(-0.5, 0.5) as f32, z };
        let heading = if lane < 0.0 { 0.0 } else { PI } + stream.normal() as f32 * 0.05 + camera.turn;
        things.push(Thing { z, kind: Kind::Car(Box::new(Car::draw(stream)), spot, heading) });
    }
    if stream.chance(0.22) {
        let spot = Spot { s: stream.between(-5.0, 5.0) as f32, z: stream.between(9.0, 30.0) as f32 };
        let heading = if stream.chance(0.5) { FRAC_PI_2 } else { -FRAC_PI_2 } + stream.normal() as f32 * 0.25;
        things.push(Thing { z: spot.z, kind: Kind::Car(Box::new(Car::draw(stream)), spot, heading) });
    }
}

/// People on the pavements, now and then on the road, and cyclists at the road's edges.
fn people(stream: &mut Stream, things: &mut Vec<Thing>, ground: &Ground, density: &Density) {
    let count = (density.people * density.people * 11.0 + stream.uniform() * 1.6) as usize;
    for _ in 0..count {
        let side = if stream.chance(0.5) { -1.0f32 } else { 1.0 };
        let pavement = ground.pavement[usize::from(side > 0.0)];
        let crossing = stream.chance(0.15);
        let s = if crossing {
            ground.half * stream.between(-1.0, 1.0) as f32
        } else {
            side * (ground.half + pavement * stream.between(0.15, 0.95) as f32)
        };
        let z = match ground.zebra {
            Some(at) if crossing => at + stream.between(0.3, 2.5) as f32,
            _ => 4.5 + 38.0 * stream.uniform().powf(1.3) as f32,
        };
        let spot = Spot { s, z };
        things.push(Thing { z, kind: Kind::Pedestrian(Pedestrian::draw(stream), spot) });
        if stream.chance(0.3) {
            let (beside, z) = (s + side * 0.55, z + stream.between(-0.3, 0.3) as f32);
            things.push(Thing { z, kind: Kind::Pedestrian(Pedestrian::draw(stream), Spot { s: beside, z }) });
        }
    }
    let count = (density.cyclists * density.cyclists * 3.6 + stream.uniform() * 0.7) as usize;
    for _ in 0..count {
        let side = if stream.chance(0.6) { -1.0f32 } else { 1.0 };
        let edge = stream.between(-0.2, 1.8) as f32;
        let spot = Spot { s: side * (ground.half - edge), z: 4.5 + 26.0 * stream.uniform().powf(1.3) as f32 };
        things.push(Thing { z: spot.z, kind: Kind::Cyclist(Cyclist::draw(stream), spot) });
    }
}
