"""`crosspatch shift`: debias a classifier by its circuit, beside everything that this has to beat."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli.console import Debug, Json, Quiet, bars, finite, note, result, say, table
from crosspatch.cli.features_inputs import Dictionaries, is_embedded, load_dictionaries
from crosspatch.cli.folders import essential
from crosspatch.cli.inputs import Budget, Device, Dtype, ModelName, Seed, Threads, load_model
from crosspatch.cli.paths_out import say_report, take
from crosspatch.cli.sweeping import Out, Overwrite
from crosspatch.errors import TaskError

if TYPE_CHECKING:
    from crosspatch.model import Model
    from crosspatch.shift import Judge, ProbeCircuit, ShiftResult, Splits

ANSWERS, CARDS, CARDS_PAGE, EXPORTED = "answers.json", "cards.json", "cards.html", "exported"
PERSON, TOKENS, PROBE, ORACLE = "person", "tokens", "probe", "oracle"
GENDER = "gender"
CORPUS_TEXTS = 400
"""Further texts for feature cards, of the embedded model's own corpus."""


class Trained(StrEnum):
    """How a head is fitted."""

    adamw = "adamw"
    logistic = "logistic"


class Effect(StrEnum):
    """How effects are found."""

    ig = "ig"
    atp = "atp"
    relp = "relp"


class Told(StrEnum):
    """What tells the gender in the embedded generator's biographies."""

    both = "both"
    pronouns = "pronouns"
    names = "names"


