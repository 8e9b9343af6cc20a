"""A process of the platform: two gRPC ports behind one interceptor each, health, reflection, drain.

Each service's ``main.build`` makes a ``Server`` here; each ``main()`` is ``raise SystemExit(run(Settings, build))``.
The public port serves what the gateway forwards to, the internal port what only peers may call; neither ever serves the
other's. A third one, where it is asked for, answers health checks only, for probes that cannot show who they are.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_reflection.v1alpha import reflection

from libs import caller, logs, metrics, tracing
from libs.grpc_interceptor import Authenticate, Handler, Interceptor, OnDenied, check_behaviours
from libs.settings import ServiceSettings, SettingsInvalid, load
from libs.tls import Tls

type Mount = tuple[Callable[[Any, Any], None], object]
type Hook = Callable[[], Awaitable[None]]

_log = logs.get(__name__)
_OPTIONS = (
    # Two processes on one port would share its connections at random; the second shall fail instead.
    ("grpc.so_reuseport", 0),
    # Clients find new replicas only when they connect; streams end by themselves, so there is no grace.
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
# What a hook may still use after its grace, so that one that hangs cannot keep the process.
_HOOK_SECONDS = 5.0
# Calls are taken so long after health says NOT_SERVING: the gateway asks every second and believes the second answer.
_LAST_CALLS_SECONDS = 2.5


def build_server(
    settings: ServiceSettings,
    *,
    public: Sequence[Mount],
    internal: Sequence[Mount] = (),
    authenticate: Authenticate,
    reflect: Sequence[str] = (),
    on_denied: OnDenied | None = None,
) -> Server:
    """Returns the server of one process; it does no I/O before it is started.

    ``authenticate`` turns an API key into its caller. ``reflect`` names further services that reflection lists.
    ``on_denied`` hears of every call that its caller may not make, for the audit trail (``libs.denials``). Raises
    ``ValueError`` for an rpc without a usable role rule and for one that is not a coroutine.
    """
    peers, tls = settings.peers(), settings.tls()
    ports = []
    for mounts, address, is_internal in (
        (public, settings.listen, False),
        (internal, settings.internal_listen, True),
    ):
        names = [_service_of(mount) for mount in mounts]
        interceptor = Interceptor(
            names,
            internal=is_internal,
            peers=peers,
            tls=tls,
            authenticate=authenticate,
            onboarding_open=settings.onboarding_open,
            on_denied=on_denied,
        )
        shown = [*names, *reflect] if settings.reflection and not is_internal else []
        ports.append(_Port(address, mounts, names, [interceptor], shown, tls))
    # Probes have no certificate; what they may ask for is no secret.
    probes = _Port(settings.health_listen, [], [], [], []) if settings.health_listen else None
    figures = metrics.Endpoint(settings.metrics_listen) if settings.metrics_listen else None
    return Server(settings, ports[0], ports[1] if internal else None, probes, figures)


class _Port:
    """One listening gRPC server and what it serves."""

    def __init__(
        self,
        address: str,
        mounts: Sequence[Mount],
        services: list[str],
        interceptors: list[grpc.aio.ServerInterceptor],
        reflected: list[str],
        tls: Tls | None = None,
    ) -> None:
        self.address = address
        self.services = services
        self._mounts = mounts
        self._interceptors = interceptors
        self._reflected = reflected
        self._tls = tls
        self._server: grpc.aio.Server | None = None

    async def open(self, checks: HealthServicer, maximum_concurrent_rpcs: int) -> None:
        server = grpc.aio.server(
            interceptors=self._interceptors,
            options=_OPTIONS,
            maximum_concurrent_rpcs=maximum_concurrent_rpcs,
        )
        for add, servicer in self._mounts:
            add(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)  # type: ignore[no-untyped-call]
        if self._reflected:
            names = [*self._reflected, HEALTH, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(sorted(set(names)), server)  # type: ignore[no-untyped-call]
        if self._tls is not None:
            port = server.add_secure_port(self.address, self._tls.server_credentials())
        else:
            port = server.add_insecure_port(self.address)
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        await server.start()
        self._server = server

    async def close(self, grace: float) -> None:
        if self._server is not None:
            await self._server.stop(grace)


class Server:
    """One process's ports and whatever lives and dies with them. Ports open in ``start`` and close in ``stop``."""

    def __init__(
        self,
        settings: ServiceSettings,
        public: _Port,
        internal: _Port | None,
        probes: _Port | None = None,
        figures: metrics.Endpoint | None = None,
    ) -> None:
        self._settings = settings
        self._public = public
        self._internal = internal
        self._probes = probes
        self._figures = figures
        self._health = HealthServicer()
        self._start_hooks: list[Hook] = []
        self._drain_hooks: list[Callable[[float], Awaitable[None]]] = []
        self._stop_hooks: list[Hook] = []
        self._background: list[tuple[str, Hook]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._crashed = asyncio.Event()
        self._stopped = False

    @property
    def public_address(self) -> str:
        """The public port as ``host:port``; after ``start`` with the real port."""
        return self._public.address

    @property
    def internal_address(self) -> str:
        """The internal port as ``host:port``; empty if the process has none."""
        return self._internal.address if self._internal else ""

    @property
    def health_address(self) -> str:
        """The port for probes as ``host:port``; empty if the process has none."""
        return self._probes.address if self._probes else ""

    @property
    def metrics_address(self) -> str:
        """The endpoint of the figures for Prometheus as ``host:port``; empty if the process has none."""
        return self._figures.address if self._figures else ""

    @property
    def failed(self) -> bool:
        """True if background work ended with an error."""
        return self._crashed.is_set()

    def on_start(self, hook: Hook) -> None:
        """Awaits ``hook`` before the ports open."""
        self._start_hooks.append(hook)

    def on_drain(self, hook: Callable[[float], Awaitable[None]]) -> None:
        """Awaits ``hook(seconds left)`` while the last calls end."""
        self._drain_hooks.append(hook)

    def on_stop(self, hook: Hook) -> None:
        """Awaits ``hook`` after the last call has ended; the last one registered goes first."""
        self._stop_hooks.append(hook)

    def background(self, name: str, work: Hook) -> None:
        """Runs ``work`` beside the ports until they stop; if it raises, the process stops."""
        self._background.append((name, work))

    async def start(self) -> None:
        """Runs the start hooks, opens both ports, starts the background work and reports SERVING."""
        await self._report_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        if self._figures is not None:
            self._figures.open()
        for hook in self._start_hooks:
            await hook()
        for port in self._ports():
            await port.open(self._health, self._settings.max_concurrent_rpcs)
        for name, work in self._background:
            self._tasks.append(asyncio.create_task(self._watch(name, work), name=name))
        await self._report_health(health_pb2.HealthCheckResponse.SERVING)
        _log.info("started", public=self.public_address, internal=self.internal_address)

    async def stop(self, grace: float | None = None) -> None:
        """Drains: NOT_SERVING, soon no new calls, up to ``grace`` seconds for those that run, then the stop hooks."""
        if self._stopped:
            return
        self._stopped = True
        grace = self._settings.drain_seconds if grace is None else grace
        _log.info("draining", grace_seconds=grace)
        await self._health.enter_graceful_shutdown()
        # What comes in the very moment the ports close is refused at best: first let those go who look.
        await asyncio.sleep(min(_LAST_CALLS_SECONDS, grace / 10))
        drains = [self._bounded(hook(grace), grace + _HOOK_SECONDS) for hook in self._drain_hooks]
        await asyncio.gather(*drains, *(port.close(grace) for port in self._ports()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for hook in reversed(self._stop_hooks):
            await self._bounded(hook(), _HOOK_SECONDS)
        if self._figures is not None:
            await self._bounded(asyncio.to_thread(self._figures.close), _HOOK_SECONDS)
        _log.info("stopped")

    async def serve(self) -> None:
        """Starts, waits for SIGTERM, SIGINT or a crash of background work, drains; a second signal ends the grace."""
        loop = asyncio.get_running_loop()
        asked, again = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            (again if asked.is_set() else asked).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        await _first(self.start(), asked.wait())
        # What is loaded now stays loaded: looking through it for garbage would stop all calls for a tenth of a second.
        gc.collect()
        gc.freeze()
        await _first(asked.wait(), self._crashed.wait())
        await _first(self.stop(), self._cut_short(again))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop(0)

    def _ports(self) -> list[_Port]:
        return [port for port in (self._public, self._internal, self._probes) if port]

    async def _report_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", *(name for port in self._ports() for name in port.services)):
            await self._health.set(service, status)

    async def _watch(self, name: str, work: Hook) -> None:
        caller.enter(name)
        try:
            await work()
        except Exception:
            _log.exception("background_work_failed", work=name)
            self._crashed.set()

    async def _cut_short(self, again: asyncio.Event) -> None:
        await again.wait()
        for port in self._ports():
            await port.close(0)

    @staticmethod
    async def _bounded(work: Awaitable[None], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await work
        except Exception:
            _log.exception("hook_failed")


def run[S: ServiceSettings](
    settings_type: type[S], build: Callable[[S], Server], argv: Sequence[str] | None = None
) -> int:
    """Runs a service until a signal and returns the exit code: 0, 1 after a crash, 2 for bad settings.

    ``--check`` only validates the settings. ``build`` is called inside the running loop.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m services.{settings_type.service}", description=settings_type.__doc__
    )
    parser.add_argument("--check", action="store_true", help="validate the settings and exit")
    arguments = parser.parse_args(argv)
    try:
        settings = load(settings_type)
        settings.peers()
        settings.tls()
        settings.page_secret()
    except SettingsInvalid as exc:
        print(exc, file=sys.stderr)  # noqa: T201  there are no logs yet
        return 2
    if arguments.check:
        print(f"settings of {settings.service} are valid")  # noqa: T201
        return 0
    logs.configure(settings.log_level, service=settings.service)
    tracing.configure(settings.service, settings.otlp_endpoint)

    async def main() -> int:
        server = build(settings)
        await server.serve()
        return 1 if server.failed else 0

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(main())
        except Exception:
            _log.exception("crashed")
            return 1
        finally:
            tracing.close()


async def _first(*works: Awaitable[Any]) -> None:
    """Waits for the first of several to end, cancels the others, and raises what it raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*pending)
    for task in done:
        task.result()


class _Recorder:
    """Stands in for a server while a mount registers itself, to learn what it would serve."""

    def __init__(self) -> None:
        self.service = ""
        self.handlers: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.ServiceRpcHandler]) -> None:
        self.service = handlers[0].service_name() or ""

    def add_registered_method_handlers(self, _service: str, handlers: dict[str, Handler]) -> None:
        self.handlers = handlers


def _service_of(mount: Mount) -> str:
    add, servicer = mount
    recorder = _Recorder()
    add(servicer, recorder)
    check_behaviours(recorder.service, recorder.handlers)
    return recorder.service
