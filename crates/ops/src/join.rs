//! Tensors brought together and taken apart: sum, concatenation, and the first part of an axis.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Storage, Tensor, WithDType, bail};
use dsd_kernels::activation::{self as kernels, Element};
use dsd_kernels::join;

use crate::storage::{by_dtype, from_elements, slice, tensor, with_slices};
use crate::tape::{self, ManyInputs, Reads};
use crate::{Error, Result, check};

/// a + b, element by element.
///
/// # Shapes
/// a: any, f32 or f64. b: the shape and type of a. The result has the same.
/// # Gradient
/// Reaches a and b, which receive one tensor.
/// # Errors
/// DType or Shape.
/// # Example
/// ```
/// # use candle_core::{Device, Tensor};
/// let (a, b) = (Tensor::new(&[1f32, 1.0], &Device::Cpu)?, Tensor::new(&[2f32, -3.0], &Device::Cpu)?);
/// assert_eq!(dsd_ops::add(&a, &b)?.to_vec1::<f32>()?, [3.0, -2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check::float("add", "a", a)?;
    check::dtype("add", "b", b, a.dtype())?;
    check::same_shape("add", "b", b, a.dims())?;
    Ok(tape::apply2(&a.contiguous()?, &b.contiguous()?, Add, Reads::Sizes)?)
}

struct Add;

impl Add {
    fn forward<T: WithDType + Element>(
        &self,
        (a, layout): (&CpuStorage, &Layout),
        (b, b_layout): (&CpuStorage, &Layout),
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let y = kernels::add_vec(slice::<T>(a, layout)?, slice::<T>(b, b_layout)?).map_err(Error::from)?;
        Ok(tensor(y, layout.shape()))
    }
}

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!("add", s1.dtype(), self.forward((s1, l1), (s2, l2)))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((a.track_op().then(|| g.clone()), b.track_op().then(|| g.clone())))
    }
}

/// Tensors one behind the other along an axis, as PyTorch's `cat`.
///
/// # Shapes
/// parts: at least one, f32 or f64, of one type, equal in all axes but `axis`.
/// # Gradient
/// Reaches every part.
/// # Errors
/// Param without parts or for an axis that is not there; DType or Shape of a part.
/// # Example
/// ```
/// # use candle_core::{Device, Tensor};
/// let (a, b) = (Tensor::new(&[[1f32], [2.0]], &Device::Cpu)?, Tensor::new(&[[3f32, 4.0], [5.0, 6.0]], &Device::Cpu)?);
/// assert_eq!(dsd_ops::concat(&[&a, &b], 1)?.to_vec2::<f32>()?, [[1.0, 3.0, 4.0], [2.0, 5.0, 6.0]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn concat<A: AsRef<Tensor>>(parts: &[A], axis: usize) -> Result<Tensor> {
    const OP: &str = "concat";
    let parts: Vec<&Tensor> = parts.iter().map(AsRef::as_ref).collect();
    let Some(first) = parts.first() else {
        return Err(check::param(OP, "parts", "at least one tensor", "none"));
    };
    check::float(OP, "parts", first)?;
    if axis >= first.rank() {
        return Err(check::param(OP, "axis", format!("below {}", first.rank()), axis));
    }
    for part in &parts {
        check::dtype(OP, "parts", part, first.dtype())?;
        let mut expected = first.dims().to_vec();
        expected[axis] = *part.dims().get(axis).unwrap_or(&0);
        check::same_shape(OP, "parts", part, &expected)?;
    }
    if let [only] = parts.as_slice() {
        return Ok(Tensor::clone(only));
    }
    let parts = parts.iter().map(|part| part.contiguous()).collect::<candle_core::Result<Vec<_>>>()?;
    let parts: Vec<&Tensor> = parts.iter().collect();
    Ok(match tape::apply_many(&parts, Concat { axis }, Reads::Sizes)? {
        Some(joined) => joined,
        None => Tensor::cat(&parts, axis)?,
    })
}

struct Concat {
    axis: usize,
}

impl Concat {
    /// How many rows every part has: the product of the axes before this one.
    fn rows(&self, dims: &[usize]) -> usize {
        dims[..self.axis].iter().product()
    }

