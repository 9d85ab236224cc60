"""The digits are what they are said to be, split the same way every time, both polarities in equal parts."""

from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework.toy.digits import CAPTIONS, DigitsData, digits, split


def as_set(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_plain_digits_have_the_documented_form() -> None:
    images, labels = digits("plain")
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert labels.shape == (1797,) and labels.dtype == torch.int64
    assert images.min() == -1 and images.max() == 1
    assert labels.unique().tolist() == list(range(DigitsData().num_classes))


def test_random_polarity_holds_every_image_and_its_inverse() -> None:
    plain, plain_labels = digits("plain")
    images, labels = digits("random")
    assert torch.equal(images, torch.cat([plain, -plain]))
    assert torch.equal(labels, torch.cat([plain_labels, plain_labels]))


def test_split_is_disjoint_covers_all_digits_and_never_changes() -> None:
    train, val = split(297)
    assert sorted(torch.cat([train, val]).tolist()) == list(range(1797))
    assert len(val) == 297
    assert all(map(torch.equal, (train, val), split(297)))


@pytest.mark.parametrize(("polarity", "signs"), [("plain", 1), ("random", 2)])
def test_both_sides_together_are_the_whole_set(polarity: Any, signs: int) -> None:
    data = DigitsData(polarity)
    train, val = data.train_dataset().tensors, data.val_dataset().tensors
    assert (len(train[0]), len(val[0])) == (signs * 1500, signs * 297)
    assert as_set(train[0]) | as_set(val[0]) == as_set(digits(polarity)[0])
    assert not as_set(train[0]) & as_set(val[0])


def test_labels_stay_with_their_images() -> None:
    images, labels = digits("random")
    label_of = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    for batch_images, batch_labels in DigitsData().train_dataloader():
        assert [label_of[image.numpy().tobytes()] for image in batch_images] == batch_labels.tolist()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_captions_are_the_labels_in_words(num_workers: int) -> None:
    captioned, labeled = DigitsData(captions=True, num_workers=num_workers), DigitsData()
    assert CAPTIONS[7] == "a handwritten seven" and len(set(CAPTIONS)) == labeled.num_classes
    pairs = zip(captioned.val_dataloader(), labeled.val_dataloader(), strict=True)
    for (images, captions), (same_images, labels) in pairs:
        assert torch.equal(images, same_images)
        assert captions == [CAPTIONS[label] for label in labels.tolist()]
    assert torch.equal(captioned.reference_images(), labeled.reference_images())


def test_polarities_are_balanced_on_both_sides() -> None:
    data = DigitsData("random")
    for dataset in (data.train_dataset(), data.val_dataset()):
        images = dataset.tensors[0]
        assert as_set(images) == as_set(-images)
        assert (images.mean(dim=(1, 2, 3)) > 0).double().mean() == 0.5


def test_training_batches_are_full_shuffled_tuples_and_validation_is_complete() -> None:
    data = DigitsData("plain", batch_size=100, validation_size=250)
    train, val = list(data.train_dataloader()), list(data.val_dataloader())
    assert all(isinstance(batch, tuple) for batch in train + val)
    assert [len(images) for images, _ in train] == [100] * 15
    assert [len(images) for images, _ in val] == [100, 100, 50]
    in_order = data.train_dataset().tensors[0]
    assert not torch.equal(torch.cat([images for images, _ in train]), in_order[:1500])
    assert torch.equal(torch.cat([images for images, _ in val]), data.val_dataset().tensors[0])


def test_epochs_differ_and_runs_with_one_seed_agree() -> None:
    def labels(epoch: int, seed: int = 0) -> Tensor:
        loader = DigitsData(seed=seed).train_dataloader()
        sampler: Any = loader.sampler
        sampler.set_epoch(epoch)
        return torch.cat([labels for _, labels in loader])

    assert torch.equal(labels(1), labels(1))
    assert not torch.equal(labels(1), labels(0)) and not torch.equal(labels(1), labels(1, seed=1))


def test_global_random_state_is_untouched() -> None:
    before = torch.get_rng_state()
    data = DigitsData()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_reference_images_are_the_training_set_as_bytes() -> None:
    data = DigitsData("random")
    reference = data.reference_images()
    assert reference.dtype == torch.uint8 and reference.shape == (3000, 1, 8, 8)
    error = reference.double() / 127.5 - 1 - data.train_dataset().tensors[0]
    assert error.abs().max() <= 0.5 / 127.5 + 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"polarity": "both"}, "polarity='both'.*'random', 'plain'"),
        ({"validation_size": 0}, "validation_size=0.*from 1 to 1796"),
        ({"validation_size": 1797}, "validation_size=1797.*from 1 to 1796"),
        ({"batch_size": 0}, "batch_size must be from 1 to the 3000 .* got 0"),
        ({"batch_size": 3001}, "batch_size must .*3000.* got 3001"),
        ({"batch_size": 1501, "polarity": "plain"}, "batch_size must .*1500 .* got 1501"),
    ],
)
def test_bad_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitsData(**arguments)
