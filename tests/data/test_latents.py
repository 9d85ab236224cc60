"""Cached latents are read as they were written, and drawn from as training on images draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from disa_framework.data import LatentsData
from disa_framework.data.indexed import DamagedFileError
from disa_framework.data.latents import Latents, LatentsFolder
from disa_framework.module import ARDiffusionModule
from tests.models.tiny import tiny_mar

COUNT, SHARD = 10, 4
MADE: dict[str, Any] = {"num_images": COUNT, "shard_size": SHARD, "classes": ["ant", "bee"], "scale": 0.5}


def moments() -> Tensor:
    """`[10, 2, 2, 4, 4]`: means 0 … 9 and, mirrored, 100 … 109; a deviation of 0.1."""
    means = torch.arange(COUNT).float()[:, None] + torch.tensor([0.0, 100.0])
    log_variance = torch.full((COUNT, 2), 2 * torch.tensor(0.1).log().item())
    return torch.stack((means, log_variance), dim=-1)[..., None, None].expand(-1, -1, -1, 4, 4)


@pytest.fixture
def folder(tmp_path: Path) -> LatentsFolder:
    """Ten images of two classes in three shards."""
    folder = LatentsFolder(tmp_path / "latents")
    folder.claim(MADE)
    for shard, part in enumerate(moments().split(SHARD)):
        folder.write(shard, part, torch.arange(SHARD * shard, SHARD * shard + len(part)) % 2)
    return folder


def test_without_draws_latents_are_scaled_means(folder: LatentsFolder) -> None:
    items = Latents(folder.path)
    assert len(items) == COUNT and items.classes == ("ant", "bee")
    for index in range(COUNT):
        latents, label = items[index]
        assert torch.equal(latents, torch.full((1, 4, 4), 0.5 * index)) and label == index % 2


def test_draws_are_posterior_samples_of_either_image(folder: LatentsFolder) -> None:
    items = Latents(folder.path)
    drawn = torch.stack([torch.stack([items[index, epoch][0] for epoch in range(60)]) for index in range(COUNT)])
    mirrored = drawn.mean(dim=(2, 3, 4)) > 25
    assert 0.45 < mirrored.float().mean() < 0.55 and mirrored.any(1).all() and not mirrored.all(1).any()
    means = 0.5 * (torch.arange(COUNT).float()[:, None] + 100 * mirrored.float())
    noise = (drawn - means[..., None, None, None]) / 0.05
    assert noise.mean().abs() < 0.05 and abs(noise.std() - 1) < 0.03
    assert torch.equal(items[3, 7][0], drawn[3, 7])
    assert not torch.equal(Latents(folder.path, seed=1)[3, 7][0], drawn[3, 7])


def test_batches_are_latents_and_labels(folder: LatentsFolder) -> None:
    data = LatentsData(str(folder.path), batch_size=4, validation=0.2, num_workers=1)
    batches = list(data.train_dataloader())
    assert [tuple(latents.shape) for latents, _ in batches] == [(4, 1, 4, 4)] * 2 and data.num_classes == 2
    means = [(2 * latents.mean(dim=(1, 2, 3))).round().long() % 100 for latents, _ in batches]
    assert set(torch.cat(means).tolist()) == set(data.train_indices)
    assert all(torch.equal(mean % 2, labels) for mean, (_, labels) in zip(means, batches, strict=True))
    ((latents, labels),) = data.val_dataloader()
    assert latents[:, 0, 0, 0].tolist() == [0.5 * index for index in data.validation_indices] and len(labels) == 2


def test_half_precision_is_read_as_single(folder: LatentsFolder) -> None:
    folder.write(0, moments()[:SHARD].half(), torch.zeros(SHARD, dtype=torch.long))
    assert Latents(folder.path)[1, 0][0].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*in eval mode", "ignore:Total length of `DataLoader` across ranks is zero")
@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_a_model_trains_on_latents_without_a_tokenizer(
    validation: float, folder: LatentsFolder, tmp_path: Path
) -> None:
    data = LatentsData(str(folder.path), batch_size=4, validation=validation)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=2, default_root_dir=tmp_path, logger=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(ARDiffusionModule(tiny_mar(std=None).train()), datamodule=data)
    assert trainer.global_step == 4 and ("val_loss" in trainer.callback_metrics) == bool(validation)


# --- what is refused --------------------------------------------------------------------------------------


def test_a_folder_that_is_not_complete_is_refused(folder: LatentsFolder) -> None:
    folder.file(1).unlink()
    with pytest.raises(ValueError, match=r"1 shards are missing in .*: run disa-cache again"):
        LatentsData(str(folder.path))
    with pytest.raises(FileNotFoundError, match=r"no latents in .*: make them with disa-cache"):
        LatentsData(str(folder.path.parent))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "{}", '{"identity": {}}', json.dumps({"identity": {**MADE, "num_images": None}})]
)
def test_a_damaged_manifest_is_named(content: str, folder: LatentsFolder) -> None:
    folder.manifest.write_text(content)
    with pytest.raises(ValueError, match=r"latents\.json is damaged"):
        LatentsData(str(folder.path))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_damaged_shard_is_named(share: float, folder: LatentsFolder) -> None:
    content = folder.file(1).read_bytes()
    folder.file(1).write_bytes(content[: int(share * len(content))])
    assert Latents(folder.path)[0][1] == 0
    with pytest.raises(DamagedFileError, match=r"000001\.safetensors is damaged .*: delete it and run disa-cache"):
        Latents(folder.path)[5]


def test_a_claimed_folder_takes_the_same_identity_alone(folder: LatentsFolder) -> None:
    leftover, notes = folder.path / ".000009.safetensors.123.tmp", folder.path / ".notes.tmp"
    leftover.write_bytes(b"half a shard")
    notes.touch()
    folder.claim(MADE)
    assert not leftover.exists() and notes.exists() and folder.finished() == {0, 1, 2} and folder.identity() == MADE
    with pytest.raises(ValueError, match=r"latents made otherwise \(classes, new differ"):
        folder.claim({**MADE, "classes": ["ant"], "new": 1})
    folder.manifest.unlink()
    with pytest.raises(ValueError, match="latents that nothing describes"):
        folder.claim(MADE)
    for shard in folder.finished():
        folder.file(shard).unlink()
    for made in ({"new": 1}, {"new": 2}):  # nothing is bound to anything yet
        folder.claim(made)
        assert folder.identity() == made


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "damaged"),
        ('{"identity": 3}', "damaged"),
        ('{"identity": {"num_images": -1, "shard_size": 2, "scale": 1, "classes": []}}', "damaged"),
        ('{"identity": {"num_images": 4, "shard_size": 0, "scale": 1, "classes": []}}', "damaged"),
        ('{"identity": {"num_images": "four", "shard_size": 2, "scale": 1, "classes": []}}', "damaged"),
    ],
)
def test_a_description_that_cannot_be_is_called_damage(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "latents.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^[^\n]*latents\.json is {message}[^\n]*$"):
        Latents(tmp_path)
