"""The tables of docs/adapters.md, which say what of PEFT is served: from the table of the parser.

Run as a module it rewrites them.
"""

from __future__ import annotations

from manylora.adapters.format.config.soft_prompts import SOFT_PROMPT_OPTIONS
from manylora.adapters.format.config.support import INITS, Option, Treatment
from manylora.adapters.format.kinds.rows import EVERY_KIND
from manylora.adapters.format.kinds.table import KINDS, KINDS_OF_UPDATES, OPTIONS
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "adapters.md"


def kinds_table() -> str:
    """The table of docs/adapters.md that says what the further kinds are and cost, as Markdown."""
    lines = ["| kind | change ΔW of a weight | rank pages of a module | cost |", "|---|---|---|---|"]
    lines += [f"| `{k.peft_type}` | {k.form} | {k.rank} | {k.cost} |" for k in KINDS_OF_UPDATES.values()]
    return "\n".join(lines) + "\n"


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
    for name, table in {"further kinds": kinds_table(), "options of kinds": support_tables()}.items():
        before, rest = page.split(f"<!-- {name} -->")
        _, after = rest.split(f"<!-- /{name} -->")
        page = f"{before}<!-- {name} -->\n\n{table}\n<!-- /{name} -->{after}"
    PAGE.write_text(page)


if __name__ == "__main__":
    rewrite()
