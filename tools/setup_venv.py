"""Make or renew the virtual environment from requirements.lock; do nothing when it is up to date.

Run by every `make` target with any Python >= 3.11. Environment: VENV (folder, default .venv), TORCH_INDEX (index of CPU
wheels, used only where pip as configured would bring the CUDA build of torch).
"""
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
VENV = ROOT / os.environ.get("VENV", ".venv")
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / ".made-from-lock"
CUDA_PREFIXES = ("nvidia", "cuda", "triton", "pytorch-triton")


def lock_hash() -> str:
    """sha256 of the lock file, the content of the stamp when the environment is up to date."""
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def brings_cuda(report: dict) -> bool:
    """Whether a pip installation report (`pip install --report`) names a CUDA package."""
    names = [item["metadata"]["name"].lower() for item in report["install"]]
    return any(name.startswith(CUDA_PREFIXES) for name in names)


def stop(sentence: str):
    """End with one clear sentence; the stamp stays unwritten, so the next run goes on from here."""
    sys.exit(f"setup: {sentence}")


def install(*args: str, mend: str):
    """`pip install` in the new environment, showing errors only; on failure end with `mend`.

    Python compiles what it imports, when it does; all of torch and its like would be most of a minute.
    """
    if subprocess.run([PYTHON, "-m", "pip", "-qq", "install", "--no-compile", *args]).returncode:
        stop(mend)


def torch_options(requirement: str) -> list[str]:
    """Extra pip options that make `requirement` (torch==X) a CPU build: none, or the CPU wheel index."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        install("--dry-run", "--ignore-installed", "--report", str(path), requirement,
            mend=f"pip finds no {requirement}; check the network and pip's configuration, then run make again.")
        if not brings_cuda(json.loads(path.read_text())):
            return []
    index = os.environ.get("TORCH_INDEX") or stop(
        f"pip would bring the CUDA build of {requirement}: name an index of CPU wheels with make TORCH_INDEX=URL.")
    print(f"setup: pip would bring CUDA packages, so torch comes from {index}", flush=True)
    return ["--index-url", index]


def make_venv():
    """Create the environment where it is missing or does not run."""
    if PYTHON.exists() and not subprocess.run([PYTHON, "-c", "pass"]).returncode:
        return
    print(f"setup: making {VENV.name} (two to five minutes, 1.8 GB, of which pip downloads about 0.5 GB)", flush=True)
    try:
        venv.create(VENV, clear=True, with_pip=True)
    except subprocess.CalledProcessError:
        stop(f"{sys.executable} cannot make a virtual environment: install its venv module (python3-venv on Debian).")


def main():
    """Environment, CPU torch, everything else of the lock, the project itself; then the stamp."""
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == lock_hash():
        return
    make_venv()
    STAMP.unlink(missing_ok=True)
    again = "pip stopped (its message is above); mend that and run make again: what is installed stays."
    # old pips download whole wheels to answer a dry run
    install("--upgrade", "pip>=25", "setuptools>=64", "wheel", mend=again)
    torch = next(line for line in LOCK.read_text().splitlines() if line.startswith("torch=="))
    index = torch_options(torch)
    install(*index, torch, mend=again if not index else
        f"{index[-1]} gives no {torch}: name another index of CPU wheels with make TORCH_INDEX=URL.")
    install("-r", str(LOCK), mend=again)
    install("--no-deps", "--no-build-isolation", "-e", str(ROOT), mend=again)
    cuda = subprocess.run([PYTHON, "-c", "import torch; print(torch.version.cuda or '')"],
                          capture_output=True, text=True)
    if cuda.returncode or cuda.stdout.strip():
        stop(f"a CPU build of {torch} is needed, but {VENV.name} holds a CUDA build or one that does not import: "
             f"remove {VENV.name} and run make TORCH_INDEX=URL with an index of CPU wheels.")
    STAMP.write_text(lock_hash())


if __name__ == "__main__":
    main()
