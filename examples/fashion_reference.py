"""Makes the statistics of Fashion-MNIST's training images, a file of the package, and tells what distances mean.

python -m examples.fashion_reference        a minute
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from disa_framework.metrics.feature_set import Features, features_of
from disa_framework.metrics.fid import frechet_distance, load_statistics, save_statistics
from disa_framework.metrics.images import from_uint8, to_uint8
from disa_framework.toy.classifier import FashionFeatures
from disa_framework.toy.fashion import CLASSES, FashionData, fashion
from examples.classifiers import blurred, by_patches

COUNT = 10_000
"""How many images are altered."""


def altered(images: Tensor, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Images uint8 `[N, 1, 28, 28]` with defects that drawn ones may have, by name; noise is of pixels in [-1, 1]."""
    pixels, grid = from_uint8(images), (len(images), 1, 7, 7)
    yield "as they are", images
    for sigma in (0.02, 0.05, 0.1, 0.2):
        yield f"noise {sigma}", to_uint8(pixels + sigma * torch.randn(pixels.shape, generator=generator))
    for share in (0.25, 0.5, 1):
        yield f"blurred by {share}", to_uint8(torch.lerp(pixels, blurred(pixels), share))
    for share in (0.95, 0.9, 0.8):
        yield f"contrast {share}", to_uint8(share * pixels)
        yield f"brightness {share}", to_uint8(share * (pixels + 1) - 1)
    for sigma in (0.02, 0.05, 0.1):
        offsets = by_patches(torch.randn(grid, generator=generator))
        yield f"4x4 patches brighter or darker by {sigma}", to_uint8(pixels + sigma * offsets)
    for share in (0.02, 0.1):
        strangers = by_patches(torch.rand(grid, generator=generator) < share)
        yield f"{share} of the 4x4 patches of another image", torch.where(strangers, images.roll(1, dims=0), images)
    yield "averaged in pairs", to_uint8((pixels + pixels.roll(1, dims=0)) / 2)
    yield "half the resolution", to_uint8(interpolate(avg_pool2d(pixels, 2), scale_factor=2))


def distances(network: FashionFeatures, data: FashionData, reference: Features) -> Iterator[tuple[str, float]]:
    """Fréchet distances to a reference, by what was done to the images; and of halves of them to one another."""
    images, labels = data.reference_images(), data.train_dataset().tensors[1]
    features = features_of(network, images).vectors
    assert features is not None
    generator = torch.Generator().manual_seed(0)
    for number in (1, 2, 3):
        one, other = torch.randperm(len(images), generator=generator).chunk(2)
        yield f"one random half to the other, split {number}", frechet_distance(of(features[one]), of(features[other]))
    for count in (1000, 5000):
        some = torch.randperm(len(images), generator=generator)[:count]
        yield f"{count} training images", frechet_distance(of(features[some]), reference)
    yield "10000 test images", frechet_distance(features_of(network, fashion("test")[0]), reference)
    chosen = images[torch.randperm(len(images), generator=generator)[:COUNT]]
    for name, others in altered(chosen, generator):
        yield f"{COUNT} training images, {name}", frechet_distance(features_of(network, others), reference)
    for number, name in enumerate(CLASSES):
        yield f"without {name}", frechet_distance(of(features[labels != number]), reference)


def of(vectors: Tensor) -> Features:
    """Mean and covariance of features `[N, F]`."""
    exact = vectors.double()
    return Features(exact.mean(dim=0), torch.cov(exact.T))


def main(args: Sequence[str] | None = None) -> None:
    """Write the statistics, print the distances."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FashionFeatures.reference, help="statistics file, .npz")
    options = parser.parse_args(args)
    network, data = FashionFeatures(), FashionData()
    mu, sigma, *_ = features_of(network, data.reference_images())
    save_statistics(options.output, Features(mu.float(), sigma.float()))
    for name, distance in distances(network, data, load_statistics(options.output)):
        print(f"{distance:8.4f}  {name}", flush=True)


if __name__ == "__main__":
    main()
