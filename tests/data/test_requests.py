"""Requests are the same whoever draws them and whatever is drawn already."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer

from disa_framework.data import Request, RequestData
from disa_framework.sampling.condition import Condition

PHONES = {"phones": torch.arange(10).view(5, 2), "voices": (torch.arange(5), list("abcde"))}
KINDS = pytest.mark.parametrize(
    "condition", [torch.arange(5), list("abcde"), PHONES, None], ids=["labels", "prompts", "a dict", "none"]
)


def batches(
    count: int, batch_size: int, finished: Collection[int] = (), condition: Condition | None = None, ranks: int = 0
) -> list[Request]:
    """What is left to draw, on all ranks together."""
    data = RequestData(count, condition, batch_size, lambda: finished)
    if ranks:
        trainer: Any = SimpleNamespace(world_size=ranks)
        data.trainer = trainer
    data.setup("predict")
    return list(data.predict_dataloader())


def places(drawn: list[Request]) -> list[list[int]]:
    return [batch.indices.tolist() for batch in drawn]


def plain(condition: Condition) -> Any:
    if isinstance(condition, torch.Tensor):
        return condition.tolist()
    if isinstance(condition, dict):
        return {name: plain(part) for name, part in condition.items()}
    return [plain(part) for part in condition] if isinstance(condition, tuple) else condition


def conditions(drawn: list[Request]) -> list[Any]:
    return [plain(batch.condition) for batch in drawn]


@KINDS
def test_a_request_has_the_condition_of_its_samples(condition: Condition | None) -> None:
    drawn = batches(5, 2, [0, 1], condition)
    assert places(drawn) == [[2, 3], [4]]
    expected = {
        torch.Tensor: [[2, 3], [4]],
        list: [["c", "d"], ["e"]],
        dict: [
            {"phones": [[4, 5], [6, 7]], "voices": [[2, 3], ["c", "d"]]},
            {"phones": [[8, 9]], "voices": [[4], ["e"]]},
        ],
    }
    assert conditions(drawn) == expected.get(type(condition), [None, None])


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
    data = RequestData(4, None, 2, lambda: done)
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
        self.seen: list[Request] = []

    def predict_step(self, batch: Request, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return batch.indices


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning")
@KINDS
def test_the_predict_loop_gets_whole_requests(condition: Condition | None) -> None:
    echo = Echo()
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, **quiet)
    trainer.predict(echo, datamodule=RequestData(5, condition, 2, lambda: [0, 1]), return_predictions=False)
    assert all(isinstance(batch, Request) for batch in echo.seen)
    assert places(echo.seen) == [[2, 3], [4]]
    assert conditions(echo.seen) == conditions(batches(5, 2, [0, 1], condition))


@pytest.mark.parametrize("options", [{"count": 0}, {"batch_size": 0}, {"count": -3}], ids=str)
def test_sizes_below_1_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1 sample, and 1 in a batch; got"):
        RequestData(**{"count": 4, **options})


@pytest.mark.parametrize("condition", [torch.arange(3), list("abc"), {"a": torch.arange(3), "b": list("abc")}])
def test_a_condition_of_another_length_is_refused(condition: Condition) -> None:
    with pytest.raises(ValueError, match="4 samples need a condition of as many, got one of 3"):
        RequestData(4, condition)


def test_requests_stay_on_the_host_where_they_are_checked() -> None:
    request = Request(torch.arange(3), torch.tensor([1, 0, 2]))
    assert RequestData(3).transfer_batch_to_device(request, torch.device("meta"), 0) is request