    fn join<T: WithDType + Element>(&self, parts: &[&Tensor]) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut dims = parts[0].dims().to_vec();
        let rows = self.rows(&dims);
        dims[self.axis] = parts.iter().map(|part| part.dims()[self.axis]).sum();
        let guards: Vec<_> = parts.iter().map(|part| part.storage_and_layout()).collect();
        let mut slices = Vec::with_capacity(parts.len());
        for (guard, layout) in &guards {
            let Storage::Cpu(cpu) = &**guard else { bail!("concat: a part is not on the CPU") };
            slices.push((slice::<T>(cpu, layout)?, layout.dims()[self.axis..].iter().product()));
        }
        Ok(tensor(join::concat_vec(rows, &slices).map_err(Error::from)?, dims))
    }

    fn part<T: WithDType + Element>(&self, part: &Tensor, g: &Tensor, from: usize) -> candle_core::Result<Tensor> {
        let dims = part.dims();
        let behind: usize = dims[self.axis + 1..].iter().product();
        let own = with_slices::<T, _, _>([g], |[g]| {
            Ok(join::part_vec(self.rows(dims), g, from * behind, dims[self.axis] * behind)?)
        })?;
        from_elements(own, part.shape())
    }
}

impl ManyInputs for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn forward(&self, parts: &[&Tensor]) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!("concat", parts[0].dtype(), self.join(parts))
    }

    fn backward(&self, parts: &[Tensor], g: &Tensor) -> candle_core::Result<Vec<Option<Tensor>>> {
        let (g, mut from) = (g.contiguous()?, 0);
        let mut gradients = Vec::with_capacity(parts.len());
        for part in parts {
            let own = || by_dtype!("concat", part.dtype(), self.part(part, &g, from));
            gradients.push(part.track_op().then(own).transpose()?);
            from += part.dims()[self.axis];
        }
        Ok(gradients)
    }
}

/// x with zeros behind it along an axis.
///
/// # Shapes
/// x: f32 or f64, longer by `count` along `axis` in the result. A count of 0 returns x itself.
/// # Gradient
/// Reaches x.
/// # Errors
/// As [`concat()`].
pub fn pad_end(x: &Tensor, axis: usize, count: usize) -> Result<Tensor> {
    if count == 0 {
        return Ok(x.clone());
    }
    let mut dims = x.dims().to_vec();
    *dims.get_mut(axis).ok_or_else(|| check::param("pad_end", "axis", format!("below {}", x.rank()), axis))? = count;
    concat(&[x, &Tensor::zeros(dims, x.dtype(), x.device())?], axis)
}

/// The first `count` places along an axis.
///
/// # Shapes
/// x: f32 or f64. A count that is all of the axis returns x itself.
/// # Gradient
/// Reaches x, zeros behind.
/// # Errors
/// DType; Param for an axis that is not there or a count that is longer than it.
pub fn first(x: &Tensor, axis: usize, count: usize) -> Result<Tensor> {
    const OP: &str = "first";
    check::float(OP, "x", x)?;
    let Some(&length) = x.dims().get(axis) else {
        return Err(check::param(OP, "axis", format!("below {}", x.rank()), axis));
    };
    if count > length {
        return Err(check::param(OP, "count", format!("at most {length}"), count));
    }
    if count == length {
        return Ok(x.clone());
    }
    Ok(tape::apply1(&x.contiguous()?, First { axis, count }, Reads::Sizes)?)
}

struct First {
    axis: usize,
    count: usize,
}

impl First {
    fn forward<T: WithDType>(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = slice::<T>(s, l)?;
        let mut dims = l.dims().to_vec();
        let row: usize = dims[self.axis..].iter().product();
        dims[self.axis] = self.count;
        let kept: usize = dims[self.axis..].iter().product();
        let mut y = Vec::with_capacity(dims.iter().product());
        x.chunks_exact(row.max(1)).for_each(|row| y.extend_from_slice(&row[..kept]));
        Ok(tensor(y, dims))
    }

    fn backward<T: WithDType + Element>(&self, x: &Tensor, g: &Tensor) -> candle_core::Result<Tensor> {
        let row: usize = x.dims()[self.axis..].iter().product();
        let kept = row / x.dims()[self.axis] * self.count;
        let dx = with_slices::<T, _, _>([g], |[g]| {
            let mut dx = Vec::with_capacity(x.elem_count());
            for part in g.chunks_exact(kept.max(1)) {
                dx.extend_from_slice(part);
                dx.resize(dx.len() + row - kept, T::ZERO);
            }
            dx.resize(x.elem_count(), T::ZERO);
            Ok(dx)
        })?;
        from_elements(dx, x.shape())
    }
}

impl CustomOp1 for First {
    fn name(&self) -> &'static str {
        "first"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!("first", s.dtype(), self.forward(s, l))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let g = g.contiguous()?;
        Ok(Some(by_dtype!("first", x.dtype(), self.backward(x, &g))?))
    }
}
