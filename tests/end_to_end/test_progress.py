"""What a launch shows: on a real terminal, in a pipe, and when it is told to be silent."""

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

SCRIPT = """
import sys, time
from slurm_ray_flow.core.launch_events import *
from slurm_ray_flow.interface.progress import terminal_display
stream_to(terminal_display())
publish(Note("before"))
publish(RunBegan("0123456789", "function", "local", "http://localhost/run"))
publish(StepStarted("scan_imports"))
for number in range(7):
    publish(Warned(f"warning {number}"))
publish(Warned("warning 0"))
publish(Note("first note"))
publish(Note("last note"))
publish(StepStarted("sync_files"))
publish(StepStarted("sync_files"))
publish(StepStarted("execute_call"))
time.sleep(0.8)
publish(Output(b"line\\nno end"))
publish(Output(b"", last=True))
if "fail" in sys.argv:
    publish(StepFailed())
publish(StepStarted("fetch_outcome"))
publish(RunEnded(ValueError("of the function") if "fail" in sys.argv else None))
"""


def in_terminal(*arguments, columns=80):
    """Run the script on a terminal of its own; everything that it wrote, escape sequences included."""
    child, descriptor = pty.fork()
    if child == 0:
        os.environ.update(SRF_PROGRESS="auto", TERM="xterm-256color", COLUMNS=str(columns))
        os.execv(sys.executable, [sys.executable, "-c", SCRIPT, *arguments])
    written, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline and select.select([descriptor], [], [], 60)[0]:
        try:
            written += os.read(descriptor, 65536)
        except OSError:  # the other side has closed
            break
    os.waitpid(child, 0)
    os.close(descriptor)
    return written.decode()


def final(written):
    """What stands on the screen in the end."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", written).replace("\r\n", "\n")
    return [line.rpartition("\r\x1b[2K")[2] for line in text.split("\n")]


def in_pipe(mode, *arguments):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, "SRF_PROGRESS": mode},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if mode != "off" else subprocess.PIPE,
        text=True,
        timeout=180,
        check=True,
    )


def test_a_terminal_shows_the_step_under_way_and_leaves_nothing_of_it():
    written = in_terminal()
    assert re.search("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] execute_call", written)
    assert not re.search("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", "\n".join(final(written)))


def test_terminal_and_pipe_show_the_same_lines():
    def without_times(lines):
        return [re.sub(r"\d\.\d s", "T s", line).rstrip() for line in lines]

    assert without_times(final(in_terminal())) == without_times(in_pipe("auto").stdout.split("\n"))


def test_warnings_stand_below_their_step_and_are_few():
    lines = in_pipe("plain").stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if "scan_imports" in line)
    assert lines[at].endswith("last note")
    assert [line.strip() for line in lines[at + 1 : at + 6]] == [f"warning {number}" for number in range(5)]
    assert "2 more" in lines[at + 6]


def test_a_line_without_its_end_gets_one():
    lines = in_pipe("plain").stdout.splitlines()
    assert "no end" in lines


def test_a_step_that_is_tried_again_is_not_called_done():
    marks = [line.split()[0] for line in in_pipe("plain").stdout.splitlines() if "sync_files" in line]
    assert len(marks) == 2
    assert marks[0] != marks[1]


def test_the_functions_own_exception_is_a_failure_of_the_call_and_not_of_the_last_step():
    lines = in_pipe("plain", "fail").stdout.splitlines()
    marks = {words[1]: words[0] for words in map(str.split, lines) if words[1:]}
    assert marks["fetch_outcome"] == marks["scan_imports"]
    assert marks["execute_call"] not in {marks["scan_imports"], marks["sync_files"]}
    assert lines[-1].startswith("ValueError")


def test_lines_of_launches_at_once_say_whose_they_are():
    both = """
from slurm_ray_flow.core.launch_events import *
from slurm_ray_flow.interface.progress import terminal_display
one, other = terminal_display(), terminal_display()
for show, run_id in ((one, "11111111-"), (other, "22222222-")):
    show(RunBegan(run_id, "function", "local", ""))
    show(StepStarted("scan_imports"))
one(RunEnded(None))
other(RunEnded(None))
"""
    environment = {**os.environ, "SRF_PROGRESS": "plain"}
    done = subprocess.run([sys.executable, "-c", both], env=environment, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert "11111111" in lines[2]
    assert "11111111" in lines[3]
    assert "22222222" not in lines[4]  # by then it is alone


def test_off_shows_what_the_function_wrote_byte_for_byte():
    done = in_pipe("off")
    assert done.stdout == "line\nno end"
    assert done.stderr == ""


@pytest.mark.parametrize("how", ["Note", "Warned", "Waiting"])
def test_in_a_pipe_what_a_step_waits_for_or_warns_of_is_seen_meanwhile(how):
    waits = f"""
import sys
from slurm_ray_flow.core.launch_events import *
from slurm_ray_flow.interface.progress import terminal_display
stream_to(terminal_display())
publish(RunBegan("0123456789", "function", "desi", ""))
publish(StepStarted("turn"))
publish({how}("waiting for desi: held by alice"))
sys.stdin.read()
publish(StepStarted("start_ray"))
publish(RunEnded(None))
"""
    environment = {**os.environ, "SRF_PROGRESS": "plain"}
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", waits], env=environment, **pipes) as waiting:
        readable = select.select([waiting.stderr], [], [], 60)[0]
        assert readable and waiting.stderr.readline() == "function on desi, run 01234567\n"
        assert select.select([waiting.stderr], [], [], 60)[0], "nothing was said"
        assert waiting.stderr.readline() == "      waiting for desi: held by alice\n"
        rest, _ = waiting.communicate("", timeout=180)[::-1]
    assert rest.count("held by alice") == 0
