"""Responses of a model to prompts, as text and as tokens, and their grades. They are kept by content: nothing is
generated twice."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.chat.conversations import Chat, EncodedPrompt
from data.tasks.checks import grade, has_check
from onebase.errors import RecordError
from onebase.files.json_file import read_object
from onebase.files.writing import canonical, replace_file
from onebase.inference.sampling import sample
from onebase.model.roles import Roles
from onebase.run.identity import versions
from onebase.run.stage_files import NEEDED
from onebase.seeding import generator, stream
from onebase.sequences.episodes import Episodes
from onebase.terminal import say
from onebase.tracking.progress import track

LARGEST = 2**30
"""Bytes of a file of kept responses."""

BLOCK = 4
"""Batches between two steps of the progress bar."""

DRAWS = 3
"""Version of the sampler, raised when the same seed draws other responses. Kept responses are of one version."""


def greedy(
    roles: Roles, role: str | None, chat: Chat, prompts: Sequence[Sequence[int]], *, max_new_tokens: int
) -> list[str]:
    """The text of each prompt's greedy response; role None is the bare base."""
    drawn = sample(
        roles,
        role,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=0.0,
        generator=generator(0),
        batch=len(prompts),
    )
    return texts(chat, drawn.episodes)


def texts(chat: Chat, episodes: Episodes) -> list[str]:
    """Each response as text."""
    return [chat.text(row[mask].tolist()) for row, mask in zip(episodes.responses, episodes.mask, strict=True)]


def task_grades(prompts: Sequence[EncodedPrompt], answers: Sequence[str]) -> dict[str, list[float]]:
    """Correctness, form and their mean (the task score) of each answer, in [0, 1]; empty if a prompt has no check."""
    if not all(has_check(encoded.prompt) for encoded in prompts):
        return {}
    grades = [grade(encoded.prompt, answer) for encoded, answer in zip(prompts, answers, strict=True)]
    return {
        "correctness": [each.correctness for each in grades],
        "form": [each.form for each in grades],
        "task_score": [each.mean for each in grades],
    }


@dataclass(frozen=True, kw_only=True)
class Responder:
    """Generates responses of one base to one set of prompts, or reads those that an earlier run kept."""

    roles: Roles
    prompts: Sequence[Sequence[int]]
    folder: Path
    max_new_tokens: int
    batch: int
    seed: int

    def __call__(self, role: str | None, *, adapter_sha256: str | None, temperature: float) -> Episodes:
        """The role's responses. adapter_sha256: of the role's weights and config; None for the bare base."""
        kept = self.folder / f"{self._key(adapter_sha256, temperature)}.json"
        responses = self._kept(kept)
        if responses is None:
            responses = self._generate(role, temperature)
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(kept, canonical({"sha256": _sha256(responses), "responses": responses}))
        return Episodes.of(self.prompts, responses, pad_id=self.roles.base.pad_id)

    def _kept(self, path: Path) -> list[list[int]] | None:
        """The responses that an earlier run kept; None without such a file, or if it was changed since."""
        if not path.is_file():
            return None
        try:
            content, _ = read_object(path, largest=LARGEST)
            responses = content["responses"]
            if content["sha256"] == _sha256(responses) and len(responses) == len(self.prompts):
                return responses
        except (RecordError, KeyError, TypeError):
            pass
        say(f"{path}: the responses kept here cannot be used, so they are generated again")
        return None

    def _generate(self, role: str | None, temperature: float) -> list[list[int]]:
        # Several batches in one call: a response that ends early makes room for another prompt's.
        block = BLOCK * self.batch
        starts = range(0, len(self.prompts), block)
        drawn = generator(self.seed, "compare", str(temperature))
        responses: list[list[int]] = []
        for start in track(starts, total=len(starts), description=f"{role or 'base'}, temperature {temperature:g}"):
            part = sample(
                self.roles,
                role,
                self.prompts[start : start + block],
                max_new_tokens=self.max_new_tokens,
                temperature=temperature,
                generator=drawn,
                batch=self.batch,
            )
            pairs = zip(part.episodes.responses, part.episodes.mask, strict=True)
            responses += [row[mask].tolist() for row, mask in pairs]
        return responses

    def _key(self, adapter_sha256: str | None, temperature: float) -> str:
        base = self.roles.base
        content = {
            "base": base.identity.model_dump(exclude={"model", "revision"}),
            "stop_ids": sorted(base.stop_ids),
            "adapter": adapter_sha256,
            "prompts": [list(prompt) for prompt in self.prompts],
            "max_new_tokens": self.max_new_tokens,
            "temperature": temperature,
            # The shape of a batch decides the last bits of the logits, and so now and then a token.
            "batch": self.batch,
            "seed": stream(self.seed, "compare", str(temperature)),
            "versions": {name: version for name, version in versions().items() if name != "onebase"},
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if base.device.type == "cuda" else base.device.type,
            "bf16": base.computes_in_bf16,
            "draws": DRAWS,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _sha256(responses: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(responses).encode()).hexdigest()


def adapter_sha256(files: Mapping[str, str]) -> str:
    """From a record's `files`. Weights and config: with another scale the same weights give other answers."""
    return hashlib.sha256("".join(files[name] for name in sorted(NEEDED)).encode()).hexdigest()
