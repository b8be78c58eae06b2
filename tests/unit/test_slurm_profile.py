"""Profiles of sites: their file format, and those that come along."""

from __future__ import annotations

import pytest

from slurm_ray_flow import OptionError
from slurm_ray_flow.deployments.profiles import load_profile, parse_profile, profile_names


def test_a_profile_gives_the_fields_it_sets() -> None:
    text = "host: login.site.org\npartition: cpu\naccount:\nmodules: [gcc, python/3.11]\nsetup: ['umask 077']\n"
    assert parse_profile(text) == {
        "host": "login.site.org",
        "partition": "cpu",
        "modules": ["gcc", "python/3.11"],
        "setup": ["umask 077"],
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_profile_sets_nothing(text: str) -> None:
    assert parse_profile(text) == {}


@pytest.mark.parametrize(
    ("text", "what", "advice"),
    [
        ("partitions: cpu\n", "a field 'partitions'", "did you mean 'partition'?"),
        ("zzz: 1\n", "a field 'zzz'", "the fields are host, partition"),
        ("partitions:\n", "a field 'partitions'", "did you mean 'partition'?"),
        ("account: 12\n", "account must be a text, not 12", 'account: "..."'),
        ("modules: gcc\n", "modules must be a list of texts, not 'gcc'", 'modules: ["..."]'),
        ("modules: [3.11]\n", "modules must be a list of texts", 'modules: ["..."]'),
        ("- cpu\n", "is no table", "field: value"),
        ("host: [\n", "is no YAML", "field: value"),
        ("host: !!python/object:os.system x\n", "is no YAML", "field: value"),
    ],
)
def test_what_can_not_be_meant_is_refused_with_the_file(text: str, what: str, advice: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_profile(text, where="site.yaml")
    assert what in caught.value.what
    assert advice in caught.value.advice
    assert caught.value.where == "site.yaml"


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_that_comes_along_can_be_loaded(name: str) -> None:
    assert load_profile(name)["host"]


def test_a_profile_that_there_is_none_of_is_refused_with_those_there_are() -> None:
    with pytest.raises(OptionError) as caught:
        load_profile("atlantis")
    assert "curnagl" in caught.value.advice
