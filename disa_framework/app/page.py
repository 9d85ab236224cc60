"""The page: what is asked for, two settings, and what they draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import gradio as gr
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from disa_framework.app.drawing import Drawing, side_by_side
from disa_framework.app.settings import CONFIGURED, FIELDS, KEPT, SCHEDULES, Choices, Setting, command_text
from disa_framework.data.archive import Pixels
from disa_framework.measure.cases import Precision
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.condition import Condition, cycled
from disa_framework.sampling.config import SamplingConfig

SIDES = ("A", "B")
LAUNCH: dict[str, Any] = {
    "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # nothing is fetched
    "css": ".drawn .image-frame, .drawn img {width: 100%; object-fit: contain !important; image-rendering: pixelated}",
    "footer_links": [],
    "share": False,
    "ssr_mode": False,
    "quiet": True,
}
"""Options of Gradio's `launch` that the page looks right with."""
_TICKED = 30  # classes that are shown as boxes; more are typed
_WAITING = 20  # people whose drawings may be in the queue


@dataclass(frozen=True)
class Offer:
    """What people may ask the page for.

    Attributes:
        classes: names of the classes, for what they are; by default their numbers.
        labels: classes that are asked for at first.
        prompts: what is asked for at first, of a model that takes texts.
        condition: what is drawn, of a model that is asked for something else: people cannot change it then.
        most_images: in a batch.
        most_steps: of a stage.
        command: how the command that draws the same begins; `None` shows none.
    """

    classes: Sequence[str] = ()
    labels: Sequence[int] = ()
    prompts: Sequence[str] = ()
    condition: Condition | None = None
    most_images: int = 64
    most_steps: int = 100
    command: Sequence[str] | None = None


