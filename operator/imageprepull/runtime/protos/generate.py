"""Make the `*_pb2.py` and `*_pb2.pyi` of this folder from src/: run with the development environment's Python.

The sources are compiled under the virtual path imageprepull/runtime/protos, so generated imports are absolute names
inside the package. (Compiled under containerd's own paths they would import a top-level module named `types`.)
"""

from __future__ import annotations

import os
import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
VIRTUAL = "imageprepull/runtime/protos"


def main() -> int:
    # The plug-in for types is a program beside this Python; without it all would be deleted and nothing made.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    sources = sorted((HERE / "src").glob("*.proto"))
    for stale in [*HERE.glob("*_pb2.py"), *HERE.glob("*_pb2.pyi")]:
        stale.unlink()
    operator = HERE.parents[2]
    return int(
        protoc.main(
            [
                "protoc",
                f"--proto_path={VIRTUAL}={HERE / 'src'}",
                f"--proto_path={resources.files('grpc_tools') / '_proto'}",
                f"--python_out={operator}",
                f"--mypy_out={operator}",
                *(f"{VIRTUAL}/{source.name}" for source in sources),
            ]
        )
    )


if __name__ == "__main__":
    sys.exit(main())
