"""The other side of `dsd bench --peer torch`: the same cases in PyTorch, asked for by lines of JSON on standard input.

    {"prepare": CASE}  ->  {"ways": [..], "value": V, "peak_mb": M}, or {"absent": REASON}
    {"run": WAY, "seconds": S}  ->  {"ms": T}, as `turn` in crates/train/src/bench/mod.rs
    an error           ->  {"error": TEXT}

A way is a memory format, or onnxruntime where a network infers. Networks are those that crates/models/tests/reference
compares ours with, with our weights; losses that are short formulas are those of tests/reference, others are written
here without loops over pixels. ESPNet's code is read from a checkout, DSD_ESPNET_SOURCE (see equality.py there).

Started by the program: torch_peer.py THREADS
"""

import json
import os
import pathlib
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "crates" / "models" / "tests" / "reference"), str(ROOT / "tests" / "reference")]

FORMATS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}
IGNORED = 255
WARM_UP = 2
LONG_RUN = 100.0


class Absent(Exception):
    """There is no counterpart here."""


def formatted(tensor, way):
    return tensor.contiguous(memory_format=FORMATS[way]) if tensor.dim() == 4 else tensor


def backward(output, gradient):
    output.backward(None if output.dim() == 0 else gradient)


class Convolution:
    """One pass of a convolution."""

    ways = tuple(FORMATS)

    def __init__(self, case):
        kernel, groups = case["kernel"], case["groups"]
        self.x = torch.randn(case["x"])
        self.w = torch.randn(case["out_channels"], case["x"][1] // groups, *kernel)
        self.options = [case[key] for key in ("stride", "padding", "dilation")]
        self.groups, self.which = groups, case["pass"]
        self.g = torch.randn_like(F.conv2d(self.x, self.w, None, *self.options, groups))

    def use(self, way):
        self.x, self.w, self.g = (formatted(tensor, way) for tensor in (self.x, self.w, self.g))

    @torch.no_grad()
    def run(self):
        if self.which == "forward":
            F.conv2d(self.x, self.w, None, *self.options, self.groups)
        else:
            wanted = [self.which == "grad x", self.which == "grad w", False]
            torch.ops.aten.convolution_backward(
                self.g, self.x, self.w, None, *self.options, False, [0, 0], self.groups, wanted
            )


class Operation:
    """An operation with its graph, forward and backward."""

    ways = tuple(FORMATS)

    def __init__(self, case):
        self.x = torch.randn(case["x"], requires_grad=True)
        channels = case["x"][1]
        w = torch.randn(64, channels, 3, 3, requires_grad=True)
        scale, shift = (torch.randn(channels, requires_grad=True) for _ in range(2))
        labels = torch.randint(channels, (case["x"][0], *case["x"][2:]))
        self.function = {
            "convolution": lambda x: F.conv2d(x, w, padding=1),
            "batch norm": lambda x: F.relu(F.batch_norm(x, None, None, scale, shift, training=True)),
            "prelu": lambda x: F.prelu(x, scale),
            "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
            "adaptive average pool": lambda x: F.adaptive_avg_pool2d(x, 6),
            "bilinear": lambda x: F.interpolate(x, size=(256, 256), mode="bilinear", align_corners=True),
            "cross-entropy": lambda x: F.cross_entropy(x, labels, ignore_index=IGNORED),
        }[case["name"]]
        self.g = torch.randn_like(self.function(self.x))

    def use(self, way):
        self.x = formatted(self.x.detach(), way).requires_grad_()
        self.g = formatted(self.g, way)

    def run(self):
        self.x.grad = None
        backward(self.function(self.x), self.g)


def one_hot(labels, classes):
    return F.one_hot(labels, classes).movedim(-1, 1).float()


def pearson(a, b):
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return F.cosine_similarity(a, b, dim=1)


def kl(log_p, log_q):
    return F.kl_div(log_q, log_p, log_target=True, reduction="sum")


def class_weighted_pixel_kd(s, t, classes, temperature=2.0):
    weight = torch.einsum("nchw,c->nhw", t.softmax(1), 0.3 + 0.1 * torch.arange(classes))
    log_q, log_p = ((x / temperature).log_softmax(1) for x in (s, t))
    divergence = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
    return temperature**2 * (weight * divergence).sum() / weight.sum()


def channel_kd(s, t, temperature=4.0):
    log_q, log_p = ((x.flatten(2) / temperature).log_softmax(2) for x in (s, t))
    return temperature**2 * kl(log_p, log_q) / (s.shape[0] * s.shape[1])


def dist_kd(s, t):
    q, p = (x.softmax(1).movedim(1, -1).flatten(0, 2) for x in (s, t))
    return (1 - pearson(q, p).mean()) + (1 - pearson(q.T, p.T).mean())


def attention_transfer(student, teacher):
    total = 0.0
    for s, t in zip(student, teacher):
        a, b = (F.normalize(x.pow(2).mean(1).flatten(1), dim=1) for x in (s, t))
        total = total + (a - b).pow(2).sum() / a.numel()
    return total


def pairwise_kd(s, t, window):
    a, b = (F.normalize(F.max_pool2d(x, window, window, ceil_mode=True).flatten(2), dim=1) for x in (s, t))
    return (a.mT @ a - b.mT @ b).pow(2).mean()


def ifvd(s, t, labels, classes):
    members = one_hot(labels, classes).flatten(2)  # [N,K,P]
    cosines = []
    for x in (s.flatten(2), t.flatten(2)):
        means = members @ x.mT / members.sum(2, keepdim=True).clamp_min(1.0)  # [N,K,C]
        own = torch.gather(means, 1, labels.flatten(1).unsqueeze(2).expand(-1, -1, x.shape[1])).mT
        cosines.append(F.cosine_similarity(x, own, dim=1))
    return (cosines[0] - cosines[1]).pow(2).mean()


def cross_image_kd(s, t, pool=4, temperature=0.1):
    a, b = (F.normalize(F.avg_pool2d(x, pool), dim=1).flatten(2) for x in (s, t))  # [N,C,P]
    images, total = len(a), 0.0
    for i in range(images):
        for j in range(images):
            log_q, log_p = ((x[i].T @ x[j] / temperature).log_softmax(1) for x in (a, b))
            total = total + kl(log_p, log_q)
    return total / (images * images * a.shape[2])


def focal(z, labels, gamma=2.0):
    log_p = -F.cross_entropy(z, labels, reduction="none")
    return -((1 - log_p.exp()) ** gamma * log_p).mean()


def dice(z, labels, smoothing=1.0):
    p, y = z.softmax(1), one_hot(labels, z.shape[1])
    over = (0, 2, 3)
    score = (2 * (p * y).sum(over) + smoothing) / (p.sum(over) + y.sum(over) + smoothing)
    return (1 - score).mean()


def lovasz(z, labels):
    p, total = z.softmax(1).movedim(1, -1).flatten(0, 2), 0.0
    labels = labels.flatten()
    for k in range(p.shape[1]):
        y = (labels == k).float()
        errors, order = (y - p[:, k]).abs().sort(descending=True)
        y = y[order]
        jaccard = 1 - (y.sum() - y.cumsum(0)) / (y.sum() + (1 - y).cumsum(0))
        total = total + errors @ torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    return total / p.shape[1]


def ohem(z, labels, share=0.25):
    losses = F.cross_entropy(z, labels, reduction="none").flatten()
    return losses.topk(-int(-share * losses.numel() // 1)).values.mean()


class Loss:
    """A loss, forward and backward; the gradients are those of the student's tensors."""

    ways = tuple(FORMATS)

    def __init__(self, case):
        import similarity

        self.tensors = load_file(case["tensors"])
        self.labels, classes = self.tensors.pop("labels").long(), case["classes"]
        self.function = {
            "psd, two layers": lambda x: similarity.psd(x["student"], x["teacher"]),
            "csd": lambda x: similarity.csd(*x["logits"]),
            "pixel kd": lambda x: similarity.pixel_kd(*x["logits"], temperature=2.0),
            "class-weighted pixel kd": lambda x: class_weighted_pixel_kd(*x["logits"], classes),
            "channel kd": lambda x: channel_kd(*x["logits"]),
            "dist kd": lambda x: dist_kd(*x["logits"]),
            "attention transfer, two layers": lambda x: attention_transfer(x["student"], x["teacher"]),
            "fitnet": lambda x: F.mse_loss(x["student"][0], x["teacher"][0]),
            "pairwise kd, half windows": lambda x: pairwise_kd(
                x["student"][0], x["teacher"][0], [side // 2 for side in x["student"][0].shape[2:]]
            ),
            "pairwise kd, every position": lambda x: pairwise_kd(x["student"][0], x["teacher"][0], 1),
            "ifvd": lambda x: ifvd(x["student"][0], x["teacher"][0], self.labels, classes),
            "cross-image kd, pooled by 4": lambda x: cross_image_kd(x["student"][0], x["teacher"][0]),
            "cross-entropy": lambda x: F.cross_entropy(x["logits"][0], self.labels, ignore_index=IGNORED),
            "focal": lambda x: focal(x["logits"][0], self.labels),
            "dice": lambda x: dice(x["logits"][0], self.labels),
            "lovasz": lambda x: lovasz(x["logits"][0], self.labels),
            "ohem": lambda x: ohem(x["logits"][0], self.labels),
        }.get(case["name"])
        if self.function is None:
            raise Absent("no formula here")

    def use(self, way):
        for name, tensor in self.tensors.items():
            tensor = formatted(tensor.detach(), way)
            self.tensors[name] = tensor.requires_grad_(name.startswith("student"))

    def run(self):
        x = self.tensors
        for tensor in x.values():
            tensor.grad = None
        sides = {side: [x[f"{side}.{layer}"] for layer in range(2)] for side in ("student", "teacher")}
        value = self.function({**sides, "logits": [x["student.logits"], x["teacher.logits"]]})
        value.backward()
        return float(value.detach())


LRASPP_NAMES = [
    ("backbone.", "backbone.features."),
    ("classifier.cbr.0.", "decoder.reduce.conv."),
    ("classifier.cbr.1.", "decoder.reduce.bn."),
    ("classifier.scale.1.", "decoder.scale."),
    ("classifier.low_classifier.", "low_classifier."),
    ("classifier.high_classifier.", "classifier."),
]


def network(name, classes, weights):
    import counts
    import equality as zoo

    torch.set_default_dtype(torch.float32)
    counts.CLASSES = zoo.CLASSES = classes

    def espnet():
        if "DSD_ESPNET_SOURCE" not in os.environ:
            raise Absent("DSD_ESPNET_SOURCE is not set")
        return zoo.Single(zoo.module("DSD_ESPNET_SOURCE", "test/Model.py", "espnet_test").ESPNet(classes, 2, 8))

    def lraspp():
        model = zoo.LrAspp()
        model.rename = zoo.renaming(LRASPP_NAMES)
        return model

    makers = {
        "pspnet_resnet18": lambda: zoo.pspnet(zoo.TimmResNet(*zoo.BASIC[0], 8, True), 512, 128, True, 256),
        "pspnet_resnet18_half": lambda: zoo.pspnet(zoo.TimmResNet(*zoo.BASIC[0], 8, True, 0.5), 256, 64, True, 128),
        "pspnet_resnet50": lambda: zoo.pspnet(zoo.TimmResNet(*zoo.BOTTLE[0], 8, True), 2048, 512, True, 1024),
        "pspnet_resnet101": lambda: zoo.pspnet(zoo.TimmResNet(*zoo.BOTTLE[1], 8, True), 2048, 512, True, 1024),
        "pspnet_mobilenetv2": lambda: zoo.mobile_pspnet(1.0, 320, 128, 96),
        "pspnet_efficientnet_lite0": lambda: zoo.pspnet(zoo.lite0(16), 320, 128, aux=112),
        "enet": lambda: zoo.Single(counts.enet()),
        "espnet": espnet,
        "lraspp_mobilenetv3_large": lraspp,
    }
    if name not in makers:
        raise Absent(f"no {name} here")
    model = makers[name]()
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Dropout, torch.nn.Dropout2d)):
            layer.p = 0.0
    ours = load_file(weights)
    with torch.no_grad():
        for key, tensor in zoo.named(model).items():
            # ESPNet's code has layers that it never uses.
            if key in ours:
                tensor.copy_(ours.pop(key))
    assert not ours, f"{name}: not found here: {sorted(ours)[:3]}"
    return model


def with_features(model):
    """The features that PSD compares, besides the outputs."""
    found = {}
    model.backbone.register_forward_hook(lambda _m, _i, out: found.update(stages=list(out)))
    model.classifier.bottleneck.register_forward_hook(lambda _m, _i, out: found.update(head=out))
    return found


class Step:
    """A whole training step."""

    ways = tuple(FORMATS)

    def __init__(self, case):
        self.case, tensors = case, load_file(case["inputs"])
        self.images, self.labels = tensors["images"], tensors["labels"].long()
        self.model = network(case["network"], case["classes"], case["weights"]).train()
        self.teacher = None
        if case["teacher"] is not None:
            self.teacher = network(case["teacher"], case["classes"], case["teacher_weights"]).eval()
            self.features = [with_features(self.model), with_features(self.teacher)]
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=case["rate"], momentum=0.9, weight_decay=1e-4)

    def use(self, way):
        for model in filter(None, (self.model, self.teacher)):
            model.to(memory_format=FORMATS[way])
        self.images = formatted(self.images, way)
        for state in self.optimiser.state.values():
            state["momentum_buffer"] = formatted(state["momentum_buffer"], way)

    def cross_entropy(self, logits):
        logits = F.interpolate(logits, size=self.labels.shape[1:], mode="bilinear", align_corners=True)
        return F.cross_entropy(logits, self.labels, ignore_index=IGNORED)

    def run(self):
        import similarity

        self.optimiser.zero_grad()
        outputs = self.model(self.images)
        loss = self.cross_entropy(outputs["logits"])
        if "aux_logits" in outputs:
            loss = loss + self.case["aux"] * self.cross_entropy(outputs["aux_logits"])
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher(self.images)
            layers = [[*found["stages"], found["head"]] for found in self.features]
            loss = loss + self.case["psd"] * similarity.psd(*layers, reduction="resolution_normalised")
            loss = loss + self.case["csd"] * similarity.csd(outputs["logits"], taught["logits"])
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)["logits"]


