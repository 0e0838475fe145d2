"""The other side of the loader benchmark: a torch DataLoader with the steps of torchvision's segmentation reference.

Decode with PIL, scale (bilinear with antialiasing, labels by nearest neighbour), flip, pad and crop, to tensor,
normalise. Arguments: list of "image<TAB>label" lines, batch size, workers, crop height, crop width, scale from, scale to.
Reads numbers of batches from standard input and answers each with the seconds that they took, after as many batches
that do not count as two per worker.
"""

import random
import sys
import time

import torch
import torchvision.transforms.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, RandomCrop

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pairs(Dataset):
    def __init__(self, path, crop, scale):
        with open(path) as lines:
            self.pairs = [line.rstrip("\n").split("\t") for line in lines]
        self.crop, self.scale = crop, scale

    def __len__(self):
        return 1 << 20

    def __getitem__(self, index):
        image, label = self.pairs[index % len(self.pairs)]
        image, label = Image.open(image).convert("RGB"), Image.open(label)
        factor = random.uniform(*self.scale)
        size = [round(image.height * factor), round(image.width * factor)]
        image = F.resize(image, size, antialias=True)
        label = F.resize(label, size, interpolation=InterpolationMode.NEAREST)
        if random.random() < 0.5:
            image, label = F.hflip(image), F.hflip(label)
        below, right = max(self.crop[0] - size[0], 0), max(self.crop[1] - size[1], 0)
        if below or right:
            image, label = F.pad(image, (0, 0, right, below), fill=0), F.pad(label, (0, 0, right, below), fill=255)
        place = RandomCrop.get_params(image, self.crop)
        image, label = F.crop(image, *place), F.crop(label, *place)
        image = F.convert_image_dtype(F.pil_to_tensor(image), torch.float)
        return F.normalize(image, MEAN, STD), F.pil_to_tensor(label)[0].long()


def main():
    path, batch, workers, height, width, low, high = sys.argv[1:]
    workers = int(workers)
    torch.set_num_threads(1)
    data = Pairs(path, (int(height), int(width)), (float(low), float(high)))
    loader = DataLoader(data, batch_size=int(batch), shuffle=False, num_workers=workers, drop_last=True)
    print("ready", flush=True)
    for line in sys.stdin:
        batches = iter(loader)
        for _ in range(2 * workers):
            next(batches)
        begun = time.perf_counter()
        for _ in range(int(line)):
            next(batches)
        print(time.perf_counter() - begun, flush=True)
        del batches


if __name__ == "__main__":
    main()
