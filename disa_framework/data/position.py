"""Where in its epochs training stands, and goes on after a checkpoint."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning import Trainer


class Position(NamedTuple):
    """Where training goes on.

    Attributes:
        epoch: from 0.
        batches: of that epoch that are trained on, on each device.
    """

    epoch: int
    batches: int


def position(trainer: Trainer) -> Position:
    """That of the last optimizer step: batches whose gradients wait for others to be added are trained on again."""
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress.current
    counts: Any = loop.epoch_loop.batch_progress.current
    epoch, batches = max(0, epochs.started - 1), counts.processed  # an epoch that is over counts until the next begins
    if batches >= trainer.num_training_batches:
        return Position(epoch + 1, 0)
    return Position(epoch, batches - batches % trainer.accumulate_grad_batches)


def settle(loops: dict[str, Any], place: Position, steps: int) -> None:
    """Makes the progress in a checkpoint of Lightning's that of a run between two batches.

    Lightning keeps the counts of the moment at which a checkpoint is written, of which some differ before and after a
    hook; going on, it then trains on a batch too many, or leaves an epoch out.

    Args:
        loops: of the checkpoint's `fit_loop`.
        place: where to go on.
        steps: of the optimizer so far.
    """
    begun = place.epoch + bool(place.batches)
    for counts in loops["epoch_progress"].values():
        counts.update(ready=begun, started=begun, processed=place.epoch, completed=place.epoch)
    batches = loops["epoch_loop.batch_progress"]
    for counts, done in ((batches["current"], place.batches), (batches["total"], batches["total"]["processed"])):
        counts.update(ready=done, started=done, processed=done, completed=done)
    batches["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = steps
