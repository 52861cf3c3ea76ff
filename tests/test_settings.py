"""Settings come from the environment and one file; what is wrong stops the start, naming the variable; secrets stay hidden."""

import ast
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esteira import crash, locks
from esteira.errors import ConfigError, Refused
from esteira.settings import VARIABLES, Settings, api_key, load_settings, redact, write_env

ROOT = Path(__file__).resolve().parents[1]

# K-104's table.
K104 = (
    "ML_SERVICE_PORT", "ML_MODEL_STORAGE_PATH", "ML_DATA_PATH", "ML_LOGS_PATH", "ML_WORKERS", "VECTOR_DB_HOST",
    "VECTOR_DB_PORT", "VECTOR_DB_USER", "VECTOR_DB_DATABASE", "VECTOR_DB_PASSWORD", "HUGGINGFACE_HUB_CACHE",
    "TORCH_HOME", "TRANSFORMERS_CACHE", "NLP_DEFAULT_LANGUAGE", "NLP_SENTIMENT_MODEL", "NLP_EMBEDDING_MODEL",
    "NLP_NER_MODEL", "CV_MODEL_PATH", "CV_UPLOAD_PATH", "CV_MAX_IMAGE_SIZE", "RECOMMENDATION_MODEL_PATH",
    "RECOMMENDATION_UPDATE_INTERVAL", "RECOMMENDATION_MIN_INTERACTIONS", "CHATBOT_MODEL_PATH",
    "CHATBOT_KNOWLEDGE_BASE_PATH", "CHATBOT_SESSION_TIMEOUT", "AUTOML_MAX_TRIALS", "AUTOML_MAX_TIME", "AUTOML_METRICS",
    "MODEL_MONITORING_ENABLED", "MODEL_DRIFT_THRESHOLD", "MODEL_PERFORMANCE_THRESHOLD", "CUDA_VISIBLE_DEVICES",
    "GPU_MEMORY_FRACTION", "DATABASE_URL", "REDIS_URL", "MODEL_STORAGE_PATH", "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_DEFAULT_ARTIFACT_ROOT", "JUPYTER_ENABLE_LAB", "JUPYTER_TOKEN", "POSTGRES_PASSWORD",
)  # fmt: skip


def _settings(file: Path | None = None, /, **env: str) -> Settings:
    return load_settings(env, file)


