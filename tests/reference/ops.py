"""Reference vectors of the operations, forward and backward in f64, by PyTorch.

Usage: python tests/reference/ops.py        (needs torch and safetensors; writes ops.safetensors beside itself)

Read by crates/ops/tests/reference.rs. For each case the file holds the arguments (`CASE/x`, `CASE/weight`, ...), the
output `CASE/y`, a random `CASE/cotangent` g, and `CASE/grad_ARGUMENT`, the gradient of sum(g * y). The one metadata
entry `reference` is JSON: tool versions, the seed, and the operation and settings of each case. Running the script
again with the same versions writes the same bytes. dropout2d has no case, because its random numbers are our own.
"""

import json
import pathlib
import platform

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

SEED = 20240607
TENSORS = {}
CASES = {}

generator = torch.Generator().manual_seed(SEED)


def normal(*shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def distinct(*shape):
    """Values that are all different by at least 0.1, in random order: no ties for max."""
    count = torch.Size(shape).numel()
    return ((torch.randperm(count, generator=generator).double() - count / 2) * 0.1).reshape(shape)


def case(name, op, settings, function, arguments, constants=None):
    """Runs `function` on the arguments (differentiated) and constants (not), and keeps everything."""
    assert name not in CASES, name
    CASES[name] = {"op": op, **settings}
    leaves = {key: value.clone().requires_grad_() for key, value in arguments.items()}
    constants = constants or {}
    y = function(**leaves, **constants)
    y, extra = y if isinstance(y, tuple) else (y, {})
    cotangent = normal(*y.shape)
    (y * cotangent).sum().backward()
    TENSORS[f"{name}/y"] = y.detach()
    TENSORS[f"{name}/cotangent"] = cotangent
    for key, leaf in leaves.items():
        TENSORS[f"{name}/{key}"] = leaf.detach()
        TENSORS[f"{name}/grad_{key}"] = leaf.grad
    for key, value in (constants | extra).items():
        TENSORS[f"{name}/{key}"] = value.clone()


def conv2d(name, x, weight, bias=True, stride=(1, 1), padding=(0, 0), extra=(0, 0), dilation=(1, 1), groups=1):
    """`extra`: rows and columns of zeros after the last ones, beyond `padding`."""
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    arguments = {"x": normal(*x), "weight": normal(*weight)}
    if bias:
        arguments["bias"] = normal(weight[0])

    def function(x, weight, bias=None):
        return F.conv2d(F.pad(x, (0, extra[1], 0, extra[0])), weight, bias, **settings)

    case(f"conv2d_{name}", "conv2d", settings | {"extra_padding": extra}, function, arguments)


conv2d("3x3", (2, 3, 5, 7), (4, 3, 3, 3), padding=(1, 1))
conv2d("3x3_no_padding_no_bias", (1, 2, 5, 6), (3, 2, 3, 3), bias=False)
conv2d("3x3_stride2_mixed_parity", (2, 2, 6, 7), (3, 2, 3, 3), stride=(2, 2), padding=(1, 1))
conv2d("1x1", (2, 5, 3, 4), (3, 5, 1, 1))
conv2d("1x1_stride2_mixed_parity", (1, 3, 7, 8), (4, 3, 1, 1), stride=(2, 2))
conv2d("7x7_stem", (1, 3, 9, 12), (2, 3, 7, 7), bias=False, stride=(2, 2), padding=(3, 3))
conv2d("dilated", (1, 2, 7, 9), (2, 2, 3, 3), padding=(2, 2), dilation=(2, 2))
conv2d("dilation_and_stride_per_axis", (1, 2, 8, 9), (2, 2, 3, 2), stride=(1, 3), padding=(0, 1), dilation=(3, 2))
conv2d("rows_5x1", (2, 2, 6, 5), (3, 2, 5, 1), padding=(2, 0))
conv2d("columns_1x5", (2, 2, 6, 5), (3, 2, 1, 5), padding=(0, 2))
conv2d("grouped", (1, 4, 5, 4), (6, 2, 3, 3), padding=(1, 1), groups=2)
conv2d("grouped_1x1_stride2", (1, 6, 5, 4), (3, 2, 1, 1), stride=(2, 2), groups=3)
conv2d("depthwise", (2, 3, 4, 5), (3, 1, 3, 3), padding=(1, 1), groups=3)
conv2d("depthwise_stride2", (1, 3, 6, 7), (3, 1, 3, 3), bias=False, stride=(2, 2), padding=(1, 1), groups=3)
conv2d("depthwise_multiplier_dilated", (1, 2, 7, 6), (4, 1, 3, 3), padding=(2, 2), dilation=(2, 2), groups=2)
conv2d("one_pixel", (1, 1, 1, 1), (1, 1, 3, 3), padding=(1, 1))
conv2d("same_3x3_stride2", (2, 2, 6, 8), (3, 2, 3, 3), stride=(2, 2), extra=(1, 1))
conv2d("same_5x5_stride2", (1, 2, 6, 7), (3, 2, 5, 5), stride=(2, 2), padding=(1, 2), extra=(1, 0))
conv2d("same_3x3_stride2_dilated", (1, 2, 5, 6), (2, 2, 3, 3), stride=(2, 2), padding=(2, 1), extra=(0, 1), dilation=(2, 2))
conv2d("same_depthwise_stride2", (2, 3, 6, 7), (3, 1, 3, 3), bias=False, stride=(2, 2), padding=(0, 1), extra=(1, 0), groups=3)
conv2d("same_depthwise_5x5_stride2", (1, 3, 6, 8), (3, 1, 5, 5), stride=(2, 2), padding=(1, 1), extra=(1, 1), groups=3)
conv2d("same_2x2", (1, 2, 4, 5), (2, 2, 2, 2), extra=(1, 1))


def conv_transpose2d(name, x, weight, bias=True, stride=(1, 1), padding=(0, 0), output_padding=(0, 0), dilation=(1, 1), groups=1):
    settings = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation, "groups": groups}
    arguments = {"x": normal(*x), "weight": normal(*weight)}
    if bias:
        arguments["bias"] = normal(weight[1] * groups)
    case(
        f"conv_transpose2d_{name}",
        "conv_transpose2d",
        settings,
        lambda x, weight, bias=None: F.conv_transpose2d(x, weight, bias, **settings),
        arguments,
    )


