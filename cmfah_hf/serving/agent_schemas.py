"""Parameters and answers of the tools for agents, as the protocol describes them."""

from typing import Literal

from pydantic import BaseModel, Field

from cmfah_hf.serving.schemas import ItemId, Number, Request, Target

# Small images that go with an answer, at most.
MOST_THUMBNAILS = 8

_FILE = "An image file (JPEG, PNG, WEBP, GIF or BMP) as base64. It cannot be a path or a URL; the server reads neither."


class _SearchOptions(Request):
    """Fields of both searches."""

    k: int = Field(10, ge=1, description="The number of answers.")
    where: list[str] = Field([], description="Conditions on the columns of index_info, such as 'year=2024'.")
    target: Target | None = Field(None, description="What to find. Default: images if there are any, else texts.")
    metric: Literal["aqd", "hamming"] = Field(
        "aqd", description="aqd: larger scores are nearer. hamming: smaller ones."
    )
    min_score: float | None = Field(None, ge=0, le=1, description="The least probability, if the model has any.")
    unique: int | None = Field(None, ge=0, description="Fold answers within so many bits of a better one.")
    paths: bool = Field(False, description="Give the path of each image on the server, and a link to it.")
    thumbnails: int = Field(
        0,
        ge=0,
        le=MOST_THUMBNAILS,
        description="Show the first answers as small images, if the server has their files.",
    )


class WeightedText(Request):
    """A text with a weight."""

    text: str = Field(description="A text.")
    weight: Number = Field(1.0, description="Negative for what the answers should not show.")


class TextSearch(_SearchOptions):
    """A search by words."""

    text: str | None = Field(None, description="What the answers should show, in a few words.")
    terms: list[WeightedText] | None = Field(None, description="In place of text: several texts with weights.")


class ImageSearch(_SearchOptions):
    """A search by an image."""

    image_base64: str = Field(description=_FILE)
    text: str | None = Field(None, description="Words that the answers should fit as well.")
    image_weight: float = Field(0.5, ge=0, le=1, description="With text: the share of the image.")


class Explain(Request):
    """A question why an item is an answer."""

    id: ItemId = Field(description="The id of the item, as a search gives it.")
    text: str | None = Field(None, description="The words that were searched for; or")
    image_base64: str | None = Field(None, description=_FILE)
    target: Target | None = Field(None, description="The index of the item, as for a search.")


class Info(Request):
    """A question what is searched here."""


class WordReply(BaseModel):
    """A word of the query."""

    word: str
    score: float = Field(description="The AQD of this word alone: what it adds to or takes from the nearness.")
    region: list[float] | None = Field(
        description="Left, top, right, bottom of the region that it attends to most, as shares of the image."
    )
    attention: float | None


class ExplainReply(BaseModel):
    """Why an item is an answer."""

    id: ItemId
    target: Target
    score: float = Field(description="The AQD of the query and the item; larger is nearer.")
    distance: int = Field(description="The bits in which both codes differ.")
    bits: int
    probability: float | None = Field(description="That the item is relevant, if the model has a calibration.")
    words: list[WordReply]
    ignored_words: list[str] = Field(description="Words that the model does not know.")
    similar_words: dict[str, list[str]] = Field(description="Words that it does not know, and those read instead.")
    note: str | None = Field(description="Why there are no regions.")
