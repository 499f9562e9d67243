"""Which commit and branch a run belongs to, as the surroundings say: variables of CI systems, else Git itself."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from edgebench.telemetry import commands

VARIABLES = {
    "commit": ("EDGEBENCH_COMMIT", "GITHUB_SHA", "CI_COMMIT_SHA"),
    # Not GITHUB_HEAD_REF: a pull request from a branch called main must not pass for main.
    "branch": ("EDGEBENCH_BRANCH", "GITHUB_REF_NAME", "CI_COMMIT_BRANCH"),
}
"""Where each label is looked for, the first that is set first."""
_COMMIT = re.compile(r"[0-9a-f]{7,64}")


def labels(environment: Mapping[str, str] | None = None, run: commands.Runner = commands.run) -> dict[str, str]:
    """Return ``commit`` and ``branch`` as far as they are known; an empty dict where nothing is.

    Args:
        environment: Variables; this process's by default.
        run: Asks Git, about the working folder.
    """
    known = os.environ if environment is None else environment
    found = {label: value for label, names in VARIABLES.items()
             if (value := next((known[name].strip() for name in names if known.get(name, "").strip()), ""))}
    if found:
        # Git is not asked for the rest: a detached or shallow checkout would answer for another branch.
        return found
    done = run(("git", "rev-parse", "HEAD", "--abbrev-ref", "HEAD"))
    lines = done.output.split()
    if done.code != 0 or len(lines) != 2 or not _COMMIT.fullmatch(lines[0]):
        return {}
    return {"commit": lines[0]} | ({"branch": lines[1]} if lines[1] != "HEAD" else {})
