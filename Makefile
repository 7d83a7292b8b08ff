# The two set-up commands are `make quickstart` and `make test`; both install what they need.

PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
SUDO = $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# The front door, the settings, and the contracts of what other packages may add.
DOCUMENTED = lwdctl.configs lwdctl.core.records lwdctl.data.reader lwdctl.envs.simulator \
  lwdctl.methods.method lwdctl.models.denoiser lwdctl.policies.policy lwdctl.deploy.runtime

.DEFAULT_GOAL := help
.PHONY: help quickstart docs test check format format-check lint types imports tests system system-dev clean

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

quickstart: $(VENV)/.installed  ## Install lwdctl and run the quick start recipe.
	$(BIN)/lwdctl run pipelines/quickstart.toml

docs: $(VENV)/.installed-dev  ## Render the reference of the Python API into docs/.
	$(BIN)/python -c 'import pathlib, lwdctl, pdoc; \
	  [getattr(lwdctl, name) for name in lwdctl.__all__]; \
	  pdoc.render.configure(docformat="google"); \
	  pdoc.pdoc("lwdctl", *"$(DOCUMENTED)".split(), output_directory=pathlib.Path("docs"))'
	@echo "open docs/lwdctl.html"

test: lint types imports tests  ## Install the development set; run ruff, mypy, import-linter, pytest.

check: format-check test  ## Format check and make test; with SLOW=1 everything that CI checks.

format: $(VENV)/.installed-dev  ## Format the code and mend what ruff can mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

format-check: $(VENV)/.installed-dev  ## Tell whether the code is formatted.
	$(BIN)/ruff format --check .

lint: $(VENV)/.installed-dev  ## Run ruff.
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev  ## Run mypy.
	$(BIN)/mypy

imports: $(VENV)/.installed-dev  ## Check the order of the packages.
	$(BIN)/lint-imports

# One thread each: two test processes with two threads each wait for one another on two cores.
tests: export OMP_NUM_THREADS ?= 1
tests: $(VENV)/.installed-dev  ## Run the default tests, simulators included; with SLOW=1 the slow ones as well.
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart=0 $(if $(filter 1,$(SLOW)),-m 'not long and not gpu')

clean:  ## Remove the virtual environment and the tools' caches.
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e .
	@touch $@

# robomimic judges the files and environments made here; its own dependencies would bring torchvision.
$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt | system-dev
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install -c constraints.txt --no-deps robomimic six termcolor
	@touch $@ $(VENV)/.installed

$(VENV)/bin/python: | system
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt pip

# OpenCV, which gym-pusht imports, needs three system libraries; Debian's Python comes without venv.
system:
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  $(SUDO) apt-get update && $(SUDO) apt-get install -y --no-install-recommends python3.11-venv; }
	@$(PYTHON) -c 'import ctypes; [ctypes.CDLL(n) for n in ("libGL.so.1", "libglib-2.0.so.0", "libxcb.so.1")]' \
	  2>/dev/null || { $(SUDO) apt-get update && \
	  $(SUDO) apt-get install -y --no-install-recommends libgl1 libglib2.0-0 libxcb1; }

# robosuite brings a package that is built from source; videos are drawn through EGL; reports are
# looked at in Chromium.
system-dev: | system
	@{ command -v gcc && test -e /usr/include/linux/input.h && \
	  $(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'; } \
	  >/dev/null 2>&1 || { $(SUDO) apt-get update && $(SUDO) apt-get install -y \
	  --no-install-recommends gcc libc6-dev linux-libc-dev && { test -e "$$($(PYTHON) -c \
	  'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || \
	  $(SUDO) apt-get install -y --no-install-recommends python3.11-dev; }; }
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libEGL.so.1")' 2>/dev/null && ls /usr/lib/*/dri/*swrast* \
	  >/dev/null 2>&1 || { $(SUDO) apt-get update && \
	  $(SUDO) apt-get install -y --no-install-recommends libegl1 libgl1-mesa-dri; }
	@command -v chromium >/dev/null || { $(SUDO) apt-get update && \
	  $(SUDO) apt-get install -y --no-install-recommends chromium; }
