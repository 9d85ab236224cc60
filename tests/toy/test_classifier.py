"""The shipped classifiers read their images well, in feature spaces of fixed scale, and can be made again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from disa_framework.metrics import features_of, frechet_distance, load_statistics
from disa_framework.metrics.images import from_uint8
from disa_framework.toy.classifier import (
    DigitsClassifier,
    DigitsFeatures,
    FashionClassifier,
    FashionFeatures,
    ToyClassifier,
)
from disa_framework.toy.digits import DigitsData
from disa_framework.toy.fashion import FOLDERS, fashion
from examples.classifiers import LESSONS, accuracies, augment, train

CLASSIFIERS = pytest.mark.parametrize("kind", [DigitsClassifier, FashionClassifier])
FEATURES = pytest.mark.parametrize("kind", [DigitsFeatures, FashionFeatures])
needs_fashion = pytest.mark.skipif(not Path(FOLDERS[-1]).is_dir(), reason="needs the files of Fashion-MNIST")


def random_images(size: int, count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_it_reads_held_out_digits_of_both_polarities() -> None:
    assert min(accuracies(DigitsClassifier.pretrained(), LESSONS["digits"]).values()) >= 0.98


@needs_fashion
def test_it_reads_test_images_of_clothes_and_sees_their_defects() -> None:
    images, labels = (part[:2000] for part in fashion("test"))
    network, reference = FashionFeatures(), load_statistics(FashionFeatures.reference)
    assert (network.classifier.logits(images).argmax(dim=1) == labels).double().mean() >= 0.91
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (images + 6 * noise).clamp(0, 255).to(torch.uint8)
    torn = torch.cat([images[..., :14], images.roll(1, dims=0)[..., 14:]], dim=-1)
    clean, *worse = (frechet_distance(features_of(network, some), reference) for some in (images, noisy, torn))
    assert clean < 0.1 and min(worse) > 2 * clean


def test_total_variance_over_the_plain_training_images_is_sixteen() -> None:
    digits = features_of(DigitsFeatures(), DigitsData("plain").reference_images())
    for statistics in (digits, load_statistics(FashionFeatures.reference)):
        assert statistics.sigma.trace().item() == pytest.approx(16, rel=1e-5)


@CLASSIFIERS
def test_the_weights_file_is_small(kind: type[ToyClassifier]) -> None:
    assert kind.weights.stat().st_size <= 300_000


@CLASSIFIERS
def test_it_is_frozen_and_loading_it_leaves_the_global_random_state(kind: type[ToyClassifier]) -> None:
    before = torch.get_rng_state()
    model = kind.pretrained()
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())


@FEATURES
def test_features_and_logits_are_those_of_the_classifier(kind: type[DigitsFeatures | FashionFeatures]) -> None:
    network = kind()
    images, classifier = random_images(network.classifier.image_size), type(network.classifier).pretrained()
    features = network(images)
    assert features.shape == (3, network.num_features) and features.isfinite().all()
    assert torch.equal(features, classifier.features(images))
    assert torch.equal(network.logits(features), classifier.logits(images))


@FEATURES
@pytest.mark.parametrize("images", [torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 28, 28, dtype=torch.uint8)])
def test_other_images_are_refused(kind: type[DigitsFeatures | FashionFeatures], images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \[B, 1, (8, 8|28, 28)\]; convert"):
        kind()(images)


@pytest.mark.parametrize(("data", "size"), [("digits", 8), ("fashion", 28)])
def test_training_depends_on_the_seed_alone(data: str, size: int) -> None:
    few = from_uint8(random_images(size, 256)), torch.arange(256) % 10
    lesson = replace(LESSONS[data], data=lambda: few, epochs=1)
    before = torch.get_rng_state()
    first, again, other = (train(lesson, seed).features for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    images = random_images(size)
    assert torch.equal(first(images), again(images))
    assert not torch.equal(first(images), other(images))


def test_the_strengths_of_defects_are_told_of_the_images_that_have_them() -> None:
    black = torch.full((400, 1, 28, 28), -1.0)
    images, labels, strengths = LESSONS["fashion"].spoil(black, torch.arange(400), torch.Generator().manual_seed(0))
    _, _, uneven, faded, noisy = strengths.T
    spoiled = images.flatten(1).any(dim=1)
    assert spoiled[(uneven > 0.2) | (noisy > 0.2)].all() and not spoiled[uneven + faded + noisy == 0].any()
    assert torch.equal(labels, torch.arange(400))


def test_augmentation_moves_a_stroke_by_at_most_a_pixel_and_softens_it_by_another() -> None:
    dot = torch.full((4000, 1, 8, 8), -1.0)
    dot[:, :, 4, 4] = 1.0
    mean = augment(dot, torch.Generator().manual_seed(0)).float().mean(dim=0)[0]
    reached = torch.zeros(8, 8, dtype=torch.bool)
    reached[2:7, 2:7] = True
    background = mean[~reached]
    assert background.std() < 1.0
    assert (mean[3:6, 3:6] > background.mean() + 5).all() and mean[4, 4] == mean.max()
