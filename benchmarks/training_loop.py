"""The training loop's step rate against its own network alone and against MONAI's standard pipeline.

For small and large networks, 2D and 3D, all on the same machine and threads, in turn, several times over:
(a) the network alone on one batch of random data that stays in memory, (b) the product's loop without augmentation,
(c) with augmentation, (d) CacheDataset, DataLoader and dictionary transforms with the same kinds of augmentation,
around MONAI's own UNet in the same precision. Writes a markdown table of patches per second and of the ratios.

    python benchmarks/training_loop.py [DATASET] [--output FILE] [--repeats 5] [--seconds 6] [--threads 2] [--workers 1]

It runs on the GPU where there is one; `--max-patch-voxels 2097152` gives it patches of its size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandSpatialCropd,
    SpatialPadd,
)
from torch import Tensor, nn

from automonai.domain.configuration import Configuration, Convolution, Flips
from automonai.domain.dataset import select
from automonai.domain.plan import Plan, make_plan
from automonai.imaging.augmentation import Augmentation
from automonai.imaging.checking import CheckedDataset, check_dataset
from automonai.imaging.fingerprinting import fingerprint
from automonai.imaging.patches import PatchReader
from automonai.imaging.phantom import write_phantom
from automonai.imaging.preprocessing import PreparedCase, normalise, prepare_case
from automonai.learning.batches import batch_source, read_ahead, readers_beside
from automonai.learning.checkpoint import Progress
from automonai.learning.forward import choose_forward
from automonai.learning.loop import Trainer
from automonai.learning.losses import make_loss
from automonai.learning.network import build_network, place
from automonai.learning.precision import Precision, choose_device, choose_precision, keep_freed_memory
from automonai.spec import ExecutionSpec, TrainingSpec

Batches = Iterator[tuple[Tensor, Tensor]]
NETWORKS = {"small": {"channels": 8, "depth": 3}, "large": {"channels": 32, "depth": 4}}


def main() -> None:
    """Measure everything and write the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(options.dataset) if options.dataset else Path(folder) / "phantom"
        if not options.dataset:
            write_phantom(root, cases=24)
        checked = check_dataset(root)
        rows = [
            _row(checked, name, convolution, Path(folder) / "cache", options)
            for name in options.networks
            for convolution in Convolution
        ]
    text = "\n".join([*_header(options), *rows]) + "\n"
    print(text)
    if options.output:
        Path(options.output).write_text(text, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="a labelled dataset; without it a phantom is made")
    parser.add_argument("--output", help="markdown file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="of MONAI's DataLoader")
    parser.add_argument("--max-patch-voxels", type=int, default=TrainingSpec().max_patch_voxels)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    return parser.parse_args()


def _header(options: argparse.Namespace) -> list[str]:
    device = choose_device(ExecutionSpec())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return [
        f"{name}, {options.threads} threads, {options.workers} workers of MONAI's loader, {options.repeats} repeats in"
        f" turn of {options.seconds:g} s; ratios are medians (smallest to largest)",
        "",
        "| network | patch, batch | resident, patches/s | ours plain / resident | ours augmented / resident"
        " | ours augmented / MONAI pipeline |",
        "|---|---|---|---|---|---|",
    ]


def _row(checked: CheckedDataset, name: str, convolution: Convolution, cache: Path, options: argparse.Namespace) -> str:
    rates: dict[str, list[float]] = {"resident": [], "plain": [], "augmented": [], "monai": []}
    plan = _plan(checked, name, convolution, options, augmentation=1.0)
    cases = [
        prepare_case(checked.dataset, case, spacing_mm=None, crop=plan.configuration.crop, cache_folder=cache)
        for case in select(checked.dataset, [case.id for case in checked.dataset.cases])
    ]
    still = _plan(checked, name, convolution, options, augmentation=0.0)
    for _ in range(options.repeats):
        rates["resident"].append(_rate(_trainer(plan), _resident(plan), options.seconds))
        rates["plain"].append(_rate(_trainer(still), _ours(still, cases), options.seconds))
        rates["augmented"].append(_rate(_trainer(plan), _ours(plan, cases), options.seconds))
        loader = _monai_batches(plan, cases, options.workers)
        rates["monai"].append(_rate(_plain_trainer(plan, _monai_network(plan)), loader, options.seconds))
    ratios = [
        _ratio(rates["plain"], rates["resident"]),
        _ratio(rates["augmented"], rates["resident"]),
        _ratio(rates["augmented"], rates["monai"]),
    ]
    patch = "x".join(map(str, plan.patch_voxels))
    cells = [f"{name} {convolution}", f"{patch}, {plan.batch_size}", f"{median(rates['resident']):.1f}", *ratios]
    return f"| {' | '.join(cells)} |"


def _ratio(ours: list[float], theirs: list[float]) -> str:
    each = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def _plan(
    checked: CheckedDataset, name: str, convolution: Convolution, options: argparse.Namespace, *, augmentation: float
) -> Plan:
    configuration = Configuration(
        **NETWORKS[name], convolution=convolution, augmentation=augmentation, flips=Flips.LEFT_RIGHT
    )
    facts = fingerprint(checked, [case.id for case in checked.dataset.cases])
    training = TrainingSpec(max_patch_voxels=options.max_patch_voxels)
    return make_plan(configuration, dataset=checked.dataset, fingerprint=facts, training=training)


def _our_network(plan: Plan) -> nn.Module:
    return build_network(plan.network, slice_axis=plan.slice_axis)


def _monai_network(plan: Plan) -> nn.Module:
    network = plan.network
    unet = UNet(
        network.spatial_dims,
        network.in_channels,
        network.out_channels,
        network.channels,
        network.strides,
        num_res_units=network.residual_units,
        act="LEAKYRELU",
        norm=("INSTANCE", {"affine": True}),
    )
    return unet if network.spatial_dims == 3 else _Slices(unet, plan.slice_axis)


class _Slices(nn.Module):
    def __init__(self, network: nn.Module, axis: int) -> None:
        super().__init__()
        self.network = network
        self.axis = axis

    def forward(self, image_BCXYZ: Tensor) -> Tensor:
        slices = image_BCXYZ.movedim(2 + self.axis, 1)
        logits = self.network(slices.flatten(0, 1)).unflatten(0, slices.shape[:2])
        return logits.movedim(1, 2 + self.axis)


def _trainer(plan: Plan) -> Trainer:
    trainer = _plain_trainer(plan, _our_network(plan))
    trainer.forward = choose_forward(
        trainer.network,
        plan,
        precision=trainer.precision,
        devices=[trainer.precision.device],
        compile=False,
        batch_sizes=[plan.batch_size],
    )
    return trainer


def _plain_trainer(plan: Plan, network: nn.Module) -> Trainer:
    device = choose_device(ExecutionSpec())
    return Trainer(
        plan,
        place(network, device),
        loss_of=make_loss(plan.configuration.loss),
        precision=Precision(device, choose_precision(ExecutionSpec(), device)),
        progress=Progress(seed=0, steps_per_epoch=1),
    )


def _rate(trainer: Trainer, batches: Batches, seconds: float) -> float:
    """Return patches per second after three steps of warm-up; the batches are closed."""
    device, patches = trainer.precision.device, 0
    with closing(batches):  # type: ignore[type-var]
        for number, (image, label) in enumerate(batches):
            if number == 3:
                began, patches = time.perf_counter(), 0
            trainer.update(image.to(device), label.to(device), learning_rate=1e-3)
            patches += image.shape[0]
            if number > 3 and time.perf_counter() - began >= seconds:
                return patches / (time.perf_counter() - began)
    raise RuntimeError("the batches ended")


def _resident(plan: Plan) -> Batches:
    shape = (plan.batch_size, plan.network.in_channels, *plan.patch_voxels)
    device = choose_device(ExecutionSpec())
    image = torch.randn(shape, device=device)
    label = torch.randint(plan.network.out_channels, (shape[0], *plan.patch_voxels), dtype=torch.uint8, device=device)
    while True:
        yield image, label


def _ours(plan: Plan, cases: list[PreparedCase]) -> Batches:
    augmentation = Augmentation.of(plan)
    whole = cases[: len(cases) // plan.batch_size * plan.batch_size] or cases
    reader = PatchReader(whole, plan, seed=0, margin_voxels=augmentation.margin_voxels)
    device = choose_device(ExecutionSpec())
    make = batch_source(reader, augmentation, seed=0, device=device)
    return read_ahead(make, 0, threads=readers_beside(device))


def _monai_batches(plan: Plan, cases: list[PreparedCase], workers: int) -> Batches:
    both, modes = ["image", "label"], ["bilinear", "nearest"]
    turn = [np.radians(15) if plan.network.spatial_dims == 3 or axis == plan.slice_axis else 0.0 for axis in range(3)]
    steps = [
        SpatialPadd(both, plan.patch_voxels),
        RandSpatialCropd(both, plan.patch_voxels, random_size=False),
        RandAffined(both, prob=0.75, rotate_range=turn, scale_range=[0.2] * 3, mode=modes, padding_mode="zeros"),
        Rand3DElasticd(both, (5, 8), (20, 60), prob=0.2, mode=modes, padding_mode="zeros"),
        RandFlipd(both, prob=0.5, spatial_axis=0),
        RandGaussianNoised(["image"], prob=0.15, std=0.25),
        RandScaleIntensityd(["image"], 0.25, prob=0.3),
        RandAdjustContrastd(["image"], prob=0.3, gamma=(0.7, 1.5)),
    ]
    items = [
        {
            "image": normalise(case.image, normalisation=plan.configuration.normalisation, statistics=case.statistics),
            "label": np.array(case.label)[None],
        }
        for case in cases
    ]
    dataset = CacheDataset(items, Compose(steps), cache_rate=1.0, progress=False)
    loader = DataLoader(
        dataset, batch_size=plan.batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    while True:
        for batch in loader:
            yield batch["image"].as_tensor(), batch["label"].as_tensor()[:, 0]


if __name__ == "__main__":
    main()
