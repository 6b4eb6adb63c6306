"""The command `still` in a process of its own, without the seconds that importing torch takes.

Each process is forked from a server (`multiprocessing`'s forkserver) that has imported the large libraries,
but nothing of Stillhouse: what runs is the command's entry point in a new process with its own directory,
environment, output and signals. Tests of start-up itself use `python -m stillhouse`.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = [
    "torch", "transformers", "transformers.generation", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3", "tokenizers", "safetensors.torch", "pyarrow.parquet",
    "pyarrow.dataset", "numpy", "scipy.special", "jinja2.sandbox", "yaml", "pydantic", "rich.console",
    "rich.progress", "rich.table", "cyclopts", "openai", "matplotlib.figure",
    "matplotlib.backends.backend_svg",
]  # fmt: skip
_TESTS = Path(__file__).parent
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(LIBRARIES)


class StillProcess:
    """A running command, with the part of `subprocess.Popen`'s interface that tests use.

    Args:
        stdin: a file or a terminal to read from; nothing by default.
        terminal: a pseudo-terminal's path, for stdin, stdout and stderr.
        constants: values for module constants, as `{"stillhouse.serve.engines.mailbox.ROUND_S": 0.1}`.
        environment: variables beside those of this process.
    """

    def __init__(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        stdin: str | Path | None = None,
        terminal: str | None = None,
        constants: Mapping[str, Any] | None = None,
        **environment: str,
    ):
        directory = tempfile.mkdtemp(prefix="still-")
        weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        self.stdout_path, self.stderr_path = Path(directory, "stdout"), Path(directory, "stderr")
        self.args = ["still", *map(str, arguments)]
        settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
        outputs = (terminal or str(self.stdout_path), terminal or str(self.stderr_path))
        self.stdout_path.touch()
        self.stderr_path.touch()
        files = (terminal or str(stdin or os.devnull), *outputs)
        self._process = _server.Process(
            target=_run, args=(self.args, str(cwd or Path.cwd()), settings, files, dict(constants or {}))
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def stdout(self) -> str:
        """What the command has written so far."""
        return self.stdout_path.read_text("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """What the command has written so far."""
        return self.stderr_path.read_text("utf-8", "replace")

    @property
    def returncode(self) -> int | None:
        """The exit status; negative after a signal, None while the process runs."""
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0, self.stdout, self.stderr)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.stdout, self.stderr


def still(
    *arguments: str | Path,
    cwd: Path,
    stdin: str | Path | None = None,
    timeout: float = 240,
    **environment: str,
):
    """Runs a command to its end, as `subprocess.run(..., capture_output=True, text=True)` does."""
    process = StillProcess(*arguments, cwd=cwd, stdin=stdin, **environment)
    try:
        status = process.wait(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, status, process.stdout, process.stderr)


def _run(
    arguments: list[str],
    cwd: str,
    environment: dict[str, str],
    files: tuple[str, str, str],
    constants: dict[str, Any],
) -> NoReturn:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    for descriptor, path in enumerate(files):
        mode = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_APPEND
        os.dup2(os.open(path, mode | os.O_NOCTTY), descriptor)
    # The server's stdin is closed, and its other streams take their files for seekable ones.
    sys.stdin, sys.stdout, sys.stderr = (
        open(descriptor, mode, encoding="utf-8", buffering=buffering)  # noqa: SIM115  until the end
        for descriptor, mode, buffering in ((0, "r", -1), (1, "w", 1 if os.isatty(1) else -1), (2, "w", 1))
    )
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    # `python -m stillhouse` finds modules in the current directory, and none of the tests' helpers.
    sys.path[:] = [cwd, *(entry for entry in sys.path if not Path(entry).is_relative_to(_TESTS))]
    sys.argv[:] = arguments
    import torch

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # libgomp read the variable when it was loaded
    from stillhouse.cli import entry

    for name, value in constants.items():
        module, _, constant = name.rpartition(".")
        loaded = importlib.import_module(module)
        assert hasattr(loaded, constant), name
        setattr(loaded, constant, value)
    try:
        entry()
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends with os._exit, which skips them
