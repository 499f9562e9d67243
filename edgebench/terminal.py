"""What a terminal shows: tables, progress with an ETA, errors. Beside `edgebench.cli` the only module that prints."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from edgebench.errors import CannotMeasure, ExitCode
from edgebench.files import printable

if TYPE_CHECKING:
    from rich.console import Console
    from typing_extensions import Self

    from edgebench.backoff import Outcome
    from edgebench.export_job import DrawSpread
    from edgebench.interleaved import Paired
    from edgebench.quantize import Plan
    from edgebench.recipe import Recipe
    from edgebench.record import Run
    from edgebench.timing_types import Ceilings, NoiseFloor


def print_runs(runs: Sequence[Run]) -> None:
    """Print the table of runs, its notes and the caveats."""
    from rich.table import Table
    from rich.text import Text

    from edgebench import report

    content = report.table(runs)
    terminal = console()
    shown = _fitting(content, terminal.width)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for k in shown:
        grid.add_column(content.headers[k], justify="left" if k == 0 else "right", no_wrap=True)
    for row in content.rows:
        # As Text, for names may hold what the console would take for markup.
        grid.add_row(*(Text(printable(row[k])) for k in shown))
    terminal.print(grid)
    hidden = [header for k, header in enumerate(content.headers) if k not in shown]
    if hidden:
        terminal.print(f"A wider terminal shows {', '.join(hidden)} too.", style="dim", highlight=False, markup=False)
    for line in content.notes:
        terminal.print(printable(line), style="dim", highlight=False, markup=False)
    doubts = [(run, caveat) for run in runs for caveat in run.caveats]
    if doubts:
        terminal.print("\ncaveats", style="bold yellow")
    names = report.short_names(runs)
    seen: dict[tuple[str, str], dict[str, None]] = {}
    for run, caveat in doubts:
        seen.setdefault((caveat.message, caveat.hint), {})[names[id(run)]] = None
    for (message, hint), recipes in seen.items():
        terminal.print(printable(f"  {', '.join(recipes)}: {message}"), markup=False, highlight=False)
        terminal.print(printable(f"    {hint}"), style="dim", markup=False, highlight=False)


def _fitting(content: Any, width: int) -> list[int]:
    """Return the columns that fit a terminal of that width, the least telling ones left away first."""
    shown = list(range(len(content.headers)))
    widest = [max(len(row[k]) for row in (content.headers, *content.rows)) for k in shown]
    for header in ("Size MB", "img/s", "p99 ms", "Caveats"):
        if sum(widest[k] + 2 for k in shown) > width and header in content.headers:
            shown.remove(content.headers.index(header))
    return shown


def listing(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows as a table of these columns, or all of them as JSON."""
    from rich.table import Table

    if as_json:
        click.echo(json.dumps(list(rows), indent=1, ensure_ascii=False))
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(printable(", ".join(value) if isinstance(value, list | tuple) else str(value))
                       for value in (row[column] for column in columns)))
    console().print(grid, highlight=False, markup=False)


def console(*, err: bool = False) -> Console:
    """Return a console on standard output, or standard error."""
    from rich.console import Console

    # Piped output keeps whole rows: a log wrapped at 80 columns cannot be read or parsed.
    file = sys.stderr if err else sys.stdout
    return Console(file=file, width=None if file.isatty() else 200, soft_wrap=not file.isatty())


