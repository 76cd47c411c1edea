"""Takes finished runs over into the committed results: nothing else writes there.

python experiments/promote.py srcd_small runs/srcd_small/seed_0 runs/srcd_small/seed_1 ...    # runs that differ by seed
python experiments/promote.py ablations runs/ablations                                       # a comparison's result

Refused are runs that are unfinished, of a tree with uncommitted changes, of different commits, of equal seeds or of
different settings. Figures are drawn from the result: `make figures`.
"""

import argparse
import sys
from pathlib import Path

from lib import promote, results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the result: experiments/results/NAME")
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="RUNDIR", help="finished, below runs/")
    parser.add_argument("--question", help="what the result answers, in one sentence; a new result of runs needs it")
    parser.add_argument("--command", help="that makes the runs, with SEED for the seed; a new result of runs needs it")
    parser.add_argument("--note", action="append", default=[], help="what a reader must know; may be repeated")
    parser.add_argument("--replace", action="store_true", help="put it in the place of a result of another question")
    args = parser.parse_args(argv)
    try:
        result = promote.promote(
            args.name,
            args.workdirs,
            question=args.question,
            command=args.command,
            notes=tuple(args.note),
            replace=args.replace,
        )
    except promote.Refused as error:
        sys.exit(f"error: {error}")
    print(f"{results.RESULTS / args.name / 'result.json'}: {result['question']}")
    for label, entry in result["entries"].items():
        print(f"  {label}: {len(entry['runs'])} runs")


if __name__ == "__main__":
    main()
