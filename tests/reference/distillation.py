"""Reference values and gradients of the distillation losses, from PyTorch in double precision.

Written from the formulas in docs/losses/*.md, independently of the Rust code: every gradient comes from autograd,
matrices of places are built whole, ignored positions are cut out by indexing instead of being multiplied by zero.

    python distillation.py            writes distillation.safetensors beside this file

Layout: `SET/NAME` inputs (student, teacher: one feature or logits; student.deep, teacher.deep: a second layer; labels;
valid; memory); for each case `CASE/value` and `CASE/grad`, the gradient with respect to SET/student. A case is called
LOSS/SETTINGS/SET or LOSS/SETTINGS/SET/valid. The one metadata key `reference` holds JSON: versions, seed, case names.
"""

import json
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

SEED = 20215
IGNORED = -1


def shrink(student, teacher):
    """The finer feature on the grid of the coarser."""
    a, b = student.shape[2:], teacher.shape[2:]
    size = b if b[0] * b[1] < a[0] * a[1] else a
    resize = lambda x: x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=True)
    return resize(student), resize(teacher)


def to_teacher(student, teacher):
    if student.shape[2:] == teacher.shape[2:]:
        return student
    return F.interpolate(student, size=teacher.shape[2:], mode="bilinear", align_corners=True)


def kept(valid, like):
    """Boolean [N,h,w] on the grid of a tensor."""
    if valid is None:
        return torch.ones(like.shape[0], *like.shape[2:], dtype=torch.bool)
    return F.interpolate(valid.double().unsqueeze(1), size=like.shape[2:], mode="nearest").squeeze(1) > 0.5


def attention_transfer(x, valid, reduction="mean", power=2):
    total = 0.0
    for s, t in ((x["student"], x["teacher"]), (x["student.deep"], x["teacher.deep"])):
        s, t = shrink(s.abs().pow(power).mean(1, keepdim=True), t.abs().pow(power).mean(1, keepdim=True))
        keep, distances, count = kept(valid, s), [], 0
        for n in range(len(s)):
            if keep[n].any():
                a, b = (F.normalize(y[n, 0][keep[n]], dim=0) for y in (s, t))
                distances.append((a - b).pow(2).sum())
                count += int(keep[n].sum())
        if reduction == "mean":
            total = total + sum(distances) / count
        elif reduction == "resolution":
            total = total + sum(distances) / len(distances) / 65**2
        else:
            total = total + sum(d.sqrt() for d in distances) / len(distances)
    return total


def fitnet(x, valid):
    s, t = shrink(x["student"], x["teacher"])
    keep = kept(valid, s)
    return (s.permute(0, 2, 3, 1)[keep] - t.permute(0, 2, 3, 1)[keep]).pow(2).mean()


def windows(x, keep, window, average):
    """Unit features of the places of one image, [places,C]; windows are walked one by one."""
    places = []
    for top in range(0, x.shape[1], window[0]):
        for left in range(0, x.shape[2], window[1]):
            part = x[:, top : top + window[0], left : left + window[1]]
            inside = keep[top : top + window[0], left : left + window[1]]
            if inside.any():
                values = part[:, inside]
                places.append(values.mean(1) if average else values.amax(1))
    return F.normalize(torch.stack(places), dim=1) if places else None


def pairwise_kd(x, valid, window=(1, 1), share=None, average=False):
    s, t = shrink(x["student"], x["teacher"])
    if share is not None:
        window = [max(1, int(side * share)) for side in s.shape[2:]]
    keep, total, pairs = kept(valid, s), 0.0, 0
    for n in range(len(s)):
        a, b = windows(s[n], keep[n], window, average), windows(t[n], keep[n], window, average)
        if a is not None:
            total = total + (a @ a.T - b @ b.T).pow(2).sum()
            pairs += len(a) ** 2
    return total / pairs


def channel_kd(x, valid, temperature=4.0):
    s, t = shrink(x["student"], x["teacher"])
    keep, terms = kept(valid, s), []
    for n in range(len(s)):
        if keep[n].any():
            a, b = (F.log_softmax(y[n][:, keep[n]] / temperature, dim=1) for y in (s, t))
            terms.append(F.kl_div(a, b, log_target=True, reduction="sum") / s.shape[1])
    return temperature**2 * sum(terms) / len(terms)


def class_weighted_pixel_kd(x, valid, temperature=2.0):
    s, t = to_teacher(x["student"], x["teacher"]), x["teacher"]
    keep = kept(valid, t)
    s, t = s.permute(0, 2, 3, 1)[keep], t.permute(0, 2, 3, 1)[keep]
    class_weights = torch.arange(s.shape[1], dtype=torch.float64) * 0.7 + 0.3
    weight = t.softmax(1) @ class_weights
    kl = F.kl_div((s / temperature).log_softmax(1), (t / temperature).log_softmax(1), log_target=True, reduction="none")
    return temperature**2 * (weight * kl.sum(1)).sum() / weight.sum()


def labels_at(labels, valid, like):
    ids = F.interpolate(labels.double().unsqueeze(1), size=like.shape[2:], mode="nearest").squeeze(1).long()
    return torch.where(kept(valid, like), ids, torch.full_like(ids, IGNORED))


def ifvd(x, valid, classes=4):
    s, t = shrink(x["student"], x["teacher"])
    ids, differences = labels_at(x["labels"], valid, s), []
    for n in range(len(s)):
        for k in range(classes):
            here = ids[n] == k
            if here.any():
                cosines = []
                for y in (s, t):
                    members = y[n][:, here].T
                    cosines.append(F.cosine_similarity(members, members.mean(0, keepdim=True), dim=1, eps=1e-30))
                differences.append(cosines[0] - cosines[1])
    return torch.cat(differences).pow(2).mean()


