"""What cannot be is refused in one line that says what to do, and nothing is written."""

from __future__ import annotations

import builtins
import io
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from disa_framework import SamplingConfig
from disa_framework.cli import start
from disa_framework.cli.common import make_parser, make_sampling, parse
from disa_framework.cli.drawing import add_drawing
from disa_framework.models import MAR, XAR, CausalAR, FlowAR
from disa_framework.models.base import ARDiffusionModel
from disa_framework.models.harmon import Qwen2
from disa_framework.sampling.guidance import Guidance
from disa_framework.solvers import DDIM, DDPM, Euler, EulerMaruyama, Solver, Uniform

MIXTURE = "disa-predict --config mixture/default --num_images 4"
BENCH = "disa-bench --random_weights true --config"
FIT = "disa-fit --config digits/mar"
SEARCH = "disa-search --config mixture/search --evaluations 40"
EVALUATE = "disa-evaluate drawn --reference drawn --features DigitsFeatures"
CACHE = "disa-cache drawn latents --vae kl16.ckpt"
DIAGNOSE = "disa-diagnose --config mixture/diagnose"

# A command line, and what the line that refuses it has to say.
REFUSED = [
    # sizes, shares and factors of models
    (f"{BENCH} digits/mar --model.patch_size 0", "patch_size must be a whole number from 1"),
    (f"{BENCH} digits/mar --model.encoder_heads -4", "encoder_heads must be a whole number from 1"),
    (f"{BENCH} digits/mar --model.decoder_heads 5", "width 64 is not divisible by 5 heads"),
    (f"{BENCH} digits/mar --model.encoder_depth 100000000000", "encoder_depth must be a whole number from 1 to 1,000"),
    (f"{BENCH} digits/mar --model.buffer_size 100000000000", "buffer_size must be a whole number from 1 to 1,000,000"),
    (f"{BENCH} digits/mar --model.num_classes -1", "num_classes must be a whole number from 0"),
    (f"{BENCH} digits/causal --model.dropout 2", "dropout must be a number from 0 to 1, got 2"),
    (f"{BENCH} digits/causal --model.diffusion_batch_mul 0", "diffusion_batch_mul must be a whole number from 1"),
    (f"{BENCH} digits/flowar --model.scales []", "scales must grow from at least 1 to latent_size 4, got []"),
    (f"{BENCH} digits/flowar --model.mlp_ratio 0", "mlp_ratio must give"),
    (f"{BENCH} digits/xar --model.proj_dropout -1", "proj_dropout must be a number from 0 to 1, got -1"),
    (f"{BENCH} digits/xar --model.latent_size -8", "latent_size must be a whole number from 1"),
    (f"{BENCH} digits/harmon --model.llm.num_attention_heads 0", "num_attention_heads must be a whole number from 1"),
    (f"{BENCH} digits/harmon --model.llm.num_key_value_heads 3", "is not divisible by num_key_value_heads 3"),
    (f"{FIT} --model.label_dropout 2", "label_dropout must be a number from 0 to 1, got 2"),
    # null
    (f"{MIXTURE} --schedule null", "--schedule must be a class, one of Adaptive, Constant"),
    (f"{MIXTURE} --model null", "--model must be a class"),
    (f"{MIXTURE} --schedule.early null", "null"),
    (f"{MIXTURE} --writer Arrays --grid true", "choose another --format or --writer"),
    (f"{MIXTURE} --solver.grid null", "--solver.grid is null: leave it out"),
    (f"{MIXTURE} --tokenizer.scale null", "--tokenizer.scale is null: leave it out"),
    (f"{MIXTURE} --guidance.scale null", "--guidance.scale must be a number, got null"),
    (f"{MIXTURE} --cache Lazy --cache.refresh null", "--cache.refresh is null"),
    (f"{MIXTURE} --cache null --cache.refresh 2", "give --cache first, such as Lazy"),
    (f"{MIXTURE} --trainer null", "--trainer.NAME VALUE"),
    (f"{MIXTURE} --output null", "--output is null: leave it out"),
    (f"{SEARCH} --study_name null", "--study_name is null: leave it out"),
    (f"{FIT} --data.batch_size null", "--data.batch_size is null"),
    (f"{FIT} --seed null", "--seed must be a whole number, got null"),
    # numbers that are none, and that nobody can mean
    (f"{MIXTURE} --solver.temperature .nan", "--solver.temperature must be a finite number, got nan"),
    (f"{MIXTURE} --schedule Adaptive --schedule.threshold .inf", "--schedule.threshold must be a finite number"),
    (f"{MIXTURE} --tokenizer.scale 0", "scale must be a number other than 0"),
    (f"{MIXTURE} --guidance.scale 1e300", "guidance scale must lie in -1000 … 1000"),
    (f"{MIXTURE} --seed 18446744073709551616", "a seed has 64 bits"),
    (f"{MIXTURE} --num_images 100000000000", "a run has up to 10,000,000 samples"),
    (f"{MIXTURE} --num_stages 100000000000", "num_stages must be a whole number from 1 to 1,000,000"),
    (f"{FIT} --optimization.lr 1e400", "--optimization.lr must be a finite number"),
    (f"{FIT} --optimization.betas [2,0.9]", "betas must lie in [0, 1)"),
    (f"{FIT} --seed -1", "-1"),
    # kinds of values, classes and names
    (f"{MIXTURE} --num_images 2.5", "--num_images must be a whole number or null, got 2.5"),
    (f"{MIXTURE} --batch_size 0", "--batch_size must be a whole number from 1 on, got 0"),
    (f"{MIXTURE} --labels [1.5]", "--labels must be a list of whole numbers or null"),
    (f"{MIXTURE} --guidance.schedule cosine", "--guidance.schedule must be 'linear' or 'constant', got cosine"),
    (f"{MIXTURE} --schedule os.system", "--schedule must be a class"),
    (f"{MIXTURE} --schedule no.such.Class", "No module named 'no'"),
    (f"{MIXTURE} --schedule.nope 3", "Linear has no nope: it has early, late"),
    (f"{MIXTURE} --schedule Adaptive", "Adaptive needs threshold"),
    (f"{MIXTURE} --solver.grid Nope", "--solver.grid must be a class, one of Halves"),
    (f"{MIXTURE} --solver.eta 1 --solver DDIM", "DDPM has no eta"),
    (f"{MIXTURE} --nope 1", "unrecognized arguments: --nope 1"),
    ("disa-predict", "are required: model"),
    # Lightning's trainer
    (f"{MIXTURE} --trainer.devices abc", "`devices`"),
    (f"{MIXTURE} --trainer.devices -5", "`devices`"),
    (f"{MIXTURE} --trainer.accelerator nope", "nope"),
    (f"{MIXTURE} --trainer.accelerator tpu", "torch_xla"),
    (f"{MIXTURE} --trainer.limit_predict_batches 2.5", "2.5"),
    (f"{MIXTURE} --trainer.limit_predict_batches 1", "would leave samples out"),
    (f"{MIXTURE} --trainer.fast_dev_run true", "would leave samples out"),
    (f"{SEARCH} --trainer.limit_predict_batches 0", "would leave samples out"),
    (f"{FIT} --trainer.limit_train_batches 0", "nothing would be trained"),
    (f"{FIT} --trainer.max_epochs 0", "nothing would be trained"),
    (f"{FIT} --trainer.devices 0", "0"),
    (f"{FIT} --trainer.profiler nope", "`profiler`"),
    (f"{FIT} --trainer.max_time abc", "abc"),
    (f"{FIT} --trainer.max_steps -5", "max_steps"),
    (f"{FIT} --trainer.accumulate_grad_batches 0", "accumulate_grad_batches"),
    (f"{FIT} --trainer.check_val_every_n_epoch 0", "check_val_every_n_epoch"),
    # searches
    (f"{SEARCH} --rungs []", "rungs must be numbers of samples from 1 on that rise, got []"),
    (f"{SEARCH} --rungs [100,50]", "rungs must be numbers of samples from 1 on that rise"),
    (f"{SEARCH} --calibration.menu [4,1,2]", "menu of step counts must rise"),
    (f"{SEARCH} --calibration.menu []", "menu of step counts must rise"),
    (f"{SEARCH} --calibration.stride null", "stride must be a whole number from 1"),
    (f"{SEARCH} --trials 100000000000", "trials must be a whole number from 1 to 1,000,000"),
    (f"{SEARCH} --profile_samples 100000000000", "profile_samples must be a whole number from 1"),
    (f"{SEARCH} --space.schedule.groups 100000000000", "from 1 to 1000"),
    (f"{SEARCH} --method nope", "--method must be 'study' or"),
    (f"{SEARCH} --evaluations 1 --method pareto", "no schedule of this space meets a limit of 1 evaluations"),
    (f"{SEARCH} --evaluations 1 --method calibrate", "no budget costs at most 1"),
    (f"{SEARCH} --storage nosuch://h/x", "the storage nosuch://h/x fails"),
    (f"{SEARCH} --storage oracle+nosuch://h/x", "the storage oracle+nosuch://h/x fails"),
    (f"{SEARCH} --storage .", "the storage . fails"),
    (f"{SEARCH} --starts [no.yaml]", "no sampling config at no.yaml"),
    # the other commands
    (f"{BENCH} mixture/default --batch_sizes [0]", "--batch_sizes"),
    (f"{BENCH} mixture/default --schedules []", "there must be something to time"),
    (f"{BENCH} mixture/default --repeats null", "--repeats must be a whole number from 1 on, got null"),
    (f"{BENCH} mixture/default --schedules Constant(0)", "stage 0 has 0"),
    (f"{EVALUATE} --output new/figures.json", "no folder or file at drawn"),
    (f"{EVALUATE} --batch_size 0", "batch_size must be at least 1"),
    (f"{EVALUATE} --count abc", "--count must be a whole number or null, got abc"),
    (f"{EVALUATE} --num_workers 100000000000", "num_workers at least 0 and at most 1024"),
    (f"{EVALUATE} --precision_recall 5", "--precision_recall must be true or false, got 5"),
    (f"{CACHE} --dtype float8", "--dtype"),
    (f"{CACHE} --image_size abc", "--image_size must be a whole number, got abc"),
    ("disa-cache drawn", "latents"),
    (f"{DIAGNOSE} --menu [3,2]", "menu of step counts must rise"),
    (f"{DIAGNOSE} --repeats 100000000000", "repeats must be a whole number from 1 to 1,000,000"),
    (f"{DIAGNOSE} --parts [nope]", "no part 'nope'"),
    (f"{DIAGNOSE} --parts []", "no part ''"),
    (f"{DIAGNOSE} --ablation nope", "nope"),
    ("disa-convert weights.ckpt", "are required: target"),
    ("disa-convert weights.ckpt out.safetensors --model digits/nope", "no configuration 'digits/nope'"),
    ("disa-download", "are required: name"),
    ("disa-download kl16 --nope", "unrecognized arguments: --nope"),
    ("disa-download kl16 --url file:///kl16.ckpt", "begins with https://"),
    (f"{FIT} --data ImageFolderData --data.folder nosuch", "no folder at nosuch"),
]  # fmt: skip