_JUDGE = (
    "Who says which features have nothing to do with the task. tokens: a word list (--cue-words); probe: classifiers "
    "of both attributes, which need balanced labels; oracle: effects by both labels; person: writes cards.html and "
    "answers.json and stops; a .json or .csv file: a person's answers."
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("shift", epilog="Example: crosspatch shift --judge person --out out/shift")(shift)


def shift(
    model: ModelName = "embedded",
    dictionaries: Dictionaries = None,
    data: Annotated[
        Path | None,
        typer.Option(help="JSONL with text, label, spurious. Default: biographies of the embedded generator."),
    ] = None,
    test_data: Annotated[
        Path | None, typer.Option(help="JSONL to judge on. Default: a part of --data that is held out.")
    ] = None,
    ambiguous: Annotated[
        str | None,
        typer.Option(
            help="Which values coincide in training, as professor=male,nurse=female. Default: the more frequent way."
        ),
    ] = None,
    professions: Annotated[str, typer.Option(help="Two of the generator's, label 0 and label 1.")] = "professor,nurse",
    activities: Annotated[
        int, typer.Option(min=1, max=2, help="How many activities of a person the generator tells.")
    ] = 1,
    cue: Annotated[Told, typer.Option(help="What tells the gender in the generator's texts.")] = Told.both,
    n: Annotated[int, typer.Option("--n", "-n", min=2, help="Texts of each group in each set, at most.")] = 100,
    cue_words: Annotated[
        str | None,
        typer.Option(
            help="Words that tell the other attribute: a,b,c, or a file with one a line, or gender (an English list). "
            "For the judge tokens and the control without them."
        ),
    ] = None,
    label_words: Annotated[
        str | None, typer.Option(help="Words of the labels, for the concept bottleneck: a,b,c or a file.")
    ] = None,
    judge: Annotated[str, typer.Option(help=_JUDGE)] = TOKENS,
    layer: Annotated[
        int | None,
        typer.Option(min=0, help="Block behind which the classifier reads. Default: chosen on ambiguous texts."),
    ] = None,
    training: Annotated[
        Trained, typer.Option(help="Of heads. adamw: one epoch at rate 0.01, the paper's; it takes thousands of texts.")
    ] = Trained.logistic,
    method: Annotated[Effect, typer.Option(help="Of effects; zero takes a node's place.")] = Effect.ig,
    steps: Annotated[int, typer.Option(min=1, help="Of integrated gradients, midpoint rule.")] = 10,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes in the circuit, those of largest effect.")] = 200,
    threshold: Annotated[
        float | None, typer.Option(help="Instead of --nodes: all above it (the paper's T_N; 0.1 on Pythia-70M).")
    ] = None,
    texts: Annotated[int, typer.Option(min=2, help="Texts that effects are averaged over, at most.")] = 100,
    limit: Annotated[int, typer.Option(min=2, help="Tokens after which a text is cut off.")] = 128,
    retrain: Annotated[
        bool, typer.Option("--retrain/--no-retrain", help="Fit heads again through the ablated model.")
    ] = True,
    random: Annotated[int, typer.Option(min=0, help="Draws of random features.")] = 5,
    export: Annotated[
        bool, typer.Option("--export", help="Keep the edit: a model for transformers, in the folder exported.")
    ] = False,
    out: Out = Path("out/shift"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
    budget_mib: Budget = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Take out of a classifier what a judge says has nothing to do with its task (SHIFT).

    Trains a classifier on texts in which two attributes coincide; finds the features that it rests on; asks a judge
    about each; takes out what is irrelevant; and compares, on held-out texts of all four kinds, with the paper's
    baselines and two controls that use no features at all. report.html is for reading.
    """
    from crosspatch.shift import Settings, probe_circuit, read_answers, removed_features

    answers = None if judge in (PERSON, TOKENS, PROBE, ORACLE) else read_answers(judge)
    take(out, overwrite)
    loaded = load_model(model, dtype, device, threads)
    splits = _texts(loaded, data, test_data, ambiguous, professions, activities, cue.value, n, seed)
    cues, concepts = _words(cue_words, "--cue-words"), _words(label_words, "--label-words")
    splits = dataclasses.replace(splits, cues=cues or splits.cues, concepts=concepts or splits.concepts)
    if judge == TOKENS and not splits.cues:
        fix = "give --cue-words, or another --judge"
        raise TaskError("no words that tell the other attribute", where="--judge tokens", fix=fix)
    settings = Settings(
        layer=layer,
        training=training.value,
        method=method.value,
        steps=steps,
        nodes=nodes,
        threshold=threshold,
        texts=texts,
        limit=limit,
        retrain=retrain,
        n_random=random,
        seed=seed,
        budget_mib=budget_mib,
    )
    given = load_dictionaries(loaded, dictionaries)
    with bars() as shown:
        found = probe_circuit(
            loaded, given, splits, settings, card_texts=_card_texts(loaded, seed), progress=shown.stage
        )
        _write_cards(out, found, judge)
        if judge == PERSON:
            return _ask(out, found)
        chosen = answers or _judge(judge, found)
        from crosspatch.shift import shift as compare
        from crosspatch.shift.judges import ask

        compared = compare(found, chosen, progress=shown.stage)
    compared.save(out)
    kept = _export(out, found, removed_features(found, ask(chosen, found.candidates))) if export else None
    from crosspatch.report import write_report

    page = str(write_report(out))
    frame = compared.frame(seed=seed)
    result(
        {
            "ok": True,
            "out": str(out),
            "report": page,
            "exported": kept,
            "judge": compared.about["judge"],
            "layer": found.probe.layer,
            "features": [dataclasses.asdict(feature) for feature in compared.features],
            "methods": [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")],
            "left_out": compared.left_out,
        }
    )
    _say(compared, found, frame)
    if kept:
        say(f"The edited model: {kept} (crosspatch.shift.load_exported reads it, and transformers does)")
    say_report(page)


def _texts(
    model: Model,
    data: Path | None,
    test_data: Path | None,
    ambiguous: str | None,
    professions: str,
    activities: int,
    cue: str,
    n: int,
    seed: int,
) -> Splits:
    from crosspatch.shift import biographies, read_texts, splits_of

    if data is None:
        if not is_embedded(model):
            fix = "give --data FILE; the generator's biographies are for the embedded model"
            raise TaskError(f"no texts were given for {model.name}", where="--data", fix=fix)
        if test_data is not None:
            raise TaskError("--test-data goes with --data", where="--test-data", fix="give both, or neither")
        names = tuple(part.strip() for part in professions.split(","))
        return biographies(names, n, activities=activities, cue=cue, seed=seed)  # type: ignore[arg-type]
    pairs = None
    if ambiguous is not None:
        parts = [tuple(side.strip() for side in part.split("=")) for part in ambiguous.split(",")]
        if len(parts) != 2 or any(len(part) != 2 for part in parts):
            raise TaskError(f"{ambiguous!r}", where="--ambiguous", fix="write professor=male,nurse=female")
        pairs = [(part[0], part[1]) for part in parts]
    test = read_texts(test_data) if test_data is not None else None
    return splits_of(read_texts(data), test, ambiguous=pairs, n=n, seed=seed, origin=str(data))


def _words(given: str | None, where: str) -> tuple[str, ...]:
    if given is None:
        return ()
    if given == GENDER:
        from crosspatch.shift.data import GENDERED

        return GENDERED
    path = Path(given)
    parts = given.split(",")
    if len(parts) == 1 and (path.suffix == ".txt" or path.is_file()):
        try:
            parts = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"cannot be read ({error})", where=f"{where} {given}", fix="one word a line") from error
    words = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not words:
        raise TaskError("no words", where=where, fix="give a,b,c, or a file with one a line")
    return words


def _card_texts(model: Model, seed: int) -> list[str]:
    """Cards of the embedded model's features show its whole corpus, not only the texts in question."""
    if not is_embedded(model):
        return []
    from itertools import islice

    from crosspatch.embedded.corpus import MARK, documents

    return [text.replace(MARK, "") for text in islice(documents(f"cards {seed}"), CORPUS_TEXTS)]


def _judge(name: str, found: ProbeCircuit) -> Judge:
    from crosspatch.shift import TokenList, oracle_judge, probe_judge

    if name == TOKENS:
        return TokenList.of(found.splits.cues)
    return probe_judge(found) if name == PROBE else oracle_judge(found)


def _write_cards(out: Path, found: ProbeCircuit, judge: str) -> None:
    from crosspatch.report.feature_cards import Question, cards_page
    from crosspatch.report.svg import signed
    from crosspatch.results.files import write_atomic, write_json

    labels = " or ".join(found.splits.test.label_names)
    notes = {
        c.name: f"effect on the classifier's logit {signed(c.effect)}"
        + ("" if (c.place, c.feature) in found.circuit_features else "; not in the circuit, for a control only")
        for c in found.candidates
    }
    question = Question(
        f"Does this feature have to do with whether a text is of class {labels}? keep: yes; ablate: no; unsure stays.",
        ("unsure", "keep", "ablate"),
        ANSWERS,
    )
    cards = [c.card for c in found.candidates]
    facts = {"model": found.model.name, "texts": found.splits.origin, "classifier": f"behind block {found.probe.layer}"}
    title = f"Features of a classifier: {labels}"
    page = cards_page(cards, title, facts=facts, notes=notes, question=question if judge == PERSON else None)
    write_json(out / CARDS, finite({"model": found.model.name, "cards": [card.plain() for card in cards]}))
    write_atomic(out / CARDS_PAGE, page.encode())


def _ask(out: Path, found: ProbeCircuit) -> None:
    """Leave the features to a person, and say how to go on."""
    from crosspatch.shift import write_template

    path = out / ANSWERS
    new = write_template(path, found.candidates)
    words = essential(sys.argv[1:])
    at = next((i for i, word in enumerate(words) if word == "--judge" or word.startswith("--judge=")), None)
    if at is not None:
        del words[at : at + (2 if words[at] == "--judge" else 1)]
    following = shlex.join(["crosspatch", *words, "--judge", str(path), "--overwrite"])
    result({"ok": True, "out": str(out), "cards": str(out / CARDS_PAGE), "answers": str(path), "next": following})
    say(f"{len(found.candidates)} features to judge: open {out / CARDS_PAGE}")
    say(f"Answers: {path}" + ("" if new else " (was there already and was left as it is)"))
    say("Save the page's answers there, or write keep, ablate or unsure for every feature. Then:")
    say(f"  {following}")


def _export(out: Path, found: ProbeCircuit, removed: list[tuple[str, int]]) -> str:
    from crosspatch.shift import export, feature_set

    features = feature_set(found.bases, removed)
    names = found.splits.test.label_names
    s = found.settings
    return str(
        export(found.model, found.bases, features, out / EXPORTED, probe=found.probe, labels=names, with_bos=s.with_bos)
    )


def _say(compared: ShiftResult, found: ProbeCircuit, frame: Any) -> None:
    from crosspatch.report.shift import headline_of

    note(f"Texts: {compared.about['data']}")
    for sentence in headline_of(compared, frame):
        say(sentence)
    say()
    label, other = (" or ".join(compared.about[name]) for name in ("label", "other"))
    rows = []
    for _, row in frame.iterrows():
        cells = [
            f"{row[x]:.1%} [{row[f'{x}_low']:.1%}, {row[f'{x}_high']:.1%}]" for x in ("label", "spurious", "worst")
        ]
        p = "-" if row["p_holm"] != row["p_holm"] else f"{row['p_holm']:.3f}" if row["p_holm"] >= 0.001 else "< 0.001"
        rows.append([row["method"], str(row["ablated"] or "-"), *cells, p])
    say(table(rows, ["method", "ablated", f"accuracy ({label})", f"agrees with {other}", "worst group", "p (Holm)"]))
    for name, why in compared.left_out.items():
        say(f"Left out: {name}: {why}.")