class Page:
    """The page of a module that draws images; `Page(module).build().launch(**LAUNCH)` shows it.

    Args:
        module: in evaluation mode, and where it is to draw.
        presets: sampling configs to begin with, beside the module's own.
        offer: what people may ask for.
        precision: in which the module is called.
    """

    def __init__(
        self,
        module: ARDiffusionModule,
        presets: Mapping[str, SamplingConfig] | None = None,
        offer: Offer = Offer(),
        precision: Precision = nullcontext,
    ) -> None:
        self.choices = Choices.of(module.model, {CONFIGURED: module.sampling, **(presets or {})})
        self.module, self.offer, self.precision = module, offer, precision
        self.classes = module.model.num_classes

    # --- what is shown ----------------------------------------------------------------------------------

    def build(self) -> gr.Blocks:
        """The whole of it."""
        name, first = type(self.module.model).__name__, list(self.choices.presets)
        with gr.Blocks(title=f"disa-app: {name}", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
            gr.Markdown(
                f"## {name}, drawn in two ways\nBoth start from the same noise. "
                "Choose a preset, change its parts, and compare what they draw and what they cost."
            )
            with gr.Row():
                asked = self._asked()
                most = self.offer.most_images
                count = gr.Slider(1, max(most, 2), min(20, most), step=1, label="Images")
                seed = gr.Number(self.module.seed, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
                start = gr.Button("Draw", variant="primary")
            with gr.Row():
                sides = [self._side(side, first[min(i, len(first) - 1)]) for i, side in enumerate(SIDES)]
            steps = gr.Plot(show_label=False)
            controls = [control for side in sides for control in side.controls]
            told = [steps, *(shown for side in sides for shown in side.told)]
            request = [asked, count, seed]
            described = self.describe, [*request, *controls], told
            for side in sides:
                preset, schedule, early, late, *others = side.controls
                preset.input(self.begin_with, preset, side.controls, **_QUIET).then(*described, **_QUIET)
                for end in (early, late):
                    end.input(_ramp, schedule, schedule, **_LIVE).then(*described, **_LIVE)
                for control in (schedule, *others):
                    control.input(*described, **_LIVE)
            for part in request:
                if not isinstance(part, gr.State):
                    part.input(*described, **_LIVE)
            blocks.load(*described, **_QUIET)
            drawn = [shown for side in sides for shown in side.drawn]
            start.click(self.draw, [*request, *controls], drawn, concurrency_limit=1, **_QUIET)
        return blocks.queue(max_size=_WAITING)

    def _asked(self) -> Any:
        offer = self.offer
        if offer.condition is not None or not self._takes():
            return gr.State(None)
        if not self.classes:
            return gr.Textbox("\n".join(offer.prompts), lines=3, label="Prompts, one a line", scale=2)
        if self.classes > _TICKED:
            text = ", ".join(map(str, offer.labels))
            return gr.Textbox(text, label=f"Classes, 0 to {self.classes - 1}, with commas; all if empty", scale=2)
        names = [*offer.classes, *map(str, range(len(offer.classes), self.classes))]
        options = [(name, label) for label, name in enumerate(names[: self.classes])]
        return gr.CheckboxGroup(options, value=[*offer.labels], label="Classes; all if none is ticked", scale=2)

    def _takes(self) -> bool:
        """Whether the model can be asked for classes or texts."""
        try:
            self.module.model.check_condition(torch.tensor([0]) if self.classes else ["a picture"])
        except ValueError:
            return False
        return True

    def _side(self, name: str, preset: str) -> _Side:
        setting, choices, most = Setting.kept(preset, self.choices), self.choices, self.offer.most_steps
        model = choices.model

        def steps(value: int, label: str) -> gr.Slider:
            return gr.Slider(1, max(most, 2), min(value, most), step=1, label=label)

        with gr.Column():
            gr.Markdown(f"### {name}")
            given = gr.Dropdown([*choices.presets], value=preset, label="Preset")
            with gr.Row():
                schedule = gr.Dropdown([KEPT, *SCHEDULES], value=KEPT, label="Steps of a stage")
                early, late = steps(setting.early, "From"), steps(setting.late, "To")
            with gr.Row():
                solver = gr.Dropdown([KEPT, *choices.solvers], value=KEPT, label="Solver")
                grid = gr.Dropdown([KEPT, *choices.grids], value=KEPT, label="Grid of times")
                order = gr.Dropdown([KEPT, *choices.orders], value=KEPT, label="Order", visible=bool(choices.orders))
            with gr.Row():
                low, high = model.min_stages, model.max_stages
                stages = (
                    gr.Slider(low, high, setting.num_stages, step=1, label="Stages")
                    if low < high
                    else gr.Number(low, precision=0, visible=False)
                )
                guidance = gr.Slider(0, 10, setting.guidance, step=0.1, label="Guidance (1 is none)")
            cost = gr.Markdown()
            image = gr.Image(
                label=name, show_label=False, format="png", elem_classes="drawn", buttons=["download", "fullscreen"]
            )
            times = gr.Markdown()
            with gr.Accordion("The same as a command, and as a file", open=False):
                command = gr.Code(language="shell", label="Command", visible=self.offer.command is not None)
                text = gr.Code(language="yaml", label="sampling.yaml, for --sampling")
        controls = [given, schedule, early, late, solver, grid, order, stages, guidance]
        return _Side(controls, [cost, command, text], [image, times])

    # --- what happens -----------------------------------------------------------------------------------

    def begin_with(self, preset: str) -> list[Any]:
        """Controls of a preset as it is."""
        setting = Setting.kept(preset, self.choices)
        return [getattr(setting, name) for name in FIELDS]

    def describe(self, asked: Any, count: int, seed: int | None, *values: Any) -> list[Any]:
        """Of the controls of both sides: the plot of their steps, and of each what it costs, its command and file."""
        shown, budgets = list[Any](), dict[str, Sequence[int]]()
        request = ["--num_images", str(count), "--seed", str(seed or 0)]
        if self.classes and asked:
            request += ["--labels", str(asked if isinstance(asked, list) else f"[{asked}]")]
        for name, setting in zip(SIDES, self._settings(values), strict=True):
            try:
                sampling = self._checked(setting)
            except ValueError as error:
                shown += [f"⚠ {error}", "", ""]
                continue
            budgets[name] = sampling.budget
            cost = sampling.evaluations(self.module.model.process)
            text = yaml.safe_dump(sampling.dump(), sort_keys=False, default_flow_style=None)
            command = command_text([*(self.offer.command or ()), *setting.options(self.choices), *request])
            shown += [f"**{cost}** head evaluations an image, {sampling.stages} stages", command, text]
        return [_plot(budgets), *shown]

    def draw(self, asked: Any, count: int, seed: int | None, *values: Any) -> Iterator[list[Any]]:
        """Pictures and times of both sides, after each stage."""
        try:
            if not 1 <= count <= self.offer.most_images:
                raise ValueError(f"at most {self.offer.most_images} images are drawn at once, got {count}")
            modules = [
                self.module.drawing(self._checked(setting, f"{side}: "))
                for side, setting in zip(SIDES, self._settings(values), strict=True)
            ]
            condition = self._condition(asked, count)
            for drawings in side_by_side(modules, condition, count, seed or 0, self.precision):
                yield [
                    part for drawing in drawings for part in (_picture(drawing), _times(drawing, drawings[0], count))
                ]
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def _settings(self, values: Sequence[Any]) -> list[Setting]:
        size = len(FIELDS)
        return [Setting(*values[i : i + size]) for i in range(0, len(values), size)]

    def _checked(self, setting: Setting, side: str = "") -> SamplingConfig:
        most = self.offer.most_steps
        try:
            sampling = setting.sampling(self.choices)
        except ValueError as error:
            raise ValueError(f"{side}{error}") from None
        if max(sampling.budget) > most:
            raise ValueError(f"{side}at most {most} steps a stage are drawn here, got {max(sampling.budget)}")
        return sampling

    def _condition(self, asked: Any, count: int) -> Condition | None:
        """What so many samples are asked to be, in turn."""
        condition = self.offer.condition
        if condition is None and self.classes:
            labels = asked.replace(",", " ").split() if isinstance(asked, str) else asked
            try:
                condition = torch.tensor([int(label) for label in labels or range(self.classes)])
            except ValueError:
                raise ValueError(f"classes are whole numbers with commas, such as 3, 7; got {asked!r}") from None
        elif condition is None and isinstance(asked, str):
            condition = [line.strip() for line in asked.splitlines() if line.strip()]
            if not condition:
                raise ValueError("write at least one prompt")
        if condition is None:
            return None
        self.module.model.check_condition(condition)
        return cycled(condition, count)


@dataclass(frozen=True)
class _Side:
    """Components of a setting: what people choose, in the order of `FIELDS`, what they are told, and what is drawn."""

    controls: list[Any]
    told: list[Any]
    drawn: list[Any]


_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_LIVE = {**_QUIET, "trigger_mode": "always_last"}
"""Options of events; of those that come while a slider is dragged."""


def _ramp(schedule: str) -> str:
    """The schedule once its ends are dragged."""
    return "Linear" if schedule == KEPT else schedule


def _picture(drawing: Drawing) -> Pixels | None:
    """As Gradio takes them, which is without an axis for gray."""
    pixels = drawing.images
    return pixels[..., 0] if pixels is not None and pixels.shape[2] == 1 else pixels


def _times(drawing: Drawing, first: Drawing, count: int) -> str:
    """What an image has taken so far, and beside the first one's time."""
    each = {part: 1000 * seconds / count for part, seconds in drawing.seconds.items()}
    parts = ", ".join(f"{part} {spent:.1f}" for part, spent in each.items())
    beside = (
        "" if drawing is first else f", {sum(each.values()) / sum(first.seconds.values()) * count / 1000:.2f} of A's"
    )
    return (
        f"{drawing.stages} stages, {drawing.evaluations} head evaluations: "
        f"**{sum(each.values()):.1f} ms** an image ({parts}){beside}"
    )


def _plot(budgets: Mapping[str, Sequence[int]]) -> Figure:
    """Steps over stages, a line for each side."""
    figure = Figure(figsize=(9, 2.2), layout="constrained")
    axes = figure.subplots()
    for name, budget in budgets.items():
        axes.step(range(len(budget)), budget, f"C{SIDES.index(name)}.-", where="mid", label=name)
    axes.set(
        xlabel="stage k", ylabel="diffusion steps T(k)", ylim=(0, 1.1 * max(map(max, budgets.values()), default=1))
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    if budgets:
        axes.legend()
    return figure
