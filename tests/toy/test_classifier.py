"""The shipped classifier reads digits well, in a feature space of fixed scale, and can be made again."""

from importlib.resources import files

import pytest
import torch

from disa_framework.toy.classifier import WEIGHTS, DigitsClassifier, DigitsFeatures
from disa_framework.toy.digits import DigitsData
from examples.digits_classifier import augment, held_out_accuracy, train


def test_it_reads_held_out_digits_of_both_polarities() -> None:
    assert min(held_out_accuracy(DigitsClassifier.pretrained())) >= 0.98


def test_total_variance_over_the_plain_training_digits_is_sixteen() -> None:
    features = DigitsFeatures()(DigitsData("plain").reference_images()).double()
    assert torch.cov(features.T).trace().item() == pytest.approx(16, rel=1e-5)


def test_the_weights_file_is_small() -> None:
    assert len(files("disa_framework.toy").joinpath(WEIGHTS).read_bytes()) <= 100_000


def test_it_is_frozen_and_loading_it_leaves_the_global_random_state() -> None:
    before = torch.get_rng_state()
    model = DigitsClassifier.pretrained()
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())


def test_features_and_logits_are_those_of_the_classifier() -> None:
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    network, classifier = DigitsFeatures(), DigitsClassifier.pretrained()
    features = network(images)
    assert features.shape == (3, network.num_features) and torch.equal(features, classifier.features(images))
    assert torch.equal(network.logits(features), classifier.logits(images))


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)])
def test_other_images_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \[B, 1, 8, 8\]; convert"):
        DigitsFeatures()(images)


def test_training_depends_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (train(seed, epochs=1).features for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    images = DigitsData("plain").reference_images()[:10]
    assert torch.equal(first(images), again(images))
    assert not torch.equal(first(images), other(images))


def test_augmentation_moves_a_stroke_by_at_most_a_pixel_and_softens_it_by_another() -> None:
    dot = torch.full((4000, 1, 8, 8), -1.0)
    dot[:, :, 4, 4] = 1.0
    mean = augment(dot, torch.Generator().manual_seed(0)).float().mean(dim=0)[0]
    reached = torch.zeros(8, 8, dtype=torch.bool)
    reached[2:7, 2:7] = True
    background = mean[~reached]
    assert background.std() < 1.0
    assert (mean[3:6, 3:6] > background.mean() + 5).all() and mean[4, 4] == mean.max()
