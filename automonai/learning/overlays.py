"""Pictures of a case's worst slice: the image in grey, the label's and the prediction's outlines over it."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from automonai.domain.fingerprint import Triple

LABEL_COLOUR = "#56B4E9"
"""Sky blue, solid; with the orange below a pair of Okabe and Ito's, told apart under all common colour blindness."""

PREDICTION_COLOUR = "#E69F00"
"""Orange, dashed."""

_LONGEST_SIDE_INCHES = 4.8
_DOTS_PER_INCH = 100


def render_overlay(image: np.ndarray, label: np.ndarray, prediction: np.ndarray, *, spacing_mm: Triple) -> bytes:
    """Return a PNG of the axial slice with the most wrong voxels, without caption, 480 pixels at its longest side.

    Seen as radiologists do: from the feet, the front at the top, the patient's right on the left. Pixels follow the
    spacing, so that proportions are true.

    Args:
        image: (X, Y, Z), one channel in any unit, RAS order.
        label: (X, Y, Z) class indices.
        prediction: As `label`.
        spacing_mm: Of all three.
    """
    height = worst_slice(label, prediction)
    grey, truth, found = (volume[::-1, ::-1, height].T for volume in (image, label, prediction))
    width_mm, depth_mm = grey.shape[1] * spacing_mm[0], grey.shape[0] * spacing_mm[1]
    scale = _LONGEST_SIDE_INCHES / max(width_mm, depth_mm)
    figure = Figure(figsize=(max(width_mm * scale, 0.1), max(depth_mm * scale, 0.1)), dpi=_DOTS_PER_INCH)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    low, high = np.percentile(grey, (1, 99))
    axes.imshow(grey, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect="auto", interpolation="nearest")
    for mask, colour, style in ((truth, LABEL_COLOUR, "solid"), (found, PREDICTION_COLOUR, "dashed")):
        for index in np.unique(mask[mask > 0]):
            # Framed, so that an outline closes where a structure meets the border.
            framed = np.pad(mask == index, 1).astype(np.float32)
            columns, rows = (np.arange(-1, side + 1) for side in reversed(mask.shape))
            axes.contour(columns, rows, framed, levels=[0.5], colors=colour, linestyles=style, linewidths=1.5)
    axes.set_xlim(-0.5, grey.shape[1] - 0.5)
    axes.set_ylim(grey.shape[0] - 0.5, -0.5)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def worst_slice(label: np.ndarray, prediction: np.ndarray) -> int:
    """Return the axial slice with the most wrong voxels; among equals the one with the most labelled voxels."""
    wrong = np.count_nonzero(label != prediction, axis=(0, 1))
    labelled = np.count_nonzero(label, axis=(0, 1))
    return int(np.lexsort((labelled, wrong))[-1])
