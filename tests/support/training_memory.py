"""A process that trains so many jobs at once, and prints how much memory it had at most, in bytes.

python -m tests.support.training_memory MODEL DIRECTORY JOBS
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from manylora.adapters.registry.registry import Registry
from manylora.server.jobs.training_config import place_of
from tests.support.tuning import ROWS
from tests.support.tuning_workers import Setup


def main() -> None:
    model, directory, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    numbers = {"n_epochs": 1, "batch_size": 5, "learning_rate_multiplier": 1.0}
    with Registry(f"sqlite:///{directory}/registry.db") as registry:
        setup = Setup(registry, place_of(model, directory, "fp32", "cpu"))
        jobs = [setup.add(ROWS[:10], seed=seed, hyperparameters=numbers) for seed in range(count)]
        setup.worker(at_once=count).run()
        assert all(setup.is_trained(job) for job in jobs)
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main()
