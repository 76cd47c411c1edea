"""CLAIMS.md and docs/claims/ again, from claims/ and the committed results: `make claims`."""

from lib import claims

if __name__ == "__main__":
    claims.main()