class TestReading:
    def test_without_anything_all_state_lies_in_the_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        settings = _settings()

        home = tmp_path / ".esteira"
        assert home == settings.home
        assert f"sqlite:///{home}/esteira.db" == settings.database_url
        assert f"sqlite:///{home}/mlflow.db" == settings.mlflow_uri
        assert (str(home / "artifacts"), home / "logs") == (settings.artifacts, settings.logs_path)
        assert ("default", (), "auto", "127.0.0.1") == (settings.tenant, settings.lines, settings.device, settings.host)
        assert settings.actor
        assert settings.api_key is None
        assert not home.exists(), "reading settings makes nothing"

    def test_the_environment_wins_over_the_file_by_whatever_name(self, tmp_path: Path) -> None:
        file = tmp_path / ".env"
        file.write_text("ESTEIRA_PORT=1111\nESTEIRA_WORKERS=3\n", encoding="utf-8")

        assert (2222, 3) == (_settings(file, ML_SERVICE_PORT="2222").port, _settings(file).workers)

    def test_our_own_name_wins_over_its_alias(self) -> None:
        assert 1 == _settings(ESTEIRA_PORT="1", ML_SERVICE_PORT="2").port
        assert "a" == _settings(ML_MODEL_STORAGE_PATH="a", MODEL_STORAGE_PATH="b").artifacts

    def test_an_empty_value_is_not_set(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("ESTEIRA_PORT=\nESTEIRA_TENANT=acme\n", encoding="utf-8")
        settings = _settings(tmp_path / ".env", ESTEIRA_TENANT=" ", ESTEIRA_API_KEY="")

        assert (8080, "acme", None) == (settings.port, settings.tenant, settings.api_key)

    def test_other_programs_variables_are_left_alone(self) -> None:
        assert "default" == _settings(PATH="/bin", NLP_SOMETHING="x", AWS_SECRET_ACCESS_KEY="y").tenant

    def test_values_have_their_types(self) -> None:
        settings = _settings(
            ESTEIRA_LINES="tabular, tabular@x,", CV_MAX_IMAGE_SIZE="1.5 MiB", MODEL_MONITORING_ENABLED="false",
            AUTOML_METRICS="accuracy,f1", CUDA_VISIBLE_DEVICES="0,1", GPU_MEMORY_FRACTION="0.5", ESTEIRA_BUNDLE="b",
        )  # fmt: skip

        assert ("tabular", "tabular@x") == settings.lines
        assert (1_572_864, False, ("accuracy", "f1")) == (
            settings.cv_max_image_size,
            settings.monitoring_enabled,
            settings.automl_metrics,
        )
        assert ("0,1", 0.5, Path("b")) == (settings.cuda_visible_devices, settings.gpu_memory_fraction, settings.bundle)

    @pytest.mark.parametrize("text", ["0", "-1", "NoDevFiles", "GPU-8f3a, GPU-11", "MIG-GPU-1/2/3", "all", "none"])
    def test_a_gpu_that_is_not_there_is_no_error(self, text: str) -> None:
        assert text == _settings(CUDA_VISIBLE_DEVICES=text, ESTEIRA_DEVICE="auto").cuda_visible_devices

    def test_a_database_is_composed_from_its_parts_only_where_no_address_is_given(self) -> None:
        parts = {"VECTOR_DB_HOST": "pg", "POSTGRES_PASSWORD": "p@ss:w/rd", "VECTOR_DB_PORT": "5433"}

        composed = load_settings(parts, None).database_url
        assert "postgresql+psycopg2://kryonix_ml:p%40ss%3Aw%2Frd@pg:5433/kryonix_ml" == composed
        assert "sqlite:///x.db" == load_settings({**parts, "DATABASE_URL": "sqlite:///x.db"}, None).database_url

    def test_settings_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            setattr(_settings(), *("port", 1))

    @pytest.mark.parametrize(
        ("line", "value"),
        [
            ("ESTEIRA_TENANT=acme", "acme"),
            ("export ESTEIRA_TENANT = acme  # the customer", "acme"),
            ("ESTEIRA_TENANT='acme'", "acme"),
            ('  ESTEIRA_TENANT="acme"', "acme"),
            ("#ESTEIRA_TENANT=acme", "default"),
            ("ESTEIRA_TENANT=a#b", None),
        ],
    )
    def test_lines_of_the_file(self, line: str, value: str | None, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text(f"\n# words\n{line}\n", encoding="utf-8")
        if value is None:
            with pytest.raises(ConfigError):
                _settings(tmp_path / ".env")
        else:
            assert value == _settings(tmp_path / ".env").tenant

    def test_importing_settings_is_quick_and_light(self) -> None:
        code = (
            "import sys; import esteira.settings\n"
            "print([name for name in ('sqlalchemy', 'numpy', 'yaml', 'mlflow', 'pandas') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)

        assert "[]" == done.stdout.strip()


class TestRefusing:
    @pytest.mark.parametrize(
        ("env", "names"),
        [
            ({"ML_SERVICE_PORT": "80800"}, "ML_SERVICE_PORT"),
            ({"ESTEIRA_PORT": "http"}, "ESTEIRA_PORT"),
            ({"ML_WORKERS": "0"}, "ML_WORKERS"),
            ({"ESTEIRA_DEVICE": "tpu"}, "ESTEIRA_DEVICE"),
            ({"ESTEIRA_TENANT": "a b"}, "ESTEIRA_TENANT"),
            ({"ESTEIRA_API_KEY": "two words"}, "ESTEIRA_API_KEY"),
            ({"CV_MAX_IMAGE_SIZE": "ten"}, "CV_MAX_IMAGE_SIZE"),
            ({"MODEL_DRIFT_THRESHOLD": "1.5"}, "MODEL_DRIFT_THRESHOLD"),
            ({"MODEL_MONITORING_ENABLED": "perhaps"}, "MODEL_MONITORING_ENABLED"),
            ({"GPU_MEMORY_FRACTION": "0"}, "GPU_MEMORY_FRACTION"),
            ({"CUDA_VISIBLE_DEVICES": "first"}, "CUDA_VISIBLE_DEVICES"),
            ({"AUTOML_MAX_TRIALS": "-3"}, "AUTOML_MAX_TRIALS"),
            ({"NLP_DEFAULT_LANGUAGE": "Portuguese"}, "NLP_DEFAULT_LANGUAGE"),
            ({"VECTOR_DB_PORT": "x", "VECTOR_DB_HOST": "pg"}, "VECTOR_DB_PORT"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_an_invalid_value_is_refused_by_name(self, env: dict[str, str], names: str) -> None:
        with pytest.raises(ConfigError) as caught:
            load_settings(env, None)

        assert "bad_setting" == caught.value.code
        assert caught.value.message.startswith(f"{names}: ")
        assert 2 == caught.value.exit_code
        if names != "ESTEIRA_API_KEY":
            assert repr(env[names]) in caught.value.message

    def test_an_unknown_variable_of_ours_is_refused_with_near_ones(self) -> None:
        with pytest.raises(ConfigError) as caught:
            _settings(ESTEIRA_TENNANT="acme")

        assert "ESTEIRA_TENNANT" in caught.value.message
        assert "ESTEIRA_TENANT" in caught.value.cure

    @pytest.mark.parametrize("key", ["ESTEIRA_TENNANT", "ML_WORKER", "SOMETHING"])
    def test_any_unknown_key_of_the_file_is_refused_with_its_line(self, key: str, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text(f"ESTEIRA_PORT=1\n{key}=1\n", encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            _settings(tmp_path / ".env")

        assert key in caught.value.message
        assert caught.value.where.endswith("line 2")

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("ESTEIRA_PORT=1\nESTEIRA_PORT=2\n", "repeated_setting"),
            ("just words\n", "bad_env_file"),
            ("=1\n", "bad_env_file"),
        ],
    )
    def test_a_file_that_is_not_one_is_refused(self, text: str, code: str, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            _settings(tmp_path / ".env")

        assert code == caught.value.code

    def test_a_file_that_is_no_text_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_bytes(b"ESTEIRA_TENANT=\xff\n")
        with pytest.raises(ConfigError, match="UTF-8"):
            _settings(tmp_path / ".env")


class TestSecrets:
    def test_no_secret_has_a_default_or_is_shown(self) -> None:
        secret = {variable.names[0]: f"s3cret{number}" for number, variable in enumerate(VARIABLES) if variable.secret}
        assert {
            "ESTEIRA_KEY", "ESTEIRA_API_KEY", "ESTEIRA_OPERATOR_KEY", "ESTEIRA_KFP_TOKEN", "VECTOR_DB_PASSWORD", "JUPYTER_TOKEN",
            "SENTRY_DSN",
        } == set(secret)  # fmt: skip
        assert all(getattr(_settings(), variable.field) is None for variable in VARIABLES if variable.secret)

        more = {
            "VECTOR_DB_HOST": "pg",
            "REDIS_URL": "redis://:s3cret@host/0",
            "ESTEIRA_MLFLOW_URI": "http://u:s3cret@host",
        }
        settings = load_settings({**secret, **more}, None)

        assert "s3cret" in settings.database_url
        assert "s3cret" not in repr(settings) + str(settings) + f"{settings}"

    def test_a_secret_is_not_shown_when_it_is_refused(self) -> None:
        with pytest.raises(ConfigError) as caught:
            _settings(ESTEIRA_API_KEY="s3cret key", DATABASE_URL="postgresql://u:s3cret@h/d")

        assert "s3cret" not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r} {caught.value.__cause__}"

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("postgresql://ana:p@ss@h:1/d?password=x&a=1", "postgresql://ana:***@h:1/d?password=***&a=1"),
            ("s3://b/k?X-Amz-Signature=abc", "s3://b/k?X-Amz-Signature=***"),
            ("two: http://a:b@c/ and http://d:e@f/", "two: http://a:***@c/ and http://d:***@f/"),
            ("redis://:pw@h/0", "redis://:***@h/0"),
            ("sqlite:////tmp/a.db select 'x:y@z'", "sqlite:////tmp/a.db select 'x:y@z'"),
            ("http://host:80/a@b", "http://host:***@b"),  # a password may hold a slash: rather hide too much
            ("plain words", "plain words"),
        ],
    )
    def test_passwords_in_addresses_are_hidden(self, text: str, shown: str) -> None:
        assert shown == redact(text)

    @given(
        user=st.text("abc.", max_size=4),
        word=st.text("abcXYZ:/@#?%!", min_size=1, max_size=12),
        tail=st.sampled_from(["", "/d", "?a=1"]),
    )
    def test_no_password_survives_in_an_encoded_address(self, user: str, word: str, tail: str) -> None:
        from urllib.parse import quote

        encoded = quote(word, safe="")
        assert f"postgresql://{user}:***@host{tail}" == redact(f"postgresql://{user}:{encoded}@host{tail}")

    def test_a_key_is_made_once_and_only_its_owner_may_read_it(self, tmp_path: Path) -> None:
        settings = _settings(ESTEIRA_HOME=str(tmp_path / "home"))
        key, made = api_key(settings)

        assert (True, (key, False)) == (made, api_key(settings))
        assert 32 <= len(key)
        kept = tmp_path / "home" / "api_key"
        assert 0o600 == stat.S_IMODE(kept.stat().st_mode)
        kept.chmod(0o644)
        api_key(settings)
        assert 0o600 == stat.S_IMODE(kept.stat().st_mode)
        assert ["api_key"] == [path.name for path in (tmp_path / "home").iterdir()]

    def test_threads_that_ask_at_once_get_the_same_key(self, tmp_path: Path) -> None:
        settings = _settings(ESTEIRA_HOME=str(tmp_path))
        found: list[tuple[str, bool]] = []
        threads = [threading.Thread(target=lambda: found.append(api_key(settings))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert 1 == len({key for key, _ in found})
        assert 1 == sum(made for _, made in found)

    def test_the_key_of_the_environment_wins_and_is_not_kept(self, tmp_path: Path) -> None:
        assert ("given", False) == api_key(_settings(ESTEIRA_HOME=str(tmp_path / "home"), ESTEIRA_API_KEY="given"))
        assert not (tmp_path / "home").exists()

    def test_an_empty_key_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "api_key").touch()
        with pytest.raises(ConfigError) as caught:
            api_key(_settings(ESTEIRA_HOME=str(tmp_path)))
        assert "empty_api_key" == caught.value.code


class TestWriting:
    def test_what_is_written_reads_as_the_defaults(self, tmp_path: Path) -> None:
        write_env(tmp_path / ".env")

        assert _settings() == _settings(tmp_path / ".env")

    def test_what_a_person_wrote_stays(self, tmp_path: Path) -> None:
        file = tmp_path / ".env"
        file.write_text("# mine\nML_WORKERS=3\n# DATABASE_URL=\nVECTOR_DB_PASSWORD=s3cret", encoding="utf-8")
        file.chmod(0o640)

        added = write_env(file)

        text = file.read_text(encoding="utf-8")
        assert text.startswith("# mine\nML_WORKERS=3\n# DATABASE_URL=\nVECTOR_DB_PASSWORD=s3cret\n")
        assert not {"ESTEIRA_WORKERS", "ESTEIRA_DATABASE_URL", "VECTOR_DB_PASSWORD"} & set(added)
        assert (3, 0o640) == (_settings(file).workers, stat.S_IMODE(file.stat().st_mode))
        assert [".env"] == [path.name for path in tmp_path.iterdir()]

    def test_no_secret_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ESTEIRA_API_KEY", "s3cret")
        write_env(tmp_path / ".env")

        text = (tmp_path / ".env").read_text(encoding="utf-8")
        assert "s3cret" not in text
        assert "\n# ESTEIRA_API_KEY=\n" in text
        assert 0o600 == stat.S_IMODE((tmp_path / ".env").stat().st_mode)


@pytest.mark.requirement("K-104")
def test_setup_twice_leaves_one_copy_and_an_invalid_value_stops_the_start(tmp_path: Path) -> None:
    """K-104 Done when: running setup twice leaves one copy of each variable; an invalid value stops start-up naming the variable."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("ESTEIRA_")}
    env["PYTHONPATH"] = str(ROOT)

    def esteira(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "esteira.cli", *arguments],
            cwd=tmp_path, env={**env, **more}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    file = tmp_path / ".env"
    first = esteira("init")
    assert 0 == first.returncode, first.stderr
    once = file.read_text(encoding="utf-8")
    assert 0 == esteira("init").returncode
    assert once == file.read_text(encoding="utf-8")

    mentioned = re.findall(r"^#? ?([A-Z][A-Z0-9_]*)=", once, flags=re.MULTILINE)
    known = {name: variable for variable in VARIABLES for name in variable.names}
    assert len(set(mentioned)) == len(mentioned)
    assert {variable.names[0] for variable in VARIABLES} == set(mentioned)
    for name in K104:
        assert known[name].names[0] in mentioned, f"{name} is written under the one name that it has"
    for name in K104:
        if not known[name].secret:
            continue
        assert not re.search(rf"^{name}=", once, flags=re.MULTILINE), "no secret is written"

    assert 0 == esteira("lines").returncode
    stopped = esteira("lines", ML_WORKERS="many")
    assert 2 == stopped.returncode
    assert "ML_WORKERS" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    file.write_text(once.replace("ESTEIRA_PORT=8080", "ESTEIRA_PORT=99999"), encoding="utf-8")
    stopped = esteira("lines")
    assert 2 == stopped.returncode
    assert "ESTEIRA_PORT" in stopped.stderr


class TestLocks:
    def test_a_lock_that_is_held_is_refused_naming_its_holder(self, tmp_path: Path) -> None:
        with locks.hold(tmp_path, "run-tabular@x/y", what="a run of tabular@x"), pytest.raises(Refused) as caught:  # noqa: SIM117
            with locks.hold(tmp_path, "run-tabular@x/y", what="a run of tabular@x"):
                pass

        assert "locked" == caught.value.code
        assert f"a run of tabular@x may be under way once at a time, but process {os.getpid()}" in caught.value.message
        assert ["run-tabular@x_y.lock"] == [path.name for path in (tmp_path / "locks").iterdir()]

    def test_a_lock_is_free_again_after_use_and_after_a_failure(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError), locks.hold(tmp_path, "a"):
            raise KeyError
        with locks.hold(tmp_path, "a"), locks.hold(tmp_path, "b"):
            pass

    def test_the_lock_of_a_killed_process_is_free(self, tmp_path: Path) -> None:
        code = (
            "import os, sys; from pathlib import Path; from esteira import locks\n"
            "with locks.hold(Path(sys.argv[1]), 'a'):\n    print('held', flush=True); os.kill(os.getpid(), 9)"
        )
        died = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, timeout=20, check=False)

        assert (-9, b"held\n") == (died.returncode, died.stdout)
        with locks.hold(tmp_path, "a"):
            pass

    def test_a_forked_child_that_lives_on_does_not_keep_the_lock(self, tmp_path: Path) -> None:
        code = (
            "import os, sys, time; from pathlib import Path; from esteira import locks\n"
            "with locks.hold(Path(sys.argv[1]), 'a'):\n"
            "    pid = os.fork()\n"
            "    if pid == 0: time.sleep(30); os._exit(0)\n"
            "with locks.hold(Path(sys.argv[1]), 'a'): print('again')\n"
            "os.kill(pid, 9)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, timeout=20, check=False)

        assert b"again\n" == done.stdout, done.stderr

    def test_waiting_gets_the_lock_once_it_is_given_back(self, tmp_path: Path) -> None:
        held, release = threading.Event(), threading.Event()

        def holder() -> None:
            with locks.hold(tmp_path, "a"):
                held.set()
                release.wait(10)

        thread = threading.Thread(target=holder)
        thread.start()
        held.wait(10)
        threading.Timer(0.1, release.set).start()
        with locks.hold(tmp_path, "a", wait=10):
            assert release.is_set()
        thread.join()


class TestCrashPoints:
    def test_every_point_in_the_source_is_declared_and_every_declared_one_exists(self) -> None:
        called: set[str] = set()
        for room in ("esteira", "components", "serving", "pipelines", "families"):
            for path in (ROOT / room).rglob("*.py"):
                called |= _points(path)

        assert set(crash.POINTS) == called
        assert sorted(crash.POINTS) == list(crash.POINTS)

    def test_a_point_does_nothing_unless_it_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        crash.point("alias.before_commit")
        monkeypatch.setenv("ESTEIRA_CRASH_AT", "another")
        crash.point("alias.before_commit")


def _points(path: Path) -> set[str]:
    """Names given to `crash.point(...)` or an imported `point(...)`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "point" and isinstance(node.args[0].value, str):
            found.add(node.args[0].value)
    return found
