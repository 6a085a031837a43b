"""What a user sees when a script ends well, badly, or without its packages."""

import errno
import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

from genval.runtime import cli, paths, seeds
from genval.runtime.errors import GenValError
from genval.runtime.flags import flag


@dataclass(frozen=True)
class Settings:
    """Of a script without flags."""

    SCRIPT: ClassVar[str] = "stage/script"


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script"])


@dataclass(frozen=True)
class SkippingSettings(Settings):
    """Of a script that can skip bad files."""

    skip_bad: bool = flag(False, "skip bad files")


@dataclass(frozen=True)
class PresetSettings(Settings):
    """Of a script with presets."""

    preset: str | None = None


def ended(main, capsys, settings=Settings):
    """Run a script that ends the process; returns its exit code and its error output."""
    with pytest.raises(SystemExit) as stop:
        cli.run(main, settings)
    return stop.value.code, capsys.readouterr().err


def failing(error):
    def main(_):
        raise error

    return main


def test_a_users_error_is_one_line_and_exit_code_2(capsys):
    code, said = ended(failing(GenValError("No masks in here. Run: there.")), capsys)
    assert code == 2 and said == "error: No masks in here. Run: there.\n"


def test_commands_of_an_error_have_the_preset_that_was_given(capsys, monkeypatch):
    bad = failing(GenValError("No translator. Run: python ControlNet/train_translation.py, or python mini/render.py."))
    assert "train_translation.py, or" in ended(bad, capsys, PresetSettings)[1]
    monkeypatch.setattr(sys, "argv", ["script", "--preset", "mini"])
    said = ended(bad, capsys, PresetSettings)[1]
    assert said.endswith("Run: python ControlNet/train_translation.py --preset mini, or python mini/render.py.\n")
    named = failing(GenValError("Run: python relis/eval.py --segmenters a --preset mini"))
    assert ended(named, capsys, PresetSettings)[1] == "error: Run: python relis/eval.py --segmenters a --preset mini\n"


@pytest.mark.parametrize("error", [GenValError("No masks."), KeyboardInterrupt(), OSError(errno.ENOSPC, "full", "a")])
def test_a_process_that_the_first_one_started_leaves_common_errors_to_it(error, capsys, monkeypatch):
    code, said = ended(failing(error), capsys)
    assert said
    monkeypatch.setenv("GENVAL_WAITS_FOR_FIRST", "1")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))  # the first process has ended
    assert ended(failing(error), capsys) == (code, "")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))  # it goes on, so that the error is this process's own
    assert ended(failing(error), capsys) == (code, said)


def test_an_unexpected_error_is_left_to_the_first_process(capsys, monkeypatch):
    monkeypatch.setenv("GENVAL_WAITS_FOR_FIRST", "1")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert ended(failing(ValueError("both have it")), capsys) == (1, "")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    with pytest.raises(ValueError, match="both have it"):
        cli.run(failing(ValueError("both have it")), Settings)


def test_skipping_is_proposed_only_where_the_script_can_skip(capsys, monkeypatch):
    bad = failing(GenValError("a.png cannot be decoded. Fetch or make the file again, or use --skip_bad."))
    assert ended(bad, capsys)[1] == "error: a.png cannot be decoded. Fetch or make the file again.\n"
    assert ended(bad, capsys, SkippingSettings)[1].endswith("again, or use --skip_bad.\n")
    monkeypatch.setattr(sys, "argv", ["script", "--skip_bad"])
    assert ended(bad, capsys, SkippingSettings)[1].endswith("again.\n")
    monkeypatch.setattr(sys, "argv", ["script"])
    twice = failing(GenValError("Remove one of them from the data set, or give --skip_bad to skip it."))
    assert ended(twice, capsys)[1] == "error: Remove one of them from the data set.\n"
    first = failing(GenValError("Add them there, skip these images (--skip_bad), or give --caption TEXT."))
    assert ended(first, capsys)[1] == "error: Add them there, or give --caption TEXT.\n"


def test_an_interruption_names_how_to_resume(capsys):
    code, said = ended(failing(KeyboardInterrupt()), capsys)
    assert code == 130 and said == "interrupted: run the same command again to resume.\n"
    assert ended(failing(KeyboardInterrupt(signal.SIGTERM)), capsys) == (143, said)
    assert ended(failing(KeyboardInterrupt("of a library")), capsys) == (130, said)


def test_a_missing_package_is_one_line(capsys):
    code, said = ended(failing(ModuleNotFoundError("No module named 'kornia'", name="kornia")), capsys)
    assert code == 2 and "kornia" in said and said.endswith("Run: make install\n") and said.count("\n") == 1
    with pytest.raises(ModuleNotFoundError):  # a defect of ours is not a user's error
        cli.run(failing(ModuleNotFoundError("No module named 'genval.x'", name="genval.x")), Settings)


