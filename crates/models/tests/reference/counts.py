"""Writes counts.json: parameters and multiply-adds of the named networks, counted on independent implementations.

Backbones are torchvision's and timm's, DeepLabV3 and LR-ASPP torchvision's; pyramid pooling is written from the paper
with the channels of the published distillation codes; the paper's ENet is the one of networks.py at full width; ESPNet
and the public form of ENet are imported from a checkout of their repositories, not from here:
  DSD_ESPNET_SOURCE   checkout of github.com/sacmehta/ESPNet (revision afe71c3): test/Model.py
  DSD_ESPNETV2_SOURCE checkout of github.com/sacmehta/ESPNetv2: segmentation/cnn
  DSD_ENET_SOURCE     checkout of github.com/davidtvs/PyTorch-ENet (revision e17d404): models/enet.py
19 classes; parameters with the auxiliary head; multiply-adds (convolutions only, as hooks see them) of one image of
512x1024 without it. Where the code allows it, tensors are on the meta device and nothing is computed.

Run: python counts.py
"""

import importlib.util
import json
import os
import pathlib
import sys

import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

import networks

CLASSES = 19
SIZE = (512, 1024)


def layer(cin, cout, kernel):
    conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU())


class Pyramid(nn.Module):
    bins = (1, 2, 3, 6)

    def __init__(self, cin, head):
        super().__init__()
        self.stages = nn.ModuleList([layer(cin, head, 1) for _ in self.bins])
        self.bottleneck = layer(cin + len(self.bins) * head, head, 3)

    def forward(self, x):
        parts = [x]
        for bins, stage in zip(self.bins, self.stages):
            # Sizes are all that counts, and the meta device has no adaptive pooling.
            y = stage(x.new_zeros(*x.shape[:2], bins, bins))
            parts.append(y.new_zeros(*y.shape[:2], *x.shape[2:]))
        return self.bottleneck(torch.cat(parts, 1))


class PspNet(nn.Module):
    """backbone: a timm network with features_only, whose last two features feed the auxiliary and the main head."""

    def __init__(self, backbone, channels, head):
        super().__init__()
        self.backbone = backbone
        self.decoder = Pyramid(channels[1], head)
        self.classifier = nn.Conv2d(head, CLASSES, 1)
        self.aux = nn.Sequential(layer(channels[0], head, 3), nn.Conv2d(head, CLASSES, 1))

    def forward(self, x):
        return self.classifier(self.decoder(self.backbone(x)[-1]))


class ResNetFeatures(nn.Module):
    def __init__(self, block, blocks, width):
        super().__init__()
        self.net = timm.models.resnet.ResNet(
            block, blocks, output_stride=8, stem_type="deep", stem_width=int(64 * width), num_classes=0,
            channels=tuple(int(c * width) for c in (64, 128, 256, 512)),
        )

    def forward(self, x):
        net = self.net
        x = net.maxpool(net.act1(net.bn1(net.conv1(x))))
        return [x := stage(x) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)]


def resnet(block, blocks, head, width=1.0):
    expansion = block.expansion
    return PspNet(
        ResNetFeatures(block, blocks, width), [int(256 * width) * expansion, int(512 * width) * expansion], head
    )


class MobileNetV2Features(nn.Module):
    """Up to the last block, output stride 16."""

    def __init__(self, width):
        super().__init__()
        self.features = torchvision.models.mobilenet_v2(width_mult=width).features[:18]
        for module in self.features[14].modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)

    def forward(self, x):
        outputs = []
        for index, block in enumerate(self.features):
            x = block(x)
            if index in (3, 6, 13, 17):
                outputs.append(x)
        return outputs


def mobilenetv2(width, head):
    probe = MobileNetV2Features(width).to("meta")(torch.zeros(1, 3, 64, 64, device="meta"))
    return PspNet(MobileNetV2Features(width), [x.shape[1] for x in probe[2:]], head)


def efficientnet_lite0(head):
    net = timm.create_model("tf_efficientnet_lite0", features_only=True, output_stride=16)
    return PspNet(net, net.feature_info.channels()[-2:], head)


def parameters(model):
    return sum(tensor.numel() for tensor in model.parameters())


def multiply_adds(model, device="meta"):
    total = 0

    def hook(module, inputs, output):
        nonlocal total
        per_value = module.weight[0].numel()
        value_count = inputs[0].numel() if isinstance(module, nn.ConvTranspose2d) else output.numel()
        total += per_value * value_count

    # ESPNet has a list of its own called modules.
    for part in nn.Module.modules(model):
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            part.register_forward_hook(hook)
    model.eval().to(device)
    with torch.no_grad():
        model(torch.zeros(1, 3, *SIZE, device=device))
    return total


