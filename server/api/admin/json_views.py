"""Adapters, their revisions and aliases as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manylora.adapters.registry.records import AliasRecord, RevisionRecord
from manylora.server.api.admin.publish_request import UPLOADED
from manylora.server.names.status import AdapterStatus
from manylora.server.tenants.view import TenantView

SHOWN_DIGITS = 8  # of a digest, wherever a revision is named


def short_digest(digest: str) -> str:
    """The first digits of a revision's digest, as model strings name it."""
    return digest[:SHOWN_DIGITS]


def adapter_json(status: AdapterStatus) -> dict[str, Any]:
    """One adapter as it is listed. Times are unix seconds, sizes bytes."""
    tiers = status.residency
    return {
        "id": status.name,
        "object": "adapter",
        "state": status.state,
        "revision": None if status.digest is None else short_digest(status.digest),
        "digest": status.digest,
        "source": status.source,
        "error": status.error,
        "pinned": status.pinned,
        "tags": status.tags,
        "shared_with": status.shared,
        "created": status.created,
        "updated": status.updated,
        "last_used": status.last_used,
        "kind": status.kind,
        "rank": status.rank,
        "modules": status.modules,
        "total_modules": status.total_modules,
        "base_model": status.base_model_name,
        "residency": {"device": tiers.device, "memory": tiers.memory, "disk": tiers.disk},
        "traffic": {
            "requests": status.traffic.requests,
            "prompt_tokens": status.traffic.prompt_tokens,
            "generated_tokens": status.traffic.generated_tokens,
            "running": status.references,
            "scores": status.traffic.scores,
            "mean_score": status.traffic.points / status.traffic.scores if status.traffic.scores else None,
        },
    }


def adapter_details_json(
    status: AdapterStatus, revisions: Sequence[RevisionRecord], publication: dict[str, Any] | None
) -> dict[str, Any]:
    """One adapter with its revisions, the latest first, and the latest attempt to publish under its name."""
    return {
        **adapter_json(status),
        "details": status.details,
        "publication": publication,
        "revisions": [_revision(record, status) for record in revisions],
    }


def for_view(told: dict[str, Any], view: TenantView | None) -> dict[str, Any]:
    """What is told of an adapter, as the tenant is told whose it is.

    Without where things are on the server, and without what its content tells of others who have the same.
    """
    if view is None:
        return told
    told = {**told, "id": view.shown(told["id"]), "source": _own_source(told["source"])}
    if told["error"] is not None:
        told["error"] = "it can't be served: its publication says more"
    if told.get("publication") is not None:
        publication = told["publication"]
        told["publication"] = {**publication, "source": _own_source(publication["source"])}
    if "revisions" in told:
        told["revisions"] = [_revision_for(each, view) for each in told["revisions"]]
    return told


def _own_source(source: str) -> str | None:
    return source if source.startswith(UPLOADED) else None


def _revision_for(told: dict[str, Any], view: TenantView) -> dict[str, Any]:
    members = [] if told["lineage"] is None else told["lineage"].get("members", [])
    hidden = any(not view.visible(member["name"]) for member in members)
    lineage = None if hidden else told["lineage"]
    return {**told, "source": _own_source(told["source"]), "running": None, "lineage": lineage}


def alias_json(record: AliasRecord) -> dict[str, Any]:
    """One alias as JSON; the shares of its split add up to 1."""
    total = sum(share for _, share in record.arms)
    return {
        "id": record.name,
        "object": "alias",
        "split": [{"target": target, "share": share / total} for target, share in record.arms],
        "created": record.created,
        "updated": record.updated,
    }


def _revision(record: RevisionRecord, status: AdapterStatus) -> dict[str, Any]:
    return {
        "revision": short_digest(record.digest),
        "digest": record.digest,
        "current": record.digest == status.digest,
        "running": status.revision_references.get(record.digest, 0),
        "source": record.source,
        "created": record.created,
        "bytes": record.nbytes,
        "kind": record.kind,
        "rank": record.rank,
        "modules": record.modules,
        "total_modules": record.total_modules,
        "base_model": record.base_model_name,
        "base_fingerprint": record.base_fingerprint,
        "lineage": record.lineage,
        "details": record.details,
    }
