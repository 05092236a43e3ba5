import pytest
import torch

from hftoolkit.recipe import Augmentation
from hftoolkit.tasks.shared.augmentation import Augment

SIDE = 24


def images(count=6):
    """Each image has its own number as the value of all pixels, and one bright corner."""
    pixels = torch.arange(1, count + 1, dtype=torch.uint8)[:, None, None, None].expand(count, 3, SIDE, SIDE).clone()
    pixels[..., :8, :4] = 255
    return pixels


def augment(**knobs):
    return Augment(Augmentation(**knobs), SIDE, SIDE)


def test_none_changes_nothing():
    pixels = images()
    assert augment()(pixels) is pixels
    mixed = augment().mix(pixels)
    assert mixed.pixels is pixels and mixed.share == 1


@pytest.mark.parametrize("preset", ["light", "strong"])
def test_each_image_is_changed_in_its_own_way_drawn_from_torch(preset):
    pixels = images(1).expand(6, -1, -1, -1)
    changed = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        changed.append(augment(preset=preset)(pixels))
    assert torch.equal(changed[0], changed[1])
    assert not torch.equal(changed[0], changed[2])
    assert len({image.numpy().tobytes() for image in changed[0]}) > 1
    assert changed[0].shape == pixels.shape and changed[0].dtype == torch.uint8


def test_light_never_mirrors():
    """The corner stays on its side: a 6 and a 9 stay what they are."""
    torch.manual_seed(0)
    changed = augment(preset="light")(images(1).expand(200, -1, -1, -1)).float()
    left, right = changed[..., : SIDE // 2].sum((1, 2, 3)), changed[..., SIDE // 2 :].sum((1, 2, 3))
    top, bottom = changed[:, :, : SIDE // 2].sum((1, 2, 3)), changed[:, :, SIDE // 2 :].sum((1, 2, 3))
    assert (left > right).all() and (top > bottom).all()


def test_strong_mirrors_some():
    torch.manual_seed(0)
    changed = augment(preset="strong")(images(1).expand(100, -1, -1, -1)).float()
    left, right = changed[..., : SIDE // 2].sum((1, 2, 3)), changed[..., SIDE // 2 :].sum((1, 2, 3))
    assert (left < right).float().mean() > 0.1


def test_erasing_has_its_probability():
    torch.manual_seed(0)
    pixels = torch.full((400, 3, SIDE, SIDE), 200, dtype=torch.uint8)
    erased = (augment(erasing=0.3)(pixels) == 0).flatten(1).any(1)
    assert 0.22 < erased.float().mean() < 0.38


def test_mixup_is_the_weighted_mean_of_an_image_and_its_partner():
    torch.manual_seed(1)
    pixels = images()
    mixed = augment(mixup=1.0).mix(pixels)
    assert 0 < mixed.share < 1
    assert sorted(mixed.partners.tolist()) == list(range(6))
    by_hand = mixed.share * pixels.float() + (1 - mixed.share) * pixels[mixed.partners].float()
    torch.testing.assert_close(mixed.pixels, by_hand)


def test_the_share_of_cutmix_is_the_area_that_is_left():
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        pixels = torch.arange(1, 7, dtype=torch.uint8)[:, None, None, None].expand(6, 3, SIDE, SIDE)
        mixed = augment(cutmix=1.0).mix(pixels)
        for number, image in enumerate(mixed.pixels, start=1):
            partner = int(mixed.partners[number - 1]) + 1
            assert set(image.unique().tolist()) <= {number, partner}
            if partner != number:
                assert (image[0] == number).float().mean().item() == pytest.approx(mixed.share)
        seen.add(round(mixed.share, 3))
    assert len(seen) > 10


def test_with_both_either_is_drawn():
    whole = set()
    for seed in range(20):
        torch.manual_seed(seed)
        mixed = augment(mixup=1.0, cutmix=1.0).mix(images()).pixels
        whole.add(torch.equal(mixed, mixed.round()))
    assert whole == {True, False}, "pasted pixels are whole numbers, and blended ones are not"


def test_the_mean_share_follows_alpha():
    """Beta(alpha, alpha) has variance 1 / (4 (2 alpha + 1))."""
    for alpha in (0.2, 1.0, 5.0):
        torch.manual_seed(0)
        mix = augment(mixup=alpha).mix
        shares = torch.tensor([mix(images(2)).share for _ in range(800)])
        assert shares.mean().item() == pytest.approx(0.5, abs=0.05)
        assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)
