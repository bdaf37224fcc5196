"""What a label keeps on a coarser grid, by who has the voxels in which two classes tie.

    python benchmarks/label_resampling.py Task04_Hippocampus

Every label map is brought to a grid that is coarser by 2 along one axis and along all, and back by linear interpolation
of its memberships, as a prediction is: Dice with the original, and volume on the coarser grid, over the original's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from automonai.imaging.layouts import find_dataset
from automonai.imaging.preprocessing import _linear, _resample_label
from automonai.imaging.reading import read_label

Labels = NDArray[np.uint8]
Rule = Callable[[Labels, tuple[int, ...]], Labels]


def lower_class(label: Labels, shape: tuple[int, ...]) -> Labels:
    """Give a tie to the lower class, which at most borders is the background."""
    memberships = np.stack([_linear(label == index, shape) for index in np.unique(label)])
    return np.unique(label)[memberships.argmax(axis=0)].astype(np.uint8)


RULES: dict[str, Rule] = {"the lower class": lower_class, "the higher class": _resample_label}


def main() -> None:
    """Measure and print a row for each rule, factor and class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    options = parser.parse_args()
    dataset = find_dataset(options.dataset)
    values = sorted(dataset.labels)
    labels = [_even(read_label(dataset.label_path(case), values)) for case in dataset.cases]
    print(f"{len(labels)} label maps\n")
    print("| coarser | class | a tie has | Dice after the way back | volume |\n|---|---|---|---|---|")
    for factor in ((1, 1, 2), (2, 2, 2)):
        for index in range(1, len(values)):
            for name, rule in RULES.items():
                dice, volume = np.mean([_measure(label, factor, index, rule) for label in labels], axis=0)
                axes = "one axis" if factor[0] == 1 else "all axes"
                print(f"| {axes} | {index} | {name} | {dice:.4f} | {volume:.3f} |")


def _even(label: Labels) -> Labels:
    """Return a label map with even sides: what is cut off is background, or a border."""
    return label[tuple(slice(side // 2 * 2) for side in label.shape)]


def _measure(label: Labels, factor: tuple[int, ...], index: int, rule: Rule) -> tuple[float, float]:
    shape = tuple(side // f for side, f in zip(label.shape, factor, strict=True))
    coarse, original = rule(label, shape), label == index
    classes = np.unique(coarse)
    back = classes[np.stack([_linear(coarse == one, label.shape) for one in classes]).argmax(axis=0)] == index
    dice = 2 * float((back & original).sum()) / float(back.sum() + original.sum())
    return dice, float((coarse == index).sum()) * float(np.prod(factor)) / float(original.sum())


if __name__ == "__main__":
    main()
