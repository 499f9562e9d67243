"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

Command = Callable[..., None]


class Words(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """A list of words, separated by commas."""

    name = "NAME,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the words between the commas."""
        if isinstance(value, tuple):
            return value
        words = tuple(word.strip() for word in value.split(",") if word.strip())
        if not words:
            self.fail("expected at least one name", param, ctx)
        return words


class Sizes(Words):
    """Comma-separated pixel sizes, or the sweep's own."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the sizes in pixels."""
        from edgebench import transforms

        words = super().convert(value, param, ctx)
        wrong = next((word for word in words if word != "default" and not str(word).isdecimal()), None)
        if wrong is not None:
            self.fail(f"expected sizes in pixels, such as 112,160, got {wrong!r}", param, ctx)
        sizes = transforms.levels("resolution", "native") if words == ("default",) else words
        return tuple(int(size) for size in sizes)


class Turns(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """Rounds of timing in turns, or the change of latency that they are to find, in percent."""

    name = "ROUNDS|PERCENT%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        """Return rounds, or a share below 1."""
        if isinstance(value, (int, float)):
            return value
        words = value.strip()
        try:
            number = float(words[:-1]) / 100.0 if words.endswith("%") else int(words)
        except ValueError:
            self.fail(f"expected rounds, such as 24, or a change to find, such as 3%, got {value!r}", param, ctx)
        if number < 0 or (isinstance(number, float) and not 0.001 <= number < 1.0):
            self.fail(f"expected 0 rounds or more, or a change from 0.1% to below 100%, got {value!r}", param, ctx)
        return number


def flat(values: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the words of an option that may be repeated."""
    return tuple(word for words in values for word in words)


MODEL_OPTIONS = (
    click.option("--weights", metavar="FILE|random", help="A local state dict (.pth, .safetensors) instead of the "
                 "published weights; 'random' for latency alone."),
    click.option("--calibration-data", metavar="DIR", help="Images that choose the INT8 ranges: ROOT/<class>/<image>, "
                 "like those seen in use, not those of --data."),
    click.option("--classes", type=click.Path(path_type=Path), metavar="FILE",
                 help="Class map: one class per line in output order, 'id' or 'id<TAB>name'."),
    click.option("--templates", type=click.Path(path_type=Path), metavar="FILE",
                 help="open_clip: prompt templates, one per line with {} for the class name."),
    click.option("--output", metavar="NAME[=KIND]", help="Output that is scored, where a model has several; KIND "
                 "(logits, log_probabilities, probabilities, sigmoid_scores) where it is not recognised."),
    click.option("--resolutions", type=Sizes(), default=(), metavar="PX,…|default", help="Also build graphs for these "
                 "input sizes, so that invariance to resolution can be measured."),
    click.option("--allow-precision-fallback", is_flag=True, help="Go on with a caveat where the precision asked for "
                 "was not achieved."),
    click.option("--preprocess", type=click.Path(path_type=Path), metavar="FILE",
                 help="TOML of the preprocessing, for .onnx and .pt2 files (docs/preprocessing.md)."),
)
TIMING_OPTIONS = (
    click.option("--scenario", "scenarios", type=Words(), default=("single-stream", "offline"),
                 show_default="single-stream,offline", help="How inferences are issued: single-stream, multi-stream, "
                 "offline, server, camera."),
    click.option("--fps", type=float, default=30.0, show_default=True, help="Frames per second of the camera "
                 "scenario."),
    click.option("--deadline", type=float, metavar="MS", help="Deadline of the camera scenario in milliseconds; one "
                 "frame period by default."),
    click.option("--drop", default="newest", show_default=True, metavar="newest|queue", help="What becomes of frames "
                 "that come too fast: the newest is taken and older ones dropped, or all wait."),
    click.option("--latency-bound", type=float, metavar="MS", help="Bound on the 99th percentile in the server "
                 "scenario in milliseconds; ten times the median latency by default."),
    click.option("--sustained", type=float, metavar="MINUTES", help="Afterwards, keep the device busy for so long and "
                 "report minute by minute; 30 shows how it throttles."),
    click.option("--with-preprocessing", "preprocessing", is_flag=True, help="Decode, resize and normalize inside the "
                 "clock."),
    click.option("--loadgen", is_flag=True, help="Let MLPerf's LoadGen time single-stream too, on the same session, "
                 "as a cross-check of the percentiles (extra 'loadgen')."),
    click.option("--paired", type=Turns(), default=0, metavar="ROUNDS|PERCENT%", help="At the end, time all variants "
                 "in turns, in fresh processes every other round, and give ratios with intervals: so many rounds (14 "
                 "or more for an interval, 24 for a gate), or as many as find a change of latency such as 3%."),
    click.option("--noise-floor", type=click.Path(path_type=Path), metavar="FILE", help="Afterwards, repeat the "
                 "timings of the first variant of each runtime seven times and write to FILE by how much equal runs "
                 "differ on this device, for 'gate --noise-floor FILE'."),
    click.option("--no-telemetry", is_flag=True, help="Do not watch power, heat, clocks and throttling."),
    click.option("--meter", metavar="FILE", help="File or FIFO of an external power meter's lines "
                 "'seconds,watts' (docs/instrument.md)."),
    click.option("--ambient", "ambient_c", type=float, metavar="°C", help="Temperature of the room, for the record."),
    click.option("--power-mode", metavar="NAME", help="Jetson: set this nvpmodel mode, and set it back afterwards."),
    click.option("--jetson-clocks", is_flag=True, help="Jetson: pin all clocks to the mode's ceiling meanwhile."),
    click.option("--governor", metavar="NAME", help="Set this CPU frequency governor meanwhile, such as performance."),
)
RUN_OPTIONS = (
    click.option("--data", multiple=True, metavar="ROOT", help="Labelled images: ROOT/<class>/<image>, or a data root "
                 "with imagenet/val. May be repeated."),
    click.option("--properties", "properties_", type=Words(), default=("all",), show_default="all",
                 help="What to evaluate: all, none, or names (edgebench properties)."),
    click.option("--until", metavar="FILE|NAME", help="Evaluate images in random order and time, each variant but the "
                 "FP32 reference, only until every rule of this policy is decided."),
    click.option("--baseline", metavar="RUN|latest:BRANCH|promoted", help="Earlier run that rules of --until against a "
                 "baseline compare with; gate with the same one."),
    click.option("--history", default="runs", show_default=True, metavar="DIR|URL", help="Where --baseline "
                 "latest:BRANCH and promoted look."),
    click.option("--builds", type=int, default=1, show_default=True, metavar="N", help="Build each artifact N times "
                 "and report how much the builds differ."),
    click.option("--device", default="auto", show_default=True, metavar="ID", help="Declared device "
                 "(edgebench devices)."),
    click.option("--threads", type=int, help="CPU threads; the usable CPUs by default."),
    click.option("--batch", type=int, default=16, show_default=True, help="Images per inference in the offline "
                 "scenario and in evaluation."),
    click.option("--ood", multiple=True, metavar="DIR", help="Images that the model was not made for: how well does "
                 "its confidence tell them apart?"),
    click.option("--sweep-images", type=int, metavar="N", help="Images per generated corruption and level of "
                 "invariance; 5 of each class and at least 200 by default, 0 for all."),
    click.option("--store", default="logits", show_default=True, metavar="logits|compact",
                 help="What is kept per image; compact takes a hundredth of the space and leaves out some scores."),
    click.option("--preset", default="native", show_default=True, metavar="native|paper",
                 help="Preprocessing and protocols: what the weights were tuned for, or what the paper did."),
    click.option("--out", type=click.Path(path_type=Path), metavar="DIR",
                 help="Output folder; runs/<model>-<time> by default."),
    click.option("--resume", is_flag=True, help="Go on with an interrupted job in --out."),
    click.option("--force", is_flag=True, help="Measure again what --out already holds."),
    click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the report here too."),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON instead of a table."),
)


def with_options(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """Return the decorator that gives a command these options, in their order."""
    def apply(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


