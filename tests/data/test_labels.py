"""Batches of labels are the same whoever draws them and whatever is drawn already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer

from disa_framework.data import LabelsData
from disa_framework.data.labels import LabelBatch


def batches(
    num_images: int, batch_size: int, finished: Collection[int] = (), labels: Sequence[int] | None = (0, 1, 2),
    ranks: int = 0,
) -> list[LabelBatch]:  # fmt: skip
    """What is left to draw, on all ranks together."""
    data = LabelsData(num_images, labels, batch_size, lambda: finished)
    if ranks:
        trainer: Any = SimpleNamespace(world_size=ranks)
        data.trainer = trainer
    data.setup("predict")
    return list(data.predict_dataloader())


def places(drawn: list[LabelBatch]) -> list[list[int]]:
    return [batch.indices.tolist() for batch in drawn]


def test_labels_come_in_turn() -> None:
    drawn = batches(7, 4, labels=[5, 3, 8])
    labels = [label for batch in drawn if batch.labels is not None for label in batch.labels.tolist()]
    assert labels == [5, 3, 8, 5, 3, 8, 5]
    assert all(batch.labels is not None and batch.labels.dtype == torch.int64 for batch in drawn)


def test_unconditional_images_have_no_labels() -> None:
    drawn = batches(3, 2, labels=None)
    assert places(drawn) == [[0, 1], [2]]
    assert all(batch.labels is None for batch in drawn)


def test_batches_are_consecutive_and_the_last_may_be_smaller() -> None:
    assert places(batches(7, 3)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(
    ("finished", "left"),
    [
        ([], [[0, 1, 2], [3, 4, 5], [6]]),
        ([0, 1, 2], [[3, 4, 5], [6]]),
        ([0, 1, 4, 6], [[0, 1, 2], [3, 4, 5]]),
        ([3, 4, 5, 6, 100], [[0, 1, 2]]),
        (range(7), []),
    ],
)
def test_finished_batches_are_skipped_and_begun_ones_kept_whole(
    finished: Collection[int], left: list[list[int]]
) -> None:
    assert places(batches(7, 3, finished)) == left


def test_what_is_finished_is_asked_when_the_run_begins() -> None:
    done: list[int] = []
    data = LabelsData(4, [0], 2, lambda: done)
    done += [0, 1]
    data.setup("predict")
    assert places(list(data.predict_dataloader())) == [[2, 3]]
    done += [2, 3]
    data.setup("predict")
    assert not data.pending


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_rank_has_work_and_all_of_it_is_done(ranks: int) -> None:
    drawn = places(batches(5, 2, ranks=ranks))
    assert len(drawn) == max(3, ranks)
    assert {tuple(batch) for batch in drawn} == {(0, 1), (2, 3), (4,)}


def test_ranks_have_no_work_when_everything_is_finished() -> None:
    assert batches(4, 2, finished=range(4), ranks=3) == []


class Echo(LightningModule):
    """Keeps the batches that the predict loop hands it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[LabelBatch] = []

    def predict_step(self, batch: LabelBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return batch.indices


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("labels", [[0, 1], None], ids=["labels", "unconditional"])
def test_the_predict_loop_gets_whole_batches(labels: Sequence[int] | None) -> None:
    echo = Echo()
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, **quiet)
    trainer.predict(echo, datamodule=LabelsData(5, labels, 2, lambda: [0, 1]), return_predictions=False)
    assert places(echo.seen) == [[2, 3], [4]]
    assert all(isinstance(batch, LabelBatch) for batch in echo.seen)
    assert Counter(batch.labels is None for batch in echo.seen) == {labels is None: 2}


@pytest.mark.parametrize("options", [{"num_images": 0}, {"batch_size": 0}, {"num_images": -3}], ids=str)
def test_sizes_below_1_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="num_images >= 1 and batch_size >= 1, got"):
        LabelsData(**{"num_images": 4, "labels": None, **options})


def test_an_empty_list_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="labels is empty"):
        LabelsData(4, [])
