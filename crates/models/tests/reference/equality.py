"""Writes equality.json and equality.safetensors: what other people's implementations compute, in f64, at full width.

Weights, images and cotangents are functions of a name and an index that the Rust test computes too (see networks.py),
rounded to f32, so that both sides have the same. The files hold only results: of each output and of the gradient of
each parameter the norm and the projections on four vectors of signs, and some values of each output. The loss is the
projection of all outputs on cotangents. The same is computed by PyTorch in f32 and its distance from f64 recorded: what
an equal network may differ by.

The networks are those of torchvision, timm and segmentation_models_pytorch, and public code from checkouts:
  DSD_ESPNET_SOURCE   github.com/sacmehta/ESPNet (revision afe71c3): train/Model.py and test/Model.py
  DSD_ESPNETV2_SOURCE github.com/sacmehta/ESPNetv2 (revision b78e323): segmentation/cnn
  DSD_ENET_SOURCE     github.com/davidtvs/PyTorch-ENet (revision e17d404): models/enet.py
What is put together here from their parts, and said so in the table: the FCN head of torchvision on backbones that it
has no FCN for, and PSPNet from timm's ResNet and the pyramid blocks of segmentation_models_pytorch, with normalisation
in the branch of one bin, which that package leaves out, and a 3x3 convolution that merges.

Run: python equality.py
"""

import copy
import importlib.util
import json
import math
import os
import pathlib
import sys

import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.numpy import save_file
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPBlock
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torchvision.models import mobilenet_v2, resnet18, segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.fcn import FCNHead

from counts import enet as paper_enet
from networks import signed, uniform

HERE = pathlib.Path(__file__).parent
CLASSES = 19
COUNTED = (512, 1024)
# Compared in f64 on the other side too. PyTorch's own f32 is too far from f64 here for 1e-3 on gradients: values cross
# kinks of rectifiers, and the branch of one bin is normalised over three values.
IN_F64 = {
    "DeepLabV3, ResNet-101", "PSPNet, ResNet-50, stride 16", "PSPNet, ResNet-101",
    "PSPNet, ResNet-34", "PSPNet, ResNet-18, half width",
    "PSPNet, EfficientNet-Lite0, stride 16", "PSPNet, EfficientNet-Lite0, stride 8",
    "PSPNet, MobileNetV2, stride 16", "PSPNet, MobileNetV2 ×0.5, stride 16",
}
SAMPLES = 32


def rounded(tensor):
    return tensor.float().double()


def signs(name, count):
    """Four vectors of signs that belong to a name: the lowest bits of 53 random ones."""
    bits = (uniform("signs of " + name, count) * 2.0**53).astype(np.uint64)
    return [torch.from_numpy(1.0 - 2.0 * ((bits >> np.uint64(bit)) & np.uint64(1)).astype(np.float64)) for bit in range(4)]


def checksum(name, tensor):
    flat = tensor.detach().flatten()
    return [float(flat.norm()), *(float(flat @ sign) for sign in signs(name, flat.numel()))]


def sample(tensor):
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].tolist()


class Parts(nn.Module):
    """A backbone, a decoder with classifier and perhaps an auxiliary head; `rename` gives the names of the record."""

    def __init__(self, features, head, aux=None, rename=lambda name: name):
        super().__init__()
        self.backbone, self.classifier, self.aux_classifier, self.rename = features, head, aux, rename

    def forward(self, x):
        found = self.backbone(x)
        if isinstance(found, dict):
            last, middle = found["out"], found.get("aux")
        else:
            last, middle = found[-1], found[-2]
        outputs = {"logits": self.classifier(found if "low" in found else last)} if isinstance(found, dict) else {
            "logits": self.classifier(last)
        }
        if self.aux_classifier is not None:
            outputs["aux_logits"] = self.aux_classifier(middle)
        return outputs


class Single(nn.Module):
    """Somebody's whole network."""

    def __init__(self, network, names=("logits",), unused=()):
        super().__init__()
        self.network, self.names, self.unused = network, names, unused

    def rename(self, name):
        return name.removeprefix("network.")

    def forward(self, x):
        outputs = self.network(x)
        return dict(zip(self.names, outputs if isinstance(outputs, tuple) else (outputs,)))


