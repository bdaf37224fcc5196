"""Time, memory and label maps of prediction beside MONAI's SlidingWindowInferer and nnU-Net's own predictor.

    python benchmarks/prediction.py [--shape 240 240 155] [--repeats 3] [--threads 2] [--nnunet FOLDER]

Every predictor gets the same raw volume (int16, a head in an empty background), network, patch and overlap, and ends
with a label map; normalising is part of the time. Each repeat of each is a process of its own, in turns, so that peak
memory is its own and noise hits all alike. The network is trained for some steps before, since a random one decides by
rounding. nnU-Net is no dependency: `pip install --target FOLDER nnunetv2` and name the folder. It spreads its windows
evenly over an axis, where MONAI lays them at a fixed step, and centres its Gaussian half a voxel beside the window's
middle. So the label maps can be equal where the step divides the rest, as in the shape 256 256 160, and for the row in
which nnU-Net weighs its windows by MONAI's Gaussian.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np

MEAN, STD = 400.0, 120.0
CLASSES = 3


def main() -> None:
    """Run the whole comparison, or with `--only` one predictor once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155))
    parser.add_argument("--image-channels", type=int, default=2)
    parser.add_argument("--channels", type=int, nargs="+", default=(32, 64, 128))
    parser.add_argument("--strides", type=int, nargs="+", default=(2, 2))
    parser.add_argument("--patch", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="of training before the comparison")
    parser.add_argument("--nnunet", type=Path, help="folder of `pip install --target`")
    parser.add_argument("--only", choices=PREDICTORS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        measure(arguments)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run all predictors in turns and print the table."""
    names = [name for name in PREDICTORS if arguments.nnunet or not name.startswith("nnU-Net")]
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "image.npy", volume(arguments))
        train(arguments, Path(folder))
        for _ in range(arguments.repeats):
            for name in names:
                command = [sys.executable, __file__, *sys.argv[1:], "--only", name, "--folder", folder]
                done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
                figures[name].append(json.loads(done.stdout.splitlines()[-1]))
        maps = {name: np.load(Path(folder) / f"{slug(name)}.npy") for name in names}
    print_table(arguments, figures, maps)


def print_table(
    arguments: argparse.Namespace,
    figures: dict[str, list[dict[str, float]]],
    maps: dict[str, np.ndarray],
) -> None:
    """Print medians; times are compared with the reference of the same precision as it comes out of the box."""
    seconds = {name: median(run["seconds"] for run in runs) for name, runs in figures.items()}
    print(
        f"{arguments.image_channels} x {arguments.shape}, channels {arguments.channels}, strides {arguments.strides}, "
        f"patch {arguments.patch}, overlap 0.5, threads {arguments.threads}, median of {arguments.repeats}\n"
    )
    rivals = [name for name in ("nnU-Net float32", "MONAI float32") if name in seconds]
    heads = [
        "predictor",
        "seconds",
        "CPU seconds",
        "peak GiB",
        *(f"times {rival}" for rival in rivals),
        "equal to MONAI float32",
    ]
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for name, runs in figures.items():
        peak = max(run["peak_bytes"] for run in runs) / 2**30
        cpu = median(run["cpu_seconds"] for run in runs)
        ratios = [f"{seconds[rival] / seconds[name]:.2f}" for rival in rivals]
        equal = (maps[name] == maps["MONAI float32"]).mean()
        print(
            f"| {name} | {seconds[name]:.2f} | {cpu:.2f} | {peak:.2f} | " + " | ".join([*ratios, f"{equal:.6f}"]) + " |"
        )


def measure(arguments: argparse.Namespace) -> None:
    """Predict once, write the label map and print time and peak memory as JSON."""
    import torch

    if arguments.nnunet:
        sys.path.append(str(arguments.nnunet))
    network = build(arguments)
    network.load_state_dict(torch.load(arguments.folder / "network.pt", weights_only=True))
    predict = PREDICTORS[arguments.only](arguments, network)
    image = np.load(arguments.folder / "image.npy", mmap_mode="r")
    with torch.inference_mode():
        network(torch.zeros(1, image.shape[0], *arguments.patch))
    started, cpu_started = time.perf_counter(), time.process_time()
    label = predict(image)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    np.save(arguments.folder / f"{slug(arguments.only)}.npy", label.astype(np.uint8))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak}))


def slug(name: str) -> str:
    """Return a file name for a predictor."""
    return re.sub(r"\W+", "-", name)


def volume(arguments: argparse.Namespace) -> np.ndarray:
    """Return the raw volume: a head of smooth noise that fills about 60 % of each axis."""
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(0)
    axes = np.ogrid[tuple(slice(-1, 1, side * 1j) for side in arguments.shape)]
    head = sum(axis**2 for axis in axes) < 0.75**2
    image = np.zeros((arguments.image_channels, *arguments.shape), np.int16)
    for channel in image:
        noise = gaussian_filter(generator.standard_normal(arguments.shape, np.float32), 2)
        channel[head] = (MEAN + STD * noise / noise.std()).clip(1, 2000)[head]
    return image


def build(arguments: argparse.Namespace):  # type: ignore[no-untyped-def]
    """Return the network that the plan states, as trainings build it."""
    import torch

    from automonai.learning.network import build_network

    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    return build_network(plan(arguments).network, slice_axis=2).eval()


def train(arguments: argparse.Namespace, folder: Path) -> None:
    """Train the network to tell the head and its bright parts apart, and keep its weights."""
    import torch

    network = build(arguments).train()
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
    image = normalised(np.load(folder / "image.npy"))
    label = (image[0] > -MEAN / STD + 1e-3).astype(np.int64) + (image[0] > 0.5)
    generator = np.random.default_rng(0)
    for _ in range(arguments.steps):
        starts = [generator.integers(0, n - side + 1) for n, side in zip(label.shape, arguments.patch, strict=True)]
        cut = tuple(slice(start, start + side) for start, side in zip(starts, arguments.patch, strict=True))
        logits = network(torch.from_numpy(image[(slice(None), *cut)].copy())[None])
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(label[cut].copy())[None]).backward()
        optimiser.step()
        optimiser.zero_grad()
    torch.save(network.state_dict(), folder / "network.pt")


def normalised(image: np.ndarray) -> np.ndarray:
    """Return the whole volume as the z-score that the plan states."""
    return ((np.asarray(image, np.float32) - MEAN) / STD).astype(np.float32)


def automonai(arguments: argparse.Namespace, network, *, bfloat16: bool, skip: bool):  # type: ignore[no-untyped-def]
    """Return our predictor."""
    import torch

    from automonai.domain.fingerprint import ChannelFacts
    from automonai.learning.inference import WindowSettings, logit_slabs

    facts = ChannelFacts(minimum=1, maximum=2000, mean=MEAN, std=STD, percentile_00_5=1, percentile_99_5=2000)
    settings = WindowSettings(
        torch.device("cpu"),
        torch.bfloat16 if bfloat16 else torch.float32,
        background=(0.0,) * arguments.image_channels if skip else None,
    )

    def predict(image: np.ndarray) -> np.ndarray:
        slabs = logit_slabs(
            [network],
            image,
            plan=plan(arguments),
            statistics=[facts] * arguments.image_channels,
            settings=settings,
        )
        return np.concatenate([slab.logits[0].argmax(0) for slab in slabs])

    return predict


def plan(arguments: argparse.Namespace):  # type: ignore[no-untyped-def]
    """Return the plan of the benchmark's network."""
    from automonai.domain.configuration import Configuration
    from automonai.domain.plan import NetworkPlan, Plan

    return Plan(
        configuration=Configuration(),
        channels=tuple(f"channel {number}" for number in range(arguments.image_channels)),
        labels={number: f"class {number}" for number in range(CLASSES)},
        spacing_mm=None,
        patch_voxels=tuple(arguments.patch),
        batch_size=2,
        network=NetworkPlan(
            spatial_dims=3,
            in_channels=arguments.image_channels,
            out_channels=CLASSES,
            channels=tuple(arguments.channels),
            strides=tuple(arguments.strides),
            residual_units=1,
        ),
        slice_axis=2,
        flip_axes=(),
        parameters=1,
    )


def monai(arguments: argparse.Namespace, network, *, bfloat16: bool):  # type: ignore[no-untyped-def]
    """Return MONAI's inferer, one window at a time: its fastest setting on a CPU."""
    import torch
    from monai.inferers import SlidingWindowInferer

    inferer = SlidingWindowInferer(arguments.patch, sw_batch_size=1, overlap=0.5, mode="gaussian")

    def predict(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = inferer(torch.from_numpy(normalised(image))[None], network)
        return logits[0].argmax(0).numpy()

    return predict


def nnunet(  # type: ignore[no-untyped-def]
    arguments: argparse.Namespace, network, *, bfloat16: bool, monai_weights: bool = False
):
    """Return nnU-Net's predictor; out of the box it computes in float32 on a CPU, autocast is our addition."""
    import torch
    from monai.data.utils import compute_importance_map
    from nnunetv2.inference import predict_from_raw_data

    if monai_weights:
        weights = compute_importance_map(tuple(arguments.patch), mode="gaussian", sigma_scale=0.125)
        predict_from_raw_data.compute_gaussian = lambda *_, **__: weights.half()
    predictor = predict_from_raw_data.nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=list(arguments.patch))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=CLASSES)
    predictor.allowed_mirroring_axes = None
    if bfloat16:
        network.forward = torch.autocast("cpu", torch.bfloat16)(network.forward)

    def predict(image: np.ndarray) -> np.ndarray:
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(normalised(image)))
        return logits.float().argmax(0).numpy()

    return predict


PREDICTORS: dict[str, Callable] = {
    "MONAI float32": lambda a, n: monai(a, n, bfloat16=False),
    "nnU-Net float32": lambda a, n: nnunet(a, n, bfloat16=False),
    "nnU-Net float32, MONAI's weights": lambda a, n: nnunet(a, n, bfloat16=False, monai_weights=True),
    "AutoMONAI float32": lambda a, n: automonai(a, n, bfloat16=False, skip=False),
    "AutoMONAI float32, empty skipped": lambda a, n: automonai(a, n, bfloat16=False, skip=True),
    "MONAI bfloat16": lambda a, n: monai(a, n, bfloat16=True),
    "nnU-Net bfloat16": lambda a, n: nnunet(a, n, bfloat16=True),
    "AutoMONAI bfloat16, empty skipped": lambda a, n: automonai(a, n, bfloat16=True, skip=True),
}


if __name__ == "__main__":
    main()
