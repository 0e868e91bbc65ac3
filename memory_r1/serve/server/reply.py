"""a shape -> the bytes of a response, whatever text a memory holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Self

from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError
from starlette.responses import Response


class Reply(Response):
    """A JSON response; its text can be kept and sent again."""

    media_type = "application/json"

    def __init__(
        self, shape: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """shape: written as its fields are declared."""
        try:
            text = shape.model_dump_json()
        except PydanticSerializationError:  # half a surrogate pair, which only \\u can tell
            text = json.dumps(shape.model_dump(mode="json", warnings=False))
        self.text = text
        super().__init__(text, status, dict(headers or {}))

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.status_code

    @classmethod
    def of_text(cls, text: str, status: int, media_type: str, headers: Mapping[str, str]) -> Self:
        """A response as it was sent before."""
        made = cls.__new__(cls)
        made.text = text
        Response.__init__(made, text, status, dict(headers), media_type)
        return made

    @classmethod
    def of_response(cls, response: JSONResponse) -> Self:
        """A response of another kind, e.g. a problem."""
        text = bytes(response.body).decode()
        kind = response.media_type or "application/json"
        kept = {"location", "www-authenticate", "retry-after"}
        headers = {name: value for name, value in response.headers.items() if name in kept}
        return cls.of_text(text, response.status_code, kind, headers)
