"""Configuration: one point of the search space, every hyperparameter of a pipeline included."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from automonai.domain.records import Record


class Convolution(StrEnum):
    """Whether the network convolves slices or volumes."""

    TWO_D = "2d"
    THREE_D = "3d"


class Normalisation(StrEnum):
    """How the intensities of each channel of a case are scaled, by that case's own statistics."""

    NONE = "none"
    ZSCORE = "zscore"
    PERCENTILE_ZSCORE = "percentile_zscore"
    MINMAX = "minmax"


class Resampling(StrEnum):
    """The voxel size that all cases are brought to."""

    NONE = "none"
    MEAN = "mean"
    MEDIAN = "median"


class LossName(StrEnum):
    """The training loss."""

    DICE = "dice"
    GENERALISED_DICE = "generalised_dice"
    DICE_CE = "dice_ce"
    DICE_HAUSDORFF = "dice_hausdorff"
    DICE_TOPK = "dice_topk"
    DICE_FOCAL = "dice_focal"


class Flips(StrEnum):
    """The axes that are flipped in training and in test-time augmentation alike.

    A prediction takes twice as long with left_right, eight times as long with all, four times in 2D, whose network sees
    each slice alone; validations do without flips.
    """

    NONE = "none"
    LEFT_RIGHT = "left_right"
    ALL = "all"

    @property
    def axes(self) -> tuple[int, ...]:
        """Return them, of x, y, z as 0, 1, 2."""
        return {Flips.NONE: (), Flips.LEFT_RIGHT: (0,), Flips.ALL: (0, 1, 2)}[self]


class Crop(StrEnum):
    """What of a volume is kept: everything, or the box around what is not background."""

    NONE = "none"
    NONZERO = "nonzero"


class Configuration(Record):
    """Every choice of one pipeline; the spec's search space says which of them vary.

    The first eight fields and their ranges are the source work's; `first_stride` is the ninth.
    """

    depth: Annotated[int, Field(ge=1, le=8)] = 3
    """Number of resolutions, the full one included."""
    channels: Annotated[int, Field(ge=1, le=1024)] = 16
    """Feature channels of the first level."""
    channel_multiplier: Annotated[float, Field(ge=0.25, le=8.0)] = 2.0
    """Factor from a level's channels to the next one's; the product is rounded down, at least 1."""
    convolution: Convolution = Convolution.THREE_D
    convolutions_per_layer: Annotated[int, Field(ge=0, le=8)] = 1
    """0: one convolution without a residual path; n: n convolutions bypassed by one."""
    normalisation: Normalisation = Normalisation.ZSCORE
    resampling: Resampling = Resampling.NONE
    loss: LossName = LossName.DICE_CE
    first_stride: Annotated[int, Field(ge=1, le=2)] = 1
    """Stride of the first level: 1 keeps features at full resolution, 2 is two to three times faster."""
    flips: Flips = Flips.NONE
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-3
    """Of AdamW."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-2
    """Of AdamW."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Patches per step; None: 4 for patches of up to 131,072 voxels, else 2."""
    augmentation: Annotated[float, Field(ge=0, le=3)] = 1.0
    """Strength of rotation, scaling, elastic deformation and intensity changes; 0: none of them."""
    foreground_oversampling: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the patches that are centred on a foreground voxel."""
    crop: Crop = Crop.NONZERO
    patch_scale: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Factor on each side of the median volume, before training.max_patch_voxels bounds the patch; or of
    training.patch_voxels."""

    @property
    def passes(self) -> int:
        """Return how often a network goes over an image for one prediction of it."""
        axes = len(self.flips.axes)
        is_one_of_slices = self.convolution is Convolution.TWO_D and self.flips is Flips.ALL
        return int(2 ** (axes - is_one_of_slices))

    @model_validator(mode="before")
    @classmethod
    def _is_no_switch(cls, values: object) -> object:
        """Refuse true and false: Python takes them for 1 and 0, and no hyperparameter is one of them."""
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool):
                raise ValueError(f"{name}: expected another kind of value than {str(value).lower()}")
        return values


HYPERPARAMETERS: tuple[str, ...] = tuple(Configuration.model_fields)
"""Every name that a search space may use."""
