"""What of a request goes to the audit log: who did what, from where, and what it changed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Final
from uuid import uuid4

from fastapi import Depends, Request
from starlette.types import Scope

from manylora.adapters.registry.tenants.audit import AuditRecord
from manylora.server.api.access.redaction import Redactor
from manylora.server.api.access.scopes import MANAGE, KeyScope

AUDITED: Final = "manylora.audited"  # the entry of an ASGI scope with what is told of its request
_READING: Final = ("GET", "HEAD", "OPTIONS")


@dataclass
class Audited:
    """Filled by the guard, and by routes that know what they change."""

    who: str = ""
    tenant: str = ""
    action: str = ""  # "" while nothing is done that is told
    target: str = ""
    before: Any = None
    after: Any = None
    began: float = field(default_factory=time.time)  # unix seconds

    def record(self, scope: Scope, status: int, request_id: str, redactor: Redactor) -> AuditRecord:
        """The record of a request that was answered with ``status``."""
        host, _ = scope.get("client") or ("-", 0)
        target = redactor.redact(self.target)
        return AuditRecord(
            uuid4().hex, self.began, self.who, self.tenant, self.action, target, host, request_id, status,
            self.before, self.after,
        )  # fmt: skip


def begin_audit(request: Request, needed: KeyScope, who: str, tenant: str) -> None:
    """Note who asks, if the route changes what operators and tenants manage."""
    told = request.scope.get(AUDITED)
    if told is None or needed < MANAGE or request.method in _READING:
        return
    told.who, told.tenant = who, tenant
    told.action = f"{request.method} {request.scope['route'].path_format}"
    told.target = " ".join(str(value) for value in request.path_params.values())


def _audited_of(request: Request) -> Audited:
    told = request.scope.get(AUDITED)
    return told if isinstance(told, Audited) else Audited()


AuditState = Annotated[Audited, Depends(_audited_of)]
"""What the audit log is told of a request, as a parameter of routes."""
