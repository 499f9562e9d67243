"""Setting power mode, clocks and governor for a measurement, and setting them back whatever happens.

Before each change, how to undo it is written to a journal and synced to disk. Leaving the context undoes everything:
after an error, Ctrl-C, SIGTERM and SIGHUP alike. After a crash or a loss of power the journal is still there, and the
next start undoes what a reboot has not undone by itself.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

import platformdirs

from edgebench.errors import CannotMeasure, EdgebenchError, UsageError, unknown, writing
from edgebench.record import decode, read_json, write_json
from edgebench.telemetry import nvpmodel
from edgebench.telemetry.clocks import pinned, policies
from edgebench.telemetry.commands import Runner, run
from edgebench.telemetry.files import text
from edgebench.timing_types import Control

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GOVERNOR_PLACE = re.compile(r"sys/devices/system/cpu/(?:cpufreq/policy\d+|cpu\d+/cpufreq)/scaling_governor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """How one change is taken back."""

    kind: Literal["nvpmodel", "jetson_clocks", "governor"]
    place: str
    """Name of the mode, or the path below the root."""
    value: str
    """Id of the mode, the stored clocks' file name, or the governor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """What is still to be undone, and by whom it was done."""

    schema: str
    pid: int
    started: str
    """When that process began, in the kernel's ticks: a later process may have the same number."""
    boot: str
    """Identity of the boot: clocks and governors do not outlive it, power modes do."""
    undo: tuple[Undo, ...]


SCHEMA = "edgebench.restore/1"


def default_journal() -> Path:
    """Return where the journal of this user lies."""
    return platformdirs.user_state_path("edgebench") / "restore.json"


@contextmanager
def controlled(wanted: Control, *, root: Path = Path("/"), journal: Path | None = None,
               runner: Runner = run) -> Iterator[tuple[str, ...]]:
    """Set what is wanted, hand over what was set in words, and set everything back at the end.

    Raises:
        UsageError: An unknown mode or governor.
        CannotMeasure: A change did not come into force, another run holds the settings, or something could not be set
            back (the message says what and how to do it by hand).
    """
    place = journal or default_journal()
    with _Signals() as signals:
        restore_pending(root=root, journal=place, runner=runner)
        changes = _Changes(root, place, runner)
        try:
            yield changes.apply(wanted)
        finally:
            with signals.held():
                changes.undo_all()


def restore_pending(*, root: Path = Path("/"), journal: Path | None = None, runner: Runner = run) -> tuple[str, ...]:
    """Undo what an earlier run left behind; returns what was set back, in words.

    Raises:
        CannotMeasure: The run that made the changes is still at it, or something could not be set back.
        InvalidInput: The journal is damaged.
    """
    place = journal or default_journal()
    if not place.exists():
        return ()
    left = decode(Journal, read_json(place), str(place))
    if left.boot == _boot(root) and _started(root, left.pid) == left.started and left.pid != os.getpid():
        raise CannotMeasure(f"process {left.pid} has changed this device's clocks and is still running",
                            "wait until it ends, or end it: it sets them back")
    if left.boot != _boot(root):
        left = replace(left, undo=tuple(one for one in left.undo if one.kind == "nvpmodel"))
    changes = _Changes(root, place, runner)
    changes.left = list(left.undo)
    return changes.undo_all()


