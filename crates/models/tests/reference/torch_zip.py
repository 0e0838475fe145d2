"""Checkpoints as torch.save writes them, for tests/networks/weights.rs.

Made with PyTorch 2.x; run in this folder: python torch_zip.py
Writes torch_zip.safetensors, in which each file is a tensor of bytes; the values are (7 i mod 64 - 32) / 8, which all
floating-point formats hold exactly.
"""

import collections
import io

import numpy as np
import torch
from safetensors.numpy import save_file


def tensor(*shape, dtype=torch.float32):
    count = int(np.prod(shape))
    return ((torch.arange(count) * 7 % 64 - 32).to(torch.float32) / 8).reshape(shape).to(dtype)


def state(dtype=torch.float32):
    return collections.OrderedDict(
        [
            ("conv1.weight", tensor(4, 3, 3, 3, dtype=dtype)),
            ("bn1.weight", tensor(4, dtype=dtype)),
            ("bn1.num_batches_tracked", torch.tensor(3)),
        ]
    )


def written(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


wide = tensor(3, 4, 3, 3).permute(1, 0, 2, 3)
shared = tensor(2, 4)
half, double, bfloat = state(torch.float16), state(torch.float64), state(torch.bfloat16)
files = {
    "plain": written(state()),
    "nested half": written({"epoch": 3, "best": torch.tensor(0.5), "state_dict": half, "optimizer": {"m": tensor(4)}}),
    "module double": written({"model": collections.OrderedDict(("module." + key, double[key]) for key in double)}),
    "protocol 4 bfloat": written(bfloat, pickle_protocol=4),
    "parameters": written({key: torch.nn.Parameter(value, False) for key, value in state().items()}),
    "views": written({"conv1.weight": wide, "bn1.weight": shared[1], "bn1.bias": shared[1, 2:3].expand(4)}),
    "whole module": written(torch.nn.PReLU()),
    "old": written(state(), _use_new_zipfile_serialization=False),
}
save_file({name: np.frombuffer(file, dtype=np.uint8) for name, file in files.items()}, "torch_zip.safetensors")
print({name: len(file) for name, file in files.items()}, torch.__version__)
