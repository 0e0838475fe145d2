"""Writes fuzz/corpus/: for every format a few small whole files, made by other programs than ours.

    python fuzz/corpus.py        Python 3.11, NumPy 2.4, Pillow 13, PyTorch 2.15, safetensors 0.8

Recipes and manifests are copies of those of this repository. Files whose names begin with `refused` are kept because a
reader failed on them once; this script leaves them alone.
"""

import gzip
import hashlib
import io
import json
import pathlib
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save

ROOT = pathlib.Path(__file__).resolve().parent
CORPUS = ROOT / "corpus"


def put(name, data):
    path = CORPUS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def encoded(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png_of_depth(values, depth):
    """A grey PNG of 1, 2, 4 or 16 bits, which Pillow does not write."""
    height, width = values.shape
    rows = b""
    for row in values:
        if depth == 16:
            packed = b"".join(struct.pack(">H", int(value)) for value in row)
        else:
            bits = "".join(format(int(value), f"0{depth}b") for value in row)
            bits += "0" * (-len(bits) % 8)
            packed = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
        rows += b"\0" + packed

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


y, x = np.mgrid[0:6, 0:9]
rgb = np.stack([x * 28, y * 50, (x + y) * 17], axis=-1).astype(np.uint8)
ids = ((x + 2 * y) % 3).astype(np.uint8)
void = np.where(x == 4, 255, ids).astype(np.uint8)

picture = Image.fromarray(rgb)
put("image/rgb.png", encoded(picture, "PNG"))
put("image/grey.png", encoded(picture.convert("L"), "PNG"))
put("image/rgba.png", encoded(picture.convert("RGBA"), "PNG"))
put("image/palette.png", encoded(picture.quantize(7), "PNG"))
put("image/grey16.png", png_of_depth(x * 8000 + y, 16))
put("image/baseline.jpg", encoded(picture, "JPEG", quality=90))
put("image/progressive.jpg", encoded(picture, "JPEG", quality=60, progressive=True))
put("image/grey.jpg", encoded(picture.convert("L"), "JPEG", quality=75))

coloured = Image.fromarray(void, "P")
coloured.putpalette([value for index in range(256) for value in (index, 255 - index, index // 2)])
put("labels/grey8.png", encoded(Image.fromarray(void), "PNG"))
put("labels/palette8.png", encoded(coloured, "PNG"))
put("labels/palette2.png", encoded(coloured.point(lambda id: id % 3), "PNG", bits=2))
put("labels/grey1.png", png_of_depth(ids % 2, 1))
put("labels/grey2.png", png_of_depth(ids, 2))
put("labels/grey4.png", png_of_depth(ids, 4))
put("labels/grey16.png", png_of_depth(void.astype(int), 16))

put("list/stems.txt", b"a\nb\n")
put("list/blank_lines.txt", b"b\r\n\r\na\r\n\n")

own = 'names = ["road", "car"]\ncolours = [[128, 64, 128], [64, 0, 128]]\nids = [7, 26]\nignore = [0, 255]\n'
put("classes/all_keys.toml", own.encode())
put("classes/few_keys.toml", b'# raw ids are 7 and 26\nnames = ["road", "car"]\nids = [7, 26]\n')

for name in ["camvid", "cityscapes", "voc2012"]:
    put(f"manifest/{name}.toml", (ROOT.parent / f"datasets/{name}.toml").read_bytes())
for name in ["smoke", "quick", "camvid-small", "compare/compare-quick"]:
    put(f"recipe/{pathlib.Path(name).name}.toml", (ROOT.parent / f"crates/train/recipes/{name}.toml").read_bytes())

weights = {"conv1.weight": np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3) / 64, "bn1.weight": np.ones(4)}
put("safetensors/two_types.safetensors", save(weights))
put("safetensors/with_metadata.safetensors", save({"module.a": np.ones((2, 3), np.float16)}, {"format": "pt"}))


def torch_file(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
put("torch/plain.pth", torch_file(tensors))
views = {"conv1.weight": tensors["conv1.weight"].transpose(0, 1), "bn1.weight": tensors["bn1.weight"][1:3]}
put("torch/views.pth", torch_file({"epoch": 3, "state_dict": {f"module.{n}": v.half() for n, v in views.items()}}))

model = save({"weight": np.arange(12, dtype=np.float32).reshape(4, 3)})
state = {"step": 12, "updates": 12, "skipped": 0, "skipped_in_a_row": 0, "evaluated": 6, "last_miou": 0.5, "best": [6, 0.5]}
state = json.dumps(state, separators=(",", ":")).encode()
files = {"model.safetensors": model, "state.json": state}
entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
listing = json.dumps({"version": 2, "files": entries}, indent=2).encode()
image_of_folder = b"".join(len(part).to_bytes(4, "little") + part for part in [listing, state, model])
put("checkpoint/as_it_is", b"\0" + image_of_folder)
put("checkpoint/manifest_made_anew", b"\1" + image_of_folder)

members = {}
for split, folder, name in [
    ("training", "training", "ADE_train_00000001"),
    ("training", "training", "ADE_train_00000002"),
    ("validation", "validation", "ADE_val_00000001"),
]:
    base = "ADEChallengeData2016"
    members[f"{base}/images/{folder}/{name}.jpg"] = encoded(picture, "JPEG", quality=30)
    members[f"{base}/annotations/{folder}/{name}.png"] = encoded(Image.fromarray(ids), "PNG")


def zipped(method):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0)), data, method)
    return stream.getvalue()


def tarred(form):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        # A name of more than 100 bytes, so that the form's extension is used.
        archive.addfile(tarfile.TarInfo("ADEChallengeData2016/" + "long/" * 25 + "name"))
    return stream.getvalue()


put("archive/deflated", b"\0" + zipped(zipfile.ZIP_DEFLATED))
put("archive/stored", b"\0" + zipped(zipfile.ZIP_STORED))
put("archive/gnu_tar", b"\1" + tarred(tarfile.GNU_FORMAT))
put("archive/pax_tar", b"\1" + tarred(tarfile.PAX_FORMAT))
put("archive/tgz", b"\2" + gzip.compress(tarred(tarfile.GNU_FORMAT), mtime=0))

for folder in sorted(CORPUS.iterdir()):
    print(folder.name, *[path.name for path in sorted(folder.iterdir())])
