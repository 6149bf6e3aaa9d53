"""The server's configuration: every option, its type and bounds, and its default, in one frozen object.

Every option has the same name as a flag, as a variable and in the file: ``--max-num-seqs``,
``MANYLORA_MAX_NUM_SEQS``, ``max_num_seqs``. What the flags look like in the help is told by the
:class:`~manylora.adapters.options.option.Option` beside each field, so that the command line and
``docs/configuration.md`` can't drift from what is accepted here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from manylora.adapters.base_models.directory import default_data_dir
from manylora.adapters.errors import AdapterNameError
from manylora.adapters.mix import check_name, normal_name
from manylora.adapters.options.option import Option
from manylora.adapters.options.values import (
    UserPath,
    parse_list,
    parse_named_paths,
    parse_size,
    read_auto,
)

ENV_PREFIX = "MANYLORA_"
CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"
URL_VARIABLE = ENV_PREFIX + "URL"  # read by the commands that talk to a running server

MODEL, ADAPTERS, HTTP, CONNECTIONS = "Base model", "Adapters", "HTTP", "Connections"
MERGING, ENGINE, OPERATION, CLUSTER = "Merging", "Engine", "Operation", "Many machines"
SECRETS = ("api_key", "admin_api_key")  # fields whose values are never shown
MAX_BYTES = 2**50  # a petabyte: beyond it the number is a typing error


def refuse_service_link(value: object) -> object:
    """Refuse what Kubernetes sets in pods beside a Service called manylora: ``MANYLORA_PORT=tcp://…``."""
    if isinstance(value, str) and value.startswith("tcp://"):
        raise ValueError(
            "is a Kubernetes service link, not a port number: set enableServiceLinks: false in the pod, "
            "or give the Service another name"
        )
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1, le=MAX_BYTES)]
AutoSize = Annotated[Size | None, BeforeValidator(read_auto)]
SizeOrNone = Annotated[int, BeforeValidator(parse_size), Field(ge=0, le=MAX_BYTES)]
AutoSizeOrNone = Annotated[SizeOrNone | None, BeforeValidator(read_auto)]
AutoLength = Annotated[Annotated[int, Field(ge=1, le=2**24)] | None, BeforeValidator(read_auto)]
Port = Annotated[int, BeforeValidator(refuse_service_link), Field(ge=0, le=65535)]
AutoCount = Annotated[Annotated[int, Field(ge=1, le=1_000_000)] | None, BeforeValidator(read_auto)]
AutoSequences = Annotated[Annotated[int, Field(ge=1, le=4096)] | None, BeforeValidator(read_auto)]
AutoTokens = Annotated[Annotated[int, Field(ge=1, le=2**20)] | None, BeforeValidator(read_auto)]
Seconds = Annotated[float, Field(ge=0.1, le=86400, allow_inf_nan=False)]
AutoReplicas = Annotated[Annotated[int, Field(ge=1, le=4096)] | None, BeforeValidator(read_auto)]
AutoShare = Annotated[
    Annotated[float, Field(ge=0, le=1024, allow_inf_nan=False)] | None, BeforeValidator(read_auto)
]
AutoSeconds = Annotated[Seconds | None, BeforeValidator(read_auto)]
Days = Annotated[int, Field(ge=1, le=36_500)]
NormalName = Annotated[str, AfterValidator(normal_name)]
Keys = Annotated[list[SecretStr], NoDecode, BeforeValidator(parse_list)]
Texts = Annotated[list[str], NoDecode, BeforeValidator(parse_list)]
Roots = Annotated[list[UserPath], NoDecode, BeforeValidator(parse_list)]
Origin = Annotated[str, Field(pattern=r"^(\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+)$", max_length=255)]
Origins = Annotated[list[Origin], NoDecode, BeforeValidator(parse_list)]
NamedPaths = Annotated[dict[NormalName, UserPath], NoDecode, BeforeValidator(parse_named_paths)]


