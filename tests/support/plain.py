"""For httpx on loopback: plain HTTP needs no certificates, and reading the usual ones takes 30 ms of CPU a client."""

from __future__ import annotations

import ssl

NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
