#!/usr/bin/env bash
# Builds the Python package in the profile of the tests, and holds it to its tests, its types and the stable interface of Python; its
# lints are those of `make lint`. Needs Python 3.11 or later; what else it takes from PyPI goes to target/python. What it is called with
# goes to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

# Kernels are compiled elsewhere; and the environment may be another's, such as that of nvcc.
export NVCC=none
unset VIRTUAL_ENV

tools=$PWD/target/python
if [ ! -e "$tools/ready" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet 'maturin>=1.9,<2' 'pytest>=8' 'mypy>=1.15' 'pyarrow>=15' abi3audit
    touch "$tools/ready"
fi

wheels=target/wheels/check
rm -rf "$wheels"
"$tools/bin/maturin" build --quiet --locked --manifest-path python/Cargo.toml --out "$wheels"
"$tools/bin/pip" install --quiet --force-reinstall --no-deps "$wheels"/*.whl
"$tools/bin/abi3audit" --strict "$wheels"/*.whl
"$tools/bin/python" -m pytest python "$@"
