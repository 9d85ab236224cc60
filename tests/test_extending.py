"""What the pages of docs/extending show runs: their classes, their contract suites, and their commands."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from disa_framework import SamplingConfig
from disa_framework.cli.evaluate import evaluate
from disa_framework.cli.fit import fit
from disa_framework.cli.predict import predict
from disa_framework.cli.search import search
from disa_framework.metrics import to_uint8
from disa_framework.sampling.stage_sizes import LinearSizes
from disa_framework.solvers import DPMSolverPP, Euler, Halves, RectifiedFlow
from disa_framework.testing.solvers import gaussian_head, normals

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:Couldn't infer the batch indices"
)
FOLDER = Path(__file__).parent.parent / "docs/extending"
TEXTS = {page.stem: page.read_text() for page in sorted(FOLDER.glob("*.md"))}
COMMANDS: dict[str, Callable[[list[str]], Any]] = {
    "disa-predict": predict, "disa-evaluate": evaluate, "disa-search": search,
}  # fmt: skip
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
FEW = {
    "disa-predict": ["--num_images", "2", *QUIET],
    "disa-evaluate": QUIET,
    "disa-search": [
        "--trials", "2", "--rungs", "[8]", "--batch_size", "8", "--seeds", "1", "--finalists", "1", "--calibration",
        "null", "--fitting", "null", *QUIET,
    ],
}  # fmt: skip


def blocks(page: str, defining: bool) -> list[str]:
    """The code of a page that defines classes, or that uses them."""
    return [
        code for code in re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL) if ("class " in code) == defining
    ]


def defined(page: str) -> ModuleType:
    """A module with all that a page defines, and imports itself."""
    module = ModuleType("my_package")
    for code in blocks(page, defining=True):
        exec(compile(code, f"{page}.md", "exec", dont_inherit=True), module.__dict__)
    return module


PAGES = {page: defined(page) for page in TEXTS}
PACKAGE = ModuleType("my_package")  # of all pages together
for each in PAGES.values():
    PACKAGE.__dict__.update(each.__dict__)
globals().update({name: suite for name, suite in vars(PACKAGE).items() if name.startswith("Test")})


@pytest.fixture(autouse=True)
def my_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "my_package", PACKAGE)
    monkeypatch.chdir(tmp_path)


def use(page: str) -> ModuleType:
    """The page's module after its examples of use."""
    for code in blocks(page, defining=False):
        exec(compile(code, f"{page}.md", "exec", dont_inherit=True), PAGES[page].__dict__)
    return PAGES[page]


def run(page: str, few: dict[str, list[str]] = FEW) -> list[Any]:
    """What the commands of a page give, with few images."""
    lines = re.findall(r"^    PYTHONPATH=\. (disa-\w+) (.*)$", TEXTS[page].replace("\\\n", ""), re.MULTILINE)
    assert lines
    return [COMMANDS[name]([*shlex.split(options), *few[name]]) for name, options in lines]


def test_pages_are_linked_and_links_lead_somewhere() -> None:
    links = {page: re.findall(r"\]\(([^)#:]+)", text) for page, text in TEXTS.items()}
    assert {f"{page}.md" for page in TEXTS} - {"index.md"} <= {*links["index"]}
    assert all((FOLDER / link).is_file() for found in links.values() for link in found)


def test_a_suite_of_every_contract_is_run() -> None:
    bases = {base.__name__ for name, suite in globals().items() if name.startswith("Test") for base in suite.__mro__}
    assert {"ScheduleContract", "SolverContract", "OrderContract", "StageSizesContract"} <= bases


@pytest.mark.parametrize("page", ["schedule", "solver", "grid"])
def test_examples_draw_images(page: str) -> None:
    images = use(page).images
    assert images.shape[0] == 4 and images.isfinite().all()


def test_a_schedule_gives_its_budget() -> None:
    assert str(use("schedule").sampling.budget) in TEXTS["schedule"]
    [folder] = run("schedule")
    assert folder.facts()["budget"] == [*PACKAGE.TokensLeft(10, 2, sizes=LinearSizes()).budget(16)]


