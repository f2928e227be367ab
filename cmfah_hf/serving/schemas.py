"""Requests and replies of the search service, as OpenAPI describes them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Target = Literal["images", "texts"]
ItemId = str | int
Number = Annotated[float, Field(allow_inf_nan=False)]


class Request(BaseModel):
    """A request without unknown fields and without values of other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class WeightedTerm(Request):
    """One part of a query: a text or an uploaded image, with a weight."""

    text: str | None = Field(None, description="A text.")
    image: int | None = Field(None, ge=0, description="The number of an uploaded image, from 0 in their order.")
    weight: Number = Field(1.0, description="Negative for what the answers shall not show.")


class SearchRequest(Request):
    """A search by texts, by uploaded images, by both, or by weighted terms."""

    text: str | list[str] | None = Field(None, description="A text, or several for one answer each.")
    image_weight: float = Field(0.5, ge=0, le=1, description="With text and image: the image's share.")
    terms: list[WeightedTerm] | None = Field(None, description="In place of text: weighted terms of one query.")
    k: int = Field(10, ge=1, description="The number of answers to a query.")
    metric: Literal["aqd", "hamming"] = Field("aqd", description="By the query's continuous code, or by bits.")
    target: Target | None = Field(None, description="The index. Default: images if there are any, else texts.")
    where: list[str] = Field([], description="Conditions such as 'year=2024', all of which must hold.")
    exact: bool = Field(True, description="False: search only near the query.")
    unique: int | None = Field(None, ge=0, description="Fold answers within so many bits of a better one.")
    min_score: float | None = Field(None, ge=0, le=1, description="The least probability of an answer.")
    paths: bool = Field(False, description="Whether to give the path of each image on the server.")


class AddRequest(Request):
    """Items to add: texts, or the uploaded images in their order."""

    ids: list[ItemId] = Field(min_length=1, description="One id for each item.")
    texts: list[str] | None = Field(None, description="Texts to add to the index of texts. Default: uploaded images.")
    metadata: dict[str, list[Any]] | None = Field(None, description="Columns of one value for each item.")
    replace: bool = Field(False, description="Replace items that have the same ids.")


class RemoveRequest(Request):
    """Items to remove."""

    ids: list[ItemId] = Field(
        min_length=1, description="Their ids; an unknown one is an error, and nothing is removed."
    )
    target: Target = Field("images", description="The index.")


class SyncRequest(Request):
    """An update of the folders that the server follows."""

    dry_run: bool = Field(False, description="Only compare, and list the ids in `steps`.")
    wait: float = Field(30.0, ge=0, le=60, description="Seconds to wait for the end of the update.")


class Hit(BaseModel):
    """An answer."""

    id: ItemId
    score: float = Field(description="AQD: larger is nearer. Hamming: smaller is nearer.")
    metadata: dict[str, Any]
    path: str | None = Field(None, description="The image's path on the server, if it was asked for.")
    probability: float | None = Field(None, description="That it is relevant, if the model has a calibration.")
    folded: list[ItemId] | None = Field(None, description="With unique: its near-duplicates.")


class SearchReply(BaseModel):
    """The answers to all queries, nearest first."""

    metric: str
    target: Target
    ignored_words: list[str] = Field(description="Words that the model does not know.")
    similar_words: dict[str, list[str]] = Field(description="Words that it does not know, and those read instead.")
    columns: list[str] = Field(description="The columns of the metadata, in their order.")
    answers: list[list[Hit]] = Field(description="The answers to each query.")


class ChangeReply(BaseModel):
    """The result of a change."""

    changed: int = Field(description="Items that were added, replaced or removed.")
    items: int = Field(description="Items of the index now.")


class SyncReply(BaseModel):
    """The state of the last update of the folders."""

    state: Literal["never", "running", "done", "failed"]
    seconds: float | None = None
    changes: dict[str, Any] | None = Field(None, description="Counts, as `cmfah index --json` prints them.")
    detail: str | None = Field(None, description="Why it failed.")


class IndexReply(BaseModel):
    """An index of the server."""

    items: int
    id_type: str | None
    columns: list[str]
    folders: list[str] = Field(description="The names of the folders that it follows.")
    is_writable: bool
    is_saved: bool


class InfoReply(BaseModel):
    """The model and the indexes of the server."""

    version: str
    model: str = Field(description="The fingerprint of the model.")
    bits: int
    indexes: dict[str, IndexReply]


class HealthReply(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"
    version: str


class ErrorReply(BaseModel):
    """Why a request was refused."""

    detail: str
