"""What treatments that train learn from: read at the door, and none of it held out to judge by."""

from collections.abc import Sequence, Set
from pathlib import Path

from compressor.evaluation.evaluation import Evaluation
from compressor.evaluation.records import Column, Records, is_number, keys_of, read_records
from compressor.model import Model
from compressor.recipe_file import read_training, training_rows
from compressor.search.treatments import Treatment, trains
from compressor.step import Training
from compressor.training.training_data import Rows
from worker.errors import InvalidRequest

_TEXT = "text"


def read_lessons(
    source: str | None,
    treatments: Sequence[Treatment],
    model: Model,
    *,
    seed: int,
    held_out: Records,
    evaluation: Evaluation,
) -> Training | None:
    """The data in the file `source`, read once for all treatments. None: there are none, or a function gives them, anew
    to each treatment.

    Raises:
        InvalidRequest: a treatment trains and there are no data for it, or not the model's, or some of them are held
            out to judge by; or none trains.
    """
    learning = [item.name for item in treatments if trains(item)]
    if learning and source is None:
        raise InvalidRequest(f"treatment {learning[0]!r} trains: give it data to learn from with --training")
    if source is None:
        return None
    if not learning:
        raise InvalidRequest(f"training {source!r}: no treatment trains; name one that does in --treatments")
    if Path(source).is_file():
        records = read_records(Path(source))
        rows = training_rows(records, model, seed)
        check_apart(records, held_out, model, evaluation)
        return rows
    given = read_training(source, model, seed)
    if isinstance(given, Rows):
        named = zip((item.name for item in model.inputs), given.inputs, strict=False)
        columns = {name: (item.float() if item.is_floating_point() else item).numpy(force=True) for name, item in named}
        check_apart(Records(columns, f"{source!r}"), held_out, model, evaluation)
    return None


def check_apart(training: Records, held_out: Records, model: Model, evaluation: Evaluation) -> None:
    """Looks for the same inputs in both, by the columns that both have for them; and for held-out records of several
    texts each, as pairs of sentences, of which all are texts of the training data.

    Raises:
        InvalidRequest: there are some.
    """
    both = training.columns.keys() & held_out.columns.keys()
    columns = next((names for names in ([item.name for item in model.inputs], [_TEXT]) if both.issuperset(names)), None)
    if columns is not None:
        taught: Sequence[bytes | str] = keys_of(training, columns)
        theirs: Set[bytes | str] = set(keys_of(held_out, columns))
    elif _TEXT in training.columns and held_out.columns.keys() >= set(evaluation.inputs(held_out)):
        taught = list(map(str, training.columns[_TEXT].tolist()))
        theirs = _texts_within([held_out.columns[name] for name in evaluation.inputs(held_out)], frozenset(taught))
    else:
        return
    places = [place for place, key in enumerate(taught) if key in theirs]
    if places:
        raise InvalidRequest(
            f"training {training.source}: {len(places)} of {len(training)} records are also among those of "
            f"{held_out.source} that are held out (the first is record {places[0]}); what teaches must not judge: take "
            "them out"
        )


def _texts_within(columns: Sequence[Column], taught: Set[bytes | str]) -> Set[bytes | str]:
    """The texts of the records whose texts are all among those that are taught. Numbers, such as a label that a .csv
    holds as letters, are no texts.
    """
    told = [column for column in columns if not all(map(is_number, column))]
    records = [[value for value in record if isinstance(value, str)] for record in zip(*told, strict=True)]
    return {text for texts in records if texts and taught >= set(texts) for text in texts}