def test_a_full_disk_is_one_line(capsys):
    def main(settings):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x", None, "logs/0/step=1.ckpt")

    code, err = ended(main, capsys)
    assert code == 2 and err.startswith("error: Cannot write logs/0/step=1.ckpt: No space left on device. Free disk")


def test_a_full_device_is_one_line(capsys):
    class OutOfMemoryError(RuntimeError):
        """As torch's, which is not imported for this."""

    code, said = ended(failing(OutOfMemoryError("CUDA out of memory. Tried to allocate")), capsys)
    assert code == 2 and "--batch_size" in said


ENDING = """
import atexit, threading, time
from dataclasses import dataclass
from genval.runtime import cli

@dataclass(frozen=True)
class Settings:
    SCRIPT = "stage/script"

def main(settings):
    atexit.register(print, "function at exit")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    print("main")

class Slow:
    def __del__(self):
        print("freed")

slow = Slow()
cli.run(main, Settings)
"""


LISTING = """
from dataclasses import dataclass
from genval.runtime import cli
from genval.runtime.errors import GenValError

@dataclass(frozen=True)
class Settings:
    SCRIPT = "stage/script"

def main(settings):
    print("line " * LENGTH)
    FAIL

cli.run(main, Settings, "text " * LENGTH)
"""


@pytest.mark.parametrize("length", [1, 100_000])
@pytest.mark.parametrize("flags, fail", [([], "pass"), (["--help"], "pass"), ([], "raise GenValError('It is bad.')")])
def test_a_script_whose_output_is_not_read_ends_quietly(tmp_path, length, flags, fail):
    (tmp_path / "script.py").write_text(LISTING.replace("LENGTH", str(length)).replace("FAIL", fail))
    read, write = os.pipe()
    os.close(read)
    command, buffered = [sys.executable, tmp_path / "script.py", *flags], {**os.environ, "PYTHONUNBUFFERED": ""}
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=buffered)
    os.close(write)
    # Long output is written, and fails, before the script's own error.
    if "raise" in fail and length == 1:
        assert (run.returncode, run.stderr) == (2, b"error: It is bad.\n")
    else:
        assert (run.returncode, run.stderr) == (0 if flags or length == 1 else 141, b"")


def test_a_broken_pipe_to_another_process_is_no_quiet_end():
    with pytest.raises(BrokenPipeError):
        cli.run(failing(BrokenPipeError(errno.EPIPE, "Broken pipe")), Settings)


def test_a_script_ends_without_freeing_its_objects(tmp_path):
    (tmp_path / "script.py").write_text(ENDING)
    run = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == ["main", "thread", "function at exit"]
    profiled = [sys.executable, "-m", "cProfile", "-o", tmp_path / "profile", tmp_path / "script.py"]
    assert subprocess.run(profiled, capture_output=True).returncode == 0
    assert (tmp_path / "profile").stat().st_size


def test_a_program_that_runs_a_script_ends_by_itself(tmp_path):
    (tmp_path / "script.py").write_text(ENDING)
    program = f"import runpy, sys; runpy.run_path({str(tmp_path / 'script.py')!r}, run_name='__main__'); sys.exit(3)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (3, "")
    assert run.stdout.splitlines()[-1] == "freed"


def test_a_link_one_folder_deeper_is_found(tmp_path):
    (tmp_path / "elsewhere" / "cityscapes").mkdir(parents=True)
    (tmp_path / "datasets").mkdir()
    assert paths.find_below(tmp_path / "datasets", "cityscapes") is None
    (tmp_path / "datasets" / "my_data").symlink_to(tmp_path / "elsewhere")
    assert paths.find_below(tmp_path / "datasets", "cityscapes") == tmp_path / "datasets" / "my_data" / "cityscapes"


def test_item_seeds_are_fixed_and_differ():
    assert seeds.item_seed(0, "fog_0") == seeds.item_seed(0, "fog_0")
    chosen = {seeds.item_seed(run, f"fog_{n}") for run in range(4) for n in range(100)}
    assert len(chosen) == 400
    assert max(chosen) < 2**63


def test_a_script_of_another_copy_of_the_project_is_refused(tmp_path):
    """An environment in which one copy is installed, used in another one."""
    for name in ("genval/__init__.py", "relis/eval.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text((paths.REPO_ROOT / name).read_text())
    command = [sys.executable, str(tmp_path / "relis/eval.py"), "--list_models"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(paths.REPO_ROOT)}
    )
    assert done.returncode == 2 and done.stdout == ""
    assert f"This script is in {tmp_path}" in done.stderr and f"PYTHONPATH={tmp_path}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
