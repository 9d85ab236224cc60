"""Batches that are decoded, copied and written while the next ones are drawn, on a simulated CUDA device."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.strategies import SingleDeviceStrategy
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from disa_framework.callbacks import ImageWriter, SampleFolder, Throughput
from disa_framework.data import RequestData
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Linear
from tests.cuda.simulation import Device, Event, Simulated, Stream, simulated_cuda
from tests.models.tiny import tiny_mar
from tests.models.tiny_autoencoder import tiny_autoencoder

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning", "ignore:Couldn't infer the batch indices"
)

COUNT, BATCH = 5, 2
SEEDS = range(3)


class Accelerator(CPUAccelerator):
    """Takes the simulated device for one of its own."""

    def setup_device(self, device: torch.device) -> None:
        pass


class Watch(Callback):
    """Notes how often the host has waited by the end of each batch."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.waits: list[int] = []

    def on_predict_batch_end(self, *args: object) -> None:
        self.waits.append(sum(self.device.waits.values()))


def module_on_cuda(**options: Any) -> ARDiffusionModule:
    """A tiny MAR and an autoencoder that makes images of its latents."""
    made = ARDiffusionModule(
        tiny_mar(), Linear(3, 2), num_stages=2, tokenizer=tiny_autoencoder(), seed=3, **options
    )
    return made.requires_grad_(False).to("cuda:0")


def predict(module: ARDiffusionModule, *callbacks: Callback, keep: bool = False) -> Any:
    strategy = SingleDeviceStrategy(torch.device("cuda:0"), Accelerator())
    trainer = Trainer(
        strategy=strategy, callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    data = RequestData(COUNT, torch.arange(COUNT) % 3, BATCH)
    return trainer.predict(module, datamodule=data, return_predictions=keep)


def written(path: Path, *others: Callback, **options: Any) -> NDArray[np.uint8]:
    """The files of a run `[COUNT, h, w, c]`."""
    folder = SampleFolder(path)
    folder.claim({})
    predict(module_on_cuda(**options), *others, ImageWriter(folder))
    return np.stack([np.asarray(Image.open(path / f"{index:06}.png")) for index in range(COUNT)])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.uint8]:
    """What one stream draws."""
    with simulated_cuda():
        images = written(tmp_path_factory.mktemp("expected"))
    assert len(np.unique(images.reshape(COUNT, -1), axis=0)) == COUNT
    return images


@pytest.mark.parametrize(("seed", "graphs"), [(0, False), (1, False), (1, True), (2, True)])
def test_whatever_stream_is_ahead_the_files_are_the_same(
    seed: int, graphs: bool, expected: NDArray[np.uint8], tmp_path: Path
) -> None:
    with simulated_cuda(seed):
        assert np.array_equal(written(tmp_path, overlap=True, graphs=graphs), expected)


class Copies(BasePredictionWriter):
    """Has images copied to the host, where they are once the device has come so far."""

    def __init__(self) -> None:
        super().__init__("batch")
        self.images: list[Tensor] = []

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Tensor, *batch: object
    ) -> None:
        self.images.append(prediction.to("cpu", non_blocking=True))


def copied(seed: int) -> Tensor:
    """Images of a run in which nobody waits before its end."""
    with simulated_cuda(seed) as device:
        copies = Copies()
        predict(module_on_cuda(overlap=True), copies)
        device.synchronize()
        return torch.cat(copies.images)


