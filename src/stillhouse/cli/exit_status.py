"""Exit statuses of the command: the one table that the help, docs/cli.md and the code share."""

from __future__ import annotations

SUCCESS, FAILURE, WRONG_USAGE, REFUSED, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 3, 130, 141

EXIT_STATUSES = {
    SUCCESS: ("success", "The command did what it was asked to do; `--help` and `--version` too."),
    FAILURE: (
        "failure",
        "The work failed or found a difference: a file, a model or a server is missing or damaged, an "
        "address is in use, the data leave nothing to train on, memory or disk ran out, `still verify` or "
        "`still trace verify` found a difference.",
    ),
    WRONG_USAGE: (
        "invalid usage or recipe",
        "The command line, a recipe, a study or a plan is invalid, or a directory is not what the command "
        "needs (not a run, not a bundle, not a model). Nothing was started.",
    ),
    REFUSED: (
        "refused by a teacher's terms",
        "The terms of a teacher forbid the purpose, or are unknown and were not accepted.",
    ),
    INTERRUPTED: (
        "interrupted (Ctrl-C)",
        "Finished work is kept; the same command resumes where the message says so. "
        "(`still serve` ends with 0: Ctrl-C is how it stops.)",
    ),
    PIPE_CLOSED: ("output closed", "The reader of a pipe went away, e.g. `still terms | head -1`."),
}
"""By status: a phrase for the help, and its meaning."""


def status_line() -> str:
    """All statuses in one sentence."""
    return "Exit status: " + "; ".join(f"{n} {phrase}" for n, (phrase, _) in EXIT_STATUSES.items()) + "."


def status_table() -> str:
    """The table of docs/cli.md."""
    rows = [f"| {n} | {phrase} | {meaning} |" for n, (phrase, meaning) in EXIT_STATUSES.items()]
    return "\n".join(["| status | | |", "| --- | --- | --- |", *rows])