def pearson(a, b):
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (F.normalize(a, dim=1, eps=1e-40) * F.normalize(b, dim=1, eps=1e-40)).sum(1)


def dist_kd(x, valid, inter=1.0, intra=1.0, temperature=1.0):
    s, t = to_teacher(x["student"], x["teacher"]), x["teacher"]
    keep = kept(valid, t)
    q, p = ((y / temperature).permute(0, 2, 3, 1)[keep].softmax(1) for y in (s, t))
    between, within = 1 - pearson(q, p).mean(), 1 - pearson(q.T, p.T).mean()
    return temperature**2 * (inter * between + intra * within)


def relation(rows_s, columns_s, rows_t, columns_t, temperature):
    a, b = (rows_s @ columns_s.T / temperature).log_softmax(1), (rows_t @ columns_t.T / temperature).log_softmax(1)
    return F.kl_div(a, b, log_target=True, reduction="sum")


def cross_image_kd(x, valid, temperature=0.1, pool=1):
    s, t = shrink(x["student"], x["teacher"])
    keep = kept(valid, s)
    places = [[windows(y[n], keep[n], (pool, pool), True) for n in range(len(s))] for y in (s, t)]
    places = [[p for p in side if p is not None] for side in places]
    total = 0.0
    for i in range(len(places[0])):
        for j in range(len(places[0])):
            total = total + relation(places[0][i], places[0][j], places[1][i], places[1][j], temperature)
    return total / (sum(map(len, places[0])) * len(places[0]))


def memory_contrast(x, valid, contrast=0.1, temperature=1.0):
    s, t = shrink(x["student"], x["teacher"])
    keep = kept(valid, s)
    s, t = (F.normalize(y.permute(0, 2, 3, 1)[keep], dim=1) for y in (s, t))
    m = x["memory"]
    return temperature**2 * relation(s, m, t, m, contrast * temperature) / len(s)


CASES = {
    "attention_transfer": (attention_transfer, {
        "published": {}, "resolution": {"reduction": "resolution"}, "norm_power_1": {"reduction": "norm", "power": 1},
    }),
    "fitnet": (fitnet, {"plain": {}}),
    "pairwise_kd": (pairwise_kd, {
        "published": {"share": 0.5}, "cirkd": {"window": (2, 2)}, "unpooled": {},
        "averages": {"window": (2, 3), "average": True}, "large": {"window": (9, 3)},
    }),
    "channel_kd": (channel_kd, {"published": {}, "temperature_1": {"temperature": 1.0}}),
    "class_weighted_pixel_kd": (class_weighted_pixel_kd, {"temperature_2": {}}),
    "ifvd": (ifvd, {"plain": {}}),
    "dist_kd": (dist_kd, {"published": {}, "temperature_2": {"inter": 0.5, "intra": 2.0, "temperature": 2.0}}),
    "cross_image_kd": (cross_image_kd, {"published": {}, "averaged": {"temperature": 0.5, "pool": 2}}),
    "memory_contrast": (memory_contrast, {"published": {}, "temperature_2": {"contrast": 0.3, "temperature": 2.0}}),
}


def tensors():
    generator = torch.Generator().manual_seed(SEED)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64) * 1.5
    sets = {}
    # "even": one grid of odd sizes. "mixed": another stride on each side, and other channels where a loss permits.
    for name, own, other, deep in (("even", (7, 5), (7, 5), (7, 5)), ("mixed", (9, 7), (5, 6), (4, 4))):
        images = 2
        sets[name] = {
            "student": normal(images, 4, *own),
            "teacher": normal(images, 4, *other),
            "student.deep": normal(images, 3, *deep),
            "teacher.deep": normal(images, 5, *other),
            "labels": torch.randint(0, 5, (images, 14, 10), generator=generator, dtype=torch.uint8),
            "valid": (torch.rand(images, 14, 10, generator=generator) > 0.3).to(torch.uint8),
            "memory": F.normalize(normal(11, 4), dim=1),
        }
    wide = dict(sets["mixed"], teacher=normal(2, 6, 5, 6))
    sets["wide"] = wide
    return sets


FREE_CHANNELS = ("attention_transfer", "pairwise_kd", "ifvd", "cross_image_kd")


def main():
    sets, stored, names = tensors(), {}, []
    for name, members in sets.items():
        stored.update({f"{name}/{key}": value.clone() for key, value in members.items()})
    for loss, (function, settings) in CASES.items():
        for setting, arguments in settings.items():
            for name in sets if loss in FREE_CHANNELS else ("even", "mixed"):
                for masked in (False, True):
                    members = dict(sets[name])
                    members["student"] = members["student"].clone().requires_grad_()
                    value = function(members, members["valid"] if masked else None, **arguments)
                    value.backward()
                    case = f"{loss}/{setting}/{name}" + ("/valid" if masked else "")
                    stored[f"{case}/value"] = value.detach().reshape(1)
                    stored[f"{case}/grad"] = members["student"].grad
                    names.append(case)
    about = {"cases": names, "python": platform.python_version(), "seed": SEED, "torch": torch.__version__}
    target = Path(__file__).with_name("distillation.safetensors")
    stored = {key: value.contiguous() for key, value in stored.items()}
    save_file(stored, str(target), metadata={"reference": json.dumps(about, sort_keys=True)})
    print(f"{len(names)} cases, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
