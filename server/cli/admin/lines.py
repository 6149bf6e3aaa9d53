"""One line for people about each thing that was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from manylora.server.client.errors import Unusable

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

Answer = Mapping[str, Any]


def size(count: float) -> str:
    """Bytes in the unit that fits: ``9.4 MiB``."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 or count >= 100 else f"{count:.1f} {_UNITS[unit]}"


def share(part: float) -> str:
    """A share as a percentage: ``90%``, ``0.5%``."""
    return f"{100 * part:.3g}%"


def place(adapter: Answer) -> str:
    """Where the fastest copy of an adapter is, and its bytes: ``device 14.0 KiB``."""
    tiers = adapter["residency"]
    where = next((tier for tier in ("device", "memory", "disk") if tiers[tier]), None)
    return "nowhere" if where is None else f"{where} {size(tiers[where])}"


def residency_line(adapter: Answer) -> str:
    """Where an adapter is now, after it was pinned, unpinned, prefetched or evicted."""
    pinned = ", pinned" if adapter["pinned"] else ""
    return f"{adapter['id']}: {place(adapter)}{pinned}"


def serving_line(adapter: Answer) -> str:
    """Which revision an adapter serves, after it was rolled back."""
    return f"{adapter['id']} serves revision {adapter['revision']}"


def exported_line(answer: Answer) -> str:
    """Where a standalone model is, or how far it has got, and what the comparison found."""
    if answer["state"] != "ready":
        return f"{answer['of']} is being written to {answer['directory']}"
    files = "1 file" if answer["files"] == 1 else f"{answer['files']} files"
    written = f"{answer['of']} is in {answer['directory']}: {size(answer['bytes'])} in {files}"
    warning = answer.get("warning")  # a server of an older version says nothing of it
    weak = "" if warning is None else f"\nwarning: {warning}"
    found = answer["measured"]
    if found is None:
        return f"{written}, not compared{weak}"
    return (
        f"{written}; its logits differ by {found['logit_difference']:.2g} of their spread from the adapter's "
        f"(the adapter's own effect: {found['adapter_effect']:.2g}), "
        f"same likeliest token in {share(found['top1_agreement'])} of {found['rows']} rows{weak}"
    )


def deleted_line(answer: Answer) -> str:
    """What deleting an adapter has freed, and what still runs."""
    freed = f"{answer['id']} is deleted, {size(answer['bytes_freed'])} of device memory freed"
    if answer["drained"]:
        return freed
    return f"{freed}; {answer['running']} requests still run and free the rest when they end"


def published_line(before: Answer | None, answer: Answer) -> str:
    """What publishing an adapter has come to; ``before`` is the adapter as it was, None for a new one."""
    name, revision = answer["id"], answer["revision"]
    publication = answer["publication"]
    if publication is not None and publication["state"] == "loading":
        return f"{name} is being loaded; see: manylora adapters show {name}"
    facts = (
        f"rank {answer['rank']}, {answer['modules']} of {answer['total_modules']} modules, {place(answer)}"
    )
    earlier = None if before is None else before["revision"]
    if earlier == revision:
        return f"{name} is unchanged: revision {revision}"
    news = "" if earlier is None else f" in place of {earlier}"
    return f"{name} serves revision {revision}{news}: {facts}"


def alias_line(alias: Answer) -> str:
    """What an alias stands for: ``live -> 90% support, 10% legal``."""
    arms = alias["split"]
    if len(arms) == 1:
        return f"{alias['id']} -> {arms[0]['target']}"
    return f"{alias['id']} -> " + ", ".join(f"{share(arm['share'])} {arm['target']}" for arm in arms)


def arms_of(targets: Sequence[str]) -> str | list[tuple[str, float]]:
    """What an alias is to stand for, from ``TARGET`` or several ``TARGET=SHARE``.

    Raises:
        Unusable: several targets, and one has no share or one that is no number.
    """
    if len(targets) == 1 and "=" not in targets[0]:
        return targets[0]
    return [_arm(text) for text in targets]


def _arm(text: str) -> tuple[str, float]:
    target, _, part = text.rpartition("=")
    try:
        number = float(part)
    except ValueError:
        target = ""
    if not target:
        raise Unusable(f"{text!r} is not TARGET=SHARE, such as support@3f9a1c2e=0.9")
    return target, number
