"""The commands that judge finished runs: compare, gate, policies, history, baseline. They need no runtime."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgebench.errors import EdgebenchError, UsageError
from edgebench.files import refuse_unwritable
from edgebench.terminal import console, listing

if TYPE_CHECKING:
    from edgebench.compare import Comparison, Item
    from edgebench.finished import Judgement
    from edgebench.gate import Gate, Need, Verdict
    from edgebench.history import Series, Telling

_STYLES = {"fail": "bold red", "error": "bold red", "inconclusive": "yellow", "warning": "yellow", "skipped": "dim",
           "pass": "green", "worse": "red", "better": "green", "changed": "yellow", "same": "dim"}
_CONCLUSIONS = {"PASS": "green", "FAIL": "red", "NOT JUDGED": "red", "UNDECIDED": "yellow"}
_HISTORY = click.option("--history", default="runs", show_default=True, metavar="DIR|URL",
                        help="Where earlier runs lie: a folder, or any fsspec path.")
_ALLOW = click.option("--allow", multiple=True, metavar="FIELD,…", help="Fields in which the runs may differ, such as "
                      "governor or threads; recorded in the result.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_FILE = click.Path(path_type=Path)


def register(group: click.Group) -> None:
    """Add the commands to the command line."""
    for command in (compare, gate, policies, history, baseline):
        group.add_command(command)


@click.command()
@click.argument("first", type=_FILE, metavar="RUN")
@click.argument("second", type=_FILE, metavar="RUN")
@_ALLOW
@click.option("--html", type=_FILE, metavar="FILE", help="Write a page with flips and the images that changed.")
@click.option("--data", multiple=True, metavar="ROOT", help="Where the images of that page lie; by default where the "
              "runs found them.")
@click.option("--all", "everything", is_flag=True, help="Show every metric, levels and unchanged ones too.")
@_JSON
def compare(first: Path, second: Path, *, allow: tuple[str, ...], html: Path | None, data: tuple[str, ...],
            everything: bool, as_json: bool) -> None:
    """Say what changed from the first RUN to the second, image by image, and with which doubt.

    RUN is a run.json or the folder that holds it.
    """
    from edgebench import finished
    from edgebench.compare import compare as compare_runs
    from edgebench.record import to_builtins

    if html:
        refuse_unwritable(html, "choose another file with --html")
    one, two = finished.placed(first), finished.placed(second)
    found = compare_runs(one, two, allow=_flat(allow))
    if as_json:
        click.echo(json.dumps(to_builtins(found), indent=1, ensure_ascii=False))
    else:
        _print_comparison(found, everything=everything)
    if html:
        from edgebench import contact_sheet, verdict_pages
        from edgebench.record import write_bytes

        sheets = [contact_sheet.sheet(flips, two[0], data) for flips in found.flips]
        names = two[0].artifact.classes.names if two[0].artifact.classes else ()
        write_bytes(html, verdict_pages.compare_page(found, names, sheets).encode(), "choose another file with --html")
        click.echo(f"\npage  {html}", err=as_json)


@click.command()
@click.argument("run", type=_FILE)
@click.option("--policy", "policy_name", metavar="FILE|NAME", required=True,
              help="What is demanded: a TOML file, or a shipped policy (edgebench policies).")
@click.option("--baseline", "baseline_rule", metavar="RUN|latest:BRANCH|promoted[:NAME]",
              help="The earlier run that rules against a baseline mean.")
@_HISTORY
@_ALLOW
@click.option("--noise-floor", "floors", type=_FILE, multiple=True, metavar="FILE", help="Noise floor of this device "
              "from runs of equals; limits below it are refused.")
@click.option("--junit", type=_FILE, metavar="FILE", help="Write JUnit XML.")
@click.option("--sarif", type=_FILE, metavar="FILE", help="Write SARIF 2.1.0.")
@click.option("--summary", type=_FILE, metavar="FILE", help="Write Markdown for a job's summary; added to "
              "$GITHUB_STEP_SUMMARY where that is the file.")
@click.option("--comment", type=_FILE, metavar="FILE", help="Write Markdown for a comment on a pull request.")
@click.option("--comment-key", default="", metavar="TEXT", help="Tells comments on one policy apart, such as those of "
              "two jobs: part of the marker that a comment is found by.")
@click.option("--html", type=_FILE, metavar="FILE", help="Write a page with intervals and flips.")
@_JSON
@click.option("--strict", is_flag=True, help="End with 4 where a rule is inconclusive.")
@click.option("--plan", is_flag=True, help="Judge nothing; say how many images and timings each rule needs, from how "
              "much this run flips and spreads.")
def gate(run: Path, policy_name: str, *, baseline_rule: str | None, history: str, allow: tuple[str, ...],
         floors: tuple[Path, ...], strict: bool, plan: bool, as_json: bool, html: Path | None, comment_key: str,
         **outputs: Path | None) -> None:
    """Judge finished runs by a policy: passed, failed, or inconclusive with what would decide it.

    RUN is a run.json, the folder that holds it, or an --out folder of 'profile': then every variant is judged against
    its FP32 reference in there.
    """
    from edgebench import finished
    from edgebench.gate import exit_code

    if plan:
        _plan(run, policy_name, baseline_rule, history, _flat(allow), as_json=as_json)
        return
    try:
        judgement = finished.judge(run, policy_name, baseline=baseline_rule, history=history, allow=_flat(allow),
                                   floors=floors)
    except EdgebenchError as error:
        gates = (finished.nothing_judged(run, policy_name, error),)
        if as_json:
            _print_json(gates, strict=strict)
        # Why nothing was judged matters more than why that could not be written.
        with suppress(EdgebenchError, OSError):
            _write_outputs(gates, outputs, comment_key, strict=strict)
            if html:
                html.unlink(missing_ok=True)
        raise
    for kind, file in (*outputs.items(), ("html", html)):
        if file is not None:
            refuse_unwritable(file, f"choose another file with --{kind}")
    for note in judgement.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        _print_json(judgement.gates, strict=strict)
    else:
        print_judgement(judgement, strict=strict)
    _write_outputs(judgement.gates, outputs, comment_key, strict=strict)
    if html:
        from edgebench import verdict_pages
        from edgebench.record import write_bytes

        write_bytes(html, verdict_pages.gate_page(judgement, strict=strict).encode(), "choose another file with --html")
    sys.exit(exit_code(judgement.gates, strict=strict))


@click.command()
@click.option("--explain", metavar="NAME|FILE", help="Say in words what a policy demands and how many images and "
              "timings it needs.")
@_JSON
def policies(*, explain: str | None, as_json: bool) -> None:
    """List the shipped policies, or explain one."""
    from edgebench import policy
    from edgebench.record import to_builtins

    if explain is None:
        rows = [to_builtins(one) for one in policy.shipped().values()]
        listing(rows, ("id", "title", "purpose"), as_json=as_json)
        return
    from edgebench import rule_words

    chosen = policy.find(explain)
    if as_json:
        click.echo(json.dumps({**to_builtins(chosen), "rules": [
            {**to_builtins(rule), "demand": rule_words.demand(rule), "needs": rule_words.needs(rule, chosen)}
            for rule in chosen.rules]}, indent=1, ensure_ascii=False))
        return
    for line in rule_words.explain(chosen):
        console().print(line, markup=False, highlight=False)


@click.command()
@click.argument("location", default="runs", metavar="[DIR|URL]")
@click.option("--metric", default="latency_p50", show_default=True, help="Name of a score, with its level where it has "
              "one.")
@click.option("--of", metavar="PROPERTY", help="Only of this property, where several have such a score.")
@click.option("--variant", default="*", metavar="PATTERN", help="Only such variants; * stands for any characters.")
@click.option("--device", default="*", metavar="PATTERN", help="Only on such devices.")
@click.option("--dataset", default="*", metavar="PATTERN", help="Only on such data sets.")
@click.option("--condition", default="*", metavar="PATTERN", help="Only under such conditions.")
@click.option("--branch", metavar="NAME", help="Only runs of this branch.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the newest N runs of each series.")
@_JSON
def history(location: str, *, as_json: bool, **options: Any) -> None:
    """Show a metric over time with its shifts and the commit of each run.

    Every run.json below a folder, or any fsspec path, is read where it lies. Runs are comparable within a series:
    another device, CPU, number of threads, batch, budget, governor, power mode or set of images makes another series.
    """
    from edgebench import history as runs
    from edgebench.record import to_builtins

    found = runs.series(location, **options)
    if as_json:
        click.echo(json.dumps(to_builtins(found), indent=1, ensure_ascii=False))
        return
    _print_history(found)


@click.group()
def baseline() -> None:
    """Say which runs later ones are held against."""


@baseline.command()
@click.argument("run", type=_FILE)
@click.option("--why", required=True, help="The reason, in words; recorded.")
@click.option("--by", metavar="NAME", help="Who promotes it; by default the user of the CI system, or of this machine.")
@click.option("--name", default="release", show_default=True, help="Of the baseline.")
@_HISTORY
@_JSON
def promote(run: Path, *, why: str, by: str | None, name: str, history: str, as_json: bool) -> None:
    """Make RUN the baseline that 'gate --baseline promoted' means, and record who did it, when and why.

    RUN is a run.json, the folder that holds it, or an --out folder: then each variant in it. It is copied into the
    history with its predictions. The record is baselines.json there; earlier entries stay in it.
    """
    from edgebench import baselines, finished
    from edgebench.record import to_builtins

    found = finished.find(run)
    if found.unfinished:
        raise EdgebenchError(f"{found.unfinished[0].variant}: {found.unfinished[0].reason}", found.unfinished[0].hint)
    done = [baselines.promote(one.run, one.folder / "run.json", location=history, why=why, name=name, by=by)
            for one in found.subjects]
    if as_json:
        click.echo(json.dumps([to_builtins(one) for one in done], indent=1, ensure_ascii=False))
        return
    for one in done:
        click.echo(f"{one.name}: {one.variant} on {one.device}, promoted by {one.by} at {one.promoted_at}: {one.why}")


@baseline.command(name="list")
@_HISTORY
@_JSON
def list_(*, history: str, as_json: bool) -> None:
    """List the promotions, the oldest first; the last of a name, variant and device counts."""
    from edgebench import baselines
    from edgebench.record import to_builtins

    rows = [to_builtins(one) for one in baselines.promotions(history)]
    shown = rows if as_json else [{**row, "commit": (row["commit"] or "–")[:10]} for row in rows]
    listing(shown, ("name", "variant", "device", "commit", "promoted_at", "by", "why"), as_json=as_json)


def print_judgement(judgement: Judgement, *, strict: bool = False) -> None:
    """Print what the verdicts come to, and each of them, those that need attention first."""
    from rich.text import Text

    from edgebench.gate import conclusion, spoken_totals, totals

    terminal = console()
    found = conclusion(judgement.gates, strict=strict)
    style = f"bold {_CONCLUSIONS[found]}"
    terminal.print(Text.assemble((found, style), f"  {judgement.policy.id}: {judgement.policy.title}"))
    for one in judgement.gates:
        terminal.print()
        against = [f"against {one.reference}"] if one.reference else []
        against += [f"baseline {one.baseline}"] if one.baseline else []
        terminal.print(Text(", ".join([f"{one.variant} on {one.device}", *against])))
        for words in one.allowed:
            terminal.print(Text(f"differs by permission: {words}", style="yellow"))
        _print_verdicts(one)
    terminal.print()
    terminal.print(Text(f"{found}: {spoken_totals(totals(judgement.gates))}", style=style))


def _print_verdicts(found: Gate) -> None:
    from rich.table import Table
    from rich.text import Text

    from edgebench.gate import by_urgency

    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for width in (12, None, None):
        grid.add_column(no_wrap=width is not None, min_width=width, overflow="fold")
    for one in by_urgency(found.verdicts):
        grid.add_row(Text(one.outcome, style=_STYLES[one.outcome]), _rule(one), Text(one.message))
        if one.hint:
            grid.add_row("", "", Text(f"→ {one.hint}", style="dim"))
    console().print(grid)


def _rule(one: Verdict) -> str:
    return f"{one.rule} ({one.where})" if one.where else one.rule


def _print_json(gates: Sequence[Gate], *, strict: bool) -> None:
    from edgebench import verdict_outputs

    click.echo(json.dumps(verdict_outputs.as_json(gates, strict=strict), indent=1, ensure_ascii=False))


def _write_outputs(gates: Sequence[Gate], outputs: dict[str, Path | None], comment_key: str, *, strict: bool) -> None:
    from edgebench import verdict_outputs
    from edgebench.record import write_bytes, write_json

    makers: dict[str, Callable[[], str]] = {
        "junit": lambda: verdict_outputs.junit(gates, strict=strict),
        "summary": lambda: verdict_outputs.summary(gates, strict=strict),
        "comment": lambda: verdict_outputs.comment(gates, strict=strict, key=comment_key)}
    for kind, file in outputs.items():
        hint = f"choose another file with --{kind}"
        if file is None:
            continue
        if kind == "sarif":
            write_json(file, verdict_outputs.sarif(gates), hint)
        elif kind == "summary" and str(file) == os.environ.get("GITHUB_STEP_SUMMARY"):
            # Other parts of the step may have written to it: it is a stream, not a file of ours.
            with file.open("a", encoding="utf-8") as stream:
                stream.write(makers[kind]())
        else:
            write_bytes(file, makers[kind]().encode(), hint)


def _plan(path: Path, policy_name: str, baseline_rule: str | None, history: str, allow: tuple[str, ...], *,
          as_json: bool) -> None:
    from edgebench import finished
    from edgebench.record import to_builtins

    planned = finished.plan(path, policy_name, baseline=baseline_rule, history=history, allow=allow)
    chosen = planned.policy
    for note in planned.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps({"policy": chosen.id, "notes": planned.notes, "variants": {
            variant: [to_builtins(need) for need in needs] for variant, needs in planned.needs.items()}}, indent=1))
        return
    from rich.text import Text

    for variant, needs in planned.needs.items():
        console().print(Text(f"{chosen.id} for {variant}, at a chance of {chosen.power:.0%} to be decided",
                             style="bold"))
        listing([{"rule": f"{one.rule} ({one.where})" if one.where else one.rule, **_needed(one),
                  "taken to be true": one.assumption} for one in needs],
                ("rule", "has", "needs", "taken to be true"), as_json=False)


def _needed(one: Need) -> dict[str, str]:
    exact = one.sampled == "none"
    return {"has": "–" if one.have is None else f"{one.have:,} {one.sampled}",
            "needs": "this run" if exact else "no number decides it" if one.needed is None and one.have is not None
            else "–" if one.needed is None else f"{one.needed:,} {one.sampled}"}


def _print_comparison(found: Comparison, *, everything: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from edgebench.rule_words import quantity
    from edgebench.verdict_pages import OUTCOMES, sentence, told_change
    from edgebench.wording import title

    terminal = console()
    terminal.print(Text(f"{found.second} against {found.first}", style="bold"))
    for one in found.allowed:
        terminal.print(Text(f"differs by permission: {one.words}", style="yellow"))
    items = sorted(found.items, key=lambda one: OUTCOMES.index(one.outcome))
    shown = [one for one in items if everything or _telling(one)]
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "Metric", "First", "Second", "Change", "95 % interval"):
        grid.add_column(name, justify="left" if name in ("", "Metric") else "right", overflow="fold")
    for item in shown:
        change, within = told_change(item)
        grid.add_row(Text(item.outcome, style=_STYLES.get(item.outcome, "yellow")),
                     Text(title(item.metric) + (f" ({item.where})" if item.where else "")),
                     *(Text("–" if value is None else quantity(value, item.unit))
                       for value in (item.first, item.second)),
                     Text(change), Text(within, style="" if item.low is not None else "dim"))
    terminal.print(grid)
    if len(shown) < len(items):
        terminal.print(Text(f"{len(items) - len(shown)} further scores are the same, undecided or levels of these; "
                            "--all shows them", style="dim"))
    for words in found.left_out:
        terminal.print(Text(f"not compared: {words}", style="dim"))
    for flips in found.flips:
        total = flips.total
        terminal.print(Text(f"\n{flips.dataset}: {total.changed:,} of {total.images:,} answers changed: "
                            f"{total.negative:,} right before and wrong now, {total.positive:,} the other way"))
        bands = [f"{one.name}: {one.changed:,} of {one.images:,}" for one in flips.bands if one.images]
        terminal.print(Text(f"  by confidence of the first answer  {'; '.join(bands)}", style="dim"))
        if flips.changed:
            first = ", ".join(one.id for one in flips.changed[:3])
            terminal.print(Text(f"  surest of them  {first}", style="dim"))
    terminal.print(Text(f"\n{sentence(found)}", style="bold"))


def _telling(item: Item) -> bool:
    return ("@" not in item.metric and item.outcome not in ("same", "inconclusive")) or item.metric in (
        "accuracy_top1", "latency_p50", "latency_p99", "ece15_ew", "artifact_size")


def _print_history(found: Telling) -> None:
    from rich.text import Text

    from edgebench.history import LEAST_RUNS

    terminal = console()
    for words in found.left_out:
        click.echo(f"note: left out {words}", err=True)
    if not found.series:
        raise UsageError(f"none of {found.runs} runs is of such a variant, device, data set and branch",
                         "leave out some of the options")
    headings = [_heading(one) for one in found.series]
    for number, one in enumerate(found.series):
        if number:
            terminal.print()
        terminal.print(Text(headings[number], style="bold"))
        if headings.count(headings[number]) > 1:
            terminal.print(Text(f"  {one.circumstances}", style="dim"))
        _print_series(one)
        if len(one.points) < LEAST_RUNS:
            terminal.print(Text(f"  {len(one.points)} runs: fewer than the {LEAST_RUNS} that tell a shift from chance",
                                style="dim"))


def _heading(one: Series) -> str:
    from edgebench.wording import title

    where = [one.variant, one.device, *(word for word in (one.dataset, one.condition) if word not in ("", "clean"))]
    return f"{title(one.metric)} · {' · '.join(where)}"


def _print_series(one: Series) -> None:
    from rich.table import Table
    from rich.text import Text

    from edgebench.rule_words import quantity

    shifts = {shift.index: shift for shift in one.shifts}
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for number in range(6):
        grid.add_column(justify="right" if number in (3, 4) else "left", no_wrap=True)
    for index, point in enumerate(one.points):
        shift, told, style = shifts.get(index), "", ""
        if shift is not None:
            said = quantity(shift.after - shift.before, one.unit, change=True)
            relative = one.unit != "fraction" and shift.before > 0.0
            told = f"◀ shift of {said}" + (f" ({shift.after / shift.before - 1.0:+.1%})" if relative else "") + (
                f" after {_commit(one.points[index - 1].commit)}, p = {shift.p_value:.2g}")
            good = one.better is not None and (shift.after > shift.before) == (one.better == "higher")
            style = "green" if good else "yellow" if one.better is None else "red"
        span = "" if point.low is None or point.high is None else \
            f"{quantity(point.low, one.unit)} to {quantity(point.high, one.unit)}"
        grid.add_row(Text(f"  {point.created_at[:16].replace('T', ' ')}"), Text(_commit(point.commit)),
                     Text(point.branch or "–"), Text(quantity(point.value, one.unit), style="bold"),
                     Text(span, style="dim"), Text(told, style=style))
    console().print(grid)


def _commit(commit: str | None) -> str:
    return commit[:10] if commit else "–"


def _flat(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(word.strip() for value in values for word in value.split(",") if word.strip())
