"""The server's configuration: every option, its type and bounds, and its default, in one frozen object.

Every option has the same name as a flag, as a variable and in the file: ``--max-num-seqs``,
``MANYLORA_MAX_NUM_SEQS``, ``max_num_seqs``. What the flags look like in the help is told by the
:class:`~manylora.adapters.options.option.Option` beside each field, so that the command line and
``docs/configuration.md`` can't drift from what is accepted here.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from manylora.adapters.errors import AdapterNameError
from manylora.adapters.mix import check_name
from manylora.server.options.adapters import AdapterOptions
from manylora.server.options.base_model import BaseModelOptions
from manylora.server.options.connections import ConnectionOptions
from manylora.server.options.engine import EngineOptions
from manylora.server.options.http import HttpOptions
from manylora.server.options.many_machines import ManyMachinesOptions
from manylora.server.options.merging import MergingOptions
from manylora.server.options.operation import OperationOptions
from manylora.server.options.training import TrainingOptions
from manylora.server.options.types import ENV_PREFIX

CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"
URL_VARIABLE = ENV_PREFIX + "URL"  # read by the commands that talk to a running server
SECRETS = ("api_key", "admin_api_key")  # fields whose values are never shown


class Settings(
    OperationOptions,
    TrainingOptions,
    ManyMachinesOptions,
    EngineOptions,
    MergingOptions,
    ConnectionOptions,
    HttpOptions,
    AdapterOptions,
    BaseModelOptions,
):
    """Everything that can be set about a server (pydantic orders the options from the last class on)."""

    @model_validator(mode="after")
    def _check_names(self) -> Settings:
        for name in self.adapter:
            try:
                check_name(name)
            except AdapterNameError as error:
                raise ValueError(f"adapter: {error}") from None
        if set(self.model_name) & set("+*@"):
            raise ValueError(f"served_model_name: {self.model_name!r} must not contain '+', '*' or '@'")
        if self.model_name in self.adapter:
            raise ValueError(f"adapter: {self.model_name!r} is the base model's name")
        for source in self.resolve:
            if "{name}" not in source:
                raise ValueError(f"resolve: {source!r} has no {{name}} in it")
        if self.ssl_certfile is None and (self.ssl_keyfile or self.ssl_keyfile_password) is not None:
            raise ValueError("ssl_keyfile: needs ssl_certfile, the certificate of this key")
        for field in SECRETS:
            if any(not key.get_secret_value().strip() for key in getattr(self, field)):
                raise ValueError(f"{field}: a key is empty")
        return self

    @model_validator(mode="after")
    def _check_deterministic(self) -> Settings:
        if not self.deterministic:
            return self
        if self.kernels == "pytorch":
            raise ValueError(
                "deterministic: PyTorch's products depend on the batch; not with kernels pytorch"
            )
        if self.tensor_parallel_size > 1:
            raise ValueError(
                "deterministic: ranks sum in an order of their own; not with tensor_parallel_size"
            )
        if self.auto_merge:
            raise ValueError("deterministic: whom auto_merge merges depends on the traffic; not with it")
        return self

    @model_validator(mode="after")
    def _check_replicas(self) -> Settings:
        given = ("ray_address", "max_replicas", "replica_cpus", "replica_gpus")
        useless = [field for field in given if getattr(self, field) is not None]
        useless += ["replicas"] if self.replicas > 1 else []
        if useless and not self.ray:
            raise ValueError(f"{useless[0]}: does nothing without ray")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas: must not be less than replicas")
        return self

    @property
    def registry(self) -> str:
        """The URL of the adapter registry."""
        if self.registry_url is None:
            return f"sqlite:///{self.data_dir.resolve() / 'registry.db'}"
        return self.registry_url.get_secret_value()

    @property
    def model_name(self) -> str:
        """The id under which clients ask for the base model."""
        if self.served_model_name is not None:
            return self.served_model_name
        path = Path(self.model).expanduser()
        if path.is_file():
            return path.stem
        return path.resolve().name if path.is_dir() else self.model


def api_keys(settings: Settings) -> list[str]:
    """Every key that opens something, for what must never show one."""
    return [key.get_secret_value() for field in SECRETS for key in getattr(settings, field)]
