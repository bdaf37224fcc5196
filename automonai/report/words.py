"""Plain words for what the records hold: names, values, durations."""

from __future__ import annotations

from automonai.domain.configuration import Configuration
from automonai.domain.refit import ALIKE
from automonai.domain.run import FailureReason, Origin
from automonai.report.summary import EnsembleSummary, Summary, TrialSummary, Winner
from automonai.spec import SamplerName

HYPERPARAMETER_WORDS = {
    "depth": "Resolution levels",
    "channels": "Channels of the first level",
    "channel_multiplier": "Channel factor per level",
    "convolution": "Convolutions",
    "convolutions_per_layer": "Convolutions per layer",
    "normalisation": "Intensity scaling",
    "resampling": "Voxel size",
    "loss": "Training loss",
    "first_stride": "Stride of the first level",
    "flips": "Mirrored axes",
    "learning_rate": "Learning rate",
    "weight_decay": "Weight decay",
    "batch_size": "Patches per step",
    "augmentation": "Augmentation strength",
    "foreground_oversampling": "Foreground oversampling",
    "crop": "Cropping",
    "patch_scale": "Patch scale",
}

_VALUE_WORDS: dict[str, dict[object, str]] = {
    "convolution": {"2d": "2D slices", "3d": "3D volumes"},
    "normalisation": {
        "none": "none",
        "zscore": "z-score",
        "percentile_zscore": "clipped z-score",
        "minmax": "min-max",
    },
    "resampling": {"none": "as scanned", "mean": "mean", "median": "median"},
    "loss": {
        "dice": "Dice",
        "generalised_dice": "general. Dice",
        "dice_ce": "Dice + CE",
        "dice_hausdorff": "Dice + Hausd.",
        "dice_topk": "Dice + top-k",
        "dice_focal": "Dice + focal",
    },
    "flips": {"none": "none", "left_right": "left-right", "all": "all three"},
    "crop": {"none": "none", "nonzero": "to non-zero"},
    "batch_size": {None: "by patch size"},
}

ORIGIN_WORDS = {
    Origin.STANDARD: "Standard configuration",
    Origin.MODEL: "Proposed by the model",
    Origin.RANDOM: "Random, on purpose",
    Origin.WARM_UP: "Random, before the model had enough results",
    Origin.FALLBACK: "Random, because the model failed",
    Origin.GRID: "Grid point",
}

FAILURE_WORDS = {
    FailureReason.BAD_CONFIGURATION: "Impossible configuration",
    FailureReason.DOES_NOT_FIT: "Refused beforehand: needs more memory than there is",
    FailureReason.OUT_OF_MEMORY: "Ran out of memory",
    FailureReason.NON_FINITE_LOSS: "Training diverged (the loss became infinite or undefined)",
    FailureReason.TOO_SLOW: "Too slow: above the cap on the time per epoch, or for the time that was left",
    FailureReason.LOST: "Lost by the machine more often than allowed",
}

SAMPLER_WORDS = {
    SamplerName.BOHB: "BOHB",
    SamplerName.HYPERBAND: "HyperBand",
    SamplerName.SUCCESSIVE_HALVING: "successive halving",
    SamplerName.RANDOM: "random search",
    SamplerName.GRID: "grid search",
}

_NORMALISATIONS = {
    "none": "The intensities of each image are used as they are",
    "zscore": "The intensities of each image are brought to mean 0 and standard deviation 1",
    "percentile_zscore": (
        "The intensities of each image are clipped at its 99.5th percentile and brought to mean 0 and standard "
        "deviation 1"
    ),
    "minmax": "The intensities of each image are scaled to the range from 0 to 1",
}
_RESAMPLINGS = {
    "none": "each image keeps its own voxel size",
    "mean": "all images are resampled to the mean voxel size of the training cases",
    "median": "all images are resampled to the median voxel size of the training cases",
}
_LOSSES = {
    "dice": "the Dice loss",
    "generalised_dice": "the generalised Dice loss",
    "dice_ce": "Dice plus cross-entropy",
    "dice_hausdorff": "Dice plus a Hausdorff distance loss",
    "dice_topk": "Dice plus cross-entropy of the hardest voxels (top-k)",
    "dice_focal": "Dice plus the focal loss",
}
_FLIPS = {
    "none": "no mirrored images",
    "left_right": "images mirrored left to right, in training and in prediction alike",
    "all": "images mirrored along all three axes, in training and in prediction alike",
}


