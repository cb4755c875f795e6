"""`onebase eval reward`: a finished reward stage scores held-out rankings, and the report says whether to trust it.

The reward stage itself ends with the same `reward_report`, so its own report.json is what this command would write.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data.chat.conversations import Limiter, encode_demonstrations, encode_rankings
from data.records import Demonstration, Ranking, conversation_of
from data.select.labelers import RankingSplit, divide
from data.select.sources import Source
from data.select.sources import load as load_records
from evaluation.reward_model.calibration import reliability
from evaluation.reward_model.loading import RecordedRecipe, load_weights, read, recipe_of
from evaluation.reward_model.measure import encode_left_out, reward_report
from onebase.errors import DataError
from onebase.files.writing import canonical, replace_file
from onebase.inference.scoring import FIRST, CombineSection
from onebase.run.folders import require_replaceable, require_writable
from onebase.terminal import say
from onebase.tracking.figures import save


def evaluate(
    folders: Sequence[Path], out: Path, *, rankings: Sequence[Source] = (), combine: CombineSection | None = None
) -> dict[str, Any]:
    """The report of a finished stage, or of several as an ensemble, as report.json and a figure in `out`.

    rankings: in place of the (first) recipe's held-out ones. Prompts that any member was trained on are then left out.
    From the recipe's own rankings, those that a further member was trained on are left out: it would know the answers.
    DataError if none is left.
    """
    require_replaceable(out, "report.json", ("stage_sha256",), ["reliability.svg"])
    require_writable(out)
    members = read(folders)
    recipe = recipe_of(members[FIRST])
    limiter = Limiter(recipe.limits)
    held_out = load_records(rankings or recipe.evaluation.rankings, Ranking, seed=recipe.seed)
    divided = {name: training_of(recipe_of(stage)) for name, stage in members.items()}
    # The first member may have been trained on another labeler's ranking of one of its own held-out prompts. Its stage
    # reports these, and so does this.
    fresh = untrained(
        held_out.records, [split.training for name, split in divided.items() if name != FIRST or rankings]
    )
    demonstrations = load_records(recipe.evaluation.demonstrations, Demonstration, seed=recipe.seed)
    model = load_weights(members, combine)
    training = encode_rankings(model.chat, divided[FIRST].training, Limiter(limiter.limits))
    _, report = reward_report(
        model.roles,
        encode_rankings(model.chat, fresh, limiter),
        encode_demonstrations(model.chat, demonstrations.records, limiter),
        [encoded.ranking for encoded in training],
        tokens_per_microbatch=model.tokens_per_microbatch,
        seed=recipe.seed,
        ensemble=model.ensemble,
        log_odds=model.log_odds,
        labelers=recipe.labelers,
        left_out=[] if rankings else encode_left_out(model.chat, divided[FIRST].held_out, limiter),
    )
    identities = [*held_out.identities, *limiter.settle("eval reward")]
    report |= {"data": [identity.model_dump() for identity in identities], "stage_sha256": model.first.sha256}
    dropped = report["rankings_of_trained_prompts"] = len(held_out.records) - len(fresh)
    if dropped:
        say(f"eval reward: {dropped} rankings are left out, because their prompts were trained on.")
    if len(members) > 1:
        report["ensemble"]["stages_sha256"] = {name: stage.sha256 for name, stage in members.items()}
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "report.json", canonical(report))
    save(partial(reliability, report=report), out / "reliability.svg")
    return report


def training_of(recipe: RecordedRecipe) -> RankingSplit:
    """What a finished stage learned from, read again."""
    return divide(load_records(recipe.data, Ranking, seed=recipe.seed).records, recipe.labelers)


def untrained(rankings: Sequence[Ranking], trained: Sequence[Sequence[Ranking]]) -> list[Ranking]:
    """The rankings of prompts that are in none of the training sets."""
    known = {conversation_of(ranking.prompt) for training in trained for ranking in training}
    fresh = [ranking for ranking in rankings if conversation_of(ranking.prompt) not in known]
    if rankings and not fresh:
        raise DataError(
            f"eval reward: all {len(rankings)} held-out rankings are of prompts that were trained on. Pass others with "
            "--data."
        )
    return fresh
