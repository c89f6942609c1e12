# make setup     .venv with the pinned packages of requirements.lock, once
# make paper     the experiments' grid and every table and figure into paper_figures/   (GRID=full: all constraints)
# make test      ruff, pytest, nbval
# make lab       JupyterLab on the notebooks
# make baselines train the small models in data/mini/ anew
PYTHON ?= python3
PY := .venv/bin/python
JOBS ?= $(shell nproc)
GRID ?= default
export OMP_NUM_THREADS ?= 1
export PYTHONHASHSEED := 0

.PHONY: setup paper test lab baselines clean

setup: .venv/.done

.venv/.done: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch .venv/.done

paper: setup
	TQDM_DISABLE=1 $(PY) -m snakemake --snakefile workflow/Snakefile --cores $(JOBS) --nolock --rerun-incomplete \
		--quiet rules host --config grid=$(GRID)

test: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest tests
	TQDM_DISABLE=1 OMP_NUM_THREADS=$(JOBS) $(PY) -m pytest --nbval --nbval-current-env notebooks

lab: setup
	$(PY) -m jupyterlab --notebook-dir=notebooks

baselines: setup
	$(PY) -m lfpr.mini.baselines

clean:
	rm -rf runs .snakemake .pytest_cache .ruff_cache .hypothesis
