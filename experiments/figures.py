"""Draws all committed figures from the committed results: `make figures`.

python experiments/figures.py [--figures=FOLDER]

experiments/lib/figures/catalogue.py lists the figures of each result.
"""

from lib import launch, results
from lib.figures import catalogue


def main(args) -> None:
    for name, result in catalogue.load().items():
        for path in catalogue.draw(name, result, args.figures or results.RESULTS):
            print(path)


if __name__ == "__main__":
    launch.run(
        main,
        takes="2 minutes",
        figures=launch.Flag("", "Folder to write to, with a folder for each result; the committed results by default."),
    )
