"""Makes the weights of the classifiers of digits and clothes, files of the package.

python -m examples.classifiers digits       a minute
python -m examples.classifiers fashion      five minutes
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d, cross_entropy, pad
from tqdm import tqdm

from disa_framework.files import write_atomically
from disa_framework.metrics.images import to_uint8
from disa_framework.toy.classifier import DigitsClassifier, FashionClassifier, ToyClassifier
from disa_framework.toy.digits import DigitsData
from disa_framework.toy.fashion import FashionData, fashion

BATCH_SIZE = 128
LEARNING_RATE = 4e-3
TOTAL_VARIANCE = 16.0
UNASKED = -100
"""The label of an image whose class is not asked, as `cross_entropy` takes it."""
BLUR = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])[None, None] / 16

Spoiled = tuple[Tensor, Tensor, Tensor]
"""Images uint8 `[B, 1, h, w]`, their labels `[B]`, and the answers to further questions, 0 to 1 `[B, questions]`."""


@dataclass(frozen=True)
class Lesson:
    """What a classifier is taught.

    To name a class is to ignore all else; further questions keep in the features what a Fréchet distance is to see.

    Args:
        classifier: its class.
        data: training images float32 `[N, 1, h, w]` in [-1, 1], and their labels `[N]`.
        epochs: how often it sees them.
        questions: how many questions are asked beside the class.
        weight: of their mean loss beside that of the class.
        spoil: from images float32 `[B, 1, h, w]` in [-1, 1] and labels `[B]` to what the classifier is asked.
        exams: by name, images uint8 and labels that it has not seen.
    """

    classifier: Callable[[], ToyClassifier]
    data: Callable[[], tuple[Tensor, ...]]
    epochs: int
    questions: int
    weight: float
    spoil: Callable[[Tensor, Tensor, torch.Generator], Spoiled]
    exams: Callable[[], dict[str, tuple[Tensor, Tensor]]]


def train(lesson: Lesson, seed: int = 0) -> ToyClassifier:
    """A trained classifier, a function of `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = lesson.classifier()
        questions_head = nn.Linear(model.num_features, lesson.questions)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster
    images, labels = lesson.data()
    parameters = [*model.parameters(), *questions_head.parameters()]
    steps = lesson.epochs * (len(images) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-2)
    annealing = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    for _ in tqdm(range(lesson.epochs), unit="epoch"):
        order = torch.randperm(len(images), generator=generator)
        for batch in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            spoiled, classes, answers = lesson.spoil(images[batch], labels[batch], generator)
            features = model.features(spoiled)
            class_loss = cross_entropy(model.head(features), classes, ignore_index=UNASKED)
            questions_loss = binary_cross_entropy_with_logits(questions_head(features), answers)
            loss = class_loss + lesson.weight * questions_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            annealing.step()
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # safetensors demands it
    model.requires_grad_(False).eval()
    fix_scale(model, to_uint8(images))
    return model


def fix_scale(model: ToyClassifier, images: Tensor) -> None:
    """Scale the features to their total variance over images, uint8 `[N, 1, h, w]`; logits do not change."""
    features = torch.cat([model.features(part) for part in images.split(1000)]).double()
    factor = (TOTAL_VARIANCE / features.var(dim=0).sum()).sqrt()
    model.scale *= factor
    model.head.weight /= factor


def accuracies(model: ToyClassifier, lesson: Lesson) -> dict[str, float]:
    """Share of images read rightly, 0 to 1, by exam."""
    return {
        name: (model.logits(images).argmax(dim=1) == labels).double().mean().item()
        for name, (images, labels) in lesson.exams().items()
    }


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image `[B, 1, h, h]` moved by at most one pixel, at random."""
    padded = pad(images, (1, 1, 1, 1), mode="replicate")
    shift = torch.randint(0, 3, (2, len(images), 1), generator=generator)
    rows, columns = shift + torch.arange(images.shape[-1])
    batch = torch.arange(len(images))[:, None, None]
    return padded[batch, 0, rows[:, :, None], columns[:, None, :]][:, None]


def blurred(images: Tensor) -> Tensor:
    """Images `[B, 1, h, w]`, each pixel the mean of itself and its neighbors."""
    return conv2d(pad(images, (1, 1, 1, 1), mode="replicate"), BLUR)


def by_patches(values: Tensor) -> Tensor:
    """Values of patches of 4x4 pixels, `[B, 1, h/4, w/4]`, as images `[B, 1, h, w]`."""
    return values.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


def draw_signs(count: int, generator: torch.Generator) -> Tensor:
    """Polarity of each quadrant, -1 or 1 `[count, 1, 2, 2]`: alike in the first two thirds, mixed in the rest."""
    signs = torch.randint(0, 2, (count, 1, 2, 2), generator=generator) * 2 - 1
    alike = count * 2 // 3
    signs[:alike] = signs[:alike, :, :1, :1]
    return signs.float()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each digit by at most one pixel, soften, fade and roughen it, at random.

    What the classifier is trained to look through weighs little in a Fréchet distance of its features: they
    are to see strokes and polarity, rather than the last grey level of a stroke's edge.

    Args:
        images: floats `[B, 1, 8, 8]` in [-1, 1].
        generator: of the draws.

    Returns:
        uint8 `[B, 1, 8, 8]`.
    """
    moved = shifted(images, generator)
    softening, fading, noise_level = torch.rand(3, len(images), 1, 1, 1, generator=generator)
    soft = torch.lerp(moved, blurred(moved), softening)
    faded = soft * (0.6 + 0.5 * fading)
    return to_uint8(faded + 0.6 * noise_level * torch.randn(images.shape, generator=generator))


def spoil_digits(images: Tensor, labels: Tensor, generator: torch.Generator) -> Spoiled:
    """Digits that are inverted, some only in part; the questions are the polarities of the quadrants.

    They keep it in the features place by place, so that an image that is inverted in part is seen for what it is.
    """
    signs = draw_signs(len(images), generator)
    spoiled = augment(by_patches(signs) * images, generator)
    mixed = signs.flatten(1).sum(dim=1).abs() < 4
    return spoiled, labels.masked_fill(mixed, UNASKED), (signs.flatten(1) + 1) / 2


def spoil_fashion(images: Tensor, labels: Tensor, generator: torch.Generator) -> Spoiled:
    """Clothes with the defects of drawn images; the questions are how strong they are.

    Each of the five is in a quarter of the images: patches of another image, blur, patches of different brightness,
    a faded image, noise. Where small ones are easily seen, a defect grows with the square of its strength.
    """
    count, grid = len(images), (len(images), 1, 7, 7)
    present = torch.rand(5, count, 1, 1, 1, generator=generator) < 0.25
    strengths = torch.rand(5, count, 1, 1, 1, generator=generator) * present
    strange, blur, uneven, faded, noisy = strengths
    mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    clean = shifted(torch.where(mirrored, images.flip(-1), images), generator)
    strangers = by_patches(torch.rand(grid, generator=generator) < 0.5 * strange)
    spoiled = torch.where(strangers, clean.roll(1, dims=0), clean)
    spoiled = torch.lerp(spoiled, blurred(blurred(spoiled)), blur)
    spoiled += 0.4 * uneven.square() * by_patches(torch.randn(grid, generator=generator))
    fade_to = -torch.rand(count, 1, 1, 1, generator=generator)
    spoiled = torch.lerp(spoiled, fade_to, 0.5 * faded)
    spoiled += 0.4 * noisy.square() * torch.randn(images.shape, generator=generator)
    return to_uint8(spoiled), labels, strengths.flatten(1).T


def digits_exams() -> dict[str, tuple[Tensor, Tensor]]:
    images, labels = DigitsData("plain").val_dataset().tensors
    return {"plain": (to_uint8(images), labels), "inverted": (to_uint8(-images), labels)}


LESSONS = {
    "digits": Lesson(
        classifier=DigitsClassifier,
        data=lambda: DigitsData("plain").train_dataset().tensors,
        epochs=400,
        questions=4,
        weight=0.1,
        spoil=spoil_digits,
        exams=digits_exams,
    ),
    "fashion": Lesson(
        classifier=FashionClassifier,
        data=lambda: FashionData().train_dataset().tensors,
        epochs=20,
        questions=5,
        weight=0.5,
        spoil=spoil_fashion,
        exams=lambda: {"test": fashion("test")},
    ),
}


def main(args: Sequence[str] | None = None) -> None:
    """Train, print the accuracies on images that were not seen, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=LESSONS, help="what the classifier is to read")
    parser.add_argument("--output", type=Path, help="weights file (default: that of the package)")
    parser.add_argument("--seed", type=int, default=0, help="the weights are a function of it (default 0)")
    options = parser.parse_args(args)
    torch.set_num_threads(1)  # the order of sums, and with it the weights, would depend on the number
    lesson = LESSONS[options.data]
    model = train(lesson, options.seed)
    output = options.output or model.weights
    write_atomically(output, safetensors.torch.save(model.state_dict()))
    found = ", ".join(f"{name} {share:.4f}" for name, share in accuracies(model, lesson).items())
    print(f"accuracy: {found}; wrote {output}")


if __name__ == "__main__":
    main()
