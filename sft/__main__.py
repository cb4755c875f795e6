"""`python -m sft RECIPE.yaml`."""

from onebase.cli import command, parser
from onebase.custom.leaving import leave


def load() -> command.Stage:
    from sft.recipe import SftRecipe
    from sft.train import identify, run

    return command.Stage(SftRecipe, run, identify)


READS = "demonstrations (prompts with a response to imitate)"
WRITES = "an adapter that follows instructions"

if __name__ == "__main__":
    leave(parser.main("sft", load, READS, WRITES))
