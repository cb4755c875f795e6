"""`python -m dpo RECIPE.yaml`."""

import sys

from onebase import command


def load() -> command.Stage:
    from dpo.recipe import DpoRecipe
    from dpo.train import identify, run

    return command.Stage(DpoRecipe, run, identify)


READS = "the SFT stage and rankings"
WRITES = "the policy's adapter"

if __name__ == "__main__":
    sys.exit(command.main("dpo", load, READS, WRITES))
