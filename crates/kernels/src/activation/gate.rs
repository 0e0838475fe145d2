//! The activations one by one, value and gradient: what the loops over them are generic over.

use super::Element;

/// An activation that a loop is compiled for.
pub(crate) trait Gate<T>: Copy {
    /// True where a number of the activation is learned; [`Gate::slope_gradient`] is its gradient.
    const LEARNS: bool = false;
    /// The activation of `z`.
    fn value(self, z: T) -> T;
    /// The gradient of `z`, from its activation `y` and the gradient `g` of `y`. What is not used is not computed.
    fn gradient(self, z: T, y: T, g: T) -> T;
    /// What one element adds to the gradient of the learned number.
    #[inline(always)]
    fn slope_gradient(self, _z: T, g: T) -> T {
        g
    }
}

/// Evaluates an expression with `gate` bound to the [`Gate`] of an [`super::Activation`], compiled for each of them.
macro_rules! with_gate {
    ($activation:expr, $gate:ident => $body:expr) => {
        with_gate!($activation, $gate => $body, Identity, Relu, Relu6, HardSwish, HardSigmoid, Sigmoid)
    };
    ($activation:expr, $gate:ident => $body:expr, $($name:ident),*) => {
        match $activation {
            $($crate::activation::Activation::$name => {
                let $gate = $crate::activation::gate::$name;
                $body
            })*
        }
    };
}
pub(crate) use with_gate;

#[derive(Clone, Copy)]
pub(crate) struct Identity;
#[derive(Clone, Copy)]
pub(crate) struct Relu;
#[derive(Clone, Copy)]
pub(crate) struct Relu6;
#[derive(Clone, Copy)]
pub(crate) struct HardSwish;
#[derive(Clone, Copy)]
pub(crate) struct HardSigmoid;
#[derive(Clone, Copy)]
pub(crate) struct Sigmoid;

impl<T: Element> Gate<T> for Identity {
    #[inline(always)]
    fn value(self, z: T) -> T {
        z
    }

    #[inline(always)]
    fn gradient(self, _: T, _: T, g: T) -> T {
        g
    }
}

impl<T: Element> Gate<T> for Relu {
    #[inline(always)]
    fn value(self, z: T) -> T {
        // A comparison that is false for a NaN, so that it goes through instead of becoming 0.
        if z <= T::ZERO { T::ZERO } else { z }
    }

    #[inline(always)]
    fn gradient(self, _: T, y: T, g: T) -> T {
        if y > T::ZERO { g } else { T::ZERO }
    }
}

impl<T: Element> Gate<T> for Relu6 {
    #[inline(always)]
    fn value(self, z: T) -> T {
        let six = T::from_f64(6.0);
        let low = Relu.value(z);
        if low >= six { six } else { low }
    }

    #[inline(always)]
    fn gradient(self, _: T, y: T, g: T) -> T {
        // No short circuit: two comparisons and an AND vectorise, a branch does not.
        if (y > T::ZERO) & (y < T::from_f64(6.0)) { g } else { T::ZERO }
    }
}

impl<T: Element> Gate<T> for HardSwish {
    #[inline(always)]
    fn value(self, z: T) -> T {
        z * HardSigmoid.value(z)
    }

    #[inline(always)]
    fn gradient(self, z: T, _: T, g: T) -> T {
        let three = T::from_f64(3.0);
        let inner = g * (z * T::from_f64(1.0 / 3.0) + T::from_f64(0.5));
        let right = if z >= three { g } else { inner };
        if z <= -three { T::ZERO } else { right }
    }
}

impl<T: Element> Gate<T> for HardSigmoid {
    #[inline(always)]
    fn value(self, z: T) -> T {
        Relu6.value(z + T::from_f64(3.0)) * T::from_f64(1.0 / 6.0)
    }

    #[inline(always)]
    fn gradient(self, z: T, _: T, g: T) -> T {
        let three = T::from_f64(3.0);
        if (z > -three) & (z < three) { g * T::from_f64(1.0 / 6.0) } else { T::ZERO }
    }
}

impl<T: Element> Gate<T> for Sigmoid {
    #[inline(always)]
    fn value(self, z: T) -> T {
        T::ONE / (T::ONE + (-z).e_to())
    }

    #[inline(always)]
    fn gradient(self, _: T, y: T, g: T) -> T {
        g * (y * (T::ONE - y))
    }
}

/// x where x > 0, else slope · x.
#[derive(Clone, Copy)]
pub(crate) struct Prelu<T>(pub(crate) T);

impl<T: Element> Gate<T> for Prelu<T> {
    const LEARNS: bool = true;

    #[inline(always)]
    fn value(self, z: T) -> T {
        if z > T::ZERO { z } else { self.0 * z }
    }

    #[inline(always)]
    fn gradient(self, z: T, _: T, g: T) -> T {
        if z > T::ZERO { g } else { self.0 * g }
    }

    #[inline(always)]
    fn slope_gradient(self, z: T, g: T) -> T {
        if z > T::ZERO { T::ZERO } else { g * z }
    }
}
