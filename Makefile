# One command each, on a fresh machine with Python 3.11 or newer; a C++ compiler makes it fast, but none is needed.
#
#   VENV=path         another environment than .venv
#   PYTHON=python3.x  another interpreter to make it with
#   PYTEST_ARGS=...   BENCH_ARGS=...   more words for pytest

VENV ?= .venv
PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?= --benchmark-group-by=group --benchmark-sort=fullname --benchmark-columns=min,median,iqr,rounds

bin := $(VENV)/bin
# -P: the checkout's ./dropfast has no native module, so it must not be found before the installed one.
python := $(bin)/python -P
pip := $(python) -m pip --disable-pip-version-check --no-input
say = @printf '\033[1m==> %s\033[0m\n'

# What an installation is made from; a change in any of it installs again.
sources := pyproject.toml CMakeLists.txt $(filter-out %.pyc,$(wildcard csrc/*.* dropfast/*.* dropfast/*/*.*))

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.extra-demo  ## build, install and show what dropfast does, on real data
	$(say) "the demo"
	$(python) -m dropfast demo

test: $(VENV)/.group-test  ## the whole test suite, on every backend and instruction set of this machine
	$(say) "the tests"
	$(bin)/pytest $(PYTEST_ARGS)

doors-oldest: $(VENV)/.doors-oldest  ## the tests of the doors, with the oldest frameworks that they open to (installs them, 2 GB)
	$(say) "the tests of the doors"
	$(bin)/pytest tests/doors $(PYTEST_ARGS)

# An environment of its own: the frameworks that `make doors-oldest` installs stay the oldest.
doors-newest:  ## the same with the newest release of each (installs them, 8 GB)
	$(MAKE) $(VENV)-newest/.doors-newest VENV=$(VENV)-newest
	$(say) "the tests of the doors"
	$(VENV)-newest/bin/pytest tests/doors $(PYTEST_ARGS)

sanitize:  ## memory, undefined behaviour, races: the sanitizers, valgrind and fuzzing (an hour)
	tests/sanitize $(VENV)-sanitize

coverage: $(VENV)/.doors-oldest  ## which lines the tests run, as pages in build/coverage (ten minutes)
	tests/coverage $(VENV)

mutants:  ## whether seeded faults are caught (two minutes)
	$(say) "faults, seeded into the kernels"
	$(PYTHON) tests/mutants.py

machines: $(VENV)/.group-test  ## other processors (emulated), compilers and Pythons (an hour)
	tests/machines $(VENV)

large: $(VENV)/.group-test  ## arrays of more than 2^32 elements (14 GiB of memory, ten minutes)
	$(say) "arrays of more than 2^32 elements"
	$(bin)/pytest tests/large -v $(PYTEST_ARGS)

gpu: $(VENV)/.group-gpu  ## the masks of a GPU of NVIDIA's, in PyTorch and JAX, and its times (installs them, 8 GB)
	$(say) "the masks of a GPU"
	$(bin)/pytest tests/gpu/test_torch_on_a_gpu.py $(PYTEST_ARGS)
	XLA_PYTHON_CLIENT_PREALLOCATE=false $(bin)/pytest tests/gpu/test_jax_on_a_gpu.py $(PYTEST_ARGS)
	$(python) benchmarks/gpu.py

dieharder:  ## a battery of statistical tests, with its reports in docs/dieharder (two hours)
	tests/dieharder

bench: $(VENV)/.extra-bench  ## the benchmarks: dropfast, its NumPy fallback, NumPy, and the peers of `make peers`
	$(say) "the benchmarks"
	$(bin)/pytest benchmarks $(BENCH_ARGS)

# A pair for whoever changes what is fast: the first before, the second behind. SAVED=file: another than the last one.
bench-save: $(VENV)/.extra-bench  ## measure, and save the run in .benchmarks (a minute)
	$(say) "a run to compare with"
	$(python) benchmarks/history.py save

bench-compare: $(VENV)/.extra-bench  ## measure, and show each case beside the run that was saved last
	$(say) "each case, beside the run that was saved"
	$(python) benchmarks/history.py compare $(SAVED)

