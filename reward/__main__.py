"""`python -m reward RECIPE.yaml`."""

from onebase.cli import command, parser
from onebase.custom.leaving import leave


def load() -> command.Stage:
    from reward.recipe import RewardRecipe
    from reward.train import identify, run

    return command.Stage(RewardRecipe, run, identify)


READS = "the SFT stage and rankings of K responses"
WRITES = "an adapter with a scalar head that scores responses"

if __name__ == "__main__":
    leave(parser.main("reward", load, READS, WRITES))
