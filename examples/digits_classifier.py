"""Makes the weights of the digits' classifier, a file of the package.

python -m examples.digits_classifier
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d, cross_entropy, pad
from tqdm import tqdm

from disa_framework.files import write_atomically
from disa_framework.metrics.images import to_uint8
from disa_framework.toy import classifier
from disa_framework.toy.classifier import DigitsClassifier
from disa_framework.toy.digits import DigitsData

EPOCHS = 400
BATCH_SIZE = 128
POLARITY_WEIGHT = 0.1
TOTAL_VARIANCE = 16.0
BLUR = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])[None, None] / 16


def train(seed: int = 0, epochs: int = EPOCHS) -> DigitsClassifier:
    """A classifier trained on the training digits of both polarities, a function of `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = DigitsClassifier()
        # To name a digit is to ignore its polarity; a second question keeps it in the features, place by place, so
        # that an image that is inverted only in part is seen for what it is.
        polarity_head = nn.Linear(model.num_features, 4)
    images, labels = DigitsData("plain").train_dataset().tensors
    parameters = [*model.parameters(), *polarity_head.parameters()]
    steps = epochs * (len(images) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(parameters, lr=4e-3, weight_decay=1e-2)
    annealing = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in tqdm(range(epochs), unit="epoch"):
        order = torch.randperm(len(images), generator=generator)
        for batch in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            signs = draw_signs(len(batch), generator)
            polarity = signs.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
            features = model.features(augment(polarity * images[batch], generator))
            whole = signs.flatten(1).sum(dim=1).abs() == 4
            digit_loss = cross_entropy(model.head(features[whole]), labels[batch][whole])
            polarity_loss = binary_cross_entropy_with_logits(polarity_head(features), (signs.flatten(1) + 1) / 2)
            loss = digit_loss + POLARITY_WEIGHT * polarity_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            annealing.step()
    fix_scale(model)
    return model.requires_grad_(False).eval()


def draw_signs(count: int, generator: torch.Generator) -> Tensor:
    """Polarity of each quadrant, -1 or 1 `[count, 1, 2, 2]`: alike in the first two thirds, mixed in the rest."""
    signs = torch.randint(0, 2, (count, 1, 2, 2), generator=generator) * 2 - 1
    alike = count * 2 // 3
    signs[:alike] = signs[:alike, :, :1, :1]
    return signs.float()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by at most one pixel, soften, fade and roughen it, at random.

    What the classifier is trained to look through weighs little in a Fréchet distance of its features: they
    are to see strokes and polarity, rather than the last grey level of a stroke's edge.

    Args:
        images: floats `[B, 1, 8, 8]` in [-1, 1].
        generator: of the draws.

    Returns:
        uint8 `[B, 1, 8, 8]`.
    """
    padded = pad(images, (1, 1, 1, 1), mode="replicate")
    shift = torch.randint(0, 3, (2, len(images), 1), generator=generator)
    rows, columns = shift + torch.arange(8)
    batch = torch.arange(len(images))[:, None, None]
    shifted = padded[batch, 0, rows[:, :, None], columns[:, None, :]][:, None]
    softening, fading, noise_level = torch.rand(3, len(images), 1, 1, 1, generator=generator)
    blurred = conv2d(pad(shifted, (1, 1, 1, 1), mode="replicate"), BLUR)
    soft = torch.lerp(shifted, blurred, softening)
    faded = soft * (0.6 + 0.5 * fading)
    return to_uint8(faded + 0.6 * noise_level * torch.randn(images.shape, generator=generator))


@torch.no_grad()
def fix_scale(model: DigitsClassifier) -> None:
    """Scale the features to their total variance over the plain training digits; logits do not change."""
    features = model.features(DigitsData("plain").reference_images()).double()
    factor = (TOTAL_VARIANCE / features.var(dim=0).sum()).sqrt()
    model.scale *= factor
    model.head.weight /= factor


@torch.no_grad()
def held_out_accuracy(model: DigitsClassifier) -> tuple[float, float]:
    """Share of validation digits read rightly, 0 to 1: as they are, and inverted."""
    images, labels = DigitsData("plain").val_dataset().tensors
    plain, inverted = (
        (model.logits(to_uint8(sign * images)).argmax(dim=1) == labels).double().mean().item() for sign in (1, -1)
    )
    return plain, inverted


def main(args: Sequence[str] | None = None) -> None:
    """Train, print the held-out accuracies, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    place = Path(classifier.__file__).with_name(classifier.WEIGHTS)
    parser.add_argument("--output", type=Path, default=place, help="weights file")
    parser.add_argument("--seed", type=int, default=0, help="the weights are a function of it (default 0)")
    options = parser.parse_args(args)
    torch.set_num_threads(1)  # the order of sums, and with it the weights, would depend on the number
    model = train(options.seed)
    plain, inverted = held_out_accuracy(model)
    write_atomically(options.output, safetensors.torch.save(model.state_dict()))
    print(f"held-out accuracy: plain {plain:.4f}, inverted {inverted:.4f}; wrote {options.output}")


if __name__ == "__main__":
    main()
