"""What the site has besides the pages of this folder: pages from elsewhere in the project, and the API reference."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    **{f"configs/fashion/{model}.md": f"models/{model}.md" for model in ("mar", "flowar", "xar", "causal")},
}
"""Where pages of the project are on the site."""
API = (
    "schedules", "solvers", "sampling", "models", "tokenizers", "module", "data", "metrics", "prediction", "search",
    "measure", "diagnostics", "app.page", "hub", "integrations.transformers", "testing",
)  # fmt: skip
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages."""
    for source, place in ELSEWHERE.items():
        text = relinked((ROOT / source).read_text(), Path(source), Path(place))
        files.append(File.generated(config, place, content=text))
    modules = {"disa_framework": "disa_framework", **{name: f"disa_framework.{name}" for name in API}}
    for name, module in modules.items():
        files.append(File.generated(config, f"api/{name}.md", content=f"# {module}\n\n::: {module}\n"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Has links out of this folder lead to pages of the site."""
    place = Path(page.file.src_uri)
    return markdown if page.file.generated_by else relinked(markdown, "docs" / place, place)


def relinked(text: str, source: Path, place: Path) -> str:
    """A page's text with its links changed.

    Args:
        source: of the text, from the root of the project.
        place: of the page, from the root of the site.
    """

    def changed(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / link[1])).as_posix()
        target = ELSEWHERE.get(target, target.removeprefix("docs/"))
        return f"]({os.path.relpath(target, place.parent)}{link[2] or ''})"

    return _LINK.sub(changed, text)
