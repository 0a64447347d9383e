"""MixUp and CutMix against what can be seen in the mixed images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.data import mixing
from mtkd_jax.methods.seams import hard_loss
from mtkd_jax.types import Batch
from tests.contexts import context
from tests.references import losses

NUM = 200


def batch_of(shape):
    """Images of one colour each: its number."""
    colours = np.arange(NUM, dtype=np.float32)[:, None, None, None]
    images = jnp.asarray(np.broadcast_to(colours, (NUM, *shape)).copy())
    labels = jnp.arange(NUM) % 7
    return Batch(images, labels, jnp.arange(NUM), labels > 0, weight=1.0 + labels.astype(jnp.float32))


def mixed(shape, seed=0, **how):
    """(images, batch with labels, mixture) as NumPy."""
    batch = batch_of(shape)
    mixture = mixing.draw(jax.random.key(seed), batch.image.shape, **{"mixup": 0.0, "cutmix": 0.0, **how})
    images = mixing.mix_after(lambda key, images: images, mixture)(jax.random.key(0), batch.image)
    return jax.tree.map(np.asarray, (images, mixing.mix_labels(mixture, batch), mixture))


def test_mixup_is_the_weighted_mean_of_two_images():
    images, batch, mixture = mixed((3, 2, 1), mixup=0.4)
    own, other, share = np.arange(NUM), mixture.partner, batch.mixed.share
    np.testing.assert_allclose(images[:, 0, 0, 0], share * own + (1 - share) * other, rtol=1e-5)
    assert np.ptp(images, axis=(1, 2, 3)).max() == 0
    assert sorted(other) == sorted(own) and (other != own).mean() > 0.9
    assert share.min() >= 0.5 and share.max() <= 1.0


@pytest.mark.parametrize("concentration", [0.2, 1.0])
def test_shares_are_of_the_beta_distribution_folded(concentration):
    folded = np.random.default_rng(0).beta(concentration, concentration, 100_000)
    folded = np.maximum(folded, 1 - folded)
    shares = np.concatenate([mixed((1, 1, 1), seed, mixup=concentration)[2].share for seed in range(20)])
    error = folded.std() / np.sqrt(len(shares))
    assert abs(shares.mean() - folded.mean()) < 5 * error


def test_cutmix_cuts_one_box_and_the_label_has_the_share_of_what_is_left():
    images, batch, mixture = mixed((9, 8, 1), cutmix=1.0)
    for own, (image, other, share) in enumerate(zip(images[..., 0], mixture.partner, batch.mixed.share)):
        assert set(np.unique(image)) <= {float(own), float(other)}
        np.testing.assert_allclose(share, (image == own).mean() if other != own else share, rtol=1e-6)
        rows, columns = np.nonzero(image != own)
        if len(rows):
            box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (box == other).all()
    areas = 1 - batch.mixed.share
    assert 0.1 < areas.mean() < 0.25 and areas.max() <= 0.5  # uniform up to a half, less what hangs over


def test_time_series_are_cut_along_time_alone():
    images, batch, mixture = mixed((50, 1, 2), cutmix=1.0)
    cut = images[:, :, 0, 0] != np.arange(NUM)[:, None]
    assert (1 - batch.mixed.share).max() > 0.4
    for row in cut:
        (places,) = np.nonzero(row)
        assert len(places) == 0 or np.array_equal(places, np.arange(places[0], places[-1] + 1))


def test_with_both_each_image_takes_one():
    images, _, mixture = mixed((9, 8, 1), mixup=1.0, cutmix=1.0)
    assert 70 < mixture.cut.sum() < 130
    whole = np.ptp(images, axis=(1, 2, 3)) == 0
    assert whole[~mixture.cut].all()


def test_the_hard_loss_is_cross_entropy_with_both_labels():
    """Two labels with their shares, where they are known; the mean counts what is labelled."""
    rng = np.random.default_rng(1)
    logits, teachers = rng.normal(size=(4, 3)), rng.normal(size=(1, 4, 3))
    labels, labelled, partner = np.array([0, 1, 2, 1]), np.array([1, 1, 0, 0], bool), np.array([1, 2, 3, 0])
    share = np.array([0.75, 0.5, 1.0, 0.625], np.float32)
    known = context(logits, teachers, labels, labelled=labelled, label_smoothing=0.1)
    batch = mixing.mix_labels(
        mixing.Mixture(
            jnp.asarray(partner), jnp.asarray(share), jnp.zeros((4, 1, 1, 1), bool), jnp.zeros(4, bool)
        ),
        known.batch,
    )
    found = hard_loss(known.__class__(**{**vars(known), "batch": batch}))
    expected, counts = np.zeros(4), 0.0
    for b in range(4):
        probs = losses.softmax(logits[b])
        for label, is_known, part in (
            (labels[b], labelled[b], share[b]),
            (labels[partner[b]], labelled[partner[b]], 1 - share[b]),
        ):
            if is_known:
                expected[b] += part * losses.cross_entropy(probs, label, 0.1)
                counts += part
    np.testing.assert_allclose(found, expected * 4 / counts, rtol=1e-5)
