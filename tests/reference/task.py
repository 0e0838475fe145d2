"""Reference values and gradients of the task losses, from PyTorch in double precision.

Written from the formulas in docs/losses, independently of the Rust code: every gradient comes from autograd, every sort
from torch.sort, every window from conv2d. Where segmentation_models_pytorch, torchvision or PyTorch itself defines the
same loss, its value and gradient are stored as the case, and the formula here is checked against it first.

    python task.py            writes task.safetensors beside this file

Layout: `SET/logits`, `SET/teacher` f64 `[N,C,H,W]`, `SET/labels` u8 `[N,H,W]`, 255 ignored, `SET/valid` u8; for each
case `CASE/value` and `CASE/grad`, the gradient at the logits. The one metadata key `reference` holds JSON: tool
versions, seed, and for each case its name, function, set and settings.
"""

import json
import platform
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file

SEED = 20222
IGNORED = 255


def one_hot(labels, classes):
    """[N,C,H,W], 0 in all classes at ignored pixels."""
    return torch.stack([(labels == c).double() for c in range(classes)], 1)


def label_log_probs(logits, labels):
    return (F.log_softmax(logits, 1) * one_hot(labels, logits.shape[1])).sum(1)


def pixel_weights(labels, class_weights):
    if class_weights is None:
        return (labels != IGNORED).double()
    return (one_hot(labels, len(class_weights)) * torch.tensor(class_weights).double().view(1, -1, 1, 1)).sum(1)


def cross_entropy(logits, labels, class_weights=None):
    weight = None if class_weights is None else torch.tensor(class_weights).double()
    return F.cross_entropy(logits, labels.long(), weight=weight, ignore_index=IGNORED)


