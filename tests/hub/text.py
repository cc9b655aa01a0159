"""Pushes a data set and a tokenizer to the Hub at HF_ENDPOINT, reads them, and asks for what is not there."""

from collections.abc import Callable

from datasets import Dataset, disable_progress_bars

from dsf_models.tasks.text import TextError, encode, hub_documents, load_tokenizer, train_tokenizer

NAME = "alice/stories"
TEXTS = [f"Story {number} of a fox and its {number} cubs." for number in range(7)]


def refusal(read: Callable[[], object]) -> str:
    """What the error says."""
    try:
        return f"no error, but {read()}"
    except TextError as error:
        return str(error)


def text() -> dict[str, bool | str]:
    """Whether what was read is what was pushed, and what is said of what is not there."""
    disable_progress_bars()
    table = {"story": TEXTS, "number": list(range(len(TEXTS)))}
    Dataset.from_dict(table).push_to_hub(NAME, config_name="short", split="train")
    tokenizer = train_tokenizer(TEXTS, 270)
    tokenizer.push_to_hub("alice/tokenizer")
    read = {streaming: hub_documents(NAME, column="story", streaming=streaming) for streaming in (False, True)}
    return {
        "at hand": list(read[False]["text"]) == TEXTS and read[False].column_names == ["text"],
        "streamed": [dict(example) for example in read[True]] == [{"text": text} for text in TEXTS],
        "tokenizer": encode(load_tokenizer("alice/tokenizer"), TEXTS) == encode(tokenizer, TEXTS),
        "column": refusal(lambda: hub_documents(NAME, column="sory")),
        "column of a stream": refusal(lambda: hub_documents(NAME, column="sory", streaming=True)),
        "no text": refusal(lambda: hub_documents(NAME, column="number")),
        "split": refusal(lambda: hub_documents(NAME, split="test", column="story")),
        "config": refusal(lambda: hub_documents(NAME, config="long", column="story")),
        "id": refusal(lambda: hub_documents("alice/nothing")),
        "id of a stream": refusal(lambda: hub_documents("alice/nothing", streaming=True)),
        "revision": refusal(lambda: hub_documents(NAME, revision="nowhere")),
    }
