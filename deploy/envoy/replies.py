"""What the gateway answers by itself: every refusal that no service made, in the shape that the services' errors have.

``render`` turns the table into Envoy's local replies, ``openapi`` shows it to readers. A reason is for programs and
stays as it is; the message says what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from libs.grpc_errors import DOMAIN

# Envoy's own words about a request that it could not take; for clients' mistakes only, where they name no address.
_ENVOYS_WORDS = "%LOCAL_REPLY_BODY%"
_FAILED = "The service did not answer. Send the same request again after a second."


@dataclass(frozen=True, slots=True)
class Reply:
    """One refusal: HTTP status, gRPC code, stable reason, text, and after how many seconds to come back."""

    status: int
    code: int
    reason: str
    message: str
    retry_after: int = 0

    def body(self) -> dict[str, Any]:
        """The answer, a ``google.rpc.Status``."""
        info = {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": self.reason,
            "domain": DOMAIN,
            "metadata": {},
        }
        return {"code": self.code, "message": self.message, "details": [info]}


REPLIES = (
    Reply(400, 3, "REQUEST_MALFORMED", _ENVOYS_WORDS),
    Reply(404, 5, "PATH_NOT_FOUND", "There is no such path, or it does not take this method. /docs lists them all."),
    Reply(408, 4, "REQUEST_TIMEOUT", "The request did not arrive in time. Send it again, faster."),
    Reply(413, 3, "BODY_TOO_LARGE", "The request body is larger than 1 MiB. Send less at once."),
    Reply(429, 8, "RATE_LIMITED", "Too many requests for this tenant. Wait as long as Retry-After says.", 1),
    Reply(431, 3, "HEADERS_TOO_LARGE", "The request headers are too large or too many. Send fewer."),
    Reply(500, 13, "INTERNAL", "Internal error. Quote the x-request-id when you report it."),
    Reply(502, 14, "SERVICE_UNAVAILABLE", _FAILED, 1),
    Reply(503, 14, "SERVICE_UNAVAILABLE", _FAILED, 1),
    Reply(504, 4, "SERVICE_TIMEOUT", "The service did not answer in time. Look whether it was done, then try again."),
)
