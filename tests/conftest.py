"""Fixtures that every test file shares: caches in a temporary folder, real test data, small image folders."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import leftovers
from tests.leftovers import _nothing_left_behind, _nothing_left_behind_by_the_file  # noqa: F401  # fixtures
from tests.lost_workers import pytest_configure_node, pytest_runtest_logreport, pytest_testnodedown  # noqa: F401  # hooks

PROJECT = Path(__file__).resolve().parents[1]
# In this order before all others: a long file that one worker begins last would leave the other worker idle.
LONGEST_FIRST = ("test_real_data.py", "test_profile.py", "test_seven_properties.py", "test_demo.py",
                 "test_base_install.py", "test_export.py", "test_sources.py", "test_backoff.py", "test_tensorrt.py",
                 "test_stopping.py", "test_stopping_timings.py", "test_sequential.py")


def pytest_configure() -> None:
    """Take Ctrl-C as a terminal's: begun in the background of a script it is ignored, and by all children too."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    leftovers.adopt_orphans()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Return an RGB image with gradients and noise, so that every resampling filter has something to do."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    base = np.stack([rows * 255 // max(height - 1, 1), columns * 255 // max(width - 1, 1),
                     (rows * 7 + columns * 13 + seed * 31) % 256], axis=-1)
    noise = generator.integers(-60, 61, (height, width, 3))
    return Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))


@pytest.fixture(autouse=True, scope="session")
def _caches_away_from_the_users_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # One for all xdist workers, so that the demo's head is fitted once; EDGEBENCH_TEST_CACHE keeps it between sessions.
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "edgebench-cache"
    folder = os.environ.get("EDGEBENCH_TEST_CACHE") or str(shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEBENCH_CACHE", folder)
        yield


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test alone; ``EDGEBENCH_CACHE`` points at it."""
    folder = tmp_path / "edgebench-cache"
    monkeypatch.setenv("EDGEBENCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real test data: ``EDGEBENCH_TEST_DATA``, else ``../shared/data`` seen from the project."""
    folder = Path(os.environ.get("EDGEBENCH_TEST_DATA") or PROJECT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real test data at {folder}: point EDGEBENCH_TEST_DATA at it")
    return folder


@pytest.fixture(scope="session")
def imagenet_800(shared_data: Path) -> Path:
    """800 real ILSVRC-2012 validation images in WordNet folders."""
    folder = shared_data / "imagenet-val-800"
    if not folder.is_dir():
        pytest.skip(f"no imagenet-val-800 in {shared_data}")
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a labelled image folder and returns it.

    ``image_folder({"cat": 2, "dog": 3})`` writes five distinct PNG files ``<class>/<number>.png``; a ``name`` gives
    the folder another name than ``images``.
    """
    def make(classes: Mapping[str, int], name: str = "images") -> Path:
        root = tmp_path / name
        seed = 0
        for folder, count in classes.items():
            (root / folder).mkdir(parents=True)
            for number in range(count):
                picture(seed).save(root / folder / f"{number:03d}.png")
                seed += 1
        return root

    return make


@pytest.fixture
def labelled_folder(image_folder: Callable[..., Path]) -> Path:
    """A labelled image folder with the classes ``cat`` (3 images), ``dog`` (2) and ``owl`` (1)."""
    return image_folder({"cat": 3, "dog": 2, "owl": 1})
