"""An ordinary program does there what it does here: the plain call says what is right."""

from pathlib import Path

PATTERNS = Path(__file__).parent / "project" / "patterns.py"


def test_a_script_of_everyday_patterns(script):
    done = script(PATTERNS.read_text(), "--rate", 5)
    assert done.stdout.strip().endswith("the same"), done.stdout + done.stderr


def test_ray_at_the_top_of_a_script(script):
    done = script(
        """
import ray
from slurm_ray_flow import slurm_ray_flow
FACTOR = 3
@ray.remote
def scaled(number): return number * FACTOR
@ray.remote(num_cpus=0)
class Counter:
    def __init__(self, start): self.count = start
    def add(self, number): self.count += number; return self.count
@slurm_ray_flow(cluster="local")
def total():
    counter = Counter.remote(10)
    ray.get([counter.add.remote(n) for n in ray.get([scaled.remote(n) for n in range(3)])])
    return ray.get(counter.add.remote(0))
@slurm_ray_flow(cluster="local")
def forgotten(kind):
    return {"kept": [scaled.remote(1) if kind == "reference" else Counter.remote(1)]}
if __name__ == "__main__":
    print("total", total())
    for kind in ("reference", "actor"):
        try: print(forgotten(kind))
        except Exception as error: print(type(error).__name__, str(error))
"""
    )
    assert "total 19" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("ResultError") == 2
    assert done.stdout.count("ray.get") >= 2
    assert "value['kept'][0]" in done.stdout


def test_what_means_nothing_at_home_says_so(script):
    done = script(
        """
import threading
from slurm_ray_flow import slurm_ray_flow
class Model:
    def __init__(self): self.lock, self.weights = threading.RLock(), [1, 2]
@slurm_ray_flow(cluster="local")
def give(kind):
    return {"lock": threading.Lock, "file": lambda: open("x", "w"), "generator": lambda: (n for n in ())}[kind]()
@slurm_ray_flow(cluster="local")
def model(): return Model()
if __name__ == "__main__":
    for kind in ("lock", "file", "generator"):
        try: print("came", give(kind))
        except Exception as error: print(type(error).__name__, str(error))
    found = model()
    with found.lock: print("model", type(found) is Model, found.weights)
"""
    )
    assert done.stdout.count("ResultError") == 3, done.stdout + done.stderr
    assert "came" not in done.stdout
    assert "model True [1, 2]" in done.stdout


def test_a_module_that_reads_the_command_line(script, tmp_path):
    (tmp_path / "settings.py").write_text(
        "import argparse\np = argparse.ArgumentParser()\n"
        "p.add_argument('--data', required=True)\nDATA = p.parse_args().data\n"
    )
    (tmp_path / "train.py").write_text(
        "from settings import DATA\nfrom slurm_ray_flow import slurm_ray_flow\n"
        "@slurm_ray_flow(cluster='local')\ndef data(): return DATA\n"
    )
    text = """
import sys
from train import data
print("data", data())
sys.argv[1:] = ["--other"]
try: data()
except Exception as error: print(error)
"""
    done = script(text, "--data", "x.csv")
    assert "data x.csv" in done.stdout, done.stdout + done.stderr
    assert "the following arguments are required: --data" in done.stdout


def test_joblib_over_a_function_of_the_script(script):
    """Its workers run the script to find the function; numpy has loaded C++'s library, whose streams are left alone."""
    done = script(
        """
import joblib, numpy
from slurm_ray_flow import slurm_ray_flow
def square(number): return number * number
@slurm_ray_flow(cluster="local")
def squares():
    return joblib.Parallel(n_jobs=2)(joblib.delayed(square)(number) for number in range(4)), numpy.linalg.norm([3, 4])
if __name__ == "__main__":
    handle = squares.submit()
    print(handle.result(), "Fatal" in "".join(handle.logs()))
"""
    )
    assert "([0, 1, 4, 9], 5.0) False" in done.stdout.replace("np.float64(5.0)", "5.0"), done.stdout + done.stderr
