"""Samples are written while the next batch is drawn: all of them, in little memory, and no error is lost."""

from __future__ import annotations

import gc
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from disa_framework.callbacks import FolderWriter, SampleFolder
from disa_framework.data import RequestData
from disa_framework.data.requests import Request
from disa_framework.measure.throughput import Throughput
from disa_framework.metrics import to_uint8
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.config import SamplingConfig
from disa_framework.schedules import Constant
from disa_framework.tokenizers import Identity
from tests.models.tiny import tiny_mar

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning", "ignore:Couldn't infer the batch indices"
)

COUNT, BATCH = 12, 3
BLANK = torch.zeros(3, 5, 4, dtype=torch.uint8)
PROMPTS: list[dict[str, Any]] = [{"prompt": str(number)} for number in range(COUNT)]


def picture(index: int) -> Tensor:
    """Image `index`, `[3, 5, 4]`, beyond [-1, 1] here and there."""
    return 0.6 * torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(index))


class Painter(LightningModule):
    """Draws pictures; before batch `k` it calls `before(k)`."""

    def __init__(self, before: Callable[[int], object] = int) -> None:
        super().__init__()
        self.before = before
        self.drawn = 0

    def predict_step(self, batch: Request, batch_idx: int) -> Tensor:
        self.before(batch_idx)
        self.drawn += 1
        return torch.stack([picture(index) for index in batch.indices.tolist()])


class Watched(SampleFolder):
    """Calls `before(index)` before it writes."""

    def __init__(self, path: Path, before: Callable[[int], object]) -> None:
        super().__init__(path)
        self.before = before

    def write(self, index: int, sample: Tensor) -> None:
        self.before(index)
        super().write(index, sample)


def draw(module: LightningModule, *callbacks: Callback, count: int = COUNT, batch_size: int = BATCH) -> None:
    runner = Trainer(
        accelerator="cpu", devices=1, callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        enable_checkpointing=False,
    )  # fmt: skip
    data = RequestData(count, torch.zeros(count, dtype=torch.int64), batch_size)
    runner.predict(module, datamodule=data, return_predictions=False)


def claimed(folder: SampleFolder) -> SampleFolder:
    folder.claim({})
    return folder


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("folder-writer")]


def test_files_are_those_of_a_plain_write(tmp_path: Path) -> None:
    folder, plain = claimed(SampleFolder(tmp_path / "drawn")), claimed(SampleFolder(tmp_path / "plain"))
    folder.write(4, BLANK)
    writer = FolderWriter(folder)
    draw(Painter(), writer, count=7)
    draw(Painter(), writer, count=COUNT)  # one writer may serve several runs
    for index in range(COUNT):
        plain.write(index, BLANK if index == 4 else to_uint8(picture(index)))
        assert folder.file(index).read_bytes() == plain.file(index).read_bytes()


def test_a_batch_is_written_while_the_next_is_drawn(tmp_path: Path) -> None:
    drawing = [threading.Event() for _ in range(COUNT // BATCH)]

    def wait_for_the_next(index: int) -> None:
        following = index // BATCH + 1
        assert following == len(drawing) or drawing[following].wait(60), "the next batch waits for this one"

    folder = claimed(Watched(tmp_path, wait_for_the_next))
    draw(Painter(lambda batch: drawing[batch].set()), FolderWriter(folder))
    assert folder.finished() == set(range(COUNT))


def test_at_most_two_batches_are_held(tmp_path: Path) -> None:
    folder = claimed(Watched(tmp_path, lambda index: time.sleep(0.01)))

    def older_batches_are_written(batch: int) -> None:
        assert folder.finished() >= set(range(BATCH * (batch - 1)))

    draw(Painter(older_batches_are_written), FolderWriter(folder))


@pytest.mark.parametrize(("lost", "batches"), [(1, 2), (COUNT - 1, COUNT // BATCH)], ids=["first batch", "last batch"])
def test_an_error_of_the_disk_is_raised_after_the_next_batch_or_at_the_end(
    lost: int, batches: int, tmp_path: Path
) -> None:
    folder = claimed(SampleFolder(tmp_path, PROMPTS))
    folder.file(lost).parent.rmdir()
    painter = Painter()
    with pytest.raises(FileNotFoundError, match=rf"{lost:05}/samples"):
        draw(painter, FolderWriter(folder))
    assert painter.drawn == batches
    assert folder.finished() == set(range(BATCH * batches)) - {lost}


def test_a_batch_with_a_pixel_that_is_no_number_is_not_written_and_its_neighbors_are(tmp_path: Path) -> None:
    class Broken(Painter):
        def predict_step(self, batch: Request, batch_idx: int) -> Tensor:
            images = super().predict_step(batch, batch_idx)
            if batch_idx == 1:
                images[2, 0, 0, 0] = torch.inf
            return images

    folder = claimed(SampleFolder(tmp_path))
    with pytest.raises(ValueError, match="NaN or infinite values"):
        draw(Broken(), FolderWriter(folder))
    assert folder.finished() == set(range(3 * BATCH)) - set(range(BATCH, 2 * BATCH))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Lightning leaves Ctrl-C without effect."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("stop", "raised"), [(KeyboardInterrupt, SystemExit), (RuntimeError, RuntimeError)])
def test_what_was_drawn_before_an_interruption_is_written(
    stop: type[BaseException], raised: type[BaseException], tmp_path: Path
) -> None:
    def stop_before_the_third(batch: int) -> None:
        if batch == 2:
            raise stop

    folder = claimed(Watched(tmp_path, lambda index: time.sleep(0.05)))
    with pytest.raises(raised):
        draw(Painter(stop_before_the_third), FolderWriter(folder))
    assert folder.finished() == set(range(2 * BATCH))


class Enlarge(Identity):
    """Decodes to images `[B, 1, 64, 64]`, whose files have some kilobytes."""

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents, size=(64, 64), mode="bicubic")


class Held(Callback):
    """Bytes of all tensors, and of what Python has allocated, after every tenth batch."""

    def __init__(self) -> None:
        self.tensors: list[int] = []
        self.python: list[int] = []

    def on_predict_batch_end(self, *arguments: Any) -> None:
        if arguments[4] % 10 != 9:
            return
        # By its type: to look at the class of a deprecated object warns, and the compiler's fake tensors hold nothing.
        tensors = [t for t in gc.get_objects() if type(t) in (Tensor, Parameter) and t.layout == torch.strided]
        storages = [t.untyped_storage() for t in tensors if t.device.type == "cpu"]
        self.tensors.append(sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()))
        self.python.append(tracemalloc.get_traced_memory()[0])


def test_a_long_run_holds_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    held, module = Held(), ARDiffusionModule(tiny_mar(), SamplingConfig(Constant(2)), Enlarge())
    folder = claimed(SampleFolder(tmp_path))
    tracemalloc.start()
    try:
        draw(module, Throughput(), FolderWriter(folder), held, count=400, batch_size=10)
    finally:
        tracemalloc.stop()
    two_batches = 2 * 10 * 64 * 64
    assert len(held.tensors) == 4 and max(held.tensors) <= held.tensors[0] + two_batches
    files = sum(folder.file(index).stat().st_size for index in range(200, 400))
    assert held.python[-1] - held.python[1] < files / 2