class TimmResNet(nn.Module):
    """timm's ResNet up to its last stage; the last two stages' features."""

    def __init__(self, block, blocks, output_stride, deep, width=1.0):
        super().__init__()
        stem = {"stem_width": int(64 * width), "stem_type": "deep"} if deep else {}
        channels = tuple(int(width * count) for count in (64, 128, 256, 512))
        network = ResNet(block, blocks, output_stride=output_stride, channels=channels, **stem)
        for name, layer in network.named_children():
            if name not in ("global_pool", "fc"):
                self.add_module(name, layer)

    def forward(self, x):
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        x3 = self.layer3(self.layer2(self.layer1(x)))
        return x3, self.layer4(x3)


def mobile_features(width):
    """torchvision's MobileNetV2 up to its last block, at output stride 16; the last two stages' features."""
    features = mobilenet_v2(weights=None, width_mult=width).features
    for number, (stride, dilation) in {14: (1, 1), 15: (1, 2), 16: (1, 2), 17: (1, 2)}.items():
        (conv,) = [m for m in features[number].modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        conv.stride, conv.dilation, conv.padding = (stride, stride), (dilation, dilation), (dilation, dilation)
    return IntermediateLayerGetter(features, {"13": "aux", "17": "out"})


class Pyramid(nn.Module):
    def __init__(self, channels, head):
        super().__init__()
        self.stages = nn.ModuleList([PSPBlock(channels, head, bins) for bins in (1, 2, 3, 6)])
        self.stages[0].pool[1] = Conv2dReLU(channels, head, 1)
        self.bottleneck = Conv2dReLU(channels + 4 * head, head, 3, padding=1)
        self.classify = nn.Conv2d(head, CLASSES, 1)

    def forward(self, x):
        return self.classify(self.bottleneck(torch.cat([x, *(stage(x) for stage in self.stages)], 1)))


# timm's deep stem and the parts of Pyramid by this project's names.
PYRAMID_NAMES = [
    ("backbone.conv1.0.", "backbone.conv1."),
    ("backbone.conv1.1.", "backbone.bn1."),
    ("backbone.conv1.3.", "backbone.conv2."),
    ("backbone.conv1.4.", "backbone.bn2."),
    ("backbone.conv1.6.", "backbone.conv3."),
    ("backbone.bn1.", "backbone.bn3."),
    ("classifier.classify.", "classifier."),
    *((f"classifier.stages.{n}.pool.1.{k}.", f"decoder.stages.{n}.{v}.") for n in range(4) for k, v in enumerate(("conv", "bn"))),
    ("classifier.bottleneck.0.", "decoder.bottleneck.conv."),
    ("classifier.bottleneck.1.", "decoder.bottleneck.bn."),
    ("aux_classifier.0.0.", "aux.conv."),
    ("aux_classifier.0.1.", "aux.bn."),
    ("aux_classifier.1.", "aux.classifier."),
]
FCN_NAMES = [("classifier.0.", "decoder.conv."), ("classifier.1.", "decoder.bn."), ("classifier.4.", "classifier.")]


def renaming(table, deep=True):
    def rename(name):
        for theirs, ours in table:
            if name.startswith(theirs) and (deep or not theirs.startswith("backbone.")):
                return ours + name[len(theirs) :]
        return name

    return rename


def pspnet(features, channels, head, deep=False, aux=None, names=PYRAMID_NAMES):
    side = None
    if aux:
        side = nn.Sequential(Conv2dReLU(aux, head, 3, padding=1), nn.Conv2d(head, CLASSES, 1))
    return Parts(features, Pyramid(channels, head), side, renaming(names, deep))


def mobile_pspnet(width, channels, head, aux):
    names = [("backbone.", "backbone.features."), *PYRAMID_NAMES]
    return pspnet(mobile_features(width), channels, head, True, aux, names)


class LrAspp(nn.Module):
    def __init__(self):
        super().__init__()
        network = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
        self.backbone, self.classifier = network.backbone, network.classifier

    def rename(self, name):
        return name

    def forward(self, x):
        return {"logits": self.classifier(self.backbone(x))}


def torchvision_network(make, **options):
    network = make(weights=None, weights_backbone=None, num_classes=CLASSES, **options)
    return Parts(network.backbone, network.classifier, network.aux_classifier)


def module(variable, file, name):
    spec = importlib.util.spec_from_file_location(name, pathlib.Path(os.environ[variable]) / file)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def cropping(model):
    """ESPNet's decoder fails at sizes that are no multiples of 8: leaves out the last row and column where too many."""
    sizes = {}

    def remember(key):
        return lambda _m, _i, out: sizes.__setitem__(key, out.shape[2:])

    def crop(key):
        return lambda _m, _i, out: out[:, :, : sizes[key][0], : sizes[key][1]]

    model.register_forward_pre_hook(lambda _m, i: sizes.__setitem__("image", i[0].shape[2:]))
    model.encoder.level1.register_forward_hook(remember("level1"))
    model.encoder.level2_0.register_forward_hook(remember("level2"))
    model.up_l3[0].register_forward_hook(crop("level2"))
    model.up_l2[0].register_forward_hook(crop("level1"))
    model.classifier.register_forward_hook(crop("image"))
    return model


class EspnetV2(nn.Module):
    """The published network with the outputs of its two classifiers; doublings end at what they are merged with."""

    def __init__(self):
        super().__init__()
        sys.path.insert(0, str(pathlib.Path(os.environ["DSD_ESPNETV2_SOURCE"]) / "segmentation"))
        from cnn import SegmentationModel

        self.source = SegmentationModel
        self.network = SegmentationModel.EESPNet_Seg(CLASSES, 1.0)

    def rename(self, name):
        return name.removeprefix("network.")

    def forward(self, x):
        found = {}
        handles = [
            layer.register_forward_hook(lambda _m, _i, out, key=key: found.__setitem__(key, out))
            for key, layer in (("logits", self.network.project_l1), ("aux_logits", self.network.project_l3))
        ]
        sizes = [tuple(x.shape[2:])]
        for _ in range(3):
            sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
        targets = [sizes[3], sizes[2], sizes[1], sizes[0], *[None] * 3]

        class Shim:
            @staticmethod
            def interpolate(x, scale_factor, mode, align_corners):
                size = targets.pop(0) or tuple(scale_factor * side for side in x.shape[2:])
                return nn.functional.interpolate(x, size=size, mode=mode, align_corners=align_corners)

        self.source.F = Shim
        self.network(x)
        for handle in handles:
            handle.remove()
        return {key: found[key] for key in ("logits", "aux_logits")}


def lite0(output_stride):
    return timm.create_model("tf_efficientnet_lite0", features_only=True, output_stride=output_stride)


def encoder_decoder(architecture, backbone, output_stride, head, aux=False, **more):
    return {
        "architecture": architecture, "backbone": backbone, "output_stride": output_stride, "head_channels": head,
        "aux": aux, "dropout": 0.0, **more,
    }


TORCHVISION = f"torchvision {torchvision.__version__.split('+')[0]}"
TIMM = f"timm {timm.__version__}"
SMP = f"segmentation_models_pytorch {smp.__version__}"
CLASSIC, DEEP = {"stem": "classic"}, {"stem": "deep"}
BASIC, BOTTLE = ((BasicBlock, [2, 2, 2, 2]), (BasicBlock, [3, 4, 6, 3])), ((Bottleneck, [3, 4, 6, 3]), (Bottleneck, [3, 4, 23, 3]))


def rows():
    """Name, where it comes from, configuration, how to make it, size of the images, classes."""
    usual, wide, small, tiny, least = (65, 97), (33, 321), (33, 49), (17, 25), (9, 17)
    deeplab = dict(aux_loss=True)

    def enet():
        return Single(module("DSD_ENET_SOURCE", "models/enet.py", "pytorch_enet").ENet(CLASSES))

    def espnet(folder, decoder):
        code = module("DSD_ESPNET_SOURCE", folder + "/Model.py", "espnet_" + folder)
        return Single(cropping(code.ESPNet(20, 2, 8)) if decoder else code.ESPNet_Encoder(20, 2, 8))

    def espnet_config(decoder, image):
        return {"architecture": "espnet", "width": 1.0, "decoder": decoder, "p": 2, "q": 8, "image_in_decoder": image}

    def fcn(features, channels, rename=lambda name: name):
        return Parts(features, FCNHead(channels, CLASSES), None, rename)

    return [
        ("FCN, ResNet-18, stride 32", TORCHVISION, encoder_decoder("fcn", "resnet18", 32, 128, **CLASSIC),
         lambda: fcn(IntermediateLayerGetter(resnet18(weights=None), {"layer4": "out"}), 512), usual, CLASSES),
        ("FCN, ResNet-34, stride 8", f"{TIMM}, {TORCHVISION}", encoder_decoder("fcn", "resnet34", 8, 128, **CLASSIC),
         lambda: fcn(TimmResNet(*BASIC[1], 8, False), 512), small, CLASSES),
        ("FCN, ResNet-50, stride 8", TORCHVISION, encoder_decoder("fcn", "resnet50", 8, 512, **CLASSIC),
         lambda: torchvision_network(segmentation.fcn_resnet50, aux_loss=False), small, CLASSES),
        ("DeepLabV3, ResNet-50", TORCHVISION, encoder_decoder("deeplabv3", "resnet50", 8, 256, True, **CLASSIC),
         lambda: torchvision_network(segmentation.deeplabv3_resnet50, **deeplab), wide, CLASSES),
        ("DeepLabV3, ResNet-101", TORCHVISION, encoder_decoder("deeplabv3", "resnet101", 8, 256, True, **CLASSIC),
         lambda: torchvision_network(segmentation.deeplabv3_resnet101, **deeplab), least, CLASSES),
        ("PSPNet, ResNet-18", f"{TIMM}, {SMP}", encoder_decoder("pspnet", "resnet18", 8, 128, True, **DEEP),
         lambda: pspnet(TimmResNet(*BASIC[0], 8, True), 512, 128, True, 256), usual, CLASSES),
        ("PSPNet, ResNet-18, half width", f"{TIMM}, {SMP}",
         encoder_decoder("pspnet", "resnet18", 8, 64, True, width=0.5, **DEEP),
         lambda: pspnet(TimmResNet(*BASIC[0], 8, True, 0.5), 256, 64, True, 128), tiny, CLASSES),
        ("PSPNet, ResNet-34", f"{TIMM}, {SMP}", encoder_decoder("pspnet", "resnet34", 8, 128, True, **DEEP),
         lambda: pspnet(TimmResNet(*BASIC[1], 8, True), 512, 128, True, 256), least, CLASSES),
        ("PSPNet, ResNet-50, stride 16", f"{TIMM}, {SMP}", encoder_decoder("pspnet", "resnet50", 16, 512, **CLASSIC),
         lambda: pspnet(TimmResNet(*BOTTLE[0], 16, False), 2048, 512), tiny, CLASSES),
        ("PSPNet, ResNet-101", f"{TIMM}, {SMP}", encoder_decoder("pspnet", "resnet101", 8, 512, True, **DEEP),
         lambda: pspnet(TimmResNet(*BOTTLE[1], 8, True), 2048, 512, True, 1024), least, CLASSES),
        ("FCN, MobileNetV2, stride 32", TORCHVISION, encoder_decoder("fcn", "mobilenetv2", 32, 80),
         lambda: fcn(IntermediateLayerGetter(mobilenet_v2(weights=None).features, {"17": "out"}), 320), usual, CLASSES),
        ("FCN, MobileNetV2 ×0.5, stride 32", TORCHVISION, encoder_decoder("fcn", "mobilenetv2", 32, 40, width=0.5),
         lambda: fcn(IntermediateLayerGetter(mobilenet_v2(weights=None, width_mult=0.5).features, {"17": "out"}), 160),
         usual, CLASSES),
        ("PSPNet, MobileNetV2, stride 16", f"{TORCHVISION}, {SMP}", encoder_decoder("pspnet", "mobilenetv2", 16, 128, True),
         lambda: mobile_pspnet(1.0, 320, 128, 96), small, CLASSES),
        ("PSPNet, MobileNetV2 ×0.5, stride 16", f"{TORCHVISION}, {SMP}",
         encoder_decoder("pspnet", "mobilenetv2", 16, 64, True, width=0.5),
         lambda: mobile_pspnet(0.5, 160, 64, 48), small, CLASSES),
        ("FCN, EfficientNet-Lite0, stride 32", f"{TIMM}, {TORCHVISION}", encoder_decoder("fcn", "efficientnet_lite0", 32, 80),
         lambda: fcn(lite0(32), 320, renaming(FCN_NAMES)), usual, CLASSES),
        ("PSPNet, EfficientNet-Lite0, stride 16", f"{TIMM}, {SMP}",
         encoder_decoder("pspnet", "efficientnet_lite0", 16, 128, True),
         lambda: pspnet(lite0(16), 320, 128, aux=112), small, CLASSES),
        ("PSPNet, EfficientNet-Lite0, stride 8", f"{TIMM}, {SMP}", encoder_decoder("pspnet", "efficientnet_lite0", 8, 128),
         lambda: pspnet(lite0(8), 320, 128), tiny, CLASSES),
        ("LR-ASPP, MobileNetV3-Large", TORCHVISION, encoder_decoder("lraspp", "mobilenetv3_large", 16, 128),
         LrAspp, usual, CLASSES),
        ("ENet", "layers of PyTorch, from the paper",
         {"architecture": "enet", "width": 1.0, "early_dropout": 0.0, "dropout": 0.0, "form": "paper"},
         lambda: Single(paper_enet()), usual, CLASSES),
        ("ENet of PyTorch-ENet", "PyTorch-ENet e17d404",
         {"architecture": "enet", "width": 1.0, "early_dropout": 0.0, "dropout": 0.0, "form": "pytorch-enet"}, enet, usual, CLASSES),
        ("ESPNet-C", "ESPNet afe71c3", espnet_config(False, False), lambda: espnet("train", False), usual, 20),
        ("ESPNet", "ESPNet afe71c3", espnet_config(True, False), lambda: espnet("test", True), usual, 20),
        ("ESPNet, image in the decoder", "ESPNet afe71c3", espnet_config(True, True), lambda: espnet("train", True), usual, 20),
        ("ESPNetv2", "ESPNetv2 b78e323", {"architecture": "espnetv2", "width": 1.0, "dropout": 0.0}, EspnetV2, usual, CLASSES),
    ]


def named(model):
    """The tensors of a network by the names of the record, counters left out."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {model.rename(name): value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}


def fill(model, negative):
    """Weights for which f32 is near f64: few values lie so near to a kink that rounding moves them across.

    With negative, every fourth channel is mostly below zero, the same in all layers, so that sums do not cancel.
    """
    with torch.no_grad():
        for name, tensor in named(model).items():
            value = signed(name, tuple(tensor.shape))
            if tensor.dim() >= 2:
                value = value * math.sqrt(3.0 / math.prod(tensor.shape[1:]))
            elif name.endswith("bias"):
                value = 2.0 + 0.5 * value
                if negative:
                    value[3::4] *= -1.0
            elif name.endswith("running_var"):
                value = 1.0 + 0.5 * value
            elif not name.endswith("running_mean"):
                value = 0.375 + 0.125 * value
            tensor.copy_(rounded(value))


def images(shape):
    """Each image has a contrast of its own, so that averages over whole images differ."""
    contrast = torch.arange(1.0, shape[0] + 1.0).reshape(-1, 1, 1, 1)
    return rounded(signed("images", shape) * contrast * 0.5)


def run(model, x):
    # PyTorch-ENet makes zeros of the default type.
    torch.set_default_dtype(x.dtype)
    model.zero_grad()
    outputs = model(x)
    loss = 0.0
    for name, value in outputs.items():
        loss = loss + (value * rounded(signed("cotangent of " + name, tuple(value.shape))).to(value.dtype)).sum()
    loss.backward()
    torch.set_default_dtype(torch.float64)
    names = {id(value): name for name, value in named(model).items()}
    gradients = {names[id(value)]: value.grad for value in model.parameters() if value.grad is not None}
    return {name: value.detach() for name, value in outputs.items()}, {k: v.clone() for k, v in gradients.items()}


def layers(model, used):
    """A line for each layer: its tensors (w, b, m, v), its name, the shape of its weight."""
    letters = {"weight": "w", "bias": "b", "running_mean": "m", "running_var": "v"}
    found = {}
    for name, value in named(model).items():
        layer, _, last = name.rpartition(".")
        if f"{layer}.weight" in used:
            found.setdefault(layer, {})[letters[last]] = value
    lines = []
    for layer, tensors in found.items():
        for letter in tensors.keys() - {"w"}:
            assert tuple(tensors[letter].shape) == (tensors["w"].shape[0],), layer
        shape = " ".join(str(side) for side in tensors["w"].shape)
        kinds = "".join(letter for letter in "wbmv" if letter in tensors)
        lines.append(f"{kinds} {layer} {shape}")
    return lines


def multiply_adds(model):
    total = 0

    def count(name):
        def hook(layer, inputs, output):
            nonlocal total
            if name.startswith("aux_classifier"):
                return
            area = math.prod(layer.kernel_size)
            if isinstance(layer, nn.ConvTranspose2d):
                total += inputs[0].numel() * layer.out_channels // layer.groups * area
            else:
                total += output.numel() * layer.in_channels // layer.groups * area

        return hook

    twin = make_meta(model)
    for name, layer in twin.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(count(name))
    twin.eval()
    with torch.no_grad():
        torch.set_default_dtype(torch.float32)
        twin(torch.zeros(1, 3, *COUNTED, device=next(twin.parameters()).device))
        torch.set_default_dtype(torch.float64)
    return total


def make_meta(model):
    source, model.source = getattr(model, "source", None), None
    twin = copy.deepcopy(model)
    if source is not None:
        model.source = twin.source = source
    twin = twin.float()
    # Unpooling needs real indices, and hooks of ESPNet belong to the one that was copied.
    return twin if isinstance(model, (Single, EspnetV2)) else twin.to("meta")


def relative(got, expected):
    norms = {name: float(value.norm()) for name, value in expected.items()}
    floor = max(norms.values()) * 1e-10
    # Where sums cancel, rounding leaves more of them: see `scales` in the test.
    median = sorted(norms.values())[len(norms) // 2]
    ratios = {
        name: float((got[name].double() - value).norm()) / (max(norms[name], median / 100.0) if norms[name] > floor else median)
        for name, value in expected.items()
    }
    return max(ratios.values())


def row(index, name, oracle, config, make, size, classes, numbers):
    model = make()
    for layer in model.modules():
        if isinstance(layer, (nn.Dropout, nn.Dropout2d)):
            layer.p = 0.0
    # A channel without any value above zero has no variance, which a depthwise convolution hands on.
    negative = not any(word in name for word in ("MobileNet", "EfficientNet"))
    fill(model, negative)
    result = {"network": name, "oracle": oracle, "config": config, "classes": classes, "size": size}
    result["negative"] = negative
    result["precision"] = "f64" if name in IN_F64 else "f32"
    result["multiply_adds"] = multiply_adds(model)
    modes, order = {}, None
    for mode, count in (("eval", 2), ("train", 3)):
        x = images((3, 3, *size))[:count]
        # In training a batch changes the running statistics, which a training step itself does not read.
        model.train(mode == "train")
        outputs, gradients = run(model.double(), x)
        outputs32, gradients32 = run(model.float(), x.float())
        model.double()
        logits32 = max(
            float(((outputs32[k].double() - v).abs() / (1.0 + v.abs())).max()) for k, v in outputs.items()
        )
        if order is None:
            result["layers"] = layers(model, gradients)
            order = [
                f"{line.split()[1]}.{last}"
                for line in result["layers"]
                for letter, last in (("w", "weight"), ("b", "bias"))
                if letter in line.split()[0]
            ]
            assert sorted(order) == sorted(gradients)
            result["parameters"] = sum(value.numel() for value in gradients.values())
        norms = {key: float(gradients[key].norm()) for key in order}
        modes[mode] = {
            "outputs": list(outputs),
            "float32": [float(f"{value:.2e}") for value in (logits32, relative(gradients32, gradients))],
        }
        numbers[f"{index}.{mode}.gradients"] = np.float32([checksum(key, gradients[key]) for key in order])
        for key, value in outputs.items():
            numbers[f"{index}.{mode}.{key}"] = np.float32(checksum(key, value) + sample(value))
        print(
            f"{name} {mode}: f32 {modes[mode]['float32']}, {result['parameters']} parameters, logits up to "
            f"{max(float(v.abs().max()) for v in outputs.values()):.2e}, gradient norms {min(norms.values()):.1e} "
            f"({min(norms, key=norms.get)}) to {max(norms.values()):.1e}",
            flush=True,
        )
    result["modes"] = modes
    return result


def main():
    """Arguments: words that a row's name has to contain one of; without any, all rows and the files."""
    chosen = sys.argv[1:]
    numbers, table = {}, []
    for name, *rest in rows():
        if not chosen or any(word in name for word in chosen):
            table.append(row(len(table), name, *rest, numbers))
    if chosen:
        return
    out = {"torch": torch.__version__, "numpy": np.__version__, "counted_size": COUNTED, "rows": table}
    text = json.dumps(out, separators=(",", ":"), ensure_ascii=False).replace('{"network"', '\n{"network"')
    (HERE / "equality.json").write_text(text + "\n")
    save_file(numbers, HERE / "equality.safetensors")


if __name__ == "__main__":
    main()