def enet():
    model = networks.Enet.__new__(networks.Enet)
    nn.Module.__init__(model)
    block = networks.EnetBlock
    section = [
        ("regular", 3), ("dilated", 2), ("asymmetric", 5), ("dilated", 4),
        ("regular", 3), ("dilated", 8), ("asymmetric", 5), ("dilated", 16),
    ]
    model.initial = networks.Unit(nn.Conv2d(3, 13, 3, 2, 1, bias=False), 16)
    model.bottleneck1 = nn.ModuleList([block(16, 64, "down")] + [block(64, 64) for _ in range(4)])
    model.bottleneck2 = nn.ModuleList([block(64, 128, "down")] + [block(128, 128, *kind) for kind in section])
    model.bottleneck3 = nn.ModuleList([block(128, 128, *kind) for kind in section])
    model.bottleneck4 = nn.ModuleList([block(128, 64, "up")] + [block(64, 64) for _ in range(2)])
    model.bottleneck5 = nn.ModuleList([block(64, 16, "up"), block(16, 16)])
    model.fullconv = nn.ConvTranspose2d(16, CLASSES, 3, 2, 1, bias=False)
    return model


def module(variable, path):
    spec = importlib.util.spec_from_file_location(variable, pathlib.Path(os.environ[variable]) / path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def segmentation(name, **settings):
    make = getattr(torchvision.models.segmentation, name)
    return make(weights=None, weights_backbone=None, num_classes=CLASSES, **settings)


def main():
    pspnets = {
        "pspnet_resnet101": lambda: resnet(Bottleneck, [3, 4, 23, 3], 512),
        "pspnet_resnet50": lambda: resnet(Bottleneck, [3, 4, 6, 3], 512),
        "pspnet_resnet34": lambda: resnet(BasicBlock, [3, 4, 6, 3], 128),
        "pspnet_resnet18": lambda: resnet(BasicBlock, [2, 2, 2, 2], 128),
        "pspnet_resnet18_half": lambda: resnet(BasicBlock, [2, 2, 2, 2], 64, 0.5),
        "pspnet_efficientnet_lite0": lambda: efficientnet_lite0(128),
        "pspnet_mobilenetv2": lambda: mobilenetv2(1.0, 128),
        "pspnet_mobilenetv2_half": lambda: mobilenetv2(0.5, 64),
    }
    counts = {}
    for name, make in pspnets.items():
        counts[name] = (parameters(make()), multiply_adds(make()))
    for name in ("deeplabv3_resnet101", "deeplabv3_resnet50"):
        with_aux, without = segmentation(name, aux_loss=True), segmentation(name, aux_loss=False)
        counts[name] = (parameters(with_aux), multiply_adds(without))
    counts["lraspp_mobilenetv3_large"] = (
        parameters(segmentation("lraspp_mobilenet_v3_large")), multiply_adds(segmentation("lraspp_mobilenet_v3_large"))
    )
    counts["enet"] = (parameters(enet()), multiply_adds(enet()))
    public_enet = module("DSD_ENET_SOURCE", "models/enet.py").ENet
    counts["enet_pytorch"] = (parameters(public_enet(CLASSES)), multiply_adds(public_enet(CLASSES), "cpu"))
    espnet = module("DSD_ESPNET_SOURCE", "test/Model.py")
    for name, make in (("espnet", espnet.ESPNet), ("espnet_c", espnet.ESPNet_Encoder)):
        counts[name] = (parameters(make(CLASSES, 2, 8)), multiply_adds(make(CLASSES, 2, 8)))
    sys.path.insert(0, str(pathlib.Path(os.environ["DSD_ESPNETV2_SOURCE"]) / "segmentation"))
    espnetv2 = importlib.import_module("cnn.SegmentationModel").EESPNet_Seg
    # Slopes of each halving's pyramid that its forward pass never uses.
    model = espnetv2(CLASSES)
    unused = sum(p.numel() for name, p in model.named_parameters() if "_0.eesp.module_act" in name)
    counts["espnetv2"] = (parameters(model) - unused, multiply_adds(espnetv2(CLASSES)))
    out = {name: {"parameters": counted[0], "multiply_adds": counted[1]} for name, counted in counts.items()}
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    path = pathlib.Path(__file__).with_name("counts.json")
    path.write_text(json.dumps({**versions, "networks": out}, indent=1) + "\n")


if __name__ == "__main__":
    main()
