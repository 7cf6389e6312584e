"""The long runs: `python -m tests.nightly differential` and `python -m tests.nightly fuzz`.

Both work in chunks, each with a seed of its own and a line in the journal (tests/journal.py). A run that was cut off
goes on where it was; a new commit starts anew. A chunk that failed is run again by the command that is printed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.journal import PASSED, Chunk, Journal, commit_of

CHECKOUT = Path(__file__).parents[1]
FOLDER = "tests/containerd/differential"
CHUNK = 1000
"""Examples."""
FUZZ_CHUNK = 600
"""Seconds."""


def chunks(whole: int, most: int) -> list[int]:
    """The sizes of the pieces."""
    return [min(most, whole - start) for start in range(0, whole, most)]


def differential_command(seed: int, examples: int) -> tuple[list[str], dict[str, str]]:
    """What runs `examples` chains made with `seed`, and its environment."""
    test = f"{FOLDER}/test_generated.py"
    command = [sys.executable, "-m", "pytest", "-q", "--timeout=0", f"--hypothesis-seed={seed}", test]
    return command, {"IMAGEPREPULL_EXAMPLES": str(examples)}


def fuzz_command(seed: int, seconds: int) -> tuple[list[str], dict[str, str]]:
    """What fuzzes for `seconds` from `seed` on, and its environment."""
    command = [sys.executable, "-m", "pytest", "-q", "--timeout=0", f"{FOLDER}/test_fuzz.py"]
    return command, {"IMAGEPREPULL_FUZZ_SECONDS": str(seconds), "IMAGEPREPULL_FUZZ_SEED": str(seed)}


def run_chunk(command: list[str], environment: dict[str, str]) -> tuple[str, float]:
    """The outcome, and the seconds it took. What pytest prints is the user's to see."""
    started = time.monotonic()
    done = subprocess.run(command, env=os.environ | environment, cwd=CHECKOUT, check=False)
    if done.returncode not in {0, 1}:
        # Interrupted, or nothing was run: that is no outcome.
        raise SystemExit(done.returncode)
    return PASSED if done.returncode == 0 else "failed", time.monotonic() - started


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nightly", description=__doc__)
    parser.add_argument("target", choices=["differential", "fuzz"])
    parser.add_argument("--examples", type=int, default=20_000, help="generated chains, in all")
    parser.add_argument("--seconds", type=int, default=3600, help="of fuzzing, in all")
    arguments = parser.parse_args()
    commit = commit_of(CHECKOUT)
    journal = Journal(arguments.target)
    done = journal.done(commit)
    is_fuzz = arguments.target == "fuzz"
    sizes = chunks(arguments.seconds, FUZZ_CHUNK) if is_fuzz else chunks(arguments.examples, CHUNK)
    failed = 0
    for seed, size in enumerate(sizes, start=1):
        before = done.get(seed)
        if before is not None and before.outcome == PASSED and before.examples >= size:
            continue
        command, environment = (fuzz_command if is_fuzz else differential_command)(seed, size)
        outcome, seconds = run_chunk(command, environment)
        journal.add(Chunk(commit, seed, size, outcome, round(seconds, 1), round(time.time())))
        say(f"{arguments.target} {commit} seed {seed}: {outcome} in {seconds:.0f} s")
        if outcome != PASSED:
            failed += 1
            settings = " ".join(f"{key}={value}" for key, value in environment.items())
            say(f"again: {settings} {' '.join(command)}")
    say(f"{len(sizes) - failed} of {len(sizes)} chunks passed; {journal.path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
