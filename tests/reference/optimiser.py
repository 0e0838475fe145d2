"""Reference vectors of the optimisers: ten steps with fixed gradients in f64, by PyTorch.

Usage: python tests/reference/optimiser.py  (needs torch and safetensors; writes optimiser.safetensors beside itself)

For each case the file holds `CASE/param0` [n] (the start), `CASE/grads` [10,n] (the gradient of each step) and
`CASE/params` [10,n] (the parameters after each step). The one metadata entry `reference` is JSON: tool versions, the
seed, and for each case the optimiser, its settings and `lr`, the learning rate of each of the ten steps. Running the
script again with the same versions writes the same bytes.
"""

import json
import pathlib
import platform

import torch
from safetensors.torch import save_file

SEED = 20240608
STEPS = 10
SIZE = 7
CONSTANT = [0.1] * STEPS
# A poly schedule: a changing rate shows whether momentum holds gradients (right) or gradients times the rate (wrong).
POLY = [0.1 * (1 - step / STEPS) ** 0.9 for step in range(STEPS)]

CASES = {
    "sgd_plain": ("sgd", CONSTANT, {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}),
    "sgd_momentum": ("sgd", CONSTANT, {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0}),
    "sgd_momentum_weight_decay_poly": ("sgd", POLY, {"momentum": 0.9, "nesterov": False, "weight_decay": 0.05}),
    "sgd_nesterov_weight_decay_poly": ("sgd", POLY, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    "adamw": ("adamw", CONSTANT, {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}),
    "adamw_weight_decay_poly": ("adamw", POLY, {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.3}),
}


def run(kind, rates, settings, start, gradients):
    parameter = start.clone().requires_grad_()
    if kind == "sgd":
        optimiser = torch.optim.SGD([parameter], lr=rates[0], **settings)
    else:
        betas = (settings["beta1"], settings["beta2"])
        optimiser = torch.optim.AdamW([parameter], lr=rates[0], betas=betas, eps=settings["eps"], weight_decay=settings["weight_decay"])
    history = []
    for rate, gradient in zip(rates, gradients):
        optimiser.param_groups[0]["lr"] = rate
        parameter.grad = gradient.clone()
        optimiser.step()
        history.append(parameter.detach().clone())
    return torch.stack(history)


def main():
    generator = torch.Generator().manual_seed(SEED)
    tensors, cases = {}, {}
    for name, (kind, rates, settings) in CASES.items():
        start = torch.randn(SIZE, generator=generator, dtype=torch.float64)
        gradients = torch.randn((STEPS, SIZE), generator=generator, dtype=torch.float64)
        # A parameter whose gradient is always 0 moves by weight decay alone; one whose gradient is tiny shows eps.
        gradients[:, 0] = 0
        gradients[:, 1] *= 1e-6
        tensors[f"{name}/param0"] = start
        tensors[f"{name}/grads"] = gradients
        tensors[f"{name}/params"] = run(kind, rates, settings, start, gradients)
        cases[name] = {"optimiser": kind, "lr": rates, **settings}
    reference = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0], "seed": SEED, "cases": cases}
    path = pathlib.Path(__file__).with_suffix(".safetensors")
    save_file(tensors, path, {"reference": json.dumps(reference, sort_keys=True, separators=(",", ":"))})
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
