"""Occlusion maps against covering by hand."""

import numpy as np
import pytest
import torch

from hftoolkit.models.attribution import occlusion_maps

pytestmark = pytest.mark.smoke


def test_the_map_is_hot_where_the_evidence_is_and_cold_elsewhere():
    images = torch.full((2, 3, 24, 24), 50.0)
    images[0, :, 2:4, 14:16] = 200.0
    images[1, :, 14:16, 2:4] = 200.0

    def logits(batch):
        brightest = batch.amax((1, 2, 3))
        return torch.stack([brightest, -brightest], dim=1)

    maps = occlusion_maps(logits, images, torch.tensor([0, 0]))
    assert maps.shape == (2, 24, 24)
    for heat, (top, left) in zip(maps, ((2, 14), (14, 2)), strict=True):
        inside = heat[top : top + 2, left : left + 2].mean()
        covered = np.ones((24, 24), dtype=bool)
        covered[max(0, top - 4) : top + 6, max(0, left - 4) : left + 6] = False
        assert inside > 0
        assert abs(heat[covered]).max() < inside / 10
    against = occlusion_maps(logits, images, torch.tensor([1, 1]))
    np.testing.assert_allclose(against, -maps, atol=1e-5)


def test_a_window_that_is_covered_alone_costs_what_it_costs_by_hand():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((1, 3, 12, 12), generator=generator) * 255
    weights = torch.rand((3, 12, 12), generator=generator)

    def logits(batch):
        return (batch * weights).sum((1, 2, 3))[:, None]

    heat = occlusion_maps(logits, images, torch.tensor([0]))[0]
    covered = images.clone()
    covered[:, :, 0:2, 0:2] = images.mean((2, 3), keepdim=True)
    drop = float(logits(images) - logits(covered))
    # The corner pixel belongs to one window only.
    np.testing.assert_allclose(heat[0, 0], drop, rtol=1e-4)
