#!/bin/sh
# Stop with a clear message unless $1 is a Python that can build the environment.
set -eu
python=$1

if ! command -v "$python" >/dev/null; then
    echo "No '$python' here. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "'$python' is $("$python" --version), bertier needs 3.11 or newer. Name one: make PYTHON=python3.11 ..." >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "'$python' cannot create virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
fi
