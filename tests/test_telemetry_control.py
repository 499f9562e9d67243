"""Power mode, clocks and governor: set by name, checked afterwards, and set back whatever happens."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from edgebench.errors import CannotMeasure, InvalidInput, UsageError
from edgebench.telemetry import nvpmodel
from edgebench.telemetry.commands import Outcome
from edgebench.telemetry.control import controlled, restore_pending
from edgebench.telemetry.nvpmodel import Mode
from edgebench.timing_types import Control
from tests import trees
from tests.commands import run_with_ctrl_c

PROJECT = Path(__file__).resolve().parents[1]
REBOOT = """\
NVPM WARN: Golden image context is already created
NVPM WARN: Reboot required for changing to this power mode: {id}
NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:
NVPM ERROR: bad input!
NVPM ERROR: optMask is 1, no request for power mode
"""


class Board(trees.Tools):
    """An Orin Nano whose tools change its state, with the 7W mode that needs a reboot."""

    def __init__(self, root, mode=1, root_rights=True):
        super().__init__({("nvpmodel",): lambda: self._nvpmodel(self.calls[-1]),
                          ("jetson_clocks",): lambda: self._clocks(self.calls[-1])})
        self.root = trees.grow(root, {
            **trees.ORIN_NANO_JP6.files, "proc/sys/kernel/random/boot_id": "boot-1",
            f"proc/{os.getpid()}/stat": f"{os.getpid()} (a (strange) name) S " + " ".join(map(str, range(4, 53)))})
        self.names = ["15W", "25W", "MAXN_SUPER", "7W"]
        self.mode, self.rights = mode, root_rights

    @property
    def gpu(self):
        return self.root / "sys/class/devfreq/17000000.gpu"

    @property
    def pinned(self):
        return (self.gpu / "min_freq").read_text().strip() == (self.gpu / "max_freq").read_text().strip()

    def pin(self, pinned=True):
        (self.gpu / "min_freq").write_text((self.gpu / "max_freq").read_text() if pinned else "76800000")

    def _nvpmodel(self, command):
        if command[1] == "-q":
            return Outcome(code=0, output=f"NVPM WARN: fan mode is not set!\nNV Power Mode: {self.names[self.mode]}\n"
                           f"{self.mode}\n")
        wanted = int(command[2])
        if not self.rights:
            return Outcome(code=1, output="NVPM ERROR: failed to write PARAM GPU: permission denied")
        if 3 in (wanted, self.mode) and wanted != self.mode:
            return Outcome(code=0, output=REBOOT.format(id=wanted))
        self.mode = wanted
        self.pin(False)  # as nvpmodel does
        return Outcome(code=0, output="")

    def _clocks(self, command):
        if not self.rights:
            return Outcome(code=1, output="Error: Run this script(/usr/bin/jetson_clocks) as a root user")
        if command[1:2] == ("--store",):
            if Path(command[2]).exists():
                return Outcome(code=1, output="File exists. Can I overwrite it? Y/N:")
            Path(command[2]).write_text("pinned" if self.pinned else "free")
        elif command[1:2] == ("--restore",):
            self.pin(Path(command[2]).read_text() == "pinned")
        else:
            self.pin()
        return Outcome(code=0, output="")

    def governor(self, policy=0):
        return (self.root / f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_governor").read_text().strip()

    @property
    def state(self):
        return self.names[self.mode], self.pinned, self.governor(0), self.governor(4)


BEFORE = ("25W", False, "schedutil", "schedutil")
ALL = Control(power_mode="MAXN_SUPER", jetson_clocks=True, governor="performance")


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path / "root")


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "state" / "restore.json"


class TestModes:
    def test_names_ids_and_default_of_a_configuration(self):
        text = "\n".join(["# < POWER_MODEL ID=9 NAME=OFF >", "< POWER_MODEL ID=0 NAME=15W >", "GPU MAX_FREQ -1",
                          "< POWER_MODEL NAME=MAXN_SUPER ID=2 >", "<POWER_MODEL ID=3 NAME=7W>", "< PM_CONFIG DEFAULT=2 >"])
        assert ((Mode(id=0, name="15W"), Mode(id=2, name="MAXN_SUPER"), Mode(id=3, name="7W")), 2) == nvpmodel.parse_modes(
            text)

    @pytest.mark.parametrize("text", ["", "nothing here", "< POWER_MODEL ID=x NAME=A >", "< POWER_MODEL ID=1 >"])
    def test_text_without_modes_has_none(self, text):
        assert ((), None) == nvpmodel.parse_modes(text)

    @pytest.mark.parametrize(("output", "mode"), [
        ("NV Power Mode: MAXN\n0\n", Mode(id=0, name="MAXN")),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_30W\n2\n", Mode(id=2, name="MODE_30W")),
        ("NVPM VERB: Config file: /etc/nvpmodel.conf\nNVPM VERB: Current mode: NV Power Mode: MODE_15W_6CORE\n2\n",
         Mode(id=2, name="MODE_15W_6CORE")),
        ("error", None), ("", None)])
    def test_the_answer_to_the_query(self, output, mode):
        assert mode == nvpmodel.parse_query(output)

    @pytest.mark.parametrize("board", [one for one in trees.JETSONS if one.power_mode], ids=lambda one: one.name)
    def test_without_the_tool_its_status_file_tells(self, board, tmp_path):
        found = nvpmodel.current(trees.grow(tmp_path, board.files), trees.Tools())
        assert board.power_mode == found.name

    def test_without_both_the_mode_is_unknown(self, tmp_path):
        assert nvpmodel.current(tmp_path, trees.Tools()) is None

    def test_a_mode_that_does_not_exist_names_those_that_do(self, board):
        with pytest.raises(UsageError, match="unknown power mode 'MAXN'") as caught:
            nvpmodel.find(board.root, "MAXN")
        assert "15W, 25W, 7W, MAXN_SUPER" in caught.value.hint

    def test_a_host_without_modes_says_so(self, tmp_path):
        with pytest.raises(CannotMeasure, match="no power modes here"):
            nvpmodel.find(tmp_path, "MAXN")

    def test_names_match_in_any_case(self, board):
        assert 2 == nvpmodel.find(board.root, "maxn_super").id

    def test_a_change_that_needs_a_reboot_is_seen_by_asking_again(self, board):
        with pytest.raises(CannotMeasure, match="power mode 7W needs a reboot; the board stays at 25W") as caught:
            nvpmodel.switch(board.root, board, Mode(id=3, name="7W"))
        assert "sudo nvpmodel -m 3" in caught.value.hint
        assert ("nvpmodel", "-q") == board.calls[-1]

    def test_a_change_without_rights_says_root(self, tmp_path):
        board = Board(tmp_path, root_rights=False)
        with pytest.raises(CannotMeasure, match="permission denied; the board stays at 25W") as caught:
            nvpmodel.switch(board.root, board, Mode(id=0, name="15W"))
        assert "root" in caught.value.hint


class TestControlled:
    def test_everything_is_set_and_set_back(self, board, journal):
        assert BEFORE == board.state
        with controlled(ALL, root=board.root, journal=journal, runner=board) as done:
            assert ("MAXN_SUPER", True, "performance", "performance") == board.state
            assert ("power mode 25W → MAXN_SUPER", "governor of policy0 schedutil → performance",
                    "governor of policy4 schedutil → performance", "clocks pinned by jetson_clocks") == done
        assert BEFORE == board.state
        assert [] == list(journal.parent.iterdir())

    def test_clocks_are_unpinned_before_the_mode_changes_back(self, board, journal):
        with controlled(ALL, root=board.root, journal=journal, runner=board):
            pass
        changes = [call for call in board.calls if call[0] == "jetson_clocks" or call[1] == "-m"]
        assert ["-m", "--store", "", "--restore", "-m"] == [(*call, "")[1] for call in changes]

    @pytest.mark.parametrize("wanted", [ALL, Control(power_mode="MAXN_SUPER"), Control(jetson_clocks=True)])
    def test_clocks_that_were_pinned_before_are_pinned_afterwards(self, wanted, board, journal):
        board.pin()
        with controlled(wanted, root=board.root, journal=journal, runner=board):
            assert wanted.jetson_clocks == board.pinned
        assert ("25W", True, "schedutil", "schedutil") == board.state
        assert [] == list(journal.parent.iterdir())

    def test_pinning_that_does_not_reach_the_gpu_is_an_error_and_taken_back(self, board, journal):
        board.answers["jetson_clocks",] = lambda: Board._clocks(board, board.calls[-1]) if len(board.calls[-1]) > 1 else Outcome(
            code=0, output="")
        with pytest.raises(CannotMeasure, match="did not pin the GPU's clock"), \
                controlled(Control(jetson_clocks=True), root=board.root, journal=journal, runner=board):
            pytest.fail("the block must not run")
        assert BEFORE == board.state

    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, CannotMeasure])
    def test_after_any_error_too(self, error, board, journal):
        with pytest.raises(error), controlled(ALL, root=board.root, journal=journal, runner=board):
            raise error("stop")
        assert BEFORE == board.state
        assert not journal.exists()

    def test_on_another_thread_it_works_without_signals(self, board, journal):
        def work():
            with controlled(ALL, root=board.root, journal=journal, runner=board):
                states.append(board.state)
        states = []
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert [("MAXN_SUPER", True, "performance", "performance")] == states
        assert BEFORE == board.state

    def test_what_is_so_already_is_not_touched(self, board, journal):
        with controlled(Control(power_mode="25W", governor="schedutil"), root=board.root, journal=journal, runner=board) \
                as done:
            assert () == done
            assert not journal.exists()
        assert [("nvpmodel", "-q")] == board.calls

    def test_nothing_asked_nothing_done(self, board, journal):
        with controlled(Control(), root=board.root, journal=journal, runner=board) as done:
            assert () == done
        assert [] == board.calls

    def test_a_later_failure_takes_back_what_was_done_before(self, board, journal):
        with pytest.raises(UsageError, match="unknown governor 'fastest'"), \
                controlled(Control(power_mode="15W", governor="fastest"), root=board.root, journal=journal, runner=board):
            pytest.fail("the block must not run")
        assert BEFORE == board.state

    def test_a_mode_that_needs_a_reboot_is_an_error_before_anything_runs(self, board, journal):
        with pytest.raises(CannotMeasure, match="needs a reboot"), \
                controlled(Control(power_mode="7W"), root=board.root, journal=journal, runner=board):
            pytest.fail("the block must not run")
        assert BEFORE == board.state
        assert not journal.exists()

    def test_without_root_clocks_are_an_error_with_advice(self, tmp_path, journal):
        board = Board(tmp_path / "root", root_rights=False)
        with pytest.raises(CannotMeasure, match="as a root user") as caught, \
                controlled(Control(jetson_clocks=True), root=board.root, journal=journal, runner=board):
            pytest.fail("the block must not run")
        assert "sudo" in caught.value.hint

    def test_a_virtual_machine_has_no_governor_to_set(self, tmp_path, journal):
        with pytest.raises(CannotMeasure, match="the kernel shows no cpufreq"), \
                controlled(Control(governor="performance"), root=tmp_path, journal=journal, runner=trees.Tools()):
            pytest.fail("the block must not run")

    def test_a_mode_that_cannot_be_told_is_not_changed(self, board, journal):
        (board.root / "var/lib/nvpmodel/status").unlink()
        board.answers["nvpmodel", "-q"] = Outcome(code=1, output="error")
        with pytest.raises(CannotMeasure, match="cannot tell the power mode in force"), \
                controlled(Control(power_mode="15W"), root=board.root, journal=journal, runner=board):
            pytest.fail("the block must not run")

    def test_what_cannot_be_set_back_is_told_with_the_command_and_kept(self, board, journal):
        with pytest.raises(CannotMeasure, match="could not set back: power mode 25W") as caught, \
                controlled(ALL, root=board.root, journal=journal, runner=board):
            board.answers["nvpmodel", "-m", "1"] = Outcome(code=1, output="NVPM ERROR: busy")
        assert "nvpmodel -m 1" in caught.value.hint
        # The rest is back, and the next start tries again.
        assert ("MAXN_SUPER", False, "schedutil", "schedutil") == board.state
        assert ["nvpmodel"] == [one["kind"] for one in json.loads(journal.read_text())["undo"]]
        del board.answers["nvpmodel", "-m", "1"]
        assert ("power mode back to 25W",) == restore_pending(root=board.root, journal=journal, runner=board)
        assert BEFORE == board.state

    def test_a_journal_that_cannot_be_written_changes_nothing(self, board, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InvalidInput, match="cannot write"), \
                controlled(ALL, root=board.root, journal=tmp_path / "file/restore.json", runner=board):
            pytest.fail("the block must not run")
        assert BEFORE == board.state


CRASH = """
import os, sys
sys.path.insert(0, {project!r})
from pathlib import Path
from edgebench.telemetry.control import controlled
from tests.test_telemetry_control import Board, ALL

