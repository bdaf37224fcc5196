from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss, HausdorffDTLoss
from torch.nn.functional import cross_entropy, one_hot

from automonai.domain.configuration import LossName
from automonai.learning.losses import _CoarseHausdorffLoss, hardest_cross_entropy, make_loss


def ball(radius: float = 5.0) -> torch.Tensor:
    grid = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    distance = (grid - 7.5).square().sum(0).sqrt()
    return torch.stack([(distance < radius).long() + (distance < radius / 2).long()] * 2).to(torch.uint8)


def logits_of(label: torch.Tensor, certainty: float) -> torch.Tensor:
    return certainty * one_hot(label.long(), 3).movedim(-1, 1).float()


@pytest.mark.parametrize("name", list(LossName))
def test_a_better_prediction_has_a_smaller_loss(name: LossName) -> None:
    loss = make_loss(name)
    label = ball()
    values = [loss(logits_of(label, certainty), label).item() for certainty in (-2.0, 0.0, 4.0, 12.0)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("name", list(LossName))
@pytest.mark.parametrize("fill", [0, 2])
def test_a_batch_of_one_class_has_a_finite_loss_and_gradient(name: LossName, fill: int) -> None:
    logits = torch.randn(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(1)).mul(30).requires_grad_()
    value = make_loss(name)(logits, torch.full((2, 8, 8, 8), fill, dtype=torch.uint8))
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        (LossName.DICE, DiceLoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)),
        (LossName.DICE_CE, DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)),
    ],
)
def test_the_loss_is_monais(name: LossName, reference: torch.nn.Module) -> None:
    label = ball()
    logits = torch.randn(2, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = make_loss(name)(logits, label)
    torch.testing.assert_close(ours, reference(logits, label[:, None].float()))


@pytest.mark.parametrize("side", [16, 64])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_generalised_dice_of_a_large_structure_is_as_sudre_has_it(side: int, share: float) -> None:
    label = torch.zeros(1, side, side, side, dtype=torch.uint8)
    label[..., : int(side * share)] = 1
    logits = torch.randn(1, 2, side, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = make_loss(LossName.GENERALISED_DICE)(logits, label)
    probabilities = logits.detach().softmax(1).double()[0].flatten(1)
    truth = one_hot(label.long(), 2).movedim(-1, 1).double()[0].flatten(1)
    weight = 1 / truth.sum(1).clamp(min=1).square()
    weight[truth.sum(1) == 0] = weight[0]  # of an absent class: the largest of the others
    overlap, sizes = (probabilities * truth).sum(1), (probabilities + truth).sum(1)
    assert found.item() == pytest.approx(1 - 2 * (weight @ overlap).item() / (weight @ sizes).item(), abs=1e-4)
    found.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 1e-2


def test_top_k_takes_the_tenth_of_the_voxels_that_are_hardest() -> None:
    logits = torch.randn(1, 3, 10, 10, 10, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(1, 10, 10, 10, dtype=torch.uint8)
    each = cross_entropy(logits, label.long(), reduction="none").numpy().ravel()
    assert hardest_cross_entropy(logits, label).item() == pytest.approx(np.sort(each)[-100:].mean(), rel=1e-5)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 2, 2), (16, 16, 1)])
def test_no_structure_is_too_small_to_have_distances(size: tuple[int, int, int]) -> None:
    for shift in (0, 1):
        mask = torch.zeros(1, 1, 20, 20, 20)
        x, y, z = (slice(shift, shift + side) for side in size)
        mask[..., x, y, z] = 1
        assert _CoarseHausdorffLoss().distance_field(mask).max() > 0


def test_half_resolution_distances_are_near_the_full_ones() -> None:
    mask = (ball()[:, None] > 0).float()
    full = HausdorffDTLoss().distance_field(mask)
    coarse = _CoarseHausdorffLoss().distance_field(mask)
    assert coarse.shape == full.shape
    assert (coarse - full).abs().mean() < 1.0
    assert np.corrcoef(coarse.ravel(), full.ravel())[0, 1] > 0.9