class Infer:
    """The forward pass of a network."""

    def __init__(self, case):
        self.images = load_file(case["inputs"])["images"]
        self.model = Logits(network(case["network"], case["classes"], case["weights"]).eval())
        self.session, self.way = exported(self.model, self.images), None
        self.ways = (*FORMATS, "onnxruntime") if self.session else tuple(FORMATS)

    def use(self, way):
        self.way = way
        if way in FORMATS:
            self.model.to(memory_format=FORMATS[way])
            self.images = formatted(self.images, way)

    @torch.no_grad()
    def run(self):
        if self.way == "onnxruntime":
            logits = self.session.run(None, {"images": self.images.contiguous().numpy()})[0]
            return float(abs(logits).mean())
        return float(self.model(self.images).abs().mean())


def averaging(size, bins):
    """The matrix of an adaptive average pooling along one axis, [bins,size]."""
    matrix = torch.zeros(bins, size)
    for index in range(bins):
        first, end = index * size // bins, -(-(index + 1) * size // bins)
        matrix[index, first:end] = 1.0 / (end - first)
    return matrix


def pooled(x, bins):
    height, width = bins if isinstance(bins, (tuple, list)) else (bins, bins)
    return averaging(x.shape[2], height) @ x @ averaging(x.shape[3], width).T