def test_a_config_with_a_class_of_ones_own_is_read() -> None:
    sampling = SamplingConfig(PACKAGE.TokensLeft(7, 3, 1.5), num_stages=4)
    sampling.save("best.yaml")
    [folder] = run("index")
    assert folder.facts()["identity"]["sampling"]["schedule"] == sampling.dump()["schedule"]


def test_a_solver_is_of_second_order_and_draws() -> None:
    process, normal = RectifiedFlow(), normals(range(64))
    exact, *found = (
        solver.sample(gaussian_head(process), process, steps, normal, torch.float64)
        for solver, steps in ((Euler(), 4000), *((PACKAGE.AdamsBashforth(), steps) for steps in (20, 40)))
    )
    coarse, fine = ((tokens - exact).abs().mean().item() for tokens in found)
    assert coarse > 3 * fine
    [folder] = run("solver")
    solver = PACKAGE.AdamsBashforth(Halves())
    assert folder.facts()["identity"]["sampling"]["solver"] == SamplingConfig(solver=solver).dump()["solver"]


def test_a_grid_is_the_solvers() -> None:
    [folder] = run("grid")
    solver = DPMSolverPP(grid=PACKAGE.SineTime(strength=0.5))
    assert folder.facts()["identity"]["sampling"]["solver"] == SamplingConfig(solver=solver).dump()["solver"]


def test_tokens_come_in_order() -> None:
    spiral = PACKAGE.SpiralOrder(inward=True).draw(None, 3, 3)
    assert spiral.tolist() == [[0, 1, 2, 5, 8, 7, 6, 3, 4]]
    [folder] = run("order")
    made, sampling = folder.facts()["identity"]["sampling"], PAGES["order"].sampling.dump()
    assert [made[part] for part in ("order", "stage_sizes")] == [sampling[part] for part in ("order", "stage_sizes")]


def test_a_file_says_what_is_drawn() -> None:
    Path("labels.csv").write_text(re.findall(r"```text\n(.*?)```", TEXTS["condition"], re.DOTALL)[0])
    page = use("condition")
    assert page.labels.tolist() == [7, 7, 7, 9, 9, 1] and len(page.images) == 6
    [folder] = run("condition", {"disa-predict": QUIET})
    assert len(list(folder.path.glob("0*.png"))) == 6


@pytest.mark.parametrize("content", ["", "class,count\n1,2\n", "label\nshoe\n", "label,count\n1,many\n"])
def test_a_file_of_something_else_is_refused(content: str) -> None:
    Path("labels.csv").write_text(content)
    with pytest.raises(ValueError, match=r"labels\.csv must"):
        PACKAGE.LabelsFile("labels.csv").read(None)


def test_files_are_written_and_damaged_ones_anew() -> None:
    use("writer")
    [folder] = run("writer")
    for path, count in ((Path("photos"), 4), (folder.path, 2)):
        files = sorted(path.glob("0*.jpg"))
        assert len(files) == count
        for file in files:
            with Image.open(file) as image:
                assert image.format == "JPEG" and image.size == (28, 28)
    assert (folder.path / "grid.png").exists()
    files[0].write_bytes(files[0].read_bytes()[:-9])
    assert folder.finished() == {1}


def test_images_are_told_apart_by_their_spectrum() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16, 1, 28, 28, generator=generator) / 4
    smooth = torch.nn.functional.avg_pool2d(noise, 3, 1, 1)
    for folder, images in (("true", noise[:8]), ("drawn", noise[8:]), ("blurred", smooth[8:])):
        Path(folder).mkdir()
        for number, image in enumerate(to_uint8(images)):
            Image.fromarray(image[0].numpy()).save(f"{folder}/{number}.png")
    assert len(PACKAGE.Spectrum()(torch.zeros(0, 3, 9, 9, dtype=torch.uint8))) == 0
    fit(["--config", "digits/mar", "--trainer.max_steps", "1", *QUIET])
    _, near, measured, found = run("metric", FEW | {"disa-predict": ["--num_images", "8", *QUIET]})
    far = evaluate(["blurred", "--reference", "true.npz", "--features", "my_package.Spectrum", *QUIET])
    assert near["fid"] < far["fid"]
    assert "my_package.Spectrum" in (measured.path / "evaluation.json").read_text()
    assert sum(found.sampling.budget) <= 64 and (found.folder / "best.yaml").exists()
