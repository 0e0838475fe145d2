"""Writes decoders.json: what torchvision's decoders compute, in f64, on the small ResNet-18 of networks.py.

The heads are torchvision's own classes (DeepLabHead with fewer channels, FCNHead, LRASPPHead), renamed; weights, images
and cotangents are those of networks.py. Dropout is off.

Run: python decoders.py
"""

import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.models.segmentation.lraspp import LRASPPHead

from networks import CLASSES, Aux, Backbone, Basic, case

HEAD = 5


def pair(conv, bn):
    """The same two modules under the names that a convolution and its normalisation have in our networks."""
    module = nn.Module()
    module.conv, module.bn = conv, bn
    return module


class Base(nn.Module):
    """Subclasses register torchvision's modules again under our names, so that state_dict has ours only."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone(Basic, [2, 2, 2, 2], 1, False)

    def features(self, x):
        b = self.backbone
        x = F.max_pool2d(F.relu(b.bn1(b.conv1(x))), 3, 2, 1)
        low = b.layer2(b.layer1(x))
        middle = b.layer3(low)
        return low, middle, b.layer4(middle)

    def hide(self, head):
        """Keeps a module without registering its parameters a second time."""
        self.__dict__["head"] = head


class DeepLab(Base):
    def __init__(self):
        super().__init__()
        # torchvision's DeepLabHead with 5 instead of 256 channels.
        aspp = ASPP(32, (12, 24, 36), HEAD)
        aspp.project[3].p = 0.0
        self.hide(nn.Sequential(
            aspp, nn.Conv2d(HEAD, HEAD, 3, padding=1, bias=False), nn.BatchNorm2d(HEAD), nn.ReLU(),
            nn.Conv2d(HEAD, CLASSES, 1),
        ))
        decoder = nn.Module()
        decoder.branches = nn.ModuleList([pair(conv[0], conv[1]) for conv in list(aspp.convs)[:4]])
        decoder.pooling = pair(aspp.convs[4][1], aspp.convs[4][2])
        decoder.project = pair(aspp.project[0], aspp.project[1])
        decoder.bottleneck = pair(self.head[1], self.head[2])
        self.decoder = decoder
        self.classifier = self.head[4]
        self.aux = Aux(16, HEAD)

    def train(self, mode=True):
        super().train(mode)
        self.head.train(mode)
        return self

    def forward(self, x):
        _, middle, high = self.features(x)
        return self.head(high), self.aux(middle)


class Fcn(Base):
    def __init__(self):
        super().__init__()
        # FCNHead has a quarter of its input channels.
        self.hide(FCNHead(32, CLASSES))
        self.head[3].p = 0.0
        self.decoder = pair(self.head[0], self.head[1])
        self.classifier = self.head[4]

    def train(self, mode=True):
        super().train(mode)
        self.head.train(mode)
        return self

    def forward(self, x):
        return self.head(self.features(x)[2]), None


class LrAspp(Base):
    def __init__(self):
        super().__init__()
        self.hide(LRASPPHead(8, 32, CLASSES, HEAD))
        decoder = nn.Module()
        decoder.reduce = pair(self.head.cbr[0], self.head.cbr[1])
        decoder.scale = self.head.scale[1]
        self.decoder = decoder
        self.classifier = self.head.high_classifier
        self.low_classifier = self.head.low_classifier

    def train(self, mode=True):
        super().train(mode)
        self.head.train(mode)
        return self

    def forward(self, x):
        low, _, high = self.features(x)
        return self.head({"low": low, "high": high}), None


def main():
    models = {"deeplabv3_resnet18": DeepLab(), "fcn_resnet18": Fcn(), "lraspp_resnet18": LrAspp()}
    cases = dict(case(name, model) for name, model in models.items())
    out = {
        "torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__, "cases": cases,
    }
    path = pathlib.Path(__file__).with_name("decoders.json")
    path.write_text(json.dumps(out, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
