"""One line for people about each tenant and key."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

Answer = Mapping[str, Any]

# No value has a comma: names of tenants and of models can't.
USAGE_HEAD: Final = "start,tenant,model,requests,prompt_tokens,cached_tokens,completion_tokens"


def tenant_line(tenant: Answer) -> str:
    """What a tenant may use: ``acme: acme/*, shared, and the base model``."""
    things = list(tenant["adapters"])
    if tenant["base"]:
        things.append("and the base model" if things else "the base model alone")
    limits = [f"{number} {what}" for what, number in tenant["limits"].items() if number is not None]
    notes = "".join(f"  {key}={value}" for key, value in tenant["metadata"].items())
    shares = f", weight {tenant['weight']:g}" if tenant["weight"] != 1 else ""
    within = f"; at most {', '.join(limits).replace('_', ' ')}" if limits else ""
    for name, each in tenant["adapter_limits"].items():
        of_it = ", ".join(f"{number} {what}" for what, number in each.items())
        within += f"; with {name} {of_it.replace('_', ' ')}"
    default = "" if tenant["default_adapter"] is None else f", by default {tenant['default_adapter']}"
    return f"{tenant['name']}: {', '.join(things) or 'nothing'}{default}{shares}{within}{notes}"


def sheet(tenant: Answer) -> str:
    """A tenant, and a line for each of its keys."""
    return "\n".join([tenant_line(tenant), *(f"  {key_line(key)}" for key in tenant["keys"])])


def key_line(key: Answer) -> str:
    """A key by what it begins with: ``key-3f…  ml-4kzTq0x…  infer  until 2026-12-24 18:00``."""
    until = "for ever" if key["expires"] is None else f"until {_told(key['expires'])}"
    return f"{key['id']}  {key['prefix']}…  {','.join(key['scopes'])}  since {_told(key['created'])}, {until}"


def made_line(key: Answer) -> str:
    """A new key: the key itself on a line of its own, so that it can be copied."""
    return f"{key_line(key)}\n{key['key']}"


def usage_line(record: Answer) -> str:
    """What a tenant took of a model, as comma-separated values in the order of :data:`USAGE_HEAD`."""
    start = record["start"]
    at = "" if start is None else time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(start))
    return ",".join([at, *(str(record[what]) for what in USAGE_HEAD.split(",")[1:])])


def _told(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
