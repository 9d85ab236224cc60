"""The folder of drawn samples is the record of a run: nothing half, nothing mixed, nothing drawn twice."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from disa_framework.callbacks import Arrays, Images, SampleFolder, SampleWriter
from disa_framework.callbacks.sample_folder import Format

FORMS: tuple[Format, ...] = get_args(Format)
IDENTITY: dict[str, Any] = {"seed": 0, "schedule": {"early": 50, "knots": [[0.0, 5], [1.0, 2]]}}


@pytest.fixture
def folder(tmp_path: Path) -> SampleFolder:
    folder = SampleFolder(tmp_path / "drawn")
    folder.claim(IDENTITY)
    return folder


GRAY = torch.full((1, 4, 4), 128, dtype=torch.uint8)


def pixels(channels: int, count: int = 3) -> Tensor:
    """Bytes `[B, c, 4, 6]`."""
    return torch.randint(256, (count, channels, 4, 6), generator=torch.Generator().manual_seed(0)).byte()


def fill(folder: SampleFolder, images: Tensor) -> None:
    for index, image in enumerate(images):
        folder.write(index, image)


def names(folder: SampleFolder) -> list[str]:
    return sorted(entry.name for entry in folder.path.iterdir())


# --- images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_read_as_they_were_written(folder: SampleFolder, channels: int) -> None:
    images = pixels(channels)
    fill(folder, images)
    assert torch.equal(folder.read([0, 1, 2]), images)
    assert torch.equal(folder.read([2, 0]), images[[2, 0]])


def test_other_numbers_of_channels_are_refused(folder: SampleFolder) -> None:
    with pytest.raises(ValueError, match=r"1 or 3 channels, these samples are \[2, 4, 4\]"):
        folder.write(0, GRAY.expand(2, 4, 4))
    assert folder.finished() == set()


def test_an_image_that_exists_is_left_as_it_is(folder: SampleFolder) -> None:
    folder.write(0, GRAY)
    os.utime(folder.file(0), (1, 1))
    folder.write(0, GRAY + 1)
    assert folder.file(0).stat().st_mtime == 1
    assert (folder.read([0]) == 128).all()


def test_a_write_that_fails_leaves_no_image(folder: SampleFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space left"):
            folder.write(0, GRAY)
    assert names(folder) == ["samples.json"]
    folder.write(0, GRAY)
    assert folder.finished() == {0}


def test_finished_images_are_told_from_other_files(folder: SampleFolder) -> None:
    fill(folder, pixels(1))
    folder.write(1_234_567, GRAY)
    for name in ("grid.png", "1.png", ".000007.png.12.tmp", "000008.png.bak", "x000009.png", "000010.jpg"):
        (folder.path / name).touch()
    assert folder.finished() == {0, 1, 2, 1_234_567}


def test_a_folder_that_is_not_there_has_no_images(tmp_path: Path) -> None:
    assert SampleFolder(tmp_path / "none").finished() == set()


class Texts(SampleWriter):
    """The sum of each sample as text; the suffix has a digit."""

    suffix = ".mp3"

    def prepare(self, samples: Tensor) -> Tensor:
        return samples.flatten(1).sum(dim=1)

    def encode(self, sample: Tensor) -> bytes:
        return f"{sample.item():g}".encode()


@pytest.mark.parametrize("prompts", [[], [{"prompt": "a"}, {"prompt": "b"}]], ids=["side by side", "by prompt"])
def test_any_writer_gives_files_of_its_own_that_are_found_again(prompts: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path, prompts, Texts())
    folder.claim({})
    samples = torch.arange(12.0).view(3, 2, 2)
    fill(folder, folder.writer.prepare(samples))
    assert [folder.file(i).read_text() for i in range(3)] == ["6", "22", "38"]
    assert folder.file(2).suffix == ".mp3" and folder.finished() == {0, 1, 2}


@pytest.mark.parametrize("shape", [(), (5,), (7, 3), (2, 3, 4, 5)], ids=str)
def test_arrays_of_any_shape_are_read_as_they_were_written(shape: tuple[int, ...], tmp_path: Path) -> None:
    folder, samples = SampleFolder(tmp_path, writer=Arrays()), torch.randn(3, *shape).bfloat16()
    fill(folder, folder.writer.prepare(samples))
    for index, sample in enumerate(samples.float()):
        assert np.array_equal(np.load(folder.file(index), allow_pickle=False), sample.numpy())
    assert folder.finished() == {0, 1, 2}


# --- what made them ---------------------------------------------------------------------------------------


def test_a_run_goes_on_in_its_own_folder(folder: SampleFolder) -> None:
    fill(folder, pixels(1))
    folder.claim({**IDENTITY, "schedule": {"early": 50, "knots": [(0.0, 5), (1.0, 2)]}})
    assert folder.finished() == {0, 1, 2}


@pytest.mark.parametrize(
    ("identity", "key"),
    [({**IDENTITY, "seed": 1}, "seed"), ({**IDENTITY, "guidance": 2.0}, "guidance"), ({"seed": 0}, "schedule")],
)
def test_another_run_is_refused_and_told_what_differs(folder: SampleFolder, identity: dict[str, Any], key: str) -> None:
    before = folder.manifest.read_bytes()
    with pytest.raises(ValueError, match=rf"made otherwise \({key} differ; see .*samples\.json\): choose"):
        folder.claim(identity)
    assert folder.manifest.read_bytes() == before


def test_facts_are_kept_beside_what_decides(folder: SampleFolder) -> None:
    folder.describe({"seconds_per_image": 0.5})
    folder.describe({"num_images": 3})
    folder.claim(IDENTITY)
    assert {**folder.facts(), "identity": ...} == {"identity": ..., "seconds_per_image": 0.5, "num_images": 3}


def test_images_that_nothing_describes_are_refused(folder: SampleFolder) -> None:
    fill(folder, pixels(1))
    folder.manifest.unlink()
    with pytest.raises(ValueError, match="samples that nothing describes"):
        folder.claim(IDENTITY)


def test_what_a_killed_run_left_half_is_removed_and_the_rest_kept(folder: SampleFolder) -> None:
    fill(folder, pixels(1))
    (folder.path / ".000003.png.12.tmp").write_bytes(b"half")
    (folder.path / "notes.tmp").touch()
    folder.claim(IDENTITY)
    assert names(folder) == ["000000.png", "000001.png", "000002.png", "notes.tmp", "samples.json"]


OTHERS = (
    ".notes.tmp", ".notes.txt.tmp", ".notes.txt.12.tmp", ".photo.png.12.tmp", "000003.png.12.tmp", ".3.png.12.tmp",
)  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_temporary_files_of_others_are_left_alone(name: str, folder: SampleFolder) -> None:
    (folder.path / name).touch()
    folder.claim(IDENTITY)
    assert name in names(folder)


@pytest.mark.parametrize("name", [".notes.tmp", ".000003.png.12.tmp", ".samples.json.12.tmp"])
def test_nothing_is_removed_from_a_folder_that_is_refused(name: str, folder: SampleFolder) -> None:
    fill(folder, pixels(1))
    (folder.path / name).touch()
    before = names(folder)
    with pytest.raises(ValueError, match="made otherwise"):
        folder.claim({**IDENTITY, "seed": 1})
    folder.manifest.unlink()
    with pytest.raises(ValueError, match="nothing describes"):
        folder.claim(IDENTITY)
    assert names(folder) == before[:-1]


@pytest.mark.parametrize("left", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("writer", [Images(), Arrays()], ids=lambda writer: type(writer).__name__)
def test_a_damaged_file_is_no_sample_and_is_written_anew(writer: SampleWriter, left: float, tmp_path: Path) -> None:
    folder, samples = SampleFolder(tmp_path, writer=writer), writer.prepare(torch.rand(3, 1, 16, 16))
    fill(folder, samples)
    content = folder.file(1).read_bytes()
    folder.file(1).write_bytes(content[: int(left * len(content))])
    assert folder.finished() == {0, 2}
    fill(folder, samples)
    assert folder.finished() == {0, 1, 2} and folder.file(1).read_bytes() == content


def test_a_folder_with_other_files_may_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    SampleFolder(tmp_path).claim(IDENTITY)
    assert (tmp_path / "samples.json").exists()


# --- prompts ----------------------------------------------------------------------------------------------

PROMPTS: list[dict[str, Any]] = [{"prompt": "ein Käfer", "tag": "colors"}, {"prompt": "two cats"}, {"prompt": "a dog"}]


@pytest.fixture
def prompted(tmp_path: Path) -> SampleFolder:
    folder = SampleFolder(tmp_path / "prompted", PROMPTS)
    folder.claim(IDENTITY)
    return folder


def test_images_of_prompts_lie_where_geneval_reads_them(prompted: SampleFolder) -> None:
    images = pixels(3, count=8)
    fill(prompted, images)
    # As its evaluator walks through a folder.
    found = {}
    for folder in prompted.path.iterdir():
        if folder.is_dir() and folder.name.isdigit():
            prompt = json.loads((folder / "metadata.jsonl").read_text("ascii"))
            assert prompt == PROMPTS[int(folder.name)]
            for file in (folder / "samples").iterdir():
                found[prompt["prompt"], file.name] = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert len(found) == 8
    for index, image in enumerate(images):
        assert torch.equal(found[PROMPTS[index % 3]["prompt"], f"{index // 3:04}.png"], image)
    assert torch.equal(prompted.read([7, 2]), images[[7, 2]])


def test_finished_images_of_prompts_are_told_from_other_files(prompted: SampleFolder) -> None:
    fill(prompted, pixels(1, count=4))
    prompted.write(3 * 12_345 + 1, GRAY)
    for name in ("00001/grid.png", "00000/samples/00002.png", "00001/samples/.0007.png.1.tmp", "000005.png"):
        (prompted.path / name).touch()
    (prompted.path / "00003/samples").mkdir(parents=True)
    (prompted.path / "00003/samples/0000.png").touch()  # of a fourth prompt, which there is not
    assert prompted.finished() == {0, 1, 2, 3, 3 * 12_345 + 1}


def test_what_a_killed_run_left_half_is_removed_for_all_prompts(prompted: SampleFolder) -> None:
    fill(prompted, pixels(1))
    halves = [prompted.path / name for name in ("00001/samples/.0001.png.1.tmp", "00002/.metadata.jsonl.1.tmp")]
    other = prompted.path / "other/.0001.png.1.tmp"
    other.parent.mkdir()
    for file in (*halves, other):
        file.touch()
    (prompted.path / "00001/metadata.jsonl").unlink()
    prompted.claim(IDENTITY)
    assert not any(half.exists() for half in halves) and other.exists()
    assert (prompted.path / "00001/metadata.jsonl").exists() and prompted.finished() == {0, 1, 2}


# --- the form in which images are kept --------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_the_archive_is_what_an_evaluator_reads(folder: SampleFolder, channels: int) -> None:
    images = pixels(channels)
    fill(folder, images)
    folder.keep("both", 2, [7, 8])
    with np.load(folder.path / "samples.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["arr_0", "arr_1"]
        assert arrays["arr_0"].dtype == np.uint8 and arrays["arr_1"].dtype == np.int64
        assert np.array_equal(arrays["arr_0"], images[:2].permute(0, 2, 3, 1))
        assert arrays["arr_1"].tolist() == [7, 8]


def test_the_archive_of_images_without_labels_has_none(folder: SampleFolder) -> None:
    fill(folder, pixels(3))
    folder.keep("npz", 3, None)
    with np.load(folder.archive) as arrays:
        assert sorted(arrays) == ["arr_0"]


@pytest.mark.parametrize("prompts", [[], PROMPTS], ids=["labels", "prompts"])
@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize(("form", "count"), [(form, count) for form in FORMS for count in (2, 3, 4)])
def test_images_may_change_their_form_and_number(
    first: Format, form: Format, count: int, prompts: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = SampleFolder(tmp_path / "drawn", prompts)
    folder.claim(IDENTITY)
    images = pixels(1, count=4)
    fill(folder, images[:3])
    folder.keep(first, 3, None)
    assert folder.finished() == {0, 1, 2} and torch.equal(folder.read(range(3)), images[:3])
    fill(folder, torch.cat((255 - images[:3], images[3:]))[:count])  # those that exist are left as they are
    folder.keep(form, count, None)
    total = max(3, count)
    assert folder.finished() == set(range(total)) and torch.equal(folder.read(range(total)), images[:total])
    files = {i for i in range(4) if folder.file(i).exists()}
    assert files == (set(range(total)) if form != "npz" else {2} if count == 2 else set())
    assert folder.packed() == (0 if form == "png" else count)


class Killed(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("moment", range(14))
def test_a_run_killed_while_it_changes_the_form_ends_right_the_next_time(
    form: Format, moment: int, folder: SampleFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pixels(1, count=4)
    fill(folder, images[:3])
    folder.keep("npz", 3, None)
    fill(folder, images)

    def killed_then(change: Callable[..., None]) -> Callable[..., None]:
        def changed(*args: Any, **options: Any) -> None:
            if next(moments) >= moment:
                raise Killed
            change(*args, **options)

        return changed

    moments = itertools.count()
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(os, "replace", killed_then(os.replace))
        patch.setattr(Path, "unlink", killed_then(Path.unlink))
        folder.keep(form, 4, None)
    assert folder.finished() == {0, 1, 2, 3} and torch.equal(folder.read(range(4)), images)
    folder.claim(IDENTITY)
    folder.keep(form, 4, None)
    assert torch.equal(folder.read(range(4)), images)
    archive, files = ["samples.npz"] * (form != "png"), [f"{i:06}.png" for i in range(4)] * (form != "npz")
    assert names(folder) == [*files, "samples.json", *archive]


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_a_damaged_archive_is_named(damage: str, folder: SampleFolder) -> None:
    fill(folder, pixels(1))
    folder.keep("both", 3, None)
    whole = folder.archive.read_bytes()
    folder.archive.write_bytes({"empty": b"", "text": b"x" * 500, "truncated": whole[: len(whole) // 2]}[damage])
    with pytest.raises(ValueError, match=r"samples\.npz is damaged [^\n]*: delete it"):
        folder.finished()


# --- the grid ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_the_grid_shows_every_image_in_reading_order(folder: SampleFolder, channels: int) -> None:
    images = pixels(channels, count=5)
    fill(folder, images)
    with Image.open(folder.write_grid(range(5), columns=3)) as picture:
        grid = torch.from_numpy(np.array(picture)).reshape(*picture.size[::-1], channels).permute(2, 0, 1)
    zoom, border = 8, 4  # of 6 pixels to 48
    h, w = 4 * zoom, 6 * zoom
    assert grid.shape == (channels, 2 * h + 3 * border, 3 * w + 4 * border)
    for place in range(6):
        top, left = border + place // 3 * (h + border), border + place % 3 * (w + border)
        cell = grid[:, top : top + h, left : left + w]
        if place < 5:
            assert torch.equal(cell[:, ::zoom, ::zoom], images[place])
            assert torch.equal(cell[:, zoom - 1 :: zoom, zoom - 1 :: zoom], images[place])
        else:
            assert (cell == 128).all()
    assert (grid[:, :border] == 128).all() and (grid[:, :, -border:] == 128).all()


def test_large_images_are_not_enlarged(folder: SampleFolder) -> None:
    folder.write(0, torch.zeros(1, 64, 64).byte())
    with Image.open(folder.write_grid([0], columns=1)) as picture:
        assert picture.size == (68, 68)


def test_the_grid_is_no_sample_and_may_be_made_of_an_archive(folder: SampleFolder) -> None:
    fill(folder, pixels(1))
    drawn = folder.write_grid(range(3)).read_bytes()
    folder.keep("npz", 3, None)
    assert folder.write_grid(range(3)).read_bytes() == drawn
    assert folder.finished() == {0, 1, 2}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"identity": 3}'])
def test_a_damaged_description_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(ValueError, match=r"samples\.json is damaged"):
        SampleFolder(tmp_path).claim({"seed": 0})
