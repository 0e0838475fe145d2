"""Writes networks.json: what PyTorch computes, in f64, for small PSPNet and ENet networks.

Weights, images and cotangents are functions of a name and an index that the Rust test computes too, so that the file
holds only results: logits, and for every parameter and running statistic the projection of its gradient (after the
training step: of its value) on such a function. The networks below are written from the papers with torch's own layers.

Run: python networks.py
"""

import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

torch.set_default_dtype(torch.float64)
CLASSES = 3


def uniform(name, count):
    """count numbers in [0, 1) that belong to name: FNV-1a of the name, then SplitMix64."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = ((key ^ byte) * 0x100000001B3) % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


def signed(name, shape):
    return torch.from_numpy(2.0 * uniform(name, math.prod(shape)) - 1.0).reshape(shape)


def fill(model):
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            value = signed(name, tuple(tensor.shape))
            if tensor.dim() >= 2:
                value = value * math.sqrt(6.0 / math.prod(tensor.shape[1:]))
            elif not name.endswith(("bias", "running_mean")):
                value = 1.0 + 0.5 * value
            tensor.copy_(value)


def projection(name, tensor):
    return float((tensor * signed("cotangent of " + name, tuple(tensor.shape))).sum())


class ConvBn(nn.Module):
    def __init__(self, cin, cout, k):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, k, padding=k // 2, bias=False)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Basic(nn.Module):
    def __init__(self, cin, cout, stride, first_dilation, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, first_dilation, first_dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.downsample = None
        if stride != 1 or cin != cout:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottle(nn.Module):
    def __init__(self, cin, cout, stride, first_dilation, dilation):
        super().__init__()
        inner = cout // 4
        self.conv1 = nn.Conv2d(cin, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, first_dilation, first_dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, cout, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.downsample = None
        if stride != 1 or cin != cout:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class Backbone(nn.Module):
    """Width 1/16; output stride 8."""

    def __init__(self, block, blocks, expansion, deep):
        super().__init__()
        self.deep = deep
        if deep:
            self.conv1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(4)
            self.conv2 = nn.Conv2d(4, 4, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(4)
            self.conv3 = nn.Conv2d(4, 8, 3, 1, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(8)
            cin = 8
        else:
            self.conv1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(4)
            cin = 4
        # Stage: inner channels, stride, dilation of the first 3x3 convolution, dilation of the others.
        plan = [(4, 1, 1, 1), (8, 2, 1, 1), (16, 1, 1, 2), (32, 1, 2, 4)]
        for index, ((inner, stride, first, dilation), count) in enumerate(zip(plan, blocks)):
            cout = inner * expansion
            stage = [block(cin, cout, stride, first, dilation)]
            stage += [block(cout, cout, 1, dilation, dilation) for _ in range(count - 1)]
            setattr(self, f"layer{index + 1}", nn.Sequential(*stage))
            cin = cout

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if self.deep:
            x = F.relu(self.bn2(self.conv2(x)))
            x = F.relu(self.bn3(self.conv3(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        x = self.layer2(self.layer1(x))
        x3 = self.layer3(x)
        return x3, self.layer4(x3)


class Pyramid(nn.Module):
    def __init__(self, cin, head):
        super().__init__()
        self.stages = nn.ModuleList([ConvBn(cin, head, 1) for _ in range(4)])
        self.bottleneck = ConvBn(cin + 4 * head, head, 3)

    def forward(self, x):
        parts = [x]
        for bins, stage in zip((1, 2, 3, 6), self.stages):
            y = stage(F.adaptive_avg_pool2d(x, bins))
            parts.append(F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=True))
        return self.bottleneck(torch.cat(parts, 1))


class Aux(nn.Module):
    def __init__(self, cin, head):
        super().__init__()
        self.conv = nn.Conv2d(cin, head, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(head)
        self.classifier = nn.Conv2d(head, CLASSES, 1)

    def forward(self, x):
        return self.classifier(F.relu(self.bn(self.conv(x))))


class PspNet(nn.Module):
    def __init__(self, block, blocks, expansion, deep):
        super().__init__()
        self.backbone = Backbone(block, blocks, expansion, deep)
        self.decoder = Pyramid(32 * expansion, 5)
        self.classifier = nn.Conv2d(5, CLASSES, 1)
        self.aux = Aux(16 * expansion, 5)

    def forward(self, x):
        x3, x4 = self.backbone(x)
        return self.classifier(self.decoder(x4)), self.aux(x3)


class Unit(nn.Module):
    """A convolution, normalisation, PReLU."""

    def __init__(self, conv, channels):
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)


class EnetBlock(nn.Module):
    def __init__(self, cin, cout, kind="regular", size=3):
        super().__init__()
        self.kind, self.cin, self.cout = kind, cin, cout
        inner = max(cout // 4, 1)
        first = nn.Conv2d(cin, inner, 2, 2, bias=False) if kind == "down" else nn.Conv2d(cin, inner, 1, bias=False)
        layers = [Unit(first, inner)]
        if kind == "asymmetric":
            layers.append(Unit(nn.Conv2d(inner, inner, (size, 1), padding=(size // 2, 0), bias=False), inner))
            layers.append(Unit(nn.Conv2d(inner, inner, (1, size), padding=(0, size // 2), bias=False), inner))
        elif kind == "dilated":
            layers.append(Unit(nn.Conv2d(inner, inner, 3, padding=size, dilation=size, bias=False), inner))
        elif kind == "up":
            layers.append(Unit(nn.ConvTranspose2d(inner, inner, 3, 2, 1, bias=False), inner))
            self.main = nn.Module()
            self.main.conv = nn.Conv2d(cin, cout, 1, bias=False)
            self.main.bn = nn.BatchNorm2d(cout)
        else:
            layers.append(Unit(nn.Conv2d(inner, inner, 3, padding=1, bias=False), inner))
        self.layers = nn.ModuleList(layers)
        self.expand = nn.Module()
        self.expand.conv = nn.Conv2d(inner, cout, 1, bias=False)
        self.expand.bn = nn.BatchNorm2d(cout)
        self.prelu = nn.PReLU(cout)

    def forward(self, x, indices=None, size=None):
        main, y, found = x, x, None
        if self.kind == "down":
            main, found = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
            main = torch.cat([main, main.new_zeros(len(x), self.cout - self.cin, *main.shape[2:])], 1)
            y = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        if self.kind == "up":
            main = F.max_unpool2d(self.main.bn(self.main.conv(x)), indices, 2, 2, output_size=size)
        for layer in self.layers:
            transposed = isinstance(layer.conv, nn.ConvTranspose2d)
            y = layer.conv(y, output_size=size) if transposed else layer.conv(y)
            y = layer.prelu(layer.bn(y))
        y = self.prelu(self.expand.bn(self.expand.conv(y)) + main)
        return (y, found) if self.kind == "down" else y


class Enet(nn.Module):
    """Width 1/4: 4, 16 and 32 channels."""

    def __init__(self):
        super().__init__()
        self.initial = Unit(nn.Conv2d(3, 1, 3, 2, 1, bias=False), 4)
        section = [
            ("regular", 3), ("dilated", 2), ("asymmetric", 5), ("dilated", 4),
            ("regular", 3), ("dilated", 8), ("asymmetric", 5), ("dilated", 16),
        ]
        self.bottleneck1 = nn.ModuleList([EnetBlock(4, 16, "down")] + [EnetBlock(16, 16) for _ in range(4)])
        self.bottleneck2 = nn.ModuleList([EnetBlock(16, 32, "down")] + [EnetBlock(32, 32, *block) for block in section])
        self.bottleneck3 = nn.ModuleList([EnetBlock(32, 32, *block) for block in section])
        self.bottleneck4 = nn.ModuleList([EnetBlock(32, 16, "up")] + [EnetBlock(16, 16) for _ in range(2)])
        self.bottleneck5 = nn.ModuleList([EnetBlock(16, 4, "up"), EnetBlock(4, 4)])
        self.fullconv = nn.ConvTranspose2d(4, CLASSES, 3, 2, 1, bias=False)

    def forward(self, x):
        full = x.shape[2:]
        x = torch.cat([self.initial.conv(x), F.max_pool2d(x, 2, 2, ceil_mode=True)], 1)
        x = self.initial.prelu(self.initial.bn(x))
        half = x.shape[2:]
        x, indices1 = self.bottleneck1[0](x)
        for block in self.bottleneck1[1:]:
            x = block(x)
        quarter = x.shape[2:]
        x, indices2 = self.bottleneck2[0](x)
        for block in [*self.bottleneck2[1:], *self.bottleneck3]:
            x = block(x)
        x = self.bottleneck4[0](x, indices2, quarter)
        for block in self.bottleneck4[1:]:
            x = block(x)
        x = self.bottleneck5[0](x, indices1, half)
        x = self.bottleneck5[1](x)
        return self.fullconv(x, output_size=full), None


def case(name, model):
    fill(model)
    images = signed("images", (3, 3, 45, 58))
    result = {}
    for mode in ("eval", "train"):
        model.train(mode == "train")
        model.zero_grad()
        logits, aux = model(images)
        loss = (logits * signed("cotangent of logits", tuple(logits.shape))).sum()
        if aux is not None:
            loss = loss + (aux * signed("cotangent of aux_logits", tuple(aux.shape))).sum()
        loss.backward()
        result[mode] = {
            "shape": list(logits.shape),
            "logits": logits.detach().flatten()[::37].tolist(),
            "aux_logits": [] if aux is None else aux.detach().flatten()[::37].tolist(),
            "loss": float(loss.detach()),
            "gradients": {key: projection(key, value.grad) for key, value in model.named_parameters()},
            "buffers": {
                key: projection(key, value)
                for key, value in model.named_buffers()
                if not key.endswith("num_batches_tracked")
            },
        }
    return name, result


def main():
    cases = dict(
        [
            case("pspnet_resnet18", PspNet(Basic, [2, 2, 2, 2], 1, True)),
            case("pspnet_resnet50_classic", PspNet(Bottle, [3, 4, 6, 3], 4, False)),
            case("enet", Enet()),
        ]
    )
    out = {"torch": torch.__version__, "numpy": np.__version__, "cases": cases}
    path = pathlib.Path(__file__).with_name("networks.json")
    path.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
