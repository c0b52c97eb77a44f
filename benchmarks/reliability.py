"""Write docs/reliability.md from its kept results.

python benchmarks/reliability.py
"""

from pathlib import Path

from page.hostile import hostile

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
SECTIONS = (hostile,)


def main() -> None:
    """Write the page."""
    head = "# Reliability\n\nWritten by `python benchmarks/reliability.py` from `benchmarks/results/`; not by hand.\n"
    PAGE.write_text("\n".join([head, *(section() for section in SECTIONS)]))
    print(f"written: {PAGE.name}")


if __name__ == "__main__":
    main()
