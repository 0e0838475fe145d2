//! Where the tiles lie.
//!
//! With dilation d the outputs whose rows are equal modulo d₀ and whose columns are equal modulo d₁ see only inputs of
//! the same kind: d₀·d₁ interleaved convolutions without dilation. They are told apart by addressing alone. A *strip*
//! is one row of tiles of one image: `segment` tiles of each of the d₁ column phases, that is a rectangle of the map M
//! (with the tile's border A) rows high, rows d₀ apart. Tiles that reach over the edge see zeros and their outputs are
//! dropped.

use super::super::Conv2dShape;

/// Tiles in a strip where the map is wide; keeps the transformed tiles of a strip in the second-level cache.
const STRIP_TILES: usize = 96;

/// A stride-1 3×3 convolution in the roles of the Winograd identity: a forward pass, or a backward pass to the input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub(super) images: usize,
    pub(super) in_channels: usize,
    pub(super) in_size: [usize; 2],
    pub(super) out_channels: usize,
    pub(super) out_size: [usize; 2],
    pub(super) padding: [usize; 2],
    pub(super) dilation: [usize; 2],
    /// The weights are [in,out,3,3] and turned by 180° instead of [out,in,3,3].
    pub(super) reversed: bool,
}

impl Layer {
    /// The forward pass.
    pub(super) fn forward(shape: &Conv2dShape) -> Self {
        Self {
            images: shape.batch,
            in_channels: shape.in_channels,
            in_size: [shape.in_height, shape.in_width],
            out_channels: shape.out_channels,
            out_size: [shape.out_height(), shape.out_width()],
            padding: shape.padding,
            dilation: shape.dilation,
            reversed: false,
        }
    }

    /// The gradient of the input: the convolution of the output's gradient with the turned kernel, padded by what the
    /// forward pass left out. The padding of `shape` is at most twice the dilation.
    pub(super) fn backward_input(shape: &Conv2dShape) -> Self {
        let forward = Self::forward(shape);
        Self {
            in_channels: forward.out_channels,
            in_size: forward.out_size,
            out_channels: forward.in_channels,
            out_size: forward.in_size,
            padding: [0, 1].map(|axis| 2 * shape.dilation[axis] - shape.padding[axis]),
            reversed: true,
            ..forward
        }
    }

    /// The layer without the taps that read before the first pixel of a phase: its tiles begin at the map's edge.
    pub(super) fn at_the_edge(&self) -> Self {
        Self { padding: [0, 1].map(|axis| self.padding[axis] - self.dilation[axis]), ..*self }
    }

    /// Blocks of 16 input channels.
    pub(super) fn in_blocks(&self) -> usize {
        self.in_channels.div_ceil(super::blocks::CHANNELS)
    }

    /// Blocks of 16 output channels.
    pub(super) fn out_blocks(&self) -> usize {
        self.out_channels.div_ceil(super::blocks::CHANNELS)
    }
}

/// Tiles of `tile`×`tile` outputs that cover an output map, ordered in strips.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    tile: usize,
    dilation: [usize; 2],
    /// Tiles of one phase from top to bottom.
    tiles_down: usize,
    /// Tiles of one column phase in a strip.
    pub(super) segment: usize,
    /// Strips side by side.
    segments: usize,
    /// Strips of all images.
    pub(super) strips: usize,
}

/// The place of one strip.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strip {
    pub(super) image: usize,
    /// The first output row; the others follow at the distance of the dilation.
    pub(super) top: usize,
    /// The first output column.
    pub(super) left: usize,
}

impl Grid {
    /// Covers the output of `layer`.
    pub(super) fn new(layer: &Layer, tile: usize) -> Self {
        let tiles = [0, 1].map(|axis| layer.out_size[axis].div_ceil(layer.dilation[axis]).div_ceil(tile));
        let segments = (tiles[1] * layer.dilation[1]).div_ceil(STRIP_TILES).clamp(1, tiles[1]);
        let segment = tiles[1].div_ceil(segments);
        let segments = tiles[1].div_ceil(segment);
        let strips = layer.images * layer.dilation[0] * tiles[0] * segments;
        Self { tile, dilation: layer.dilation, tiles_down: tiles[0], segment, segments, strips }
    }

    /// Tiles of a strip: phase by phase, from left to right.
    pub(super) fn strip_tiles(&self) -> usize {
        self.segment * self.dilation[1]
    }

    /// Columns of a strip whose tiles are `side` wide.
    pub(super) fn strip_width(&self, side: usize) -> usize {
        ((self.segment - 1) * self.tile + side) * self.dilation[1]
    }

    /// The place of strip `index`.
    pub(super) fn strip(&self, index: usize) -> Strip {
        let (row, segment) = (index / self.segments, index % self.segments);
        let (row, down) = (row / self.tiles_down, row % self.tiles_down);
        let (image, phase) = (row / self.dilation[0], row % self.dilation[0]);
        Strip {
            image,
            top: down * self.tile * self.dilation[0] + phase,
            left: segment * self.segment * self.tile * self.dilation[1],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_cover_each_output_once() {
        for (out_size, dilation, tile) in [
            ([7, 9], [1, 1], 4),
            ([7, 9], [2, 3], 4),
            ([5, 900], [1, 1], 2),
            ([3, 700], [4, 5], 4),
            ([1, 2], [9, 7], 2),
        ] {
            let layer = Layer {
                images: 2,
                in_channels: 1,
                in_size: out_size,
                out_channels: 1,
                out_size,
                padding: [0, 0],
                dilation,
                reversed: false,
            };
            let grid = Grid::new(&layer, tile);
            let mut seen = vec![0; 2 * out_size[0] * out_size[1]];
            for index in 0..grid.strips {
                let strip = grid.strip(index);
                for row in 0..tile {
                    for column in 0..grid.strip_width(tile) {
                        let (y, x) = (strip.top + row * dilation[0], strip.left + column);
                        if y < out_size[0] && x < out_size[1] {
                            seen[(strip.image * out_size[0] + y) * out_size[1] + x] += 1;
                        }
                    }
                }
            }
            assert!(seen.iter().all(|&count| count == 1), "{out_size:?} {dilation:?}");
            assert!(grid.strip_tiles() <= STRIP_TILES.max(dilation[1]));
        }
    }
}
