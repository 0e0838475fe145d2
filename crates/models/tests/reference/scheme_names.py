"""Names and shapes of the tensors of published networks, for crates/models/src/weights/tests.rs.

Made with torchvision 0.2x and timm 1.0; run in this folder: python scheme_names.py
Running statistics are left out: the test adds them to every normalisation. The PSPNets of the distillation codes are
written out in the test itself.
"""

import json
import pathlib

import timm
import torchvision

segmentation = torchvision.models.segmentation
empty = {"weights": None, "weights_backbone": None}
networks = {
    "torchvision resnet18": torchvision.models.resnet18(),
    "torchvision mobilenet_v2": torchvision.models.mobilenet_v2(),
    "torchvision mobilenet_v3_large": torchvision.models.mobilenet_v3_large(),
    "torchvision deeplabv3_resnet50": segmentation.deeplabv3_resnet50(num_classes=21, aux_loss=True, **empty),
    "torchvision fcn_resnet50": segmentation.fcn_resnet50(num_classes=21, aux_loss=True, **empty),
    "torchvision lraspp": segmentation.lraspp_mobilenet_v3_large(num_classes=21, **empty),
    "timm resnet18": timm.create_model("resnet18"),
    "timm tf_efficientnet_lite0": timm.create_model("tf_efficientnet_lite0"),
    "timm mobilenetv2_100": timm.create_model("mobilenetv2_100"),
    "timm mobilenetv3_large_100": timm.create_model("mobilenetv3_large_100"),
}
lines = []
for network, module in networks.items():
    rows = {name: list(value.shape) for name, value in module.named_parameters()}
    if "resnet50" in network:
        rows = {name: shape for name, shape in rows.items() if not name.startswith("backbone.layer")}
    lines.append(f" {json.dumps(network)}: {json.dumps(rows, separators=(',', ':'))}")
pathlib.Path("scheme_names.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
