"""A made Cityscapes in miniature with predictions, and the figures that Cityscapes' own evaluator gives them.

    python cityscapes.py      writes cityscapes/ beside this file

Made with Python 3.11, NumPy 2.4, Pillow 13, cityscapesscripts 2.3.0; all random numbers from one seed. Six labelled
images of two cities, in label ids 0 to 33, void ones included; predictions are the labels, shifted, with noise. No
image has the class train; bus is predicted and never labelled. expected.json has the evaluator's class scores and
their mean (`averageScoreClasses`); scores by instance are not asked for.
"""

import json
import pathlib
import sys

import numpy as np
from PIL import Image

SEED = 20244
HEIGHT, WIDTH = 40, 80
EVALUATED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
BUS, TRAIN = 28, 31

sys.argv = sys.argv[:1]
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as evaluator  # noqa: E402

root = pathlib.Path(__file__).resolve().parent / "cityscapes"
generator = np.random.default_rng(SEED)
truths, predictions = [], []
for city, frames in [("aachen", 3), ("bochum", 3)]:
    for frame in range(frames):
        labels = np.full((HEIGHT, WIDTH), generator.integers(0, 34), np.uint8)
        for _ in range(60):
            y, x = generator.integers(0, HEIGHT), generator.integers(0, WIDTH)
            labels[y : y + generator.integers(2, 14), x : x + generator.integers(2, 20)] = generator.integers(0, 34)
        labels[(labels == TRAIN) | (labels == BUS)] = 7
        predicted = np.roll(labels, (1, 2), (0, 1))
        noise = generator.random(labels.shape) < 0.1
        kinds = [id for id in EVALUATED if id != TRAIN]
        # A network predicts evaluated classes alone.
        noise |= ~np.isin(predicted, kinds)
        predicted = np.where(noise, generator.choice(kinds, labels.shape), predicted).astype(np.uint8)
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
        image = np.stack([labels * 7, x * 3, y * 6], -1).astype(np.uint8)
        name = f"{city}_{frame:06}_000019"
        for folder, ending, pixels, found in [
            ("gtFine/val", "gtFine_labelIds", labels, truths),
            ("predictions", "leftImg8bit", predicted, predictions),
            ("leftImg8bit/val", "leftImg8bit", image, None),
        ]:
            path = root / folder / city / f"{name}_{ending}.png"
            if folder == "predictions":
                path = root / folder / path.name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, optimize=True)
            if found is not None:
                found.append(str(path))

evaluator.args.evalInstLevelScore = False
evaluator.args.JSONOutput = False
evaluator.args.quiet = True
result = evaluator.evaluateImgLists(predictions, truths, evaluator.args)
known = {evaluator.id2label[id].name: result["classScores"][evaluator.id2label[id].name] for id in EVALUATED}
scores = {name: None if np.isnan(score) else float(score) for name, score in known.items()}
expected = {"averageScoreClasses": float(result["averageScoreClasses"]), "classScores": scores}
(root / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
print(json.dumps(expected, indent=1))
