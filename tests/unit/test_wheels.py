"""What a cluster's platform takes, and which requirements only home can read."""

import pytest

from slurm_ray_flow.blocks.environments import ask_uv
from slurm_ray_flow.core.environment import WheelPlatform, is_local, local_links, without_wheel
from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.remote.environment.environments import advice

DEBIAN = WheelPlatform.of("3.11.7", "cp311-linux_x86_64", "glibc 2.36")
OLD = WheelPlatform.of("3.9.2", "cp39-linux_aarch64", "glibc 2.17")
ALPINE = WheelPlatform.of("3.12.1", "cp312-linux_x86_64", "")


@pytest.mark.parametrize(
    ("target", "wheel", "takes"),
    [
        (DEBIAN, "six-1.16.0-py2.py3-none-any.whl", True),
        (DEBIAN, "numpy-2.0.2-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        (DEBIAN, "x-1-cp37-abi3-manylinux2014_x86_64.whl", True),
        (DEBIAN, "x-1-cp311-cp311-linux_x86_64.whl", True),
        (DEBIAN, "x-1-cp310-cp310-manylinux2014_x86_64.whl", False),
        (DEBIAN, "x-1-cp311-cp311-manylinux_2_39_x86_64.whl", False),
        (DEBIAN, "x-1-cp311-cp311-musllinux_1_2_x86_64.whl", False),
        (DEBIAN, "x-1-cp311-cp311-macosx_11_0_arm64.whl", False),
        (DEBIAN, "x-1-cp311-cp311-manylinux2014_aarch64.whl", False),
        (OLD, "x-1-cp39-cp39-manylinux2014_aarch64.whl", True),
        (OLD, "x-1-cp39-cp39-manylinux_2_28_aarch64.whl", False),
        (ALPINE, "x-1-cp312-cp312-musllinux_1_2_x86_64.whl", True),
        (ALPINE, "x-1-cp312-cp312-manylinux2014_x86_64.whl", False),
    ],
)
def test_takes(target, wheel, takes):
    assert target.takes(wheel) is takes


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (DEBIAN, "x86_64-manylinux_2_36"),
        (WheelPlatform.of("3.11.7", "cp311-linux_x86_64", "glibc 2.30"), "x86_64-manylinux_2_28"),
        (WheelPlatform.of("3.11.7", "cp311-linux_x86_64", "glibc 2.12"), "x86_64-manylinux2014"),
        (OLD, "aarch64-manylinux_2_17"),
        (ALPINE, "x86_64-unknown-linux-musl"),
    ],
)
def test_uv_has_a_name_for_it(target, name):
    assert target.uv_platform == name


def test_paths_at_home():
    assert is_local("mine @ file:///home/me/mine")
    assert not is_local("mine @ https://host.invalid/mine.zip")
    assert not is_local("six==1.0 ; python_version > '3'")
    options = ["--index-url https://a.invalid", "--find-links /data/wheels", "--find-links https://b.invalid"]
    assert local_links(options) == ["/data/wheels"]


def test_the_package_without_a_wheel_is_named():
    said = "ERROR: Could not find a version (from versions: none)\nERROR: No matching distribution found for x==1.0\n"
    assert without_wheel(said) == "x==1.0"
    assert without_wheel("ERROR: 403 Forbidden") == ""


def test_without_internet_at_home_nobody_is_told_to_send_packages_from_there(monkeypatch, tmp_path):
    for name, value in {"UV_CACHE_DIR": str(tmp_path / "cache"), "UV_HTTP_RETRIES": "0", "UV_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    wanted = tmp_path / "wanted.in"
    wanted.write_text("six")
    with pytest.raises(DependencyError) as caught:
        ask_uv(["pip", "compile", "--index-url", "https://127.0.0.1:9/simple", str(wanted)])
    assert "network" in caught.value.advice
    said = str(caught.value)
    assert 'wheels="upload"' in advice(said, {"options": []})
    assert 'wheels="upload"' not in advice(said, {"options": ["--no-index", "--no-deps"]})


def test_what_uv_refuses_names_a_place():
    with pytest.raises(DependencyError) as caught:
        ask_uv(["pip", "compile", "/nowhere/requirements.txt"])
    assert caught.value.where == "this machine"
