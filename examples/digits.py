"""A model search over handwritten digits, its cross-validation folds spread over Ray tasks.

The data are the 1,797 digits (8 by 8 pixels) that ship with scikit-learn: the test set of the UCI "Optical Recognition
of Handwritten Digits". `python examples/digits.py` runs it on this machine; with --cluster NAME, on another one.
"""

import argparse

from slurm_ray_flow import slurm_ray_flow

GRID = [{"C": c, "gamma": gamma} for c in (0.1, 1.0, 10.0) for gamma in (0.0005, 0.001, 0.005)]


def fold_score(images, labels, train, test, settings):
    from sklearn.svm import SVC

    return SVC(**settings).fit(images[train], labels[train]).score(images[test], labels[test])


@slurm_ray_flow(name="digits")
def search(folds: int = 5) -> dict:
    """Find the support vector machine that reads handwritten digits best."""
    import ray
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedKFold

    digits = load_digits()
    images, labels = ray.put(digits.data), ray.put(digits.target)
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(digits.data, digits.target))
    remote_score = ray.remote(fold_score)
    tasks = {
        remote_score.remote(images, labels, train, test, settings): number
        for number, settings in enumerate(GRID)
        for train, test in splits
    }
    scores = [[] for _ in GRID]
    waiting = list(tasks)
    while waiting:
        (finished,), waiting = ray.wait(waiting)
        number = tasks[finished]
        scores[number].append(ray.get(finished))
        if len(scores[number]) == folds:
            mean = sum(scores[number]) / folds
            done, settings = len(tasks) - len(waiting), GRID[number]
            print(f"{done:4d} of {len(tasks)} folds  C={settings['C']:<4g}  gamma={settings['gamma']:<6g}  {mean:.2%}")
    means = [sum(values) / folds for values in scores]
    best = max(range(len(GRID)), key=means.__getitem__)
    return {"accuracy": means[best], **GRID[best], "digits": len(digits.target), "folds": folds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", default="local")
    parser.add_argument("--folds", type=int, default=5)
    chosen = parser.parse_args()
    result = search.with_options(cluster=chosen.cluster)(chosen.folds)
    print(
        f"\nBest: {result['accuracy']:.2%} of {result['digits']} digits read right over {result['folds']} folds, "
        f"with C={result['C']:g}, gamma={result['gamma']:g}."
    )
    print("See the run in the Prefect UI, logged in: .venv/bin/srf up --open")
