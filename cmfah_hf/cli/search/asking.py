"""A query, asked of a model and an index on this machine, or of a server."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmfah_hf.cli.output import say
from cmfah_hf.cli.search.answers import Answers
from cmfah_hf.retrieval.terms import Term


@dataclass(frozen=True)
class Question:
    """A query with its options, as in `CrossMediaRetriever.search`.

    Attributes:
        asked: The terms as they were written.
        terms: The terms.
        k: The number of answers.
        metric: The ranking.
        where: Conditions as the command line writes them.
        exact: Whether to search all codes.
        image_weight: The share of images beside texts.
        unique: The bits up to which answers are near-duplicates, or None.
        min_score: The least probability, or None.
    """

    asked: str
    terms: Sequence[Term]
    k: int
    metric: str
    where: Sequence[str]
    exact: bool
    image_weight: float
    unique: int | None
    min_score: float | None


@dataclass(frozen=True)
class ModelOptions:
    """Keyword arguments of `CrossMediaRetriever.from_pretrained` for loading the model on this machine."""

    any_model: bool = False
    trust_remote_code: bool = False
    backend: str = "torch"
    precision: str = "fp32"

    def given(self) -> dict[str, bool]:
        """By the names of the options, which of them were given."""
        default = ModelOptions()
        return {f"--{name.replace('_', '-')}": value != getattr(default, name) for name, value in vars(self).items()}


def ask_model(
    question: Question, model: str, index: Path | None, images: Path | None, options: ModelOptions, progress: bool
) -> Answers:
    """The answers of a model, from an index file, the index pushed with it, or a folder that is indexed first."""
    from cmfah_hf.retrieval import CrossMediaRetriever
    from cmfah_hf.retrieval.known_words import similar_words

    retriever = CrossMediaRetriever.from_pretrained(
        model,
        index=index is None and images is None,
        texts_only=images is None and all(term.image is None for term in question.terms),
        **vars(options),
    )
    changes = None
    if images is not None:
        from cmfah_hf.retrieval.folders import update_folder_index  # with `datasets`, which takes long to import

        changes = update_folder_index(retriever, images, index, progress=progress)
        for line in (f"{images}: {changes}.", *changes.unreadable_lines()):
            say(line, err=True)
    elif index is not None:
        retriever.images = retriever.load_index(index, mmap=True)
    results = retriever.search(
        k=question.k,
        metric=question.metric,
        where=question.where or None,
        exact=question.exact,
        image_weight=question.image_weight,
        terms=question.terms,
        unique=question.unique,
        min_score=question.min_score,
    )
    texts = [term.text for term in question.terms if term.text is not None]
    return Answers(
        question.asked,
        question.metric,
        results[0].hits(),
        [] if results.metadata is None else results.metadata.column_names,
        retriever.ignored_words(texts),
        None if changes is None else changes.counts(),
        question.min_score,
        similar_words(texts, retriever.reader),
    )


def ask_server(question: Question, address: str, token_file: Path | None) -> Answers:
    """The answers of a server. The paths are those that it has.

    Raises:
        QueryError: If there is no answer to such a query.
        SearchServerError: If the server does not answer, or refuses.
    """
    from cmfah_hf.serving import SearchClient, read_token

    with SearchClient(address, read_token(token_file)) as client:
        reply = client.search(
            k=question.k,
            metric=question.metric,
            where=question.where,
            exact=question.exact,
            image_weight=question.image_weight,
            terms=question.terms,
            unique=question.unique,
            min_score=question.min_score,
            paths=True,
        )
    return Answers(
        question.asked,
        question.metric,
        reply["answers"][0],
        reply["columns"],
        reply["ignored_words"],
        min_score=question.min_score,
        similar_words=reply["similar_words"],
    )
