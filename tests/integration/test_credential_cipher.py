"""The envelope against a key service spoken to by the real client: what was sealed for one place opens in no other."""

import dataclasses
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from deploy.local import kms
from libs import errors
from services.credential.cipher import EnvelopeCipher, additional_data, kms_client
from services.credential.secret import Secret
from services.credential.states import Binding, Kind, Provider

KEY = "projects/p1/locations/global/keyRings/ring/cryptoKeys/credentials"
CONTENT = {"type": "service_account", "private_key": "canary-5ecre7"}
BINDING = Binding("acme", "cred-1", Provider.GCP, Kind.SERVICE_ACCOUNT, "v1")
OTHERS = [
    dataclasses.replace(BINDING, tenant_id="globex"),
    dataclasses.replace(BINDING, credential_id="cred-2"),
    dataclasses.replace(BINDING, provider=Provider.AWS),
    dataclasses.replace(BINDING, kind=Kind.ROLE),
    dataclasses.replace(BINDING, version_id="v2"),
]


@pytest.fixture
async def cipher(tmp_path: Path) -> AsyncIterator[EnvelopeCipher]:
    async with kms.running(tmp_path / "keys.json", "127.0.0.1:0", create_key=KEY) as address:
        yield EnvelopeCipher(kms_client(address), KEY)


async def rotate(cipher: EnvelopeCipher) -> str:
    version = await cipher._kms.create_crypto_key_version({"parent": KEY, "crypto_key_version": {}})
    number = version.name.rpartition("/")[2]
    await cipher._kms.update_crypto_key_primary_version({"name": KEY, "crypto_key_version_id": number})
    return version.name


async def test_a_secret_goes_in_and_comes_out(cipher):
    with Secret.of(CONTENT) as secret:
        sealed = await cipher.seal(BINDING, secret)
    assert b"canary" not in sealed.ciphertext + sealed.wrapped_key
    assert sealed.key_version == f"{KEY}/cryptoKeyVersions/1" == await cipher.primary_version()
    with await cipher.open(BINDING, sealed) as opened:
        assert opened.fields() == CONTENT


async def test_each_version_has_its_own_data_key_and_nonce(cipher):
    sealed = [await cipher.seal(BINDING, Secret.of(CONTENT)) for _ in range(4)]
    assert len({s.wrapped_key for s in sealed}) == len({s.ciphertext[:12] for s in sealed}) == 4


@pytest.mark.parametrize("other", OTHERS, ids=["tenant", "credential", "provider", "kind", "version"])
async def test_moved_elsewhere_it_does_not_open(cipher, other):
    sealed = await cipher.seal(BINDING, Secret.of(CONTENT))
    own = await cipher.seal(other, Secret.of(CONTENT))
    moved = [
        sealed,
        dataclasses.replace(own, ciphertext=sealed.ciphertext),
        dataclasses.replace(own, wrapped_key=sealed.wrapped_key),
    ]
    for row in moved:
        with pytest.raises(errors.Internal) as refused:
            await cipher.open(other, row)
        assert refused.value.reason == "SECRET_UNREADABLE"
        assert "canary" not in repr(refused.value)
    with pytest.raises(errors.Internal):
        await cipher.rewrap(other, sealed)


async def test_damaged_ciphertext_does_not_open_and_each_time_raises_the_alarm(cipher):
    sealed = await cipher.seal(BINDING, Secret.of(CONTENT))
    before = REGISTRY.get_sample_value("convergence_secrets_unreadable_total")
    for at in range(len(sealed.ciphertext)):
        torn = bytearray(sealed.ciphertext)
        torn[at] ^= 1
        with pytest.raises(errors.Internal):
            await cipher.open(BINDING, dataclasses.replace(sealed, ciphertext=bytes(torn)))
    for short in (b"", sealed.ciphertext[:20], sealed.ciphertext[:-1]):
        with pytest.raises(errors.Internal):
            await cipher.open(BINDING, dataclasses.replace(sealed, ciphertext=short))
    times = REGISTRY.get_sample_value("convergence_secrets_unreadable_total") - before
    assert times == len(sealed.ciphertext) + 3


async def test_a_scheme_of_the_future_is_not_guessed(cipher):
    sealed = await cipher.seal(BINDING, Secret.of(CONTENT))
    with pytest.raises(errors.Internal) as refused:
        await cipher.open(BINDING, dataclasses.replace(sealed, scheme=2))
    assert refused.value.reason == "SECRET_SCHEME_UNKNOWN"


