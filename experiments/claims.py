"""Writes CLAIMS.md, docs/claims/ and the README's results from claims/ and the committed results: `make claims`."""

from lib import claims, launch


def main(args) -> None:
    del args  # there is nothing to choose
    claims.main()


if __name__ == "__main__":
    launch.run(main)
