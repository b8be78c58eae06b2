"""Outcome log and arguments of a campaign: what is read is what was written, or an error that names the file."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_ray_flow.core.errors import GridError
from slurm_ray_flow.grid import arguments
from slurm_ray_flow.grid.arguments import BLOCK, ArgumentReader, ArgumentWriter
from slurm_ray_flow.grid.campaign_folder import BEING_MADE, CampaignFolder, sweep_folders
from slurm_ray_flow.grid.outcome_log import Frame, OutcomeLog, frame_at, read_frames
from slurm_ray_flow.grid.store import Store

FRAMES = [Frame(7, 1, 0.25, b"seven"), Frame(0, 2, 1e-9, b""), Frame(1 << 40, 3, 3600.0, b"x" * 3_000_000)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "campaign" / "outcomes"


def test_frames_are_read_as_they_were_written(path: Path) -> None:
    with OutcomeLog(path, 0) as log:
        places = log.append(FRAMES[:2]) + log.append(FRAMES[2:])
        log.sync()
        assert list(read_frames(path, 0, log.size)) == FRAMES
        assert [frame_at(path, *place) for place in places] == FRAMES
        assert list(read_frames(path, places[1].offset, places[2].offset)) == FRAMES[1:2]
        assert log.size == path.stat().st_size == sum(place.length for place in places)
    assert path.stat().st_mode & 0o077 == path.parent.stat().st_mode & 0o077 == 0


def test_what_was_not_committed_is_cut_off(path: Path) -> None:
    with OutcomeLog(path, 0) as log:
        [first] = log.append(FRAMES[:1])
        log.append(FRAMES[1:])
    with OutcomeLog(path, first.length) as log:
        assert path.stat().st_size == first.length
        log.append(FRAMES[1:2])
        assert list(read_frames(path, 0, log.size)) == FRAMES[:2]


def test_a_log_that_is_shorter_than_what_was_committed_is_not_gone_on_with(path: Path) -> None:
    with OutcomeLog(path, 0) as log:
        log.append(FRAMES[:1])
        size = log.size
    with pytest.raises(GridError) as caught:
        OutcomeLog(path, size + 1)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("position", range(35))
def test_each_damaged_byte_is_found(path: Path, position: int) -> None:
    with OutcomeLog(path, 0) as log:
        log.append(FRAMES[:1])
        size = log.size
    content = bytearray(path.read_bytes())
    assert size == len(content) == 35
    content[position] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(GridError) as caught:
        list(read_frames(path, 0, size))
    assert caught.value.where == str(path)


def test_a_missing_or_short_log_is_told(path: Path) -> None:
    with pytest.raises(GridError):
        list(read_frames(path, 0, 10))
    with OutcomeLog(path, 0) as log:
        [place] = log.append(FRAMES[:1])
    with pytest.raises(GridError):
        list(read_frames(path, 0, place.length + 5))
    with pytest.raises(GridError):
        frame_at(path, 0, place.length - 1)


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write is cut short in its middle, too."""
    program = """
import resource, signal, sys
from pathlib import Path
from slurm_ray_flow.core.errors import GridError
from slurm_ray_flow.grid.campaign_folder import BEING_MADE, CampaignFolder, sweep_folders
from slurm_ray_flow.grid.outcome_log import Frame, OutcomeLog, read_frames
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
log = OutcomeLog(path, 0)
log.append([Frame(1, 1, 0.0, b"one")])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    log.append([Frame(2, 1, 0.0, b"x" * 5000)])
except GridError as error:
    assert error.where == str(path), error
else:
    raise SystemExit("there is no error")
assert path.stat().st_size == log.size
log.append([Frame(3, 1, 0.0, b"three")])
assert [frame.number for frame in read_frames(path, 0, log.size)] == [1, 3]
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "log")], check=True, timeout=60)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 2 * BLOCK), min_size=1, max_size=4), st.integers(0, 1 << 30))
def test_arguments_are_read_whatever_parts_they_came_in(tmp_path_factory, parts, seed):
    folder, total = tmp_path_factory.mktemp("campaign"), 0
    for part in parts:
        with ArgumentWriter(folder, total) as writer:
            assert [writer.add(b"%d" % (total + number)) for number in range(part)] == list(range(total, total + part))
        total += part
    reader, chance = ArgumentReader(folder), random.Random(seed)
    numbers = chance.sample(range(total), min(total, 50))
    assert reader.bytes_of(numbers) == [(number, b"%d" % number) for number in numbers]
    with pytest.raises(GridError):
        reader.bytes_of([total])


def test_a_reader_sees_items_that_were_added_later(tmp_path: Path) -> None:
    reader = ArgumentReader(tmp_path)
    for number in range(3):
        with ArgumentWriter(tmp_path, number) as writer:
            writer.add(b"%d" % number)
        assert reader.bytes_of([number]) == [(number, b"%d" % number)]


def test_arguments_that_no_campaign_has_are_written_over(tmp_path: Path) -> None:
    with ArgumentWriter(tmp_path, 0) as writer:
        for _ in range(BLOCK + 5):
            writer.add(b"of a client that was killed")
    with ArgumentWriter(tmp_path, 3) as writer:
        writer.add(b"mine")
    assert [data for _, data in ArgumentReader(tmp_path).bytes_of([2, 3])] == [b"of a client that was killed", b"mine"]


def test_two_clients_do_not_add_items_at_the_same_time(tmp_path: Path) -> None:
    with ArgumentWriter(tmp_path, 0) as writer:
        writer.add(b"mine")
        with pytest.raises(GridError, match="another process"):
            ArgumentWriter(tmp_path, 0)
    assert ArgumentReader(tmp_path).bytes_of([0]) == [(0, b"mine")]
    with pytest.raises(ZeroDivisionError), ArgumentWriter(tmp_path, 1):
        raise ZeroDivisionError
    ArgumentWriter(tmp_path, 1).close()


def test_few_blocks_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "KEPT_BYTES", 2 * BLOCK * (1 + arguments.ITEM_BYTES))
    with ArgumentWriter(tmp_path, 0) as writer:
        for _ in range(5 * BLOCK):
            writer.add(b"x")
    reader = ArgumentReader(tmp_path)
    for _ in range(2):
        assert len(reader.bytes_of(range(5 * BLOCK))) == 5 * BLOCK
    assert len(reader._kept) == 2


@pytest.mark.parametrize("damage", [b"", b"nothing of ours", b'{"format": 1, "items": [[5, 1]]}\nx'])
def test_damaged_arguments_are_told_with_their_file(tmp_path: Path, damage: bytes) -> None:
    with ArgumentWriter(tmp_path, 0) as writer:
        writer.add(b"mine")
    (tmp_path / "arguments" / "000000").write_bytes(damage)
    for use in (lambda: ArgumentReader(tmp_path).bytes_of([0]), lambda: ArgumentWriter(tmp_path, 1)):
        with pytest.raises(GridError) as caught:
            use()
        assert caught.value.where.endswith("arguments/000000")


CLIENT = """
import sys
from slurm_ray_flow.grid.arguments import ArgumentWriter
from slurm_ray_flow.grid.campaign_folder import CampaignFolder
folder = CampaignFolder(sys.argv[1])
with folder.being_made():
    ArgumentWriter(folder.path).add(b"x")
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_client_has_left_is_removed_and_nothing_else(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SRF_HOME", str(tmp_path))
    killed, begun, other = CampaignFolder("killed"), CampaignFolder("begun"), CampaignFolder("of-another-database")
    other.outcomes.parent.mkdir(parents=True)
    with begun.being_made():
        pass
    assert not list(begun.path.iterdir())
    command = [sys.executable, "-c", CLIENT, "killed"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"begun\n"
        sweep_folders(lambda _: False, grace=0.0)
        assert killed.path.exists(), "it is being written"
        client.kill()
    sweep_folders(lambda _: False, grace=60.0)
    sweep_folders(lambda name: name == "killed", grace=0.0)
    assert killed.path.exists(), "it is too new, or the engine has its campaign"
    (killed.path / BEING_MADE).touch()
    sweep_folders(lambda _: False, grace=0.0)
    assert not killed.path.exists()
    assert begun.path.exists() and other.path.exists()


def test_what_stands_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "campaign"
    uses = (
        lambda: OutcomeLog(below / "outcomes", 0),
        lambda: ArgumentWriter(below),
        lambda: Store(f"sqlite:///{below}/grid.db").migrate(),
    )
    for use in uses:
        with pytest.raises(GridError) as caught:
            use()
        assert str(tmp_path / "file") in caught.value.where
        assert caught.value.advice