Refusal = Callable[[str], str]


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refusal:
    """The line with which a command refuses what it is given; it writes nothing."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> str:
        before = set(tmp_path.iterdir())
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        prog = sys.argv[0]
        with pytest.raises(SystemExit) as stop:
            getattr(start, prog.removeprefix("disa-"))()
        said = capfd.readouterr()
        assert stop.value.code in (1, 2) and not said.out, said
        assert said.err.startswith(f"{prog}: error: ") and said.err.count("\n") == 1, said.err
        assert set(tmp_path.iterdir()) == before
        return said.err

    return run


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line for line, _ in REFUSED])
def test_a_bad_input_is_refused_in_one_line(line: str, message: str, refusal: Refusal) -> None:
    assert message in refusal(line)


URLS = [
    "postgresql://u:SECRET@h/x",
    "postgresql://u:SEC RET@h/x",
    "postgresql://u:S':E?C/R@ET@h/x",
    "x://h/x?password=SECRET",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    "line",
    [f"{SEARCH} --storge", f"{SEARCH} --trials", f"{SEARCH} --trials 0 --storage", f"{MIXTURE} --schedule",
     f"{MIXTURE} --ckpt_path", "disa-download kl16", "disa-convert out.safetensors"],
)  # fmt: skip
def test_a_password_is_in_no_message(line: str, url: str, refusal: Refusal) -> None:
    said = refusal(f"{line} {shlex.quote(url)}")
    assert not [part for part in ("SEC", "RET", "ET@") if part in said], said


def test_a_password_is_in_no_traceback(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(FileNotFoundError) as raised:
        refusal(f"{MIXTURE} --debug --ckpt_path {URLS[0]}")
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    sys.excepthook(raised.type, raised.value, raised.tb)
    assert "FileNotFoundError" in shown.getvalue() and "SECRET" not in shown.getvalue()


CALLABLES = [
    "{class_path: logging.FileHandler, init_args: {filename: CALLED}}",
    "{class_path: builtins.exec, init_args: {source: \"open('CALLED', 'w')\"}}",
    "{class_path: pathlib.Path.touch, init_args: {self: CALLED}}",
]


@pytest.mark.parametrize("called", CALLABLES)
@pytest.mark.parametrize(
    ("line", "place"),
    [
        (MIXTURE, "schedule: IT"), (MIXTURE, "solver: {class_path: DDIM, init_args: {grid: IT}}"),
        (MIXTURE, "writer: IT"), (MIXTURE, "evaluate: {features: IT}"), (MIXTURE, "order: IT"),
        (SEARCH, "metric: IT"), (SEARCH, "space: {schedule: IT}"), (SEARCH, "fitting: {reference: IT}"),
        (DIAGNOSE, "metric: IT"), (f"{BENCH} mixture/default", "schedules: [IT]"), (FIT, "data: IT"),
        (FIT, "trainer: {profiler: IT}"), (FIT, "trainer: {callbacks: [IT]}"), (EVALUATE, "features: IT"),
        (EVALUATE, "trainer: {plugins: [IT]}"), (EVALUATE, "trainer: {strategy: IT}"), (CACHE, "trainer: {logger: IT}"),
        (CACHE, "trainer: {accelerator: IT}"),
    ],
)  # fmt: skip
def test_nothing_that_a_configuration_names_is_called(
    line: str, place: str, called: str, refusal: Refusal, tmp_path: Path
) -> None:
    (tmp_path / "it.yaml").write_text(place.replace("IT", called))
    refusal(f"{line} --config it.yaml")


def test_files_are_utf_8_in_any_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, *more: Any) -> Any:
        ascii_by_default = "ascii" if encoding in (None, "locale") and "b" not in mode else encoding
        return plain(file, mode, buffering, ascii_by_default, *more)

    plain = io.open
    (tmp_path / "Käfer.yaml").write_text(
        "# ✓\nschedule: {class_path: Constant, init_args: {steps: 3}}", encoding="utf-8"
    )
    with monkeypatch.context() as patch:
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        for option in ("--config", "--sampling"):
            sampling = sampling_with(f"--config mixture/default {option} {tmp_path / 'Käfer.yaml'}")
            assert str(sampling.schedule) == "Constant(steps=3)"


@pytest.mark.parametrize("model", [MAR, CausalAR, FlowAR, XAR])
@pytest.mark.parametrize("value", [0, -1, 2.5, None, 10**11])
def test_no_model_has_such_sizes(model: type[ARDiffusionModel], value: Any) -> None:
    depth = "depth" if model is CausalAR else "decoder_depth"
    for name in ("latent_channels", depth):
        with pytest.raises(ValueError, match=f"{name} must be a whole number from 1 .*, got"):
            model(**{name: value})
    with pytest.raises(ValueError, match="label_dropout must be a number from 0 to 1"):
        model(label_dropout=1.5)


def test_values_of_parts_are_checked_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="hidden_size 30 is not divisible by num_attention_heads 14"):
        Qwen2(hidden_size=30)
    for scale in (float("nan"), float("inf"), 1e300):
        with pytest.raises(ValueError, match="guidance scale must lie in -1000 … 1000"):
            Guidance(scale)
    for stages in (0, 2.5, True, 10**11):
        with pytest.raises(ValueError, match="num_stages must be a whole number from 1 to 1,000,000"):
            SamplingConfig(num_stages=stages)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "solver"),
    [
        ("--config digits/mar --solver.temperature 1.1", DDPM(temperature=1.1)),
        ("--config digits/mar --solver.temperature=1.1", DDPM(temperature=1.1)),
        ("--config digits/xar --solver.temperature 1.1", EulerMaruyama(Uniform(last=0.04), temperature=1.1)),
        ("--config digits/flowar --solver.grid Uniform", Euler(Uniform())),
        ("--config digits/mar --solver DDIM --solver.eta 0.5", DDIM(eta=0.5)),
    ],
)
def test_an_option_of_a_solver_alone_is_of_the_one_in_use(line: str, solver: Solver) -> None:
    assert sampling_with(line).solver == solver


OWN = """
from dataclasses import dataclass
from disa_framework.schedules import StepSchedule

@dataclass(frozen=True)
class Mine(StepSchedule):
    few: int = 3

    def compute(self, num_stages):
        return [self.few] * num_stages
"""


def test_a_sampling_config_may_name_a_class_that_an_option_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_schedule.py").write_text(OWN)
    (tmp_path / "mine.yaml").write_text("schedule: {class_path: own_schedule.Mine, init_args: {few: 4}}")
    monkeypatch.syspath_prepend(tmp_path)
    line = f"--config mixture/default --sampling {tmp_path / 'mine.yaml'}"
    with pytest.raises(ValueError, match=r"own_schedule.Mine is no StepSchedule; .*import a class of your own first"):
        sampling_with(line)
    assert "own_schedule" not in sys.modules  # a file alone imports nothing
    assert str(sampling_with(f"{line} --schedule own_schedule.Mine").schedule) == "Mine(few=4)"
    assert str(sampling_with(f"{line} --schedule=own_schedule.Mine --schedule.few 5").schedule) == "Mine(few=5)"


def sampling_with(line: str) -> SamplingConfig:
    parser = make_parser("disa-predict", "")
    add_drawing(parser)
    return make_sampling(parser.instantiate(parse(parser, line.split())))
