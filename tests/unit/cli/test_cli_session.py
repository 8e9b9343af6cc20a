"""Signing in and the stored keys; what a command says, and ends with, when it is refused. No secret shows anywhere."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from libs import errors
from services.cli import doctor, options
from services.cli.failures import Exit, Failure
from services.cli.profiles import Address, Profile, Profiles
from tests.support.certificates import Authority
from tests.support.cli import KEY, REQUEST_ID, Gateway, Terminal, serving
from tests.support.ports import dead_port

SECRET = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("how", ["stdin", "dash", "file"])
def test_login_checks_the_key_and_stores_it_for_its_owner_alone(
    gateway: Gateway, nobody: Terminal, tmp_path: Path, how: str
) -> None:
    gateway.answers["tenant.GetCaller"] = {"tenant_id": "acme", "role": "RUNNER", "api_key_id": "k1"}
    (tmp_path / "key").write_text(KEY + "\n")
    option = {"stdin": [], "dash": ["--key-file", "-"], "file": ["--key-file", str(tmp_path / "key")]}[how]
    stdin = "" if how == "file" else KEY + "\n"
    done = nobody.run("login", gateway.address, "--user-id", "alice", *option, stdin=stdin)
    assert done.exit_code == 0 and "RUNNER of tenant acme" in done.stderr
    assert KEY not in done.output
    path = nobody.directory / "profiles" / "default.json"
    assert json.loads(path.read_text())["api_key"] == KEY
    assert [mode(each) for each in (path, path.parent, nobody.directory)] == [0o600, 0o700, 0o700]
    assert nobody.run("usage").exit_code == 0
    _, _, metadata = gateway.calls[-1]
    assert (metadata["x-api-key"], metadata["x-user-id"]) == (KEY, "alice")
    assert gateway.asked("tenant.GetUsage") == [{"tenant_id": "acme"}]


def test_a_refused_key_is_not_stored(gateway: Gateway, nobody: Terminal) -> None:
    gateway.answers["tenant.GetCaller"] = errors.Unauthenticated("API_KEY_INVALID", "The API key is not valid.")
    done = nobody.run("login", gateway.address, stdin=KEY)
    assert done.exit_code == 3 and "The API key is not valid." in done.stderr
    assert not list(nobody.directory.rglob("*.json"))


@pytest.mark.parametrize("text", ["", "two words", "line\x00", "schlüssel"])
def test_what_is_no_key_is_not_sent(gateway: Gateway, nobody: Terminal, text: str) -> None:
    assert nobody.run("login", gateway.address, stdin=text).exit_code == 2
    assert not gateway.calls


def test_a_key_is_never_an_argument(gateway: Gateway, nobody: Terminal) -> None:
    for argv in (["login", "--key", KEY], ["login", gateway.address, KEY], ["login", "--api-key", KEY]):
        assert nobody.run(*argv).exit_code == 2
    assert not gateway.calls


def test_profiles_are_apart_and_forgotten_one_by_one(gateway: Gateway, nobody: Terminal) -> None:
    nobody.sign_in(gateway.address, name="acme")
    nobody.sign_in(gateway.address, tenant_id="", role="PLATFORM_ADMIN", name="admin")
    listed = nobody.json("profiles")["profiles"]
    assert [(one["profile"], one["active"]) for one in listed] == [("acme", False), ("admin", True)]
    assert KEY not in json.dumps(listed)
    assert nobody.run("profiles", "--use", "acme").exit_code == 0
    nobody.run("runs", "list")
    nobody.run("tenants", "list", "--profile", "admin")
    nobody.run("tenants", "list", env={"CONVERGENCE_PROFILE": "admin"})
    assert len(gateway.calls) == 3
    assert nobody.run("logout").exit_code == 0
    gone = nobody.run("usage")
    assert gone.exit_code == 3 and "convergence login" in gone.stderr
    assert nobody.run("usage", "--profile", "acme").exit_code == 4
    assert nobody.profiles.names() == ["admin"]
    assert nobody.run("usage", "--profile", "../admin").exit_code == 2


def test_a_stored_key_that_others_can_read_is_refused(gateway: Gateway, acme: Terminal) -> None:
    path = acme.directory / "profiles" / "default.json"
    path.chmod(0o640)
    refused = acme.run("usage")
    assert refused.exit_code == 1 and f"chmod 600 {path}" in refused.stderr
    assert not gateway.calls
    path.chmod(0o600)
    path.write_text("{")
    assert "Sign in again" in acme.run("usage").stderr


def test_automation_needs_no_file(gateway: Gateway, nobody: Terminal) -> None:
    gateway.answers["tenant.GetCaller"] = {"tenant_id": "acme", "role": "ADMIN"}
    given = {"CONVERGENCE_API_KEY": KEY, "CONVERGENCE_API_URL": gateway.address}
    assert nobody.run("runs", "list", env=given).exit_code == 0
    assert gateway.asked("pipeline_executor.ListRuns")[0]["tenant_id"] == "acme"
    assert not nobody.directory.exists()


def test_onboarding_shows_the_key_once_or_signs_in_with_it(gateway: Gateway, nobody: Terminal) -> None:
    gateway.answers["tenant.OnboardTenant"] = {"tenant_id": "acme", "api_key": KEY, "dataset_status": "CREATED"}
    gateway.answers["tenant.GetCaller"] = {"tenant_id": "acme", "role": "ADMIN", "api_key_id": "k1"}
    argv = ["tenants", "onboard", "acme", "--company", "Acme", "--email", "a@acme.test", "--plan", "scale"]
    at = ["--api", gateway.address]
    shown = nobody.run(*argv, *at)
    assert shown.stdout.count(KEY) == 1 and KEY not in shown.stderr and "never again" in shown.stderr
    assert nobody.json(*argv, *at)["api_key"] == KEY
    assert not nobody.directory.exists()
    signed_in = nobody.run(*argv, *at, "--login")
    assert signed_in.exit_code == 0 and KEY not in signed_in.output
    assert nobody.profiles.current().api_key == KEY and nobody.profiles.active == "acme"
    [request, *_] = gateway.asked("tenant.OnboardTenant")
    assert request == {
        "tenant_id": "acme",
        "company_name": "Acme",
        "admin_email": "a@acme.test",
        "subscription_plan": "SCALE",
    }


def test_rotating_ones_own_key_keeps_one_signed_in(gateway: Gateway, acme: Terminal) -> None:
    gateway.answers["tenant.GetCaller"] = {"tenant_id": "acme", "role": "ADMIN", "api_key_id": "k1"}
    gateway.answers["tenant.RotateApiKey"] = {"api_key_id": "k2", "api_key": KEY + "new"}
    done = acme.run("keys", "rotate", "--overlap", "1h")
    assert done.exit_code == 0 and done.stdout.count(KEY + "new") == 1
    assert gateway.asked("tenant.RotateApiKey") == [{"tenant_id": "acme", "api_key_id": "k1", "overlap_seconds": 3600}]
    mine = acme.profiles.current()
    assert (mine.api_key, mine.api_key_id) == (KEY + "new", "k2")
    gateway.answers["tenant.RotateApiKey"] = {"api_key_id": "k9", "api_key": "other"}
    acme.run("keys", "rotate", "k7")
    assert acme.profiles.current() == mine


@pytest.mark.parametrize("whole", [False, True])
def test_a_credential_goes_in_by_file_or_stdin_and_never_comes_out(
    gateway: Gateway, acme: Terminal, tmp_path: Path, whole: bool
) -> None:
    gateway.answers["credential.CreateCredential"] = {
        "credential_id": "c1",
        "status": "PENDING",
        "external_id": "ext-1",
        "action": "CREATED",
    }
    secret = {"type": "service_account", "private_key": SECRET}
    body = {"provider": "GCP", "credentials": secret, "source": {"dataset_id": "d"}} if whole else secret
    file = tmp_path / "key.json"
    file.write_text(json.dumps(body))
    source = [] if whole else ["--source", "dataset_id=d"]
    by_file = acme.run("credentials", "add", "gcp", "--file", str(file), *source)
    by_stdin = acme.run("credentials", "add", "gcp", "--file", "-", *source, stdin=json.dumps(body))
    assert by_file.exit_code == by_stdin.exit_code == 0, by_file.output
    assert "ext-1" in by_file.stdout and "trust policy" in by_file.stderr
    first, second = gateway.asked("credential.CreateCredential")
    assert first == second and first["credentials"] == secret and first["source"] == {"dataset_id": "d"}
    for text in ("not json", '["list"]', '{"private_key": "c2VjcmV0"'):
        file.write_text(text)
        refused = acme.run("credentials", "add", "gcp", "--file", str(file))
        assert refused.exit_code == 2 and "is not a JSON object" in refused.stderr and "c2VjcmV0" not in refused.output
    assert "cannot be read" in acme.run("credentials", "add", "gcp", "--file", str(tmp_path / "none")).stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errors.InvalidArgument("DATE_INVALID", "A bad date."), 2, ["A bad date.", "DATE_INVALID"]),
        (
            errors.InvalidArgument("BAD", "Wrong.", field_violations=[errors.FieldViolation("cron", "has six fields")]),
            2,
            ["cron has six fields"],
        ),
        (errors.Unauthenticated("API_KEY_INVALID", "No."), 3, ["convergence login"]),
        (errors.PermissionDenied("ROLE_TOO_LOW", "This needs a key with role ADMIN."), 3, ["role ADMIN"]),
        (errors.NotFound("TENANT_NOT_FOUND", "Tenant not found."), 4, ["Tenant not found.", "convergence whoami"]),
        (
            errors.ResourceExhausted("QUOTA", "Used up.", retry_after=timedelta(hours=5, minutes=7)),
            5,
            ["Try again in 5 h 7 min.", "convergence usage"],
        ),
        (errors.Unavailable("STORE_UNAVAILABLE", "The store did not answer."), 6, ["The store did not answer."]),
        (errors.AlreadyExists("TENANT_EXISTS", "It is taken."), 1, ["It is taken."]),
        (errors.FailedPrecondition("CREDENTIAL_NOT_FOUND", "No credential."), 1, ["convergence credentials add"]),
        (errors.Internal("INTERNAL", "secret cause"), 1, ["Internal error"]),
    ],
    ids=lambda value: value.reason if isinstance(value, errors.Error) else "",
)
def test_a_refusal_says_why_what_to_do_and_which_request(
    gateway: Gateway, acme: Terminal, error: errors.Error, code: int, said: list[str]
) -> None:
    gateway.answers["tenant.GetTenant"] = error
    for output in ("table", "json"):
        done = acme.run("tenants", "get", "--output", output)
        assert (done.exit_code, done.stdout) == (code, "")
        for text in [*said, f"request id: {REQUEST_ID}"]:
            assert text in done.stderr
        assert "secret cause" not in done.stderr


def test_nobody_there_is_said_without_noise(nobody: Terminal) -> None:
    with dead_port() as unused:
        url = f"http://127.0.0.1:{unused}"
        nobody.sign_in(url)
        done = nobody.run("usage")
    assert done.exit_code == 6 and f"error: No answer from {url}." in done.stderr


def test_over_tls_the_server_is_known_or_nothing_is_sent(nobody: Terminal, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    with serving(authority.issue("gateway", address="127.0.0.1")) as gateway:
        gateway.answers["tenant.GetCaller"] = {"tenant_id": "acme", "role": "ADMIN"}
        for trusted in ([], ["--ca-file", str(stranger.certificate)]):
            refused = nobody.run("login", gateway.address, *trusted, stdin=KEY)
            assert refused.exit_code == 6 and not gateway.calls, refused.output
        trusted = ["--ca-file", str(authority.certificate)]
        assert nobody.run("login", gateway.address, *trusted, stdin=KEY).exit_code == 0
        assert nobody.run("usage").exit_code == 0
        certificate = doctor._certificate("127.0.0.1", Address.parse(gateway.address).port, "", datetime.now(UTC))
        assert certificate.verdict == "FAIL" and "--ca-file" in certificate.fix
        ours = str(authority.certificate)
        soon = doctor._certificate("127.0.0.1", Address.parse(gateway.address).port, ours, datetime.now(UTC))
        assert (soon.verdict, soon.fix) == ("WARN", "Renew it."), soon


def test_a_read_is_tried_again_and_a_write_without_an_identity_is_not(gateway: Gateway, acme: Terminal) -> None:
    down = errors.Unavailable("STORE_UNAVAILABLE", "The store did not answer.")
    for rpc, argv in (
        ("tenant.GetTenant", ["tenants", "get"]),
        ("pipeline_executor.RunPipeline", ["run", "gcp/cost/billing"]),
        ("tenant.CreateApiKey", ["keys", "create"]),
    ):
        gateway.answers[rpc] = down
        assert acme.run(*argv).exit_code == 6
    keys = [request["request_id"] for request in gateway.asked("pipeline_executor.RunPipeline")]
    assert len(keys) == 3 and len(set(keys)) == 1, "the same run, asked for again"
    assert len(gateway.asked("tenant.GetTenant")) == 3
    assert len(gateway.asked("tenant.CreateApiKey")) == 1


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("https://api.example.com", Address("api.example.com", 443, True)),
        ("https://api.example.com:8443/", Address("api.example.com", 8443, True)),
        ("http://localhost:8080", Address("localhost", 8080, False)),
        ("http://127.3.2.1", Address("127.3.2.1", 80, False)),
        ("http://[::1]:8080", Address("::1", 8080, False)),
    ],
)
def test_plain_text_is_for_this_machine_only(url: str, wanted: Address) -> None:
    assert Address.parse(url) == wanted


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com",
        "http://localhost.example.com",
        "http://10.0.0.1:8080",
        "http://2130706433",
        "api.example.com",
        "ftp://x",
        "https://",
        "https://x:99999",
        "https://u:p@x",
        "https://x/api",
        "",
    ],
)
def test_an_address_that_would_show_the_key_or_is_none_is_refused(url: str) -> None:
    with pytest.raises(Failure) as caught:
        Address.parse(url)
    assert caught.value.exit_code is Exit.USAGE and caught.value.advice


def test_a_profile_that_a_newer_release_wrote_is_read(tmp_path: Path) -> None:
    profiles = Profiles(tmp_path / "c", {})
    path = profiles.save(Profile(name="x", url="https://x.example", api_key=KEY))
    path.write_text(json.dumps({**json.loads(path.read_text()), "unheard_of": 1}))
    assert profiles.read("x") == Profile(name="x", url="https://x.example", api_key=KEY)
    assert KEY not in repr(profiles.read("x"))


def test_parameters_are_json_where_they_are_json(tmp_path: Path) -> None:
    file = tmp_path / "source.json"
    file.write_text('{"dataset_id": "d"}')
    given = ["n=3", "on=true", "text=hello", "zip=012", f"source=@{file}", "a=b=c"]
    assert options.parameters(given) == {
        "n": 3,
        "on": True,
        "text": "hello",
        "zip": "012",
        "source": {"dataset_id": "d"},
        "a": "b=c",
    }
    assert options.parameters([]) is None
    assert options.source([str(file)]) == {"dataset_id": "d"}
    assert options.source(["project_id=1"]) == {"project_id": "1"}, "ids stay texts"
    assert options.span("36h") == timedelta(hours=36)
