"""`python -m ppo RECIPE.yaml`."""

from onebase.cli import command, parser
from onebase.custom.leaving import leave


def load() -> command.Stage:
    from ppo.recipe.recipe import PpoRecipe
    from ppo.start import identify
    from ppo.train import run

    return command.Stage(PpoRecipe, run, identify)


READS = "the SFT stage (policy and reference), the reward stage (score and value) and prompts"
WRITES = "the policy's adapter"
FLAGS = {
    "profile": (
        "Record the second and third step with torch.profiler into profile/trace.json.gz of the stage's folder, for "
        "https://ui.perfetto.dev. The run's result is the same to the bit. A finished stage is not run again, so pass "
        "another out=FOLDER."
    )
}
"""Switches of this stage alone; each is an argument of `run`."""

if __name__ == "__main__":
    leave(parser.main("ppo", load, READS, WRITES, flags=FLAGS))
