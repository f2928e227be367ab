"""Bodies of the search service: JSON, or a form with JSON and uploaded images; both are described in OpenAPI."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from PIL import Image
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.datastructures import Headers
from starlette.requests import Request

from cmfah_hf.documents import parse_json
from cmfah_hf.errors import ImageError, QueryError
from cmfah_hf.serving.limits import ServiceLimits
from cmfah_hf.space.requests import RefusedError, parse_form
from cmfah_hf.space.uploads import open_upload

M = TypeVar("M", bound=BaseModel)
_FORM, _JSON = "multipart/form-data", "application/json"
# The parts of a form.
_QUERY, _IMAGE = "query", "image"


@dataclass(frozen=True)
class Body(Generic[M]):
    """A request: its checked JSON, and the headers of its images, which are not decoded yet."""

    asked: M
    images: list[Image.Image]


async def read_body(request: Request, model: type[M], limits: ServiceLimits) -> Body[M]:
    """The body of a request: JSON, or a form with the JSON in `query` and files in `image`.

    Raises:
        RefusedError: If it is malformed or too large.
        QueryError: If it is no such request.
        ImageError: If an image cannot be used.
    """
    content, headers = await request.body(), Headers(scope=request.scope)
    images: list[Image.Image] = []
    if headers.get("content-type", "").lower().startswith(_FORM):
        form = await parse_form(headers, content, limits.images, 1, limits.body_bytes)
        texts, files = form.texts.pop(_QUERY, []), form.files.pop(_IMAGE, [])
        if form.texts or form.files:
            name = next(iter({**form.texts, **form.files}))
            raise QueryError(f"The form has a part {name!r:.80}; it may have query, a text, and image, files.")
        content = texts[0].encode("utf-8", "surrogatepass") if texts else b"{}"
        images = [open_image(f"Image {number}", file, limits) for number, file in enumerate(files)]
    try:
        value = parse_json(content or b"{}", "The request")
    except ValueError as error:
        raise RefusedError(400, str(error)) from None
    try:
        return Body(model.model_validate(value), images)
    except ValidationError as error:
        raise QueryError(first_fault(error)) from None


def open_image(name: str, content: bytes, limits: ServiceLimits) -> Image.Image:
    """The header of an image file of a request, within the limits.

    Raises:
        ImageError: If it cannot be used; the error begins with `name`.
    """
    if len(content) > limits.image_bytes:
        raise ImageError(f"{name} has more than {limits.image_bytes:,} bytes; send a smaller one.")
    try:
        return open_upload(content, limits.image_pixels)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error


def first_fault(error: ValidationError) -> str:
    """The first fault in one line, without the value, which may be long."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, found["loc"]))
    return f"{where or 'The request'}: {found['msg']}."


def describe_body(model: type[BaseModel], with_images: bool = False) -> dict[str, Any]:
    """The request body of an endpoint, for `openapi_extra` of FastAPI."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    content: dict[str, Any] = {_JSON: {"schema": schema}}
    if with_images:
        files = {"type": "array", "items": {"type": "string", "format": "binary"}}
        form = {"type": "object", "properties": {_QUERY: schema, _IMAGE: files}}
        content[_FORM] = {"schema": form, "encoding": {_QUERY: {"contentType": _JSON}}}
    return {"requestBody": {"required": True, "content": content}}


def add_schemas(document: dict[str, Any], models: list[type[BaseModel]]) -> None:
    """Adds the schemas that `describe_body` refers to."""
    _, found = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    document.setdefault("components", {}).setdefault("schemas", {}).update(found["$defs"])
