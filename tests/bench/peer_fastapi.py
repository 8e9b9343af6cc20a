"""What people would write instead: the list of templates in FastAPI, with the checks that ours makes on a read.

``python -m tests.bench.peer_fastapi PORT KEYS_FILE TEMPLATES_FILE``: keys are hashed and compared as ours are, the
caller's role is checked, the answer is built from typed values, and a request leaves one log line.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import uuid
from pathlib import Path
from typing import Annotated, Any

import structlog
import uvicorn
from fastapi import FastAPI, Header, HTTPException, Response
from pydantic import BaseModel, create_model

_log = structlog.get_logger()


def app(keys: dict[str, dict[str, str]], templates: list[dict[str, Any]]) -> FastAPI:
    """The application; ``keys`` maps a key id to its SHA-256 and role."""
    fields: Any = {name: (type(value), ...) for name, value in templates[0].items()}
    template = create_model("Template", **fields)
    answer: type[BaseModel] = create_model("Templates", templates=(list[template], ...), next_page_token=(str, ""))
    made = FastAPI()

    @made.get("/api/v1/pipelines/templates", response_model=answer)
    async def list_templates(response: Response, x_api_key: Annotated[str, Header()] = "") -> Any:
        known = keys.get("_".join(x_api_key.split("_")[:3]))
        digest = hashlib.sha256(x_api_key.encode()).hexdigest()
        if known is None or not hmac.compare_digest(known["hash"], digest):
            raise HTTPException(401)
        if known["role"] not in ("RUNNER", "ADMIN"):
            raise HTTPException(403)
        request_id = response.headers["x-request-id"] = str(uuid.uuid4())
        _log.info("rpc", method="ListTemplates", code="OK", request_id=request_id)
        return answer(templates=[template(**each) for each in templates])

    return made


if __name__ == "__main__":
    structlog.configure(processors=[structlog.processors.TimeStamper("iso"), structlog.processors.JSONRenderer()])
    port, keys_file, templates_file = sys.argv[1:]
    served = app(json.loads(Path(keys_file).read_text()), json.loads(Path(templates_file).read_text()))
    uvicorn.run(served, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
