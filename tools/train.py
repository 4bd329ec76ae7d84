"""Train the adapters of the small language models anew, on a GPU: `make models`."""
import argparse
import sys
from pathlib import Path

import torch

from mtrouter_nb.core.files import project_root, write_atomic
from mtrouter_nb.multi_turn.local_models import WorldError, installed_base
from mtrouter_nb.multi_turn.scienceworld import FAMILIES, ScienceWorld
from mtrouter_nb.multi_turn.training import (RECIPES, Adapted, examined, lesson, save_adapter, seeded, taught_by,
                                             taught_variations, train, walks)


def tasks(simulator: ScienceWorld) -> list[str]:
    "Every task that models are taught."
    return [f"{name}/{variation}" for names in FAMILIES.values() for name in names
            for variation in taught_variations(name, simulator.variations(name))]


def teach(name: str, found: list, home: Path, device: str) -> None:
    "Train the adapter `name` on its part of the walks `found`; into `home`, with a table of what it then knows."
    recipe, (base, layers, coder, embedding) = RECIPES[name], installed_base()
    with seeded(0):
        model = Adapted(layers[:recipe.layers], embedding, torch.tensor(base.tensor("output_norm.weight")), recipe.rank)
    model = model.to(device)
    losses = train(model, [lesson(walk, coder) for walk in taught_by(recipe, found)], recipe.steps)
    table = examined(model, found, coder)
    write_atomic(home / f"{name}.csv", table.to_csv(index=False))
    print(f"{save_adapter(model, home / f'{name}.npz')}: last loss {losses[-1]:.3f}; exact actions\n{table}")


def main() -> int:
    """The adapters that are named; without any, all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--device", default="cuda", help="where; cpu is for trials, and takes days")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in RECIPES]:
        parser.error(f"{unknown[0]!r} is no adapter; there are {', '.join(RECIPES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("models: torch sees no GPU here, as .venv holds its build for CPUs; on a machine with one, install torch "
              "for CUDA into .venv (pytorch.org says how), and run this again.", file=sys.stderr)
        return 1
    home = project_root() / "build" / "models"
    home.mkdir(parents=True, exist_ok=True)
    try:
        with ScienceWorld() as simulator: found = walks(simulator, tasks(simulator), home / "walks.jsonl")
        for name in options.names or RECIPES: teach(name, found, home, options.device)
    except WorldError as error:
        print(f"models: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
