"""A table of labels and its pictures, as docs/data.md and the first pages describe it."""

import csv

import numpy as np
from PIL import Image

NUM_ROWS = 60


def picture(number):
    noise = np.random.default_rng(number).integers(0, 256, (8, 12, 3))
    return Image.fromarray(noise.astype(np.uint8))


def label_row(number):
    """The table of the page: 20 persons, a third or a quarter of the cells empty."""
    return {
        "photo": f"{number:04d}.jpg",
        "person": f"p{number % 20}",
        "smiling": ("1.0", "0.0", "")[number % 3],
        "glasses": ("yes", "no", "")[number // 20],
        "mood": ("glad", "angry", "", "sad")[number % 4],
        "age": "unknown" if number in (2, 32) else "" if number % 5 == 4 else f"{20 + number / 4}",
        "mask": f"masks/{number:04d}.png" if number % 3 else "",
    }


def write_table(folder):
    (folder / "photos" / "masks").mkdir(parents=True)
    for number in range(NUM_ROWS):
        picture(number).save(folder / "photos" / f"{number:04d}.jpg")
        mask = np.resize(np.uint8([0, 1, 2]), (8, 12))
        Image.fromarray(mask).save(folder / "photos" / "masks" / f"{number:04d}.png")
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(label_row(0)))
        writer.writeheader()
        writer.writerows(label_row(number) for number in range(NUM_ROWS))
