#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that reaches no network: installs what is missing from
# tests/gpu/wheels/ (fill it with fetch_wheels.sh first), runs the tests of CUDA, measures the rows
# of `lwdctl bench` that a GPU changes, and prints their table. Ends within LIMIT seconds (480).
#
#   OUT=results tests/gpu/run.sh
#
# Results are written to OUT (./gpu-results) as they come: tests.log, bench.json, table.txt.
# PYTHON is the interpreter that has torch (python3); ROWS names the rows to measure. Without a GPU
# the tests are skipped and the rows are measured on the CPU.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
out=$(mkdir -p "${OUT:-$PWD/gpu-results}" && cd "${OUT:-$PWD/gpu-results}" && pwd)
rows=${ROWS:-vae-update denoiser-update dp-update sampling vae-hypnettorch decode step draw}
deadline=$((SECONDS + ${LIMIT:-480}))

within() { # MOST COMMAND...: run a command for at most MOST seconds and not past the deadline
  local most=$1 left=$((deadline - SECONDS - 10))
  shift
  timeout --kill-after 5 $((left < most ? (left > 1 ? left : 1) : most)) "$@"
}

packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
missing=()
for wheel in "$here"/wheels/*.whl; do
  [ -e "$wheel" ] || { echo "no wheels beside $0: run fetch_wheels.sh where there is a network"; break; }
  name=${wheel##*/}
  "$python" -c "import importlib.metadata as m; m.version('${name%%-*}')" 2>/dev/null || missing+=("$wheel")
done
if [ ${#missing[@]} -gt 0 ]; then
  within 120 "$python" -m pip install -q --no-index --no-deps --target "$packages" "${missing[@]}" || exit 1
fi
export PYTHONPATH="$root:$packages${PYTHONPATH:+:$PYTHONPATH}"
"$python" -c 'import torch, sys; print("Python", sys.version.split()[0], "torch", torch.__version__,
  torch.cuda.get_device_name() if torch.cuda.is_available() else "without a GPU")' | tee "$out/machine.txt"

cd "$root"
# Packages of another machine may warn of what those of the lock file do not.
within 200 "$python" -m pytest tests/gpu -m gpu -q -p no:cacheprovider -o filterwarnings=default \
  2>&1 | tee "$out/tests.log"
tests=${PIPESTATUS[0]}

known=$(within 60 "$python" -m lwdctl bench --list --json) || exit 1
chosen=()
for row in $rows; do [[ $known == *"\"$row\":"* ]] && chosen+=("$row"); done
rm -f "$out/bench.json"
within 480 "$python" -m lwdctl bench "${chosen[@]}" --out "$out/bench.json" >"$out/table.txt" 2>"$out/bench.log"
bench=$?
# Where the time ran out, the rows that were measured until then are printed.
[ $bench = 0 ] || [ ! -e "$out/bench.json" ] ||
  "$python" -m lwdctl bench --show "$out/bench.json" >"$out/table.txt"
cat "$out/table.txt"
echo "tests ended with $tests, bench with $bench, after $SECONDS s"
[ "$tests" = 0 ] && [ $bench = 0 ]
