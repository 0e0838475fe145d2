"""Reference values and gradients of the similarity losses, from PyTorch in double precision.

Written from the formulas in docs/losses/dsd.md and docs/losses/pixel_kd.md, independently of the Rust code: every
gradient comes from autograd, every vector is normalised by torch.nn.functional.normalize.

    python similarity.py            writes similarity.safetensors beside this file

Layout: `SET/student.I`, `SET/teacher.I` feature layers, `SET/student.logits`, `SET/teacher.logits`, `SET/valid.NAME`
pixel masks; for each case `CASE/value` and `CASE/grad.I` or `CASE/grad.logits`, the gradient of the value. The one
metadata key `reference` holds JSON: tool versions, seed, names of the cases.
"""

import json
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

SEED = 20211
REFERENCE_POSITIONS = 65 * 65


def mask_at(valid, size):
    """The mask on a grid, float [N,1,h,w]; all ones without a mask."""
    if valid is None:
        return None
    return F.interpolate(valid.double().unsqueeze(1), size=size, mode="nearest")


def counts(mask, batch, size):
    """Counted positions of the batch, and images with one."""
    if mask is None:
        return batch * size[0] * size[1], batch
    per_image = mask.flatten(1).sum(1)
    return per_image.sum().item(), int((per_image > 0).sum())


def attention(features, power, size, mask):
    energy = features.abs().pow(power).mean(1, keepdim=True)
    if tuple(energy.shape[2:]) != tuple(size):
        energy = F.interpolate(energy, size=size, mode="bilinear", align_corners=True)
    if mask is not None:
        energy = energy * mask
    return F.normalize(energy.flatten(1), dim=1)


def psd(student, teacher, valid=None, pairs="adjacent", power=2, normalise=True, reduction="squared_mean"):
    layers = range(len(student))
    chosen = [(l, m) for l in layers for m in layers if l < m and (pairs == "all" or m == l + 1)]
    terms = []
    for l, m in chosen:
        size = min((tuple(f.shape[2:]) for f in (student[l], student[m], teacher[l], teacher[m])), key=lambda s: s[0] * s[1])
        mask = mask_at(valid, size)
        positions, images = counts(mask, len(student[0]), size)
        residuals = []
        for side in (student, [t.detach() for t in teacher]):
            residual = attention(side[m], power, size, mask) - attention(side[l], power, size, mask)
            residuals.append(F.normalize(residual, dim=1) if normalise else residual)
        squared = (residuals[0] - residuals[1]).pow(2).sum(1)
        if mask is not None:  # images without a counted position: no difference, and no square root at 0
            squared = squared[mask.flatten(1).sum(1) > 0]
        terms.append({
            "squared_mean": lambda: squared.sum() / positions,
            "resolution_normalised": lambda: squared.sum() / images / REFERENCE_POSITIONS,
            "squared_sum": lambda: squared.sum() / images,
            "norm": lambda: squared.sqrt().sum() / images,
        }[reduction]())
    return sum(terms) / len(terms)


def correlation(logits, valid, axis, normalise, pool, tau):
    if pool:
        logits = F.avg_pool2d(logits, kernel_size=2, stride=2, ceil_mode=True)
    mask = mask_at(valid, logits.shape[2:])
    flat = logits.flatten(2) / tau
    if axis == "classes":
        probs = torch.softmax(flat, dim=1)
        if mask is not None:
            probs = probs * mask.flatten(2)
    else:
        weights = torch.exp(flat - flat.amax(dim=2, keepdim=True))
        if mask is not None:
            weights = weights * mask.flatten(2)
        probs = weights / weights.sum(2, keepdim=True).clamp_min(1e-300)
    if normalise:
        probs = F.normalize(probs, dim=2)
    return torch.einsum("bip,bjp->bij", probs, probs), counts(mask, len(logits), logits.shape[2:])[1]


def same_grid(student, teacher):
    if student.shape[2:] != teacher.shape[2:]:
        student = F.interpolate(student, size=teacher.shape[2:], mode="bilinear", align_corners=True)
    return student, teacher.detach()


def csd(student, teacher, valid=None, axis="classes", normalise=True, pool=False, tau=4.0):
    student, teacher = same_grid(student, teacher)
    of_student, images = correlation(student, valid, axis, normalise, pool, tau)
    of_teacher, _ = correlation(teacher, valid, axis, normalise, pool, tau)
    return (of_student - of_teacher).pow(2).sum() / (images * student.shape[1] ** 2)


def pixel_kd(student, teacher, valid=None, temperature=1.0):
    student, teacher = same_grid(student, teacher)
    log_p = F.log_softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1, keepdim=True)
    if valid is None:
        return temperature**2 * kl.mean()
    mask = mask_at(valid, teacher.shape[2:])
    return temperature**2 * (kl * mask).sum() / mask.sum()


