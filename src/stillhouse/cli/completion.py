"""``still --install-completion``: says what it writes, asks, and installs completion for the shell."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import console
from stillhouse.errors import UsageError

Shell = Literal["bash", "zsh", "fish"]


def completion_command(app: App):
    """The function of the option; ``app`` is the application to complete."""

    def install_completion(
        *,
        shell: Shell | None = None,
        yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="", show_default=False)] = False,
        output: OutputFlags = Output(),  # noqa: B008  frozen
    ) -> None:
        """Install completion for your shell; says which files it writes, and asks first.

        Parameters
        ----------
        shell
            The shell (default: the one that runs this command).
        yes
            Do not ask.
        """
        chosen = shell or _detect()
        script, startup = _script(chosen), _startup_file(chosen)
        files = [str(script), *([str(startup)] if startup else [])]
        planned = f"writes {script}: the completion script for {chosen}"
        if startup is not None:
            planned += f"\nadds two lines to {startup} that load it, unless they are there"
        if yes:
            console.info(planned)
        elif not _agrees(planned):
            console.info("nothing was written")
            return
        app.install_completion(shell=chosen, output=script, add_to_startup=startup is not None)
        console.data({"shell": chosen, "files": files})
        console.text(f"installed: {script}; open a new shell to use it")

    return install_completion


def _agrees(planned: str) -> bool:
    """Asks on the terminal; ``planned`` is shown even with --quiet."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"--install-completion asks before it writes, and there is no terminal to ask on; it\n{planned}",
            hint="Add --yes to install without a question: still --install-completion --yes.",
        )
    print(f"{planned}\nContinue? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().casefold() in ("y", "yes")


def _detect() -> Shell:
    from cyclopts.completion.detect import ShellDetectionError, detect_shell

    try:
        shell = detect_shell()
    except ShellDetectionError as error:
        raise UsageError(
            "the shell could not be detected", hint="Name it: --shell bash, zsh or fish."
        ) from error
    if shell == "powershell":
        raise UsageError("PowerShell is not supported", hint="Completion works in bash, zsh and fish.")
    return shell


def _script(shell: Shell) -> Path:
    """Where the shell looks for completion scripts."""
    home = Path.home()
    if shell == "bash":
        return home / ".local/share/bash-completion/completions/still"
    if shell == "fish":
        return home / ".config/fish/completions/still.fish"
    return (_oh_my_zsh() or home / ".zsh/completions") / "_cyclopts_still"


def _startup_file(shell: Shell) -> Path | None:
    """The file that must load the script; None if the shell finds it by itself."""
    if shell == "bash":
        return Path.home() / ".bashrc"
    return Path.home() / ".zshrc" if shell == "zsh" and _oh_my_zsh() is None else None


def _oh_my_zsh() -> Path | None:
    custom, base = os.environ.get("ZSH_CUSTOM"), os.environ.get("ZSH")
    if custom and Path(custom).is_dir():
        return Path(custom) / "completions"
    return Path(base) / "custom/completions" if base and Path(base).is_dir() else None