def value_words(name: str, value: object) -> str:
    """Return a hyperparameter's value in a few letters, for axes and table cells."""
    known = _VALUE_WORDS.get(name, {})
    if value in known:
        return known[value]
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def describe(configuration: Configuration) -> tuple[str, ...]:
    """Return the configuration in four sentences: network, images, training, patches."""
    return (
        _network_words(configuration),
        f"{_NORMALISATIONS[configuration.normalisation]}; {_RESAMPLINGS[configuration.resampling]}.",
        (
            f"It is trained with {_LOSSES[configuration.loss]} and {_FLIPS[configuration.flips]}; "
            f"augmentation strength {configuration.augmentation:.3g}, "
            f"learning rate {configuration.learning_rate:.3g}, weight decay {configuration.weight_decay:.3g}."
        ),
        _patch_words(configuration),
    )


def _network_words(configuration: Configuration) -> str:
    kind = "slice by slice (2D)" if configuration.convolution == "2d" else "in 3D"
    start = "at full resolution" if configuration.first_stride == 1 else "at half the resolution"
    units = configuration.convolutions_per_layer
    layer = (
        "one convolution without a residual path"
        if units == 0
        else f"{counted(units, 'convolution')} bypassed by a residual path"
    )
    return (
        f"A U-Net that works {kind} on {counted(configuration.depth, 'resolution level')}: its first level "
        f"has {counted(configuration.channels, 'channel')} {start}, each further level "
        f"{configuration.channel_multiplier:.3g} times as many, and each layer is {layer}."
    )


def _patch_words(configuration: Configuration) -> str:
    batch, scale, share = configuration.batch_size, configuration.patch_scale, configuration.foreground_oversampling
    amount = "as many patches as suit their size" if batch is None else counted(batch, "patch")
    size = "" if scale == 1 else f", whose sides are {scale:.3g} times the usual ones"
    place = f"{share:.0%} of them centred on a labelled voxel" if share else "placed anywhere in the volume"
    crop = "around what is not background" if configuration.crop == "nonzero" else "in full"
    return f"A training step sees {amount}{size}, {place}; volumes are used {crop}."


def cut_short_words(ensemble: EnsembleSummary) -> str:
    """Return by how few cases the ensemble was chosen, without a full stop; empty if by all that it should be."""
    if ensemble.scored_cases >= ensemble.planned_cases:
        return ""
    return f"the ensemble was chosen on {scored_words(ensemble)} held-out cases: the time was up"


def scored_words(ensemble: EnsembleSummary) -> str:
    """Return by how many held-out cases the ensemble was chosen, or `12 of 96 planned` where the time was up."""
    if ensemble.scored_cases >= ensemble.planned_cases:
        return f"{ensemble.scored_cases}"
    return f"{ensemble.scored_cases} of {ensemble.planned_cases} planned"


def is_alike(first: TrialSummary, winner: Winner) -> bool:
    """Whether the winner's score in the search counts as equal to the best one."""
    return first.loss is not None and winner.loss is not None and winner.loss - first.loss <= ALIKE


def overtaken_words(summary: Summary) -> str:
    """Return why the best of the search is not the winner, as the end of a sentence; empty where it is."""
    first, winner = summary.best_trial, summary.winner
    if first is None or winner is None or first.trial == winner.trial:
        return ""
    match first.refit:
        case "complete":
            return "trained to the end as well, it has no more weight in the ensemble, which held-out cases decided"
        case "failed":
            return "its training to the end failed"
        case "open":
            return "its training to the end is not over"
    if summary.refitted_first == winner.trial and is_alike(first, winner):
        return (
            f"differences of up to {ALIKE:g} are taken for none, and the winner is the one of these that trains fastest"
        )
    return "it was not trained to the end"


def own_network_words(ensemble: EnsembleSummary) -> str:
    """Return that the ensemble is a network of the search, where it is."""
    if any(member.is_refit for member in ensemble.members):
        return ""
    return "no network that was trained to the end came through, so that the ensemble is the search's own best network"


def counted(number: int, noun: str) -> str:
    """Return the number with its noun, e.g. `1 case`, `4 cases`.

    >>> counted(3, "patch")
    '3 patches'
    """
    plural = f"{noun}es" if noun.endswith(("tch", "s", "x")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def duration(seconds: float) -> str:
    """Return a duration in the unit or the two that matter, e.g. `1 h 05 min`.

    >>> [duration(s) for s in (0.04, 0.4, 59.7, 125, 3900, 180000)]
    ['40 ms', '0.4 s', '1 min 00 s', '2 min 05 s', '1 h 05 min', '2 d 02 h']
    """
    if 0 < seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 1440:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def memory(size_bytes: int) -> str:
    """Return an amount of memory, e.g. `3.2 GiB`."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"
