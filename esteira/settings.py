"""Settings from the environment and one file, typed and frozen; unknown keys are refused and no secret has a default.

The environment wins over the file. A setting may have several variable names (the first is ours, the others are those of
the systems this one replaces); within one place the first name that is set wins. Reads nothing but what it is given.
"""

import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from esteira.errors import ConfigError

_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError("must be a number of bytes such as 500000, 512KB or 10MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _words(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _gpus(value: str) -> str:
    if (
        re.fullmatch(r"all|none|void|NoDevFiles|(-1|\d+|(GPU|MIG)-[\w/-]+)(,\s*(-1|\d+|(GPU|MIG)-[\w/-]+))*", value)
        is None
    ):
        raise ValueError("must be GPU numbers or ids separated by commas, such as 0 or 0,1")
    return value


def _one_line(value: str) -> str:
    # A name stands in entries that people read as lines: one with an end of line in it could write lines of its own.
    if not value.isprintable():
        raise ValueError("must be printable text on one line")
    return value


def _log_target(value: str) -> str:
    # Workers run in another folder, so a file is found by its whole path.
    return value if value == "stdout" else str(Path(value).absolute())


def _roots(value: tuple[str, ...]) -> tuple[str, ...]:
    for root in value:
        if not (root.startswith("/") or re.fullmatch(r"s3://[^/]+(/.*)?", root)):
            raise ValueError("must be absolute folders or s3://bucket/prefix/, separated by commas")
    return value


Size = Annotated[int, BeforeValidator(_size), Field(gt=0)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Share = Annotated[float, Field(ge=0, le=1)]
PortNumber = Annotated[int, Field(ge=0, le=65535)]


def _var(*names: str, default: Any = None, says: str) -> Any:
    """A field that is read from the variables `names`; `says` is its comment in the written file."""
    return Field(default=default, description=says, json_schema_extra={"env": list(names)})


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return f"uid-{os.getuid()}"


class Settings(BaseModel):
    """What the process was told. `repr` shows no secret: not a key, a token, nor the password in an address.

    Paths and addresses that are not set lie in `home`, which is made absolute. `port` 0 means any free port;
    sizes are bytes, times are seconds, shares lie in [0, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=())

    # Where state lives
    home: Path = _var("ESTEIRA_HOME", default=Path(".esteira"), says="folder of all state: stores, ledger, locks, keys")
    database_url: str = _var(
        "ESTEIRA_DATABASE_URL", "DATABASE_URL", default="", says="platform store; default: SQLite in ESTEIRA_HOME"
    )
    mlflow_uri: str = _var(
        "ESTEIRA_MLFLOW_URI",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_BACKEND_STORE_URI",
        default="",
        says="MLflow's tracking server or database; default: SQLite in ESTEIRA_HOME",
    )
    artifacts: str = _var(
        "ESTEIRA_ARTIFACTS",
        "ML_MODEL_STORAGE_PATH",
        "MODEL_STORAGE_PATH",
        "MLFLOW_DEFAULT_ARTIFACT_ROOT",
        default="",
        says="root of model artefacts, a folder or s3://bucket/prefix; default: in ESTEIRA_HOME",
    )
    study_url: str = _var(
        "ESTEIRA_STUDY_URL",
        default="",
        says="where workers of one search meet, postgresql://... or the path of a journal",
    )
    data_path: Path = _var("ML_DATA_PATH", default=Path("data"), says="folder of data sets")
    dvc_remote: str | None = _var(
        "ESTEIRA_DVC_REMOTE",
        says="DVC's remote for data/, a folder or s3://bucket/prefix; default: DVC's own configuration",
    )
    logs_path: Path | None = _var("ML_LOGS_PATH", says="folder of logs; default: in ESTEIRA_HOME")
    redis_url: str | None = _var("REDIS_URL", says="cache and rate limits; without it they live in the process")

    # Who
    tenant: str = _var("ESTEIRA_TENANT", default="default", says="tenant that this process works for")
    actor: Annotated[str, AfterValidator(_one_line)] = Field(
        default_factory=_user,
        min_length=1,
        max_length=200,
        description="name that ledger entries carry; default: the user of the process",
        json_schema_extra={"env": ["ESTEIRA_ACTOR"]},
    )
    key: SecretStr | None = _var(
        "ESTEIRA_KEY",
        says="key of who acts (esteira keys add NAME --role ROLE): whoever approves, promotes or retires is the name of their key",
    )
    code_revision: str | None = _var(
        "ESTEIRA_CODE_REVISION", says="commit of this code, where there is no git checkout"
    )

    # How answers leave
    lines: Words = _var("ESTEIRA_LINES", default=(), says="model lines to serve, separated by commas")
    bundle: Path | None = _var("ESTEIRA_BUNDLE", says="one bundle folder to serve instead of lines")
    batch_roots: Annotated[Words, AfterValidator(_roots)] = _var(
        "ESTEIRA_BATCH_ROOTS",
        default=(),
        says="folders and s3://bucket/prefix/ that batch jobs of a service may read and write, separated by commas; "
        "without one there are no jobs",
    )
    device: Literal["auto", "cpu", "cuda"] = _var(
        "ESTEIRA_DEVICE", default="auto", says="auto, cpu or cuda; cuda without a GPU fails at start, auto does not"
    )
    api_key: SecretStr | None = _var(
        "ESTEIRA_API_KEY", says="key of the service; without it one is made in ESTEIRA_HOME"
    )
    operator_key: SecretStr | None = _var(
        "ESTEIRA_OPERATOR_KEY", says="key of who may ask a service for a version that is not deployed; no default"
    )
    host: str = _var("ESTEIRA_HOST", default="127.0.0.1", says="address to listen on")
    port: PortNumber = _var(
        "ESTEIRA_PORT", "ML_SERVICE_PORT", default=8080, says="port to listen on; 0 takes a free one"
    )
    workers: Annotated[int, Field(ge=1, le=256)] = _var(
        "ESTEIRA_WORKERS", "ML_WORKERS", default=1, says="serving processes; each loads the models"
    )
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = _var(
        "ESTEIRA_DRAIN_SECONDS",
        default=5.0,
        says="seconds a service that was told to end still takes requests, so that load balancers hear of it",
    )
    health_seconds: Annotated[float, Field(ge=0.05, le=60)] = _var(
        "ESTEIRA_HEALTH_SECONDS", default=1.0, says="seconds between two looks at the database and Redis"
    )
    follow_seconds: Annotated[float, Field(ge=0.05, le=3600)] = _var(
        "ESTEIRA_FOLLOW_SECONDS", default=1.0, says="seconds between two looks at the alias that a served line follows"
    )
    alias: Literal["champion", "challenger", "staging", "previous"] = _var(
        "ESTEIRA_ALIAS",
        default="champion",
        says="alias of the lines that a service serves and follows; challenger is for a second service behind a proxy",
    )
    keep_seconds: Annotated[float, Field(ge=0, le=86_400)] = _var(
        "ESTEIRA_KEEP_SECONDS",
        default=600.0,
        says="seconds that a served line's last model stays in memory, so that a rollback loads nothing; 0 frees it at once",
    )
    request_log: Annotated[int, Field(ge=0, le=1_000_000)] = _var(
        "ESTEIRA_REQUEST_LOG",
        default=0,
        says="answered requests of each served line that are kept in ESTEIRA_HOME, rows and all, to rehearse a candidate with; "
        "0 keeps none",
    )
    target: str = _var(
        "ESTEIRA_TARGET",
        default="in-process",
        says="what splits the traffic of a rollout: in-process, haproxy:SOCKET#BACKEND or gateway:NAMESPACE/NAME",
    )
    ready_needs: (
        Annotated[tuple[Literal["lines", "database", "redis", "registry", "none"], ...], BeforeValidator(_words)] | None
    ) = _var(
        "ESTEIRA_READY_NEEDS",
        says="what must be there for a service to be ready: lines, database, redis, registry, or none of them; "
        "default: lines, and the database server that records of predictions go to",
    )
    max_rows: Annotated[int, Field(ge=1)] = _var("ESTEIRA_MAX_ROWS", default=1000, says="most rows in one request")
    max_body: Size = _var("ESTEIRA_MAX_BODY", default=10_000_000, says="largest request body")
    max_connections: Annotated[int, Field(ge=1)] = _var(
        "ESTEIRA_MAX_CONNECTIONS", default=1000, says="most open connections of one serving process; more get 503"
    )
    max_concurrency: Annotated[int, Field(ge=1, le=100_000)] = _var(
        "ESTEIRA_MAX_CONCURRENCY", default=100, says="most requests of one serving process that are answered at once"
    )
    max_queue: Annotated[int, Field(ge=0, le=100_000)] = _var(
        "ESTEIRA_MAX_QUEUE", default=100, says="most requests that wait for those; more get 429"
    )
    request_seconds: Annotated[float, Field(gt=0, le=3600)] = _var(
        "ESTEIRA_REQUEST_SECONDS", default=10.0, says="seconds that an answer may take, the wait for its turn included"
    )
    batch_rows: Annotated[int, Field(ge=1, le=10_000)] = _var(
        "ESTEIRA_BATCH_ROWS",
        default=64,
        says="most rows of several requests that one call of the model answers; 1 answers each request alone",
    )
    batch_ms: Annotated[float, Field(ge=0, le=10)] = _var(
        "ESTEIRA_BATCH_MS", default=0.0, says="milliseconds that a request waits for others, once some come together"
    )
    answer_cache: Annotated[int, BeforeValidator(_size), Field(ge=0)] = _var(
        "ESTEIRA_ANSWER_CACHE",
        default=0,
        says="bytes of answers kept for rows that come again, such as 64MB; 0 keeps none",
    )
    access_log: Annotated[str, AfterValidator(_log_target)] | None = _var(
        "ESTEIRA_ACCESS_LOG", says="a line of JSON for every request, to stdout or to a file; default: none"
    )
    sentry_dsn: SecretStr | None = _var("SENTRY_DSN", says="project of Sentry that hears of unexpected faults")

    # Kubeflow Pipelines
    image_prefix: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*$")] = _var(
        "ESTEIRA_IMAGE_PREFIX",
        default="localhost",
        says="registry and folder of the images, without a slash at the end",
    )
    kfp_host: str | None = _var(
        "ESTEIRA_KFP_HOST", says="address of Kubeflow Pipelines, such as https://kfp.example.org"
    )
    kfp_namespace: str | None = _var("ESTEIRA_KFP_NAMESPACE", says="namespace of a multi-user Kubeflow")
    kfp_token: SecretStr | None = _var("ESTEIRA_KFP_TOKEN", says="bearer token for Kubeflow Pipelines; no default")

    # Vector database; composes ESTEIRA_DATABASE_URL where only these are set
    vector_db_host: str | None = _var("VECTOR_DB_HOST", says="PostgreSQL host with pgvector")
    vector_db_port: Annotated[int, Field(ge=1, le=65535)] = _var("VECTOR_DB_PORT", default=5432, says="its port")
    vector_db_user: str = _var("VECTOR_DB_USER", default="kryonix_ml", says="its user")
    vector_db_database: str = _var("VECTOR_DB_DATABASE", default="kryonix_ml", says="its database")
    vector_db_password: SecretStr | None = _var("VECTOR_DB_PASSWORD", "POSTGRES_PASSWORD", says="its password")

    # Model caches
    huggingface_cache: Path | None = _var("HUGGINGFACE_HUB_CACHE", says="Hugging Face hub cache")
    torch_home: Path | None = _var("TORCH_HOME", says="torch cache")
    transformers_cache: Path | None = _var("TRANSFORMERS_CACHE", says="transformers cache")

    # Language
    nlp_default_language: Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Z]{2})?$")] = _var(
        "NLP_DEFAULT_LANGUAGE", default="pt", says="language of texts that do not say"
    )
    nlp_sentiment_model: str = _var(
        "NLP_SENTIMENT_MODEL", default="neuralmind/bert-base-portuguese-cased", says="base model of sentiment"
    )
    nlp_embedding_model: str = _var(
        "NLP_EMBEDDING_MODEL",
        default="sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        says="model of text vectors",
    )
    nlp_ner_model: str = _var("NLP_NER_MODEL", default="pt_core_news_sm", says="model of named entities")

    # Images
    cv_model_path: Path | None = _var("CV_MODEL_PATH", says="folder of vision models")
    cv_upload_path: Path | None = _var("CV_UPLOAD_PATH", says="folder of uploaded images")
    cv_max_image_size: Size = _var("CV_MAX_IMAGE_SIZE", default=10_000_000, says="largest image")

    # Recommendations
    recommendation_model_path: Path | None = _var("RECOMMENDATION_MODEL_PATH", says="folder of recommendation models")
    recommendation_update_interval: Annotated[int, Field(ge=1)] = _var(
        "RECOMMENDATION_UPDATE_INTERVAL", default=3600, says="seconds between updates"
    )
    recommendation_min_interactions: Annotated[int, Field(ge=1)] = _var(
        "RECOMMENDATION_MIN_INTERACTIONS", default=5, says="interactions before a user gets own recommendations"
    )

    # Conversation
    chatbot_model_path: Path | None = _var("CHATBOT_MODEL_PATH", says="folder of conversation models")
    chatbot_knowledge_base_path: Path | None = _var("CHATBOT_KNOWLEDGE_BASE_PATH", says="folder of the knowledge base")
    chatbot_session_timeout: Annotated[int, Field(ge=1)] = _var(
        "CHATBOT_SESSION_TIMEOUT", default=1800, says="seconds until a silent session ends"
    )

    # Model search
    automl_max_trials: Annotated[int, Field(ge=1)] = _var(
        "AUTOML_MAX_TRIALS", default=100, says="most trials of a search"
    )
    automl_max_time: Annotated[int, Field(ge=1)] = _var(
        "AUTOML_MAX_TIME", default=3600, says="seconds that guard a search"
    )
    automl_metrics: Words = _var(
        "AUTOML_METRICS", default=("accuracy", "f1", "precision", "recall"), says="metrics a search reports"
    )

    # Watching
    monitoring_enabled: bool = _var("MODEL_MONITORING_ENABLED", default=True, says="keep a record of predictions")
    drift_threshold: Share = _var(
        "MODEL_DRIFT_THRESHOLD", default=0.1, says="drift score from which a column is flagged"
    )
    performance_threshold: Share = _var(
        "MODEL_PERFORMANCE_THRESHOLD", default=0.8, says="primary metric below which a model is flagged"
    )

    # GPU
    cuda_visible_devices: Annotated[str, AfterValidator(_gpus)] | None = _var(
        "CUDA_VISIBLE_DEVICES", says="GPUs that may be used, by number or id; none present is no error"
    )
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)] = _var(
        "GPU_MEMORY_FRACTION", default=0.8, says="share of GPU memory to use"
    )

    # Notebooks
    jupyter_enable_lab: bool = _var(
        "JUPYTER_ENABLE_LAB", default=True, says="JupyterLab instead of the classic notebook"
    )
    jupyter_token: SecretStr | None = _var("JUPYTER_TOKEN", says="token of the notebook server")

    # Development
    test_data: Path | None = _var("ESTEIRA_TEST_DATA", says="folder of public data sets that some tests read")
    crash_at: str | None = _var("ESTEIRA_CRASH_AT", says="kill test: name of the crash point at which to die")

    @model_validator(mode="before")
    @classmethod
    def _lie_in_home(cls, data: Any) -> Any:
        """Fill in what has its default place in `home`, and the database's address where only its parts are set."""
        if not isinstance(data, dict):
            return data
        home = Path(data.get("home") or ".esteira").absolute()
        filled = {**data, "home": home}
        if not filled.get("database_url"):
            filled["database_url"] = _compose(filled) or f"sqlite:///{home / 'esteira.db'}"
        if not filled.get("mlflow_uri"):
            filled["mlflow_uri"] = f"sqlite:///{home / 'mlflow.db'}"
        if not filled.get("artifacts"):
            filled["artifacts"] = str(home / "artifacts")
        if not filled.get("logs_path"):
            filled["logs_path"] = home / "logs"
        return filled

    @model_validator(mode="after")
    def _hold_together(self) -> "Settings":
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", self.tenant):
            raise _Invalid("tenant", "must be 1 to 64 letters, digits, '-', '_' or '.'")
        for name in ("key", "api_key", "operator_key", "kfp_token"):
            key = getattr(self, name)
            if key is not None and not re.fullmatch(r"[!-~]+", key.get_secret_value()):
                raise _Invalid(name, "must be printable ASCII without spaces")
        return self

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, redact(value) if isinstance(value, str) else value


class _Invalid(ValueError):
    """A rule over a whole Settings object is broken; knows the field that is to blame."""

    def __init__(self, name: str, rule: str) -> None:
        super().__init__(rule)
        self.name = name


def _compose(data: Mapping[str, Any]) -> str | None:
    host = data.get("vector_db_host")
    if not host:
        return None
    from urllib.parse import quote

    fields = Settings.model_fields
    user, port, database = (
        data.get(name) or fields[name].default for name in ("vector_db_user", "vector_db_port", "vector_db_database")
    )
    password = data.get("vector_db_password")
    if isinstance(password, SecretStr):
        password = password.get_secret_value()
    login = quote(str(user), safe="") + (f":{quote(password, safe='')}" if password else "")
    return f"postgresql+psycopg2://{login}@{host}:{port}/{quote(str(database), safe='')}"


class Variable(NamedTuple):
    """One setting as people see it: its field, its names (ours first), whether it is secret, its comment."""

    field: str
    names: tuple[str, ...]
    secret: bool
    says: str


def _variables() -> tuple[Variable, ...]:
    found = []
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        names = extra["env"] if isinstance(extra, dict) else []
        secret = "SecretStr" in str(field.annotation)
        found.append(Variable(name, tuple(str(word) for word in names), secret, field.description or ""))  # type: ignore[union-attr]
    return tuple(found)


VARIABLES: tuple[Variable, ...] = _variables()
_BY_NAME: Mapping[str, Variable] = {name: variable for variable in VARIABLES for name in variable.names}


class _Given(NamedTuple):
    """A value and where it was read: the variable's name and, for a file, its line."""

    value: str
    name: str
    where: str


def load_settings(env: Mapping[str, str] | None = None, file: Path | None = Path(".env")) -> Settings:
    """Read the settings; an empty value counts as not set, a file that is not there as empty.

    Args:
        env: the environment; `os.environ` when None.
        file: lines of `NAME=value`; None reads no file.

    Raises:
        ConfigError: an unknown `ESTEIRA_*` variable, any unknown key in the file, a key that stands twice in it, or a
            value that breaks its rule. The message names the variable; a secret's value is never shown.
    """
    env = os.environ if env is None else env
    given: dict[str, _Given] = {}
    if file is not None and file.is_file():
        _take(given, _read_env(file), place=str(file))
    ours = {name: _Given(value, name, "environment") for name, value in env.items() if name.startswith("ESTEIRA_")}
    others = {name: _Given(env[name], name, "environment") for name in _BY_NAME if name in env and name not in ours}
    _take(given, {**ours, **others}, place="environment")
    try:
        return Settings.model_validate({field: found.value for field, found in given.items()})
    except ValidationError as error:
        raise _refusal(error, given) from error


def _take(given: dict[str, _Given], found: Mapping[str, _Given], place: str) -> None:
    """Lay one place's variables over what was given before; refuse names that mean nothing."""
    for name, value in found.items():
        if name not in _BY_NAME:
            import difflib

            near = difflib.get_close_matches(name, _BY_NAME, n=3, cutoff=0.6)
            raise ConfigError(
                f"every setting has a known name, but {name} is not one",
                code="unknown_setting",
                where=value.where,
                cure=(f"did you mean {' or '.join(near)}? " if near else "")
                + (
                    "Remove it from the environment"
                    if place == "environment"
                    else "Remove it; variables of other programs belong in the environment"
                ),
            )
    for variable in VARIABLES:
        for name in variable.names:
            if name in found and found[name].value.strip():
                given[variable.field] = found[name]._replace(value=found[name].value.strip())
                break


def _refusal(error: ValidationError, given: Mapping[str, _Given]) -> ConfigError:
    first = error.errors(include_url=False, include_input=False)[0]
    cause = first.get("ctx", {}).get("error")
    field = cause.name if isinstance(cause, _Invalid) else str(first["loc"][0]) if first["loc"] else "home"
    variable = next(variable for variable in VARIABLES if variable.field == field)
    found = given.get(field)
    name = found.name if found else variable.names[0]
    rule = first["msg"].removeprefix("Value error, ")
    shown = "" if variable.secret or found is None else f", but got {redact(found.value)[:100]!r}"
    return ConfigError(
        f"{name}: {rule[:1].lower()}{rule[1:]}{shown}",
        code="bad_setting",
        where=f"{name} in {found.where}" if found else name,
        cure=f"{name} is: {variable.says}",
    )


_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)")
_MENTION = re.compile(r"^\s*#?\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=", re.MULTILINE)


def _read_env(file: Path) -> dict[str, _Given]:
    """`NAME=value` lines; `#` starts a comment at the start of a line or after a blank; quotes are taken off."""
    found: dict[str, _Given] = {}
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            "a settings file is UTF-8 text", code="bad_env_file", where=str(file), cure="save it so"
        ) from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(
                "a line of a settings file is NAME=value, a comment or empty",
                code="bad_env_file",
                where=f"{file} line {number}",
                cure="correct or remove that line",
            )
        name, value = match[1], match[2].strip()
        if name in found:
            raise ConfigError(
                f"a setting stands once in a file, but {name} stands twice",
                code="repeated_setting",
                where=f"{found[name].where} and line {number}",
                cure="keep one of the two",
            )
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        else:
            value = re.split(r"(?:^|\s)#", value, maxsplit=1)[0].strip()
        found[name] = _Given(value, name, f"{file} line {number}")
    return found


