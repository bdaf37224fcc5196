from __future__ import annotations

from math import radians

import numpy as np
import pytest
import torch

from automonai.imaging.augmentation import (
    Augmentation,
    _change_intensities,
    _coarsened,
    _resampled,
    _Warp,
    _with_gamma,
    augment,
    rotation_matrix,
)

PATCH = (16, 20, 12)
ISOTROPIC = np.ones((2, 3))


def batch(augmentation: Augmentation, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    sides = [side + 2 * m for side, m in zip(PATCH, augmentation.margin_voxels, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 2, *sides, generator=generator)
    label = torch.randint(0, 3, (2, *sides), generator=generator, dtype=torch.uint8)
    return image, label


def test_without_strength_and_flips_the_patch_stays_as_it_is() -> None:
    augmentation = Augmentation(strength=0, patch_voxels=PATCH, flip_axes=())
    image, label = batch(augmentation)
    same_image, same_label = augment(image, label, augmentation=augmentation, spacing_B3=ISOTROPIC, seed=0)
    assert torch.equal(image, same_image)
    assert torch.equal(label, same_label)


def test_flips_turn_image_and_label_alike_over_the_named_axes_only() -> None:
    augmentation = Augmentation(strength=0, patch_voxels=PATCH, flip_axes=(1,))
    image, label = batch(augmentation)
    seen = set()
    for seed in range(8):
        out, out_label = augment(image, label, augmentation=augmentation, spacing_B3=ISOTROPIC, seed=seed)
        for sample in range(2):
            is_flipped = not torch.equal(out[sample], image[sample])
            seen.add(is_flipped)
            axes = [1] if is_flipped else []
            assert torch.equal(out_label[sample], label[sample].flip(axes))
            assert torch.equal(out[sample], image[sample].flip([2] if is_flipped else []))
    assert seen == {True, False}


def test_the_same_seed_gives_the_same_batch_and_another_seed_another() -> None:
    augmentation = Augmentation(strength=1, patch_voxels=PATCH, flip_axes=(0, 1, 2))
    image, label = batch(augmentation)

    def once(seed: int) -> torch.Tensor:
        return augment(image, label, augmentation=augmentation, spacing_B3=ISOTROPIC, seed=seed)[0]

    assert torch.equal(once(5), once(5))
    assert not torch.equal(once(5), once(6))


def test_the_result_has_the_patchs_size_and_only_known_classes() -> None:
    augmentation = Augmentation(strength=1, patch_voxels=PATCH, flip_axes=(0,))
    image, label = batch(augmentation)
    for seed in range(10):
        out, out_label = augment(image, label, augmentation=augmentation, spacing_B3=ISOTROPIC, seed=seed)
        assert out.shape == (2, 2, *PATCH)
        assert out_label.shape == (2, *PATCH)
        assert out_label.dtype == torch.uint8
        assert int(out_label.max()) <= 2
        assert torch.isfinite(out).all()


def test_a_quarter_turn_moves_a_voxel_where_it_belongs() -> None:
    matrix = rotation_matrix(np.array([0, 0, radians(90)]), None)
    augmentation = Augmentation(strength=0, patch_voxels=(5, 5, 5), flip_axes=())
    image = torch.zeros(1, 1, 5, 5, 5)
    image[0, 0, 4, 2, 2] = 1  # two voxels to the right of the centre
    out, _ = _resampled(image, torch.zeros(1, 5, 5, 5, dtype=torch.uint8), augmentation, _Warp(matrix, None))
    found = np.argwhere(out[0, 0].numpy() > 0.9).tolist()
    expected = matrix.T @ np.array([2, 0, 0]) + 2
    assert found == [expected.round().astype(int).tolist()]


def test_rotations_are_rotations_in_millimetres() -> None:
    spacing = np.array([1.0, 1.0, 4.0])
    turn = rotation_matrix(np.array([0.3, -0.2, 0.1]), None)
    in_voxels = turn * spacing[None, :] / spacing[:, None]
    a, b = np.array([3.0, 1.0, 2.0]), np.array([-1.0, 2.0, 0.5])
    moved = [spacing * (in_voxels @ point) for point in (a, b)]
    assert np.linalg.norm(moved[0] - moved[1]) == pytest.approx(np.linalg.norm(spacing * (a - b)))


def test_a_flat_network_never_mixes_slices() -> None:
    augmentation = Augmentation(strength=1, patch_voxels=PATCH, flip_axes=(), slice_axis=2)
    assert augmentation.margin_voxels[2] == 0
    image, label = batch(augmentation)
    image[:] = torch.arange(PATCH[2], dtype=torch.float32)
    label[:] = torch.arange(PATCH[2]).to(torch.uint8)
    for seed in range(12):
        _, out = augment(image, label, augmentation=augmentation, spacing_B3=ISOTROPIC, seed=seed)
        slices = [sorted(set(out[..., z].unique().tolist()) - {0}) for z in range(1, PATCH[2])]
        assert slices == [[z] for z in range(1, PATCH[2])]


def test_gamma_keeps_each_channels_range() -> None:
    image = torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    out = _with_gamma(image, 1.4)
    torch.testing.assert_close(out.amin((2, 3, 4)), image.amin((2, 3, 4)))
    torch.testing.assert_close(out.amax((2, 3, 4)), image.amax((2, 3, 4)))
    assert (out < image).float().mean() > 0.9


def test_a_constant_patch_stays_finite() -> None:
    augmentation = Augmentation(strength=1, patch_voxels=(8, 8, 8), flip_axes=())
    for seed in range(20):
        out = _change_intensities(torch.zeros(1, 1, 8, 8, 8), augmentation, np.random.default_rng(seed))
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("factor", [1.1, 1.37, 1.75, 2.0])
def test_a_coarser_image_lies_where_it_lay(factor: float) -> None:
    ramp = torch.arange(40.0).expand(1, 1, 1, 1, 40)
    shift = (_coarsened(ramp, factor, None) - ramp)[..., 5:-5]
    assert shift.mean().abs() < 0.05
    assert shift.abs().max() < 0.6


def test_a_coarser_image_keeps_its_size_and_its_slices() -> None:
    image = torch.randn(1, 1, 8, 8, 6)
    assert _coarsened(image, 2.0, None).shape == image.shape
    flat = torch.arange(6.0).expand(1, 1, 8, 8, 6)
    torch.testing.assert_close(_coarsened(flat, 2.0, 2), flat)