@pytest.mark.parametrize("left_out", ["nothing", "wait_stream", "record_stream"])
def test_a_race_would_be_seen(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = copied(0)
    if left_out != "nothing":
        monkeypatch.setattr(Stream if left_out == "wait_stream" else Simulated, left_out, lambda self, other: None)
    same = [torch.equal(copied(seed), right) for seed in SEEDS]
    assert all(same) if left_out == "nothing" else not all(same)


class Order(Callback):
    """Notes when the device has drawn the latents of each batch, and decoded them."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.drawn: list[Event] = []
        self.decoded: list[Event] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tokenizer: Any = pl_module.tokenizer
        self.decode, tokenizer.decode = tokenizer.decode, self.decoding

    def decoding(self, latents: Tensor) -> Tensor:
        self.drawn.append(self.device.default.record_event())
        images: Tensor = self.decode(latents)
        self.decoded.append(self.device.current.record_event())
        return images

    def ahead(self) -> int:
        """Batches that were drawn before the one before was decoded."""
        self.device.synchronize()
        return sum(b.elapsed_time(a) > 0 for a, b in zip(self.decoded, self.drawn[1:], strict=False))


@pytest.mark.parametrize("overlap", [False, True])
def test_a_batch_may_be_drawn_before_the_last_is_decoded(overlap: bool) -> None:
    ahead = 0
    for seed in SEEDS:
        with simulated_cuda(seed) as device:
            order = Order(device)
            predict(module_on_cuda(overlap=overlap), order, Copies())
            ahead += order.ahead()
    assert ahead > 0 if overlap else ahead == 0


@pytest.mark.parametrize("overlap", [False, True])
def test_between_batches_nothing_waits_but_for_files_and_at_the_end_for_the_device(
    overlap: bool, tmp_path: Path
) -> None:
    with simulated_cuda() as device:
        timer, watch = Throughput(), Watch(device)
        written(tmp_path, timer, watch, overlap=overlap)
        assert watch.waits[0] == watch.waits[-1]
        assert timer.seconds_per_image


def test_an_image_takes_as_long_as_the_device_is_at_work_however_batches_overlap() -> None:
    seconds = {}
    for overlap in (False, True):
        with simulated_cuda() as device:
            timer = Throughput()
            predict(module_on_cuda(overlap=overlap), timer, Copies())
            device.synchronize()
            seconds[overlap] = timer.seconds_per_image
    assert seconds[True] == pytest.approx(seconds[False], rel=0.2)


class Epoch(BasePredictionWriter):
    """Is given all images at the end of the epoch."""

    def __init__(self) -> None:
        super().__init__("epoch")
        self.images: list[Tensor] = []

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], *batches: object
    ) -> None:
        self.images += predictions


class Holds(Callback):
    """Looks at the images when all are drawn."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *batch: object
    ) -> None:
        self.outputs.append(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images = [images.cpu() for images in self.outputs]


@pytest.mark.parametrize("seed", SEEDS)
def test_whoever_keeps_images_has_them_whole(seed: int) -> None:
    expected = copied(0)
    with simulated_cuda(seed):
        kept = predict(module_on_cuda(overlap=True), Copies(), keep=True)
        assert torch.equal(torch.cat(kept), expected)
    with simulated_cuda(seed):
        epoch, holds = Epoch(), Holds()
        predict(module_on_cuda(overlap=True), epoch, Copies())
        assert torch.equal(torch.cat(epoch.images), expected)
        predict(module_on_cuda(overlap=True), holds, Copies())
        assert torch.equal(torch.cat(holds.images), expected)


def test_a_module_can_be_copied_once_it_has_drawn() -> None:
    with simulated_cuda():
        module = module_on_cuda(overlap=True)
        predict(module, Copies())
        assert not copy.deepcopy(module._overlap)._streams  # type: ignore[union-attr]


class Stop(Callback):
    def on_predict_batch_end(self, *args: object) -> None:
        raise KeyError("stop")


def test_a_run_that_fails_leaves_the_current_stream_as_it_was() -> None:
    with simulated_cuda() as device:
        with pytest.raises(KeyError):
            predict(module_on_cuda(overlap=True), Copies(), Stop())
        assert device.current is device.default


def test_other_devices_have_one_order_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="one batch after the other: there is no CUDA device"):
        module = ARDiffusionModule(tiny_mar(), overlap=True)
    assert not module.configure_callbacks()
