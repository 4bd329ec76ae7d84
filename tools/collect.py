"""Play plans of the ScienceWorld world, on from where they stand, or pack what was played: `make collect`."""
import argparse
import sys

from mtrouter_nb.multi_turn.collect import COLLECTIONS, collect, pack, write_gold
from mtrouter_nb.multi_turn.local_models import WorldError


def main() -> int:
    """The plans that are named, one after the other; without any, a list of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plans", nargs="*", metavar="PLAN", help=", ".join(COLLECTIONS))
    parser.add_argument("--gold", action="store_true", help="write how the simulator's own walks end into data/")
    parser.add_argument("--pack", action="store_true", help="write what was played as one more shard into data/")
    options = parser.parse_args()
    if unknown := [name for name in options.plans if name not in COLLECTIONS]:
        parser.error(f"{unknown[0]!r} is no plan; there are {', '.join(COLLECTIONS)}")
    if not (options.plans or options.pack or options.gold):
        for name, plan in COLLECTIONS.items():
            print(f"{name}: {sum(map(len, plan.batches())) * len(plan.routers)} episodes")
    try:
        for name in options.plans:
            rows = collect(COLLECTIONS[name])
            print(f"{name}: {rows['turns'].sum()} turns, {rows['asked'].sum()} of them acted now")
        if options.gold: print(f"written: {write_gold()}")
        if options.pack: print(f"packed: {pack() or 'nothing new'}")
    except WorldError as error:
        print(f"collect: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
