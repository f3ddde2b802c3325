"""`python -m docs.generate`: write every generated reference."""

from __future__ import annotations

from docs.generate.everything import PAGES


def main() -> None:
    """Write what has changed, and say so."""
    for file, made in PAGES.items():
        text = made()
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
            print(f"wrote {file}")  # noqa: T201 -- the answer of a command


if __name__ == "__main__":
    main()