peers: $(VENV)/.group-peers  ## install the frameworks that the benchmarks compare with (2 GB)

# From nothing each time: only then does Sphinx warn of every page.
docs: $(VENV)/.group-docs $(VENV)/.group-test  ## the site, in build/docs/html
	$(say) "the site"
	rm -rf build/docs
	$(bin)/sphinx-build --quiet --fail-on-warning --keep-going --doctree-dir build/docs/doctrees docs build/docs/html
	$(bin)/pytest tests/site $(PYTEST_ARGS)
	$(say) "open file://$(CURDIR)/build/docs/html/index.html"

# Everything that reads the files without running them.
lint: $(VENV)/.group-lint $(VENV)/.group-test  ## style, types, spelling and metadata
	$(say) "ruff"
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(say) "clang-format"
	$(bin)/clang-format --dry-run -Werror $(wildcard csrc/*.cpp csrc/*.h)
	$(say) "mypy, pyright"
	$(bin)/mypy
	$(bin)/pyright --warnings --pythonpath $(bin)/python
	$(say) "codespell"
	$(bin)/codespell
	$(say) "validate-pyproject, sp-repo-review, zizmor, check-jsonschema"
	$(bin)/validate-pyproject pyproject.toml
	$(bin)/sp-repo-review .
	$(bin)/zizmor --offline --quiet --persona auditor .github
	$(bin)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(bin)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(bin)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(bin)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(bin)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(say) "the wheels of a release"
	for platform in linux:x86_64,aarch64 macos:x86_64,arm64 windows:AMD64,ARM64; do \
	  $(bin)/cibuildwheel --print-build-identifiers --platform "$${platform%:*}" --archs "$${platform#*:}" || exit; \
	done | LC_ALL=C sort | diff .github/wheels.txt -

clean:  ## remove what was built and the environment
	rm -rf $(VENV) $(VENV)-newest $(VENV)-sanitize $(VENV)-sanitize-fuzz build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find dropfast tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# The environment, and one stamp file in it for each thing that was installed.
$(VENV)/.created:
	$(say) "a new environment in $(VENV)"
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("dropfast needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(pip) install --quiet --upgrade pip
	@touch $@

$(VENV)/.installed: $(sources) | $(VENV)/.created
	$(say) "building and installing dropfast (about a minute)"
	$(pip) install --quiet .
	$(python) -m dropfast info
	@touch $@

# dropfast itself is there by now: this adds what the extra asks for.
$(VENV)/.extra-%: pyproject.toml | $(VENV)/.installed
	$(say) "installing what dropfast[$*] needs"
	$(pip) install --quiet "dropfast[$*]"
	@touch $@

$(VENV)/.group-%: pyproject.toml | $(VENV)/.installed
	$(say) "installing the dependency group $*"
	$(pip) install --quiet --group $*
	@touch $@

# Once more, with the handler for JAX: its headers are jaxlib's, which pip hides from builds. And Triton in a folder of
# its own, from where PyTorch may have brought it: it ends a process that has imported TensorFlow.
$(VENV)/.doors-%: $(VENV)/.group-doors-%
	$(say) "building the handler for JAX (about a minute)"
	$(pip) install --quiet --no-deps --force-reinstall . --config-settings=cmake.define.DROPFAST_XLA_INCLUDE="$$($(python) -c \
	  'import jaxlib; print(jaxlib.__path__[0])')/include"
	$(python) -c 'import dropfast._jax_ffi'
	$(pip) uninstall --quiet --yes triton
	$(pip) install --quiet --no-deps --upgrade --target $(VENV)/triton --group triton-$*
	@touch $@

# Two pips at once in one environment would trip over each other.
.NOTPARALLEL:
.PHONY: help demo test doors-oldest doors-newest sanitize coverage mutants machines large gpu dieharder bench bench-save bench-compare peers docs lint clean
.PRECIOUS: $(VENV)/.extra-% $(VENV)/.group-%