conv_transpose2d("3x3", (1, 2, 4, 5), (2, 3, 3, 3))
conv_transpose2d("3x3_stride2", (2, 3, 3, 4), (3, 2, 3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1))
conv_transpose2d("2x2_stride2", (1, 3, 3, 5), (3, 2, 2, 2), bias=False, stride=(2, 2))
conv_transpose2d("per_axis", (1, 2, 4, 3), (2, 2, 3, 2), stride=(1, 3), padding=(1, 0), output_padding=(0, 2), dilation=(2, 1))
conv_transpose2d("grouped", (1, 4, 3, 4), (4, 3, 3, 3), stride=(2, 2), padding=(1, 1), groups=2)
conv_transpose2d("depthwise", (2, 3, 3, 4), (3, 1, 3, 3), stride=(2, 2), output_padding=(1, 0), groups=3)


def max_pool2d(name, x, kernel, stride, padding=(0, 0), ceil_mode=False):
    settings = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}

    def function(x):
        y, indices = F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode, return_indices=True)
        return y, {"indices": indices.int()}

    case(f"max_pool2d_{name}", "max_pool2d", settings, function, {"x": x})


max_pool2d("3x3_stride2", distinct(2, 1, 6, 7), (3, 3), (2, 2), (1, 1))
max_pool2d("2x2", distinct(1, 2, 5, 7), (2, 2), (2, 2))
max_pool2d("2x2_ceil", distinct(1, 2, 5, 7), (2, 2), (2, 2), ceil_mode=True)
max_pool2d("3x3_stride2_ceil", distinct(1, 1, 6, 8), (3, 3), (2, 2), (1, 1), ceil_mode=True)
max_pool2d("ceil_window_that_starts_in_the_padding", distinct(1, 1, 3, 5), (2, 2), (2, 2), (1, 1), ceil_mode=True)
max_pool2d("per_axis", distinct(2, 1, 7, 6), (2, 3), (1, 2), (1, 0))
max_pool2d("ties", torch.tensor([0, 1, 1, 0, -1], dtype=torch.float64)[torch.arange(60) * 7 % 5].reshape(1, 2, 6, 5), (3, 3), (2, 2), (1, 1))
max_pool2d("padding_never_wins", -1.0 - distinct(1, 1, 4, 5).abs(), (3, 3), (1, 1), (1, 1))


