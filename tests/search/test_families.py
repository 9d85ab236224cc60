"""`disa-search` on every published family, with its own configuration around a tiny random model."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from disa_framework import SamplingConfig
from disa_framework.cli.search import search
from disa_framework.metrics import FeatureExtractor, Features, save_statistics
from disa_framework.models import ARDiffusionModel
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_flowar, tiny_xar
from tests.models.tiny_harmon import PROMPTS, save_tokenizer, tiny_harmon

TINY: dict[str, Callable[..., ARDiffusionModel]] = {
    "mar": tiny_mar, "flowar": tiny_flowar, "xar": tiny_xar, "harmon": tiny_harmon
}  # fmt: skip
LIMIT = 24
QUICK = ["--evaluations", str(LIMIT), "--rungs", "[3, 6]", "--batch_size", "3", "--trials", "3", "--seeds", "1"]


class Corner(FeatureExtractor):
    """Sees a few pixels."""

    num_features = 3

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, :2, :2].flatten(1)[:, :3] / 255


def configured(family: str, folder: Path) -> list[str]:
    """Options for the family's search, with little in place of what is large and what has to be fetched."""
    options = {"tokenizer": save_tokenizer(folder / "words")} if family == "harmon" else {}
    model = TINY[family](**options)
    torch.save(model.state_dict(), folder / "tiny.pth")
    save_statistics(folder / "reference.npz", Features(torch.full((3,), 0.5), 0.1 * torch.eye(3)))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    metric = {"features": {"class_path": f"{__name__}.Corner"}, "reference": str(folder / "reference.npz")}
    content: dict[str, Any] = {
        "model": {"class_path": f"{TINY[family].__module__}.{TINY[family].__name__}", "init_args": options},
        "num_stages": min(4, model.max_stages),
        "metric": {"class_path": "disa_framework.metrics.quality.FID", "init_args": metric},
        "prompts": str(folder / "prompts.txt") if family == "harmon" else None,
        "profile_samples": 3,
        "ckpt_path": str(folder / "tiny.pth"), "output": str(folder / "found"), "trainer": {"accelerator": "cpu"},
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return ["--config", f"{family}/search", "--config", str(folder / "tiny.yaml"), *QUICK]


@pytest.mark.parametrize("family", TINY)
def test_every_published_family_is_calibrated_and_searched(family: str, tmp_path: Path) -> None:
    args, folder = configured(family, tmp_path), tmp_path / "found"
    calibrated = search([*args, "--method", "calibrate"]).sampling
    calibrated.save(tmp_path / "calibrated.yaml")
    found = search([*args, "--starts", f"[{tmp_path}/calibrated.yaml]"])
    with (folder / "trials.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["start"] for row in rows] == [f"{tmp_path}/calibrated.yaml (given)", "Calibrated", "Learned"]
    assert all(row["state"] == "whole" and float(row["cost"]) <= LIMIT for row in rows)
    assert " ".join(map(str, found.sampling.budget)) in [row["budget"] for row in rows]
    assert SamplingConfig.load(folder / "best.yaml") == found.sampling
    assert (folder / "report.html").exists() and len(list(folder.glob("profile-*.safetensors"))) == 1
