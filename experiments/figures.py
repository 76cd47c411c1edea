"""Draws every committed figure again, from the committed results alone: `make figures`.

python experiments/figures.py [--figures=FOLDER]

experiments/lib/figures/catalogue.py says which result gets which figures.
"""

from absl import app, flags
from lib import results
from lib.figures import catalogue

TARGET = flags.DEFINE_string("figures", str(results.RESULTS), "Folder of folders, one a result, where the figures go.")


def main(_) -> None:
    for name, result in catalogue.load().items():
        for path in catalogue.draw(name, result, TARGET.value):
            print(path)


if __name__ == "__main__":
    app.run(main)
