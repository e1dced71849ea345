#!/bin/sh
# Install a Triton server into .venv, with the install command given as arguments.
# It comes in the wheel nvidia-pytriton, of which only the server is used: hence --no-deps, as its metadata
# pins numpy<2. The wheel is for Linux on x86-64 with glibc 2.35 or newer and CPython up to 3.13.
set -eu

if [ "${TRITON:-yes}" = no ]; then
    echo "No local Triton (TRITON=no): bertier serves with ONNX Runtime in-process, or from --triton-url"
elif [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
    echo "No Triton wheel for $(uname -s) on $(uname -m): bertier serves with ONNX Runtime in-process, or from --triton-url"
elif ! "$@" --no-deps nvidia-pytriton; then
    echo "Triton could not be installed. To go on without it: the same command with TRITON=no" >&2
    exit 1
fi
