"""`python -m dpo RECIPE.yaml`."""

from onebase.cli import command, parser
from onebase.custom.leaving import leave


def load() -> command.Stage:
    from dpo.recipe import DpoRecipe
    from dpo.train import identify, run

    return command.Stage(DpoRecipe, run, identify)


READS = "the SFT stage and rankings"
WRITES = "the policy's adapter"

if __name__ == "__main__":
    leave(parser.main("dpo", load, READS, WRITES))