class _Changes:
    """The changes made so far, each in the journal before it is made."""

    def __init__(self, root: Path, journal: Path, runner: Runner) -> None:
        self._root, self._journal, self._run = root, journal, runner
        self.left: list[Undo] = []

    def apply(self, wanted: Control) -> tuple[str, ...]:
        done = []
        if wanted.power_mode is not None:
            done += self._power_mode(wanted.power_mode)
        if wanted.governor is not None:
            done += self._governor(wanted.governor)
        if wanted.jetson_clocks:
            done += self._jetson_clocks()
        return tuple(done)

    def undo_all(self) -> tuple[str, ...]:
        """Undo in reverse order; what fails does not stop the rest and stays in the journal."""
        done: list[str] = []
        reasons: list[str] = []
        for one in reversed(tuple(self.left)):
            try:
                done += self._undo(one)
            except (EdgebenchError, OSError) as error:
                reasons.append(error.message if isinstance(error, EdgebenchError) else
                               f"{one.place}: {error.strerror}")
            else:
                # Written each time: after a crash in between, what is done is not done again.
                self.left.remove(one)
                self._write()
        if self.left:
            raise CannotMeasure(f"could not set back: {'; '.join(reasons)}",
                                f"by hand, as root: {'; '.join(map(self._by_hand, reversed(self.left)))}")
        self._journal.unlink(missing_ok=True)
        return tuple(done)

    def _note(self, *undo: Undo) -> None:
        self.left += undo
        self._write()

    def _write(self) -> None:
        write_json(self._journal, Journal(schema=SCHEMA, pid=os.getpid(), started=_started(self._root, os.getpid()),
                                          boot=_boot(self._root), undo=tuple(self.left)),
                   "settings are changed only where they can be set back: make this folder writable")

    def _power_mode(self, name: str) -> list[str]:
        mode = nvpmodel.find(self._root, name)
        now = nvpmodel.current(self._root, self._run)
        if now is None:
            raise CannotMeasure("cannot tell the power mode in force, so that it could not be set back",
                                "nvpmodel -q must work: it may need root")
        if now.id == mode.id:
            return []
        if any(pinned(self._root).values()):
            # A change of mode lets go of clocks that the user had pinned; noted first, they come back last.
            self._store_clocks("mode-clocks")
        self._note(Undo(kind="nvpmodel", place=now.name, value=str(now.id)))
        nvpmodel.switch(self._root, self._run, mode)
        return [f"power mode {now.name} → {mode.name}"]

    def _governor(self, name: str) -> list[str]:
        found = policies(self._root)
        if not found:
            raise CannotMeasure("the CPU's governor cannot be set: the kernel shows no cpufreq",
                                "virtual machines leave clocks to their host")
        changed = []
        for policy in found.values():
            path = policy / "scaling_governor"
            offered, now = (text(policy / "scaling_available_governors") or "").split(), text(path)
            if name not in offered:
                raise unknown("governor", name, offered)
            if now is None or now == name:
                continue
            self._note(Undo(kind="governor", place=str(path.relative_to(self._root)), value=now))
            self._set_governor(path, name)
            changed.append(f"governor of {policy.name} {now} → {name}")
        return changed

    def _set_governor(self, path: Path, name: str) -> None:
        with writing(path, "setting the governor needs root: run edgebench with sudo"):
            path.write_text(name, encoding="utf-8")
        if text(path) != name:
            raise CannotMeasure(f"governor {name} did not come into force in {path}: it is {text(path)}")

    def _jetson_clocks(self) -> list[str]:
        self._store_clocks("clocks")
        done = self._run(("jetson_clocks",))
        if done.code != 0:
            raise CannotMeasure(f"jetson_clocks failed: {_last(done.output)}")
        if not pinned(self._root).get("gpu", True):
            raise CannotMeasure("jetson_clocks did not pin the GPU's clock: its min_freq and max_freq differ",
                                "jetson_clocks --show tells what is in force")
        return ["clocks pinned by jetson_clocks"]

    def _store_clocks(self, suffix: str) -> None:
        """Store the present clocks beside the journal, and note that they are to be restored."""
        stored = self._journal.with_suffix(f".{suffix}")
        # jetson_clocks asks before it overwrites, and takes no answer for no.
        stored.unlink(missing_ok=True)
        with writing(stored):
            stored.parent.mkdir(parents=True, exist_ok=True)
        kept = self._run(("jetson_clocks", "--store", str(stored)))
        if kept.code != 0 or not stored.exists():
            raise CannotMeasure(f"jetson_clocks could not store the present clocks: {_last(kept.output)}",
                                "it needs root: run edgebench with sudo")
        self._note(Undo(kind="jetson_clocks", place="jetson_clocks", value=stored.name))

    def _undo(self, one: Undo) -> list[str]:
        if one.kind == "nvpmodel":
            if not one.value.isdigit():
                raise UsageError(f"the journal names no power mode: {one.value!r}")
            mode = nvpmodel.Mode(id=int(one.value), name=one.place)
            now = nvpmodel.current(self._root, self._run)
            if now is not None and now.id == mode.id:
                return []
            nvpmodel.switch(self._root, self._run, mode)
            return [f"power mode back to {mode.name}"]
        if one.kind == "governor":
            if not GOVERNOR_PLACE.fullmatch(one.place) or not re.fullmatch(r"\w+", one.value):
                raise UsageError(f"the journal names no governor: {one.place!r}")
            self._set_governor(self._root / one.place, one.value)
            return [f"governor back to {one.value}"]
        stored = self._journal.with_name(Path(one.value).name)
        back = self._run(("jetson_clocks", "--restore", str(stored)))
        if back.code != 0:
            raise CannotMeasure(f"jetson_clocks could not restore the clocks: {_last(back.output)}")
        stored.unlink(missing_ok=True)
        return ["clocks back as they were"]

    def _by_hand(self, one: Undo) -> str:
        if one.kind == "nvpmodel":
            return f"nvpmodel -m {one.value}"
        if one.kind == "governor":
            return f"echo {one.value} > /{one.place}"
        return f"jetson_clocks --restore {self._journal.with_name(one.value)}"


class _Signals:
    """Takes SIGTERM and SIGHUP as Ctrl-C, and holds all signals back while settings are restored."""

    def __init__(self) -> None:
        # Python hands signals to the main thread alone.
        self._mine = threading.current_thread() is threading.main_thread()
        self._before: dict[signal.Signals, signal._HANDLER] = {}
        self._waiting: list[int] = []

    def __enter__(self) -> _Signals:  # noqa: PYI034  # private, never derived from
        if self._mine:
            for one in SIGNALS[1:]:
                # One that the caller ignores, as under nohup, stays ignored.
                if signal.getsignal(one) is not signal.SIG_IGN:
                    self._before[one] = signal.signal(one, self._leave) or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    @staticmethod
    def _leave(_: int, __: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep signals until the block has ended, then send them again."""
        if not self._mine:
            yield
            return
        before = {one: signal.signal(one, lambda number, _: self._waiting.append(number)) for one in SIGNALS
                  if signal.getsignal(one) is not signal.SIG_IGN}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler if handler is not None else signal.SIG_DFL)
            for number in dict.fromkeys(self._waiting):
                os.kill(os.getpid(), number)


def _last(output: str) -> str:
    return (output.strip().splitlines() or ["no output"])[-1]


def _boot(root: Path) -> str:
    return text(root / "proc/sys/kernel/random/boot_id") or "unknown"


def _started(root: Path, pid: int) -> str:
    """Return when the process began, in ticks since boot; empty where there is no such process."""
    # The second field is the command in parentheses, which may hold spaces.
    words = (text(root / f"proc/{pid}/stat") or "").rpartition(")")[2].split()
    return words[19] if len(words) > 19 else ""
