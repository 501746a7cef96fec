"""`crosspatch paths`: test a claim about paths, and see token by token where it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import paths_mediate, paths_search
from crosspatch.cli.console import Debug, Json, Quiet, bars, result, say, table
from crosspatch.cli.inputs import (
    Budget,
    Corruption,
    Count,
    Device,
    Dtype,
    ModelName,
    Seed,
    TaskName,
    Threads,
    load_model,
)
from crosspatch.cli.paths_inputs import Asked, attribution_pairs, in_words, one_hypothesis, pairs_of
from crosspatch.cli.paths_options import (
    Apart,
    Distance,
    File,
    Folder,
    Length,
    Named,
    Norms,
    NormScale,
    Reference,
    Side,
    Text,
)
from crosspatch.cli.paths_out import (
    attribution_frame,
    planned,
    records,
    say_intervals,
    say_report,
    take,
    write_folder,
)
from crosspatch.cli.sweeping import Force, Overwrite, Resume
from crosspatch.report.paths_rows import between, plain_range, share_range
from crosspatch.report.svg import percent, signed

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    help="Path patching: state a claim as a set of paths, and test it exactly.",
    epilog="Example: crosspatch paths test claims.txt --task ioi --out out/claims",
    no_args_is_help=True,
)


@app.command("test", epilog="Example: crosspatch paths test claims.txt --task ioi --out out/claims")
def test(
    file: File,
    task: TaskName = "ioi",
    model: ModelName = "embedded",
    corruption: Corruption = None,
    n: Count = 48,
    text: Text = None,
    length: Length = 32,
    reference: Reference = Side.clean,
    dissimilarity: Apart = Distance.kl,
    norms: NormScale = Norms.recomputed,
    apart: Annotated[
        list[str] | None,
        typer.Option(
            "--apart",
            help="Control: paths that see a counterfactual prompt of their own, as a pattern such as "
            "'** -> a1.h5.q -> ** -> logits' (repeat; a path in several belongs to the first).",
        ),
    ] = None,
    out: Folder = None,
    seed: Seed = 0,
    force: Force = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    budget_mib: Budget = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score hypotheses: how much of the output stays as it is when only their paths see the reference prompt."""
    from crosspatch.paths.files import read_hypotheses

    found = read_hypotheses(file)
    take(out, overwrite, resume)
    loaded = load_model(model, dtype, device, threads)
    given = pairs_of(loaded, Asked(task, corruption, n, seed, reference.value, text, length, force))
    from crosspatch.paths.scores import test_paths

    with bars() as shown:
        scored = test_paths(
            loaded,
            found.named,
            given.pairs,
            dissimilarity=dissimilarity.value,
            norms=norms.value,
            always=found.always,
            seed=seed,
            budget_mib=budget_mib,
            progress=shown.of("paths"),
            on_plan=planned(given.pairs),
            checkpoint=out,
        )
        moved = None
        if apart:
            from crosspatch.paths.decohere import decohere
            from crosspatch.paths.pathset import paths

            moved = decohere(
                loaded,
                found.named,
                {text.strip(): paths(text) for text in apart},
                given.pairs,
                dissimilarity=dissimilarity.value,
                norms=norms.value,
                always=found.always,
                seed=seed,
                budget_mib=budget_mib,
                progress=shown.of("counterfactuals apart"),
                on_plan=planned(given.pairs),
                checkpoint=out,
            )
    scores, compared = scored.frame(), scored.compare(scored.yardstick)
    mean, low, high = scored.ate
    floor, about = float(scored.floor.mean()), scored.about
    page = None
    if out is not None:
        words = {name: in_words(claim, loaded, given.pairs) for name, claim in found.named.items()}
        title = f"Do these paths explain {about['pairs'].split(' (')[0]}?"
        tables = {"scores": scores, "comparison": compared} | ({} if moved is None else {"apart": moved.frame()})
        page = write_folder(out, [scored, *([moved] if moved else [])], tables, given, title, words=words)
    result(
        {
            "ok": True,
            "out": str(out) if out else None,
            "report": page,
            "forced": given.forced,
            "ate": {"mean": mean, "low": low, "high": high},
            "floor": floor,
            "hypotheses": records(scores),
            "comparison": records(compared),
            "apart": records(moved.frame()) if moved else [],
            "stretch": moved.about["stretch"] if moved else None,
            "about": about,
        }
    )
    say(f"{about['dissimilarity']} in {about['unit']}, {len(scored.total)} pairs: {about['pairs']}")
    say(f"Null: {about['null']}. ATE {mean:.4g} {plain_range(low, high)}.")
    say(f"Numerical floor (AUE at all paths): {floor:.1e}. {about['method'].capitalize()}.\n")
    say(_scores(scores))
    say_intervals(len(scored.total))
    if len(compared):
        say(f"\nAUE on the same pairs, first less second (negative: the first explains more)\n{_compared(compared)}")
        if scored.yardstick is not None:
            say(f"Each beside the one that leaves least unexplained on these pairs, of {len(scores)} hypotheses.")
    if moved is not None:
        groups = ", ".join(moved.about["groups"])
        say(f"\nA counterfactual of its own for each of: {groups}\n{moved.about['pairs']}\n{_moved(moved.frame())}")
        if moved.warning:
            say(f"Careful: {moved.warning}.")
    say_report(page)


