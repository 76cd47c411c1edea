"""Draws every committed figure again, from the committed results alone: `make figures`.

python experiments/figures.py [--figures=FOLDER]

experiments/lib/figures/catalogue.py says which result gets which figures.
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
        figures=launch.Flag("", "Folder of the figures, one for each result; the committed results by default."),
    )
