"""Loader processes need next to no shared memory, and say so where there is not even that."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from disa_framework.data import ImageFolderData
from disa_framework.data.reading import ImageData, Reading
from disa_framework.data.workers import worker_options
from tests.tokenizers.tiny_autoencoder import write_images

_NEW_MOUNTS = 0x20000  # CLONE_NEWNS


def with_shared_memory(size: str, work: Callable[[], object]) -> str:
    """What is raised by work in a process of its own, whose /dev/shm holds so much; empty if nothing is."""
    outlet, inlet = os.pipe()
    if child := os.fork():
        os.close(inlet)
        with open(outlet) as said:
            text = said.read()
        assert os.waitpid(child, 0)[1] == 0, text or "it waits for ever"
        return text
    signal.alarm(40)
    try:
        assert ctypes.CDLL(None).unshare(_NEW_MOUNTS) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)
        work()
    except (OSError, ValueError) as error:
        os.write(inlet, str(error).encode())
    except BaseException:
        os.write(inlet, traceback.format_exc().encode())
        os._exit(1)
    os._exit(0)


def images(index: int) -> Tensor:
    return torch.full((3, 256, 256), index, dtype=torch.uint8)


NEEDS_MOUNT = pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="mounts a small /dev/shm, as root can")


def predicted() -> Iterator[int]:
    data = ImageData(images, 64, Reading(batch_size=16, num_workers=2))
    data.setup("predict")
    return (int(place) for batch in data.predict_dataloader() for place in batch.pixels[:, 0, 0, 0])


def trained_on(folder: Path) -> Iterator[int]:
    data = ImageFolderData(str(folder), image_size=256, batch_size=8, num_workers=2)
    return (int(label) for _, labels in data.train_dataloader() for label in labels)


@NEEDS_MOUNT
def test_images_are_read_with_little_shared_memory(tmp_path: Path) -> None:
    write_images(tmp_path, 8)

    def work() -> None:
        assert list(predicted()) == list(range(64))
        assert len(list(trained_on(tmp_path))) == 24

    assert with_shared_memory("1m", work) == ""


@NEEDS_MOUNT
def test_without_any_it_is_told_what_to_do() -> None:
    said = with_shared_memory("8k", predicted)
    assert "--num_workers 0" in said and "--shm-size" in said and "\n" not in said


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_images_are_read_where_files_must_be_small() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        signal.alarm(40)  # in place of waiting for ever
        assert list(predicted()) == list(range(64))
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_tensors_of_every_kind_are_handed_over() -> None:
    tensors = [torch.rand(3, 4).bfloat16(), torch.tensor(3), torch.zeros(0, 5), torch.rand(4, 3).T, torch.ones(2) * 1j]
    loader: DataLoader[Tensor] = DataLoader(tensors, batch_size=None, collate_fn=lambda x: x, **worker_options(1))  # type: ignore[arg-type]
    for given, taken in zip(tensors, loader, strict=True):
        assert torch.equal(given, taken) and given.dtype == taken.dtype
        taken.zero_()
