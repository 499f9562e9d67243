"""How value types refuse what is out of range."""

from __future__ import annotations


def check(condition: bool, expected: str, got: object) -> None:  # noqa: FBT001  # reads like assert
    """Raise ValueError with ``expected …, got …`` unless the condition holds."""
    if not condition:
        raise ValueError(f"expected {expected}, got {got!r}")