def exported(model, images):
    """A session of onnxruntime, or nothing where it or the exporter is missing or cannot export this network."""
    pool = F.adaptive_avg_pool2d
    try:
        import io

        import onnxruntime

        file = io.BytesIO()
        # ONNX has no adaptive pooling whose windows differ in size.
        F.adaptive_avg_pool2d = pooled
        with torch.no_grad():
            torch.onnx.export(model, (images,), file, input_names=["images"], dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        return onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # Whatever it cannot export is timed without it.
        print(f"onnxruntime: {type(error).__name__}: {str(error).splitlines()[:1]}", file=sys.stderr)
        return None
    finally:
        F.adaptive_avg_pool2d = pool
        model.eval()


KINDS = {"convolution": Convolution, "operation": Operation, "loss": Loss, "step": Step, "infer": Infer}


def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def begin_peak():
    """Forgets the most memory so far; what is resident, in MB, or nothing where the system does not allow it."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS:")
    except OSError:
        return None


def prepare(case):
    before = begin_peak()
    made = KINDS[case["kind"]](case)
    made.use(made.ways[0])
    if case["kind"] == "loss":
        # Of a step its network and data count too, of a loss what it adds to its inputs.
        before = begin_peak()
    value = made.run()
    for _ in range(1, WARM_UP):
        made.run()
    measured = before is not None and case["kind"] in ("step", "loss")
    peak = status("VmHWM:") - before if measured else None
    for way in made.ways:
        made.use(way)
        for _ in range(WARM_UP):
            made.run()
    return made, {"ways": made.ways, "value": value, "peak_mb": peak}


def mean(made, seconds):
    begun, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - begun < seconds:
        made.run()
        runs += 1
    return (time.perf_counter() - begun) / runs


def timed(made, way, seconds):
    made.use(way)
    first = mean(made, seconds)
    return {"ms": 1e3 * (first if first > LONG_RUN * seconds else mean(made, seconds))}


def main():
    # Whatever a library prints goes to standard error: standard output is for answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(sys.argv[1]))
    made = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if "prepare" in question:
                made = None
                made, answer = prepare(question["prepare"])
            else:
                answer = timed(made, question["run"], question["seconds"])
        except Absent as reason:
            answer = {"absent": str(reason)}
        except Exception as error:  # The program says it and ends.
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
