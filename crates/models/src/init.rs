//! Initial values in PyTorch's convention, drawn from our own generator.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::Init;
use candle_nn::init::{FanInOut, NonLinearity, NormalOrUniform};
use dsd_random::{Stream, name_hash};

/// Weights of `torch.nn.Conv2d` and `ConvTranspose2d`: Kaiming uniform with a = √5, so U(±1/√fan_in).
pub(crate) const TORCH_CONV: Init = Init::Kaiming {
    dist: NormalOrUniform::Uniform,
    fan: FanInOut::FanIn,
    // √(2 / (1 + a²)) with a = √5.
    non_linearity: NonLinearity::ExplicitGain(0.577_350_269_189_625_8),
};

/// Convolutions of torchvision's ResNets: Kaiming normal by fan-out for ReLU.
pub(crate) const KAIMING_FAN_OUT: Init =
    Init::Kaiming { dist: NormalOrUniform::Normal, fan: FanInOut::FanOut, non_linearity: NonLinearity::ReLU };

/// The bias of a `torch.nn.Conv2d` whose weight has this fan-in: U(±1/√fan_in).
pub(crate) fn torch_bias(fan_in: usize) -> Init {
    let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// The initial value of the named tensor: a function of (seed, name, shape, hint), whatever was made before.
pub(crate) fn initial(
    seed: u64,
    name: &str,
    shape: &Shape,
    hint: Init,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let draw: &dyn Fn(&mut Stream) -> f64 = match hint {
        Init::Const(value) => return Tensor::full(value, shape, device)?.to_dtype(dtype),
        Init::Uniform { lo, up } => &move |stream| stream.between(lo, up),
        Init::Randn { mean, stdev } => &move |stream| mean + stdev * stream.normal(),
        Init::Kaiming { dist, fan, non_linearity } => {
            let deviation = non_linearity.gain() / (fan.for_shape(shape).max(1) as f64).sqrt();
            let bound = 3f64.sqrt() * deviation;
            match dist {
                NormalOrUniform::Uniform => &move |stream| stream.between(-bound, bound),
                NormalOrUniform::Normal => &move |stream| deviation * stream.normal(),
            }
        }
    };
    let mut stream = Stream::new(seed, "init", 0, name_hash(name));
    let elements: Vec<f64> = (0..shape.elem_count()).map(|_| draw(&mut stream)).collect();
    Tensor::from_vec(elements, shape, device)?.to_dtype(dtype)
}
