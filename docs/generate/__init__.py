"""Writes the generated part of the reference: `parts/` is included by pages, `api/` holds pages of its own."""

from __future__ import annotations

from pathlib import Path

from generate import api, messages, pictures, plugins, records, run_file, switch_table


def write(target: Path) -> None:
    """Writes every generated page below `target`; files that did not change are left alone, for quick builds."""
    pages = {
        **{f"parts/{name}.md": text for name, text in run_file.parts().items()},
        **{f"parts/{name}.md": text for name, text in messages.parts().items()},
        **{f"parts/{name}.md": text for name, text in records.parts().items()},
        **{f"parts/{name}.md": text for name, text in plugins.parts().items()},
        **{f"parts/{name}.md": text for name, text in pictures.parts(target.parent).items()},
        **{f"parts/{name}.md": text for name, text in switch_table.parts().items()},
        **{f"parts/{name}.md": text for name, text in api.parts().items()},
        **{f"api/{name}.md": text for name, text in api.pages().items()},
    }
    for name, text in pages.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in target.rglob("*.md"):
        if str(path.relative_to(target)) not in pages:
            path.unlink()
