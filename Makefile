# What is given, as the shell gave it ($(value), not $()): as one word of a shell, and as text for Snakemake's YAML.
sh = '$(subst ','\'',$(1))'
yaml = '$(subst ','',$(1))'
PYTHON ?= python3
PY := .venv/bin/python
GPUS := $(if $(filter cpu,$(DEVICE)),,$(shell nvidia-smi -L 2>/dev/null))
JOBS ?= $(if $(GPUS),2,$(shell env -u OMP_NUM_THREADS nproc))
GRID ?= $(if $(FULL),published,default)
DATA ?=
DEVICE ?=
OUT ?= runs/paper
PROFILE ?= workflow/profiles/local
LAB_ARGS ?=
AT_ONCE := -n $(JOBS) --dist loadfile  # of a file the tests share what they make
export OMP_NUM_THREADS ?= 1
export PYTHONHASHSEED := 0

SUBSET := $(if $(filter default,$(GRID)),,--subset)
UPDATING := $(if $(UPDATE),$(if $(SUBSET),$(error UPDATE=1: the committed tables are those of GRID=default))--update README.md docs/results.md)

.PHONY: help setup paper rehearsal test bench lab docs baselines clean

help: ## this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/make \1|\2/p; s/^## (.*)/|\1/p' Makefile | awk -F'|' '{printf "%-15s %s\n", $$1, $$2}'

setup: .venv/.done ## .venv with the pinned packages of requirements.lock, once

.venv/.done: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch .venv/.done

paper: setup ## the grid, every table and figure into runs/paper, and how far they are from the committed ones
## GRID=full: all constraints and seeds; FULL=1 DATA=FOLDER: the papers' own, on your files
## GRID=smoke: two cells of one experiment, to try the workflow in 3 minutes of CPU time
## DRY=1: what would be run, and about how long; OUT=FOLDER: tables and figures elsewhere
## UPDATE=1: the new tables and figures become the committed ones, in paper_figures/, README.md and docs/results.md
## DEVICE=cpu, cuda, cuda:1: where models run; by default on a GPU if there is one
## JOBS=N: at once, by default 2 with a GPU, else one a core; PROFILE=workflow/profiles/slurm: another Snakemake profile
	$(if $(DRY),$(PY) -m lfpr plan --grid workflow/grid.yaml:$(GRID) --cores $(JOBS) $(if $(DATA),--data $(call sh,$(value DATA))))
	$(if $(DRY),,$(PY) -m lfpr check --remove)
	$(if $(UPDATE),LFPR_UPDATE=1) TQDM_DISABLE=1 $(PY) -m snakemake --snakefile workflow/Snakefile --profile $(call sh,$(value PROFILE)) --cores $(JOBS) \
		$(if $(DRY),--dry-run) --config grid=$(GRID) $(call sh,out=$(call yaml,$(value OUT))) \
		$(if $(DATA),$(call sh,data=$(call yaml,$(value DATA)))) $(if $(DEVICE),device=$(DEVICE))
	$(if $(DRY)$(FULL),,$(PY) -m lfpr reproduce --committed paper_figures --new $(call sh,$(value OUT)) $(SUBSET) $(UPDATING))

rehearsal: setup ## the notebooks with profile=full on random files of the real sizes
	$(PY) tests/rehearsal/rehearse.py --out runs/rehearsal

test: setup ## ruff, pytest, and every notebook's committed outputs against a new run of it
## JOBS=N: files at once, by default one a core
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest $(AT_ONCE) tests
	TQDM_DISABLE=1 $(PY) -m pytest $(AT_ONCE) --nbval --nbval-current-env notebooks

bench: setup ## what the stages take beside the published ways and peers: docs/benchmarks.md (about 15 minutes of one core)
## ONLY='load decoding': these rows alone, the others stay as they are
	$(PY) benchmarks/bench.py --write $(if $(ONLY),--only $(ONLY))

lab: setup ## JupyterLab on the notebooks; LAB_ARGS: its options
	$(PY) -m ipykernel install --sys-prefix --name python3 >/dev/null  # the notebooks' kernel, under the name they have
	$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_explore.ipynb $(LAB_ARGS)  # figures and runs/ are in reach

docs: setup ## the API reference and the executed notebooks as HTML, in docs/api/
	$(PY) -W ignore -m pdoc --template-directory docs/templates --output-directory docs/api lfpr \
		$$($(PY) -c 'import lfpr, pkgutil; print(*(m.name for m in pkgutil.walk_packages(lfpr.__path__, "lfpr.")))') \
		'!lfpr.__main__' '!lfpr.mini'
	$(PY) -m nbconvert --log-level WARN --to html --embed-images --output-dir docs/api/notebooks notebooks/*.ipynb

baselines: setup ## train the small models in data/mini/ anew
	$(PY) -m lfpr.experiments.tap_baselines
	$(PY) -m lfpr.experiments.sal_baselines
	$(PY) -m lfpr.experiments.clip_baselines

clean: ## remove what was computed
	rm -rf runs docs/api .snakemake .pytest_cache .ruff_cache .hypothesis
