"""What mkdocs needs beside the pages: the results and benchmarks that they link to lie outside of docs/.

A page says `../results/…` (below a folder `../../results/…`), which works where the repository is read as files. The same
folders are put into the site, and the links are shortened to match.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINKED = re.compile(r"\]\((?:\.\./)+((?:results|benchmarks)/[^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Adds every file of results/ and benchmarks/ that a page links to; of a report, what it shows and links to too."""
    for page in list(files.documentation_pages()):
        for target in LINKED.findall(page.content_string):
            _add(files, ROOT / target, config)
    return files


def _add(files: Any, path: Path, config: Any) -> None:
    name = path.relative_to(ROOT).as_posix()
    if files.get_file_from_path(name) is not None or not path.is_file():
        return
    files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    if path.suffix == ".md":
        for beside in re.findall(r"\]\(([\w.-]+)\)", path.read_text(encoding="utf-8")):
            _add(files, path.parent / beside, config)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Points links to results and benchmarks at their copies in the site, one folder less far up."""
    return re.sub(r"\]\(\.\./((?:\.\./)*(?:results|benchmarks)/)", r"](\1", markdown)