def ohem(logits, labels, threshold, pixels=None, share=None, class_weights=None):
    weights = pixel_weights(labels, class_weights).flatten()
    log_p = label_log_probs(logits, labels).flatten()
    counted = torch.nonzero(weights > 0).flatten()
    order = counted[torch.sort(log_p.detach()[counted], stable=True).indices]
    minimum = min(len(order), pixels if pixels is not None else -int(-share * len(order) // 1))
    kept = order[: max(minimum, int((log_p.detach()[order].exp() < threshold).sum()))]
    return (-log_p[kept] * weights[kept]).sum() / weights[kept].sum()


def ohem_of_code_bases(logits, labels, threshold, pixels):
    """Kept: p below the greater of the threshold and the (pixels + 1)-th smallest p. Without ties and with more counted
    pixels than `pixels`, the same set."""
    probs = label_log_probs(logits, labels).exp()[labels != IGNORED]
    limit = max(probs.sort().values[min(pixels, len(probs) - 1)].item(), threshold)
    loss = F.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction="none")[labels != IGNORED]
    return loss[probs < limit].mean()


def focal(logits, labels, gamma, class_weights=None):
    counted = labels != IGNORED
    weights, log_p = pixel_weights(labels, class_weights)[counted], label_log_probs(logits, labels)[counted]
    return (weights * (1 - log_p.exp()) ** gamma * -log_p).sum() / weights.sum()


def dice(logits, labels, smoothing=0.0, squared=False, classes="present", scope="batch"):
    if scope == "image":
        parts = [
            dice(z.unsqueeze(0), l.unsqueeze(0), smoothing, squared, classes)
            for z, l in zip(logits, labels)
            if (l != IGNORED).any()
        ]
        return sum(parts) / len(parts)
    counted = (labels != IGNORED).double().unsqueeze(1)
    p, y = F.softmax(logits, 1) * counted, one_hot(labels, logits.shape[1])
    over = (0, 2, 3)
    score = (2 * (p * y).sum(over) + smoothing) / ((p**2 if squared else p).sum(over) + y.sum(over) + smoothing)
    held = [c for c in range(logits.shape[1]) if classes == "all" or (labels == c).any()]
    return sum(1 - score[c] for c in held) / len(held)


def lovasz(logits, labels, classes="present", scope="batch"):
    if scope == "image":
        parts = [
            lovasz(z.unsqueeze(0), l.unsqueeze(0), classes) for z, l in zip(logits, labels) if (l != IGNORED).any()
        ]
        return sum(parts) / len(parts)
    p = F.softmax(logits, 1).movedim(1, -1)[labels != IGNORED]
    labels = labels[labels != IGNORED]
    parts = []
    for c in range(p.shape[1]):
        y = (labels == c).double()
        if classes == "present" and y.sum() == 0:
            continue
        errors, order = torch.where(y > 0, 1 - p[:, c], p[:, c]).sort(descending=True)
        wrong, previous, total = set(), 0.0, 0.0
        truth = set(torch.nonzero(y).flatten().tolist())
        for error, pixel in zip(errors, order.tolist()):
            # The Jaccard loss of predicting the class everywhere it should be but at the pixels met so far.
            wrong.add(pixel)
            predicted = truth ^ wrong
            jaccard = 1 - len(truth & predicted) / len(truth | predicted)
            total = total + error * (jaccard - previous)
            previous = jaccard
        parts.append(total)
    return sum(parts) / len(parts)


def window(size, std):
    axis = torch.arange(size).double() - size // 2
    taps = torch.exp(-0.5 * (axis / std) ** 2)
    return torch.outer(taps, taps) / torch.outer(taps, taps).sum()


def blur(x, taps, padding):
    half = taps.shape[0] // 2
    n, c, h, w = x.shape
    x = F.pad(x, (half,) * 4, mode="constant" if padding == "zero" else "replicate")
    return F.conv2d(x.reshape(n * c, 1, *x.shape[2:]), taps[None, None]).reshape(n, c, h, w)


def standardise(x, counted, size, std, deviation, padding, c4, eps):
    if deviation == "whole_map":
        pixels = counted.sum((2, 3), keepdim=True).clamp_min(1)
        mean = x.sum((2, 3), keepdim=True) / pixels
        variance = (counted * (x - mean) ** 2).sum((2, 3), keepdim=True) / pixels
    else:
        taps = window(size, std)
        mean = blur(x, taps, padding)
        if deviation == "window":
            squares = blur(x**2, taps, padding)
            # Nothing but rounding in flat windows.
            variance = torch.where(squares - mean**2 > 1e-14 * squares, squares - mean**2, 0 * squares)
        else:
            variance = blur((x - mean) ** 2, taps, padding)
    return (x - mean + c4) / ((variance.clamp_min(0) + eps).sqrt() + c4)


def log_probs(logits, probability):
    """ln p and ln(1 - p)."""
    if probability == "sigmoid":
        return F.logsigmoid(logits), F.logsigmoid(-logits)
    log_p = F.log_softmax(logits, 1)
    others = [
        torch.logsumexp(torch.cat([log_p[:, :c], log_p[:, c + 1 :]], 1), 1) for c in range(logits.shape[1])
    ]
    return log_p, torch.stack(others, 1)


def entropy(q):
    return torch.where(q > 0, q * q.clamp_min(1e-300).log(), torch.zeros_like(q))


def ssl(
    logits,
    target,
    counted,
    probability="sigmoid",
    window_size=3,
    window_std=1.5,
    deviation="window",
    padding="replicate",
    stabiliser=0.01,
    variance_floor=1e-8,
    mining="batch",
    level=0.1,
    differentiate_error=True,
    entropy_mean="pixels",
    lam=0.5,
):
    counted = counted.double().unsqueeze(1)
    n, classes, h, w = logits.shape
    log_p, log_rest = log_probs(logits, probability)
    p, y = log_p.exp() * counted, target * counted
    how = (counted, window_size, window_std, deviation, padding, stabiliser, variance_floor)
    e = (standardise(y, *how) - standardise(p, *how)).abs() * counted
    if padding == "valid" and deviation != "whole_map":
        half = window_size // 2
        inside = torch.zeros(h, w).double()
        inside[half : h - half, half : w - half] = 1
        e = e * inside
    reach = e.detach()
    if mining == "batch":
        f = reach > level * reach.max()
    elif mining == "map":
        f = reach > level * reach.amax((2, 3), keepdim=True)
    elif mining == "bound":
        centre = window(window_size, window_std)[window_size // 2, window_size // 2].item()
        share = (1 - centre) / centre if deviation == "window" else 1 / centre
        f = reach > level * 2 * share**0.5
    else:
        f = reach > level
    b = entropy(y) + entropy(1 - y) - y * log_p - (1 - y) * log_rest
    structure = ((e if differentiate_error else reach) * f * b * counted).sum() / f.sum()
    plain = b if probability == "sigmoid" else entropy(y) - y * log_p
    divisor = counted.sum() * (classes if entropy_mean == "elements" else 1)
    return lam * (plain * counted).sum() / divisor + (1 - lam) * structure


def tensors():
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape, scale):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    def labels(shape, classes, ignored):
        drawn = torch.randint(0, classes, shape, generator=generator)
        # Blocks of two by two, so that windows meet flat places as well as edges.
        drawn = drawn[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)[:, : shape[1], : shape[2]]
        drop = torch.rand(shape, generator=generator) < ignored
        return drawn.masked_fill(drop, IGNORED).to(torch.uint8)

    sets = {
        # The last class is absent.
        "even": {
            "logits": normal(2, 5, 6, 7, scale=2),
            "teacher": normal(2, 5, 6, 7, scale=3),
            "labels": labels((2, 6, 7), 4, 0.2),
        },
        "one": {"logits": normal(1, 3, 9, 4, scale=1), "teacher": normal(1, 3, 9, 4, scale=2), "labels": labels((1, 9, 4), 3, 0.0)},
        "two_classes": {"logits": normal(2, 2, 5, 4, scale=2), "teacher": normal(2, 2, 5, 4, scale=2), "labels": labels((2, 5, 4), 2, 0.1)},
    }
    # The first image counts nothing.
    half = dict(sets["even"])
    half["labels"] = half["labels"].clone()
    half["labels"][0] = IGNORED
    sets["half"] = half
    for members in sets.values():
        members["valid"] = (members["labels"] != IGNORED).to(torch.uint8)
    return sets


WEIGHTS = [0.5, 2.0, 0.0, 1.25, 3.0]


def cases():
    """Name, function, set, settings as the Rust test reads them."""
    yield "cross_entropy/plain", "cross_entropy", "even", {}
    yield "cross_entropy/weighted", "cross_entropy", "even", {"class_weights": WEIGHTS}
    for name, where, settings in [
        ("threshold", "even", {"threshold": 0.3, "pixels": 5}),
        ("minimum", "even", {"threshold": 0.001, "pixels": 20}),
        ("all", "even", {"threshold": 0.3, "pixels": 1000}),
        ("share", "even", {"threshold": 0.0, "share": 0.25}),
        ("one_image", "half", {"threshold": 0.0, "share": 0.5}),
        ("weighted", "even", {"threshold": 0.2, "pixels": 24, "class_weights": WEIGHTS}),
        ("one", "one", {"threshold": 0.7, "pixels": 3}),
    ]:
        yield f"ohem/{name}", "ohem", where, settings
    yield "ohem/code_bases", "ohem_of_code_bases", "even", {"threshold": 0.1, "pixels": 20}
    for name, where, settings in [
        ("gamma_2", "even", {"gamma": 2.0}),
        ("gamma_0", "even", {"gamma": 0.0}),
        ("gamma_half", "even", {"gamma": 0.5}),
        ("gamma_1", "one", {"gamma": 1.0}),
        ("weighted", "even", {"gamma": 2.0, "class_weights": WEIGHTS}),
        ("one_image", "half", {"gamma": 3.0}),
    ]:
        yield f"focal/{name}", "focal", where, settings
    yield "focal/torchvision", "focal_of_torchvision", "two_classes", {"gamma": 2.0}
    for name, where, settings in [
        ("plain", "even", {}),
        ("smoothing", "even", {"smoothing": 1.0}),
        ("squared", "even", {"squared": True, "smoothing": 0.5}),
        ("all", "even", {"classes": "all", "smoothing": 1.0}),
        ("image", "even", {"scope": "image"}),
        ("image_all", "half", {"scope": "image", "classes": "all", "squared": True}),
        ("one", "one", {"scope": "image"}),
    ]:
        yield f"dice/{name}", "dice", where, settings
    for smoothing in (0.0, 1.0):
        yield f"dice/smp_{smoothing:.0f}", "dice_of_smp", "even", {"smoothing": smoothing}
    for name, where, settings in [
        ("present", "even", {}),
        ("all", "even", {"classes": "all"}),
        ("image", "even", {"scope": "image"}),
        ("image_all", "half", {"scope": "image", "classes": "all"}),
        ("one", "one", {}),
    ]:
        yield f"lovasz/{name}", "lovasz", where, settings
    yield "lovasz/smp_batch", "lovasz_of_smp", "even", {"scope": "batch"}
    yield "lovasz/smp_image", "lovasz_of_smp", "even", {"scope": "image"}
    switches = {
        "paper_reading": {},
        "softmax": {"probability": "softmax"},
        "window_5": {"window_size": 5, "window_std": 0.8},
        "deviations": {"deviation": "window_of_deviations"},
        "whole_map": {"deviation": "whole_map"},
        "zero": {"padding": "zero"},
        "zero_deviations": {"padding": "zero", "deviation": "window_of_deviations"},
        "valid": {"padding": "valid"},
        "per_map": {"mining": "map"},
        "bound": {"mining": "bound", "level": 0.2},
        "bound_deviations": {"mining": "bound", "level": 0.2, "deviation": "window_of_deviations"},
        "absolute": {"mining": "absolute", "level": 0.3},
        "weighing_only": {"differentiate_error": False},
        "elements": {"entropy_mean": "elements"},
        "structure_only": {"lam": 0.0, "variance_floor": 0.0},
        "entropy_only": {"lam": 1.0},
        "softmax_elements": {"probability": "softmax", "entropy_mean": "elements", "padding": "zero", "lam": 0.3},
        "softmax_whole_map": {"probability": "softmax", "deviation": "whole_map", "mining": "map", "lam": 0.2},
        "stabiliser": {"stabiliser": 0.1, "lam": 0.1},
    }
    for name, settings in switches.items():
        yield f"ssl/{name}", "ssl", "even", settings
        yield f"ssl_distillation/{name}", "ssl_distillation", "even", settings
    for where in ("one", "half", "two_classes"):
        yield f"ssl/{where}", "ssl", where, {}
        yield f"ssl/{where}_softmax", "ssl", where, {"probability": "softmax"}
        yield f"ssl_distillation/{where}", "ssl_distillation", where, {}


def evaluate(function, z, members, settings):
    labels, classes = members["labels"], z.shape[1]
    counted = labels != IGNORED
    if function == "ssl":
        return ssl(z, one_hot(labels, classes), counted, **settings)
    if function == "ssl_distillation":
        target = log_probs(members["teacher"], settings.get("probability", "sigmoid"))[0].exp()
        return ssl(z, target, counted, **settings)
    if function == "ohem_of_code_bases":
        value = ohem_of_code_bases(z, labels, **settings)
        assert torch.isclose(value, ohem(z, labels, **settings), rtol=1e-12)
        return value
    if function == "focal_of_torchvision":
        # Two classes: the softmax is the sigmoid of the difference.
        difference = (z[:, 1] - z[:, 0])[counted]
        value = torchvision.ops.sigmoid_focal_loss(
            difference, labels[counted].double(), alpha=-1, gamma=settings["gamma"], reduction="mean"
        )
        assert torch.isclose(value, focal(z, labels, **settings), rtol=1e-12)
        return value
    if function == "dice_of_smp":
        # Its mean is over all classes, and an absent one gives 0; its smoothing counts twice, as in Tversky's index.
        present = sum(bool((labels == c).any()) for c in range(classes))
        loss = smp.losses.DiceLoss("multiclass", smooth=settings["smoothing"] / 2, ignore_index=IGNORED)
        value = loss(z, labels.long()) * classes / present
        assert torch.isclose(value, dice(z, labels, **settings), rtol=1e-12)
        return value
    if function == "lovasz_of_smp":
        loss = smp.losses.LovaszLoss("multiclass", per_image=settings["scope"] == "image", ignore_index=IGNORED)
        # It works in single precision alone: its value and gradient are compared, those of the formula stored.
        value, single = lovasz(z, labels, **settings), z.detach().float().requires_grad_()
        theirs = loss(single, labels.long())
        ours, = torch.autograd.grad(value, z, retain_graph=True)
        slopes, = torch.autograd.grad(theirs, single)
        assert torch.isclose(value, theirs.double(), rtol=1e-5), (value, theirs)
        assert (ours - slopes.double()).abs().max() < 1e-5 * ours.abs().max()
        return value
    return {"cross_entropy": cross_entropy, "ohem": ohem, "focal": focal, "dice": dice, "lovasz": lovasz}[function](
        z, labels, **settings
    )


def main():
    torch.set_default_dtype(torch.float64)
    sets, stored, listed = tensors(), {}, []
    for name, members in sets.items():
        stored.update({f"{name}/{key}": value.contiguous().clone() for key, value in members.items()})
    for name, function, where, settings in cases():
        z = sets[where]["logits"].clone().requires_grad_()
        value = evaluate(function, z, sets[where], settings)
        value.backward()
        assert value.isfinite() and z.grad.isfinite().all() and z.grad.abs().max() > 0, name
        stored[f"{name}/value"] = value.detach().double().reshape(1)
        stored[f"{name}/grad"] = z.grad.double()
        listed.append({"name": name, "function": function.split("_of_")[0], "set": where, "settings": settings})
    about = {
        "cases": listed,
        "python": platform.python_version(),
        "seed": SEED,
        "segmentation_models_pytorch": smp.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    target = Path(__file__).with_name("task.safetensors")
    save_file(stored, str(target), metadata={"reference": json.dumps(about, sort_keys=True)})
    print(f"{len(listed)} cases, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
