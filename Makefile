# Egret: every command makes what it needs. `make help` lists them.
#
# The environment is .venv, made from the exact versions in constraints.txt. Nothing has to be
# activated, and nothing outside .venv and build/ is written.

# Interpreter that makes .venv: 3.11 or newer. Default: python3.11, else python3.
PYTHON ?=
# Where torch comes from. Empty: a CPU build, from pip's configured sources or else from PyTorch's
# own CPU index. A URL: that index. `default`: whatever pip finds (on Linux, PyPI's CUDA build).
TORCH_INDEX ?=
# Worker processes of the tests: a number, or `auto` for one a core (eight at most).
JOBS ?= auto
# Checkpoints that `make bench-codec` and `bench-hw` measure besides what ships, and more options.
WEIGHTS ?=
BENCH_OPTIONS ?=
# Folder of the data sets of `make experiments`, see docs/experiments.md. Empty: the digits alone.
DATA ?=
# DeepCABAC's package. It asks for an older NumPy, so that it stays out of .venv.
NNCODEC := 2.1.3

# How long `make fuzz` goes on.
SECONDS ?= 60
# Simulator of `make sim`: verilator or icarus; and its seed, by default another one every time.
SIM ?= verilator
ifndef SEED
SEED := $(shell date +%s)
endif
# More options of `make sim-long`: --preset, --weights, --seed.
SIM_LONG_OPTIONS ?=
# What `make test-full` runs: names of benchmarks/full_run.py.
FULL_STEPS := lint test sim sim-icarus faults formal sim-long mutate coverage

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# What is found goes into the first folder, the second is what is kept.
FUZZ_OPTIONS := -max_len=4096 -timeout=5 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix=build/fuzz/ build/fuzz/corpus tests/corpus
NNCODEC_READY := build/peers/.nncodec-$(NNCODEC)

# What the caller's shell sets for other projects must not leak into this one.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONOPTIMIZE PYTHONWARNINGS VIRTUAL_ENV
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_CONSTRAINT PIP_REQUIREMENT PIP_NO_DEPS
# Verilator's builds run their own make inside pytest; ours must not hand them its flags.
unexport MAKEFLAGS MFLAGS
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv compiler demo test formal lint format rtl diagrams fuzz bench-digits bench-training bench-codec bench-hw \
    experiments clean distclean
.PHONY: sim faults sim-long test-full mutate coverage

help:
	@echo 'Egret: make COMMAND'
	@echo
	@echo '  demo          train, pack, generate Verilog, simulate it, report into build/demo'
	@echo '  test          the whole test suite'
	@echo '  sim           the hardware benches alone, on SIM=verilator or SIM=icarus, with SEED=n'
	@echo '  faults        every fault of the lists in tests/test_faults.py'
	@echo '  sim-long      20 million weights through the accelerator, compared with NumPy'
	@echo '  test-full     everything, on both simulators; needs the Debian package iverilog'
	@echo '  formal        prove what docs/verification.md lists, with Yosys and Z3'
	@echo '  mutate        mutants of the accelerator: how many the tests catch, into docs/mutation.md'
	@echo '  coverage      what the tests of the accelerator cover, into docs/coverage.md'
	@echo '  lint          ruff (format and rules) and mypy'
	@echo '  format        let ruff rewrite the sources'
	@echo '  rtl           regenerate what is kept in hw/verilog, and docs/registers.md'
	@echo '  diagrams      redraw the timing diagrams in docs/images from a simulation'
	@echo '  fuzz          feed the reader of containers with damaged files, for SECONDS=60'
	@echo '  bench-digits  the digits figures over five seeds'
	@echo '  bench-training  the figures of docs/training.md'
	@echo '  bench-codec   sizes and speeds of the codec beside other codecs'
	@echo '  bench-hw      area, clock and cycles of the accelerator'
	@echo '  experiments   the tables and figures of the paper in our networks, and beyond'
	@echo '  venv          only make the environment .venv'
	@echo '  clean         remove build/ and caches;  distclean: .venv too'
	@echo
	@echo 'Variables: PYTHON=python3.12      interpreter for .venv, 3.11 or newer'
	@echo '           TORCH_INDEX=URL        package index that torch is installed from, e.g.'
	@echo '                                  https://download.pytorch.org/whl/cpu'
	@echo '           TORCH_INDEX=default    the build pip would choose (CUDA on Linux)'
	@echo '           JOBS=2                 worker processes of the tests'
	@echo '           WAVES=1                keep the waves of every run in build/waves'
	@echo '           WEIGHTS="a.th b.bin"   checkpoints for bench-codec and bench-hw, besides what ships'
	@echo '           DATA=folder            data sets for experiments; the digits alone if empty'

venv: $(READY)
	@echo 'egret: $(VENV) is up to date'

$(READY): constraints.txt pyproject.toml sw/install_torch.py
	@found=; \
	for candidate in $(if $(PYTHON),'$(PYTHON)',python3.11 python3); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        found=$$candidate; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo 'egret: Python 3.11 or newer is needed, and $(if $(PYTHON),$(PYTHON) is not,neither python3.11 nor python3 is); try: make PYTHON=/path/to/python3.11' >&2; \
	    exit 1; \
	fi; \
	echo "egret: making the environment $(VENV) with $$($$found --version): one to five minutes, about 2 GB"; \
	"$$found" -m venv $(VENV)
	@echo 'egret: 1/2 installing torch'
	@$(PY) sw/install_torch.py constraints.txt '$(TORCH_INDEX)'
	@echo 'egret: 2/2 installing everything else, Verilator and Yosys included'
	@$(PY) -m pip install -c constraints.txt -e '.[train,integrations,hw,sim,formal,bench,dev]'
	@touch $@

