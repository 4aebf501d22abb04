# Two commands set everything up: `make demo` and `make test`. What they need lands in .venv.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   ?= .venv
DEMO   ?= demo
BENCH  ?= benchmarks
# pytest workers; each test process computes with the threads it asks for
JOBS   ?= 2

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := $(shell find csrc cmake CMakeLists.txt -type f 2>/dev/null)

.PHONY: reproduce help build demo test isa sanitize torture lint format bench report evidence gpu-check wheel clean
help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 10

$(VENV)/.torch: Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "losatok_ext needs Python 3.10 or newer; choose one with make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade pip
	$(PIP) install -q "$(TORCH)"
	$(PIP) install -q "scikit-build-core>=0.11" "pybind11>=2.13" "cmake>=3.25.2" ninja
	@touch $@

# An isolated build would fetch a torch of its own, so the build tools are installed first and isolation is off. pesq, on the
# other hand, builds in isolation only. Of xares the tests need the encoder checker; what it depends on would bring another torch.
$(VENV)/.build: $(VENV)/.torch pyproject.toml $(NATIVE)
	@command -v $${CXX:-c++} >/dev/null || { echo "no C++ compiler: install g++ (Debian: apt-get install g++) or set CXX"; exit 1; }
	$(PIP) install -q --no-build-isolation -e ".[dev]"
	$(PIP) install -q "pesq>=0.0.4" "pystoi>=0.4"
	$(PIP) install -q --no-deps "xares>=0.1.3"
	@touch $@

build: $(VENV)/.build  ## make .venv and build the native ops into it

demo: build  ## reconstruct with the bundled model, train a small generator on its latents, generate and edit
	$(BIN)/losatok demo -o $(DEMO)

test: build  ## run the test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

isa: build  ## test the ops and the golden cases as processors with other instruction sets would run them
	$(BIN)/python tests/instruction_sets.py

sanitize: build  ## test the native ops built with AddressSanitizer and UndefinedBehaviorSanitizer, once for each release
	$(BIN)/python tools/sanitize.py $(ARGS)

torture: build  ## make things go wrong at random: damaged files, kills, full disks, hostile arguments (ARGS="--hours 1")
	$(BIN)/python tools/torture.py $(ARGS)

lint: build  ## ruff, clang-format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.cpp' 'tests/*.h' 'tests/*.cu' 'tests/*.cuh')
	$(BIN)/mypy

format: build  ## put the sources into the house format
	$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.cpp' 'tests/*.h' 'tests/*.cu' 'tests/*.cuh')

bench: build  ## measure the ops beside their peers (RESULTS=benchmarks/results keeps the figures)
	$(BIN)/python -m pytest $(BENCH) -p no:xdist --benchmark-only $(if $(RESULTS),--bench-results $(RESULTS)) $(ARGS)

report: build  ## write the kept figures into README.md and docs/performance.md
	$(BIN)/python benchmarks/report.py

evidence: build  ## compile the GPU kernels that have changed, and keep what the compilers say in docs/kernels.md
	$(BIN)/python tests/kernel_evidence.py

reproduce: build  ## train teachers, bottlenecks and tokenizers of three seeds, and set the paper's claims beside them (ARGS="--scale 1")
	$(BIN)/python tools/reproduce.py $(ARGS)

gpu-check:  ## on a machine with a GPU: build, test, sanitize and measure there, in parts (ARGS="--limit 560")
	$(PYTHON) tools/gpu_check.py $(ARGS)

wheel: $(VENV)/.torch  ## build a wheel into dist/
	$(PIP) wheel -q --no-build-isolation --no-deps -w dist .

clean:  ## remove what make made
	rm -rf $(VENV) build dist $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
