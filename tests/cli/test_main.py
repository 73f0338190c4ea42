import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Tiny
from tests.saliences import random_salience

from mixllm import __version__
from mixllm.cli import main, quantize
from mixllm.errors import MixllmError


def raise_instead(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Have the inspect command end with this error."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("mixllm.cli.inspect._plan", fail)


@pytest.fixture
def plan_file(tmp_path: Path) -> str:
    (tmp_path / "plan.json").write_text("{}")
    return str(tmp_path / "plan.json")


def test_version_and_help(capsys):
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"mixllm {__version__}\n"
    for arguments in ([], ["--help"]):
        assert main.run(arguments) == 0
        out = capsys.readouterr().out
        for command in ("quantize", "plan", "inspect", "eval", "export", "generate", "chat", "demo"):
            assert f"\n  {command} " in out
        assert "..." not in out.partition("Commands:")[2]


def test_every_command_has_a_help(capsys):
    assert main.run(["-h"]) == 0
    commands = re.findall(r"^  ([a-z]+) ", capsys.readouterr().out.partition("Commands:")[2], re.MULTILINE)
    assert len(commands) == 10
    for command in commands:
        assert main.run([command, "-h"]) == main.run([command, "--help"]) == 0
        short, long = capsys.readouterr().out.split("Usage: ")[1:]
        assert short == long and "-h, --help" in short


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "No such command 'nope'"),
        (["quantize", "model"], "Missing option '--out'"),
        (["quantize", "model", "-o", "out", "--scope", "galaxy"], "'--scope': 'galaxy' is not one of"),
        (["quantize", "model", "-o", "out", "--bits", "many"], "--bits"),
        (["quantize", "model", "-o", "out", "--bits", "9"], "--bits: must be 4 to 8"),
        (["quantize", "model", "-o", "out", "--channels", "101"], "less than or equal to 100 (it is 101.0)"),
        (["quantize", "model", "-o", "out", "--seed", "-1"], "seed: "),
        (["quantize", "model", "-o", "out", "--seed", "9" * 30], "seed: "),
        (["generate", "out", "-p", "x", "--seed", "9" * 30], "--seed"),
        (["quantize", "model", "-o", "out", "--bits", "5", "--channels", "5"], "give bits or channels"),
        (
            ["quantize", "model", "-o", "out", "--bits", "5", "--plan", "p"],
            "--bits: has no effect on a finished plan",
        ),
        (["quantize", "model", "-o", "out", "--widths", "3,8", "--plan", "p"], "--widths: has no effect"),
        (
            ["quantize", "model", "-o", "out", "--score", "taylor", "--salience", "s"],
            "--score: has no effect on a finished salience; leave it or --salience out",
        ),
        (
            ["quantize", "model", "-o", "out", "--salience", "s", "--plan", "p"],
            "salience: has no effect",
        ),
        (["inspect", "/no/such/file"], "/no/such/file: no such file"),
        (["plan", "/no/such/file"], "/no/such/file: no such file or directory"),
        (["plan", "a", "--diff", "b", "--bits", "5"], "--diff: compares two finished plans"),
    ],
)
def test_what_the_user_gave_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MixllmError("plan.json: [bold] is wrong"), 2, "error: plan.json: [bold] is wrong\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (PermissionError(13, "Permission denied", "/root/out"), 2, "error: /root/out: Permission denied\n"),
        (OSError(36, "File name too long", "xxx"), 2, "error: xxx: File name too long\n"),
        (OSError(28, "No space left on device"), 2, "error: output: No space left on device\n"),
    ],
)
def test_errors_that_are_no_bugs(error, code, line, plan_file, monkeypatch, capsys):
    raise_instead(monkeypatch, error)
    assert main.run(["inspect", plan_file]) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(5, "Input/output error"), KeyError("k")])
def test_bugs_keep_their_traceback(error, plan_file, monkeypatch):
    raise_instead(monkeypatch, error)
    with pytest.raises(type(error)):
        main.run(["inspect", plan_file])


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mixllm", *arguments]