def write_env(path: Path = Path(".env")) -> list[str]:
    """Write every variable that the file does not mention yet, with its default; keep all that stands there.

    Secrets, and settings whose default depends on others, are written as comments without a value. The file is made with
    mode 600, by a temporary name.

    Returns:
        The names that were added; empty when there was nothing to do.
    """
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    mentioned = set(_MENTION.findall(old))
    missing = [variable for variable in VARIABLES if not mentioned.intersection(variable.names)]
    if not missing:
        return []
    lines = []
    for variable in missing:
        default = Settings.model_fields[variable.field].default
        says = variable.says + (f" (also read as {', '.join(variable.names[1:])})" if variable.names[1:] else "")
        lines.append(f"# {says}")
        fixed = (
            not variable.secret and isinstance(default, str | int | float | tuple | Path) and default not in ("", ())
        )
        lines.append(f"{variable.names[0]}={_spell(default)}" if fixed else f"# {variable.names[0]}=")
    head = old or "# Settings of Esteira; the environment wins over this file. Keep secrets out of version control.\n"
    text = head + ("" if head.endswith("\n") else "\n") + "\n".join(lines) + "\n"
    mode = stat.S_IMODE(path.stat().st_mode) if path.is_file() else 0o600
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8"
        ) as stream:
            stream.write(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return [variable.names[0] for variable in missing]


def _spell(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def api_key(settings: Settings) -> tuple[str, bool]:
    """The service's key, and whether it was made just now (then print it once, to a person).

    It is `settings.api_key`, else the one kept in `home/api_key` (mode 600), which is made at the first call. Of two
    processes that make it at once, both get the same.

    Raises:
        ConfigError: the kept file is empty.
    """
    if settings.api_key is not None:
        return settings.api_key.get_secret_value(), False
    kept = settings.home / "api_key"
    made = False
    if not kept.exists():
        settings.home.mkdir(parents=True, exist_ok=True)
        temporary = settings.home / f"api_key.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        try:
            with os.fdopen(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii"
            ) as stream:
                stream.write(secrets.token_urlsafe(32) + "\n")
            try:
                os.link(temporary, kept)  # unlike a rename, this never replaces a key that is already in use
                made = True
            except FileExistsError:
                pass
        finally:
            temporary.unlink(missing_ok=True)
    if stat.S_IMODE(kept.stat().st_mode) & 0o077:
        kept.chmod(0o600)
    key = kept.read_text(encoding="ascii").strip()
    if not key:
        raise ConfigError(
            "a kept key is not empty",
            code="empty_api_key",
            where=str(kept),
            cure="remove the file, or set ESTEIRA_API_KEY",
        )
    return key, made


_PASSWORD = re.compile(
    r"(?P<head>[A-Za-z][A-Za-z0-9+.-]*://[^/\s:@]*):(?P<word>[^\s]*?)@(?=[^@/\s]*(?:[/?#\s'\",;)]|$))"
)
_QUERY = re.compile(
    r"(?i)(?P<name>[?&;\s](?:[a-z0-9_.-]*(?:password|passwd|pwd|secret|token|signature|credential|api_?key|access_?key)"
    r"[a-z0-9_.-]*|sig)=)[^&#;\s'\"]+"
)


def redact(text: str) -> str:
    """The text with passwords in addresses, and secret-looking values in their queries, replaced by `***`."""
    if "=" in text:
        text = _QUERY.sub(r"\g<name>***", text)
    return _PASSWORD.sub(r"\g<head>:***@", text) if "://" in text else text
