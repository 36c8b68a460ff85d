#!/usr/bin/env bash
# Builds, tests (with doctor and compute-sanitizer) and times kernels and whole trainings on a GPU, in at most ten minutes;
# scaling.py and tune.py are run separately. Writes FOLDER/<gpu>.json and FOLDER/logs, prints a summary last.
#
#   benchmarks/gpu.sh [FOLDER]                (default: benchmarks/results)
#
# Exit code: 0 all stages passed; 1 one did not (the others ran all the same); 2 this machine lacks something.
#
# Wanted: a python3 (or $PYTHON) with torch, pytest, scikit-build-core, pybind11, CMake and ninja, an nvcc, a GPU. No
# network, no installation. Where Liger-Kernel can be imported it is timed too; it is pure Python, so a copy of its wheel
# unpacked into a folder on PYTHONPATH does.
#
# No data set is in the repository, and without one graphs and training sets of Amazon-Book's size are made up. To train
# on a real one, bring its folder (interactions.npz, and profiles_*.npz if there are any; see the README) along and name it:
#
#   PROREC_FAST_BENCH_DATA=path/to/folder benchmarks/gpu.sh
#
# Where the working tree comes without its history, GIT_COMMIT=... names its commit in the results.
set -uo pipefail
here=$PWD
cd "$(dirname "$0")/.."
case ${1:-} in
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' benchmarks/gpu.sh; exit ;;
  '') out=$PWD/benchmarks/results ;;
  /*) out=$1 ;;
  *) out=$here/$1 ;;
esac
if [[ -n ${PROREC_FAST_BENCH_DATA:-} ]]; then
  PROREC_FAST_BENCH_DATA=$(cd "$here" && realpath "$PROREC_FAST_BENCH_DATA")
  export PROREC_FAST_BENCH_DATA
fi
python=${PYTHON:-python3}

lacking() {
  echo "gpu.sh: $1" >&2
  exit 2
}
command -v "$python" > /dev/null || lacking "no $python"
arch=$("$python" -c '
import torch
print("".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else "none")
' 2> /dev/null) || lacking "$python has no torch"
[[ $arch != none ]] || lacking "torch finds no CUDA device"
command -v nvcc > /dev/null || lacking "no nvcc on the PATH"
for module in pytest scikit_build_core pybind11; do
  "$python" -c "import $module" 2> /dev/null || lacking "$python has no $module"
done
mkdir -p "$out/logs" || lacking "$out cannot be written"

site=$PWD/build/gpu
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 CMAKE_BUILD_PARALLEL_LEVEL
CMAKE_BUILD_PARALLEL_LEVEL=$(nproc)
failed=0 summary=()

# stage NAME END COMMAND...: runs it until second END of this script at the latest.
stage() {
  local name=$1 limit=$(($2 - SECONDS)) start=$SECONDS code=124 verdict
  shift 2
  echo "== $name"
  if ((limit > 0)); then
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$out/logs/$name.log" | tail -n 25
    code=${PIPESTATUS[0]}
  fi
  case $code in
    0) verdict=passed ;;
    124 | 137) verdict="out of time" failed=1 ;;
    *) verdict="FAILED ($code)" failed=1 ;;
  esac
  summary+=("$(printf '%-10s %-12s %4d s' "$name" "$verdict" $((SECONDS - start)))")
}

# For this GPU alone, into a folder of its own.
stage build 150 "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
  --no-build-isolation --upgrade --target "$site" . -Ccmake.define.PRF_CUDA=ON \
  "-Ccmake.define.CMAKE_CUDA_ARCHITECTURES=$arch-real"

# From the tests' folder, where `import prorec_fast` finds what was built and not the sources.
cd python_tests
parallel=()
"$python" -c 'import xdist' 2> /dev/null && parallel=(-n 8) # most of the time goes into compiling Triton's kernels
stage tests 255 "$python" -m pytest -q -p no:cacheprovider -m gpu "${parallel[@]}"
stage doctor 270 "$python" -m prorec_fast doctor # behind the tests, which have compiled most of what it calls

# A few tests of every kernel. Allocations are torch's own pieces of large blocks unless it is told not to cache them: an
# access beyond one would be within another. What is excluded is torch's and not ours; including ours by name would miss
# kernels that are compiled at run time.
few='strided or far_apart or few_blocks or pair_scores or shares_long_rows or chunks_and_parts'
sanitizer=$(command -v compute-sanitizer || ls "$(dirname "$(readlink -f "$(command -v nvcc)")")/compute-sanitizer" 2> /dev/null)
if [[ -n $sanitizer ]]; then
  end=310
  for tool in memcheck racecheck; do
    stage $tool $end env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool $tool --error-exitcode 99 \
      --report-api-errors no --target-processes application-only --print-limit 20 \
      --kernel-name-exclude kns=at6native --kernel-name-exclude kns=cub \
      "$python" -m pytest -q -p no:cacheprovider -m gpu -k "$few" .
    end=$((end + 40))
  done
else
  summary+=("memcheck and racecheck: left out, no compute-sanitizer")
fi
cd ..

results=$out/$("$python" benchmarks/record.py --name)
stage kernels 455 "$python" benchmarks/bench.py --device cuda --save "$results" \
  --seconds $((SECONDS < 444 ? 445 - SECONDS : 1))
stage training 590 "$python" benchmarks/end_to_end.py --device cuda --out "$results" --seconds $((560 - SECONDS))

echo
"$python" benchmarks/record.py "$results"
echo
printf '%s\n' "${summary[@]}"
exit $failed
