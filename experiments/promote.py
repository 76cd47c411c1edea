"""Makes a committed result from finished runs. Nothing else writes committed results.

python experiments/promote.py srcd_small runs/srcd_small/seed_0 runs/srcd_small/seed_1 ...    # runs that differ by seed
python experiments/promote.py ablations runs/ablations                                       # a comparison's result

Runs are refused if they are unfinished, have equal seeds, or differ in commit or settings, and if their code had
uncommitted changes. `make figures` draws the figures of the result.
"""

import argparse
import sys
from pathlib import Path

from lib import promote, results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the result: experiments/results/NAME")
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="RUNDIR", help="finished runs, below runs/")
    parser.add_argument("--question", help="question of the result, one sentence; needed for a new result of runs")
    parser.add_argument("--command", help="command of the runs, with SEED for the seed; needed like --question")
    parser.add_argument("--note", action="append", default=[], help="note for readers of the result; may be repeated")
    parser.add_argument("--replace", action="store_true", help="overwrite a result of another question or settings")
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
