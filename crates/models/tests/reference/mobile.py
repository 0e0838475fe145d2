"""Writes mobile.json: what timm and torchvision compute, in f64, for the mobile backbones.

Weights, images and cotangents are those of networks.py: functions of a name and an index that the Rust test computes
too. The file holds, for every feature, its shape, every 499th value and its projection on a cotangent; for every
parameter the projection of its gradient, for every running statistic that of its value, in the order of their names.

EfficientNet-Lite0 at every output stride is timm's. MobileNetV3-Large at output stride 16 is torchvision's dilated form;
MobileNetV2 and MobileNetV3-Large at other output strides below 32 are torchvision's networks with strides and dilations
changed by hand. torch takes the 1/6 in the gradient of its hard sigmoid in single precision (relative error 3e-8, seen with
2.15); the formula in torch's own operations stands in for it.

Run: python mobile.py
"""

import json
import pathlib

import timm
import torch
import torchvision
from timm.models import efficientnet
from torch import nn
from torchvision.models import mobilenetv2, mobilenetv3

from networks import fill, projection, signed

EVERY = 499


class Timm(nn.Module):
    def __init__(self, width, output_stride):
        super().__init__()
        # What timm.create_model("tf_efficientnet_lite0", features_only=True) calls, with a free channel multiplier.
        self.net = efficientnet._gen_efficientnet_lite(
            "tf_efficientnet_lite0",
            channel_multiplier=width,
            depth_multiplier=1.0,
            features_only=True,
            output_stride=output_stride,
            bn_eps=1e-3,
            pad_type="same",
        )

    def forward(self, x):
        # timm's first feature has stride 2.
        return dict(zip(("stage1", "stage2", "stage3", "stage4"), self.net(x)[1:]))


class Torchvision(nn.Module):
    """The features after the numbered layers; layers after the last of them are dropped."""

    def __init__(self, features, exits):
        super().__init__()
        self.features = features[: max(exits.values()) + 1]
        self.exits = {number: name for name, number in exits.items()}

    def forward(self, x):
        found = {}
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.exits:
                found[self.exits[number]] = x
        return found


class HardSigmoid(nn.Module):
    def forward(self, x):
        return (x + 3).clamp(0, 6) / 6


def depthwise(block, stride, dilation):
    (conv,) = [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    conv.stride, conv.dilation, conv.padding = (stride, stride), (dilation, dilation), (dilation, dilation)


def mobilenet_v2(width, output_stride):
    features = mobilenetv2.MobileNetV2(width_mult=width).features
    if output_stride == 16:
        plan = {14: (1, 1), 15: (1, 2), 16: (1, 2), 17: (1, 2)}
    elif output_stride == 8:
        plan = {7: (1, 1)} | {n: (1, 2) for n in range(8, 15)} | {n: (1, 4) for n in range(15, 18)}
    else:
        plan = {}
    for number, (stride, dilation) in plan.items():
        depthwise(features[number], stride, dilation)
    return Torchvision(features, {"stage1": 3, "stage2": 6, "stage3": 13, "stage4": 17})


def mobilenet_v3_large(width, output_stride):
    blocks, last = mobilenetv3._mobilenet_v3_conf("mobilenet_v3_large", width_mult=width, dilated=output_stride < 32)
    if output_stride == 8:
        for block in blocks[6:12]:
            block.dilation = 2
        for block in blocks[12:]:
            block.dilation = 4
    features = mobilenetv3.MobileNetV3(blocks, last).features
    for layer in features.modules():
        if isinstance(layer, torchvision.ops.SqueezeExcitation):
            layer.scale_activation = HardSigmoid()
    exits = {"stage1": 3, "stage2_first": 4, "stage2": 6, "stage3": 12, "stage4": 16}
    return Torchvision(features, exits)


def rounded(value):
    return float(f"{float(value):.12g}")


def case(model):
    inner = model.net if isinstance(model, Timm) else model
    fill(inner)
    images = signed("images", (3, 3, 45, 58))
    result = {}
    for mode in ("eval", "train"):
        model.train(mode == "train")
        model.zero_grad()
        features = model(images)
        loss = sum((x * signed("cotangent of " + name, tuple(x.shape))).sum() for name, x in features.items())
        loss.backward()
        gradients = {name: projection(name, value.grad) for name, value in inner.named_parameters()}
        buffers = {
            name: projection(name, value)
            for name, value in inner.named_buffers()
            if not name.endswith("num_batches_tracked")
        }
        result[mode] = {
            "features": [
                {
                    "name": name,
                    "shape": list(x.shape),
                    "projection": rounded(projection(name, x.detach())),
                    "sample": [rounded(value) for value in x.detach().flatten()[::EVERY]],
                }
                for name, x in features.items()
            ],
            "gradients": [rounded(gradients[name]) for name in sorted(gradients)],
            "buffers": [rounded(buffers[name]) for name in sorted(buffers)],
        }
    return result


def main():
    makers = {"efficientnet_lite0": Timm, "mobilenetv2": mobilenet_v2, "mobilenetv3_large": mobilenet_v3_large}
    # Full width where the network is the published one.
    sizes = {
        "efficientnet_lite0": [(1.0, 16), (0.5, 32), (0.5, 8)],
        "mobilenetv2": [(1.0, 32), (0.5, 16), (0.5, 8)],
        "mobilenetv3_large": [(1.0, 16), (0.5, 32), (0.5, 8)],
    }
    cases = [
        {"backbone": name, "width": width, "output_stride": stride, **case(maker(width, stride))}
        for name, maker in makers.items()
        for width, stride in sizes[name]
    ]
    out = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__, "cases": cases}
    path = pathlib.Path(__file__).with_name("mobile.json")
    path.write_text(json.dumps(out, separators=(",", ":")).replace('{"backbone"', '\n{"backbone"') + "\n")


if __name__ == "__main__":
    main()
