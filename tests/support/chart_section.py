"""``python -m tests.support.chart_section`` writes the options that the chart takes into its schema."""

from __future__ import annotations

import json

from manylora.server.options.settings import Settings
from tests.support.kube_objects import CHART

SCHEMA = CHART / "values.schema.json"
ELSEWHERE = {
    # Secrets, which the chart takes from a Secret.
    "registry_url",
    "api_key",
    "admin_api_key",
    "files_url",
    "ssl_keyfile_password",
    # What the chart has values of its own for, or what its ports, probes and volumes depend on.
    "model",
    "host",
    "port",
    "uds",
    "metrics_host",
    "metrics_port",
    "metrics_open",
    "ssl_certfile",
    "ssl_keyfile",
    "data_dir",
    "pod_name",
    "shutdown_timeout",
    "training",
}


def options() -> list[str]:
    """The names of the options that may stand in ``settings``."""
    return sorted(set(Settings.model_fields) - ELSEWHERE)


if __name__ == "__main__":
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"]["propertyNames"]["enum"] = options()
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")
