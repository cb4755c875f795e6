"""`python -m sft RECIPE.yaml`."""

import sys

from onebase import command


def load() -> command.Stage:
    from sft.recipe import SftRecipe
    from sft.train import identify, run

    return command.Stage(SftRecipe, run, identify)


READS = "demonstrations (prompts with a response to imitate)"
WRITES = "an adapter that follows instructions"

if __name__ == "__main__":
    sys.exit(command.main("sft", load, READS, WRITES))
