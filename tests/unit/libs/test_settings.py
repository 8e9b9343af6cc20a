"""Settings: each wrong variable is named with what a good value looks like, and no secret is ever shown."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field, SecretStr, ValidationError

from libs.settings import ServiceSettings, SettingsInvalid, load, variable_of, write_peer_tokens

GOOD = {"GCP_PROJECT_ID": "my-project", "ADMIN_API_KEY": "s3cret-s3cret-s3cret"}
ROOT = Path(__file__).parents[3]


class Settings(ServiceSettings):
    service: ClassVar[str] = "tenant"

    admin_api_key: SecretStr = Field(validation_alias="ADMIN_API_KEY", description="the admin's key", examples=["x"])
    max_runs: int = Field(default=16, ge=1, description="the number of runs at once", examples=["16"])


def refusal(**environ: str) -> str:
    with pytest.raises(SettingsInvalid) as caught:
        load(Settings, GOOD | environ, env_file=None)
    return str(caught.value)


def test_plain_and_prefixed_names() -> None:
    settings = load(
        Settings,
        GOOD
        | {"CORS_ORIGINS": '["http://localhost:3000"]', "CONVERGENCE_MAX_RUNS": "3", "CONVERGENCE_REFLECTION": "true"},
        env_file=None,
    )
    assert settings.cors_origins == ("http://localhost:3000",)
    assert (settings.max_runs, settings.reflection, settings.environment) == (3, True, "prod")


def test_empty_means_unset() -> None:
    assert load(Settings, GOOD | {"PORT": "", "CONVERGENCE_LISTEN": ""}, env_file=None).port == 8080


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(SettingsInvalid, match=r"GCP_PROJECT_ID is not set\. It is .*for example GCP_PROJECT_ID=my-"):
        load(Settings, {"ADMIN_API_KEY": GOOD["ADMIN_API_KEY"]}, env_file=None)


@pytest.mark.parametrize("value", ["http://localhost:3000", '"http://localhost:3000"', "[", '{"a": 1}', "true"])
def test_cors_origins_must_be_a_json_array(value: str) -> None:
    text = refusal(CORS_ORIGINS=value)
    assert 'error parsing value for field "cors_origins"' in text
    assert 'for example CORS_ORIGINS=["http://localhost:3000"]' in text


@pytest.mark.parametrize("origin", ["localhost:3000", "http://localhost:3000/", "http://a b", "ftp://x", ""])
def test_cors_origins_are_origins(origin: str) -> None:
    assert "CORS_ORIGINS" in refusal(CORS_ORIGINS=f'["{origin}"]')


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GCP_PROJECT_ID", "My Project"),
        ("ONBOARDING", "everybody"),
        ("PORT", "http"),
        ("PORT", "70000"),
        ("CONVERGENCE_ENVIRONMENT", "staging"),
        ("CONVERGENCE_LISTEN", "50051"),
        ("CONVERGENCE_LISTEN", "host:99999"),
        ("CONVERGENCE_LOG_LEVEL", "verbose"),
        ("CONVERGENCE_DRAIN_SECONDS", "-1"),
        ("CONVERGENCE_MAX_RUNS", "0"),
        ("CONVERGENCE_KMS_KEY", "my-key"),
        ("CONVERGENCE_BIGQUERY_ENDPOINT", "localhost:9050"),
    ],
)
def test_a_bad_value_names_its_variable_and_a_good_one(name: str, value: str) -> None:
    text = refusal(**{name: value})
    assert text.count("\n") == 0
    assert text.startswith(name + " ") and f"for example {name}=" in text


def test_all_bad_variables_are_told_at_once() -> None:
    text = refusal(PORT="x", ONBOARDING="y", CONVERGENCE_MAX_RUNS="z")
    assert [line.split(" ")[0] for line in text.splitlines()] == ["ONBOARDING", "PORT", "CONVERGENCE_MAX_RUNS"]


def test_the_credentials_file_must_exist(tmp_path: Path) -> None:
    missing = tmp_path / "key.json"
    assert f"names no file: {missing}" in refusal(GOOGLE_APPLICATION_CREDENTIALS=str(missing))
    missing.write_text("{}")
    load(Settings, GOOD | {"GOOGLE_APPLICATION_CREDENTIALS": str(missing)}, env_file=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONVERGENCE_BIGQUERY_ENDPOINT", "http://127.0.0.1:9050"),
        ("CONVERGENCE_BIGQUERY_STORAGE_ENDPOINT", "127.0.0.1:9060"),
        ("CONVERGENCE_KMS_ENDPOINT", "127.0.0.1:9070"),
    ],
)
def test_stand_ins_for_the_cloud_are_local_only(name: str, value: str) -> None:
    for environment in ("prod", "dev"):
        text = refusal(**{name: value, "CONVERGENCE_ENVIRONMENT": environment})
        assert name in text and "CONVERGENCE_ENVIRONMENT=local" in text
    load(Settings, GOOD | {name: value, "CONVERGENCE_ENVIRONMENT": "local"}, env_file=None)


def test_no_message_shows_a_secret() -> None:
    text = refusal(ADMIN_API_KEY="hunter2", PORT="x")
    assert "ADMIN_API_KEY is shorter than 16 characters" in text and "hunter2" not in text
    settings = load(Settings, GOOD, env_file=None)
    assert "s3cret" not in repr(settings) + str(settings.model_dump())


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text('# comment\nGCP_PROJECT_ID=from-file\nPORT=99\nCORS_ORIGINS=["http://a"]\nUNKNOWN=1\n')
    settings = load(Settings, {"ADMIN_API_KEY": "x" * 16, "PORT": "98"}, env_file=file)
    assert (settings.gcp_project_id, settings.port, settings.cors_origins) == ("from-file", 98, ("http://a",))


def test_settings_are_frozen_and_made_of_arguments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    settings = Settings(gcp_project_id="my-project", admin_api_key=SecretStr("x" * 16))
    assert settings.port == 8080
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_the_example_file_is_good_and_complete() -> None:
    text = (ROOT / ".env.example").read_text()
    for name in ServiceSettings.model_fields:
        assert variable_of(ServiceSettings, name) in text, name
    settings = load(Settings, {}, env_file=ROOT / ".env.example")
    assert settings.cors_origins == ("http://localhost:3000",)


def test_every_field_says_what_it_is_and_shows_a_good_value() -> None:
    for name, field in ServiceSettings.model_fields.items():
        assert field.description and field.examples, name


def test_peers_are_known_by_their_tokens(tmp_path: Path) -> None:
    directory = tmp_path / "peers"
    write_peer_tokens(directory, ["tenant", "gateway"])
    file = directory / "gateway.token"
    token = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and len(token) >= 32
    write_peer_tokens(directory, ["tenant", "gateway", "cron"])
    assert file.read_text() == token
    peers = Settings(gcp_project_id="my-project", admin_api_key=SecretStr("x" * 16), peers_dir=directory).peers()
    assert peers.name_of(token) == "gateway"
    assert peers.name_of(peers.own_token) == "tenant"
    assert peers.name_of("") is None and peers.name_of(token + "x") is None


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "has no tenant.token"),
        ({"gateway": "g" * 20}, "has no tenant.token"),
        ({"tenant": "t" * 20, "gateway": ""}, "gateway is shorter"),
        ({"tenant": "t" * 20, "gateway": "t" * 20}, "share one token"),
    ],
)
def test_a_peers_directory_that_cannot_work_is_refused(tmp_path: Path, files: dict[str, str], complaint: str) -> None:
    for name, token in files.items():
        (tmp_path / f"{name}.token").write_text(token)
    settings = Settings(gcp_project_id="my-project", admin_api_key=SecretStr("x" * 16), peers_dir=tmp_path)
    with pytest.raises(SettingsInvalid, match=f"CONVERGENCE_PEERS_DIR: .*{complaint}"):
        settings.peers()


def test_the_page_secret_is_the_same_in_all_replicas(tmp_path: Path) -> None:
    write_peer_tokens(tmp_path, ["tenant"])
    one, two = (
        Settings(gcp_project_id="my-project", admin_api_key=SecretStr("x" * 16), peers_dir=tmp_path) for _ in range(2)
    )
    assert one.page_secret() == two.page_secret()
    alone = Settings(gcp_project_id="my-project", admin_api_key=SecretStr("x" * 16))
    assert alone.page_secret() != alone.page_secret()
