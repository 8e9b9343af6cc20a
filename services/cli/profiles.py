"""Profiles: where an API is and the key for it, one file each in the user's configuration directory.

A file is written whole and readable by its owner only; one that others can read is refused. This is also the one place
of the command line that reads the environment.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from urllib.parse import urlsplit

import typer

from services.cli.failures import Exit, Failure

LOCAL_URL = "http://127.0.0.1:8080"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One way to call one API. ``tenant_id`` is empty for the platform admin, ``name`` for one of the environment."""

    name: str
    url: str
    api_key: str = field(default="", repr=False)
    tenant_id: str = ""
    role: str = ""
    api_key_id: str = ""
    ca_file: str = ""
    user_id: str = ""

    @property
    def address(self) -> Address:
        """Where the gateway is."""
        return Address.parse(self.url)


@dataclass(frozen=True, slots=True)
class Address:
    """A gateway's host and port, and whether it is spoken to over TLS."""

    host: str
    port: int
    tls: bool

    @property
    def target(self) -> str:
        """The same as gRPC writes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads ``https://host[:port]``; ``http://`` is for this machine only, because it shows the key to the wire."""
        parts = urlsplit(url)
        try:
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host, port = "", None
        if parts.scheme not in ("http", "https") or not host or parts.path.strip("/") or parts.query or parts.username:
            raise Failure(
                f"{url!r} is not the address of an API.",
                exit_code=Exit.USAGE,
                advice="Write it as https://api.example.com; for the local stack, http://127.0.0.1:8080.",
            )
        tls = parts.scheme == "https"
        if not tls and not _is_loopback(host):
            raise Failure(
                f"{url} is not encrypted: the key would be readable on the way.",
                exit_code=Exit.USAGE,
                advice=f"Use https://{host}; http:// is for this machine only.",
            )
        return cls(host, port or (443 if tls else 80), tls)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Profiles:
    """The stored profiles, and which of them is meant."""

    def __init__(self, directory: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ  # noqa: TID251  the one place of the command line
        given = self._environ.get("CONVERGENCE_CONFIG_DIR", "")
        self.directory = directory or Path(given or typer.get_app_dir("convergence"))

    @property
    def active(self) -> str:
        """Name of the profile in use where none is named; empty if there is none."""
        try:
            return (self.directory / "active").read_text("utf-8").strip()
        except FileNotFoundError:
            return ""

    def names(self) -> list[str]:
        """Names of all stored profiles."""
        return sorted(path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}"))

    def current(self, name: str = "") -> Profile:
        """The profile named, or of the environment, or in use; exits 3 if there is none.

        ``CONVERGENCE_API_KEY`` (with ``CONVERGENCE_API_URL``) is a profile without a file, for automation.
        """
        name = name or self._environ.get("CONVERGENCE_PROFILE", "")
        if name:
            return self.read(name)
        if key := self._environ.get("CONVERGENCE_API_KEY", "").strip():
            return Profile(name="", url=self.url(), api_key=key, tenant_id=self.tenant)
        if not self.active:
            raise Failure("You are not signed in.", exit_code=Exit.DENIED, advice="Sign in: `convergence login`.")
        return self.read(self.active)

    def current_or_nobody(self, name: str = "", url: str = "") -> Profile:
        """As ``current``, but nobody (or the environment's key) at ``url`` where nobody is signed in there."""
        key = self._environ.get("CONVERGENCE_API_KEY", "").strip()
        named = name or self._environ.get("CONVERGENCE_PROFILE", "")
        if named or (not url and (key or self.active)):
            return self.current(name)
        return Profile(name="", url=url or self.url(), api_key=key)

    @property
    def tenant(self) -> str:
        """The tenant that the environment names."""
        return self._environ.get("CONVERGENCE_TENANT", "")

    def url(self) -> str:
        """The API that the environment names, or that of the local stack."""
        return self._environ.get("CONVERGENCE_API_URL", "") or LOCAL_URL

    def read(self, name: str) -> Profile:
        """A stored profile; exits 4 if there is none of that name."""
        path = self._path(name)
        try:
            mode = path.stat().st_mode
            if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise Failure(
                    f"{path} holds a key and can be read by others.",
                    advice=f"If nobody did: `chmod 600 {path}`. If somebody may have: `convergence keys rotate` too.",
                )
            body = json.loads(path.read_text("utf-8"))
            known = {each.name for each in fields(Profile)}
            return Profile(**{key: value for key, value in body.items() if key in known} | {"name": name})
        except FileNotFoundError:
            known_names = ", ".join(self.names()) or "none yet"
            raise Failure(
                f"There is no profile {name!r}.",
                exit_code=Exit.NOT_FOUND,
                advice=f"Profiles: {known_names}. `convergence login --profile {name}` makes it.",
            ) from None
        except (ValueError, TypeError):
            raise Failure(
                f"{path} cannot be read.", advice=f"Sign in again: `convergence login --profile {name}`."
            ) from None

    def save(self, profile: Profile, *, activate: bool = True) -> Path:
        """Stores a profile, for its owner only, and makes it the one in use."""
        path = self._path(profile.name)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        body = {key: value for key, value in asdict(profile).items() if key != "name" and value}
        _write(path, json.dumps(body, indent=2) + "\n")
        if activate:
            self.activate(profile.name)
        return path

    def activate(self, name: str) -> None:
        """Makes a stored profile the one in use."""
        _write(self.directory / "active", name + "\n")

    def remove(self, name: str) -> None:
        """Forgets a profile; one that is not there is fine."""
        self._path(name).unlink(missing_ok=True)
        if self.active == name:
            (self.directory / "active").unlink(missing_ok=True)

    @property
    def _folder(self) -> Path:
        return self.directory / "profiles"

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise Failure(
                f"{name!r} is not a name for a profile.",
                exit_code=Exit.USAGE,
                advice="Use letters, digits, '.', '_' and '-', up to 64 of them.",
            )
        return self._folder / (name + _SUFFIX)


def _write(path: Path, text: str) -> None:
    """Replaces a file in one step; at no moment is it readable by others, or half written."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
