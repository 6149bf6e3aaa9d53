"""The tables of docs/adapters.md, which say what of PEFT is served: from the table of the parser.

Run as a module it rewrites them.
"""

from __future__ import annotations

import json
from typing import Any

from manylora.adapters.format.config.soft_prompts import SOFT_PROMPT_OPTIONS
from manylora.adapters.format.config.support import INITS, Option, Treatment
from manylora.adapters.format.kinds.rows import EVERY_KIND
from manylora.adapters.format.kinds.table import KINDS, KINDS_OF_UPDATES, OPTIONS
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "adapters.md"
RESULTS = ROOT / "bench" / "results"


def kinds_table() -> str:
    """The table of docs/adapters.md that says what the further kinds are and cost, as Markdown."""
    lines = ["| kind | change ΔW of a weight | rank pages of a module | cost |", "|---|---|---|---|"]
    lines += [f"| `{k.peft_type}` | {k.form} | {k.rank} | {k.cost} |" for k in KINDS_OF_UPDATES.values()]
    return "\n".join(lines) + "\n"


def costs_table() -> str:
    """What each of those kinds costs, as Markdown: from the newest result of `bench.kinds` of all of them."""
    result = _newest_costs()
    if result is None:
        return "Not measured yet.\n"
    options, machine = result["options"], result["machine"]
    base = sum(row["base_us_per_token"] for row in result["rows"]) / len(result["rows"])
    lines = [
        f"{result['base']} on {machine['cpu']}, {machine['cores']} cores: {options['batch']} sequences of "
        f"{options['context']} tokens decode,",
        "all with the same adapter of random numbers, which changes every linear layer. The base alone takes "
        f"{_milliseconds(base)} ms a token.",
        "",
        "| kind | trained numbers | adapter memory, MiB | more a token, ms | with LoRA of about as many |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row['kind']}` | {row['trained']:,} | {row['memory'] / 2**20:.1f} "
        f"| {_milliseconds(row['us_per_token'])} "
        f"| {_milliseconds(row['lora_us_per_token'])} (rank {row['lora_rank']}) |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + "\n"


def _newest_costs() -> dict[str, Any] | None:
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*-kinds.json"))]
    whole: list[dict[str, Any]] = [result for result in found if result["options"].get("all_kinds")]
    return whole[-1] if whole else None


def _milliseconds(microseconds: float) -> str:
    return f"{microseconds / 1000:.2f}"


def support_tables() -> str:
    """The tables of docs/adapters.md that say which options are served, as Markdown."""
    inits = [(f"`{i.value}{'*' if i.prefix else ''}`", i.treatment, i.note, i.remedy) for i in INITS]
    kinds = [(f"`{k.peft_type}`", k.treatment, k.note, k.remedy) for k in KINDS]
    sections = (
        *(
            (f"Options of a config of {kind}", "option", [_option_row(option) for option in options])
            for kind, options in OPTIONS.items()
            if kind not in KINDS_OF_UPDATES and kind not in SOFT_PROMPT_OPTIONS
        ),
        ("Options that all further kinds have", "option", [_option_row(option) for option in EVERY_KIND]),
        *(
            (
                f"Further options of a config of {kind.peft_type}",
                "option",
                [_option_row(option) for option in kind.options if option not in EVERY_KIND],
            )
            for kind in KINDS_OF_UPDATES.values()
        ),
        ("Options of a config of virtual tokens", "option", _soft_prompt_rows()),
        ("Initializations (`init_lora_weights`)", "value", inits),
        ("Kinds (`peft_type`)", "kind", kinds),
    )
    return "\n\n".join(_table(title, head, rows) for title, head, rows in sections) + "\n"


def _soft_prompt_rows() -> list[tuple[str, Treatment, str, str]]:
    """The options of all those kinds, most of which are one option."""
    unique = {option.key: option for options in SOFT_PROMPT_OPTIONS.values() for option in options}
    return [_option_row(option) for option in unique.values()]


def _option_row(option: Option) -> tuple[str, Treatment, str, str]:
    return f"`{option.key}`", option.treatment, option.note, option.remedy


def _table(title: str, head: str, rows: list[tuple[str, Treatment, str, str]]) -> str:
    lines = [f"### {title}", "", f"| {head} | | how, or why not | instead |", "|---|---|---|---|"]
    lines += [f"| {name} | {treatment.value} | {note} | {remedy} |" for name, treatment, note, remedy in rows]
    return "\n".join(lines)


def rewrite() -> None:
    """Put what the code says between the marks of the page."""
    page = PAGE.read_text()
    tables = {
        "further kinds": kinds_table(),
        "costs of kinds": costs_table(),
        "options of kinds": support_tables(),
    }
    for name, table in tables.items():
        before, rest = page.split(f"<!-- {name} -->")
        _, after = rest.split(f"<!-- /{name} -->")
        page = f"{before}<!-- {name} -->\n\n{table}\n<!-- /{name} -->{after}"
    PAGE.write_text(page)


if __name__ == "__main__":
    rewrite()
