"""Fashion-MNIST is read as it is published, split evenly and the same way every time; damaged files are refused."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework.cli.download import download
from disa_framework.data.position import Position
from disa_framework.hub.published import PUBLISHED
from disa_framework.metrics.images import from_uint8, to_uint8
from disa_framework.toy.fashion import CLASSES, FOLDERS, FashionData, fashion, split

EACH = 6  # images of a class in the files made here
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def write_idx(path: Path, content: Tensor) -> None:
    header = struct.pack(f">HBB{content.ndim}I", 0, 8, content.ndim, *content.shape)
    path.write_bytes(gzip.compress(header + content.byte().numpy().tobytes(), 1))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Files like the published ones, with few images."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", EACH * len(CLASSES)), ("t10k", len(CLASSES))):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", torch.randint(256, (count, 28, 28), generator=generator))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", torch.randperm(count, generator=generator) % len(CLASSES))
    return str(tmp_path)


def as_set(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize(("part", "count"), [("train", 60), ("test", 10)])
def test_images_are_those_of_the_files(folder: str, part: Any, count: int) -> None:
    images, labels = fashion(part, folder)
    assert images.shape == (count, 1, 28, 28) and images.dtype == torch.uint8
    assert labels.bincount().tolist() == [count // 10] * 10 and labels.dtype == torch.int64
    file = Path(folder) / IMAGES.replace("train", "train" if part == "train" else "t10k")
    assert gzip.decompress(file.read_bytes())[16:] == images.numpy().tobytes()


@pytest.mark.parametrize(("polarity", "signs"), [("plain", 1), ("random", 2)])
def test_sides_share_nothing_and_hold_as_many_of_each_class(folder: str, polarity: Any, signs: int) -> None:
    data, (images, _) = FashionData(folder, polarity, batch_size=4, validation_size=20), fashion("train", folder)
    sides = [side.tensors for side in (data.train_dataset(), data.val_dataset())]
    assert [labels.bincount().tolist() for _, labels in sides] == [[4 * signs] * 10, [2 * signs] * 10]
    kinds = [images, 255 - images][:signs]
    assert as_set(torch.cat([pixels for pixels, _ in sides])) == as_set(from_uint8(torch.cat(kinds)))
    assert not as_set(sides[0][0]) & as_set(torch.cat([sides[1][0], from_uint8(255 - to_uint8(sides[1][0]))]))
    assert torch.equal(from_uint8(data.reference_images()), sides[0][0])


@pytest.mark.parametrize(("polarity", "num_workers"), [("plain", 0), ("random", 0), ("random", 1)])
def test_batches_are_full_and_their_images_keep_their_labels(folder: str, polarity: Any, num_workers: int) -> None:
    data = FashionData(folder, polarity, batch_size=7, validation_size=20, num_workers=num_workers)
    for loader, side in (
        (data.train_dataloader(), data.train_dataset()), (data.val_dataloader(), data.val_dataset())
    ):  # fmt: skip
        label_of = {image.numpy().tobytes(): int(label) for image, label in zip(*side.tensors, strict=True)}
        for images, labels in (batches := list(loader)):
            assert images.dtype == torch.float32 and images.shape[1:] == (1, 28, 28) and images.abs().max() <= 1
            assert [label_of[image.numpy().tobytes()] for image in images] == labels.tolist()
        sizes = [len(labels) for _, labels in batches]
        assert sizes[:-1] == [7] * (len(sizes) - 1)
    assert sum(sizes) == len(data.val_dataset())


def test_training_goes_on_within_its_epoch(folder: str) -> None:
    whole, rest = (FashionData(folder, batch_size=8, validation_size=10) for _ in range(2))
    rest.load_state_dict(Position(epoch=0, batches=2)._asdict())
    expected = list(whole.train_dataloader())[2:]
    for (images, labels), (same, their) in zip(rest.train_dataloader(), expected, strict=True):
        assert torch.equal(images, same) and torch.equal(labels, their)


def test_split_never_changes(folder: str) -> None:
    _, labels = fashion("train", folder)
    before = torch.get_rng_state()
    assert all(map(torch.equal, split(labels, 30), split(labels, 30)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"polarity": "both"}, "polarity='both'"),
        ({"validation_size": 0}, "validation_size=0.* from 10 to 50"),
        ({"validation_size": 15}, "validation_size=15.*multiple of 10"),
        ({"validation_size": 60}, "validation_size=60.* from 10 to 50"),
        ({"validation_size": 10, "batch_size": 51}, "batch_size must .*50 .* got 51"),
    ],
)
def test_bad_values_are_refused(folder: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FashionData(folder, **arguments)


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_a_missing_file_is_named_with_what_to_do(folder: str, name: str) -> None:
    (Path(folder) / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}.*disa-download.*dataset-fashion-mnist.*--data.fold") as error:
        FashionData(folder)
    assert "\n" not in str(error.value)


def unpacked(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda content: gzip.compress(change(gzip.decompress(content)), 1)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-20],
    "a web page": lambda content: b"<!doctype html>",
    "changed within": lambda content: content[:20] + bytes(8) + content[28:],
    "unpacked": gzip.decompress,
    "of signed bytes": unpacked(lambda content: content[:2] + b"\x09" + content[3:]),
    "without a header": unpacked(lambda content: content[:3]),
    "too few": unpacked(lambda content: content[:-1]),
    "too many": unpacked(lambda content: content + b"\0"),
}


@pytest.mark.parametrize("name", [IMAGES, LABELS])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(folder: str, name: str, damage: str) -> None:
    file = Path(folder) / name
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.raises(ValueError, match=rf"{name} is damaged.*get it again") as error:
        FashionData(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [torch.arange(59) % 10, torch.arange(60) % 11])
def test_labels_that_do_not_fit_their_images_are_refused(folder: str, labels: Tensor) -> None:
    write_idx(Path(folder) / LABELS, labels)
    with pytest.raises(ValueError, match=f"{LABELS}.*60 images"):
        FashionData(folder)


# --- the published files ----------------------------------------------------------------------------------

DEBIAN = Path(FOLDERS[-1])
needs_debian = pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served as the published one, and a working directory that holds nothing."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served, work = tmp_path / "served", tmp_path / "work"
    work.mkdir()
    served.mkdir()
    monkeypatch.chdir(work)
    handler = partial(SimpleHTTPRequestHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{serving.server_port}"
        monkeypatch.setitem(PUBLISHED, "fashion-mnist", replace(PUBLISHED["fashion-mnist"], url=url))
        yield served
        serving.shutdown()


def test_downloaded_files_are_found(server: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published = PUBLISHED["fashion-mnist"]
    content = {name: (Path(folder) / name).read_bytes() for name in published.files}
    digests = tuple(hashlib.sha256(content[name]).hexdigest() for name in published.files)
    for name in published.files:
        (server / name).write_bytes(content[name])
    with pytest.raises(ValueError, match="another SHA-256"):
        download(["fashion-mnist"])
    monkeypatch.setitem(PUBLISHED, "fashion-mnist", replace(published, sha256=digests))
    download(["fashion-mnist"])
    for part in ("train", "test"):
        assert all(map(torch.equal, fashion(part), fashion(part, folder)))


@needs_debian
def test_the_digests_are_those_of_the_published_files(server: Path) -> None:
    for name in PUBLISHED["fashion-mnist"].files:  # Debian left the names and the time of the archives out
        stamp = struct.pack("<4BI2B", 31, 139, 8, 8, 1504176606 if name.startswith("train") else 1504176627, 0, 3)
        content = (DEBIAN / name).read_bytes()
        (server / name).write_bytes(stamp + name.removesuffix(".gz").encode() + b"\0" + content[10:])
    download(["fashion-mnist"])
    assert all(map(torch.equal, fashion("test"), fashion("test", str(DEBIAN))))


@needs_debian
def test_the_published_files_are_found_and_balanced() -> None:
    data = FashionData(batch_size=500)
    assert data.train_dataset().tensors[1].bincount().tolist() == [5500] * 10
    assert fashion("test")[1].bincount().tolist() == [1000] * 10
    assert data.reference_images().float().mean() == pytest.approx(0.2860 * 255, rel=0.01)  # the published mean