board = Board(Path({root!r}))
with controlled(ALL, root=board.root, journal=Path({journal!r}), runner=board):
    print(*board.state, flush=True)
    {end}
{after}
"""
# As someone who presses Ctrl-C again while the clocks are set back.
IMPATIENT = """genuine = board.answers["jetson_clocks",]
    def impatient():
        if board.calls[-1][1:2] == ("--restore",):
            os.kill(os.getpid(), 2)
        return genuine()
    board.answers["jetson_clocks",] = impatient"""


class TestCrash:
    def crash(self, tmp_path, journal, end, after=""):
        code = CRASH.format(project=str(PROJECT), root=str(tmp_path / "root"), journal=str(journal), end=end, after=after)
        return run_with_ctrl_c([sys.executable, "-c", code])

    def test_a_killed_process_leaves_a_journal_and_the_next_start_restores(self, tmp_path, journal):
        done = self.crash(tmp_path, journal, "os.kill(os.getpid(), 9)")
        assert -9 == done.returncode, done.stderr
        assert "MAXN_SUPER True performance performance\n" == done.stdout
        pid = json.loads(journal.read_text())["pid"]
        # The dead process is gone from /proc; this one finds its traces.
        (tmp_path / f"root/proc/{pid}/stat").unlink()
        board = self.after_crash(tmp_path / "root")
        done = restore_pending(root=board.root, journal=journal, runner=board)
        assert ("clocks back as they were", "governor back to schedutil", "governor back to schedutil",
                "power mode back to 25W") == done
        assert BEFORE == board.state
        assert not journal.exists()

    def after_crash(self, root):
        governors = {path: path.read_text() for path in root.glob("sys/devices/system/cpu/cpufreq/*/scaling_governor")}
        board = Board(root, mode=2)
        board.pin()
        for path, text in governors.items():
            path.write_text(text)
        return board

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_after_a_signal_everything_is_set_back(self, number, tmp_path, journal):
        # SIGTERM and SIGHUP are taken as Ctrl-C, and handlers are as they were before.
        done = self.crash(tmp_path, journal, f"import signal, time; os.kill(os.getpid(), {int(number)}); time.sleep(1000)")
        assert (-signal.SIGINT, False) == (done.returncode, journal.exists()), done.stderr
        assert "KeyboardInterrupt" in done.stderr
        assert "schedutil" == (tmp_path / "root/sys/devices/system/cpu/cpufreq/policy0/scaling_governor").read_text().strip()

    def test_a_second_signal_does_not_stop_the_way_back(self, tmp_path, journal):
        done = self.crash(tmp_path, journal, IMPATIENT)
        assert (-signal.SIGINT, False) == (done.returncode, journal.exists()), done.stderr
        assert "schedutil" == (tmp_path / "root/sys/devices/system/cpu/cpufreq/policy0/scaling_governor").read_text().strip()

    def test_handlers_are_afterwards_as_before_and_what_is_ignored_stays_ignored(self, tmp_path, journal):
        done = self.crash(tmp_path, journal, "pass", after=(
            "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
            "before = [signal.getsignal(one) for one in (1, 2, 15)]\n"
            f"with controlled(ALL, root=board.root, journal=Path({str(journal)!r}), runner=board):\n"
            "    inside = [signal.getsignal(one) for one in (1, 2, 15)]\n    os.kill(os.getpid(), 1)\n"
            "assert before == [signal.getsignal(one) for one in (1, 2, 15)]\n"
            "assert inside[:2] == before[:2] and inside[2] != before[2]\n"))
        assert 0 == done.returncode, done.stderr

    def test_the_next_measurement_restores_before_it_sets(self, tmp_path, journal):
        self.crash(tmp_path, journal, "os.kill(os.getpid(), 9)")
        pid = json.loads(journal.read_text())["pid"]
        (tmp_path / f"root/proc/{pid}/stat").unlink()
        board = self.after_crash(tmp_path / "root")
        with controlled(Control(power_mode="15W"), root=board.root, journal=journal, runner=board):
            assert ("15W", False, "schedutil", "schedutil") == board.state
        assert BEFORE == board.state

    def test_after_a_reboot_only_the_power_mode_is_left_to_undo(self, tmp_path, journal):
        self.crash(tmp_path, journal, "os.kill(os.getpid(), 9)")
        board = Board(tmp_path / "root", mode=2)
        (board.root / "proc/sys/kernel/random/boot_id").write_text("boot-2\n")
        assert ("power mode back to 25W",) == restore_pending(root=board.root, journal=journal, runner=board)
        assert not any(call[0] == "jetson_clocks" for call in board.calls)

    def test_settings_of_a_run_that_is_still_at_it_are_left_alone(self, tmp_path, journal):
        self.crash(tmp_path, journal, "os.kill(os.getpid(), 9)")
        board = Board(tmp_path / "root", mode=2)
        with pytest.raises(CannotMeasure, match="is still running"):
            restore_pending(root=board.root, journal=journal, runner=board)

    @pytest.mark.parametrize("undo", [
        {"kind": "governor", "place": "etc/passwd", "value": "performance"},
        {"kind": "governor", "place": "sys/devices/system/cpu/cpufreq/policy0/../../x/scaling_governor", "value": "a"},
        {"kind": "governor", "place": "sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "value": "a\nb"},
        {"kind": "nvpmodel", "place": "25W", "value": "1; reboot"}])
    def test_a_journal_that_asks_for_something_else_is_not_obeyed(self, undo, board, journal):
        journal.parent.mkdir()
        journal.write_text(json.dumps({"schema": "edgebench.restore/1", "pid": 1, "started": "0", "boot": "boot-1",
                                       "undo": [undo]}))
        before = board.state
        with pytest.raises(CannotMeasure, match="the journal names no"):
            restore_pending(root=board.root, journal=journal, runner=board)
        assert before == board.state

    @pytest.mark.parametrize("text", ["", "{", '{"schema": 1}'])
    def test_a_damaged_journal_is_an_error(self, text, board, journal):
        journal.parent.mkdir()
        journal.write_text(text)
        with pytest.raises(InvalidInput):
            restore_pending(root=board.root, journal=journal, runner=board)

    def test_without_a_journal_there_is_nothing_to_restore(self, board, journal):
        assert () == restore_pending(root=board.root, journal=journal, runner=board)