class _Descriptor(io.FileIO):
    """A standard stream: what its reader does not want any more is dropped, and `lenient` ones never fail."""

    def __init__(self, descriptor: int, name: str, *, lenient: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._name, self._lenient = name, lenient
        self._failed = False

    def write(self, data: Any, /) -> int:
        """Write to the descriptor."""
        try:
            return len(data) if self._failed else super().write(data) or 0
        except BrokenPipeError:
            # As with | head. The exit code still says what came out.
            self._failed = True
        except OSError as error:
            # Said once; what is written when Python ends would be reported a second time, with another exit code.
            self._failed = True
            if not self._lenient:
                raise CannotMeasure(f"cannot write to {self._name}: {error.strerror}") from error
        return len(data)


def streams_for_any_terminal() -> None:
    """Make standard streams take any text, whatever they are connected to, and none where they are closed.

    A closed descriptor would be given to the next file that is opened, and messages would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        # Streams that a caller put in their place are the caller's.
        if stream is None or stream is getattr(sys, f"__{name}__"):
            raw = _Descriptor(descriptor, {"stdout": "standard output", "stderr": "standard error"}[name],
                              lenient=descriptor == 2)
            encoding = stream.encoding if stream is not None else "utf-8"
            stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, line_buffering=descriptor == 2
                                      or raw.isatty())
            setattr(sys, name, stream)
        if isinstance(stream, io.TextIOWrapper):
            # Escapes of file names that are no UTF-8 stay JSON; other encodings lack whole alphabets.
            stream.reconfigure(errors="backslashreplace" if stream.encoding.lower().startswith("utf") else "replace")


class Display:
    """Progress with an ETA on a terminal, plain lines elsewhere, both on standard error."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._what = ""
        self._bar: Any = None
        self._task: Any = None
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            # Repainting costs CPU time that the timed process would miss: only when something is told.
            self._bar = Progress(TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), "·",
                                 TimeRemainingColumn(), console=console(err=True), auto_refresh=False, transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """Show a line that stays."""
        text = printable(text)
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            click.echo(text, err=True)

    def count(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        self.progress(what, done / max(total, 1))

    def progress(self, what: str, share: float) -> None:
        """Show what is being done, and the share of it that is done."""
        what = printable(what)
        changed = what != self._what
        self._what = what
        if self._bar is None:
            if changed:
                click.echo(f"{time.monotonic() - self._begun:6.1f} s  {what}", err=True)
            return
        if changed:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=1.0)
        self._bar.update(self._task, completed=share)
        self._bar.refresh()


def fail(message: str, hint: str = "", code: int = ExitCode.UNMEASURABLE) -> NoReturn:
    """Print an error with its hint and end the program."""
    click.echo(f"error: {printable(' '.join(message.splitlines()))}", err=True)
    if hint:
        click.echo(f"hint:  {printable(' '.join(hint.splitlines()))}", err=True)
    sys.exit(code)


def print_plan(recipe: Recipe, plan: Plan | None) -> None:
    """Print what a recipe will do to a graph: counts, and which nodes are quantized or stay float and why."""
    from edgebench.quantize import explain_text

    click.echo(f"{recipe.id}: {recipe.title}")
    click.echo(explain_text(plan) if plan else f"nothing is quantized: every layer is {recipe.precision}")
    click.echo("")


def print_search(outcome: Outcome) -> None:
    """Print how a search for layers to return to float ended, trial by trial."""
    for trial in outcome.trials:
        losses = ", ".join(f"{one.measure} {one.loss:+.2%} (at most {one.bound:+.2%}, margin {one.most:.2%})"
                           for one in trial.measured)
        mark = "failed" if trial.failed else "holds " if trial.excess <= 0 else "      "
        click.echo(f"  {mark}  {len(trial.keep_float):3} of {outcome.layers} layers in float: {trial.failed or losses}")


def print_draws(found: DrawSpread) -> None:
    """Print what the draw of quantization-calibration images decides."""
    click.echo(f"{found.recipe}: {len(found.top1)} draws, judged on {found.images} images; "
               f"FP32 top-1 {found.top1_reference:.2%}")
    click.echo(f"  top-1      {', '.join(f'{one:.2%}' for one in found.top1)}; "
               f"standard deviation {found.top1_std * 100:.2f} points")
    click.echo(f"  agreement  {', '.join(f'{one:.2%}' for one in found.agreement)}")


def print_paired(found: Paired) -> None:
    """Print the ratios of latencies of variants that were timed in turns."""
    rounds, launches = found.comparisons[0].rounds, found.comparisons[0].launches
    click.echo(f"\ntimed in turns, each in its own process ({rounds} rounds, {launches} times in fresh processes):")
    for one in found.comparisons:
        within = f" [{one.low:.3f}, {one.high:.3f}]" if one.low is not None and one.high is not None else ""
        verdict = "different" if one.different else "no difference shown"
        click.echo(f"  {one.candidate}: {one.ratio:.3f}{within} of {one.baseline}'s latency, {verdict}")
    if found.plan is not None:
        click.echo(f"  {found.plan.words}")


def print_floors(found: Sequence[NoiseFloor]) -> None:
    """Print by how much runs of equals differ on this device, metric by metric."""
    from edgebench.rule_words import quantity

    click.echo(f"\nnoise floor on {found[0].device}: {found[0].n} runs of one artifact differ by up to")
    for one in found:
        by = f"{one.floor:.1%}" if one.floor is not None else quantity(one.absolute or 0.0, one.unit, change=True)
        click.echo(f"  {one.metric}: {by} ({one.conditions.get('runtime', '')})")


def print_ceilings(found: Ceilings) -> None:
    """Print what a machine reached at best, with what its datasheet says beside."""
    listing([{
        "precision": one.precision, "sparsity": one.sparsity,
        "measured": "–" if one.flops_per_s is None else f"{one.flops_per_s / 1e9:.4g} Gop/s",
        "datasheet": "–" if one.datasheet_flops_per_s is None else
        f"{one.datasheet_flops_per_s / 1e9:.4g} Gop/s ({one.datasheet_mark})", "how": one.method}
        for one in found.ceilings], ("precision", "sparsity", "measured", "datasheet", "how"), as_json=False)
    copied = found.ceilings[0].bytes_per_s if found.ceilings else None
    if copied is not None:
        click.echo(f"memory: {copied / 1e9:.4g} GB/s ({found.conditions['copies']})")
    for precision, reason in found.absent.items():
        click.echo(f"{precision}: not measured: {reason}")