def test_a_bug_ends_the_program_with_1_and_a_traceback(tmp_path: Path):
    code = "import mixllm.cli.main as m; m.inspect._plan = lambda *a: 1 / 0; m.main()"
    (tmp_path / "plan.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(tmp_path / "plan.json")], capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_the_program_with_130_and_one_line(tmp_path: Path, sent: signal.Signals):
    code = (
        # Where the tests themselves run in the background, a child is started with Ctrl-C ignored.
        "import signal, time, mixllm.cli.main as m; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "m.inspect._plan = lambda *a: (print('ready', flush=True), time.sleep(60)); m.main()"
    )
    (tmp_path / "plan.json").write_text("{}")
    child = subprocess.Popen(
        [sys.executable, "-c", code, "inspect", str(tmp_path / "plan.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(sent)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (130, "error: interrupted\n")


def test_a_reader_that_goes_away_is_told_nothing(tmp_path: Path):
    random_salience({f"layers.{i}.q_proj": (3, 128) for i in range(3000)}).save(tmp_path / "salience")
    child = subprocess.Popen(
        program("plan", str(tmp_path / "salience")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr is not None and child.stderr.read() == b""
    assert child.wait(timeout=60) == 1


def end_with(tmp_path: Path, body: str, shell: str) -> subprocess.CompletedProcess[str]:
    """The program, with `body` for what it does, as /bin/sh starts it with `shell` after its name."""
    code = f"import sys, mixllm.cli.main as m; m.inspect._plan = lambda *a: {body}; m.main()"
    (tmp_path / "plan.json").write_text("{}")
    words = shlex.join([sys.executable, "-c", code, "inspect", str(tmp_path / "plan.json")])
    return subprocess.run(["sh", "-c", f"{words} {shell}"], capture_output=True, text=True)


def test_what_an_encoding_does_not_have_is_a_question_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = end_with(tmp_path, r"print('1 \xb1 2')", "")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 ? 2\n", "")


@pytest.mark.parametrize("body", ["m.inspect.stdout().print('x')", "m.inspect.print_json({})", "print('x')"])
def test_standard_streams_may_be_closed(tmp_path: Path, body: str):
    done = end_with(tmp_path, f"({body}, sys.stdin.read())", "<&- >&- 2>&-")
    assert done.returncode == 0


@pytest.mark.parametrize("body", ["m.inspect.stdout().print('x')", "print('x')"])
def test_a_pipe_that_nobody_reads_is_no_traceback(tmp_path: Path, body: str):
    # The reader is gone before anything is written.
    done = end_with(tmp_path, f"(__import__('time').sleep(0.3), {body})", "| true")
    assert done.stderr == ""


@pytest.mark.parametrize("body", ["m.inspect.stdout().print('x')", "print('x')"])
def test_a_full_disk_under_standard_output_is_one_line(tmp_path: Path, body: str):
    done = end_with(tmp_path, body, "> /dev/full")
    assert (done.returncode, done.stderr) == (2, "error: output: No space left on device\n")


def test_starting_is_quick_and_imports_no_torch():
    code = "import sys, mixllm.cli.main; print('torch' in sys.modules or 'transformers' in sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout == "False\n"
    # What it computed, not what it waited: the machine may be busy with others.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert (quantize.quantize.__doc__ or "").startswith("Quantize MODEL into the directory OUT.")


def test_a_tilde_is_the_home_that_a_shell_would_have_put_there(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tiny.out.parent))
    monkeypatch.chdir(tmp_path)
    measuring = ["--model=~/model", "--text=~/text.txt", "--window=32", "--samples=2", "--quiet"]
    for arguments in (
        ["inspect", "~/out"],
        ["plan", "~/out", "-o", "~/plan.json"],
        ["eval", "~/out", *measuring],
        ["compare", "~/out", "~/model", *measuring, "--json"],
    ):
        assert main.run(arguments) == 0, arguments
    assert (tiny.out.parent / "plan.json").is_file() and list(tmp_path.iterdir()) == []
    capsys.readouterr()
    for arguments in (["quantize", "~no-one/model", "-o", "out"], ["inspect", "~no-one/out"]):
        assert main.run(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ~no-one/") and said.count("\n") == 1
