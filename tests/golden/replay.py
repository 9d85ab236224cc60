"""Which replay fits a case."""

from __future__ import annotations

from pathlib import Path

from tests.golden import emigm, flowar, harmon, mar, nova, spherear, vae, xar
from tests.golden.case import Case, Report

REPLAYS = {
    "emigm": emigm.replay_sampling,
    "emigm_train": emigm.replay_training,
    "flowar": flowar.replay_sampling,
    "flowar_train": flowar.replay_training,
    "harmon": harmon.replay,
    "mar": mar.replay_sampling,
    "mar_train": mar.replay_training,
    "nova": nova.replay,
    "spherear": spherear.replay_sampling,
    "spherear_train": spherear.replay_training,
    "unipic": harmon.replay,
    "vae": vae.replay,
    "xar": xar.replay_sampling,
    "xar_train": xar.replay_training,
}


def replay(folder: str | Path) -> Report:
    """Replays the case in `folder`.

    Raises:
        ValueError: if its family has no replay yet.
    """
    case = Case.load(folder)
    family = case.info["family"]
    if family not in REPLAYS:
        raise ValueError(f"no replay for the family {family!r}; there are {', '.join(sorted(REPLAYS))}")
    return REPLAYS[family](case)
