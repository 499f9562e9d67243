"""The command line: parse options, call one library function, print, choose the exit code.

Beside `edgebench.terminal` the only module that prints. Results go to standard output, progress and errors to
standard error.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgebench import __version__, judging
from edgebench.errors import EdgebenchError, ExitCode, suggest
from edgebench.files import refuse_unwritable
from edgebench.options import MODEL_OPTIONS, RUN_OPTIONS, TIMING_OPTIONS, Words, flat, with_options
from edgebench.terminal import (
    Display,
    fail,
    listing,
    print_ceilings,
    print_draws,
    print_floors,
    print_paired,
    print_plan,
    print_runs,
    print_search,
    streams_for_any_terminal,
)

if TYPE_CHECKING:
    from edgebench.export_job import ExportResult
    from edgebench.profiler import Request, Result

EXIT_CODES = """\b
Exit codes:
  0  done, or passed
  1  a rule of a gate failed
  2  the command, an option or a name is wrong
  3  could not measure or judge: missing package, unreadable input, invalid environment, interrupted
  4  inconclusive (only under --strict)
"""


class _Commands(click.Group):
    """Suggests the nearest command for a mistyped one."""

    def resolve_command(self, ctx: click.Context, args: list[str],
                        ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            raise click.UsageError(f"unknown command {args[0]!r}{suggest(args[0], known)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"],
                                                                 "max_content_width": 100})
@click.version_option(__version__, prog_name="edgebench")
def cli() -> None:
    """Measure what changed when a vision model was exported and quantized, on the device that will run it.

    \b
    edgebench profile demo:inspection --budget quick
    edgebench profile timm:resnet50.tv_in1k --data VAL --calibration-data TRAIN-SAMPLE
    edgebench export timm:resnet50.tv_in1k --recipe ort-int8 --calibration-data DIR --out ARTIFACTS
    edgebench profile ARTIFACTS/* --data VAL        (on the board: no torch needed)
    """  # noqa: D301  # click needs the backspace


@cli.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL|ARTIFACT...")
@click.option("--recipe", "recipes_", type=Words(), multiple=True, help="Export recipes, by id or TOML file.")
@click.option("--backend", "backends_", type=Words(), multiple=True, help="Only recipes for these runtimes.")
@click.option("--precision", "precisions", type=Words(), multiple=True, help="Only recipes of these precisions.")
@click.option("--budget", default="standard", show_default=True,
              help="How long to time: smoke, quick, standard or mlperf.")
@with_options(TIMING_OPTIONS)
@with_options(MODEL_OPTIONS)
@with_options(RUN_OPTIONS)
def profile(models: tuple[str, ...], recipes_: Any, backends_: Any, precisions: Any, **options: Any) -> None:
    """Export, time and evaluate every variant of MODEL, or ready ARTIFACTs, and write a report.

    MODEL is timm:NAME[.TAG], open_clip:ARCH/TAG, demo:inspection, or a .onnx or .pt2 file. ARTIFACT is a folder that
    'edgebench export' wrote; profiling it needs no torch.
    """
    from edgebench.timing_types import Control, TimingPlan

    def seconds(milliseconds: float | None) -> float | None:
        return None if milliseconds is None else milliseconds / 1e3

    sustained = options.pop("sustained")
    timing = TimingPlan(
        scenarios=options.pop("scenarios"), fps=options.pop("fps"), deadline_s=seconds(options.pop("deadline")),
        drop=options.pop("drop"), latency_bound_s=seconds(options.pop("latency_bound")),
        sustained_s=None if sustained is None else sustained * 60, preprocessing=options.pop("preprocessing"),
        loadgen=options.pop("loadgen"),
        telemetry=not options.pop("no_telemetry"), meter=options.pop("meter"), ambient_c=options.pop("ambient_c"),
        control=Control(power_mode=options.pop("power_mode"), jetson_clocks=options.pop("jetson_clocks"),
                        governor=options.pop("governor")))
    _profile(models, options, recipes=flat(recipes_), backends=flat(backends_), precisions=flat(precisions),
             timing=timing)


@cli.command()
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
@click.option("--allow-precision-fallback", is_flag=True, help="Go on with a caveat where the precision asked for was "
              "not executed.")
@with_options(RUN_OPTIONS)
def evaluate(artifacts: tuple[str, ...], **options: Any) -> None:
    """Evaluate the quality of ready ARTIFACTs on labelled images, without timing them."""
    _profile(artifacts, {**options, "budget": None})


def _profile(models: tuple[str, ...], options: dict[str, Any], **selection: Any) -> None:
    from edgebench.profiler import Request, profile
    from edgebench.record import write_bytes

    as_json, html, out = options.pop("as_json"), options.pop("html"), options.pop("out")
    name = "".join(char if char.isalnum() or char in "._-" else "-" for char in Path(models[0]).name)
    request = Request(models=models, out=out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}",
                      properties=options.pop("properties_"), **options, **selection)
    if html is not None:
        refuse_unwritable(html, "choose another file with --html")
    display = Display()
    try:
        with display:
            result = profile(request, display.progress, display.note)
    except KeyboardInterrupt:
        fail("interrupted", f"finished parts are kept; go on with: {_again(request)}")
    _print_result(result, as_json=as_json)
    if html and result.runs:
        write_bytes(html, result.html.read_bytes(), "choose another file with --html")
    if result.failures:
        sys.exit(result.failures[0].error.exit_code)


def _again(request: Request) -> str:
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--force")]
    if "--out" not in " ".join(words):
        words += ["--out", str(request.out)]
    return shlex.join(["edgebench", *words, "--resume"])


def _print_result(result: Result, *, as_json: bool) -> None:
    if result.runs:
        if as_json:
            click.echo((result.out / "summary.json").read_text(encoding="utf-8"), nl=False)
        else:
            print_runs(result.runs)
            if result.paired is not None:
                print_paired(result.paired)
            if result.floors:
                print_floors(result.floors)
            click.echo(f"\nreport  {result.html}")
    for failure in result.failures:
        click.echo(f"error: {failure.what}: {failure.error.message}", err=True)
        if failure.error.hint:
            click.echo(f"hint:  {failure.error.hint}", err=True)


@cli.command()
@click.argument("model")
@click.option("--recipe", "recipes_", type=Words(), multiple=True, required=True,
              help="Export recipes, by id or TOML file.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR",
              help="Folder of the artifact folders; needed but for --explain.")
@with_options(MODEL_OPTIONS)
@click.option("--explain", is_flag=True, help="Say what each recipe will do to this model, node by node, and why; "
              "build nothing.")
@click.option("--family", metavar="NAME", help="Follow the quantization rules of this kind of network (convnet, "
              "depthwise, transformer, convnext) instead of the one detected.")
@click.option("--max-drop", type=float, metavar="FRACTION", help="Return sensitive layers to float until no more than "
              "this is lost, with confidence; 0.005 is half a point.")
@click.option("--keep", type=Words(), multiple=True, metavar="NAME[=MARGIN],…", help="What --max-drop keeps beside "
              "accuracy: calibration, flips, disagreement; each with a margin of its own where given.")
@click.option("--tuning-data", metavar="DIR", help="Labelled images that judge --max-drop and --draws; by default "
              "those of --calibration-data that chose no ranges.")
@click.option("--max-trials", type=int, default=8, show_default=True, help="Candidates that --max-drop judges at most.")
@click.option("--draws", type=int, default=1, show_default=True, help="Also compare this many draws of "
              "quantization-calibration images.")
@click.option("--force", is_flag=True, help="Replace other artifacts that --out already holds.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def export(model: str, recipes_: Any, out: Path | None, *, explain: bool, as_json: bool, **options: Any) -> None:
    """Export MODEL by each recipe into OUT/<model>--<recipe>: model files, manifest, golden tensors."""
    from edgebench import export_job
    from edgebench.errors import UsageError

    if out is None and not explain:
        raise UsageError("missing --out DIR: where do the artifacts go?")
    options["keep"] = flat(options["keep"])
    display = Display()
    try:
        with tempfile.TemporaryDirectory() as scratch, display:
            request = export_job.ExportRequest(model=model, recipes=flat(recipes_), out=out or Path(scratch),
                                               **options)
            done = export_job.explain(request, display.count, display.note) if explain else \
                export_job.export(request, display.count, display.note)
    except KeyboardInterrupt:
        fail("interrupted", "finished artifacts are kept; the same command goes on")
    if isinstance(done, tuple):
        _print_plans(done, as_json=as_json)
    else:
        _print_export(done, as_json=as_json)


def _print_plans(plans: Any, *, as_json: bool) -> None:
    from edgebench.record import to_builtins

    if as_json:
        click.echo(json.dumps([{"recipe": recipe.id, "plan": to_builtins(plan)} for recipe, plan in plans], indent=1))
        return
    for recipe, plan in plans:
        print_plan(recipe, plan)


def _print_export(result: ExportResult, *, as_json: bool) -> None:
    from edgebench import backoff
    from edgebench.record import to_builtins

    if as_json:
        click.echo(json.dumps({
            "artifacts": [{"recipe": recipe, "folder": str(folder)} for recipe, folder in result.artifacts],
            "recipes": [str(file) for file in result.recipes],
            "searches": [backoff.summary(one) for one in result.searches],
            "draws": [{**to_builtins(one), "top1_std": one.top1_std} for one in result.draws],
            "failures": [{"recipe": recipe, "message": error.message, "hint": error.hint}
                         for recipe, error in result.failures]}, indent=1))
    else:
        for draws in result.draws:
            print_draws(draws)
        for outcome, file in zip(result.searches, result.recipes, strict=True):
            click.echo(f"{outcome.recipe.id}: {outcome.images} labelled images, written to {file}")
            print_search(outcome)
            needed = backoff.images_needed(outcome.best, outcome.images)
            if outcome.verdict != "holds":
                click.echo(f"  {outcome.verdict}: no candidate holds with confidence; the best was kept"
                           + (f"; about {needed:,} images would settle it" if needed else ""))
    for recipe, error in result.failures:
        click.echo(f"error: {recipe}: {error.message}" + (f"\nhint:  {error.hint}" if error.hint else ""), err=True)
    if result.failures:
        sys.exit(result.failures[0][1].exit_code)
    if any(outcome.verdict == "fails" for outcome in result.searches):
        sys.exit(ExitCode.FAILED)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the HTML report.")
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Write the Markdown report.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON instead of a table.")
@click.option("--rescore", is_flag=True, help="Compute every quality score afresh from the stored predictions, and "
              "sustained load from its raw timings.")
def report(runs: tuple[Path, ...], html: Path | None, markdown: Path | None, as_json: bool, rescore: bool) -> None:
    """Show finished runs: files, run folders, or output folders of 'profile'. Needs no runtime."""
    from edgebench import ceilings, interleaved
    from edgebench import report as reports
    from edgebench.decisions import of_runs
    from edgebench.record import write_bytes

    for kind, file in (("html", html), ("markdown", markdown)):
        if file is not None:
            refuse_unwritable(file, f"choose another file with --{kind}")
    found = reports.discover(runs)
    if rescore:
        from edgebench.evaluate import rescore_all

        found = reports.ordered(rescore_all(reports.locate(runs)))
    found = ceilings.filled_in(found)
    if as_json:
        click.echo(json.dumps(reports.summary(found), indent=1, ensure_ascii=False))
    else:
        print_runs(found)
    if html:
        turns = [interleaved.load(out) for out in dict.fromkeys(folder.parent for _, folder in reports.locate(runs))]
        write_bytes(html, reports.html(found, [one for one in turns if one is not None],
                                       of_runs(reports.locate(runs))).encode(), "choose another file with --html")
        click.echo(f"\nreport  {html}", err=as_json)
    if markdown:
        write_bytes(markdown, reports.markdown(found).encode(), "choose another file with --markdown")
        click.echo(f"markdown  {markdown}", err=as_json)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def recipes(as_json: bool) -> None:
    """List the export recipes."""
    from edgebench import catalog
    from edgebench.record import to_builtins

    rows = [to_builtins(recipe) for recipe in catalog.recipes().values()]
    listing(rows, ("id", "precision", "backend", "purpose"), as_json=as_json)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def devices(as_json: bool) -> None:
    """List the devices."""
    from edgebench import catalog
    from edgebench.record import to_builtins

    listing([to_builtins(device) for device in catalog.devices().values()], ("id", "title", "backends"),
             as_json=as_json)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def properties(as_json: bool) -> None:
    """List the properties that can be evaluated."""
    from edgebench import properties as known

    rows = [{"name": name, "measures": known.get(name).SUMMARY} for name in known.NAMES]
    listing(rows, ("name", "measures"), as_json=as_json)


@cli.group()
def data() -> None:
    """Look at data sets before they are used."""


@data.command()
@click.argument("root")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(root: str, as_json: bool) -> None:
    """Say what ROOT holds and lacks: sets, counts against those published, digests of class maps."""
    from edgebench.named_sets import check as look
    from edgebench.record import to_builtins

    found = look(root)
    rows = [to_builtins(one) if as_json else {
        **to_builtins(one), "published": "" if one.published is None else f"{one.published:,}",
        "digest": one.digest[:12]} for one in found]
    listing(rows, ("name", "state", "images", "published", "classes", "digest", "serves", "note"), as_json=as_json)
    if any(one.state == "unusable" for one in found):
        sys.exit(ExitCode.UNMEASURABLE)


@cli.command()
@click.option("--ceilings", "measured", is_flag=True, help="Measure what this machine can do at best, in matrix "
              "products of each precision and in copies, for the rooflines of reports; takes half a minute on a CPU, "
              "on a GPU as long as TensorRT builds some engines.")
@click.option("--device", metavar="ID", help="Of --ceilings: the declared device; recognised by default.")
@click.option("--threads", type=click.IntRange(1), help="Of --ceilings: CPU threads; the usable CPUs by default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(device: str | None, threads: int | None, *, measured: bool, as_json: bool) -> None:
    """Say what works on this machine, and why the rest does not."""
    from edgebench.doctor import examine
    from edgebench.errors import UsageError

    if measured:
        _ceilings(device or "auto", threads, as_json=as_json)
        return
    if device or threads:
        raise UsageError("--device and --threads are for --ceilings", "add --ceilings, or remove these options")
    listing([{"what": one.what, "works": "yes" if one.works else "no", "detail": one.detail} for one in examine()],
             ("what", "works", "detail"), as_json=as_json)


def _ceilings(name: str, threads: int | None, *, as_json: bool) -> None:
    from edgebench import ceilings
    from edgebench.profiler import resolve_device
    from edgebench.record import to_builtins

    device, _, power_mode = resolve_device(name)
    with Display() as display:
        found = ceilings.measure(device, threads, power_mode=power_mode, told=display.progress)
    file = ceilings.save(found)
    if as_json:
        click.echo(json.dumps(to_builtins(found), indent=1, ensure_ascii=False))
    else:
        print_ceilings(found)
    click.echo(f"kept in {file} for reports of {device.id}: {found.where}", err=True)
    if ceilings.disturbed(found):
        click.echo(f"hint:  {found.conditions['CPUs busy before']} CPUs were busy before: measure again on a quiet "
                   "machine", err=True)


judging.register(cli)


def _invoked() -> object:
    """Run the command that is named; returns its exit code, once all that it printed is written."""
    try:
        code = cli.main(standalone_mode=False)
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    return code


def main() -> None:
    """Run the command line; every error becomes a line with a hint and the exit code of the contract."""
    streams_for_any_terminal()
    for number in (signal.SIGTERM, signal.SIGHUP):
        # One that the caller ignores, as under nohup, stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        code = _invoked()
    except EdgebenchError as error:
        fail(error.message, error.hint, error.exit_code)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "edgebench"
        fail(error.format_message(), f"{where} --help", ExitCode.USAGE)
    except click.ClickException as error:
        fail(error.format_message(), code=ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted")
    except OSError as error:
        # What was not foreseen about files, disks and streams is the machine's state, not a defect.
        where = f"{error.filename}: " if error.filename is not None else ""
        fail(f"{where}{error.strerror or error}")
    except RecursionError:
        fail("an input is nested too deeply to be read", "check the files that the command names")
    except MemoryError:
        fail("out of memory", "use a smaller --batch, or a machine with more memory")
    except Exception:  # noqa: BLE001  # an unforeseen error must not end with 1, the code of a failed rule
        traceback.print_exc()
        fail("this is a defect of edgebench", "please report it with the lines above")
    else:
        sys.exit(code if isinstance(code, int) else 0)
