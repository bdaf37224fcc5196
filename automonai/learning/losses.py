"""The six training losses, from logits_BKXYZ (float32) and label_BXYZ (class indices).

Axes: B batch, K class, X Y Z the patient's axes. MONAI's losses where it has them. Dice leaves the background out and
is taken over the whole batch, as in nnU-Net: a patch without a structure then does not count as a failure of its own.
All losses are finite for batches without any foreground.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, GeneralizedDiceLoss, LogHausdorffDTLoss
from torch import Tensor
from torch.nn import functional

from automonai.domain.configuration import LossName

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits_BKXYZ (float32) and label_BXYZ (class indices, any integer type) to one number."""

_SMOOTH = 1e-12  # far below one over the voxels of any batch
_HARDEST_SHARE = 0.1  # nnU-Net's: the mean of the 10 % hardest voxels
_HAUSDORFF_STEP = 2  # voxels; see _CoarseHausdorffLoss


def make_loss(name: LossName) -> Loss:
    """Return the loss of that name."""
    match name:
        case LossName.DICE:
            return _of_column(DiceLoss(to_onehot_y=True, softmax=True, include_background=False, batch=True))
        case LossName.GENERALISED_DICE:
            # Its weights are there to balance the background with the rest, so the background takes part. They are one
            # over a class's squared voxels, so that the sums are one over its voxels: MONAI's 1e-5 would hide them.
            return _of_column(
                GeneralizedDiceLoss(to_onehot_y=True, softmax=True, batch=True, smooth_nr=_SMOOTH, smooth_dr=_SMOOTH)
            )
        case LossName.DICE_CE:
            return _of_column(DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True))
        case LossName.DICE_HAUSDORFF:
            hausdorff = _CoarseHausdorffLoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
            return _sum(make_loss(LossName.DICE), _of_column(hausdorff))
        case LossName.DICE_TOPK:
            return _sum(make_loss(LossName.DICE), hardest_cross_entropy)
        case LossName.DICE_FOCAL:
            # MONAI's DiceFocalLoss has one switch for the background of both parts; the focal part needs it.
            return _sum(make_loss(LossName.DICE), _of_column(FocalLoss(to_onehot_y=True, use_softmax=True)))


def hardest_cross_entropy(logits_BKXYZ: Tensor, label_BXYZ: Tensor) -> Tensor:
    """Return the mean cross-entropy of the tenth of the batch's voxels in which it is largest, at least one voxel."""
    each = functional.cross_entropy(logits_BKXYZ, label_BXYZ.long(), reduction="none").flatten()
    hardest = max(1, int(each.numel() * _HARDEST_SHARE))
    return torch.topk(each, hardest, sorted=False).values.mean()


class _CoarseHausdorffLoss(LogHausdorffDTLoss):
    """MONAI's distance-transform Hausdorff loss, its distance maps computed at half the resolution.

    Full maps of the prediction, every step anew, take longer on the CPU than all of the network; at half the resolution
    they take an eighth, and the weights they give hardly differ. The logarithm keeps it beside Dice, not above it.
    """

    @torch.no_grad()
    def distance_field(self, img: Tensor) -> Tensor:
        """Return distances in voxels to the border of the mask, (B, 1, ...) like `img`; 0 where there is none.

        A coarse voxel is inside if any of its own is: the smallest structures must not be lost.
        """
        steps = [_HAUSDORFF_STEP if side >= 2 * _HAUSDORFF_STEP else 1 for side in img.shape[2:]]
        inside = (img > 0.5).float()  # where MONAI draws the line, too
        coarse = functional.max_pool3d(inside, steps, ceil_mode=True)
        field = super().distance_field(coarse.detach())
        return _HAUSDORFF_STEP * functional.interpolate(field, size=img.shape[2:], mode="nearest")


def _of_column(loss: Loss) -> Loss:
    """Give a MONAI loss, which wants labels as (B, 1, X, Y, Z), our arguments."""

    def loss_of(logits_BKXYZ: Tensor, label_BXYZ: Tensor) -> Tensor:
        return loss(logits_BKXYZ, label_BXYZ.unsqueeze(1).float())

    return loss_of


def _sum(first: Loss, second: Loss) -> Loss:
    def loss_of(logits_BKXYZ: Tensor, label_BXYZ: Tensor) -> Tensor:
        return first(logits_BKXYZ, label_BXYZ) + second(logits_BKXYZ, label_BXYZ)

    return loss_of
