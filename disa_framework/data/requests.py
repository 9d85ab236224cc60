"""What to draw: the samples of a run, in batches that do not depend on ranks or restarts.

A batch is a unit: sample `i` always falls into batch `i // batch_size`, whichever rank draws it and whether or
not the run was killed before. Rounding depends on who shares a batch, so this makes files equal to the bit.
"""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from disa_framework.sampling.condition import Condition, check_count, size, take


def predictor(options: Mapping[str, Any], *callbacks: Callback) -> Trainer:
    """Lightning's trainer, for its predict loop alone.

    Raises:
        ValueError: if the options have it leave samples out.
    """
    share = options.get("limit_predict_batches")  # where it is a whole number, of batches
    if options.get("fast_dev_run") or (share is not None and (isinstance(share, int) or share != 1)):
        raise ValueError(
            f"--trainer.limit_predict_batches (got {share}) and --trainer.fast_dev_run would leave samples out: leave "
            "them out, and say how many there are to be"
        )
    quiet = {"logger": False, "enable_checkpointing": False, "inference_mode": True}
    return Trainer(**{**options, **quiet, "callbacks": [*callbacks]})


def predict(trainer: Trainer, module: LightningModule, data: RequestData) -> None:
    """Runs the predict loop, without what Lightning says about loaders: these only count."""
    with warnings.catch_warnings():
        for message in ("Couldn't infer the batch indices", ".*does not have many workers"):
            warnings.filterwarnings("ignore", message)
        trainer.predict(module, datamodule=data, return_predictions=False)


class Request(NamedTuple):
    """Samples to draw together.

    Attributes:
        indices: `[B]` int64, their places in the run.
        condition: of `B` samples, see `disa_framework.sampling.condition`; `None` for unconditional ones.
    """

    indices: Tensor
    condition: Condition | None


class _Requests(Dataset[Request]):
    """Whole batches as items, so that a distributed sampler hands out whole batches."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, place: int) -> Request:
        return self.requests[place]


class RequestData(LightningDataModule):
    """The requests of a run, for prediction. SIGTERM does during it what it did before.

    Args:
        count: samples of the run.
        condition: of all of them; `None` draws unconditional samples.
        batch_size: samples drawn together.
        finished: tells which samples exist already. Batches that are complete are skipped. Asked once all
            ranks have arrived and before any draws, so that they agree.

    Raises:
        ValueError: if sizes are below 1, or the condition is of another number of samples.
    """

    def __init__(
        self,
        count: int,
        condition: Condition | None = None,
        batch_size: int = 64,
        finished: Callable[[], Collection[int]] = tuple,
    ) -> None:
        super().__init__()
        check_count(count)
        if count < 1 or batch_size < 1:
            raise ValueError(f"need at least 1 sample, and 1 in a batch; got {count}, and {batch_size} in a batch")
        if condition is not None and size(condition) != count:
            raise ValueError(f"{count} samples need a condition of as many, got one of {size(condition)}: see cycled")
        self.count, self.condition, self.batch_size, self.finished = count, condition, batch_size, finished
        self.pending: list[Request] = []

    def setup(self, stage: str) -> None:
        self._sigterm = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
        done = frozenset(self.finished())
        starts = range(0, self.count, self.batch_size)
        batches = [range(start, min(start + self.batch_size, self.count)) for start in starts]
        self.pending = [self._request(places) for places in batches if not done.issuperset(places)]
        # Lightning refuses a rank without work; one that would have none draws a batch that another draws too.
        ranks = self.trainer.world_size if self.trainer else 1
        self.pending += self.pending[:1] * (ranks - len(self.pending))

    def predict_dataloader(self) -> DataLoader[Request]:
        return DataLoader(_Requests(self.pending), batch_size=None, collate_fn=_as_it_is)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        # In place of Lightning's own, which goes on, or waits for processes that are at something else.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._sigterm)
        return batch

    def transfer_batch_to_device(self, batch: Request, device: torch.device, dataloader_idx: int) -> Request:
        return batch  # what is asked for is checked: on the device that would wait for the batch before

    def _request(self, places: range) -> Request:
        return Request(torch.tensor(places), None if self.condition is None else take(self.condition, places))


def _as_it_is(request: Any) -> Any:
    """Instead of PyTorch's own, which makes lists of tuples."""
    return request
