"""Other people's conformance suites; run by ``make conformance``.

Arguments: the Python of the environment that has the suites, and the folder whose node_modules has those for
Node.
"""

from __future__ import annotations

import sys

from tests.conformance import compatcanary, llm_comply


def main(python: str, node_folder: str) -> int:
    """Run every suite; the number of results that were not expected."""
    wrong = [*llm_comply.wrong(python), *compatcanary.wrong(node_folder)]
    print(*wrong or ["all as expected"], sep="\n")
    return len(wrong)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