def _scores(frame: pd.DataFrame) -> str:
    cells = []
    for row in records(frame):
        cells.append([row["hypothesis"]])
        for name in ("explained", "needed"):
            cells[-1] += [percent(row[name]), _between(row, name)]
        cells[-1] += [f"{row['aue']:.4g}", plain_range(row["aue_low"], row["aue_high"])]
        cells[-1] += [percent(row["loss_recovered"]), _between(row, "loss_recovered")]
    columns = ("explained", "needed", "AUE", "loss recovered")
    return table(cells, ["hypothesis", *(name for column in columns for name in (column, "interval"))])


def _between(row: dict[str, Any], name: str) -> str:
    return share_range(row[f"{name}_low"], row[f"{name}_high"])


def _moved(frame: pd.DataFrame) -> str:
    cells = [
        [
            row["hypothesis"],
            percent(row["explained_shared"]),
            percent(row["explained_apart"]),
            _between(row, "explained_apart"),
            signed(row["aue_change"]),
            between(row["aue_change_low"], row["aue_change_high"]),
        ]
        for row in records(frame)
    ]
    return table(cells, ["hypothesis", "explained, shared", "apart", "interval", "change of AUE", "interval"])


def _compared(frame: pd.DataFrame) -> str:
    cells = [
        [
            row["first"],
            row["second"],
            f"{row['difference']:.4g}",
            plain_range(row["low"], row["high"]),
            f"{row['q']:.3f}",
        ]
        for row in records(frame)
    ]
    return table(cells, ["first", "second", "difference", "interval", "q"])


@app.command("attribute", epilog="Example: crosspatch paths attribute claims.txt --name movers --example 3")
def attribute(
    file: File,
    name: Named = None,
    example: Annotated[
        int | None,
        typer.Option(
            min=0, help="The pair of the task, or row of the text, to look at. Default: the first that can be."
        ),
    ] = None,
    task: TaskName = "ioi",
    model: ModelName = "embedded",
    corruption: Corruption = None,
    n: Count = 48,
    text: Text = None,
    length: Length = 32,
    dissimilarity: Apart = Distance.abs_loss,
    norms: NormScale = Norms.recomputed,
    out: Folder = None,
    seed: Seed = 0,
    force: Force = False,
    overwrite: Overwrite = False,
    budget_mib: Budget = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Where a hypothesis fails: let the paths that it leaves out see other prompts, and watch the loss by token.

    One reference, many counterfactuals: the clean prompt of one pair against the corrupt prompts of the other pairs
    that have as many tokens, or one row of a text against --n others. Positive: the paths left out were helping.
    """
    from crosspatch.paths.files import read_hypotheses

    found = read_hypotheses(file)
    chosen, claim = one_hypothesis(found, name, file)
    take(out, overwrite)
    loaded = load_model(model, dtype, device, threads)
    asked = Asked(task, corruption, n, seed, "clean", text, length, force)
    given = attribution_pairs(loaded, asked, example, dissimilarity is Distance.abs_logit_diff)
    from crosspatch.paths.attribute import attribute as run

    with bars() as shown:
        seen = run(
            loaded,
            ~claim,
            given.pairs,
            dissimilarity=dissimilarity.value,
            norms=norms.value,
            always=found.always,
            seed=seed,
            budget_mib=budget_mib,
            progress=shown.of("paths"),
            on_plan=planned(given.pairs),
        )
    frame = attribution_frame(seen, given.following)
    about = {
        "model": model,
        "dissimilarity": dissimilarity.value,
        "norms": norms.value,
        "seed": seed,
        "pairs_hash": given.pairs.hash,
    }
    page = None
    if out is not None:
        page = write_folder(
            out,
            [seen],
            {"attribution": frame},
            given,
            f"Where does \N{LEFT DOUBLE QUOTATION MARK}{chosen}\N{RIGHT DOUBLE QUOTATION MARK} fail?",
            facts={"model": model, "norms": norms.value, "seed": str(seed)},
            hypothesis=chosen,
            claim=claim.to_json(),
            following=given.following,
            **about,
        )
    result(
        {
            "ok": True,
            "out": str(out) if out else None,
            "report": page,
            "forced": given.forced,
            "hypothesis": chosen,
            "unit": seen.unit,
            "pairs": given.pairs.provenance,
            "tokens": seen.tokens,
            "reads": records(frame),
            "about": about | {"claim": claim.to_json()},
        }
    )
    quantity = seen.about["quantity"]
    say(
        f"{given.pairs.provenance}\n"
        f"Change of the {quantity} in {seen.unit} when all paths but those of {chosen!r} see another prompt.\n"
        "Positive: the paths left out were helping.\n"
    )
    cells = [
        [
            str(row["position"]),
            repr(row["predicts"]),
            signed(row["effect"]),
            between(row["low"], row["high"]),
            f"{row['reference']:.3g}",
        ]
        for row in records(frame)
    ]
    say(table(cells, ["position", "predicts", "effect", "interval", f"{quantity} in the model"]))
    say_intervals(len(given.pairs))
    say_report(page)


paths_search.add_to(app)
paths_mediate.add_to(app)