def max_unpool2d(name, x, kernel, stride):
    pooled, indices = F.max_pool2d(x, kernel, stride, return_indices=True)
    size = tuple(x.shape[2:])
    case(
        f"max_unpool2d_{name}",
        "max_unpool2d",
        {"size": size},
        lambda x, indices: F.max_unpool2d(x, indices.long(), kernel, stride, output_size=size),
        {"x": normal(*pooled.shape)},
        {"indices": indices.int()},
    )


max_unpool2d("2x2", distinct(2, 1, 4, 6), (2, 2), (2, 2))
max_unpool2d("2x2_odd", distinct(1, 3, 5, 7), (2, 2), (2, 2))


def avg_pool2d(name, x, kernel, stride, padding=(0, 0), ceil_mode=False, count_include_pad=True):
    settings = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    case(
        f"avg_pool2d_{name}",
        "avg_pool2d",
        settings,
        lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad),
        {"x": normal(*x)},
    )


avg_pool2d("2x2", (1, 2, 5, 7), (2, 2), (2, 2))
avg_pool2d("3x3_stride2", (2, 1, 6, 7), (3, 3), (2, 2), (1, 1))
avg_pool2d("3x3_stride2_padding_not_counted", (2, 1, 6, 7), (3, 3), (2, 2), (1, 1), count_include_pad=False)
avg_pool2d("ceil", (1, 2, 6, 8), (3, 3), (2, 2), (1, 1), ceil_mode=True)
avg_pool2d("ceil_padding_not_counted", (1, 2, 6, 8), (3, 3), (2, 2), (1, 1), ceil_mode=True, count_include_pad=False)
avg_pool2d("ceil_per_axis", (1, 1, 7, 6), (2, 3), (3, 2), (1, 0), ceil_mode=True)

for name, x, size in [
    ("1", (2, 3, 5, 7), (1, 1)),
    ("2", (1, 2, 5, 7), (2, 2)),
    ("3", (1, 2, 7, 8), (3, 3)),
    ("6", (1, 2, 8, 11), (6, 6)),
    ("more_bins_than_pixels", (1, 2, 4, 5), (6, 7)),
    ("rectangular", (2, 1, 6, 7), (4, 1)),
]:
    case(f"adaptive_avg_pool2d_{name}", "adaptive_avg_pool2d", {"size": size}, lambda x: F.adaptive_avg_pool2d(x, size), {"x": normal(*x)})

for name, x, size in [
    ("up", (2, 2, 3, 4), (7, 9)),
    ("up_2", (1, 2, 3, 5), (6, 10)),
    ("down", (1, 2, 9, 8), (4, 5)),
    ("up_and_down", (1, 1, 4, 9), (9, 4)),
    ("same", (1, 2, 4, 5), (4, 5)),
    ("from_one", (1, 3, 1, 1), (3, 4)),
    ("from_one_row", (1, 2, 1, 4), (3, 6)),
    ("to_one", (1, 2, 4, 5), (1, 1)),
    ("to_one_column", (1, 2, 4, 5), (7, 1)),
]:
    for align_corners in [False, True]:
        case(
            f"resize_bilinear_{name}_{'corners' if align_corners else 'centres'}",
            "resize_bilinear",
            {"size": size, "align_corners": align_corners},
            lambda x: F.interpolate(x, size, mode="bilinear", align_corners=align_corners),
            {"x": normal(*x)},
        )