class Settings(BaseSettings):
    """Everything that can be set about a server. Immutable; sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )

    # --- base model
    model: Annotated[
        str,
        Option(MODEL, "MODEL", "Hub id, directory or .gguf file."),
        Field(min_length=1, max_length=4096),
    ] = "smollm2-135m"
    served_model_name: Annotated[
        str | None,
        Option(MODEL, "NAME", "What clients call the base.", default="MODEL's name"),
        Field(min_length=1, max_length=256),
    ] = None
    also_served_as: Annotated[Texts, Option(MODEL, "NAME", "An alias of the base.", repeatable=True)] = []
    dtype: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        Option(MODEL, "DTYPE", "bf16, fp16, fp32, or auto: by the hardware."),
    ] = "auto"
    quantize: Annotated[
        Literal["none", "nf4", "int8"],
        Option(MODEL, "BITS", "The base in 4 bits (nf4) or 8 (int8)."),
    ] = "none"
    device: Annotated[
        str,
        Option(MODEL, "DEVICE", "cpu, cuda or cuda:1; auto: a GPU, if any."),
        Field(pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d{1,2})?)$"),
    ] = "auto"
    tensor_parallel_size: Annotated[
        int,
        Option(MODEL, "N", "Cards, or processes, that share the base."),
        Field(ge=1, le=64),
    ] = 1
    max_model_len: Annotated[
        AutoLength, Option(MODEL, "N", "Longest prompt + answer, in tokens.", default="the model's")
    ] = None

    # --- adapters
    adapter: Annotated[
        NamedPaths, Option(ADAPTERS, "NAME=PATH", "Load this adapter at start.", repeatable=True)
    ] = {}
    adapter_root: Annotated[
        Roots,
        Option(ADAPTERS, "DIR", "Load requests read from here, nowhere else.", repeatable=True),
    ] = []
    adapter_repository: Annotated[
        Texts,
        Option(ADAPTERS, "GLOB", "Hub repositories to fetch from, as 'org/*'.", repeatable=True),
    ] = []
    adapter_url: Annotated[
        Texts,
        Option(ADAPTERS, "PREFIX", "URLs to fetch from, as s3://bucket/lora/.", repeatable=True),
    ] = []
    resolve: Annotated[
        Texts,
        Option(ADAPTERS, "SOURCE", "Look unknown names up here: hf://org/{name}.", repeatable=True),
    ] = []
    adapter_memory: Annotated[
        AutoSize, Option(ADAPTERS, "SIZE", "Memory for resident adapters.", default="auto")
    ] = None
    adapter_cache_memory: Annotated[
        AutoSizeOrNone,
        Option(ADAPTERS, "SIZE", "Host memory for others; 0: none.", default="auto"),
    ] = None
    keep_revisions: Annotated[
        int,
        Option(ADAPTERS, "N", "Revisions of a name that are kept."),
        Field(ge=1, le=64),
    ] = 5
    registry_url: Annotated[
        SecretStr | None,
        Option(ADAPTERS, "URL", "SQLite or PostgreSQL of names.", default="in --data-dir"),
    ] = None
    registry_scope: Annotated[
        Literal["registry", "pod"],
        Option(ADAPTERS, "WHOSE", "Loaded adapters are all servers', or a pod's."),
    ] = "registry"
    pod_name: Annotated[
        str | None,
        Option(ADAPTERS, "NAME", "Tells this server from others.", default="the host's"),
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"),
    ] = None
    max_lora_rank: Annotated[
        int, Option(ADAPTERS, "RANK", "Higher ranks are refused."), Field(ge=1, le=1024)
    ] = 64

    # --- HTTP
    host: Annotated[
        str,
        Option(HTTP, "HOST", "Address to listen on; 0.0.0.0: all."),
        Field(min_length=1, max_length=255),
    ] = "127.0.0.1"
    port: Annotated[Port, Option(HTTP, "PORT", "0 takes any free port.")] = 8000
    metrics_host: Annotated[
        str | None,
        Option(HTTP, "HOST", "Where /metrics listens by itself.", default="--host's"),
        Field(min_length=1, max_length=255),
    ] = None
    metrics_port: Annotated[
        Port | None, Option(HTTP, "PORT", "/metrics by itself, for routers.", default="none")
    ] = None
    metrics_open: Annotated[bool, Option(HTTP, "", "That port asks for no key.", switch=True)] = False
    api_key: Annotated[Keys, Option(HTTP, "KEY", "Accept only requests with this key.", repeatable=True)] = []
    admin_api_key: Annotated[
        Keys,
        Option(HTTP, "KEY", "Adapters are managed with this key only.", repeatable=True),
    ] = []
    allow_origin: Annotated[
        Origins,
        Option(HTTP, "ORIGIN", "Pages from here may use the API; '*': all.", repeatable=True),
    ] = []
    max_upload_bytes: Annotated[Size, Option(HTTP, "SIZE", "Larger uploads are refused.")] = 2**30
    files_url: Annotated[
        str | None,
        Option(HTTP, "URL", "Clients' files: s3://bucket/a.", default="in --data-dir"),
        Field(min_length=1, max_length=2048),
    ] = None
    response_store: Annotated[SizeOrNone, Option(HTTP, "SIZE", "Responses kept, 30 days; 0: none.")] = (
        256 * 2**20
    )
    unknown_fields: Annotated[
        Literal["refuse", "ignore"],
        Option(HTTP, "WHAT", "Unknown fields: refuse, or ignore."),
    ] = "refuse"
    console: Annotated[
        bool,
        Option(
            HTTP,
            "",
            "Serve the browser console at /console.",
            switch=True,
            without="Serve no console at /console.",
        ),
    ] = True
    max_waiting: Annotated[
        int,
        Option(HTTP, "N", "Requests that may wait; more get 429."),
        Field(ge=1, le=1_000_000),
    ] = 1024

    # --- connections
    uds: Annotated[
        UserPath | None, Option(CONNECTIONS, "PATH", "Listen on a Unix socket instead.", default="none")
    ] = None
    root_path: Annotated[
        str,
        Option(CONNECTIONS, "PREFIX", "Of paths, taken off by a proxy.", default="none"),
        Field(max_length=1024, pattern=r"^(/[A-Za-z0-9._~-]+)*/?$"),
    ] = ""
    ssl_certfile: Annotated[
        UserPath | None, Option(CONNECTIONS, "FILE", "Speak TLS with this certificate.", default="no TLS")
    ] = None
    ssl_keyfile: Annotated[
        UserPath | None, Option(CONNECTIONS, "FILE", "Its private key.", default="in that file")
    ] = None
    ssl_keyfile_password: Annotated[
        SecretStr | None, Option(CONNECTIONS, "TEXT", "Opens the private key.", default="none")
    ] = None
    max_connections: Annotated[
        int,
        Option(CONNECTIONS, "N", "Beyond: only /health and /ready."),
        Field(ge=1, le=1_000_000),
    ] = 4096
    max_connections_per_address: Annotated[
        AutoCount, Option(CONNECTIONS, "N", "From one address.", default="half of them")
    ] = None
    head_timeout: Annotated[Seconds, Option(CONNECTIONS, "S", "Time for a request's headers.")] = 20.0
    body_timeout: Annotated[Seconds, Option(CONNECTIONS, "S", "Time without a byte of a body.")] = 30.0
    write_timeout: Annotated[Seconds, Option(CONNECTIONS, "S", "Time without a byte read by a client.")] = (
        60.0
    )
    keep_alive_timeout: Annotated[
        # Longer than common proxies keep theirs, so that the proxy is the one to close.
        Seconds,
        Option(CONNECTIONS, "S", "Time between two requests."),
    ] = 75.0
    min_transfer_rate: Annotated[Size, Option(CONNECTIONS, "SIZE", "A second, of bodies and readers.")] = 1024

    # --- merging
    merge_memory: Annotated[
        AutoSize, Option(MERGING, "SIZE", "Memory for merged copies.", default="auto")
    ] = None
    auto_merge: Annotated[
        bool,
        Option(MERGING, "", "Merge the adapter nearly all answers are for.", switch=True),
    ] = False
    auto_merge_share: Annotated[
        float,
        Option(MERGING, "SHARE", "How many of the answers that is."),
        Field(ge=0.5, le=1, allow_inf_nan=False),
    ] = 0.98
    auto_merge_seconds: Annotated[
        float,
        Option(MERGING, "S", "For how long they must have been."),
        Field(ge=1, le=86400, allow_inf_nan=False),
    ] = 60.0
    auto_merge_sequences: Annotated[
        float,
        Option(MERGING, "N", "How many must run at once, on average."),
        Field(ge=0.1, le=4096, allow_inf_nan=False),
    ] = 4.0
    export_root: Annotated[
        UserPath | None, Option(MERGING, "DIR", "Exported models go here.", default="no exports")
    ] = None

    # --- engine
    max_num_seqs: Annotated[
        AutoSequences, Option(ENGINE, "N", "Sequences computed together.", default="128; GPU: 256")
    ] = None
    max_batch_tokens: Annotated[
        AutoTokens, Option(ENGINE, "N", "Tokens computed in one step.", default="512; GPU: 2048")
    ] = None
    scheduling: Annotated[
        Literal["fair", "fcfs"],
        Option(ENGINE, "HOW", "fair between tenants, or fcfs: as they come."),
    ] = "fair"
    max_stretch: Annotated[
        float,
        Option(ENGINE, "X", "Prompts stretch answers' steps X times at most."),
        Field(ge=1.1, le=1e6),
    ] = 4.0
    kv_cache_memory: Annotated[
        AutoSize, Option(ENGINE, "SIZE", "Memory for keys and values.", default="auto")
    ] = None
    kv_cache_dtype: Annotated[
        Literal["auto", "int8"],
        Option(ENGINE, "KIND", "auto (as computed), int8: half the memory."),
    ] = "auto"
    kernels: Annotated[
        Literal["auto", "native", "pytorch"],
        Option(ENGINE, "KIND", "native (C++, Triton), pytorch, or auto."),
    ] = "auto"
    enable_prefix_cache: Annotated[
        bool,
        Option(
            ENGINE,
            "",
            "Compute common prompt beginnings once.",
            switch=True,
            without="Compute common prompt beginnings again.",
        ),
    ] = True

    allow_special_tokens: Annotated[
        bool,
        Option(
            ENGINE,
            "",
            "Control tokens spelled in messages count as such.",
            switch=True,
            without="Control tokens spelled in messages are text.",
        ),
    ] = False

    # --- many machines
    ray: Annotated[bool, Option(CLUSTER, "", "Run replicas on Ray Serve.", switch=True)] = False
    ray_address: Annotated[
        str | None,
        Option(CLUSTER, "ADDRESS", "Of a Ray cluster.", default="starts one here"),
        Field(min_length=1, max_length=255),
    ] = None
    replicas: Annotated[int, Option(CLUSTER, "N", "Servers that share the work."), Field(ge=1, le=4096)] = 1
    max_replicas: Annotated[
        AutoReplicas, Option(CLUSTER, "N", "As many as the load needs.", default="--replicas")
    ] = None
    replica_cpus: Annotated[
        AutoShare, Option(CLUSTER, "X", "Cores of a replica.", default="its part of them; GPU: 1")
    ] = None
    replica_gpus: Annotated[
        AutoShare, Option(CLUSTER, "X", "GPUs of a replica.", default="1, if there are any")
    ] = None

    # --- training
    training: Annotated[
        Literal["auto", "off", "local", "external"],
        Option(OPERATION, "WHO", "Trains jobs: local, external, off, or auto."),
    ] = "auto"
    training_share: Annotated[
        float,
        Option(OPERATION, "X", "Share of the cores, if local."),
        Field(ge=0.01, le=1, allow_inf_nan=False),
    ] = 0.5
    training_jobs: Annotated[
        int,
        Option(OPERATION, "N", "Jobs a worker trains at once."),
        Field(ge=1, le=64),
    ] = 2
    tenant_jobs: Annotated[
        int,
        Option(OPERATION, "N", "One tenant's jobs in training at once."),
        Field(ge=1, le=1000),
    ] = 2

    # --- operation
    data_dir: Annotated[
        UserPath, Option(OPERATION, "DIR", "For models and adapters.", default="~/.local/share/manylora")
    ] = Field(default_factory=default_data_dir)
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Option(OPERATION, "LEVEL", "debug, info, warning or error."),
    ] = "info"
    tenants: Annotated[
        UserPath | None,
        Option(OPERATION, "FILE", "Tenants, in YAML; again on SIGHUP.", default="none"),
    ] = None
    usage_days: Annotated[Days, Option(OPERATION, "DAYS", "Usage of tenants is kept.")] = 400
    audit_days: Annotated[Days, Option(OPERATION, "DAYS", "The audit log is kept.")] = 400
    log_format: Annotated[
        Literal["text", "json"], Option(OPERATION, "FORM", "json: one object a line, with request ids.")
    ] = "text"
    otlp_endpoint: Annotated[
        str | None,
        Option(OPERATION, "URL", "Traces go there.", default="OTEL_EXPORTER_OTLP_ENDPOINT"),
        Field(pattern=r"^https?://[^\s/]+(/\S*)?$", max_length=2048),
    ] = None
    access_log: Annotated[bool, Option(OPERATION, "", "One log line a request.", switch=True)] = False
    step_timeout: Annotated[
        AutoSeconds,
        Option(OPERATION, "S", "A longer step ends the server.", default="none; GPU: 300"),
    ] = None
    shutdown_timeout: Annotated[
        float,
        Option(OPERATION, "S", "Time running requests get to finish."),
        Field(ge=0, le=3600, allow_inf_nan=False),
    ] = 10.0

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
