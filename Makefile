# Everything goes through one virtual environment, made on first use from the pinned list.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test check numerics ablation bench bench-overhead bench-imports stress robustness levels variance \
	tune entropy cheaper stream flow frechet latent grids edit dehaze shifting restore-exact restore-cost comfyui memory \
	quality quality-quick docs figures dist clean
help:
	@echo "make demo            compare solvers on the packaged model; says where the picture is"
	@echo "make test            everything that CI runs: lint, types, tests"
	@echo "make numerics        measure docs/numerics.md anew"
	@echo "make ablation        measure the iterations of the EVODiff papers (docs/evodiff.md)"
	@echo "make bench-overhead  time the solvers beside diffusers' (docs/overhead.md)"
	@echo "make bench-imports   time imports, the command line's help and the loading of the model (docs/imports.md)"
	@echo "make tune            measure what tuning gains (docs/tune.md); hours"
	@echo "make entropy         measure where the packaged network decides (docs/entropy.md)"
	@echo "make cheaper         measure docs/cheaper.md: error against seconds of calls, caching and precision"
	@echo "make stream          measure docs/stream.md: throughput, residual guidance, patches on two devices"
	@echo "make stress          measure docs/stress.md: problems that are nothing like images, with networks from PyPI"
	@echo "make robustness      kill runs of the command line, fill their disk, begin two at once; says what was lost"
	@echo "make levels          measure what noise levels are worth to the scheduler for diffusers (docs/levels.md)"
	@echo "make comfyui         measure docs/comfyui.md, in the ComfyUI at COMFYUI_SRC by the Python at COMFYUI_PYTHON"
	@echo "make variance        measure what each part of EVODiff's default is worth (docs/least-variance.md)"
	@echo "make memory          measure what a run needs beside diffusers' own pipeline (docs/memory.md)"
	@echo "make flow            measure docs/flow.md: what users of flow models choose from, on the grid that they have"
	@echo "make restore-exact   measure who is biased, against known posteriors (docs/restore-exact.md)"
	@echo "make restore-cost    measure what restoring costs beside plain sampling (docs/restore-cost.md)"
	@echo "make frechet         measure docs/frechet.md: distances in features that nobody here trained"
	@echo "make latent          train a small latent model on other images, and measure docs/latent.md on it"
	@echo "make grids           write docs/grids.md, which grid for which solver, from the records of make quality"
	@echo "make edit            edit images with the packaged model (docs/edit.md)"
	@echo "make dehaze          take haze off images, with a model of the haze too (docs/dehaze.md)"
	@echo "make shifting        train a network for residual shifting, and measure it (docs/shifting.md)"
	@echo "make bench           solvers on the packaged model, 1,000 images a row (benchmarks/report/): an hour; goes on"
	@echo "make quality         measure docs/quality.md: hours; goes on where it was interrupted"
	@echo "make docs            the site of docs/, in site/: strict, without network"
	@echo "make figures         draw docs/figures anew from the pages that hold the numbers"
	@echo "make dist            both packages in dist/: built twice, compared, checked, installed and used (docs/release.md)"
	@echo "make quality-quick   a reduced table of it, printed, in minutes"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fewstep needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[all]' pytest pytest-xdist hypothesis mpmath transformers mypy ruff pre-commit hatchling \
		mkdocs-material mkdocstrings-python
	touch $@

demo: $(VENV)/.installed
	$(BIN)/fewstep compare --guidance 2 --out compare.png

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest --numprocesses auto

numerics: $(VENV)/.installed
	$(BIN)/python -m benchmarks.numerics --out docs/numerics.md

ablation: $(VENV)/.installed
	$(BIN)/python -m benchmarks.ablation --out docs/evodiff.md

bench-overhead: $(VENV)/.installed
	$(BIN)/python -m benchmarks.overhead --out docs/overhead.md
	cat docs/overhead.md

bench-imports: $(VENV)/.installed
	$(BIN)/python -m benchmarks.imports --out docs/imports.md

stress: $(VENV)/.installed
	$(BIN)/python -m benchmarks.stress --out docs/stress.md

robustness: $(VENV)/.installed
	$(BIN)/python -m benchmarks.robustness

tune: $(VENV)/.installed
	$(BIN)/python -m benchmarks.tune --out docs/tune.md

cheaper: $(VENV)/.installed
	$(BIN)/python -m benchmarks.cheaper

stream: $(VENV)/.installed
	$(BIN)/python -m benchmarks.stream --out docs/stream.md

entropy: $(VENV)/.installed
	$(BIN)/python -m benchmarks.entropy --out docs/entropy.md

levels: $(VENV)/.installed
	$(BIN)/python -m benchmarks.levels --out docs/levels.md

# DATA may be an npz file of images; by name it needs the extra `train`.
DATA ?= uoft-cs/cifar10
# Measurements are kept there; a folder of your own, or a problem's folder removed, measures anew.
RESULTS ?= benchmarks/quality/records

comfyui:
	PYTHONPATH=src:. $(COMFYUI_PYTHON) -m benchmarks.comfyui --out docs/comfyui.md

variance: $(VENV)/.installed
	$(BIN)/python -m benchmarks.variance --data $(DATA) --out docs/least-variance.md

memory: $(VENV)/.installed
	$(BIN)/python -m benchmarks.memory --out docs/memory.md

flow: $(VENV)/.installed
	$(BIN)/python -m benchmarks.flow --data $(DATA) --out docs/flow.md

restore-exact: $(VENV)/.installed
	$(BIN)/python -m benchmarks.restore.exact --out docs/restore-exact.md

restore-cost: $(VENV)/.installed
	$(BIN)/python -m benchmarks.restore.cost --out docs/restore-cost.md

# What only measures: an outsider's features, and photographs that are not CIFAR-10's.
$(VENV)/.evidence: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[evidence]'
	touch $@

frechet: $(VENV)/.evidence
	$(BIN)/python -m benchmarks.frechet --data $(DATA) --out docs/frechet.md

LATENT ?= samples/latent
latent: $(VENV)/.evidence
	$(BIN)/python -m benchmarks.latent --folder $(LATENT) --out docs/latent.md

grids: $(VENV)/.installed
	$(BIN)/python -m benchmarks.grids --out docs/grids.md

edit: $(VENV)/.installed
	$(BIN)/python -m benchmarks.edit --data $(DATA) --out docs/edit.md

dehaze: $(VENV)/.installed
	$(BIN)/python -m benchmarks.restore.dehaze --data $(DATA) --out docs/dehaze.md

shifting: $(VENV)/.installed
	$(BIN)/python -m benchmarks.restore.shifting --data $(DATA) --out docs/shifting.md

BENCH ?= samples/bench
bench: $(VENV)/.installed
	$(BIN)/fewstep bench run benchmarks/bench.toml --out $(BENCH)
	$(BIN)/fewstep bench report $(BENCH) --out benchmarks/report --title "Six solvers on the packaged model"

quality: $(VENV)/.installed
	$(BIN)/python -m benchmarks.quality --data $(DATA) --results $(RESULTS) --out docs/quality.md

quality-quick: $(VENV)/.installed
	$(BIN)/python -m benchmarks.quality --quick --data $(DATA) --results $$(mktemp -d)

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 PATH="$$PWD/$(BIN):$$PATH" $(BIN)/mkdocs build --strict
	@echo "open site/index.html, or, to have its search too: $(BIN)/mkdocs serve"

figures: $(VENV)/.installed
	$(BIN)/python -m benchmarks.figures

dist:
	PYTHON=$(PYTHON) scripts/dist.sh

clean:
	rm -rf $(VENV) dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