async def test_rewrapping_follows_the_rotation_without_touching_the_ciphertext(cipher):
    sealed = await cipher.seal(BINDING, Secret.of(CONTENT))
    assert await cipher.rewrap(BINDING, sealed) is sealed
    second = await rotate(cipher)
    assert (await cipher.open(BINDING, sealed)).fields() == CONTENT
    rewrapped = await cipher.rewrap(BINDING, sealed)
    assert rewrapped.key_version == second == await cipher.primary_version()
    assert rewrapped.ciphertext == sealed.ciphertext
    await cipher._kms.destroy_crypto_key_version({"name": sealed.key_version})
    assert (await cipher.open(BINDING, rewrapped)).fields() == CONTENT
    with pytest.raises(errors.Internal) as destroyed:
        await cipher.open(BINDING, sealed)
    assert destroyed.value.reason == "KMS_KEY_UNUSABLE"


async def test_another_key_refuses(cipher):
    with pytest.raises(errors.Internal) as refused:
        await EnvelopeCipher(cipher._kms, f"{KEY}x").seal(BINDING, Secret.of(CONTENT))
    assert refused.value.reason == "KMS_REFUSED"


async def test_an_unreachable_key_service_is_unavailable(tmp_path, monkeypatch):
    monkeypatch.setattr("services.credential.cipher._RETRY", None)
    async with kms.running(tmp_path / "keys.json", "127.0.0.1:0") as address:
        gone = address
    with pytest.raises(errors.Unavailable) as down:
        await EnvelopeCipher(kms_client(gone), KEY).seal(BINDING, Secret.of(CONTENT))
    assert down.value.reason == "KMS_UNAVAILABLE"


class Relay:
    """Passes calls on and changes what comes back: the wire that damages data."""

    def __init__(self, kms, **changes):
        self._kms = kms
        self._changes = changes

    async def encrypt(self, request, **options):
        return self._changed(await self._kms.encrypt(request, **options), "ciphertext_crc32c", "name")

    async def decrypt(self, request, **options):
        return self._changed(await self._kms.decrypt(request, **options), "plaintext_crc32c", "used_primary")

    def _changed(self, response, *more):
        names = [f.name for f in type(response).pb(response).DESCRIPTOR.fields]
        return SimpleNamespace(**({n: getattr(response, n) for n in names} | self._changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"verified_plaintext_crc32c": False},
        {"verified_additional_authenticated_data_crc32c": False},
        {"ciphertext_crc32c": 1},
        {"ciphertext": b"damaged"},
        {"ciphertext_crc32c": None},
    ],
    ids=str,
)
async def test_damage_on_the_way_to_wrapping_is_noticed(cipher, changes):
    with pytest.raises(errors.Unavailable) as damaged:
        await EnvelopeCipher(Relay(cipher._kms, **changes), KEY).seal(BINDING, Secret.of(CONTENT))
    assert damaged.value.reason == "KMS_CORRUPTED"


async def test_damage_on_the_way_from_unwrapping_is_noticed(cipher):
    sealed = await cipher.seal(BINDING, Secret.of(CONTENT))
    for changes in ({"plaintext": b"x" * 32}, {"plaintext_crc32c": 1}):
        with pytest.raises(errors.Unavailable):
            await EnvelopeCipher(Relay(cipher._kms, **changes), KEY).open(BINDING, sealed)
    short = {"plaintext": b"x", "plaintext_crc32c": google_crc32c.value(b"x")}
    with pytest.raises(errors.Internal):
        await EnvelopeCipher(Relay(cipher._kms, **short), KEY).open(BINDING, sealed)


async def test_an_answer_for_another_key_is_refused(cipher):
    with pytest.raises(errors.Internal) as refused:
        await EnvelopeCipher(Relay(cipher._kms, name=f"{KEY}x/cryptoKeyVersions/1"), KEY).seal(
            BINDING, Secret.of(CONTENT)
        )
    assert refused.value.reason == "KMS_WRONG_KEY"


async def test_the_client_library_logs_no_key_even_at_debug(cipher, monkeypatch):
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(str(record.__dict__))
    google = logging.getLogger("google")
    for logger in (logging.getLogger(), google):
        monkeypatch.setattr(logger, "level", logging.DEBUG)
        logger.addHandler(handler)
    logging.getLogger().manager._clear_cache()
    try:
        sealed = await cipher.seal(BINDING, Secret.of(CONTENT))
        await cipher.open(BINDING, sealed)
    finally:
        for logger in (logging.getLogger(), google):
            logger.removeHandler(handler)
    assert not any("plaintext" in line or "canary" in line for line in lines)


_parts = st.text(max_size=6)


@given(st.tuples(_parts, _parts, _parts), st.tuples(_parts, _parts, _parts))
def test_two_bindings_never_share_their_additional_data(one, other):
    def encoded(parts):
        return additional_data(Binding(parts[0], parts[1], Provider.GCP, Kind.SAS, parts[2]))

    assert (encoded(one) == encoded(other)) == (one == other)
