#!/usr/bin/env bash
# Install what the Python environment needs and a fresh Debian lacks. The cluster's own packages are installed by
# `python -m tests.testbed packages`, once there is a Python to run it.
set -euo pipefail
python=${1:-python3}
if "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then exit 0; fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "$python is not Python 3.11 or newer with venv; install it, or run this as root on Debian" >&2
    exit 1
fi
echo "installing Debian packages: python3 python3-venv ca-certificates"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends python3 python3-venv ca-certificates >/dev/null
"$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' ||
    { echo "$python is still not usable; name another with make PYTHON=…" >&2; exit 1; }