for name, x, size in [
    ("up_2", (2, 2, 3, 4), (6, 8)),
    ("up", (1, 2, 3, 4), (7, 9)),
    ("down", (1, 2, 9, 8), (4, 5)),
    ("up_and_down", (1, 1, 4, 9), (10, 4)),
    ("same", (1, 1, 4, 5), (4, 5)),
    ("from_one", (1, 2, 1, 1), (3, 4)),
    ("to_one", (1, 2, 4, 5), (1, 1)),
]:
    case(f"resize_nearest_{name}", "resize_nearest", {"size": size}, lambda x: F.interpolate(x, size, mode="nearest"), {"x": normal(*x)})

ACTIVATIONS = {"identity": lambda y: y, "relu": F.relu, "relu6": F.relu6, "hard_swish": F.hardswish}

for name, shape, momentum in [("", (2, 3, 3, 4), 0.1), ("one_image_", (1, 2, 3, 5), 0.3), ("one_pixel_", (5, 2, 1, 1), 0.1)]:
    for activation, function in ACTIVATIONS.items():
        # Means and spreads that put values on both sides of both kinks of ReLU6.
        x = normal(*shape) * 2 + 1
        weight, bias = normal(shape[1]).abs() * 2 + 1, normal(shape[1]) + 2
        running = {"running_mean": normal(shape[1]), "running_var": normal(shape[1]).abs() + 0.5}
        settings = {"eps": 1e-5, "momentum": momentum, "activation": activation}

        def train(x, weight, bias, running_mean, running_var):
            mean, var = running_mean.clone(), running_var.clone()
            y = function(F.batch_norm(x, mean, var, weight, bias, True, momentum, 1e-5))
            return y, {"new_running_mean": mean, "new_running_var": var}

        def evaluate(x, weight, bias, running_mean, running_var):
            return function(F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, 1e-5))

        arguments = {"x": x, "weight": weight, "bias": bias}
        case(f"batch_norm_train_{name}{activation}", "batch_norm_train", settings, train, arguments, running)
        case(f"batch_norm_eval_{name}{activation}", "batch_norm_eval", settings, evaluate, arguments, running)

for name, channels in [("per_channel", 3), ("shared", 1)]:
    arguments = {"x": normal(2, 3, 3, 4), "weight": normal(3), "bias": normal(3), "slopes": normal(channels)}
    running = {"running_mean": normal(3), "running_var": normal(3).abs() + 0.5}

    def train(x, weight, bias, slopes, running_mean, running_var):
        mean, var = running_mean.clone(), running_var.clone()
        y = F.prelu(F.batch_norm(x, mean, var, weight, bias, True, 0.1, 1e-5), slopes)
        return y, {"new_running_mean": mean, "new_running_var": var}

    def evaluate(x, weight, bias, slopes, running_mean, running_var):
        return F.prelu(F.batch_norm(x, running_mean, running_var, weight, bias, False, 0.1, 1e-5), slopes)

    settings = {"eps": 1e-5, "momentum": 0.1}
    case(f"batch_norm_prelu_train_{name}", "batch_norm_prelu_train", settings, train, arguments, running)
    case(f"batch_norm_prelu_eval_{name}", "batch_norm_prelu_eval", settings, evaluate, arguments, running)

