# make setup | test | docs | dist | demo | demo-train | table | mixture | gpu | gpu-dry | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup test lint unit docs dist demo demo-train table mixture gpu gpu-dry lowest check-inception check-app postgres clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt -e '.[dev]'
	touch $(STAMP)

test: setup lint unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: setup
	$(BIN)/python -m pytest -n 2 --durations=10

# The site, into build/site. Links that lead nowhere are errors.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Wheel and source distribution in build/dist. The wheel, built from the source distribution, is tried in an empty
# environment and an empty folder: two minutes.
dist:
	rm -rf build/dist build/empty
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install --disable-pip-version-check build
	build/empty/bin/python -m build --outdir build/dist
	build/empty/bin/python -m pip install --disable-pip-version-check -c constraints.txt "$$(ls build/dist/*.whl)[all]"
	mkdir build/dist/tried
	cd build/dist/tried && ../../empty/bin/disa predict --config fashion/mar --num_images 10 --grid true && ../../empty/bin/disa env

# Draws clothes with the model that comes with the package: a minute on two cores.
demo: setup
	$(BIN)/python -m examples.fashion

# Trains and samples a small MAR on handwritten digits: about five minutes on two cores.
demo-train: setup
	$(BIN)/python -m examples.digits

# The README's tables: every schedule, three training runs, both data settings. About an hour on two cores.
table: setup
	$(BIN)/python -m examples.digits --all --seeds 0 1 2 --max_steps 7000 --output outputs/table
	$(BIN)/python -m examples.digits --all --seeds 0 1 2 --max_steps 6000 --output outputs/table --polarity plain

# The exact mixture: two minutes.
mixture: setup
	$(BIN)/python -m examples.mixture --seeds 0 1 2

# On a machine with a GPU, with the packages that it has (make gpu PYTHON=python3.12): checks, then times, in seven minutes.
gpu:
	$(PYTHON) -m benchmarks.gpu

# The same with tiny models on the CPU, to see that it runs: a minute.
gpu-dry: setup
	$(BIN)/python -m benchmarks.gpu --dry

# The lowest versions that pyproject.toml allows. torch 2.6 comes with its GPU libraries: some gigabytes.
lowest:
	$(PYTHON) -m venv $(VENV)/lowest
	$(VENV)/lowest/bin/python -m pip install --disable-pip-version-check -c constraints-lowest.txt -e '.[all]' pytest scipy
	$(VENV)/lowest/bin/python -m pytest -W ignore -o filterwarnings= tests/sampling tests/schedules tests/solvers \
		tests/models tests/tokenizers tests/hub tests/metrics tests/test_module.py tests/test_resuming.py tests/test_docs.py

# Inception figures against torch-fidelity's own. Its torchvision wants PyTorch's full build: some gigabytes.
check-inception:
	$(PYTHON) -m venv $(VENV)/inception
	$(VENV)/inception/bin/python -m pip install --disable-pip-version-check -e '.[inception]' pytest
	$(VENV)/inception/bin/python -m pytest tests/inception

# The page in a browser: with Playwright, and Debian's package chromium or another one (make check-app CHROMIUM=/path).
check-app: setup
	$(BIN)/python -m pip install --disable-pip-version-check playwright
	$(BIN)/python -m pytest -rs tests/app

# Workers that share a study on PostgreSQL, whose server is begun in a temporary folder: a minute. Installs nothing.
postgres: setup
	$(BIN)/python -m pytest -rs tests/search/test_postgresql.py

clean:
	rm -rf $(VENV) outputs