# Verilator's models are compiled by c++.
compiler:
	@command -v c++ >/dev/null || { echo 'egret: a C++ compiler (c++) is needed, to build what Verilator makes' >&2; exit 1; }

demo: compiler $(READY)
	@$(PY) -m egret.cli demo -o build/demo

test: compiler $(READY)
	@echo 'egret: running the tests, a few minutes on two cores (Verilator builds included)'
	@# The workers share the cores, so that each has one thread.
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile tests

# --- Verification beyond `make test` ---

# Icarus simulates far fewer cycles in a second, so that of the accelerator's benches it plays
# those on the kept Verilog, on the codes and on the inputs' errors; all components' benches.
ICARUS_ACCELERATOR := repository or strobe or every_kind_of_code or numbers_of_activations
SIM_BENCHES := $(filter-out tests/test_hw_accelerator.py,$(wildcard tests/test_hw_*.py))

sim: compiler $(READY)
	@echo 'egret: simulating with $(SIM), seed $(SEED); again: make sim SIM=$(SIM) SEED=$(SEED)'
	@export OMP_NUM_THREADS=1 EGRET_FULL=1 EGRET_SIMULATOR=$(SIM) EGRET_SEED=$(SEED); \
	    $(PY) -c 'from egret_sim.runner import check_simulator; check_simulator()' && \
	    $(PY) -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile $(SIM_BENCHES) && \
	    $(PY) -m pytest -n $(JOBS) --maxprocesses 8 \
	    $(if $(filter icarus,$(SIM)),-k '$(ICARUS_ACCELERATOR)') tests/test_hw_accelerator.py

faults: compiler $(READY)
	@echo 'egret: playing every fault of the lists: several minutes'
	@EGRET_FULL=1 $(PY) -m pytest -q -s tests/test_faults.py

sim-long: compiler $(READY)
	@$(PY) -m benchmarks.sim_long $(SIM_LONG_OPTIONS)

test-full: $(READY)
	@MAKE='$(MAKE)' $(PY) -m benchmarks.full_run --steps $(FULL_STEPS)

# ---

formal: $(READY)
	@echo 'egret: proving: a few minutes on two cores; logs and traces go to build/formal'
	@$(PY) -m egret_sim.formal --folder build/formal

mutate: compiler $(READY)
	@echo 'egret: making mutants of two accelerators and looking for them: half an hour on two cores'
	@OMP_NUM_THREADS=1 $(PY) -m tests.mutation

coverage: compiler $(READY)
	@echo 'egret: measuring what the tests of the accelerator cover: a quarter of an hour'
	@OMP_NUM_THREADS=1 $(PY) -m tests.cover

lint: $(READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: $(READY)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

rtl: $(READY)
	@echo 'egret: generating the Verilog of every preset: a minute or two'
	@$(PY) hw/regenerate.py

diagrams: $(READY)
	@echo 'egret: simulating a small accelerator and drawing its timing: half a minute'
	@$(PY) -m benchmarks.diagrams

# First as plain Python, whose branches guide the fuzzer, then compiled, with bounds checked.
fuzz: $(READY)
	@$(PY) -c 'import atheris' 2>/dev/null || $(PY) -m pip install --quiet -c constraints.txt -e '.[fuzz]'
	@mkdir -p build/fuzz/corpus
	@echo 'egret: fuzzing the reader for $(SECONDS) seconds; findings go to build/fuzz'
	@NUMBA_DISABLE_JIT=1 $(PY) -m tests.fuzz.reader \
	    -max_total_time=$$(($(SECONDS) * 2 / 3 + 1)) $(FUZZ_OPTIONS)
	@NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=build/fuzz/numba $(PY) -m tests.fuzz.reader \
	    -max_total_time=$$(($(SECONDS) / 3 + 1)) $(FUZZ_OPTIONS)

bench-digits: $(READY)
	@echo 'egret: training the digits network for five seeds: several minutes'
	@$(PY) benchmarks/digits_seeds.py

bench-training: $(READY)
	@echo 'egret: training to targets, timing the rate step: half an hour on two cores'
	@$(PY) -m benchmarks.rate_targets --json docs/results/rate-targets.json
	@$(PY) -m benchmarks.rate_step --json docs/results/rate-step.json
	@$(PY) -m benchmarks.digits_target --json docs/results/digits-target.json

# Of nncodec only the compiled coder is used, not what it depends on. Without it the bench goes on,
# and says that it is missing.
$(NNCODEC_READY): | $(READY)
	@echo 'egret: building nncodec $(NNCODEC) for its DeepCABAC: one or two minutes, once'
	@mkdir -p $(@D)
	@if $(PY) -m pip install --quiet --no-deps --upgrade --target $(@D) nncodec==$(NNCODEC); then \
	    touch $@; \
	else \
	    echo 'egret: nncodec was not built; the bench runs without DeepCABAC' >&2; \
	fi

bench-codec: $(READY) $(NNCODEC_READY)
	@echo 'egret: measuring the codec and its peers: several minutes'
	@$(PY) -m benchmarks.codec $(WEIGHTS) $(BENCH_OPTIONS)

bench-hw: compiler $(READY)
	@echo 'egret: placing, routing and simulating the accelerator: an hour or two the first time'
	@$(PY) -m benchmarks.hardware $(WEIGHTS) $(BENCH_OPTIONS)

# One thread for each training: --jobs in BENCH_OPTIONS trains several networks at once.
experiments: $(READY)
	@echo 'egret: training for the experiments: hours for digits alone; what is trained is kept'
	@$(PY) -m benchmarks.experiments all $(if $(DATA),--data '$(DATA)') $(BENCH_OPTIONS)

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis sim_build results.xml
	find sw hw sim tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
