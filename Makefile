# make setup     .venv with the pinned packages of requirements.lock, once
# make paper     the experiments' grid and every table and figure into paper_figures/
#                GRID=full: all constraints and seeds; FULL=1 DATA=FOLDER: the papers' own, on your files; DRY=1: the plan
#                PROFILE=workflow/profiles/slurm: another Snakemake profile; OUT=FOLDER: tables and figures elsewhere
#                GRID=smoke OUT=FOLDER: two cells of one experiment, to try the workflow in two minutes
# make rehearsal the notebooks with profile=full on random files of the real sizes
# make test      ruff, pytest, nbval
# make lab       JupyterLab on the notebooks
# make docs      the API reference: docs/api.md, and all modules as HTML in docs/api/
# make baselines train the small models in data/mini/ anew
PYTHON ?= python3
PY := .venv/bin/python
JOBS ?= $(shell nproc)
GRID ?= $(if $(FULL),published,default)
DATA ?=
OUT ?= paper_figures
PROFILE ?= workflow/profiles/local
export OMP_NUM_THREADS ?= 1
export PYTHONHASHSEED := 0

.PHONY: setup paper rehearsal test lab docs baselines clean

setup: .venv/.done

.venv/.done: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch .venv/.done

paper: setup
	$(if $(DRY),$(PY) -m lfpr.experiments.plan --grid workflow/grid.yaml:$(GRID) --cores $(JOBS))
	TQDM_DISABLE=1 $(PY) -m snakemake --snakefile workflow/Snakefile --profile $(PROFILE) --cores $(JOBS) \
		$(if $(DRY),--dry-run) --config grid=$(GRID) out='$(OUT)' $(if $(DATA),data='$(DATA)')

rehearsal: setup
	$(PY) tests/rehearsal/rehearse.py --out runs/rehearsal

test: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest tests
	TQDM_DISABLE=1 OMP_NUM_THREADS=$(JOBS) $(PY) -m pytest --nbval --nbval-current-env notebooks

lab: setup  # the notebooks' kernel, python3, under the environment's name
	$(PY) -m ipykernel install --sys-prefix --name python3 --display-name "Python (lfpr)" >/dev/null
	$(PY) -m jupyterlab --notebook-dir=notebooks notebooks/00_explore.ipynb

docs: setup
	$(PY) -W ignore -m lfpr.reference

baselines: setup
	$(PY) -m lfpr.experiments.tap_baselines
	$(PY) -m lfpr.experiments.clip_baselines

clean:
	rm -rf runs docs/api .snakemake .pytest_cache .ruff_cache .hypothesis
