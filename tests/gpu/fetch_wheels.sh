#!/usr/bin/env bash
# Download into tests/gpu/wheels/ what a bare GPU machine without a package index lacks (see run.sh).
# The machine has Python 3.12 (PYTHON_VERSION says another one), torch, pytest and the usual scientific
# packages. pytest-timeout is needed because pyproject.toml sets its option and pytest is strict.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
platforms=(--platform manylinux2014_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_28_x86_64)
packages=(
  diffusers hypnettorch zarr numcodecs donfig google-crc32c gymnasium farama-notifications cloudpickle
  psutil msgspec pytest-timeout
)
mkdir -p "$here/wheels"
"${PYTHON:-python3}" -m pip download --dest "$here/wheels" --no-deps --only-binary :all: \
  --python-version "${PYTHON_VERSION:-3.12}" --implementation cp "${platforms[@]}" \
  --constraint "$here/../../constraints.txt" "${packages[@]}"
du -ch "$here"/wheels/*.whl | tail -1