# Exact kinks included: 0, -0 and 6.
kinks = torch.cat([torch.tensor([0.0, -0.0, 6.0, 5.5, 6.5, -1.0], dtype=torch.float64), normal(54) * 4]).reshape(2, 3, 2, 5)
case("relu", "relu", {}, lambda x: F.relu(x), {"x": kinks})
case("relu6", "relu6", {}, lambda x: F.relu6(x), {"x": kinks})
corners = torch.cat([torch.tensor([0.0, -0.0, 3.0, -3.0, 3.5, -3.5], dtype=torch.float64), normal(54) * 3]).reshape(2, 3, 2, 5)
case("hard_swish", "hard_swish", {}, lambda x: F.hardswish(x), {"x": corners})
# Not F.hardsigmoid, whose slope in f64 is 1/6 rounded to f32.
case("hard_sigmoid", "hard_sigmoid", {}, lambda x: F.relu6(x + 3) / 6, {"x": corners})
case("sigmoid", "sigmoid", {}, lambda x: torch.sigmoid(x), {"x": torch.cat([normal(20), normal(20) * 40]).reshape(2, 2, 2, 5)})
case("add_relu", "add_relu", {}, lambda x, other: F.relu(x + other), {"x": kinks, "other": torch.cat([torch.zeros(6), normal(54)]).reshape(kinks.shape)})
case("scale_channels", "scale_channels", {}, lambda x, scale: x * scale, {"x": normal(2, 3, 4, 5), "scale": normal(2, 3, 1, 1)})
case("prelu_per_channel", "prelu", {}, lambda x, weight: F.prelu(x, weight), {"x": kinks, "weight": normal(3)})
case("prelu_shared", "prelu", {}, lambda x, weight: F.prelu(x, weight), {"x": kinks, "weight": normal(1)})

case("softmax_channels", "softmax_channels", {}, lambda x: F.softmax(x, 1), {"x": normal(2, 5, 3, 2)})
case("log_softmax_channels", "log_softmax_channels", {}, lambda x: F.log_softmax(x, 1), {"x": normal(2, 5, 3, 2)})
case("softmax_channels_large", "softmax_channels", {}, lambda x: F.softmax(x, 1), {"x": normal(1, 4, 2, 3) * 300})
case("log_softmax_channels_large", "log_softmax_channels", {}, lambda x: F.log_softmax(x, 1), {"x": normal(1, 4, 2, 3) * 300})


def cross_entropy(name, x, ignored, ignore_label=255, class_weights=None):
    """`ignored`: the fraction of the pixels that get `ignore_label`."""
    n, c, h, w = x.shape
    labels = torch.randint(0, c, (n, h, w), generator=generator)
    labels[torch.rand((n, h, w), generator=generator) < ignored] = ignore_label
    weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    settings = {"ignore_label": ignore_label}
    if class_weights is not None:
        settings["class_weights"] = class_weights

    def function(x, labels):
        return F.cross_entropy(x, labels.long(), weights, ignore_index=ignore_label)

    case(f"cross_entropy_{name}", "cross_entropy", settings, function, {"x": x}, {"labels": labels.byte()})


cross_entropy("plain", normal(2, 5, 3, 4), 0.0)
cross_entropy("ignored", normal(2, 4, 5, 3), 0.4)
cross_entropy("ignored_class", normal(1, 4, 5, 6), 0.0, ignore_label=2)
cross_entropy("weights", normal(2, 4, 3, 5), 0.3, class_weights=[0.5, 2.0, 1.25, 3.0])
cross_entropy("weight_zero", normal(1, 3, 4, 5), 0.2, class_weights=[1.0, 0.0, 2.5])
cross_entropy("one_pixel", normal(1, 3, 1, 1), 0.0)
cross_entropy("large_logits", normal(1, 4, 3, 3) * 1000, 0.2)


def main():
    reference = {
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "seed": SEED,
        "cases": CASES,
    }
    path = pathlib.Path(__file__).with_suffix(".safetensors")
    tensors = {key: value.contiguous() for key, value in TENSORS.items()}
    save_file(tensors, path, {"reference": json.dumps(reference, sort_keys=True, separators=(",", ":"))})
    print(f"{path.name}: {len(CASES)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
