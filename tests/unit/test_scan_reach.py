"""Ray is started for functions that come to code which uses it, and for no others of the same file."""

import pytest

from scan_lab import install
from slurm_ray_flow.core.scan import FunctionSource, scan

OTHER = "def other():\n    import ray\n    return ray.get(1)\n"
PLAIN = "def f():\n    return 1\n" + OTHER


def uses_ray(folder, module="main", label="f", imported=()):
    target = FunctionSource(module, folder / "main.py", None, f"{module or '__main__'}.{label}", 1, imported)
    found = scan(target, search_path=[str(folder), str(folder / "site-packages")], project=folder, parsed={})
    return found.uses_ray


@pytest.mark.parametrize(
    ("code", "starts"),
    [
        (PLAIN, False),
        ("import ray\n" + PLAIN, False),
        ("import ray\ndef f():\n    return ray.get(1)\n", True),
        ("import ray as r\ndef f():\n    return r.get(1)\n", True),
        ("from ray import get\ndef f():\n    return get(1)\n", True),
        ("def f():\n    import ray\n", True),
        ("def f():\n    return other()\n" + OTHER, True),
        ("def f():\n    return g()\ndef g():\n    return other()\n" + OTHER, True),
        ("def f(x):\n    return x.other()\nclass A:\n    def other(self):\n        import ray\n", True),
        ("def f(x):\n    return A()\nclass A:\n    def __call__(self):\n        import ray\n", True),
        ("def f():\n    return TABLE['a']()\n" + OTHER + "TABLE = {'a': other}\n", True),
        ("def f():\n    return globals()['oth' + 'er']()\n" + OTHER, True),
        ("def f(x, y):\n    return getattr(x, y)()\n" + OTHER, True),
        ("def f(x):\n    return getattr(x, 'real')\n" + OTHER, False),
        ("import helper\ndef f():\n    return helper.harmless()\n", False),
        ("import helper\ndef f():\n    return helper.uses()\n", True),
        ("from helper import uses as u\ndef f():\n    return u()\n", True),
        ("from helper import *\ndef f():\n    return uses()\n", True),
        ("from ray import *\ndef f():\n    return 1\n", True),
        ("import ray\nray.init()\ndef f():\n    return 1\n", True),
        ("import ray\n@ray.remote\ndef g():\n    return 1\ndef f():\n    return 1\n", True),
        ("def keep(g):\n    return g\ndef f():\n    return 1\n@keep\n" + OTHER, True),
        ("try:\n    import ray\nexcept ImportError:\n    pass\n" + PLAIN, False),
        (PLAIN + "if __name__ == '__main__':\n    other()\n", False),
        (PLAIN + "x = other()\n", True),
        ("import booster\ndef f():\n    return 1\n", False),
        ("import booster\ndef f():\n    return booster.go()\n", True),
        ("def g():\n    import ray\nf = g\n", True),
        ("class f:\n    pass\ndef g():\n    import ray\n", False),
    ],
)
def test_what_a_function_comes_to_decides(tmp_path, write, code, starts):
    write("main.py", code)
    write("helper.py", "def harmless():\n    return 1\ndef uses():\n    import ray\n")
    install(write, "ray", {"ray/__init__.py": ""})
    install(write, "booster", {"booster.py": ""}, "Requires-Dist: ray")
    assert uses_ray(tmp_path) is starts


def test_of_a_script_what_stands_beside_the_functions_does_not_run_there(tmp_path, write):
    write("main.py", PLAIN + "print(f())\nprint(other())\n")
    install(write, "ray", {"ray/__init__.py": ""})
    assert uses_ray(tmp_path, module=None) is False
    assert uses_ray(tmp_path, module=None, label="other") is True
    assert uses_ray(tmp_path, module=None, imported=("ray",)) is True
    assert uses_ray(tmp_path, label="f") is True
    write("main.py", "def f():\n    return TABLE['a']()\n" + OTHER + "TABLE = {'a': other}\n")
    assert uses_ray(tmp_path, module=None) is True


@pytest.mark.parametrize("label", ["f.<locals>.g", "<lambda>", "unknown"])
def test_in_doubt_it_is_started(tmp_path, write, label):
    write("main.py", PLAIN)
    install(write, "ray", {"ray/__init__.py": ""})
    assert uses_ray(tmp_path, label=label) is True
