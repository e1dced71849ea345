#!/bin/sh
# Install the gateway alone into a new virtual environment: with traces; no engine, no PyTorch, nothing of the build.
# What the image is made of, and what the tests run in a clean environment.
#   deploy/gateway/install.sh TARGET [PYTHON]
set -eu
target=$1
python=${2:-python3}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-315532800}"

cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --constraint constraints.txt pip hatchling
"$work/build/bin/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" .

"$python" -m venv --without-pip "$target"
"$work/build/bin/python" -m pip --python "$target/bin/python" install --quiet --no-compile \
    --only-binary :all: --constraint constraints.txt "$(echo "$work"/bertier-*.whl)[otel]"
# Once more by name: a package that is installed from a file notes in which folder that lay, another one in every build.
"$work/build/bin/python" -m pip --python "$target/bin/python" install --quiet --no-compile \
    --no-index --no-deps --force-reinstall --find-links "$work" bertier
# By hash, not by the time of a file: the same sources give the same bytes.
"$target/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$target/lib"