def tensors():
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    sets = {
        # One grid, other channels; odd sizes so that pooling meets a partial window.
        "even": {
            "student": [normal(2, c, 5, 7) for c in (3, 4, 2)],
            "teacher": [normal(2, c, 5, 7) for c in (6, 5, 7)],
            "student.logits": normal(2, 4, 5, 7, scale=2),
            "teacher.logits": normal(2, 4, 5, 7, scale=4),
        },
        # Other strides everywhere, one image.
        "mixed": {
            "student": [normal(1, 2, 9, 12), normal(1, 3, 5, 6), normal(1, 1, 5, 6), normal(1, 4, 3, 3)],
            "teacher": [normal(1, 5, 10, 13), normal(1, 4, 10, 13), normal(1, 3, 5, 7), normal(1, 2, 5, 7)],
            "student.logits": normal(1, 3, 9, 12, scale=2),
            "teacher.logits": normal(1, 3, 5, 7, scale=4),
        },
    }
    valid = (torch.rand(2, 20, 28, generator=generator) > 0.3).to(torch.uint8)
    sets["even"]["valid.some"] = valid
    one_image = valid.clone()
    one_image[0] = 0
    sets["even"]["valid.one_image"] = one_image
    sets["mixed"]["valid.some"] = (torch.rand(1, 18, 24, generator=generator) > 0.3).to(torch.uint8)
    return sets


CIRKD_CSD = {"axis": "positions", "normalise": False, "pool": True}
PSD_CASES = {
    "paper_reading": {},
    "cirkd_compat": {"pairs": "all"},
    "power_1": {"power": 1},
    "power_3": {"power": 3},
    "raw_residual": {"normalise": False},
    "resolution_normalised": {"reduction": "resolution_normalised"},
    "squared_sum": {"reduction": "squared_sum"},
    "norm": {"reduction": "norm"},
    "valid": {"valid": "some"},
    "valid_one_image": {"valid": "one_image"},
    "valid_one_image_resolution_normalised": {"valid": "one_image", "reduction": "resolution_normalised"},
}
PSD_MIXED_CASES = {"mixed_adjacent": {}, "mixed_all": {"pairs": "all"}, "mixed_valid": {"valid": "some"}}
CSD_CASES = {
    "paper_reading": {},
    "cirkd_compat": CIRKD_CSD,
    "temperature_1": {"tau": 1.0},
    "pooled": {"pool": True},
    "raw_maps": {"normalise": False},
    "positions_normalised": {"axis": "positions"},
    "valid": {"valid": "some"},
    "valid_cirkd_compat": {"valid": "some", **CIRKD_CSD},
    "valid_one_image": {"valid": "one_image"},
}
CSD_MIXED_CASES = {"mixed": {}, "mixed_cirkd_compat": CIRKD_CSD, "mixed_valid": {"valid": "some"}}
KD_CASES = {
    "temperature_1": {},
    "temperature_4": {"temperature": 4.0},
    "valid": {"valid": "some", "temperature": 2.0},
    "valid_one_image": {"valid": "one_image"},
}
KD_MIXED_CASES = {"mixed": {"temperature": 2.0}, "mixed_valid": {"valid": "some"}}


def main():
    sets = tensors()
    stored, cases = {}, []
    for name, members in sets.items():
        for key, value in members.items():
            for index, layer in enumerate(value if isinstance(value, list) else [None]):
                stored[f"{name}/{key}" if layer is None else f"{name}/{key}.{index}"] = value if layer is None else layer

    def add(case, set_name, loss, settings, inputs):
        members = sets[set_name]
        settings = dict(settings)
        if "valid" in settings:
            settings["valid"] = members["valid." + settings["valid"]]
        features = [f.clone().requires_grad_() for f in members["student"]]
        logits = members["student.logits"].clone().requires_grad_()
        value = loss(features, logits, members, settings)
        value.backward()
        stored[f"{case}/value"] = value.detach().reshape(1)
        if "features" in inputs:
            stored.update({f"{case}/grad.{i}": f.grad for i, f in enumerate(features)})
        if "logits" in inputs:
            stored[f"{case}/grad.logits"] = logits.grad
        cases.append(case)

    on_features = lambda f, z, members, settings: psd(f, members["teacher"], **settings)
    for set_name, table in (("even", PSD_CASES), ("mixed", PSD_MIXED_CASES)):
        for name, settings in table.items():
            add(f"psd/{name}", set_name, on_features, settings, ["features"])
    for loss, kind, tables in (
        (csd, "csd", (("even", CSD_CASES), ("mixed", CSD_MIXED_CASES))),
        (pixel_kd, "pixel_kd", (("even", KD_CASES), ("mixed", KD_MIXED_CASES))),
    ):
        on_logits = lambda f, z, members, settings, loss=loss: loss(z, members["teacher.logits"], **settings)
        for set_name, table in tables:
            for name, settings in table.items():
                add(f"{kind}/{name}", set_name, on_logits, settings, ["logits"])
    for name, of_psd, of_csd in (("paper_reading", {}, {}), ("cirkd_compat", {"pairs": "all"}, CIRKD_CSD)):
        both = lambda f, z, members, settings: 1000 * psd(f, members["teacher"], **of_psd, **settings) + 10 * csd(
            z, members["teacher.logits"], **of_csd, **settings
        )
        add(f"dsd/{name}", "even", both, {}, ["features", "logits"])
        add(f"dsd/{name}_valid", "even", both, {"valid": "some"}, ["features", "logits"])

    about = {
        "cases": cases,
        "python": platform.python_version(),
        "seed": SEED,
        "torch": torch.__version__,
    }
    target = Path(__file__).with_name("similarity.safetensors")
    stored = {key: value.contiguous() for key, value in stored.items()}
    save_file(stored, str(target), metadata={"reference": json.dumps(about, sort_keys=True)})
    print(f"{len(cases)} cases, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
